# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import shutil
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _prune, _prune_marks
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, FileStat, Manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune import Decision, Options, Prune
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_marks import Published, mark, same
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_use import Mount

TOKEN = "9f3c0a51d2e47b86"
MANIFEST = Manifest(
    model="acme/tiny", revision="master", commit="c" * 40, endpoint="https://hub.example.com", include=(), exclude=(),
    left_out=(), entries=(Entry("config.json", 2, "a" * 64),), stats={"config.json": FileStat(2, 1)}, published=TOKEN,
)  # fmt: skip


def put(path: Path, token: str = TOKEN) -> Path:
    (path / ".gpufleet").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / ".gpufleet/manifest.json").write_text(_manifest.dump(replace(MANIFEST, published=token)))
    return path


def on(kind: str) -> list[Mount]:
    return [Mount("8:1", "/", "/", "ext4"), Mount("0:50", "/", "/mnt", kind)]


def test_the_inode_is_in_the_mark_where_it_is_the_same_for_all() -> None:
    found = Published("/mnt/x", MANIFEST, 7)
    assert mark(found, on("nfs4")) == mark(found, on("nfs")) == f"{TOKEN}@nfs:7"
    assert mark(found, on("xfs")) == f"{TOKEN}@xfs:7"
    assert mark(found, on("fuse.sshfs")) == mark(found, on("fuse")) == mark(found, on("cifs")) == TOKEN
    assert mark(found, []) == TOKEN
    assert mark(replace(found, manifest=replace(MANIFEST, published="")), []) == MANIFEST.digest


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a@nfs:7", "a@nfs:7", True),
        ("a@nfs:7", "a@nfs:8", False),  # a copy
        ("a@nfs:7", "a@xfs:8", True),  # the server itself may be a host of the run
        ("a@nfs:7", "a", True),
        ("a", "a", True),
        ("a", "b", False),
        ("a@nfs:7", "b@nfs:7", False),
        ("", "", False),
    ],
)
def test_in_doubt_it_is_the_same(one: str, other: str, expected: bool) -> None:
    for pair in ((one, other), (other, one)):
        assert same(*pair) == expected


def test_what_a_plan_names_is_found_wherever_it_stands(tmp_path: Path) -> None:
    one, two, three = put(tmp_path / "one"), put(tmp_path / "with space"), put(tmp_path / "cache/three")
    (tmp_path / "link").symlink_to(one)
    texts = [
        f"--speculative-config={{'model': '{three}'}}", f"{two}/config.json", f"{tmp_path}/link", f"{tmp_path}/none/x",
        "/", "no path", f"/nul{chr(0)}",
    ]  # fmt: skip
    assert [found.path for found in _prune_marks.named_in(texts)] == sorted(map(str, (one, two, three)))


class Fleet:
    """Two hosts that mount one export at different paths, which a link makes here."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        self.export, self.path = tmp_path / "export", tmp_path
        self.export.mkdir()
        table = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / {self.export} rw - {kind} nas:/models rw\n"
        monkeypatch.setattr(_prune, "_mount_table", lambda _proc: table)

    def host(self, name: str, needs: str = "", roots: t.Sequence[str] = (), **changes: t.Any) -> Prune:
        root = self.path / name
        root.mkdir(exist_ok=True)
        document = {"services": [{"path": needs}]} if needs else {}
        (root / "record.json").write_text(json.dumps(document))
        options = Options(root=str(root), roots=tuple(roots), age=0.0, without_record=True, **changes)
        return Prune(options)


@pytest.fixture(params=["nfs4", "fuse.juicefs"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(tmp_path, monkeypatch, request.param)


def by_name(decisions: t.Sequence[Decision]) -> dict[str, str]:
    return {Path(item.candidate.path).name: item.reason for item in decisions}


@pytest.mark.parametrize("seen", [True, False])
def test_what_another_host_needs_under_another_path_stays(fleet: Fleet, seen: bool) -> None:
    put(fleet.export / "served")
    put(fleet.export / "unused", "another token")
    # The other host has it elsewhere; it is not even below what is looked at there, where seen is false.
    (fleet.path / "srv").symlink_to(fleet.export)
    other = fleet.host("other", f"{fleet.path}/srv/served", [f"{fleet.path}/srv"] if seen else [])
    other.run(True)
    needed = other.needed
    assert len(needed["published"]) == 1
    assert needed["published"][0].startswith(TOKEN)
    # The paths are of the other host, so they protect nothing here.
    here = fleet.host("here", "", [str(fleet.export)], shared=True, keep_published=tuple(needed["published"]))
    foretold = here.run(True)
    assert by_name(foretold) == {"served": "named", "unused": "unused"}
    assert [item.why for item in foretold if item.reason == "named"] == [
        "another host needs it, whatever path it has there"
    ]
    here.run(False)
    assert sorted(path.name for path in fleet.export.iterdir()) == ["served"]


def test_a_copy_goes_where_the_file_system_tells_it_apart(fleet: Fleet) -> None:
    shutil.copytree(put(fleet.export / "served"), fleet.export / "copy")
    other = fleet.host("other", str(fleet.export / "served"))
    other.run(True)
    here = fleet.host("here", "", [str(fleet.export)], shared=True, keep_published=tuple(other.needed["published"]))
    numbered = "@" in other.needed["published"][0]
    assert by_name(here.run(True)) == {"served": "named", "copy": "unused" if numbered else "named"}


def test_what_is_only_kept_as_it_may_be_another_hosts_is_nobodys_need(fleet: Fleet) -> None:
    put(fleet.export / "unused")
    look = fleet.host("here", "", [str(fleet.export)])
    assert by_name(look.run(True)) == {"unused": "shared"}
    assert look.needed == {"paths": [], "published": []}
