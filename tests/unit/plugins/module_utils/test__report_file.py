# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils._report_file import written


def test_a_report_is_written(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert written(str(path), {"b": "模型", "a": 1}, "plan", mode=0o600) == {}
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1,\n  "b": "模型"\n}\n'
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "away" / "plan.json"
    result = written(str(path), {}, "plan", "plan")
    assert (result["failed"], result["code"]) == (True, "plan.not_written")
    assert result["seen"] == f"the plan could not be written to {path}: No such file or directory"
    assert result["remedy"].startswith(f"mkdir -p {path.parent}, set vllm_plan_path to another file")
    assert not path.parent.exists()
