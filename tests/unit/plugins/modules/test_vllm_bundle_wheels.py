# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle_wheels


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_bundle_wheels.main()
    return json.loads(capsys.readouterr().out)


def test_pip_is_asked_for_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package that needs no index: a wheel in a directory.
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    args = {
        "path": str(tmp_path / "wheels"),
        "requirements": ["tiny==1.0"],
        "pip_args": ["--no-index", f"--find-links={tmp_path}"],
    }
    assert call(capsys, **args, _ansible_check_mode=True)["changed"]
    done = call(capsys, **args)
    assert done["files"] == ["requirements.txt", "tiny-1.0-py3-none-any.whl"]
    assert not call(capsys, **args)["changed"]
    result = call(capsys, **{**args, "requirements": ["tiny==2.0"]})
    assert (result["failed"], result["code"]) == (True, "wheels.pip")
    result = call(capsys, **{**args, "python": str(tmp_path / "no-python")})
    assert (result["failed"], result["code"]) == (True, "wheels.pip")
