# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia as nv
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

FIXTURES = Path(__file__).parent / "fixtures" / "nvidia"
MIB = 2**20


def fixture(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


def report(name: str) -> nv.DriverReport:
    return nv.parse_smi_xml(fixture(f"{name}.xml"))


# -- values


@pytest.mark.parametrize(
    "text",
    ["N/A", "[N/A]", "[Not Supported]", "Not Supported", "ERR!", "[Unknown Error]", "", "  ", None, "[GPU is lost]"],
)
def test_what_the_tools_do_not_know_is_none(text: str | None) -> None:
    assert nv.known(text) is None
    assert nv.integer(text) is None
    assert nv.decimal(text) is None
    assert nv.size_bytes(text) is None
    assert nv.yes_no(text) is None
    assert nv.word(text) is None
    assert nv.process_name(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("81559 MiB", 81559 * MIB),
        ("1 GiB", 2**30),
        ("16160 MB", 16160 * MIB),
        ("12 KiB", 12288),
        ("512", 512),
        ("0 MiB", 0),
        ("lots MiB", None),
        ("-1 MiB", None),
    ],
)
def test_sizes_are_bytes(text: str, expected: int | None) -> None:
    assert nv.size_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("16x", 16), ("29 C", 29), ("-5 C", -5), ("97 %", 97), ("5", 5), ("x16", None)]
)
def test_integers_lose_their_unit(text: str, expected: int | None) -> None:
    assert nv.integer(text) == expected


def test_words_are_lower_case() -> None:
    assert nv.word("Exclusive_Process") == "exclusive_process"
    assert nv.word("In Progress") == "in_progress"


@pytest.mark.parametrize(
    ("number", "expected"), [(12040, "12.4"), (13000, "13.0"), (11080, "11.8"), (0, None), (None, None)]
)
def test_cuda_version_from_nvml(number: int | None, expected: str | None) -> None:
    assert nv.cuda_version_text(number) == expected


def test_first_line_is_cut() -> None:
    assert nv.first_line("\n\n  one  \ntwo") == "one"
    assert nv.first_line("x" * 400) == "x" * 297 + "..."


# -- nvidia-smi -q -x

SMI_CASES = [
    pytest.param(
        "v100-470",
        {"driver": "470.161.03", "cuda": "11.4", "count": 1},
        {
            "name": "Tesla V100-SXM2-16GB",
            "memory_total_bytes": 16160 * MIB,
            "persistence_mode": "enabled",
            "ecc": {
                "mode": "enabled",
                "uncorrected_volatile": 2,
                "remapped_rows": {"pending": None, "failure": None},
                "retired_pages_pending": True,
            },
            "power": {"draw_w": 24.62, "limit_w": 300.0, "default_limit_w": 300.0},
            "mig": {"current": None, "pending": None, "devices": []},
        },
        id="v100-470",
    ),
    pytest.param(
        "t4-515",
        {"driver": "515.105.01", "cuda": "11.7", "count": 1},
        {
            "pci_bus_id": "00000000:00:1E.0",
            "serial": "0000000000102",
            "memory_used_bytes": 1032 * MIB,
            "memory_free_bytes": 13939 * MIB,
            "pcie": {"gen": {"current": 3, "max": 3}, "width": {"current": 8, "max": 16}},
            "persistence_mode": "disabled",
            "temperature_c": 40,
            "fabric": {"state": None, "status": None},
        },
        id="t4-515",
    ),
    pytest.param(
        "rtx3090-525",
        {"driver": "525.147.05", "cuda": "12.0", "count": 1},
        {
            "serial": None,
            "ecc": {
                "mode": None,
                "uncorrected_volatile": None,
                "remapped_rows": {"pending": None, "failure": None},
                "retired_pages_pending": None,
            },
            "power": {"draw_w": 27.23, "limit_w": 200.0, "default_limit_w": 350.0},
            "processes": [],
        },
        id="rtx3090-525",
    ),
    pytest.param(
        "rtx4090-535",
        {"driver": "535.86.05", "cuda": "12.2", "count": 1},
        {
            "power": {"draw_w": 8.49, "limit_w": 450.0, "default_limit_w": 450.0},
            "compute_mode": "default",
            "memory_total_bytes": 24564 * MIB,
        },
        id="rtx4090-535",
    ),
    pytest.param(
        "h100-535",
        {"driver": "535.161.08", "cuda": "12.2", "count": 2},
        {
            "index": 0,
            "uuid": "GPU-a0000006-0000-4000-8000-000000000001",
            "name": "NVIDIA H100 80GB HBM3",
            "mig": {"current": "disabled", "pending": "disabled", "devices": []},
            "ecc": {
                "mode": "enabled",
                "uncorrected_volatile": 0,
                "remapped_rows": {"pending": False, "failure": False},
                "retired_pages_pending": None,
            },
            "fabric": {"state": "completed", "status": "success"},
            "pcie": {"gen": {"current": 5, "max": 5}, "width": {"current": 16, "max": 16}},
        },
        id="h100-535",
    ),
    pytest.param(
        "l40s-550-faulty",
        {"driver": "550.127.05", "cuda": "12.4", "count": 1},
        {
            "compute_mode": "exclusive_process",
            "temperature_c": None,
            "power": {"draw_w": None, "limit_w": 350.0, "default_limit_w": 350.0},
            "ecc": {
                "mode": "enabled",
                "uncorrected_volatile": 3,
                "remapped_rows": {"pending": True, "failure": False},
                "retired_pages_pending": None,
            },
        },
        id="l40s-550-faulty",
    ),
    pytest.param(
        "h200-580",
        {"driver": "580.95.05", "cuda": "13.0", "count": 3},
        {
            "memory_total_bytes": 143771 * MIB,
            "utilization": {"gpu_percent": 97, "memory_percent": 41},
            "power": {"draw_w": 512.3, "limit_w": 700.0, "default_limit_w": 700.0},
            "processes": [
                {
                    "pid": 20481,
                    "name": "VLLM::Worker_TP0",
                    "memory_used_bytes": 131060 * MIB,
                    "type": "C",
                    "gpu_instance_id": None,
                }
            ],
        },
        id="h200-580",
    ),
    pytest.param(
        "rtxpro6000-590",
        {"driver": "590.44.01", "cuda": "13.1", "count": 1},
        {
            "pcie": {"gen": {"current": 1, "max": 4}, "width": {"current": 16, "max": 16}},
            "power": {"draw_w": 3.97, "limit_w": 300.0, "default_limit_w": 300.0},
            "ecc": {
                "mode": "disabled",
                "uncorrected_volatile": None,
                "remapped_rows": {"pending": False, "failure": False},
                "retired_pages_pending": None,
            },
        },
        id="rtxpro6000-590",
    ),
]


@pytest.mark.parametrize(("name", "driver", "first"), SMI_CASES)
def test_smi_xml(name: str, driver: dict[str, object], first: dict[str, object]) -> None:
    found = report(name)
    assert found["driver_version"] == driver["driver"]
    assert found["cuda_version"] == driver["cuda"]
    assert found["attached"] == len(found["gpus"]) == driver["count"]
    gpu = dict(found["gpus"][0])
    assert {key: gpu[key] for key in first} == first


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.xml")), ids=lambda path: path.stem)
def test_every_report_has_the_same_shape(path: Path) -> None:
    for gpu in nv.parse_smi_xml(path.read_text(encoding="utf-8"))["gpus"]:
        empty = nv.empty_gpu(0)
        assert list(gpu) == list(empty)
        for key in ("mig", "ecc", "pcie", "power", "utilization", "fabric"):
            assert list(gpu[key]) == list(empty[key])
        assert None not in (gpu["uuid"], gpu["memory_total_bytes"], gpu["pci_bus_id"])


def test_process_names_lose_their_arguments() -> None:
    processes = report("h200-580")["gpus"][2]["processes"]
    assert [process["name"] for process in processes] == ["/usr/bin/python3", None]
    assert [process["memory_used_bytes"] for process in processes] == [9110 * MIB, None]
    assert "EXAMPLE-NOT-A-KEY" not in str(report("h200-580"))


def test_mig_devices_of_an_older_driver() -> None:
    gpu = report("a100-mig-510")["gpus"][0]
    nv.apply_smi_list([gpu], fixture("smi-list-a100-mig-450.txt"))
    assert gpu["mig"]["current"] == "enabled"
    assert gpu["mig"]["devices"] == [
        {
            "index": index,
            "uuid": f"MIG-GPU-a0000003-0000-4000-8000-000000000001/{index + 1}/0",
            "name": "3g.20gb",
            "gpu_instance_id": index + 1,
            "compute_instance_id": 0,
            "memory_total_bytes": 19968 * MIB,
            "memory_used_bytes": 19 * MIB,
        }
        for index in (0, 1)
    ]
    assert gpu["ecc"]["uncorrected_volatile"] is None
    assert gpu["memory_total_bytes"] == 40960 * MIB


def test_mig_uuids_and_profiles_come_from_the_list() -> None:
    gpus = report("a100-mig-535")["gpus"]
    nv.apply_smi_list(gpus, fixture("smi-list-a100-mig-535.txt"))
    assert [device["uuid"] for device in gpus[0]["mig"]["devices"]] == [
        f"MIG-b0000004-0000-5000-8000-00000000000{index}" for index in range(4)
    ]
    assert {device["name"] for device in gpus[0]["mig"]["devices"]} == {"1g.20gb"}
    assert gpus[0]["processes"][0]["gpu_instance_id"] == 3
    assert dict(gpus[1]["mig"]) == {"current": "disabled", "pending": "disabled", "devices": []}


def test_mig_devices_are_matched_by_index_where_it_has_gaps() -> None:
    gpus = report("h100-mig-580")["gpus"]
    uuid = gpus[0]["uuid"]
    nv.apply_smi_list(
        gpus,
        f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {uuid})\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-b0)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-b1)\n"
        "  MIG 1c.1g.10gb  Device  3: (UUID: MIG-b3)\n",
    )
    found = [(device["index"], device["name"], device["uuid"]) for device in gpus[0]["mig"]["devices"]]
    assert found == [(0, "3g.40gb", "MIG-b0"), (1, "1g.10gb", "MIG-b1"), (3, "1c.1g.10gb", "MIG-b3")]


def test_a_list_that_failed_leaves_the_devices_without_names() -> None:
    gpus = report("a100-mig-535")["gpus"]
    nv.apply_smi_list(gpus, "Unable to determine the device handle\n")
    assert gpus[0]["mig"]["devices"][0]["uuid"] is None


def test_identity_gives_capability_and_the_drivers_index() -> None:
    gpus = report("h100-535")["gpus"]
    # Index 1 of this host is lost: the report holds GPUs 0 and 2.
    nv.apply_smi_identity(
        gpus,
        "0, GPU-a0000006-0000-4000-8000-000000000001, 9.0\n2, GPU-a0000006-0000-4000-8000-000000000002, 9.0\n",
    )
    assert [(gpu["index"], gpu["compute_capability"]) for gpu in gpus] == [(0, "9.0"), (2, "9.0")]


@pytest.mark.parametrize(
    "text",
    [
        'Field "compute_cap" is not a valid field to query.\n',
        "",
        "0, GPU-a0000006-0000-4000-8000-000000000001, [N/A]\n",
    ],
)
def test_identity_of_a_driver_without_the_field(text: str) -> None:
    gpus = report("h100-535")["gpus"]
    nv.apply_smi_identity(gpus, text)
    assert [gpu["compute_capability"] for gpu in gpus] == [None, None]
    assert [gpu["index"] for gpu in gpus] == [0, 1]


@pytest.mark.parametrize(
    "name",
    ["/opt/a & b", "/opt/a &amp; b", "/opt/\x01\x08a", "/opt/<a>"],
    ids=["ampersand", "escaped", "control-characters", "angle-brackets"],
)
def test_process_names_that_are_no_xml(name: str) -> None:
    text = fixture("h200-580.xml").replace("VLLM::Worker_TP0", name)
    assert str(nv.parse_smi_xml(text)["gpus"][0]["processes"][0]["name"]).startswith("/opt/")


def test_text_around_the_document_is_no_part_of_it() -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:CA:00.0\n"
    text = warning + fixture("t4-515.xml") + warning
    assert len(nv.parse_smi_xml(text)["gpus"]) == 1
    assert nv.outside_smi_xml(text).count(warning) == 2
    assert "Tesla" not in nv.outside_smi_xml(text)
    assert nv.outside_smi_xml(warning) == warning


def test_entities_are_never_declared() -> None:
    text = (
        '<?xml version="1.0"?><!DOCTYPE nvidia_smi_log [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        "<nvidia_smi_log><driver_version>&a;</driver_version></nvidia_smi_log>"
    )
    with pytest.raises(FleetError, match="not well-formed"):
        nv.parse_smi_xml(text)


@pytest.mark.parametrize(
    "text", ["", "Segmentation fault", "<nvidia_smi_log><gpu>", "<nvidia_smi_log><gpu></nvidia_smi_log>"]
)
def test_output_that_is_no_report(text: str) -> None:
    with pytest.raises(FleetError) as caught:
        nv.parse_smi_xml(text)
    assert caught.value.code == "nvidia.smi_output"
    assert caught.value.remedy


def test_a_report_of_nothing() -> None:
    found = nv.parse_smi_xml("<nvidia_smi_log><gpu></gpu></nvidia_smi_log>")
    assert found["gpus"] == [nv.empty_gpu(0)]
    assert found["driver_version"] is None


# -- kernel module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
                "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
            ),
            ("535.129.03", "proprietary"),
        ),
        (
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  "
                "(dvs-builder@U22-I3)  Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc version 13.3.0\n"
            ),
            ("580.95.05", "open"),
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.133  Release Build\n",
            ("570.133", "open"),
        ),
        ("", (None, None)),
        ("GCC version:  gcc version 13.3.0\n", (None, None)),
    ],
)
def test_kernel_module(text: str, expected: tuple[str | None, str | None]) -> None:
    found = nv.parse_kernel_module(text)
    assert (found["version"], found["type"]) == expected


# -- failures


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it runs.\n",
            "nvidia.driver_not_loaded",
        ),
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161\n",
            "nvidia.version_mismatch",
        ),
        ("Failed to initialize NVML: RM has detected an NVML/RM version mismatch.", "nvidia.version_mismatch"),
        ("Failed to initialize NVML: Unknown Error\n", "nvidia.nvml_unknown_error"),
        ("Failed to initialize NVML: Insufficient Permissions\n", "nvidia.no_permission"),
        ("Failed to initialize NVML: Driver Not Loaded\n", "nvidia.driver_not_loaded"),
        ("No devices were found\n", "nvidia.no_devices"),
        (
            "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system\n",
            "nvidia.gpu_lost",
        ),
        ("Unable to determine the device handle for GPU0000:17:00.0: Unknown Error\n", "nvidia.gpu_unreachable"),
        ("Unable to determine the device handle for GPU3: 0000:17:00.0: Unknown Error\n", "nvidia.gpu_unreachable"),
        (
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.\n",
            "nvidia.library_missing",
        ),
        ("NVML Shared Library Not Found", "nvidia.library_missing"),
        ("GPU 2: GPU requires restart", "nvidia.gpu_reset_required"),
    ],
)
def test_known_failures(text: str, code: str) -> None:
    found = nv.diagnose(text)
    assert found is not None
    assert found.code == code
    assert found.remedy
    assert nv.first_line(text)[:40] in found.reason


def test_a_failure_names_its_gpu() -> None:
    for text in (
        "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the system",
        "Unable to determine the device handle for GPU0000:02:00.0: Unknown Error",
        "Unable to determine the device handle for GPU3: 0000:02:00.0: Unknown Error",
    ):
        found = nv.diagnose(text)
        assert found is not None
        assert "(GPU 0000:02:00.0)" in found.reason


def test_an_unknown_failure_is_none() -> None:
    assert nv.diagnose("something else") is None
    assert nv.smi_failed(9, "something else\n").reason == "nvidia-smi failed with exit status 9: 'something else'."
    assert nv.smi_failed(9, "\n").reason == "nvidia-smi failed with exit status 9 and said nothing."


def test_mismatch_text_gives_the_library_version() -> None:
    assert nv.nvml_library_version("x\nNVML library version: 535.161\n") == "535.161"
    assert nv.nvml_library_version("x") is None


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [("535.161", "535.161.08", True), ("535.161.08", "535.161.08", True), ("535.161.07", "535.161.08", False)],
)
def test_versions_are_compared_as_far_as_known(left: str, right: str, same: bool) -> None:
    assert nv.same_version(left, right) is same


# -- containers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d\n", "1.17.8"),
        ("NVIDIA Container Runtime Hook version 1.13.5\ncommit: 6b8589dcb4dead72ab64f14a5912886e6165c079\n", "1.13.5"),
        ("NVIDIA Container Toolkit CLI version 1.18.0-rc.2\n", "1.18.0-rc.2"),
        ("cli-version: 1.13.5\nlib-version: 1.13.5\n", "1.13.5"),
        ("", None),
    ],
)
def test_toolkit_versions(text: str, expected: str | None) -> None:
    assert nv.parse_tool_version(text) == expected


def docker(name: str) -> nv.Docker:
    found = nv.empty_docker()
    nv.apply_docker_version(found, fixture(f"docker-{name}-version.json"))
    nv.apply_docker_info(found, fixture(f"docker-{name}-info.json"))
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "20.10",
            {
                "client_version": "20.10.24+dfsg1",
                "server_version": "20.10.24+dfsg1",
                "api_version": "1.41",
                "min_api_version": "1.12",
                "cgroup_driver": "cgroupfs",
                "cgroup_version": "1",
                "storage_driver": "vfs",
                "root_dir": "/var/lib/docker",
                "default_runtime": "runc",
                "runtimes": {
                    "io.containerd.runc.v2": "runc",
                    "io.containerd.runtime.v1.linux": "runc",
                    "nvidia": "/usr/bin/nvidia-container-runtime",
                    "runc": "runc",
                },
                "rootless": False,
                "live_restore": False,
                "podman": False,
            },
        ),
        (
            "26.1",
            {
                "server_version": "26.1.4",
                "api_version": "1.45",
                "min_api_version": "1.24",
                "cgroup_driver": "systemd",
                "cgroup_version": "2",
                "default_runtime": "nvidia",
                "storage_driver": "overlay2",
            },
        ),
        ("28.5", {"server_version": "28.5.1", "api_version": "1.51", "default_runtime": "runc", "live_restore": True}),
        (
            "28.2-no-server",
            {
                "client_version": "28.2.2",
                "server_version": None,
                "api_version": None,
                "cgroup_driver": None,
                "cgroup_version": None,
                "runtimes": {},
                "rootless": None,
            },
        ),
    ],
)
def test_docker(name: str, expected: dict[str, object]) -> None:
    found = dict(docker(name))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "enabled", "directories", "devices"),
    [
        ("20.10", False, [], 0),
        ("26.1", False, [], 0),
        ("28.5", True, ["/etc/cdi", "/var/run/cdi"], 5),
        ("28.2-no-server", None, [], 0),
    ],
)
def test_docker_cdi(name: str, enabled: bool | None, directories: list[str], devices: int) -> None:
    found = nv.docker_cdi(fixture(f"docker-{name}-info.json"))
    assert (found[0], found[1], len(found[2])) == (enabled, directories, devices)
    if devices:
        assert found[2][0] == "nvidia.com/gpu=0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20.10", (None, None)),
        ("26.1", ("2.27.1", "/usr/libexec/docker/cli-plugins/docker-compose")),
        ("28.5", ("2.40.1", "/usr/libexec/docker/cli-plugins/docker-compose")),
        ("28.2-no-server", (None, None)),
    ],
)
def test_compose_plugin(name: str, expected: tuple[str | None, str | None]) -> None:
    assert nv.compose_plugin(fixture(f"docker-{name}-info.json")) == expected


def test_rootless_and_snap_and_podman() -> None:
    found = nv.empty_docker()
    nv.apply_docker_info(
        found,
        '{"ServerVersion": "28.5.1", "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"], '
        '"DockerRootDir": "/var/snap/docker/common/var-lib-docker"}',
    )
    assert found["rootless"] is True
    assert found["snap"] is True
    nv.apply_docker_version(found, '{"Client": {"APIVersion": "4.9.3", "Version": "4.9.3", "OsArch": "linux/amd64"}}')
    assert found["podman"] is True


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", "null", '{"ServerVersion": 7}', '{"Client": [], "Server": "x"}']
)
def test_docker_output_that_is_no_document(text: str) -> None:
    found = nv.empty_docker()
    nv.apply_docker_version(found, text)
    nv.apply_docker_info(found, text)
    assert found == nv.empty_docker()
    assert nv.docker_cdi(text) == (None, [], [])
    assert nv.compose_plugin(text) == (None, None)


@pytest.mark.parametrize(
    ("text", "running"),
    [
        (
            (
                "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
                'Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.51/version": dial unix /var/run/docker.sock: connect: '
                "permission denied"
            ),
            None,
        ),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", False),
        ("failed to connect to the docker API at unix:///var/run/docker.sock; check if the daemon is running", False),
        ("Error response from daemon: client version 1.41 is too old. Minimum supported API version is 1.44", True),
        ("exec format error", None),
    ],
)
def test_docker_failures(text: str, running: bool | None) -> None:
    found, sentence = nv.docker_failure(text)
    assert found is running
    assert text[:30] in sentence


# -- CDI


def test_cdi_yaml() -> None:
    kind, devices, driver = nv.parse_cdi(fixture("cdi-nvidia-ctk-1.17.yaml"))
    assert kind == "nvidia.com/gpu"
    assert devices == [
        "nvidia.com/gpu=0",
        "nvidia.com/gpu=GPU-a0000009-0000-4000-8000-000000000001",
        "nvidia.com/gpu=all",
    ]
    assert driver == "580.95.05"


def test_cdi_json() -> None:
    kind, devices, driver = nv.parse_cdi(fixture("cdi-nvidia-ctk-1.17.json"))
    assert kind == "nvidia.com/gpu"
    assert devices == [
        "nvidia.com/gpu=0:1",
        "nvidia.com/gpu=MIG-b0000010-0000-5000-8000-000000000001",
        "nvidia.com/gpu=all",
    ]
    assert driver == "575.57.08"


def test_cdi_yaml_written_by_hand() -> None:
    text = """\
# a comment
kind: "vendor.com/device"
devices:   # the devices
  - name: first   # a comment
    containerEdits:
      netDevices:
        - hostInterfaceName: eth0
          name: not-a-device
  # another comment

  -   containerEdits:
        env: []
      name: 'second'
containerEdits:
  env:
    - name: nothing
"""
    assert nv.parse_cdi(text) == ("vendor.com/device", ["vendor.com/device=first", "vendor.com/device=second"], None)


@pytest.mark.parametrize("text", ["", "{", "[]", "devices: []\n", "\x00\x01", "- - -\n  - name: x\n"])
def test_cdi_that_is_none(text: str) -> None:
    assert nv.parse_cdi(text) == (None, [], None)
