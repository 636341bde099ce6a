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
from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle_wheels
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-1.0-py3-none-any.whl", "wheels"]
    assert not call(capsys, **args)["changed"]
    result = call(capsys, **{**args, "requirements": ["tiny==2.0"]})
    assert (result["failed"], result["code"]) == (True, "wheels.pip")
    result = call(capsys, **{**args, "python": str(tmp_path / "no-python")})
    assert (result["failed"], result["code"]) == (True, "wheels.pip")


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], check_mode: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    args = {"path": str(home), "requirements": ["tiny==1.0"], "pip_args": ["--no-index"]}
    result = call(capsys, **args, _ansible_check_mode=check_mode)
    assert (result["failed"], result["code"]) == (True, "wheels.path_in_use")
    assert "'thesis.txt'" in result["msg"]
    result = call(capsys, **{**args, "path": str(home / "thesis.txt")}, _ansible_check_mode=check_mode)
    assert result["code"] == "wheels.path_in_use"
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def asked(path: Path, requirement: str = "tiny==1.0", during: t.Callable[[], None] = lambda: None) -> list[str]:
    """Have the packages with a pip that brings one file."""

    def pip(argv: t.Sequence[str], _timeout: float, _environment: t.Mapping[str, str]) -> CommandResult:
        (Path(argv[argv.index("--dest") + 1]) / "tiny.whl").write_text("")
        during()
        return CommandResult(0, "", "")

    options = _bundle_wheels.Options(str(path), [requirement], "python3")
    return t.cast("list[str]", _bundle_wheels.present(options, pip)["files"])


def test_neighbours_stay_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    for name in ("wheels.new", "wheels.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "wheels.lock").write_text("mine")
    for requirement in ("tiny==1.0", "tiny==2.0"):
        for what in ("new", "old"):
            (tmp_path / f".wheels.gpufleet-{what}").mkdir()
            (tmp_path / f".wheels.gpufleet-{what}/half.whl").write_text("half")
        assert asked(tmp_path / "wheels", requirement) == ["requirements.txt", "tiny.whl"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["wheels", "wheels.lock", "wheels.new", "wheels.old"]
    assert (tmp_path / "wheels/requirements.txt").read_text() == "tiny==2.0\n"


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "wheels"

    def put() -> None:
        path.mkdir()
        (path / "mine.txt").write_text("mine")

    with pytest.raises(FleetError) as caught:
        asked(path, during=put)
    assert caught.value.code == "wheels.path_in_use"
    assert [item.name for item in path.iterdir()] == ["mine.txt"]
    assert [item.name for item in tmp_path.iterdir()] == ["wheels"]


def test_a_run_that_was_killed_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "wheels"
    asked(path)
    path.rename(tmp_path / ".wheels.gpufleet-old")

    def fail() -> None:
        raise FleetError("wheels.pip", "no index")

    with pytest.raises(FleetError):
        asked(path, "tiny==2.0", fail)
    assert (path / "requirements.txt").read_text() == "tiny==1.0\n"
