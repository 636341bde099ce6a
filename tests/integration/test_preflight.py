# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The preflight on hosts that are this machine: alone, in check mode, again, and as the first step of a deploy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, Box, Run, controller_environment, free_port, play
from model_hub import Hub

# A rule that this machine passes; to be turned off.
RULE = "host.kernel_old"
TYPO = "host.kernel_odl"


def preflight(box: Box, services: t.Any, *arguments: str, **variables: t.Any) -> tuple[Run, dict[str, t.Any]]:
    path = box.directory / "preflight.json"
    run = box.play("preflight", services, *arguments, vllm_preflight_path=str(path), **variables)
    document: dict[str, t.Any] = json.loads(path.read_text())
    return run, document


def codes(document: dict[str, t.Any], severity: str, host: str = "box") -> list[str]:
    return [one["code"] for one in document["hosts"][host]["findings"] if one["severity"] == severity]


def nobody() -> str:
    """A hub that does not answer."""
    return f"http://127.0.0.1:{free_port()}"


def modules(output: str) -> list[str]:
    """The modules that ran on hosts, from the output of -vvv."""
    return re.findall(r"Using module file \S+/(\w+)\.py", output)


def test_a_host_that_is_well_and_again_and_in_check_mode(fresh_box: Box) -> None:
    services = [fresh_box.service("chat")]
    documents = []
    for arguments in ([], [], ["--check"], ["--check", "--diff"]):
        run, document = preflight(fresh_box, services, "-vvv", *arguments)
        assert (run.rc, run.changed) == (0, 0), run.output
        assert modules(run.output) == ["vllm_host_info"], "one call per host"
        assert not fresh_box.root.exists(), "the preflight wrote to the host"
        assert document["ok"]
        assert (document["counts"]["hosts"], document["counts"]["errors"], document["skipped"]) == (1, 0, [])
        documents.append(document)
    first = documents[0]["hosts"]["box"]
    assert first["versions"]["python"]
    assert first["counts"]["passed"] > 40
    assert [one["hosts"]["box"]["findings"] for one in documents] == [first["findings"]] * 4
    assert "Preflight: 1 host, " in run.output
    assert "unknown\n  " in run.output, "-v lists what could not be told"


def test_an_error_says_what_to_do_and_is_the_exit_status(fresh_box: Box) -> None:
    run, document = preflight(fresh_box, [fresh_box.service("chat")], vllm_hub_endpoint=nobody())
    assert run.rc == 2
    assert codes(document, "error") == ["hub.unreachable"]
    assert run.recap["box"]["failed"] == 1
    (finding,) = (one for one in document["hosts"]["box"]["findings"] if one["severity"] == "error")
    for text in (finding["seen"], finding["remedy"]):
        assert "".join(text.split()) in "".join(run.output.split()), "the table has it, wrapped"
    assert "more:     docs/preflight.md#hub-unreachable" in run.output
    assert "Preflight: 1 host, with errors" in run.output


def test_a_rule_that_is_turned_off_is_named_and_fails_nobody(fresh_box: Box) -> None:
    services = [fresh_box.service("chat")]
    off = {"vllm_hub_endpoint": nobody(), "vllm_preflight_skip": ["hub.unreachable", RULE]}
    run, document = preflight(fresh_box, services, **off)
    assert run.rc == 0, run.output
    assert document["skipped"] == [RULE, "hub.unreachable"]
    assert f"turned off by vllm_preflight_skip: {RULE}, hub.unreachable" in run.output
    assert RULE not in document["hosts"]["box"]["passed"]


def test_a_typo_turns_nothing_off_and_warnings_fail_where_they_are_to(fresh_box: Box) -> None:
    services = [fresh_box.service("chat")]
    run, document = preflight(fresh_box, services, vllm_preflight_skip=[TYPO])
    assert run.rc == 0
    assert "preflight.skip_unknown" in codes(document, "warning")
    assert f"write {RULE}" in run.output
    run, _document = preflight(fresh_box, services, vllm_preflight_skip=[TYPO], vllm_preflight_fail_on="warning")
    assert run.rc == 2
    run, _document = preflight(fresh_box, services, vllm_hub_endpoint=nobody(), vllm_preflight_fail_on="never")
    assert run.rc == 0


def test_what_is_wrong_in_the_inventory_is_part_of_it(fresh_box: Box) -> None:
    wrong = [fresh_box.service("chat"), {"name": "second"}]
    run, document = preflight(fresh_box, wrong, vllm_preflight_fail_on="never")
    assert run.rc == 2
    assert "service.missing_key" in codes(document, "error")
    assert "add model:" in run.output


def test_one_host_hides_no_other_and_who_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    with Box(hub.endpoint, "gpu-01") as good, Box(nobody(), "gpu-02") as bad:
        hosts: dict[str, t.Any] = {}
        for box in (good, bad):
            hosts |= json.loads(box.inventory([box.service("chat")]).read_text())["gpu_hosts"]["hosts"]
        hosts["gpu-03"] = {**hosts["gpu-01"], "ansible_connection": "ssh", "ansible_host": "127.0.0.1",
                           "ansible_port": free_port()}  # fmt: skip
        hosts["gpu-04"] = {**hosts["gpu-01"], "vllm_runtime": "kubernetes", "vllm_root": str(tmp_path / "other")}
        hosts["gpu-05"] = {**hosts["gpu-01"], "ansible_python_interpreter": "/nowhere/python"}
        inventory, path = tmp_path / "hosts.json", tmp_path / "preflight.json"
        variables = {"vllm_preflight_path": str(path), "vllm_report_path": ""}
        inventory.write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": variables}}))
        run = play("preflight", inventory)
        assert run.rc == 2
        document = json.loads(path.read_text())
        assert {name: host["ok"] for name, host in document["hosts"].items()} == {
            "gpu-01": True, "gpu-02": False, "gpu-03": False, "gpu-04": False, "gpu-05": False
        }  # fmt: skip
        assert document["hosts"]["gpu-03"]["unreachable"]
        assert codes(document, "error", "gpu-04") == ["plan.bad_setting"]
        assert "set ansible_python_interpreter" in document["hosts"]["gpu-05"]["failure"]
        assert {name: host["failed"] for name, host in run.recap.items() if name != "localhost"} == {
            "gpu-01": 0, "gpu-02": 1, "gpu-03": 1, "gpu-04": 1, "gpu-05": 1
        }  # fmt: skip
        assert "gpu-03\n  UNREACHABLE: the host cannot be reached\n    seen:     " in run.output
        assert "gpu-05\n  NOT CHECKED: The module interpreter '/nowhere/python' was not found\n" in run.output
        assert "plan.bad_setting (1 error). The table above says why" in run.output
        # A deploy leaves the host with the error as it was, and goes on with the one that is well.
        good.give_supervisor()
        run = play("deploy", inventory, "--limit", "gpu-01,gpu-02")
        assert run.rc == 2, run.output
        assert not bad.root.exists(), "the preflight's error came too late"
        assert "FAILED on gpu-02" in run.output
        assert "1 of 2 answer" in run.output
        assert "FAILED: The preflight has 1 error, nothing was changed." in run.output
        again = play("deploy", inventory, "--limit", "gpu-01")
        assert (again.rc, again.changed) == (0, 0), again.output
        # What runs on the host is its own: no port, no process of it is held against a preflight.
        run = play("preflight", inventory, "--limit", "gpu-01")
        assert run.rc == 0, run.output


def test_a_deploy_says_at_the_end_what_was_turned_off_and_asks_hosts_no_more_than_without(box: Box) -> None:
    services = [box.service("chat")]
    first = box.deploy(services, vllm_preflight_skip=[RULE])
    assert first.rc == 0, first.output
    assert f"turned off by vllm_preflight_skip: {RULE}" in first.output.rpartition("Warnings of the preflight\n")[2]
    assert f"turned off by vllm_preflight_skip: {RULE}" in box.report()["notes"]
    again = box.deploy(services, "-vvv", vllm_preflight_skip=[RULE])
    assert (again.rc, again.changed) == (0, 0), again.output
    without = box.deploy(services, "-vvv", vllm_preflight_enabled=False)
    assert (without.rc, without.changed) == (0, 0), without.output
    assert modules(again.output) == modules(without.output)
    assert "Preflight: " not in without.output


def test_without_it_errors_of_the_plan_still_stop_a_deploy(fresh_box: Box) -> None:
    run = fresh_box.deploy([{"name": "chat"}], vllm_preflight_enabled=False)
    assert run.rc == 2
    assert "The plan has 1 error, nothing was changed." in run.output
    assert not fresh_box.root.exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_colours_are_for_terminals(fresh_box: Box, terminal: bool) -> None:
    inventory = fresh_box.inventory([fresh_box.service("chat")], vllm_preflight_skip=[TYPO])
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "gpufleet.vllm.preflight"]
    dull = ("ANSIBLE_NOCOLOR", "NO_COLOR", "COLUMNS")
    environment = {name: text for name, text in controller_environment().items() if name not in dull}
    if terminal:
        command = ["script", "--quiet", "--return", "--command", " ".join(command), "/dev/null"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**environment, "TERM": "xterm"}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert ("\x1b[0;33m  warning preflight.skip_unknown" in done.stdout) is terminal
    assert ("\x1b[" in done.stdout) is terminal
