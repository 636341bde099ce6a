# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle_images


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_bundle_images.main()
    return json.loads(capsys.readouterr().out)


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(capsys, images=["UPPER"], path=str(tmp_path))
    assert (result["failed"], result["code"]) == (True, "image.bad_name")
    result = call(capsys, images=["a:1"], path=str(tmp_path), state="pushed")
    assert result["msg"] == "state is pushed but all of the following are missing: registry"
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call(capsys, images=["a:1"], path=str(tmp_path / "images"))
    assert (result["failed"], result["code"]) == (True, "image.no_skopeo")


def test_no_images_are_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, images=[], path=str(tmp_path / "images"))
    assert (result["changed"], result["images"]) == (False, [])
    (tmp_path / "images/sha256/old").write_text("an older image's")
    call(capsys, images=[], path=str(tmp_path / "images"))
    assert not list((tmp_path / "images/sha256").iterdir()), "it holds the listed images alone"


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_the_blobs_of_somebody_else_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], check_mode: bool, exclusive: bool
) -> None:
    layout = tmp_path / "blobs"
    (layout / "sha256").mkdir(parents=True)
    (layout / "sha256/0123").write_text("a layer of another tool")
    result = call(capsys, images=[], path=str(layout), exclusive=exclusive, _ansible_check_mode=check_mode)
    assert (result["failed"], result["code"]) == (True, "image.path_in_use")
    assert [path.name for path in layout.rglob("*")] == ["sha256", "0123"]


def test_a_directory_that_a_killed_run_made_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    assert not call(capsys, images=[], path=str(tmp_path / "images")).get("failed")
    (tmp_path / "images/.skopeo-x").mkdir()
    assert not call(capsys, images=[], path=str(tmp_path / "images")).get("failed")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [".gpufleet-images", ".lock", "sha256"]
