# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_record


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_record.main()
    return json.loads(capsys.readouterr().out)


def test_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not call(capsys, root=str(tmp_path))["changed"]
    (tmp_path / "plan.json").write_text('{"digest": "p"}')
    assert call(capsys, root=str(tmp_path), _ansible_check_mode=True)["changed"]
    assert not (tmp_path / "record.json").exists()
    assert call(capsys, root=str(tmp_path))["digest"] == "p"
    assert not call(capsys, root=str(tmp_path))["changed"]


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text("{damaged")
    result = call(capsys, root=str(tmp_path))
    assert (result["failed"], result["code"]) == (True, "stack.plan_unreadable")
    (tmp_path / "plan.json").write_text('{"digest": "p"}')
    (tmp_path / "record.json").mkdir()
    (tmp_path / "record.json/x").mkdir()
    result = call(capsys, root=str(tmp_path))
    assert result["failed"]
    assert "record.json" in result["seen"]
