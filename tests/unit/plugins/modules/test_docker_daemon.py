# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult
from ansible_collections.gpufleet.vllm.plugins.modules import docker_daemon


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        docker_daemon.main()
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without Docker and systemd: the real ones of this machine are not asked."""

    def nothing(argv: t.Sequence[str], timeout: float) -> CommandResult:
        return CommandResult(127, "", f"{argv[0]}: No such file or directory")

    monkeypatch.setattr(docker_daemon, "run_command", nothing)


def test_check_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "daemon.json"
    result = call(capsys, path=str(file), nvidia_runtime=True, config={"debug": True}, _ansible_check_mode=True)
    assert (result["changed"], result["action"], result["changed_keys"]) == (True, "none", ["debug", "runtimes"])
    assert "nvidia-container-runtime" in result["diff"]["after"]
    assert not file.exists()


def test_no_docker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, path=str(tmp_path / "daemon.json"))
    assert (result["failed"], result["code"]) == (True, "docker.no_service")
    assert "gpu_host_docker_source" in result["remedy"]


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, path=str(tmp_path))
    assert (result["failed"], result["code"]) == (True, "host.os_error")
    assert str(tmp_path) in result["msg"]
