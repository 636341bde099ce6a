# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of ten emulated GPU hosts of two families, each with one service in a container.

Needs root; the lab installs what it lacks and says what it can not install.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fleet_box import Run
from lab_box import LabBox, lab_of, seed

pytestmark = pytest.mark.lab

HOSTS = {f"gpu-{number:02}": ("debian13", "debian12")[number % 2] for number in range(10)}
OFF = "gpu-07"
CONTAINER = "vllm-whisper-service"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabBox]:
    with lab_of("fleet", HOSTS, tmp_path_factory.mktemp("fleet")) as box:
        yield box


def timed(fleet: LabBox, playbook: str, *arguments: str) -> Run:
    """The time that it took is shown by ``pytest -rP``."""
    began = time.monotonic()
    run = fleet.play(playbook, seed()[1:], "--forks", "10", *arguments)
    print(f"{playbook} over {len(HOSTS)} hosts: {time.monotonic() - began:.1f} s")
    return run


def test_ten_hosts(fleet: LabBox) -> None:
    run = timed(fleet, "deploy")
    assert run.rc == 0, run.output
    assert "10 hosts, 10 services: all answer" in run.output
    started = {host: fleet.containers(host) for host in HOSTS}
    for host, containers in started.items():
        assert set(containers) == {CONTAINER}
        assert fleet.gpus(host) == {CONTAINER: [2]}

    run = timed(fleet, "deploy")
    assert (run.rc, run.changed) == (0, 0), run.output
    assert {host: fleet.containers(host) for host in HOSTS} == started

    run = timed(fleet, "validate")
    assert (run.rc, run.changed) == (0, 0), run.output
    assert "10 hosts, 10 services: all answer" in run.output

    fleet.lab.stop(OFF)
    run = timed(fleet, "deploy")
    assert run.rc == 2, run.output
    assert f"9 of 9 answer; UNREACHABLE: {OFF}" in run.output
    assert {name: host["changed"] for name, host in run.recap.items() if name != OFF} == dict.fromkeys(
        [*(host for host in HOSTS if host != OFF), "localhost"], 0
    )
    assert fleet.report()["counts"] == {
        "hosts": 10, "hosts_failed": 0, "hosts_unreachable": 1, "services": 9, "services_ok": 9
    }  # fmt: skip
    assert fleet.report()["hosts"][OFF]["unreachable"]
