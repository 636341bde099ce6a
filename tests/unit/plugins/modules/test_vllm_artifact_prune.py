# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import time
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _prune
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_artifact_prune


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_artifact_prune.main()
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def host(tmp_path: Path) -> dict[str, t.Any]:
    """A host that needs one model, and an old leftover beside it."""
    parts = tmp_path / "models" / ".gone.gpufleet" / "parts"
    parts.mkdir(parents=True)
    parts.parent.chmod(0o700)
    part = parts / ("a" * 64)
    part.write_bytes(os.urandom(8192))
    for path in (part, parts, parts.parent):
        os.utime(path, (0, time.time() - 40 * 86400))
    (tmp_path / "record.json").write_text(json.dumps({"artifacts": [{"path": str(tmp_path / "models/needed")}]}))
    return {"root": str(tmp_path), "roots": [str(tmp_path / "models")]}


def test_foretold_done_and_nothing_left(
    host: dict[str, t.Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foretold = call(capsys, **host, _ansible_check_mode=True, _ansible_diff=True)
    assert foretold["changed"]
    assert (tmp_path / "models" / ".gone.gpufleet").exists()
    done = call(capsys, **host, _ansible_diff=True)
    assert {key: done[key] for key in done if key != "invocation"} == {
        key: foretold[key] for key in foretold if key != "invocation"
    }
    assert done["bytes_freed"] >= 8192
    assert done["diff"] == {"before": f"{tmp_path}/models/.gone.gpufleet  leftover\n", "after": ""}
    assert list((tmp_path / "models").iterdir()) == []
    again = call(capsys, **host)
    assert (again["changed"], again["artifacts"], again["bytes_freed"]) == (False, [], 0)


def test_options_that_are_wrong(host: dict[str, t.Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, **{**host, "age": "soon"})["code"] == "prune.bad_age"
    assert call(capsys, **{**host, "roots": ["/"]})["code"] == "prune.bad_root"


def test_a_failed_removal_fails_and_tells_the_rest(
    host: dict[str, t.Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: t.Any) -> t.Any:
        raise PermissionError(1, "Operation not permitted", "gone")

    monkeypatch.setattr(_prune._staging, "acquire", refused)
    result = call(capsys, **host)
    assert (result["failed"], result["code"], result["changed"]) == (True, "prune.not_removed", False)
    assert result["artifacts"][0]["reason"] == "failed"
    assert "gone: Operation not permitted" in result["msg"]


def test_documentation_is_the_spec() -> None:
    options = yaml.safe_load(vllm_artifact_prune.DOCUMENTATION)["options"]
    assert set(options) == set(_prune.argument_spec())
