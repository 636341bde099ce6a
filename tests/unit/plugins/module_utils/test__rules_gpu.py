# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Unknown
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_gpu import RULES
from rules_case import DROP, FACTS, GIB, NOW, Case, ask, fails, holds, host, incomplete, passes, unknown

CPU = {"plan>device": "cpu"}
NO_CARDS: dict[str, t.Any] = {"gpus": [], **CPU}
LOST = {"services": {"chat": {"gpus": [{"index": 0, "uuid": "GPU-99999999-0000-4000-8000-000000000000"}]}}}


def xid(code: int, address: str = "0000:1b:00", message: str = "") -> dict[str, t.Any]:
    return {"xid": code, "pci_bus_id": address, "time": 1764000000.0, "message": message}


def process(pid: int = 4242, used: int | None = 40 * GIB, **more: t.Any) -> dict[str, t.Any]:
    facts = {"pid": pid, "name": "python3", "memory_used_bytes": used, "type": "C", "service": None, "orphan": False}
    return {**facts, "container": None, "user": "alice", **more}


CASES = [
    passes("gpu.missing"),
    passes("gpu.missing", {"settings>vllm_expected_gpus": DROP}),
    passes("gpu.missing", {"settings>vllm_expected_gpus": ""}),
    unknown("gpu.missing", {"settings>vllm_expected_gpus": "eight"}),
    passes("gpu.missing", {"settings>vllm_expected_gpus": "4"}),
    passes("gpu.missing", NO_CARDS),
    passes("gpu.missing", {"gpus": [], "nvidia>reason_code": "nvidia.driver_not_loaded"}),
    fails("gpu.missing", "error", "7 GPUs", {"gpus": FACTS["gpus"][:7]}),
    fails("gpu.missing", "error", "without GPU-0bad", {"settings>vllm_expected_gpus": ["GPU-0bad"]}),
    unknown("gpu.missing", {"gpus": None}),
    passes("gpu.gone"),
    passes("gpu.gone", {"record>services": {"other": LOST["services"]["chat"]}}),
    fails("gpu.gone", "warning", "on which chat ran", {"record": LOST}),
    unknown("gpu.gone", {"record": {"services": {"chat": {"gpus": []}}}, "gpus": None}),
    unknown("gpu.gone", {"record": LOST, "gpus": None}),
    passes("gpu.without_driver"),
    passes("gpu.without_driver", NO_CARDS),
    fails("gpu.without_driver", "warning", "0000:e1:00.0 is on the bus",
          {"nvidia>pci_devices": [*FACTS["nvidia"]["pci_devices"], "0000:e1:00.0"]}),
    unknown("gpu.without_driver", {"nvidia>pci_devices": None}),
    unknown("gpu.without_driver", {"gpus>0>pci_bus_id": None}),
    passes("gpu.unreadable"),
    fails("gpu.unreadable", "error", "does not tell its memory", {"gpus>0>memory_total_bytes": None}),
    fails("gpu.unreadable", "warning", "GPU 7 (NVIDIA H100 80GB HBM3, spare) does not tell", {"gpus>7>uuid": None}),
    unknown("gpu.unreadable", {"gpus>*>uuid": None}),
    passes("gpu.ecc_uncorrected"),
    passes("gpu.ecc_uncorrected", {"gpus>*>ecc": {"mode": None, "uncorrected_volatile": None}}),
    passes("gpu.ecc_uncorrected", {"gpus>0>ecc>uncorrected_volatile": 3, **CPU}),
    fails("gpu.ecc_uncorrected", "error", "used by chat) counts 3", {"gpus>0>ecc>uncorrected_volatile": 3}),
    fails("gpu.ecc_uncorrected", "warning", "spare) counts 1", {"gpus>6>ecc>uncorrected_volatile": 1}),
    unknown("gpu.ecc_uncorrected", {"gpus>0>ecc>uncorrected_volatile": None}),
    passes("gpu.ecc_off"),
    passes("gpu.ecc_off", {"gpus>*>name": "NVIDIA GeForce RTX 4090", "gpus>*>ecc>mode": "disabled"}),
    passes("gpu.ecc_off", {"gpus>7>ecc>mode": "disabled"}),
    passes("gpu.ecc_off", {"gpus>*>name": "NVIDIA A40-48Q", "gpus>*>ecc>mode": "disabled"}),
    fails("gpu.ecc_off", "info", "ECC is off on GPU 2", {"gpus>2>ecc>mode": "disabled"}),
    unknown("gpu.ecc_off", {"gpus>2>ecc": None}),
    passes("gpu.row_remap_failure"),
    fails("gpu.row_remap_failure", "error", "GPU 1", {"gpus>1>ecc>remapped_rows>failure": True}),
    fails("gpu.row_remap_failure", "warning", "GPU 5", {"gpus>5>ecc>remapped_rows>failure": True}),
    unknown("gpu.row_remap_failure", {"gpus>1>ecc>remapped_rows": None}),
    passes("gpu.row_remap_pending"),
    fails("gpu.row_remap_pending", "warning", "GPU 1", {"gpus>1>ecc>remapped_rows>pending": True}),
    unknown("gpu.row_remap_pending", {"gpus>1>ecc>remapped_rows": None}),
    passes("gpu.retired_pages_pending"),
    fails("gpu.retired_pages_pending", "warning", "GPU 1", {"gpus>1>ecc>retired_pages_pending": True}),
    unknown("gpu.retired_pages_pending", {"gpus>1>ecc": None}),
    passes("gpu.xid_fatal"),
    passes("gpu.xid_fatal", {"nvidia>xids": [xid(13), xid(94)]}),
    passes("gpu.xid_fatal", {"nvidia>xids": [xid(48)], **CPU}),
    passes("gpu.xid_fatal",
           {"nvidia>xids": [xid(48), xid(154, message="changed from 0x1 (GPU Reset Required) to 0x0 (None)")]}),
    fails("gpu.xid_fatal", "error", "Xid 79 (the GPU has fallen off the bus) on GPU 0", {"nvidia>xids": [xid(79)]}),
    fails("gpu.xid_fatal", "error", "3 times", {"nvidia>xids": [xid(95)] * 3}),
    fails("gpu.xid_fatal", "warning", "Xid 48", {"nvidia>xids": [xid(48, "00000000:DF:00.0")]}),
    fails("gpu.xid_fatal", "warning", "which is not listed", {"nvidia>xids": [xid(79, "0000:ee:00")]}),
    fails("gpu.xid_fatal", "error", "Xid 119", {"nvidia>xids": [
        xid(154, message="changed from 0x1 (GPU Reset Required) to 0x0 (None)"), xid(119)]}),
    fails("gpu.xid_fatal", "error", "Xid 154 (the driver asks for: Node Reboot Required)", {"nvidia>xids": [
        xid(154, message="changed from 0x0 (None) to 0x2 (Node Reboot Required)")]}),
    unknown("gpu.xid_fatal", {"nvidia>xids": None}),
    passes("gpu.xid"),
    passes("gpu.xid", {"nvidia>xids": [xid(106), xid(48), xid(45), xid(154)]}),
    passes("gpu.xid", {"nvidia>xids": [{**xid(31), "time": NOW - 8 * 86400}]}),
    fails("gpu.xid", "warning", "Xid 31 (a page fault of the GPU's memory)", {"nvidia>xids": [xid(31)]}),
    fails("gpu.xid", "warning", "Xid 999", {"nvidia>xids": [xid(999)]}),
    unknown("gpu.xid", {"nvidia>xids": None}),
    passes("gpu.compute_mode"),
    fails("gpu.compute_mode", "error", "prohibited", {"gpus>0>compute_mode": "prohibited"}),
    fails("gpu.compute_mode", "warning", "exclusive_process", {"gpus>0>compute_mode": "exclusive_process"}),
    fails("gpu.compute_mode", "error", "used by chat, whisper",
          {"gpus>2>compute_mode": "exclusive_process", "plan>services>0>gpus>0": {"index": 2}}),
    fails("gpu.compute_mode", "warning", "prohibited", {"gpus>7>compute_mode": "prohibited"}),
    unknown("gpu.compute_mode", {"gpus>0>compute_mode": None}),
    passes("gpu.mig_pending"),
    passes("gpu.mig_pending", {"gpus>*>mig": {"current": None, "pending": None, "devices": []}}),
    fails("gpu.mig_pending", "warning", "is disabled, and enabled after",
          {"gpus>0>mig": {"current": "disabled", "pending": "enabled", "devices": []}}),
    unknown("gpu.mig_pending", {"gpus>0>mig": None}),
    passes("gpu.mig_empty"),
    passes("gpu.mig_empty", {"gpus>7>mig": {"current": "enabled", "pending": "enabled", "devices": [{"index": 0}]}}),
    fails("gpu.mig_empty", "warning", "no partition",
          {"gpus>7>mig": {"current": "enabled", "pending": "enabled", "devices": []}}),
    unknown("gpu.mig_empty", {"gpus>0>mig": None}),
    passes("gpu.persistence", {"gpus>*>persistence_mode": "disabled"}),
    passes("gpu.persistence", {"gpus>*>persistence_mode": "enabled", "nvidia>persistenced": False}),
    fails("gpu.persistence", "warning", "persistence is off on GPU 0",
          {"gpus>0>persistence_mode": "disabled", "nvidia>persistenced": False}),
    unknown("gpu.persistence", {"gpus>0>persistence_mode": None, "nvidia>persistenced": None}),
    passes("gpu.foreign_process"),
    passes("gpu.foreign_process", {"gpus>7>processes": [process()]}),
    passes("gpu.foreign_process", {"gpus>2>processes": [process(used=4 << 20, type="G")]}),
    fails("gpu.foreign_process", "error", "python3 (pid 4242", {"gpus>2>processes": [process(type="G")]}),
    fails("gpu.foreign_process", "error", "pid 4242, user alice; 40.0 GiB) on GPU 2",
          {"gpus>2>processes": [process()]}),
    fails("gpu.foreign_process", "warning", "container jupyter", {
        "gpus>2>processes": [process(used=GIB // 2, container="jupyter")]}),
    fails("gpu.foreign_process", "warning", "memory unknown", {"gpus>2>processes": [process(used=None)]}),
    unknown("gpu.foreign_process", {"gpus>0>processes": None}),
    unknown("gpu.foreign_process", {"gpus>2>processes": [process()], "services_problem": "Docker does not answer."}),
    unknown("gpu.foreign_process", {"gpus>2>processes": [{"pid": 5, "memory_used_bytes": 40 * GIB, "type": "C"}]}),
    passes("gpu.orphan"),
    fails("gpu.orphan", "error", "is left of an engine that is gone, on GPU 2",
          {"gpus>2>processes": [process(orphan=True)]}),
    fails("gpu.orphan", "warning", "pid 77", {"gpus>7>processes": [process(pid=77, orphan=True)]}),
    unknown("gpu.orphan", {"gpus>0>processes": None}),
    passes("gpu.memory_held"),
    passes("gpu.memory_held", {"gpus>7>memory_used_bytes": 30 * GIB}),
    fails("gpu.memory_held", "error", "30.0 GiB of GPU 2",
          {"gpus>2>memory_used_bytes": 30 * GIB, "gpus>2>memory_free_bytes": 49 * GIB}),
    fails("gpu.memory_held", "warning", "2.0 GiB of GPU 2",
          {"gpus>2>memory_used_bytes": 2 * GIB, "gpus>2>memory_free_bytes": 77 * GIB}),
    passes("gpu.memory_held", {"gpus>2>memory_used_bytes": 2 * GIB, "kernel": "5.15.167.4-microsoft-standard-WSL2"}),
    unknown("gpu.memory_held", {"gpus>2>memory_used_bytes": None}),
    # Our own service runs there, and its processes are not seen.
    unknown("gpu.memory_held", {"gpus>0>processes": []}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_cpu_host_is_asked_nothing_about_gpus(rule: t.Any) -> None:
    assert not rule.check(host({"gpus": [], "nvidia": {}, "gpu_reason": "nvidia-smi is not installed", **CPU}))


def test_the_remedy_names_the_card_and_the_process() -> None:
    _rule, verdict = ask(RULES, fails("gpu.orphan", "error", "", {"gpus>2>processes": [process(orphan=True)]}))
    assert verdict[0].remedy.startswith("kill 4242;")
    _rule, verdict = ask(RULES, fails("gpu.xid_fatal", "error", "", {"nvidia>xids": [xid(48, "0000:43:00")]}))
    assert "nvidia-smi --gpu-reset -i 1" in verdict[0].remedy


def test_an_older_driver_does_not_tell_that_a_gpu_recovered() -> None:
    for driver, told in (("535.183.06", True), ("580.95.05", False), (None, False)):
        change = {"nvidia>xids": [xid(48)], "nvidia>driver_version": driver}
        _rule, verdict = ask(RULES, fails("gpu.xid_fatal", "error", "", change))
        assert ("vllm_preflight_skip" in verdict[0].remedy) is told


def test_what_foreign_memory_leaves_is_said() -> None:
    _rule, verdict = ask(RULES, fails("gpu.foreign_process", "error", "", {"gpus>2>processes": [process()]}))
    assert "which leaves 39.1 GiB of the 73.3 GiB that the plan wants" in verdict[0].seen


def test_a_small_share_fits_beside_another_process() -> None:
    change = {"gpus>2>processes": [process()], "plan>services>1>gpu_memory_utilization": 0.2}
    _rule, verdict = ask(RULES, fails("gpu.foreign_process", "warning", "", change))
    assert verdict[0].severity == "warning"


def test_an_unknown_card_hides_no_broken_one() -> None:
    change = {"gpus>0>ecc>uncorrected_volatile": None, "gpus>1>ecc>uncorrected_volatile": 1}
    _rule, verdict = ask(RULES, fails("gpu.ecc_uncorrected", "error", "", change))
    assert not isinstance(verdict, Unknown)
    assert len(verdict) == 1
