# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of emulated GPU hosts, each broken in another way but for two: every finding names its cure.

Needs root; the lab installs what it lacks and says what it can not install.
"""

from __future__ import annotations

import json
import time
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fleet_box import Run
from lab_box import MODELS, ROOT, LabBox, lab_of, seed

pytestmark = pytest.mark.lab

GOOD = ("gpu-08", "gpu-09")
# Where a preflight could leave something; what Docker and systemd write on their own is not asked for.
LOOK = (
    "find /data /etc /home /opt /root /srv /usr /var/lib -xdev "
    r"\( -path /var/lib/docker -o -path /var/lib/containerd -o -path /var/lib/systemd \) -prune "
    r"-o -printf '%p %s %T@ %m\n' 2>/dev/null | sort"
)


@dataclass(frozen=True)
class Broken:
    """How a host is broken, what a preflight says of it, and words of the cure."""

    code: str
    cure: str
    faults: dict[str, t.Any] = field(default_factory=dict)
    script: str = ""


BROKEN = {
    "gpu-01": Broken("driver.mismatch", "reboot", {"driver_library_mismatch": True}),
    "gpu-02": Broken("gpu.missing", "reboot the host", {"missing_gpu": 2}),
    "gpu-03": Broken("gpu.ecc_uncorrected", "nvidia-smi", {"ecc_uncorrected": {"gpu": 0, "count": 2}}),
    "gpu-04": Broken("plan.docker_down", "systemctl start docker", script="systemctl stop docker.socket docker"),
    "gpu-05": Broken("gpu.foreign_process", "ps -fp 31337", {"foreign_process": {
        "gpu": 1, "pid": 31337, "name": "/usr/bin/blender", "memory_mib": 61440}}),
    "gpu-06": Broken("driver.fabric_manager_version", "nvidia-fabricmanager", {"fabric_manager": "570.133.20"}),
    "gpu-07": Broken("disk.read_only", "mount", script=f"mkdir -p {MODELS} && mount -t tmpfs -o ro tmpfs {MODELS}"),
}  # fmt: skip
HOSTS = dict.fromkeys([*BROKEN, *GOOD], "debian13")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabBox]:
    with lab_of("preflight", HOSTS, tmp_path_factory.mktemp("preflight")) as box:
        for host, broken in BROKEN.items():
            if broken.faults:
                box.simulate(host, **broken.faults)
            if broken.script:
                box.sh(broken.script, host)
        yield box


@dataclass(frozen=True)
class Looked:
    """One preflight of all hosts: its run, its file, how long it took, and every host's files before and after."""

    run: Run
    document: dict[str, t.Any]
    seconds: float
    before: dict[str, str]
    after: dict[str, str]

    def findings(self, host: str, severity: str = "error") -> dict[str, dict[str, str]]:
        return {
            one["code"]: one for one in self.document["hosts"][host]["findings"] if one["severity"] == severity
        }  # fmt: skip


def play(fleet: LabBox, playbook: str, *arguments: str) -> tuple[Run, dict[str, t.Any]]:
    path = fleet.directory / f"{playbook}.json"
    run = fleet.play(playbook, seed(), *arguments, vllm_expected_gpus=3, vllm_preflight_path=str(path))
    return run, json.loads(path.read_text())


@pytest.fixture(scope="module")
def looked(fleet: LabBox) -> Looked:
    before = {host: fleet.sh(LOOK, host) for host in HOSTS}
    began = time.monotonic()
    run, document = play(fleet, "preflight")
    seconds = time.monotonic() - began
    print(f"preflight of {len(HOSTS)} hosts: {seconds:.1f} s\n{run.output}")
    return Looked(run, document, seconds, before, {host: fleet.sh(LOOK, host) for host in HOSTS})


@pytest.mark.parametrize("host", BROKEN)
def test_each_finding_names_the_cure(looked: Looked, host: str) -> None:
    broken, found = BROKEN[host], looked.findings(host)
    assert broken.code in found, found
    assert broken.cure in found[broken.code]["remedy"]
    if not broken.faults.get("driver_library_mismatch"):  # without a driver no card is there
        others = {other.code for name, other in BROKEN.items() if name != host}
        assert not others & set(found), "this host has only what it has"


def test_the_exit_status_and_the_hosts_that_are_well(looked: Looked) -> None:
    assert looked.run.rc == 2
    assert {name: host["failed"] for name, host in looked.run.recap.items() if name != "localhost"} == {
        **dict.fromkeys(BROKEN, 1), **dict.fromkeys(GOOD, 0)
    }  # fmt: skip
    assert [host for host in HOSTS if looked.document["hosts"][host]["ok"]] == list(GOOD)
    assert {host: looked.findings(host) for host in GOOD} == {host: {} for host in GOOD}
    assert f"Preflight: {len(HOSTS)} hosts: {len(BROKEN)} with errors" in looked.run.output


def test_nothing_was_written_on_any_host(looked: Looked) -> None:
    assert {host: sum(one["changed"] for one in [looked.run.recap[host]]) for host in HOSTS} == dict.fromkeys(HOSTS, 0)
    for host in HOSTS:
        assert looked.after[host].splitlines() == looked.before[host].splitlines(), host


def test_a_deploy_leaves_the_broken_hosts_alone_and_goes_on_with_the_others(fleet: LabBox, looked: Looked) -> None:
    run, _document = play(fleet, "deploy")
    assert run.rc == 2, run.output
    assert f"FAILED on {', '.join(list(BROKEN)[:5])} and 2 more" in run.output
    for host, broken in BROKEN.items():
        assert fleet.report()["hosts"][host]["failure"].startswith("The preflight has ")
        assert broken.code in fleet.report()["hosts"][host]["failure"]
        assert not fleet.sh(f"ls {ROOT} 2>/dev/null", host, check=False), "something was changed"
    for host in GOOD:
        assert len(fleet.containers(host)) == 2

    again, document = play(fleet, "deploy", "--limit", ",".join(GOOD))
    assert (again.rc, again.changed) == (0, 0), again.output
    # The memory that the services hold by now is their own.
    assert all(host["ok"] for host in document["hosts"].values())
    assert document["counts"]["errors"] == 0
