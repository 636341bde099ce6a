# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_speed import RULES
from rules_case import FACTS, Case, ask, fails, holds, host, incomplete, passes, unknown

CPU = {"plan>device": "cpu", "gpus": []}


def ways(link: str = "pix", nvlinks: int = 0, p2p: str | None = "ok", **special: t.Any) -> list[dict[str, t.Any]]:
    """The topology of eight cards, all alike but for the pairs in ``special`` (``g01`` is 0 and 1)."""
    found = []
    for left in range(8):
        for right in range(left + 1, 8):
            way = {"gpus": [left, right], "link": link, "nvlinks": nvlinks, "p2p": p2p}
            found.append({**way, **special.get(f"g{left}{right}", {})})
    return found


NVLINK = {"link": "nv4", "nvlinks": 4}
ACS_ON = {"acs": {"enabled": ["0000:16:00.0"]}}
TRANSLATES = {"iommu": {"enabled": True, "passthrough": False}}
PCIE = {"nvidia>topology": ways()}
ONE_CARD = {"plan>services>0>gpus": [{"index": 0}]}

CASES = [
    passes("gpu.pcie_width"),
    passes("gpu.pcie_width", {"gpus>7>pcie>width>current": 4}),
    fails("gpu.pcie_width", "warning", "x8 of x16", {"gpus>0>pcie>width": {"current": 8, "max": 16}}),
    unknown("gpu.pcie_width", {"gpus>0>pcie>width>current": None}),
    passes("gpu.pcie_generation", {"gpus>0>pcie>gen": {"current": 1, "max": 5}, "gpus>0>utilization>gpu_percent": 0}),
    fails("gpu.pcie_generation", "warning", "generation 3 of 5",
          {"gpus>0>pcie>gen": {"current": 3, "max": 5}, "gpus>0>utilization>gpu_percent": 90}),
    unknown("gpu.pcie_generation", {"gpus>0>pcie": None}),
    passes("gpu.hot"),
    passes("gpu.hot", {"gpus>7>temperature_c": 95}),
    fails("gpu.hot", "warning", "has 86 C, and slows down at 87 C",
          {"gpus>0>temperature_c": 86, "gpus>0>temperature_limit_c": 87}),
    unknown("gpu.hot", {"gpus>0>temperature_limit_c": None}),
    unknown("gpu.hot", {"gpus>0>temperature_limit_c": 0}),
    passes("gpu.thermal_throttle"),
    passes("gpu.thermal_throttle", {"gpus>0>throttle": ["gpu_idle", "sw_power_cap"]}),
    fails("gpu.thermal_throttle", "warning", "the hardware's thermal slowdown",
          {"gpus>0>throttle": ["hw_thermal_slowdown"]}),
    fails("gpu.thermal_throttle", "warning", "the driver's thermal", {"gpus>1>throttle": ["sw_thermal_slowdown"]}),
    unknown("gpu.thermal_throttle", {"gpus>0>throttle": None}),
    passes("gpu.power_brake"),
    fails("gpu.power_brake", "warning", "the power brake", {"gpus>0>throttle": ["hw_power_brake_slowdown"]}),
    unknown("gpu.power_brake", {"gpus>0>throttle": None}),
    passes("gpu.power_limit"),
    passes("gpu.power_limit", {"gpus>7>power>limit_w": 300.0}),
    fails("gpu.power_limit", "warning", "400 W of 700 W", {"gpus>0>power>limit_w": 400.0}),
    unknown("gpu.power_limit", {"gpus>0>power>default_limit_w": None}),
    passes("gpu.mixed"),
    passes("gpu.mixed", {"gpus>2>name": "NVIDIA L40S"}),
    fails("gpu.mixed", "warning", "NVIDIA H100 80GB HBM3, NVIDIA L40S", {"gpus>1>name": "NVIDIA L40S"}),
    unknown("gpu.mixed", {"gpus>1>name": None}),
    passes("gpu.p2p"),
    passes("gpu.p2p", {"nvidia>topology": ways(p2p="cns"), **ONE_CARD}),
    fails("gpu.p2p", "info", "0-1: the chipset does not support it", {"nvidia>topology": ways(p2p="cns")}),
    fails("gpu.p2p", "warning", "0-1: it is not supported", {"nvidia>topology": ways(g01={**NVLINK, "p2p": "ns"})}),
    unknown("gpu.p2p", {"nvidia>topology": None}),
    unknown("gpu.p2p", {"nvidia>topology": ways(p2p=None)}),
    unknown("gpu.p2p", {"nvidia>topology": []}),
    passes("gpu.acs"),
    passes("gpu.acs", ACS_ON),
    passes("gpu.acs", PCIE),
    passes("gpu.acs", {**PCIE, **ACS_ON, **ONE_CARD}),
    fails("gpu.acs", "warning", "GPU 0-1 talk over PCIe, and ACS is on at 0000:16:00.0", {**PCIE, **ACS_ON}),
    unknown("gpu.acs", {**PCIE, "acs": None}),
    unknown("gpu.acs", {"nvidia>topology": None}),
    passes("gpu.iommu", TRANSLATES),
    passes("gpu.iommu", PCIE),
    passes("gpu.iommu", {**PCIE, "iommu": {"enabled": False, "passthrough": None}}),
    fails("gpu.iommu", "warning", "GPU 0-1 talk over PCIe, and the IOMMU translates", {**PCIE, **TRANSLATES}),
    unknown("gpu.iommu", {**PCIE, "iommu": {"enabled": None, "passthrough": None}}),
    passes("gpu.nvlink"),
    passes("gpu.nvlink", PCIE),
    passes("gpu.nvlink", {"nvidia>topology": ways(g01=NVLINK)}),
    # 2 is the card of another service.
    passes("gpu.nvlink", {"nvidia>topology": ways(g23=NVLINK)}),
    passes("gpu.nvlink", {"nvidia>topology": ways(g45=NVLINK), "gpus>5>name": "NVIDIA L40S"}),
    passes("gpu.nvlink", {"nvidia>topology": ways(g45=NVLINK), "gpus>5>mig>current": "enabled"}),
    fails("gpu.nvlink", "warning", "GPU 4, 5 are free and have", {"nvidia>topology": ways(g45=NVLINK)}),
    unknown("gpu.nvlink", {"nvidia>topology": None}),
    passes("gpu.nvlink_degraded"),
    passes("gpu.nvlink_degraded", {"nvidia>topology": ways(g01=NVLINK)}),
    fails("gpu.nvlink_degraded", "warning", "GPU 0-1 have 16 links between them, and others 18",
          {"nvidia>topology>0>nvlinks": 16}),
    unknown("gpu.nvlink_degraded", {"nvidia>topology": FACTS["nvidia"]["topology"][1:]}),
    passes("gpu.across_sockets"),
    passes("gpu.across_sockets", {"nvidia>topology": ways("sys")}),
    fails("gpu.across_sockets", "warning", "GPU 0-1 lie on different sockets, and GPU 0, 3 are free",
          {"nvidia>topology": ways("sys", g03={"link": "pix"})}),
    unknown("gpu.across_sockets", {"nvidia>topology": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_cpu_host_is_asked_nothing_about_gpus(rule: t.Any) -> None:
    assert not rule.check(host({"nvidia": {}, **CPU}))


def test_a_better_set_is_something_to_paste() -> None:
    _rule, verdict = ask(RULES, fails("gpu.nvlink", "warning", "", {"nvidia>topology": ways(g45=NVLINK)}))
    assert verdict[0].remedy == "set gpus: [4, 5] for chat"
    assert verdict[0].service == "chat"
