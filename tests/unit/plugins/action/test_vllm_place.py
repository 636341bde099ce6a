# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Placement as an action: over a real inventory and the variables of its hosts."""

from __future__ import annotations

import inspect
import json
import typing as t
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.gpufleet.vllm.plugins.action import vllm_place
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_place as documented

ROOT = Path(inspect.getfile(documented)).resolve().parents[2]
SECRET = "sk-unit-0123456789"
INVENTORY = f"""
gpu_hosts:
  vars:
    vllm_fleet_services:
      - name: chat
        model: acme/tiny
        gpus: {{count: 2, link: nvlink}}
        replicas: 2
        api_key: {SECRET}
      - name: whisper
        model: acme/whisper
        gpus: 1
        hosts: ['odd:!gpu-03']
  hosts:
    gpu-01:
      first: 0
      vllm_services:
        - name: own
          model: acme/tiny
          gpus: ["{{{{ first }}}}"]
          api_key: "{{{{ not_to_be_looked_at }}}}"
    gpu-02: {{}}
    gpu-03: {{}}
    gpu-04: {{}}
  children:
    odd:
      hosts: {{gpu-01: {{}}, gpu-03: {{}}}}
"""


class Play:
    """An inventory, and what its hosts answered."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, text: str = INVENTORY) -> None:
        path = directory / "hosts.yml"
        path.write_text(text)
        self.loader = DataLoader()
        self.inventory = InventoryManager(loader=self.loader, sources=[str(path)])
        self.manager = VariableManager(loader=self.loader, inventory=self.inventory)
        self.shown: list[str] = []
        monkeypatch.setattr(vllm_place, "display", Mock(display=self.shown.append))

    def answer(self, host: str, facts: t.Any) -> None:
        self.manager.set_nonpersistent_facts(host, {"vllm_host": facts})

    def run(self, **arguments: t.Any) -> dict[str, t.Any]:
        groups = {name: [host.name for host in group.get_hosts()] for name, group in self.inventory.groups.items()}
        first = self.manager.get_vars(host=self.inventory.get_host("gpu-01"))
        task = Task()
        task.action = "gpufleet.vllm.vllm_place"
        task.args = {
            "services": first["vllm_fleet_services"],
            "hosts": ["gpu-01", "gpu-02", "gpu-03", "gpu-04"],
            **arguments,
        }
        action = vllm_place.ActionModule(
            task=task,
            connection=Mock(),
            play_context=PlayContext(),
            loader=self.loader,
            templar=Templar(loader=self.loader, variables=first),
            shared_loader_obj=None,
        )
        hostvars = HostVars(self.inventory, self.manager, self.loader)
        return action.run(task_vars={**first, "hostvars": hostvars, "groups": groups})


def facts(host: str, count: int = 4) -> dict[str, t.Any]:
    pairs = [[one, other] for one in range(count) for other in range(one + 1, count)]
    return {
        "gpus": [{"index": index, "uuid": f"GPU-{host}-{index}"} for index in range(count)],
        "nvidia": {"topology": [{"gpus": pair, "link": "nv18", "nvlinks": 18} for pair in pairs]},
        "listening": [],
    }


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    made = Play(tmp_path, monkeypatch)
    for host in ("gpu-01", "gpu-02", "gpu-03"):
        made.answer(host, facts(host))
    made.answer("gpu-04", {"unreachable": True})
    return made


def test_it_places_over_all_hosts_and_says_no_secret(play: Play) -> None:
    result = play.run()
    assert (result["changed"], result["errors"], result.get("failed")) == (False, 0, None)
    # The pattern allows whisper gpu-01 alone, where index 0 and port 8000 are those of the host's own service, and
    # whose island is broken up already; one chat may be on gpu-04.
    assert result["hosts"] == {
        "gpu-01": [
            {"name": "chat", "gpus": ["GPU-gpu-01-1", "GPU-gpu-01-2"], "port": 8001},
            {"name": "whisper", "gpus": ["GPU-gpu-01-3"], "port": 8002},
        ]
    }
    assert SECRET not in json.dumps(result) + "".join(play.shown)


def test_a_host_that_was_not_reached_may_have_what_no_other_has(play: Play) -> None:
    kept = play.run()
    assert [finding["code"] for finding in kept["findings"]] == ["plan.host_missing"]
    assert kept["host_findings"] == []
    assert sum(entry["name"] == "chat" for entries in kept["hosts"].values() for entry in entries) == 1
    freed = play.run(missing="free")
    assert sum(entry["name"] == "chat" for entries in freed["hosts"].values() for entry in entries) == 2
    assert "plan.host_missing" in play.shown[-1]


def test_what_has_no_place_is_said_once_and_to_each_host(play: Play) -> None:
    play.answer("gpu-04", facts("gpu-04"))
    services = [{"name": name, "model": "acme/tiny", "gpus": gpus} for name, gpus in (("large", 8), ("small", 1))]
    result = play.run(services=services, missing="free")
    assert (result["errors"], result["search"]) == (1, "impossible")
    assert [finding["code"] for finding in result["host_findings"]] == ["plan.placement_failed"]
    assert [entry["name"] for entries in result["hosts"].values() for entry in entries] == ["small"]
    (shown,) = play.shown
    assert shown.startswith("the fleet\n  error plan.unplaced (large): 1 replica has no host")
    assert max(map(len, shown.splitlines())) <= 120
    assert "\n    remedy:   " in shown


def test_a_report_shows_it_later(play: Play) -> None:
    services = [{"name": "large", "model": "acme/tiny", "gpus": 8}]
    assert play.run(services=services, show=False, missing="free")["errors"] == 1
    assert play.shown == []


@pytest.mark.parametrize(("columns", "widest"), [(60, 80), (100, 100), (300, 140)])
def test_the_width_of_the_terminal(play: Play, monkeypatch: pytest.MonkeyPatch, columns: int, widest: int) -> None:
    monkeypatch.setattr(vllm_place, "COLUMNS", columns)
    play.run(services=[{"name": "large", "model": "acme/tiny", "gpus": 8}], missing="free")
    lines = play.shown[-1].splitlines()
    assert widest - 20 < max(map(len, lines)) <= widest


def test_own_services_that_cannot_be_read_leave_a_host_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = INVENTORY.replace("{{ first }}", "{{ unheard_of }}")
    made = Play(tmp_path, monkeypatch, text)
    made.answer("gpu-01", facts("gpu-01"))
    result = made.run(hosts=["gpu-01"])
    assert result["hosts"] == {}
    assert any("gpu-01: its vllm_services cannot be read" in finding["seen"] for finding in result["findings"])


def test_hosts_must_agree_on_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Play(tmp_path, monkeypatch, INVENTORY.replace("gpu-02: {}", "gpu-02: {vllm_fleet_services: []}"))
    result = made.run()
    assert [finding["code"] for finding in result["findings"]] == ["plan.fleet_differs"]


def test_the_first_host_says_nothing_for_the_others(play: Play) -> None:
    """Whichever host the task runs on, the result is the same."""
    assert play.run() == play.run(hosts=["gpu-04", "gpu-03", "gpu-02", "gpu-01"])


def test_documented_options_are_the_actions() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(vllm_place.ARGUMENT_SPEC)
    for name, spec in vllm_place.ARGUMENT_SPEC.items():
        assert options[name]["type"] == spec["type"]
        assert options[name].get("default") == spec.get("default")
        assert options[name].get("choices") == spec.get("choices")
        assert options[name].get("required", False) == spec.get("required", False)


def test_the_role_sets_every_option() -> None:
    tasks = yaml.safe_load((ROOT / "roles/vllm/tasks/place.yml").read_text(encoding="utf-8"))
    (task,) = [task for task in tasks if "gpufleet.vllm.vllm_place" in task]
    assert set(task["gpufleet.vllm.vllm_place"]) == set(vllm_place.ARGUMENT_SPEC)
    assert task["run_once"] is True
