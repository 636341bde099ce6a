# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wheels, the collection's tarball, and options: what a bundle holds beside models and images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle_collection, _bundle_module, _bundle_wheels
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

ROOT = Path(__file__).resolve().parents[4]


class Pip:
    """Puts a file into ``--dest`` for each line of the requirements."""

    def __init__(self, rc: int = 0) -> None:
        self.rc = rc
        self.calls: list[list[str]] = []

    def __call__(self, argv: t.Sequence[str], timeout: float, environment: t.Mapping[str, str]) -> CommandResult:
        self.calls.append(list(argv))
        dest = Path(argv[argv.index("--dest") + 1])
        for line in Path(argv[argv.index("--requirement") + 1]).read_text().splitlines():
            (dest / f"{line.split()[0].replace('==', '-')}-py3-none-any.whl").write_text(line)
        return CommandResult(self.rc, "", "ERROR: No matching distribution found for x" if self.rc else "")


def wheels(path: Path, pip: Pip, *requirements: str, **changes: t.Any) -> dict[str, t.Any]:
    options = _bundle_wheels.Options(str(path), requirements or ("x==1",), "python3", **changes)
    return _bundle_wheels.present(options, pip)


def test_wheels_are_downloaded_once(tmp_path: Path) -> None:
    path, pip = tmp_path / "wheels/controller", Pip()
    assert wheels(path, pip, check_mode=True)["changed"]
    assert not path.parent.exists()
    done = wheels(path, pip)
    assert (done["changed"], done["files"]) == (True, ["requirements.txt", "x-1-py3-none-any.whl"])
    again = wheels(path, pip)
    assert (again["changed"], again["files"], len(pip.calls)) == (False, done["files"], 1)
    assert sorted(item.name for item in path.parent.iterdir()) == ["controller"]
    (path / "x-1-py3-none-any.whl").write_text("other")
    assert wheels(path, pip, check_mode=True)["changed"]
    assert wheels(path, pip, "y==2", "z==3")["files"] == [
        "requirements-1.txt", "requirements-2.txt", "y-2-py3-none-any.whl", "z-3-py3-none-any.whl",
    ]  # fmt: skip


def test_a_lock_is_held_to_its_hashes(tmp_path: Path) -> None:
    pip = Pip()
    wheels(tmp_path / "a", pip, "x==1 --hash=sha256:00", "y==1")
    assert "--require-hashes" in pip.calls[0]
    assert "--no-deps" in pip.calls[0]
    assert "--require-hashes" not in pip.calls[1]


def test_a_download_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    wheels(tmp_path / "a", Pip())
    with pytest.raises(FleetError) as caught:
        wheels(tmp_path / "a", Pip(1), "y==2")
    assert (caught.value.code, "No matching distribution" in caught.value.seen) == ("wheels.pip", True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a"]
    assert not wheels(tmp_path / "a", Pip())["changed"]
    with pytest.raises(FleetError) as caught:
        wheels(tmp_path / "a", Pip(), " ")
    assert caught.value.code == "wheels.no_requirements"


# --- the collection


def checkout(directory: Path) -> Path:
    """A copy of this one, with what a checkout has lying around."""
    for name in ("galaxy.yml", "README.md", "LICENSE"):
        directory.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    for name in ("meta", "plugins/filter", "playbooks"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "inventory/mine").mkdir(parents=True)
    (directory / "inventory/mine/hosts.yml").write_text("secret")
    (directory / ".venv").mkdir()
    (directory / ".venv/link").symlink_to(directory)
    return directory


def test_a_checkout_becomes_a_tarball_that_installs_and_follows_from_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ansible-test shows modules no more of ansible-core than a managed host has; this runs on a controller.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    source = checkout(tmp_path / "checkout")
    out = str(tmp_path / "out")
    assert _bundle_collection.present(str(source), out, True)["changed"]
    assert not Path(out).exists()
    done = _bundle_collection.present(str(source), out, False)
    assert done["sha256"] == hashlib.sha256(Path(done["path"]).read_bytes()).hexdigest()
    os.utime(source / "README.md", (1, 1))
    assert not _bundle_collection.present(str(source), out, False)["changed"]
    with tarfile.open(done["path"]) as archive:
        names = archive.getnames()
    assert names[:2] == ["MANIFEST.json", "FILES.json"]
    assert "playbooks/deploy.yml" in names
    assert not [name for name in names if "mine" in name or "venv" in name]
    # The very same comes from what is installed from it.
    galaxy = [sys.executable, "-m", "ansible.cli.galaxy", "collection", "install", "--offline", done["path"]]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    subprocess.run(
        [*galaxy, "--force", "-p", tmp_path / "installed"],
        check=True, capture_output=True, cwd=tmp_path, env={**clean, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    installed = tmp_path / "installed/ansible_collections/gpufleet/vllm"
    assert not _bundle_collection.present(str(installed), out, False)["changed"]
    (installed / "README.md").write_text("changed")
    with pytest.raises(FleetError) as caught:
        _bundle_collection.present(str(installed), out, False)
    assert caught.value.code == "collection.changed"
    listing = json.loads((installed / "MANIFEST.json").read_text())
    listing["file_manifest_file"]["name"] = "../FILES.json"
    (installed / "MANIFEST.json").write_text(json.dumps(listing))
    with pytest.raises((FleetError, FileNotFoundError)):
        _bundle_collection.present(str(installed), out, False)


def test_what_is_no_collection_is_said(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        _bundle_collection.present(str(tmp_path), str(tmp_path / "out"), False)
    assert caught.value.code == "collection.not_found"
    (tmp_path / "galaxy.yml").write_text("namespace: 7\n")
    with pytest.raises(FleetError) as caught:
        _bundle_collection.present(str(tmp_path), str(tmp_path / "out"), False)
    assert caught.value.code == "collection.build"


# --- options


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4000m", 4000 << 20), ("4g", 4 << 30), ("1048576", 1 << 20), ("1 GB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert _bundle_module.split_bytes(text) == size


PARAMS: dict[str, t.Any] = {
    "path": "/nonexistent/bundle",
    "format": "directory",
    "split_size": "0",
    "models": [],
    "images": [],
    "images_path": None,
    "wheels": [],
    "collection": None,
    "files": [],
    "signing_key": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"split_size": "four"},
        {"split_size": "4g"},
        {"models": [{"model": "a/b"}]},
        {"wheels": [{"path": "/x"}]},
        {"images": [{"image": "a"}]},
        {"images": [{"image": "a", "digest": "sha256:1", "repository": "a", "tag": "1"}]},
    ],
)
def test_options_that_make_no_sense(changes: dict[str, t.Any]) -> None:
    with pytest.raises(FleetError) as caught:
        _bundle_module.run_bundle({**PARAMS, **changes}, True)
    assert caught.value.code == "bundle.bad_option"
