# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook that shows a plan: what it foretells is what a deploy then does, and it changes nothing itself."""

from __future__ import annotations

import json
import stat
import typing as t
from pathlib import Path

import pytest
from fleet_box import Box, listening, play
from model_hub import Hub

SECRET = "sk-unit-hunter2-0123456789"
PLAIN = "plain-hunter3"


def planned(
    box: Box, services: t.Any, *arguments: str, rc: int = 0, **variables: t.Any
) -> tuple[str, dict[str, t.Any]]:
    """What the playbook printed, and the JSON that it wrote of the one host."""
    path = box.directory / "plan.json"
    run = box.play("plan", services, *arguments, vllm_plan_path=str(path), **variables)
    assert run.rc == rc, run.output
    assert run.changed == 0, run.output
    written = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (written["schema"], written["ok"]) == (1, rc == 0)
    return run.output, written["hosts"][box.name]


def changes(host: dict[str, t.Any]) -> dict[str, str]:
    return {one["service"]: one["change"] for one in host["changes"]}


def files_of(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*")) if directory.is_dir() else []


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["run", "check"])
def test_a_bare_host(fresh_box: Box, check: list[str]) -> None:
    services = [fresh_box.service("chat", secret_environment={"TOKEN": SECRET}, environment={"NOTE": PLAIN})]
    output, host = planned(fresh_box, services, *check)
    assert "+ chat  starts    it is not there yet" in output
    assert "fetch 2.0 MB  acme/tiny @ " in output
    assert "Plan: 1 host; 2.0 MB to fetch; 1 service: 1 to start" in output
    assert changes(host) == {"chat": "start"}
    assert host["plan"]["services"][0]["environment"]["NOTE"] == "********"
    assert host["artifacts"][0]["bytes_to_fetch"] == host["artifacts"][0]["bytes_total"] > 2_000_000
    for secret in (SECRET, PLAIN):
        assert secret not in output + json.dumps(host)
    assert not fresh_box.root.exists(), "it changes nothing"


def test_what_it_foretells_is_what_a_deploy_does(box: Box) -> None:
    names = ("same", "longer", "value", "leaves")
    old = [box.service(name, environment={"NOTE": "one"}) for name in names]
    deployed = box.deploy(old)
    assert deployed.rc == 0, deployed.output
    before = {name: box.pid(name) for name in names}

    output, host = planned(box, old)
    assert "changes: none, same, longer, value, leaves go on" in output
    assert "Plan: 1 host; nothing to fetch; 4 services: 4 go on" in output
    assert set(changes(host).values()) == {"keep"}

    new = [
        old[0],
        {**old[1], "max_model_len": 1024},
        {**old[2], "environment": {"NOTE": "two"}},
        box.service("arrives"),
    ]
    standing = files_of(box.root)
    output, host = planned(box, new, "--diff")
    assert changes(host) == {
        "same": "keep", "longer": "restart", "value": "restart", "arrives": "start", "leaves": "stop"
    }  # fmt: skip
    assert "~ longer   restarts  --max-model-len 1024 is new" in output
    assert "~ value    restarts  the value of an environment variable" in output
    assert "- leaves   stops     it is not in vllm_services" in output
    assert "longer would run as\n    vllm serve" in output
    assert "to start, 2 to restart, 1 to stop, 1 goes on" in output
    assert files_of(box.root) == standing
    assert {name: box.pid(name) for name in names} == before

    foretold = box.deploy(new, "--check", "--diff")
    assert "~ longer   restarts  --max-model-len 1024 is new" in foretold.output, "the same view"
    done = box.deploy(new)
    assert done.rc == 0, done.output
    after = {name: box.pid(name) for name in ("same", "longer", "value", "arrives")}
    assert after["same"] == before["same"]
    assert None not in after.values()
    assert after["longer"] != before["longer"]
    assert after["value"] != before["value"]
    assert sorted(entry["name"] for entry in box.plan()["services"]) == ["arrives", "longer", "same", "value"]
    _output, host = planned(box, new)
    assert set(changes(host).values()) == {"keep"}


def test_errors_are_shown_and_end_with_status_2(box: Box) -> None:
    taken = box.service("chat")
    with listening(taken["port"]):
        output, host = planned(box, [taken, box.service("open", bind_address="0.0.0.0")], rc=2)
    assert f"error plan.port_taken (chat): port {taken['port']} is in use by" in output
    assert "error plan.public_bind (open): it would listen on 0.0.0.0" in output
    assert "changes, once there are no errors" in output
    assert "2 errors: nothing can be deployed on box" in output
    assert host["errors"] == 2
    allowed = box.service("open", bind_address="0.0.0.0", allow_public_bind=True)
    output, host = planned(box, [allowed])
    assert "warning plan.no_api_key (open)" in output


def test_a_model_that_the_hub_does_not_have(box: Box) -> None:
    output, host = planned(box, [box.service("chat", model="acme/missing")], rc=2)
    assert "FAILED" in output
    assert host["artifacts"][0]["failure"]
    assert "nothing can be deployed on box" in output


def test_hosts_that_look_alike_are_shown_once(hub: Hub, tmp_path: Path) -> None:
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    hosts: dict[str, t.Any] = {}
    boxes = [Box(hub.endpoint, f"gpu-{number:02}") for number in range(1, 4)]
    try:
        for box in boxes:
            service = {"name": "chat", "model": "acme/tiny", "port": 48123}
            hosts.update(
                json.loads(box.inventory([service], vllm_model_root="/tmp/gf-no-such-models").read_text())["gpu_hosts"][
                    "hosts"
                ]
            )
        hosts["gpu-09"] = {**hosts["gpu-03"], **gone}
        shared = {"vllm_root": "/tmp/gf-no-such-root", "vllm_engine_path": "/opt/vllm"}
        for host in hosts.values():
            host.update(shared)
        inventory = tmp_path / "hosts.json"
        inventory.write_text(json.dumps({"gpu_hosts": {"hosts": hosts}}))
        run = play("plan", inventory)
        assert run.rc == 2, run.output
        assert run.output.count("it is not there yet") == 1, run.output
        assert "gpu-01 .. gpu-03 (3 hosts): vLLM" in run.output
        assert "gpu-09: UNREACHABLE" in run.output
        assert "UNREACHABLE: gpu-09" in run.output
        assert {name: host["failed"] for name, host in run.recap.items() if name != "localhost"} == {
            "gpu-01": 0, "gpu-02": 0, "gpu-03": 0, "gpu-09": 1
        }  # fmt: skip
        limited = play("plan", inventory, "--limit", "gpu-02")
        assert limited.rc == 0, limited.output
        assert "Plan: 1 host;" in limited.output
        none = play("plan", inventory, "--limit", "gpu-09")
        assert none.rc == 2, none.output
        assert "remedy:   check that it is up, and its address" in none.output
    finally:
        for box in boxes:
            box.__exit__()
