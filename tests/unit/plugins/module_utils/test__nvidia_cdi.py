# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_cdi as cdi
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

DRIVER = "580.95.05"


def spec(path: str = "/etc/cdi/nvidia.yaml", driver: str | None = DRIVER, devices: int = 2) -> dict[str, t.Any]:
    names = [f"nvidia.com/gpu={index}" for index in range(devices)]
    return {"path": path, "kind": "nvidia.com/gpu", "devices": names, "driver_version": driver}


def facts(*specs: t.Any, gpus: int = 2, mig: str = "disabled", ctk: str | None = "/usr/bin/nvidia-ctk") -> t.Any:
    return {
        "driver_version": DRIVER,
        "reason": "" if gpus else "no NVIDIA driver",
        "gpus": [{"index": index, "uuid": f"GPU-{index}", "mig": {"current": mig}} for index in range(gpus)],
        "container": {"toolkit": {"nvidia_ctk": ctk}, "cdi": {"specs": list(specs)}},
    }


class Tools:
    def __init__(self, service: bool = False, rc: int = 0) -> None:
        self.service, self.rc = service, rc
        self.calls: list[str] = []

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        if argv[1] == "show":
            return CommandResult(0, f"LoadState={'loaded' if self.service else 'not-found'}\n", "")
        self.calls.append(" ".join(argv))
        return CommandResult(self.rc, "", "failed to initialize NVML\n" if self.rc else "")


def test_a_specification_that_fits() -> None:
    tools = Tools()
    result = cdi.refresh(False, tools, lambda: facts(spec()))
    assert (result["changed"], tools.calls) == (False, [])
    assert result["devices"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ((), "no CDI specification"),
        ((spec(driver="570.26"),), "made for driver 570.26"),
        ((spec(devices=1),), "does not have GPU 1"),
        ((spec(), spec("/run/cdi/nvidia.yaml", driver="570.26")), "/run/cdi/nvidia.yaml was made"),
        (({**spec(), "kind": "amd.com/gpu"},), "no CDI specification"),
    ],
)
def test_one_that_does_not_is_made_anew(specs: t.Any, words: str) -> None:
    states = iter([facts(*specs), facts(spec())])
    tools = Tools()
    result = cdi.refresh(False, tools, lambda: next(states))
    assert result["changed"]
    assert words in result["reasons"][0]
    assert len(tools.calls) == 1

    predicted = cdi.refresh(True, tools, lambda: facts(*specs))
    assert (predicted["changed"], predicted["reasons"], len(tools.calls)) == (True, result["reasons"], 1)


def test_a_stale_file_that_another_one_shadows_does_not_matter() -> None:
    assert cdi.faults(facts(spec(driver="570.26"), spec("/run/cdi/nvidia.yaml"))) == []


def test_uuids_and_partitions() -> None:
    by_uuid = {**spec(), "devices": ["nvidia.com/gpu=GPU-0", "nvidia.com/gpu=GPU-1"]}
    assert cdi.faults(facts(by_uuid)) == []
    assert cdi.faults(facts({**spec(), "devices": ["nvidia.com/gpu=0:0"]}, mig="enabled")) == []


def test_the_service_of_the_toolkit_does_it() -> None:
    states = iter([facts(), facts(spec("/run/cdi/nvidia.yaml"))])
    tools = Tools(service=True)
    cdi.refresh(False, tools, lambda: next(states))
    assert tools.calls == ["systemctl --no-ask-password restart nvidia-cdi-refresh.service"]


@pytest.mark.parametrize("path", ["/etc/cdi/nvidia.yaml", "/run/cdi/nvidia-gpu.yaml"])
def test_by_hand_it_goes_where_it_was(path: str) -> None:
    states = iter([facts(spec(path, driver="570.26")), facts(spec(path))])
    tools = Tools()
    cdi.refresh(False, tools, lambda: next(states))
    assert tools.calls == [f"/usr/bin/nvidia-ctk cdi generate --output={path}"]


def test_a_host_without_gpus_is_left_alone() -> None:
    result = cdi.refresh(False, Tools(), lambda: facts(gpus=0, ctk=None))
    assert (result["changed"], result["skipped_because"]) == (False, "no NVIDIA driver")


@pytest.mark.parametrize(
    ("tools", "states", "code"),
    [
        (Tools(rc=1), [facts()], "cdi.generate"),
        (Tools(), [facts(), facts()], "cdi.still_stale"),
        (Tools(), [facts(ctk=None)], "cdi.no_toolkit"),
    ],
)
def test_failures_say_what_to_do(tools: Tools, states: list[t.Any], code: str) -> None:
    answers = iter(states)
    with pytest.raises(FleetError) as caught:
        cdi.refresh(False, tools, lambda: next(answers))
    assert caught.value.code == code
    assert caught.value.seen
    assert caught.value.expected
    assert caught.value.remedy
