# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Services of a fleet on several hosts with simulated GPUs: placed, kept, added to, moved, and refused."""

from __future__ import annotations

import json
import shutil
import sys
import typing as t
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fleet_box import MODEL, REPOSITORY, Box, Run, free_port, play
from model_hub import Hub
from nvidia_sim.state import expand

GONE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
KEY = "sk-placed-0123456789"
SMI = "import sys; from pathlib import Path; from nvidia_sim.smi import main; sys.exit(main(Path('/'), sys.argv[1:]))"


class GpuBox(Box):
    """A host whose nvidia-smi is the lab's, with cards of its own, and an address of its own on loopback."""

    def equip(self, count: int, address: str, model: str = "h100-80gb") -> None:
        place = self.directory / "gpu"
        place.mkdir()
        self.data = place / "gpus.json"
        self.data.write_text(json.dumps({"hostname": self.name, "model": model, "count": count}))
        self._script(place / "nvidia-smi", f'exec {sys.executable} -c "{SMI}" "$@"')
        self._script(place / "python", f'exec {sys.executable} "$@"')
        self.variables = {
            "ansible_python_interpreter": str(place / "python"),
            "vllm_bind_address": address,
            # This machine has no driver, and its name server and clock are not what this is about.
            "vllm_preflight_enabled": False,
        }
        self.give_supervisor()

    def _script(self, path: Path, command: str) -> None:
        lab = REPOSITORY / "tests/lab"
        path.write_text(
            f"#!/bin/sh\nexport PATH={path.parent}:$PATH GPUSIM_DATA={self.data} PYTHONPATH={lab}\n{command}\n"
        )
        path.chmod(0o755)

    @property
    def held(self) -> dict[str, list[int]]:
        """The services that were deployed here, and the indices of their cards."""
        if not (self.root / "plan.json").exists():
            return {}
        index = {gpu.uuid: gpu.index for gpu in expand(json.loads(self.data.read_text()), self.name).gpus}
        return {entry["name"]: [index[card["uuid"]] for card in entry["gpus"]] for entry in self.plan()["services"]}


class Fleet:
    def __init__(self, boxes: list[GpuBox], directory: Path) -> None:
        self.boxes, self.directory, self.low = boxes, directory, free_port()
        self.own: dict[str, list[dict[str, t.Any]]] = {}
        self.lost: set[str] = set()
        self.left: set[str] = set()

    def play(self, playbook: str, services: list[dict[str, t.Any]], *arguments: str) -> Run:
        hosts: dict[str, t.Any] = {}
        for box in self.boxes:
            if box.name not in self.left:
                made = json.loads(box.inventory(self.own.get(box.name, [])).read_text())["gpu_hosts"]["hosts"]
                hosts.update(made)
                if box.name in self.lost:
                    made[box.name].update(GONE)
        shared = {
            "vllm_fleet_services": services,
            "vllm_fleet_ports": f"{self.low}-{self.low + 40}",
            "vllm_report_path": str(self.directory / "report.json"),
        }
        path = self.directory / "hosts.json"
        path.write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": shared}}))
        return play(playbook, path, *arguments)

    def deploy(self, services: list[dict[str, t.Any]], *arguments: str) -> Run:
        return self.play("deploy", services, *arguments)

    def refused_by(self, services: list[dict[str, t.Any]], text: str) -> None:
        """Preflight and plan say it once, for the fleet, on the terminal and in their files."""
        for playbook in ("preflight", "plan"):
            path = self.directory / f"{playbook}.json"
            run = self.play(playbook, services, "-e", f"vllm_{playbook}_path={path}")
            assert run.rc == 2, run.output
            assert "\nthe fleet\n" in run.output, run.output
            assert words(run).count(f"error {text}") == 1, run.output
            assert "error plan.placement_failed" not in run.output, "it only points there"
            document = json.loads(path.read_text())
            assert [one["code"] for one in document["fleet"]["findings"]] == [text.partition(" ")[0]]
            assert not document["ok"]
            counted = document["totals" if playbook == "plan" else "counts"]["errors"]
            others = [one for host in document["hosts"].values() for one in host["findings"]]
            errors = [one for one in others if (one["severity"], one["code"]) == ("error", "plan.placement_failed")]
            assert len(errors) == len(self.boxes)
            assert counted == 1 + sum(one["severity"] == "error" for one in others) - len(errors)

    @property
    def held(self) -> dict[str, dict[str, list[int]]]:
        return {box.name: box.held for box in self.boxes}


def words(run: Run) -> str:
    """What a run said, however it was wrapped."""
    return " ".join(run.output.split())


@pytest.fixture
def fleet(hub: Hub, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        boxes = []
        for number, count in enumerate((4, 4, 2), 1):
            box = stack.enter_context(GpuBox(hub.endpoint, f"gpu-0{number}"))
            box.equip(count, f"127.0.1.{number}")
            boxes.append(box)
        yield Fleet(boxes, tmp_path)


def service(name: str, gpus: t.Any = 1, **extra: t.Any) -> dict[str, t.Any]:
    return {"name": name, "model": MODEL, "gpus": gpus, "drain_seconds": 1, **extra}


@pytest.mark.slow
def test_a_fleet_from_its_first_service_to_one_too_many(fleet: Fleet) -> None:
    first = [
        service("chat", {"count": 2, "link": "nvlink"}, replicas=2, api_key=KEY),
        service("small", {"count": 1, "min_memory_gib": 40}, hosts=["gpu-01", "gpu-02"]),
    ]
    run = fleet.deploy(first)
    assert run.rc == 0, run.output
    assert "3 hosts, 3 services: all answer" in run.output
    assert KEY not in run.output
    placed = fleet.held
    # Whole islands first: the two cards of gpu-03 are one; the second replica breaks one up, and the small one uses it.
    assert placed == {"gpu-01": {"chat": [0, 1], "small": [2]}, "gpu-02": {}, "gpu-03": {"chat": [0, 1]}}

    again = fleet.deploy(first)
    assert (again.rc, again.changed) == (0, 0), again.output
    assert fleet.play("validate", first).rc == 0

    more = [service("added", 2), *first]
    added = fleet.deploy(more)
    assert added.rc == 0, added.output
    after = fleet.held
    assert {host: {**held, **placed[host]} for host, held in after.items()} == after, "nothing moves"
    assert [host for host, held in after.items() if "added" in held] == ["gpu-02"]
    assert added.recap["gpu-01"]["changed"] == added.recap["gpu-03"]["changed"] == 0

    large = [*more, service("large", 4)]
    refused = fleet.deploy(large)
    assert refused.rc == 2
    said = words(refused)
    assert "error plan.unplaced (large): 1 replica has no host; nearest is gpu-02: 2 of 4 GPUs are free" in said
    assert "GPU 0 is held by added" in said
    assert "add a host for large with 4 free GPUs" in said
    assert "\nthe fleet\n" in refused.output
    assert refused.changed == 0, "nothing is placed half"
    assert fleet.held == after
    fleet.refused_by(large, "plan.unplaced (large): 1 replica has no host")

    fewer = fleet.deploy(first)
    assert fewer.rc == 0, fewer.output
    assert fleet.held == placed

    # Neither the hub nor the first host has the model; the second one does.
    shutil.rmtree(fleet.boxes[0].root / "models")
    sized = {key: value for key, value in service("sized").items() if key != "gpus"}
    read = fleet.play("plan", [*first, sized], "-e", "vllm_hub_endpoint=http://127.0.0.1:9")
    # Its config.json was read, which says nothing of layers.
    assert "told from acme/tiny@master: config.json has no num_hidden_layers" in words(read), read.output


@pytest.mark.slow
def test_hosts_that_are_not_there_keep_what_they_have(fleet: Fleet) -> None:
    services = [service("one", 2, replicas=2), service("two", 2)]
    assert fleet.deploy(services).rc == 0
    placed = fleet.held
    assert sorted(name for held in placed.values() for name in held) == ["one", "one", "two"]

    limited = fleet.deploy(services, "--limit", "gpu-01")
    assert (limited.rc, limited.changed) == (0, 0), limited.output
    assert fleet.held == placed

    fleet.lost = {"gpu-03"}
    lost = fleet.deploy(services)
    assert lost.rc == 2
    assert "plan.host_missing: gpu-03 was not reached: 1 replica (" in words(lost)
    assert "UNREACHABLE: gpu-03" in lost.output
    assert lost.changed == 0
    assert fleet.held == placed

    # Out of the inventory, what it had is placed anew.
    fleet.left, fleet.lost = {"gpu-03"}, set()
    freed = fleet.deploy(services)
    assert freed.rc == 0, freed.output
    there = placed["gpu-03"]
    assert there
    held = {host: names for host, names in fleet.held.items() if host != "gpu-03"}
    assert sorted(name for names in held.values() for name in names) == ["one", "one", "two"]
    for host, names in held.items():
        assert {**names, **placed[host]} == names, "the others stay"


@pytest.mark.slow
def test_what_runs_goes_on_while_the_hub_is_down(fleet: Fleet) -> None:
    """The hosts that read the models of the fleet do not have this one."""
    there: dict[str, t.Any] = {"hosts": ["gpu-03"]}
    assert fleet.deploy([service("counted", 1, **there), service("sized", 1, **there)]).rc == 0
    placed = fleet.held
    assert sorted(placed["gpu-03"]) == ["counted", "sized"]

    sized = {key: value for key, value in service("sized", **there).items() if key != "gpus"}
    down = ("-e", "vllm_hub_endpoint=http://127.0.0.1:9")
    services = [service("counted", 1, **there), sized]
    again = fleet.deploy(services, *down)
    assert (again.rc, again.changed) == (0, 0), again.output
    assert "warning plan.model_unknown (sized): the number of GPUs cannot be told from" in words(again)
    assert fleet.held == placed
    looked = fleet.play("plan", services, *down)
    assert looked.rc == 0, looked.output

    refused = fleet.deploy([*services, {**sized, "name": "new", "hosts": ["gpu-01"]}], *down)
    assert (refused.rc, refused.changed) == (2, 0), refused.output
    assert "error plan.unplaced (new): 1 replica has no host; the number of GPUs cannot be told" in words(refused)
    assert "remedy: let the host reach the hub" in words(refused)
    assert fleet.held == placed
