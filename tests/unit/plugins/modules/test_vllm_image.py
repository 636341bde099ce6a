# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_image


def run(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        vllm_image.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command docker on PATH that answers what the file beside it says."""
    program = tmp_path / "docker"
    script = f'cat "{tmp_path}/answer" 2>/dev/null || {{ echo "No such image: x" >&2; exit 1; }}'
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "answer"


def test_an_image_that_is_there(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docker.write_text(json.dumps([{"Id": "sha256:1", "RepoDigests": ["engine@sha256:2"]}]))
    result = run(capsys, images=[{"image": "engine:1"}], root=str(tmp_path / "root"))
    assert (result["changed"], result["images"][0]["pinned"]) == (False, "engine:1@sha256:2")


def test_a_failure_says_what_to_do(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, images=[{"image": "engine:1"}], pull="never", root=str(tmp_path / "root"))
    assert result["failed"]
    assert result["code"] == "image.missing"
    assert "Remedy: load it" in result["msg"]


def test_a_host_without_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(capsys, images=[{"image": "engine:1"}], root=str(tmp_path / "root"))["code"] == "docker.missing"
