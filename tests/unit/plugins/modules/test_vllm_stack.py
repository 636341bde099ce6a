# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_stack

SECRET = "sk-super-secret"


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_stack.main()
    return json.loads(capsys.readouterr().out)


def service() -> dict[str, t.Any]:
    return {"name": "a", "model": "o/m", "path": "/m", "port": 8000, "stop_timeout": 20, "environment": {},
            "command": ["vllm", "serve", "/m"]}  # fmt: skip


def test_check_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(
        capsys, root="/srv/none-such/vllm", runtime="supervisor", services=[service()],
        secrets={"a": {"VLLM_API_KEY": SECRET}}, _ansible_check_mode=True,
    )  # fmt: skip
    assert result["changed"]
    assert result["services"][0]["action"] == "created"
    assert result["runtime"] == "supervisor"
    assert len(result["plan_digest"]) == 64
    assert SECRET not in json.dumps({name: value for name, value in result.items() if name != "invocation"})
    assert not os.path.exists("/srv/none-such")


def test_absent_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not call(capsys, root=str(tmp_path / "root"), runtime="supervisor", state="absent")["changed"]
    assert list(tmp_path.iterdir()) == []


def test_services_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert "services" in call(capsys)["msg"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/r/plan.json"), "host.disk_full"),
        (PermissionError(errno.EACCES, "Permission denied", "/r/plan.json"), "host.permission"),
        (OSError(errno.EIO, "Input/output error", "/r/plan.json"), "host.os_error"),
    ],
)
def test_errors_of_the_system_are_no_traceback(
    error: OSError, code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: t.Any) -> t.NoReturn:
        raise error

    monkeypatch.setattr(vllm_stack, "present", fail)
    result = call(capsys, services=[])
    assert result["failed"]
    assert result["code"] == code
    assert "/r/plan.json" in result["seen"]
    assert result["expected"]
    assert result["remedy"]


def test_a_bad_root(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, root="/", state="absent")
    assert (result["failed"], result["code"]) == (True, "stack.bad_root")
