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
from fleet_box import Box, cut_connection, listening, play
from model_hub import Hub


@pytest.fixture
def boxes(hub: Hub) -> Iterator[list[Box]]:
    with ExitStack() as stack:
        made = [stack.enter_context(Box(hub.endpoint, name)) for name in ("gpu-01", "gpu-02", "gpu-03")]
        for box in made:
            box.give_supervisor()
        yield made


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


# Nothing listens there: what a host looks like that is off.
GONE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}


def test_an_unreachable_host_is_in_the_summary(boxes: list[Box], tmp_path: Path) -> None:
    services = [[box.service("chat")] for box in boxes[:2]]
    boxes[1].variables = GONE
    inventory = inventory_of(boxes[:2], services, tmp_path / "hosts.json")
    run = play("deploy", inventory)
    assert run.rc != 0, run.output
    assert "1 of 1 answer; UNREACHABLE: gpu-02" in run.output
    assert run.recap["gpu-01"]["failed"] == 0
    report = boxes[0].report()
    assert (report["schema"], report["ok"]) == (1, False)
    assert report["counts"] == {
        "hosts": 2, "hosts_failed": 0, "hosts_unreachable": 1, "services": 1, "services_ok": 1
    }  # fmt: skip

    for playbook in ("validate", "status"):
        run = play(playbook, inventory)
        assert run.rc == 2, run.output
        assert "UNREACHABLE: gpu-02" in run.output
        assert "Connection refused" in run.output.split("UNREACHABLE: gpu-02")[1]
        assert run.recap["gpu-01"]["failed"] == 0, "the others go on"
        assert boxes[0].report()["hosts"]["gpu-02"]["unreachable"]
    boxes[1].variables = {}
    repaired = play("deploy", inventory_of(boxes[:2], services, tmp_path / "hosts.json"))
    assert repaired.rc == 0, repaired.output
    assert "2 hosts, 2 services: all answer" in repaired.output


@pytest.mark.parametrize("limit", [[], ["--limit", "gpu-01"]], ids=["all", "one"])
@pytest.mark.parametrize("playbook", ["validate", "status"])
def test_a_summary_is_shown_even_if_no_host_is_reached(playbook: str, limit: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    hosts = {name: {**GONE, "vllm_services": []} for name in ("gpu-01", "gpu-02")}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": {"vllm_report_path": str(report)}}}))
    run = play(playbook, inventory, *limit)
    assert run.rc == 2, run.output
    names = ["gpu-01"] if limit else ["gpu-01", "gpu-02"]
    assert f"UNREACHABLE: {', '.join(names)}" in run.output
    assert "remedy:   check that it is up, and its address, user and key" in run.output
    written = json.loads(report.read_text())
    assert written["counts"]["hosts_unreachable"] == len(written["hosts"]) == len(names)


def test_a_host_that_is_lost_while_it_is_asked(boxes: list[Box], tmp_path: Path) -> None:
    """SSH is cut in the middle: tried again until it is back."""
    services = [boxes[0].service("chat")]
    assert boxes[0].deploy(services).rc == 0
    run = boxes[0].play("validate", services, **cut_connection(tmp_path, "vllm_probe", 2))
    assert run.rc == 0, run.output
    assert "[gpu-01] no connection, trying again for 60 s: " in run.output
    assert "closed by remote host" in run.output
    assert (tmp_path / "cuts").read_text() == ""
    assert "1 host, 1 service: it answers" in run.output


@pytest.mark.parametrize("module", ["vllm_artifacts", "vllm_stack"])
def test_the_only_host_is_lost_on_the_way(boxes: list[Box], tmp_path: Path, module: str) -> None:
    """The summary and the report say so, and the same command repairs it."""
    services = [boxes[0].service("chat")]
    run = boxes[0].deploy(services, **cut_connection(tmp_path, module, 1))
    assert run.rc == 2, run.output
    assert "UNREACHABLE: gpu-01" in run.output
    assert boxes[0].report()["counts"]["hosts_unreachable"] == 1
    assert not (boxes[0].root / "plan.json").exists()
    again = boxes[0].deploy(services, **cut_connection(tmp_path, module, 0))
    assert again.rc == 0, again.output
    assert "1 host, 1 service: it answers" in again.output


def test_validate_is_one_table_over_many_services(boxes: list[Box], tmp_path: Path) -> None:
    services: list[list[dict[str, object]]] = [
        [boxes[0].service("chat", api_key="sk-fleet"), boxes[0].service("whisper", model="acme/whisper")],
        [boxes[1].service("vision", model="acme/vision")],
        [boxes[2].service("embed", model="acme/embed", api_key="sk-fleet")],
    ]
    inventory = inventory_of(boxes, services, tmp_path / "hosts.json")
    assert play("deploy", inventory).rc == 0
    run = play("validate", inventory, COLUMNS="120")
    assert (run.rc, run.changed) == (0, 0), run.output
    rows = {
        line.split()[1]: line.split()
        for line in run.output.splitlines()
        if line.startswith("gpu-0") and " : " not in line
    }
    assert rows["chat"][2] == "ok"
    assert {name: row.count("ok") - 1 for name, row in rows.items()} == {
        "chat": 4,
        "whisper": 2,
        "vision": 4,
        "embed": 3,
    }
    assert {name for name, row in rows.items() if "none" in row} == {"whisper", "vision"}
    assert max(len(line) for line in run.output.splitlines() if line.startswith("gpu-0") and " : " not in line) <= 120
    assert "sk-fleet" not in run.output
    report = boxes[0].report()
    assert report["counts"] == {
        "hosts": 3, "hosts_failed": 0, "hosts_unreachable": 0, "services": 4, "services_ok": 4
    }  # fmt: skip
    keyed = {service["name"]: service["keyed"] for host in report["hosts"].values() for service in host["services"]}
    assert keyed == {"chat": True, "whisper": False, "vision": False, "embed": True}
    for host in report["hosts"].values():
        for service in host["services"]:
            for result in service["results"]:
                assert set(result) == {
                    "kind", "asked", "expected", "answered", "ok", "reason", "seconds", "first_token_seconds"
                }  # fmt: skip

    boxes[1].break_engine(answer="Blue.")
    boxes[2].break_engine(open_routes=["/v1/embeddings"])
    run = play("validate", inventory, COLUMNS="80")
    assert run.rc == 2
    assert "2 of 4 answer; FAILED on gpu-02, gpu-03" in run.output
    assert "FAIL chat stream vision" in run.output
    assert "the engine lets requests in without its API key: POST /v1/embeddings answered 400" in run.output
