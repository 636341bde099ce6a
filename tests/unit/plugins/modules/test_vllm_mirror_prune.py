# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_mirror_prune

ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def root(tmp_path):
    """A mirror with two models, of which one has a commit that no name means."""
    for model, commits in (("acme/old", [ONE]), ("acme/tiny", [ONE, TWO])):
        home = tmp_path / "mirror/models" / model
        for commit in commits:
            (home / "commits" / commit / "tree").mkdir(parents=True)
            (home / "commits" / commit / "tree/file").write_text("12345")
        (home / "refs").mkdir()
        (home / "refs/master").symlink_to(f"../commits/{commits[-1]}")
    return tmp_path / "mirror"


@pytest.fixture
def call(root, capsys):
    def run(**args):
        with patch_module_args({"root": str(root), **args}), pytest.raises(SystemExit):
            vllm_mirror_prune.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_what_is_not_kept_goes(call, root):
    keep = [{"model": "acme/tiny"}]
    check = call(keep=keep, _ansible_check_mode=True, _ansible_diff=True)
    assert (root / "models/acme/old").is_dir()
    real = call(keep=keep, _ansible_diff=True)
    assert {**check, "invocation": 0} == {**real, "invocation": 0}
    assert (real["models_removed"], real["artifacts_removed"], real["bytes_freed"]) == (["acme/old"], [], 10)
    assert real["revisions_removed"] == ["acme/old@master"]
    assert real["commits_removed"] == [f"acme/old@{ONE}", f"acme/tiny@{ONE}"]
    assert f"acme/tiny {TWO}" in real["diff"]["after"]
    assert f"acme/tiny {ONE}" not in real["diff"]["after"]
    assert not call(keep=keep)["changed"]
    assert [item.name for item in (root / "models/acme").iterdir()] == ["tiny"]


def test_a_commit_that_is_named_stays(call, root):
    assert not call(keep=[{"model": "acme/old"}, {"model": "acme/tiny", "commit": ONE}])["changed"]


def test_an_empty_list_removes_everything(call, root):
    assert call(keep=[])["models_removed"] == ["acme/old", "acme/tiny"]
    assert list(root.iterdir()) == []


def test_a_name_that_leads_elsewhere_is_refused(call, root):
    assert call(keep=[{"model": "../x"}])["code"] == "mirror.bad_model"
    assert call(keep=[{"model": "acme/old", "revision": "../x"}])["code"] == "mirror.bad_revision"
    assert (root / "models/acme/old").is_dir()
