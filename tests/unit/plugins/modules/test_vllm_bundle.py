# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_bundle.main()
    return json.loads(capsys.readouterr().out)


def test_a_bundle_of_a_file_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "driver.run").write_bytes(b"a driver")
    args = {
        "path": str(tmp_path / "out/fleet"),
        "format": "tar",
        "split_size": "1m",
        "files": [str(tmp_path / "driver.run")],
    }
    assert call(capsys, **args, _ansible_check_mode=True)["changed"]
    assert not (tmp_path / "out").exists()
    done = call(capsys, **args)
    assert done["parts"] == [str(tmp_path / "out/fleet.tar.001")]
    assert (done["changed"], done["signed"], done["bytes_total"]) == (True, False, 8)
    assert not call(capsys, **args)["changed"]


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, path=str(tmp_path / "out"))
    assert (result["failed"], result["code"]) == (True, "bundle.bad_content")
    result = call(capsys, path=str(tmp_path / "out"), files=[str(tmp_path / "none")])
    assert (result["failed"], result["code"]) == (True, "host.os_error")
    result = call(capsys, path=str(tmp_path / "out"), split_size="4g", files=[str(tmp_path)])
    assert (result["failed"], result["code"]) == (True, "bundle.bad_option")
