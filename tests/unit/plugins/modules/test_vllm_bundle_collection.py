# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle_collection


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_bundle_collection.main()
    return json.loads(capsys.readouterr().out)


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, source=str(tmp_path), path=str(tmp_path / "out"))
    assert (result["failed"], result["code"]) == (True, "collection.not_found")
    assert not (tmp_path / "out").exists()


def test_an_installed_collection_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "installed"
    source.mkdir()
    (source / "README.md").write_text("read me")
    digest = hashlib.sha256(b"read me").hexdigest()
    files = json.dumps({"files": [{"name": "README.md", "ftype": "file", "chksum_sha256": digest}]})
    (source / "FILES.json").write_text(files)
    about = {
        "collection_info": {"namespace": "acme", "name": "tools", "version": "1.0.0"},
        "file_manifest_file": {"name": "FILES.json", "chksum_sha256": hashlib.sha256(files.encode()).hexdigest()},
    }
    (source / "MANIFEST.json").write_text(json.dumps(about))
    done = call(capsys, source=str(source), path=str(tmp_path / "out"))
    assert (done["changed"], Path(done["path"]).name) == (True, "acme-tools-1.0.0.tar.gz")
    assert not call(capsys, source=str(source), path=str(tmp_path / "out"))["changed"]
