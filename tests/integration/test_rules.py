# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The preflight's rules on what the real probe gathers of a simulated NVIDIA: each fault is named, and no other."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import typing as t
from pathlib import Path

import nvidia_sim
import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Context, evaluate
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import host_rules
from rules_case import host, tells_all

REPOSITORY = Path(__file__).parents[2]
FOUR = {"model": "h100-80gb", "count": 4}
# In a process of its own: the loader finds libnvidia-ml.so.1 by a path that a process has from its start.
PROBE = """
import json, shutil, sys
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_probe as probe

root = sys.argv[1]
path = root + "/usr/bin:" + root + "/usr/local/bin"
host = probe.Host(root=root, find=lambda name: shutil.which(name, path=path), load_nvml=probe.load_nvml)
print(json.dumps(probe.gather(with_containers=False, timeout=20, host=host)))
"""
RULES = [rule for rule in host_rules() if rule.code.startswith(("gpu.", "driver."))]
# A directory has no systemd to ask whether Fabric Manager runs.
NO_SYSTEMD = {"driver.fabric_manager"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("host")
    nvidia_sim.install(directory, python=sys.executable)
    return directory


def gather(root: Path, data: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    (root / "etc/gpusim").mkdir(parents=True, exist_ok=True)
    (root / "etc/gpusim/gpus.json").write_text(json.dumps({"hostname": "gpu-01", **data}))
    subprocess.run([root / "usr/bin/gpusim", "apply"], check=True, capture_output=True, timeout=60)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(root / f"usr/lib/{platform.machine()}-linux-gnu"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / ".venv/collections"), str(nvidia_sim.binding())]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(root)],
        check=True,
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
    )
    facts: dict[str, t.Any] = json.loads(done.stdout)
    return facts


def findings(root: Path, data: t.Mapping[str, t.Any]) -> tuple[dict[str, str], set[str]]:
    """The codes with their severity, and the codes that are unknown; two cards are chat's and one is whisper's."""
    found = gather(root, data)
    gpus = found.pop("gpus")
    for process in (process for card in gpus for process in card["processes"]):
        # Whose a process is, the module tells, which looks into the host's own /proc.
        process.update(service=None, orphan=process["name"].startswith("VLLM::"))
    well = host({"settings>vllm_expected_gpus": data["count"], "record": None, "deployed": None})
    facts = {**well.facts, "gpus": gpus, "nvidia": {**found, "container": well.facts["nvidia"]["container"]}}
    for service, indices in zip(well.plan["services"], ([0, 1], [2]), strict=True):
        service["gpus"] = [{"index": index} for index in indices]
    report = evaluate(Context("gpu-01", facts, well.plan, well.settings, well.now), (), RULES)
    tells_all(report.findings)
    return {finding.code: finding.severity for finding in report.findings}, {code for code, _reason in report.unknown}


@pytest.mark.parametrize("model", ["h100-80gb", "a100-40gb", "l40s"])
def test_hosts_that_are_well_have_no_finding(root: Path, model: str) -> None:
    codes, unknown = findings(root, {"model": model, "count": 4})
    assert codes == {}
    assert unknown <= NO_SYSTEMD


def test_a_consumer_host_hears_of_what_it_lacks_alone(root: Path) -> None:
    codes, unknown = findings(root, {"model": "rtx4090", "count": 4})
    assert codes == {"gpu.persistence": "warning", "gpu.p2p": "info"}
    assert not unknown


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ({"ecc_uncorrected": {"gpu": 0, "count": 3}}, {"gpu.ecc_uncorrected": "error"}),
        ({"ecc_uncorrected": {"gpu": 3, "count": 1}}, {"gpu.ecc_uncorrected": "warning"}),
        ({"remapped_failure": 1}, {"gpu.row_remap_failure": "error"}),
        ({"remapped_pending": 2}, {"gpu.row_remap_pending": "warning"}),
        ({"missing_gpu": 3}, {"gpu.missing": "error"}),
        ({"persistence_off": [0, 1, 2, 3]}, {"gpu.persistence": "warning"}),
        ({"xid": {"gpu": 0, "code": 48}}, {"gpu.xid_fatal": "error"}),
        ({"xid": {"gpu": 3, "code": 119}}, {"gpu.xid_fatal": "warning"}),
        ({"xid": {"gpu": 0, "code": 31}}, {"gpu.xid": "warning"}),
        ({"compute_mode": {"gpu": 0, "mode": "Prohibited"}}, {"gpu.compute_mode": "error"}),
        ({"pcie_width": {"gpu": 1, "width": 8}}, {"gpu.pcie_width": "warning"}),
        ({"temperature": {"gpu": 0, "celsius": 93}}, {"gpu.hot": "warning"}),
        ({"throttle": {"gpu": 0, "reasons": ["hw_thermal_slowdown"]}}, {"gpu.thermal_throttle": "warning"}),
        ({"throttle": {"gpu": 0, "reasons": ["hw_power_brake_slowdown"]}}, {"gpu.power_brake": "warning"}),
        ({"power_limit": {"gpu": 1, "watts": 400}}, {"gpu.power_limit": "warning"}),
        ({"foreign_process": {"gpu": 2, "pid": 4242, "name": "python3", "memory_mib": 40960}},
         {"gpu.foreign_process": "error"}),
        ({"fabric_manager": "580.82.07"}, {"driver.fabric_manager_version": "error"}),
        ({"no_driver": True}, {"driver.unusable": "error"}),
    ],
    ids=str,
)  # fmt: skip
def test_each_fault_is_named(root: Path, faults: dict[str, t.Any], expected: dict[str, str]) -> None:
    codes, _unknown = findings(root, {**FOUR, "faults": faults})
    assert codes == expected


def test_a_card_that_fell_off_the_bus_is_missed_three_ways(root: Path) -> None:
    codes, _unknown = findings(root, {**FOUR, "faults": {"fallen_off_bus": 3}})
    assert codes.pop("gpu.xid_fatal", "warning") == "warning"
    assert codes == {"gpu.missing": "error", "gpu.without_driver": "warning", "driver.unusable": "warning"}


def test_a_mismatch_is_named(root: Path) -> None:
    codes, _unknown = findings(root, {**FOUR, "faults": {"driver_library_mismatch": True}})
    assert codes["driver.mismatch"] == "error"
    assert "driver.unusable" not in codes


def test_cards_without_nvlink_are_told_a_better_set(root: Path) -> None:
    topology = [{"gpus": [0, 1], "link": "SYS", "p2p": "OK"}, {"gpus": [1, 3], "link": "PIX", "p2p": "OK"}]
    codes, _unknown = findings(root, {"model": "l40s", "count": 4, "faults": {"topology": topology}})
    assert codes == {"gpu.across_sockets": "warning"}
