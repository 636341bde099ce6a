# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _usage
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Layout


def plan(*paths: Path | str) -> dict[str, object]:
    return {"artifacts": [{"path": str(path)} for path in paths]}


def test_paths_of_a_plan() -> None:
    document = {"artifacts": [{"path": "/a"}, {"model": "m"}, "damaged"], "services": [{"path": "/b"}, {"path": "/a"}]}
    assert _usage.artifact_paths(document) == {"/a", "/b"}
    assert _usage.artifact_paths({"artifacts": None, "services": "x"}) == _usage.artifact_paths(None) == set()


def test_what_a_plan_no_longer_names_is_noted_once(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    _usage.note_replaced(layout, None, plan(tmp_path / "one"))
    _usage.note_replaced(layout, plan(tmp_path / "one"), plan(tmp_path / "one", tmp_path / "two"))
    assert not (tmp_path / "artifacts.json").exists()
    began = int(time.time())
    _usage.note_replaced(layout, plan(tmp_path / "one", tmp_path / "two"), plan(tmp_path / "two"))
    found, others = _usage.last_named(layout)
    assert list(found) == [str(tmp_path / "one")]
    assert began <= found[str(tmp_path / "one")] <= time.time()
    assert others == 0.0
    assert (tmp_path / "artifacts.json").stat().st_mode & 0o777 == 0o600


def test_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    (tmp_path / "two").mkdir()
    _usage.note_replaced(layout, plan(tmp_path / "one"), plan())
    _usage.note_replaced(layout, plan(tmp_path / "two"), plan())
    assert list(_usage.last_named(layout)[0]) == [str(tmp_path / "two")]


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_damaged_file_counts_as_used_until_then(tmp_path: Path, text: str) -> None:
    path = tmp_path / "artifacts.json"
    path.write_text(text)
    assert _usage.last_named(Layout(str(tmp_path))) == ({}, path.stat().st_mtime)


def test_a_stamp_that_is_none_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "artifacts.json").write_text(
        json.dumps({"left": {"/a": "2026-01-01T00:00:00Z", "/b": "yesterday", "/c": 5}})
    )
    assert _usage.last_named(Layout(str(tmp_path))) == ({"/a": 1767225600.0}, 0.0)


def test_no_file(tmp_path: Path) -> None:
    assert _usage.last_named(Layout(str(tmp_path))) == ({}, 0.0)
