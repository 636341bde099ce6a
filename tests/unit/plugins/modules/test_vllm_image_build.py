# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_image_build

CONTEXT = {"Dockerfile": "ARG BASE\nFROM ${BASE}\n"}


def run(capsys: pytest.CaptureFixture[str], root: Path, **options: t.Any) -> dict[str, t.Any]:
    given = {"base": "engine:1", "context": CONTEXT, "root": str(root / "root"), **options}
    with patch_module_args(given), pytest.raises(SystemExit):
        vllm_image_build.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command docker on PATH that has one image, and shows what it was called with."""
    program = tmp_path / "docker"
    image = json.dumps([{"Id": "sha256:1", "Config": {}}])
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n'
        f"[ \"$*\" = 'image inspect engine:1' ] && {{ echo '{image}'; exit; }}\n"
        'echo "No such image: x" >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "calls"


def test_check_mode_only_looks(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, tmp_path, _ansible_check_mode=True)
    assert (result["changed"], result["action"], result["image"]) == (True, "built", "engine-audio:1")
    assert result["msg"] == "engine-audio:1 would be built from engine:1"
    assert {line.split()[0] for line in docker.read_text().splitlines()} == {"image"}
    assert not (tmp_path / "root").exists()


def test_a_failure_says_what_to_do(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, tmp_path, index_url="https://me:secret@mirror.example.com/simple")
    assert (result["failed"], result["code"]) == (True, "image.credentials")
    assert "secret" not in result["msg"]
    assert "Remedy: name a mirror" in result["msg"]


def test_a_host_without_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(capsys, tmp_path)["code"] == "docker.missing"
