# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, FileStat, Manifest
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_mirror_model

MODEL, COMMIT = "acme/tiny", "1" * 40


@pytest.fixture
def path(tmp_path):
    home = tmp_path / "tiny"
    (home / ".gpufleet").mkdir(parents=True)
    (home / "config.json").write_bytes(b"{}")
    entry = Entry("config.json", 2, hashlib.sha256(b"{}").hexdigest())
    stats = {"config.json": FileStat(2, (home / "config.json").stat().st_mtime_ns)}
    manifest = Manifest(
        model=MODEL,
        revision="master",
        commit=COMMIT,
        endpoint="https://hub",
        include=(),
        exclude=(),
        left_out=(),
        entries=(entry,),
        stats=stats,
        published="x",
    )
    (home / ".gpufleet/manifest.json").write_text(_manifest.dump(manifest))
    return home


@pytest.fixture
def call(tmp_path, capsys):
    def run(**args):
        options = {"root": str(tmp_path / "mirror"), "model": MODEL, **args}
        with patch_module_args(options), pytest.raises(SystemExit):
            vllm_mirror_model.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_present_and_absent_with_what_check_mode_predicts(call, path, tmp_path):
    both = {"_ansible_check_mode": True, "_ansible_diff": True}
    check = call(path=str(path), commit=COMMIT, **both)
    assert not (tmp_path / "mirror").exists()
    real = call(path=str(path), commit=COMMIT, _ansible_diff=True)
    assert {**check, "invocation": 0} == {**real, "invocation": 0}
    assert (real["changed"], real["commit"], real["files"], real["bytes_total"]) == (True, COMMIT, 1, 2)
    assert (real["bytes_copied"], real["repaired"]) == (0, [])
    assert real["diff"]["after"] == f"master -> {COMMIT}\n{COMMIT}: 1 files, 2 bytes\n"
    assert not call(path=str(path))["changed"]
    check = call(state="absent", **both)
    real = call(state="absent", _ansible_diff=True)
    assert {**check, "invocation": 0} == {**real, "invocation": 0}
    assert (real["models_removed"], real["revisions_removed"]) == ([MODEL], [f"{MODEL}@master"])
    assert real["commits_removed"] == [f"{MODEL}@{COMMIT}"]
    assert real["diff"]["after"] == ""
    assert not call(state="absent")["changed"]


def test_check_mode_before_the_artifact_is_fetched(call, path, tmp_path):
    none = str(tmp_path / "none")
    check = {"_ansible_check_mode": True, "_ansible_diff": True}
    predicted = call(path=none, commit=COMMIT, revision="v1", **check)
    assert (predicted["changed"], predicted["files"]) == (True, None)
    assert f"v1 -> {COMMIT}" in predicted["diff"]["after"]
    call(path=str(path), revision="v1")
    assert not call(path=none, commit=COMMIT, revision="v1", **check)["changed"]
    assert call(path=none, commit="2" * 40, revision="v1", **check)["changed"]
    assert call(path=none, **check)["code"] == "mirror.no_artifact"


def test_what_is_refused(call, path):
    assert "path" in call()["msg"]
    assert call(path=str(path), model="nope")["code"] == "mirror.bad_model"
    assert call(path=str(path), revision="a/b")["code"] == "mirror.bad_revision"
    assert call(path=str(path), model="acme/other")["code"] == "mirror.other_model"
    assert call(path=str(path), commit="2" * 40)["code"] == "mirror.no_artifact"
    (path / ".gpufleet/manifest.json").write_text("no JSON")
    assert call(path=str(path))["code"] == "mirror.bad_artifact"
    assert call(path=str(path / "config.json"))["code"] == "mirror.bad_artifact"
