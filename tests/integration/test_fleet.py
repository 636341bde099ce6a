# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same playbook over several hosts: one that fails does not stop the others, and the summary says which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fleet_box import Box, listening, play
from model_hub import Hub


@pytest.fixture
def boxes(hub: Hub) -> Iterator[list[Box]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Box(hub.endpoint, name)) for name in ("gpu-01", "gpu-02", "gpu-03")]


def inventory_of(boxes: list[Box], services: list[list[dict[str, object]]], path: Path) -> Path:
    hosts: dict[str, object] = {}
    for box, own in zip(boxes, services, strict=True):
        hosts.update(json.loads(box.inventory(own).read_text())["gpu_hosts"]["hosts"])
    path.write_text(
        json.dumps({"gpu_hosts": {"hosts": hosts, "vars": {"vllm_report_path": str(path.parent / "fleet.json")}}})
    )
    return path


def test_three_hosts_then_one_fails_and_is_repaired(boxes: list[Box], tmp_path: Path) -> None:
    services = [[box.service("chat")] for box in boxes]
    inventory = inventory_of(boxes, services, tmp_path / "hosts.json")
    first = play("deploy", inventory)
    assert first.rc == 0, first.output
    assert "3 hosts, 3 services: all answer" in first.output
    assert sorted(json.loads((boxes[0].directory / "report.json").read_text())["hosts"]) == [
        "gpu-01",
        "gpu-02",
        "gpu-03",
    ]
    again = play("deploy", inventory)
    assert (again.rc, again.changed) == (0, 0), again.output

    moved = [[{**own[0], "max_model_len": 1024}] for own in services]
    taken = boxes[1].service("second")
    moved[1].append(taken)
    inventory = inventory_of(boxes, moved, tmp_path / "hosts.json")
    with listening(taken["port"]):
        run = play("deploy", inventory)
    assert run.rc == 2
    assert "FAILED on gpu-02" in run.output
    assert run.recap["gpu-02"]["failed"] == 1
    for name in ("gpu-01", "gpu-03"):
        assert run.recap[name]["failed"] == 0
        assert run.recap[name]["changed"] > 0
    assert boxes[0].plan()["services"][0]["command"].count("1024") == 1
    assert boxes[1].plan()["services"][0]["command"].count("1024") == 0, "nothing may change on a host whose plan fails"

    repaired = play("deploy", inventory)
    assert repaired.rc == 0, repaired.output
    assert {name: repaired.recap[name]["changed"] for name in ("gpu-01", "gpu-03")} == {"gpu-01": 0, "gpu-03": 0}
    assert "3 hosts, 4 services: all answer" in repaired.output


def test_an_unreachable_host_is_in_the_summary(boxes: list[Box], tmp_path: Path) -> None:
    services = [[box.service("chat")] for box in boxes[:2]]
    # A shell that does not start is what a host looks like whose connection is lost.
    boxes[1].variables = {
        "ansible_connection": "ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": 9,
        "ansible_ssh_executable": "/bin/false",
    }
    inventory = inventory_of(boxes[:2], services, tmp_path / "hosts.json")
    run = play("deploy", inventory)
    boxes[1].variables = {}
    assert run.rc == 4, run.output
    assert run.recap["gpu-02"]["unreachable"] == 1
    assert "FAILED on gpu-02" in run.output
    assert "unreachable" in run.output
    assert run.recap["gpu-01"]["failed"] == 0
    assert "gpu-01" in run.output.split("FAILED on gpu-02")[1]
