# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _rules_facts as rf
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Failure, Unknown
from rules_case import GIB, host

H100 = {"index": 0, "uuid": "GPU-a", "name": "NVIDIA H100 80GB HBM3"}


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        ("580.95.05", (580, 95, 5)), ("v28.5.1-rc1", (28, 5, 1)), ("6.8.0-87-generic", (6, 8, 0)), ("13.0", (13, 0)),
        ("", ()), ("dev", ()), (None, ()), (13.0, ()), ("9" * 40, ()), (["1.2"], ()),
    ],
)  # fmt: skip
def test_versions(written: t.Any, numbers: tuple[int, ...]) -> None:
    assert rf.version(written) == numbers


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("00000000:1B:00.0", "0000:1b:00"), ("0000:1b:00", "0000:1b:00"), ("PCI:0000:1B:00", "0000:1b:00"),
        ("00000001:1B:00.0", "0001:1b:00"), ("1b:00.0", ""), ("", ""), (None, ""), (5, ""),
    ],
)  # fmt: skip
def test_pci_addresses_agree_whoever_wrote_them(written: t.Any, address: str) -> None:
    assert rf.bus(written) == address


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1.0), (1.5, 1.5), (True, None), ("1", None), (float("nan"), None), (10**400, None)]
)
def test_numbers(value: t.Any, number: float | None) -> None:
    assert rf.number(value) == number


def test_lists_and_mappings_of_anything() -> None:
    assert rf.items([{"a": 1}, 2, None]) == [{"a": 1}]
    assert [rf.items("ab"), rf.texts(None), rf.sequence({"a": 1})] == [[], [], []]
    assert rf.texts(["a", 1]) == ["a"]
    assert rf.dig({"a": {"b": 1}}, "a", "b") == 1
    assert rf.dig({"a": [1]}, "a", "b") is None
    assert rf.listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert [rf.size(amount) for amount in (3 << 20, 21 * GIB, 3 << 40)] == ["3 MiB", "21.0 GiB", "3.0 TiB"]


@pytest.mark.parametrize(
    ("service", "share"),
    [
        ({}, 0.92),
        ({"gpu_memory_utilization": 0.4}, 0.4),
        ({"gpu_memory_utilization": "0.4"}, 0.4),
        ({"arguments": ["/model", "--gpu-memory-utilization", "0.85"]}, 0.85),
        ({"command": ["vllm", "--gpu-memory-utilization=0.5"]}, 0.5),
        ({"arguments": ["--gpu-memory-utilization"]}, 0.92),
        ({"gpu_memory_utilization": 7}, 0.92),
        ({"gpu_memory_utilization": True}, 0.92),
    ],
)
def test_share_of_a_card(service: dict[str, t.Any], share: float) -> None:
    assert rf.utilization(service) == share


@pytest.mark.parametrize(
    ("wanted", "same"),
    [
        ({"uuid": "GPU-a", "index": 5}, True),
        ({"uuid": "GPU-b", "index": 0}, False),
        ({"index": 0}, True),
        ({"index": 1}, False),
        ({}, False),
    ],
)
def test_cards_are_the_same_by_uuid_before_index(wanted: dict[str, t.Any], same: bool) -> None:
    assert rf.same_card(wanted, H100) is same


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S", "Tesla T4", "NVIDIA GH200 480GB",
        "NVIDIA B200", "NVIDIA RTX A6000", "NVIDIA RTX 6000 Ada Generation", "NVIDIA A10", "NVIDIA H20",
    ],
)  # fmt: skip
def test_data_centre_cards(name: str) -> None:
    assert rf.is_data_centre({"name": name})


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3080 Ti", "NVIDIA TITAN V", "", None])
def test_other_cards(name: t.Any) -> None:
    assert not rf.is_data_centre({"name": name})


def test_cards_are_looked_at_by_who_uses_them() -> None:
    context = host({"gpus>0>temperature_c": None, "gpus>7>temperature_c": None})

    def known(card: rf.Map) -> bool:
        return card.get("temperature_c") is not None

    def look(card: rf.Map) -> Failure | None:
        return Failure(rf.index_of(card), "", "") if card["index"] == 3 else None

    verdict = rf.of_cards(context, "the heat", known, lambda card: None)
    assert verdict == Unknown("GPU 0, 7: the heat is not told")
    verdict = rf.of_cards(context, "the heat", known, lambda card: None, chosen=True)
    assert verdict == Unknown("GPU 0: the heat is not told")
    assert rf.of_cards(context, "the heat", known, look) == [Failure("3", "", "")]
    assert rf.label(context.facts["gpus"][0], context) == "GPU 0 (NVIDIA H100 80GB HBM3, used by chat)"
    assert rf.label(context.facts["gpus"][3], context) == "GPU 3 (NVIDIA H100 80GB HBM3, spare)"


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ({"id": "ubuntu", "id_like": "debian"}, "apt install --only-upgrade docker-ce"),
        ({"id": "rocky", "id_like": "rhel centos fedora"}, "dnf upgrade docker-ce"),
        ({"id": "rhel", "id_like": None}, "dnf upgrade docker-ce"),
        (None, "apt install --only-upgrade docker-ce"),
    ],
)
def test_commands_are_those_of_the_distribution(system: t.Any, command: str) -> None:
    context = host({"os": system})
    assert rf.upgrade("docker-ce", context) == command
    red_hat = command.startswith("dnf")
    assert rf.install_fabric_manager(context) == (
        "dnf install nvidia-fabricmanager-580.95.05" if red_hat else "apt install nvidia-fabricmanager-580"
    )
    assert rf.hold(["nvidia-*"], context) == f"{'dnf versionlock add' if red_hat else 'apt-mark hold'} 'nvidia-*'"
    assert rf.kernel_argument("iommu=pt", context).startswith("grubby --update-kernel=ALL") is red_hat


RED_HAT_9 = "dnf module reset nvidia-driver && dnf module enable nvidia-driver:{} && dnf install --allowerasing {}"
DEBIAN = "apt install nvidia-driver-pinning-580 && apt install nvidia-open"


@pytest.mark.parametrize(
    ("system", "capability", "command"),
    [
        ({"id": "ubuntu", "version_id": "22.04"}, "9.0", "apt install nvidia-driver-580-server-open"),
        ({"id": "ubuntu", "version_id": "22.04"}, "7.0", "apt install nvidia-driver-580-server"),
        ({"id": "debian", "version_id": "12"}, "9.0", DEBIAN),
        ({"id": "rocky", "id_like": "rhel", "version_id": "9.4"}, "9.0", RED_HAT_9.format("580-open", "nvidia-open")),
        ({"id": "amzn", "version_id": "2023"}, "7.0", RED_HAT_9.format("580-dkms", "cuda-drivers")),
        ({"id": "rhel", "version_id": "10.1"}, None, "dnf versionlock add '*nvidia*580*' && dnf install nvidia-open"),
        (None, None, "apt install nvidia-driver-580-server-open"),
    ],
)
def test_a_driver_is_installed_as_its_repository_has_it(system: t.Any, capability: t.Any, command: str) -> None:
    context = host({"os": system, "gpus>*>compute_capability": capability})
    assert rf.install_driver(580, context) == command


def test_the_fabric_manager_had_another_name() -> None:
    old = host({"os": {"id": "rhel"}, "nvidia>driver_version": "570.133.20"})
    assert rf.install_fabric_manager(old) == "dnf install nvidia-fabric-manager-570.133.20"
    unknown = host({"os": {"id": "rhel"}, "nvidia>driver_version": None})
    assert rf.install_fabric_manager(unknown) == "dnf install nvidia-fabricmanager"


def test_a_digest_is_shortened() -> None:
    assert rf.short_image({"image": f"a/b:v1@sha256:{'0123456789' * 7}"}) == "a/b:v1@sha256:012345678901"
    assert rf.short_image({"image": "a/b:v1"}) == "a/b:v1"
    assert rf.short_image({}) == ""
