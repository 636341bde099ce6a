# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What test__artifact.py does not show of a removal: a look alone changes nothing, whatever is there."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Request
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_remove import Absence


def absence(path, check_mode):
    return Absence(Request("acme/tiny", "master", str(path), "https://hub.example.com", check_mode=check_mode))


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_directory_without_a_manifest_is_left_alone(tmp_path, check_mode):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    outcome = absence(path, check_mode).run()
    assert not outcome.changed
    assert "was not made by this module" in outcome.warnings[0]
    assert (path / "config.json").read_text() == "{}"


def test_check_mode_foretells_and_removes_nothing(tmp_path):
    left = tmp_path / ".model.gpufleet/parts"
    left.mkdir(parents=True, mode=0o700)
    (tmp_path / ".model.gpufleet").chmod(0o700)
    (left / ("a" * 64)).write_text("x")
    assert absence(tmp_path / "model", True).run().changed
    assert (left / ("a" * 64)).exists()
    assert absence(tmp_path / "model", False).run().changed
    assert not (tmp_path / ".model.gpufleet").exists()
