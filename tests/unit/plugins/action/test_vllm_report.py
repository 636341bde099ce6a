# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import re
import stat
import typing as t
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.gpufleet.vllm.plugins.action import vllm_report
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_report as documented

GOOD = {"engine": None, "runtime": "systemd", "failure": "", "services": [
    {"name": "chat", "model": "acme/模型", "revision": "master", "url": "http://10.0.0.11:8000", "ok": True}
]}  # fmt: skip
BAD = {"services": [], "failure": "no space"}


class Screen:
    """What the action displays, with its colour."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str | None]] = []

    def display(self, text: str, color: str | None = None) -> None:
        self.shown.append((text, color))

    @property
    def text(self) -> str:
        return "\n".join(text for text, _colour in self.shown)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(vllm_report, "display", made)
    return made


def run(check_mode: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
    loader = DataLoader()
    task = Task()
    task.check_mode = check_mode
    task.action = "gpufleet.vllm.vllm_report"
    task.args = arguments
    action = vllm_report.ActionModule(
        task=task,
        connection=Mock(),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    return action.run(task_vars={})


def test_all_is_well(screen: Screen) -> None:
    result = run(title="Deployed", hosts={"gpu-01": GOOD}, following={"stop it": "make stop"})
    assert (result["ok"], result["changed"], "failed" in result) == (True, False, False)
    assert screen.text.startswith("\nDeployed: 1 host, 1 service: it answers\n\ngpu-01")
    assert screen.text.rstrip().endswith("Next\n  stop it  make stop")
    assert [colour for text, colour in screen.shown if text] == ["green", None, None]


def test_check_mode_tells_what_is_to_be_fetched(screen: Screen) -> None:
    artifact = {"model": "acme/m", "path": "/m", "bytes_total": 2_000_000, "bytes_fetched": 1_000_000, "ok": True}
    hosts = {"gpu-01": {"services": [], "artifacts": [artifact, {**artifact, "ok": False, "bytes_fetched": 0}]}}
    service = {**GOOD["services"][0], "artifact": artifact}
    run(check_mode=True, title="Would fetch", hosts=hosts)
    assert "1 host, 2 artifacts: 1 of 2 cannot be had, 1.0 MB to fetch" in screen.text
    assert "acme/m  2.0 MB, 1.0 MB to fetch" in screen.text
    run(check_mode=True, title="Would fetch", hosts=hosts, layout="table")
    assert "to fetch" in screen.text.split("host ")[1].splitlines()[0]
    run(check_mode=True, title="Would deploy", hosts={"gpu-01": {"services": [service]}})
    assert "2.0 MB, 1.0 MB to fetch" in screen.text.split("Would deploy")[1]
    assert "fetched" not in screen.text
    run(title="Fetched", hosts=hosts)
    assert "1 of 2 complete, 1.0 MB fetched" in screen.text


def test_one_host_failed(screen: Screen) -> None:
    result = run(hosts={"gpu-01": GOOD, "gpu-02": BAD})
    assert (result["ok"], "failed" in result) == (False, False)
    assert "vLLM fleet: 2 hosts, 1 service: 1 of 1 answer; FAILED on gpu-02" in screen.text
    assert [colour for text, colour in screen.shown if text] == ["red", None, "red"]


def test_a_lost_host(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = run(hosts={"gpu-01": GOOD}, lost=["gpu-02"], layout="table", path=str(path))
    assert (result["ok"], "failed" in result) == (False, False)
    assert "gpu-02  -        UNREACHABLE" in screen.text
    document = json.loads(path.read_text())
    assert document["hosts"]["gpu-02"]["unreachable"]
    assert document["counts"]["hosts_unreachable"] == 1


@pytest.mark.parametrize(("columns", "fits"), [(60, False), (200, True)])
def test_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch, screen: Screen, columns: int, fits: bool) -> None:
    monkeypatch.setattr(vllm_report, "COLUMNS", columns)
    wide = {**GOOD, "services": [{**GOOD["services"][0], "model": "acme/" + "m" * 40}]}
    run(hosts={"gpu-01": wide, "gpu-02": wide}, layout="table")
    longest = max(map(len, screen.text.splitlines()))
    assert longest <= max(80, columns)
    assert ("http" in screen.text) is fits, screen.text


def test_the_file(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for _again in range(2):
        assert run(title="Deployed", hosts={"gpu-01": GOOD}, notes=["a"], path=str(path))["ok"]
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document.pop("finished"))
        counts = {"hosts": 1, "hosts_failed": 0, "hosts_unreachable": 0, "services": 1, "services_ok": 1}
        hosts = {"gpu-01": {**GOOD, "artifacts": [], "unreachable": False}}
        assert document == {
            "schema": 1,
            "title": "Deployed",
            "ok": True,
            "notes": ["a"],
            "counts": counts,
            "hosts": hosts,
        }
    assert "模型" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_a_file_that_cannot_be_written(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in ("file", "nothing/there"):
        result = run(hosts={"gpu-01": GOOD}, path=str(tmp_path / directory / "report.json"))
        assert (result["failed"], result["code"]) == (True, "report.not_written")
        assert f"Remedy: mkdir -p {tmp_path}/{directory}, set vllm_report_path to another file" in result["msg"]
    assert not (tmp_path / "nothing").exists(), "check mode makes none either"
    assert "FAILED" not in screen.text, "the summary is shown all the same"


@pytest.mark.parametrize("arguments", [{}, {"hosts": "x"}, {"hosts": {}, "titel": "x"}])
def test_arguments_are_checked(screen: Screen, arguments: dict[str, t.Any]) -> None:
    with pytest.raises(AnsibleError):
        run(**arguments)
    assert screen.shown == []


def test_the_documentation_is_the_argument_spec() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(vllm_report.ARGUMENT_SPEC)
    for name, spec in vllm_report.ARGUMENT_SPEC.items():
        for key in ("type", "default", "required", "choices", "elements"):
            assert options[name].get(key) == spec.get(key), (name, key)
    (task,) = yaml.safe_load(documented.EXAMPLES)
    assert set(task["gpufleet.vllm.vllm_report"]) == set(options)
