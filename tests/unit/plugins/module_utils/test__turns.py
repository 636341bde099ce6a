# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import stat
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose, _stack, _turns
from ansible_collections.gpufleet.vllm.plugins.module_utils._compose import Container

ROOT = "/var/lib/gpufleet-vllm"
SHARED = {"index": 0, "uuid": "GPU-aa", "shared": True}
OWN = {"index": 1, "uuid": "GPU-bb"}


def service(**changed: t.Any) -> dict[str, t.Any]:
    return {
        "name": "chat", "path": "/data/models/chat", "arguments": ["/model"], "environment": {}, "gpus": [SHARED, OWN],
        "port": 8001, "bind_address": "127.0.0.1", "secrets": [], "stop_timeout": 150, "ready_timeout": 1200,
        "url": "http://127.0.0.1:8001", "command": ["/opt/engine/bin/vllm", "serve", "/data/models/chat"], **changed,
    }  # fmt: skip


def define(**changed: t.Any) -> dict[str, t.Any]:
    return _compose.definition(service(**changed), "vllm/vllm-openai:v0.33.0", ROOT, Container())


@pytest.mark.parametrize("secrets", [[], ["VLLM_API_KEY"]])
def test_a_container_that_shares_a_card_waits_for_its_turn(secrets: list[str]) -> None:
    made, alone = define(secrets=secrets), define(secrets=secrets, gpus=[OWN])
    url = "http://127.0.0.1:8000/health"
    called = ["python3", "-c", _turns.START, "/run/turns/GPU-aa", url, "1200"]
    assert made["entrypoint"] == [*called, *alone["entrypoint"]]
    assert made["volumes"][:-1] == alone["volumes"]
    assert made["volumes"][-1] == {
        "type": "bind", "source": f"{ROOT}/turns", "target": "/run/turns", "read_only": True,
        "bind": {"create_host_path": False},
    }  # fmt: skip
    assert "python3" not in alone["entrypoint"]
    # As Compose reads it: a dollar sign would be a variable.
    read = yaml.safe_load(_compose.document(ROOT, {"chat": made}))["services"]["chat"]
    assert read["entrypoint"][2] == _turns.START
    assert "$" not in _turns.START


def test_a_process_that_shares_a_card_waits_for_its_turn() -> None:
    made = _turns.in_turn(service(), ROOT)
    assert made["command"] == [
        "/opt/engine/bin/python", f"{ROOT}/turns/start.py", f"{ROOT}/turns/GPU-aa", "http://127.0.0.1:8001/health",
        "1200", "/opt/engine/bin/vllm", "serve", "/data/models/chat",
    ]  # fmt: skip
    assert _turns.in_turn(made, ROOT) == made, "a plan that was applied once can be applied again"


@pytest.mark.parametrize("changed", [{"gpus": [OWN]}, {"gpus": []}, {"container": {}}, {"command": []}])
def test_others_start_as_they_are(changed: dict[str, t.Any]) -> None:
    assert _turns.in_turn(service(**changed), ROOT) == service(**changed)


def test_several_cards_are_locked_in_one_order() -> None:
    cards = [SHARED, {"uuid": "MIG-GPU-cc/1/0", "shared": True}, OWN]
    assert _turns.arguments(service(gpus=cards), "/x", "u") == ["/x/GPU-aa,/x/MIG-GPU-cc_1_0", "u", "1200"]
    assert "sorted(locks)" in _turns.START


def test_the_locks_of_a_host(tmp_path: Path) -> None:
    stack = _stack.Stack(_stack.Layout(str(tmp_path)), t.cast(t.Any, None))
    stack._turns([_stack.Desired(service(gpus=[OWN]))])
    assert not (tmp_path / "turns").exists()
    wanted = [_stack.Desired(service()), _stack.Desired(service(name="other"))]
    stack._turns(wanted)
    files = {path.name: path for path in (tmp_path / "turns").iterdir()}
    assert set(files) == {"GPU-aa", "start.py"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o644}
    inode = files["GPU-aa"].stat().st_ino
    files["start.py"].write_text("changed")
    stack._turns(wanted)
    assert files["GPU-aa"].stat().st_ino == inode, "another file would be another lock"
    assert files["start.py"].read_text() == _turns.START
    assert json.dumps(_turns.in_turn(service(), str(tmp_path)))
