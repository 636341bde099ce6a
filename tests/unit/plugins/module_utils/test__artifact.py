# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import types

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _artifact,
    _artifact_hash,
    _artifact_publish,
    _manifest,
    _safefs,
    _staging,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RetryPolicy, TransientError

ONE, TWO = "1" * 40, "2" * 40
FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"w" * 5000, "sub/same.txt": b"same", "sub/twin.txt": b"same"}
NEXT = {**FILES, "config.json": b'{"a": 2}', "new.txt": b"new"}
del NEXT["sub/twin.txt"]


class Stream:
    described, whole = "a test", False

    def __init__(self, data, offset, total):
        self.offset, self.total, self._data = offset, total, data

    def read(self, limit):
        data, self._data = self._data[:limit], self._data[limit:]
        return data

    def close(self):
        pass


class FakeHub:
    """Commits in memory; counts what it is asked for."""

    def __init__(self):
        self.commits = {ONE: FILES, TWO: NEXT}
        self.branches = {"master": ONE}
        self.asked, self.fault, self.on_open = [], None, None

    def resolve(self, model, revision, patient=True):
        self.asked.append("resolve")
        if self.fault == "unreachable":
            raise TransientError("hub.unreachable", "https://hub cannot be reached: refused")
        if self.fault == "refused":
            raise FleetError("hub.no_access", "https://hub refused")
        if self.fault == "no commit":
            return Resolution(revision, None, ("pinned by name only",))
        return Resolution(revision, self.branches.get(revision, revision))

    def _files(self, resolution):
        return self.commits[resolution.commit or self.branches[resolution.revision]]

    def list_rows(self, model, resolution):
        self.asked.append("list")
        return [
            {"Path": path, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for path, data in self._files(resolution).items()
        ]

    def source(self, model, resolution):
        def open_(entry, start, end):
            self.asked.append(entry.path)
            if self.on_open is not None:
                self.on_open(entry)
            data = self._files(resolution)[entry.path]
            return Stream(data[start:end], start, len(data))

        return types.SimpleNamespace(open=open_, piece=None, connections=None)


@pytest.fixture
def hub():
    return FakeHub()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home/model"


def request(path, **changes):
    fields = {
        "model": "acme/tiny",
        "revision": "master",
        "path": str(path),
        "endpoint": "https://hub.example.com",
        "lock_timeout": 0.0,
        "policy": RetryPolicy(sleep=lambda seconds: None),
    }
    return _artifact.Request(**{**fields, **changes})


def present(hub, path, verify=False, **changes):
    hub.asked.clear()
    return _artifact.present(request(path, **changes), hub, verify)


def tree(path):
    """Every file below ``path`` and its bytes, the manifest left out."""
    return {
        str(item.relative_to(path)): item.read_bytes()
        for item in sorted(path.rglob("*"))
        if item.is_file() and item.name != "manifest.json"
    }


def everything(base):
    return sorted(str(item.relative_to(base)) for item in base.rglob("*"))


def nothing_but_the_model(path):
    return os.listdir(path.parent) == [path.name] and os.listdir(path / ".gpufleet") == ["manifest.json"]


def total(files):
    return sum(len(data) for data in set(files.values()))


# --- present ---


def test_fresh(hub, path, tmp_path):
    check = present(hub, path, check_mode=True)
    assert everything(tmp_path) == []
    real = present(hub, path)
    assert (check.changed, check.bytes_fetched, check.entries, check.after) == (
        real.changed,
        real.bytes_fetched,
        real.entries,
        real.after,
    )
    assert (real.changed, real.commit, real.bytes_fetched, real.adopted) == (True, ONE, total(FILES), 0)
    assert tree(path) == FILES
    assert nothing_but_the_model(path)
    assert real.before["commit"] is None
    assert real.after["files"]["config.json"].startswith("8 bytes, sha256 ")
    modes = {stat.S_IMODE(item.stat().st_mode) for item in path.rglob("*") if item.is_file()}
    assert modes == {0o644}
    assert {stat.S_IMODE(item.stat().st_mode) for item in (path, path.parent, path / "sub")} == {0o755}


def test_a_second_run_asks_for_the_commit_alone(hub, path):
    present(hub, path)
    again = present(hub, path)
    assert (again.changed, again.bytes_fetched, hub.asked) == (False, 0, ["resolve"])
    assert again.before == again.after
    assert again.commit == ONE


def test_what_is_pinned_by_name_is_listed_each_time(hub, path):
    hub.fault = "no commit"
    assert present(hub, path).commit is None
    again = present(hub, path)
    assert (again.changed, hub.asked) == (False, ["resolve", "list"])
    assert "pinned by name only" in again.warnings[0]
    hub.branches["master"] = TWO
    assert present(hub, path).changed
    assert tree(path) == NEXT


def test_another_name_of_the_same_commit_needs_no_listing(hub, path):
    present(hub, path)
    hub.branches["v1"] = ONE
    again = present(hub, path, revision="v1")
    assert (again.changed, again.bytes_fetched, hub.asked) == (True, 0, ["resolve"])
    assert not present(hub, path, revision="v1").changed


def test_a_new_revision_fetches_the_difference(hub, path):
    present(hub, path)
    (path / "notes.txt").write_text("mine")
    inode = (path / "model.safetensors").stat().st_ino
    hub.branches["master"] = TWO
    check = present(hub, path, check_mode=True)
    real = present(hub, path)
    expected = len(NEXT["config.json"]) + len(NEXT["new.txt"])
    assert check.bytes_fetched == real.bytes_fetched == expected
    assert (check.before, check.after) == (real.before, real.after)
    assert tree(path) == {**NEXT, "notes.txt": b"mine"}
    assert (path / "model.safetensors").stat().st_ino == inode, "unchanged files are linked, not copied"
    assert set(real.before["files"]) - set(real.after["files"]) == {"sub/twin.txt"}
    assert real.foreign == ("notes.txt",)
    assert nothing_but_the_model(path)


def test_other_patterns_are_another_selection(hub, path):
    assert set(tree(path)) == set()
    present(hub, path, include=("*.json", "sub/*"), exclude=("*twin*",))
    assert set(tree(path)) == {"config.json", "sub/same.txt"}
    assert present(hub, path, include=("*.json",)).bytes_fetched == 0
    assert set(tree(path)) == {"config.json"}
    assert not (path / "sub").exists()


def test_a_touched_file_is_hashed_again_and_kept(hub, path):
    present(hub, path)
    os.utime(path / "model.safetensors", ns=(1, 1))
    before = (path / ".gpufleet/manifest.json").read_text()
    check = present(hub, path, check_mode=True)
    assert (path / ".gpufleet/manifest.json").read_text() == before
    real = present(hub, path)
    assert (check.changed, real.changed, real.bytes_fetched) == (False, False, 0)
    assert (path / ".gpufleet/manifest.json").read_text() != before
    assert (path / "model.safetensors").stat().st_mtime_ns == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"short"),
        lambda file: file.write_bytes(b"x" * 5000),
        lambda file: (file.unlink(), os.symlink("/etc/hostname", file)),
    ],
    ids=["deleted", "truncated", "edited", "replaced by a link"],
)
def test_a_damaged_file_is_fetched_anew(hub, path, damage):
    present(hub, path)
    damage(path / "model.safetensors")
    real = present(hub, path)
    assert (real.changed, real.bytes_fetched, hub.asked) == (True, 5000, ["resolve", "model.safetensors"])
    assert tree(path) == FILES
    assert real.before["files"].get("model.safetensors") != real.after["files"]["model.safetensors"]


def test_silent_damage_is_found_by_verified(hub, path):
    present(hub, path)
    file = path / "model.safetensors"
    times = file.stat()
    file.write_bytes(b"x" * 5000)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not present(hub, path).changed
    check = present(hub, path, verify=True, check_mode=True)
    real = present(hub, path, verify=True)
    assert (check.changed, check.bytes_fetched) == (real.changed, real.bytes_fetched) == (True, 5000)
    assert tree(path) == FILES
    assert not present(hub, path, verify=True).changed


def test_a_directory_of_another_tool_is_adopted(hub, path):
    for name, data in {**FILES, "model.safetensors": b"bad" * 1000, "model.safetensors.incomplete": b"w"}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "config.json").chmod(0o600)
    check = present(hub, path, check_mode=True)
    real = present(hub, path)
    assert (check.adopted, check.bytes_fetched) == (real.adopted, real.bytes_fetched) == (3, 5000)
    assert tree(path) == {**FILES, "model.safetensors.incomplete": b"w"}
    assert (path / "config.json").stat().st_mode & 0o777 == 0o644
    assert not present(hub, path).changed


def test_a_complete_directory_is_adopted_in_place(hub, path):
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    inode = path.stat().st_ino
    real = present(hub, path)
    assert (real.changed, real.adopted, real.bytes_fetched) == (True, 4, 0)
    assert path.stat().st_ino == inode
    assert nothing_but_the_model(path)


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"kind": "gpufleet.vllm.artifact", "format": 99}'])
def test_a_damaged_manifest_counts_as_none(hub, path, text):
    present(hub, path)
    (path / ".gpufleet/manifest.json").write_text(text)
    real = present(hub, path)
    assert (real.adopted, real.bytes_fetched) == (4, 0)
    assert "damaged" in real.warnings[0]
    assert not present(hub, path).changed


def test_the_directory_keeps_its_mode(hub, path):
    path.mkdir(parents=True)
    path.chmod(0o750)
    present(hub, path)
    assert path.stat().st_mode & 0o777 == 0o750


def test_a_directory_for_another_model_is_taken_over(hub, path):
    present(hub, path)
    hub.commits[ONE] = {"other.safetensors": b"other"}
    real = present(hub, path, model="acme/other")
    assert tree(path) == {"other.safetensors": b"other"}
    assert (real.before["model"], real.after["model"]) == ("acme/tiny", "acme/other")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": b"1"}, {"a/b": b"2"}),
        ({"a/b": b"1"}, {"a": b"2"}),
        ({"a/b/c": b"1", "x": b"y"}, {"a/b": b"1", "x": b"y"}),
    ],
    ids=["file to directory", "directory to file", "deeper"],
)
@pytest.mark.parametrize("swap", [True, False], ids=["swapped", "one by one"])
def test_files_and_directories_may_trade_places_between_revisions(hub, path, monkeypatch, old, new, swap):
    if not swap:
        monkeypatch.setattr(_artifact_publish.Publication, "_must_go_one_by_one", lambda self: True)
    hub.commits = {ONE: old, TWO: new}
    present(hub, path)
    hub.branches["master"] = TWO
    present(hub, path)
    assert tree(path) == new


# --- what is in the way, and what others planted ---


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo"])
def test_what_stands_where_a_directory_has_to_be(hub, path, tmp_path, kind):
    (tmp_path / "outside").mkdir()
    path.mkdir(parents=True)
    if kind == "symlink":
        os.symlink(tmp_path / "outside", path / "sub")
    elif kind == "file":
        (path / "sub").write_text("x")
    else:
        os.mkfifo(path / "sub")
    before = everything(tmp_path)
    for check_mode in (True, False):
        with pytest.raises(FleetError, match="'sub'") as caught:
            present(hub, path, check_mode=check_mode)
        assert caught.value.code == "path.in_the_way"
    assert everything(tmp_path) == before


def test_a_link_in_a_files_place_is_replaced_and_its_target_untouched(hub, path, tmp_path):
    (tmp_path / "victim").write_text("precious")
    path.mkdir(parents=True)
    os.symlink(tmp_path / "victim", path / "config.json")
    present(hub, path)
    assert (tmp_path / "victim").read_text() == "precious"
    assert tree(path) == FILES


def test_foreign_things_of_every_kind_survive_a_new_revision(hub, path):
    present(hub, path)
    os.symlink("/nowhere", path / "link")
    os.mkfifo(path / "sub/pipe")
    (path / "empty").mkdir()
    (path / "sub/dir").mkdir(mode=0o700)
    (path / "sub/dir/file").write_text("x")
    hub.branches["master"] = TWO
    real = present(hub, path)
    assert real.foreign == ("empty", "link", "sub/dir/file", "sub/pipe")
    assert os.readlink(path / "link") == "/nowhere"
    assert stat.S_ISFIFO((path / "sub/pipe").stat().st_mode)
    assert (path / "sub/dir").stat().st_mode & 0o777 == 0o700
    assert (path / "empty").is_dir()


def test_a_hostile_listing_writes_nothing(hub, path, tmp_path):
    hub.commits[ONE] = {**FILES, "../../evil": b"x"}
    with pytest.raises(FleetError, match="refused"):
        present(hub, path)
    assert everything(tmp_path) == []


# --- failure and repair ---


def test_a_failed_fetch_leaves_what_served_and_the_parts(hub, path):
    present(hub, path)
    hub.branches["master"] = TWO
    hub.on_open = lambda entry: (
        entry.path == "new.txt" and (none for none in ()).throw(FleetError("hub.not_found", "gone"))
    )
    with pytest.raises(FleetError, match="gone"):
        present(hub, path, connections=1)
    assert tree(path) == FILES
    hub.on_open = None
    check = present(hub, path, check_mode=True)
    real = present(hub, path)
    assert check.bytes_fetched == real.bytes_fetched == len(NEXT["new.txt"])
    assert "config.json" not in hub.asked
    assert tree(path) == NEXT
    assert nothing_but_the_model(path)


def test_a_failure_before_the_first_byte_leaves_nothing(hub, path, tmp_path):
    hub.on_open = lambda entry: (none for none in ()).throw(FleetError("hub.no_access", "no"))
    with pytest.raises(FleetError):
        present(hub, path)
    assert everything(tmp_path) == []


STEPS = [
    (_artifact_publish.Publication, "_build"),
    (_artifact_publish.Publication, "_write_manifest"),
    (_artifact_publish.Publication, "_put_in_place"),
    (_safefs, "exchange"),
    (_safefs, "sync_directories"),
]


@pytest.mark.parametrize("where", STEPS, ids=lambda step: step[1])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_at_any_step_leaves_one_whole_version(hub, path, monkeypatch, where, after):
    present(hub, path)
    hub.branches["master"] = TWO
    owner, name = where
    original = getattr(owner, name)

    def interrupted(*args, **more):
        if after:
            original(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        present(hub, path)
    assert tree(path) in (FILES, NEXT)
    monkeypatch.undo()
    again = present(hub, path)
    assert again.bytes_fetched == 0, "what was fetched is not fetched again"
    assert tree(path) == NEXT
    assert nothing_but_the_model(path)


def test_what_a_kill_after_publishing_left_is_swept(hub, path):
    present(hub, path)
    staging = path.parent / ".model.gpufleet"
    (staging / "tree/old").mkdir(parents=True)
    staging.chmod(0o700)
    assert present(hub, path, check_mode=True).changed is False
    assert staging.exists()
    assert present(hub, path).changed is False
    assert nothing_but_the_model(path)


@pytest.mark.parametrize(
    "obstacle",
    [
        lambda patch: patch.setattr(_safefs, "exchange", _unsupported),
        lambda patch: patch.setattr(_safefs, "link", _os_error(errno.EPERM)),
        lambda patch: patch.setattr(_safefs, "exchange", _os_error(errno.EXDEV)),
        lambda patch: patch.setattr(_artifact_publish, "_FOREIGN_MAX", 0),
    ],
    ids=["no exchange", "no hard links", "no directory rename", "too much of other origin"],
)
def test_other_ways_to_publish(hub, path, monkeypatch, obstacle):
    present(hub, path)
    (path / "notes.txt").write_text("mine")
    hub.branches["master"] = TWO
    obstacle(monkeypatch)
    real = present(hub, path)
    assert real.changed
    assert tree(path) == {**NEXT, "notes.txt": b"mine"}
    assert nothing_but_the_model(path)
    assert not present(hub, path).changed


def _unsupported(*args):
    raise _safefs.ExchangeUnsupported


def _os_error(code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_second_rename_that_fails_brings_the_old_directory_back(hub, path, monkeypatch):
    present(hub, path)
    hub.branches["master"] = TWO
    monkeypatch.setattr(_safefs, "exchange", _unsupported)
    rename, calls = os.rename, []

    def failing(source, target, **more):
        calls.append(source)
        if source == "tree":
            raise OSError(errno.EIO, "bad disk")
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(FleetError, match="bad disk") as caught:
        present(hub, path)
    assert caught.value.code == "path.failed"
    assert tree(path) == FILES


def test_a_mount_point_is_filled_file_by_file(hub, path, monkeypatch):
    path.mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda where: True)
    inode = path.stat().st_ino
    present(hub, path)
    hub.branches["master"] = TWO
    present(hub, path)
    assert (tree(path), path.stat().st_ino) == (NEXT, inode)
    assert nothing_but_the_model(path)
    (path / "model.safetensors").unlink()
    hub.on_open = lambda entry: (none for none in ()).throw(FleetError("x", "gone"))
    with pytest.raises(FleetError):
        present(hub, path)
    assert nothing_but_the_model(path)


# --- no answer from the hub ---


def test_without_the_hub_a_complete_artifact_is_kept(hub, path):
    present(hub, path)
    hub.fault = "unreachable"
    for verify in (False, True):
        kept = present(hub, path, verify=verify)
        assert (kept.changed, kept.commit, kept.bytes_fetched) == (False, ONE, 0)
        assert ONE in kept.warnings[0]
        assert "cannot be reached" in kept.warnings[0]
        assert len(kept.entries) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        {"fault": "refused"},
        {"revision": "v2"},
        {"model": "acme/other"},
        {"include": ("*.json",)},
        {"damage": True},
    ],
    ids=str,
)
def test_without_the_hub_anything_less_is_an_error(hub, path, spoil):
    present(hub, path)
    hub.fault = spoil.pop("fault", "unreachable")
    if spoil.pop("damage", False):
        (path / "model.safetensors").write_bytes(b"x" * 5000)
    with pytest.raises(FleetError):
        present(hub, path, **spoil)


# --- space ---


def little_room(monkeypatch, **values):
    real = os.statvfs

    def statvfs(where):
        state = real(where)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return types.SimpleNamespace(**{**{name: getattr(state, name) for name in names}, **values})

    monkeypatch.setattr(os, "statvfs", statvfs)


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"f_bavail": 1024, "f_frsize": 1024}, "disk.no_space"),
        ({"f_files": 100, "f_favail": 3}, "disk.no_inodes"),
    ],
)
def test_no_room(hub, path, tmp_path, monkeypatch, check_mode, values, code):
    little_room(monkeypatch, **values)
    with pytest.raises(FleetError) as caught:
        present(hub, path, check_mode=check_mode)
    assert caught.value.code == code
    assert str(path) in caught.value.seen
    assert everything(tmp_path) == []
    assert hub.asked == ["resolve", "list"]


def test_no_inode_count_is_no_lack_of_inodes(hub, path, monkeypatch):
    little_room(monkeypatch, f_files=0, f_favail=0)
    assert present(hub, path).changed


def test_a_complete_artifact_needs_no_room(hub, path, monkeypatch):
    present(hub, path)
    little_room(monkeypatch, f_bavail=0)
    os.utime(path / "model.safetensors", ns=(1, 1))
    assert not present(hub, path).changed


def test_amounts():
    assert [_artifact.amount(value) for value in (0, 1023, 1536, 3 << 30, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 GiB",
        "5120.0 TiB",
    ]


# --- two at once ---


def test_another_run_is_waited_for_and_its_work_accepted(hub, path):
    staging = _staging.acquire(_staging.locate(str(path)), 0.0)
    with pytest.raises(FleetError) as caught:
        present(hub, path)
    assert caught.value.code == "artifact.locked"

    def other_run_ends(seconds):
        staging.release()
        _artifact.present(request(path), FakeHub())

    real = present(hub, path, lock_timeout=5.0, policy=RetryPolicy(sleep=other_run_ends))
    assert (real.changed, real.bytes_fetched) == (False, 0)
    assert hub.asked == ["resolve", "list"]


# --- absent ---


def absent(path, **changes):
    return _artifact.absent(request(path, **changes))


def test_absent_removes_all_of_it(hub, path):
    present(hub, path)
    check = absent(path, check_mode=True)
    assert tree(path) == FILES
    real = absent(path)
    assert (check.changed, check.before, check.after) == (real.changed, real.before, real.after)
    assert real.changed
    assert len(real.entries) == 4
    assert real.after["commit"] is None
    assert os.listdir(path.parent) == []
    assert not absent(path).changed


def test_absent_spares_what_is_foreign(hub, path, tmp_path):
    present(hub, path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/same.txt").write_text("precious")
    (path / "sub/notes.txt").write_text("mine")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()
    real = absent(path)
    assert (real.changed, real.foreign) == (True, ("sub/notes.txt",))
    assert everything(path) == ["model.safetensors", "sub", "sub/notes.txt"]


def test_absent_does_not_follow_links(hub, path, tmp_path):
    present(hub, path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/same.txt").write_text("precious")
    for name in ("same.txt", "twin.txt"):
        (path / "sub" / name).unlink()
    (path / "sub").rmdir()
    os.symlink(tmp_path / "outside", path / "sub")
    assert absent(path).foreign == ("sub",)
    assert (tmp_path / "outside/same.txt").read_text() == "precious"


def test_absent_leaves_alone_what_it_did_not_make(hub, path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("x")
    left = absent(path)
    assert not left.changed
    assert "left alone" in left.warnings[0]
    present(hub, path, include=("model.safetensors",))
    other = absent(path, model="acme/other")
    assert not other.changed
    assert "holds acme/tiny" in other.warnings[0]
    (path / ".gpufleet/manifest.json").write_text("nonsense")
    assert "damaged" in absent(path).warnings[0]
    assert (path / "config.json").exists()


def test_absent_removes_the_parts_of_an_interrupted_run(hub, path):
    staging = _staging.acquire(_staging.locate(str(path)), 0.0)
    part = staging.part(_manifest.Entry("x", 5, "a" * 64))
    part.write(b"x", 0)
    part.close()
    staging.release()
    assert absent(path, check_mode=True).changed
    assert absent(path).changed
    assert os.listdir(path.parent) == []
    assert not absent(path).changed


def test_absent_leaves_the_parts_of_another_model(hub, path):
    present(hub, path)
    staging = _staging.acquire(_staging.locate(str(path)), 0.0)
    part = staging.part(_manifest.Entry("x", 5, "a" * 64))
    part.write(b"x", 0)
    part.close()
    staging.release()
    assert not absent(path, model="acme/other").changed
    assert (path.parent / f".{path.name}.gpufleet/parts" / ("a" * 64)).exists()


def test_verified_fetches_anew_what_cannot_be_read(hub, path, monkeypatch):
    present(hub, path)
    inode = (path / "model.safetensors").stat().st_ino

    class BadSector(io.FileIO):
        def readinto(self, buffer):
            if os.fstat(self.fileno()).st_ino == inode:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    monkeypatch.setattr(_artifact_hash, "open", lambda handle, *args, **more: BadSector(handle), raising=False)
    monitor = Monitor()
    repaired = _artifact.present(request(path), hub, verify=True, monitor=monitor)
    assert (repaired.changed, repaired.bytes_fetched) == (True, len(FILES["model.safetensors"]))
    assert monitor.snapshot()["notes"] == [
        "model.safetensors cannot be read (Input/output error); it counts as damaged."
    ]


def test_absent_removes_what_the_official_client_and_a_killed_run_left(hub, path):
    present(hub, path)
    staging = _staging.acquire(_staging.locate(str(path)), 0.0)
    left = path.parent / f".{path.name}.gpufleet"
    (left / "official/files").mkdir(parents=True)
    (left / "official/files/weights").write_text("x")
    (left / "clock.123").write_text("")
    staging.release()
    assert sorted(os.listdir(left)) == ["clock.123", "official"]
    assert absent(path).changed
    assert os.listdir(path.parent) == []
    assert not absent(path).changed


def test_absent_of_what_never_was(path, tmp_path):
    assert not absent(path).changed
    assert everything(tmp_path) == []


# --- the rest ---


def test_the_default_is_the_official_clients_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    expected = "/home/u/.cache/modelscope/models/acme--tiny/snapshots/v1"
    assert _artifact.default_path("acme/tiny", "v1", {}) == expected
    assert _artifact.default_path("a/b", "main", {"MODELSCOPE_CACHE": "~/x"}) == "/home/u/x/models/a--b/snapshots/main"


def test_the_manifest_on_disk_says_it_all(hub, path):
    present(hub, path, exclude=("sub/*",))
    document = json.loads((path / ".gpufleet/manifest.json").read_text())
    assert {key: document[key] for key in ("model", "revision", "commit", "endpoint", "include", "exclude")} == {
        "model": "acme/tiny",
        "revision": "master",
        "commit": ONE,
        "endpoint": "https://hub.example.com",
        "include": [],
        "exclude": ["sub/*"],
    }
    assert [item["path"] for item in document["files"]] == ["config.json", "model.safetensors"]


def test_failures_of_the_file_system_are_told(hub, path, monkeypatch):
    monkeypatch.setattr(os, "fsync", _os_error(errno.ENOSPC))
    with pytest.raises(FleetError) as caught:
        present(hub, path)
    assert caught.value.code == "disk.full"


def test_adopted_directories_are_opened_to_the_service_user(hub, path):
    for entry, data in FILES.items():
        (path / entry).parent.mkdir(parents=True, exist_ok=True)
        (path / entry).write_bytes(data)
    for directory in [path, *(item for item in path.rglob("*") if item.is_dir())]:
        directory.chmod(0o700)
    assert present(hub, path).adopted == len(FILES)
    modes = {stat.S_IMODE(item.stat().st_mode) for item in [path, *path.rglob("*")] if item.is_dir()}
    assert modes == {0o755}


def test_another_mark_when_bytes_were_replaced_and_only_then(hub, path):
    first = present(hub, path).published
    assert first
    assert present(hub, path).published == first
    os.utime(path / "model.safetensors", (1, 1))
    assert present(hub, path).published == first  # touched, and found right
    damaged = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(b"x" + damaged[1:])
    assert present(hub, path, check_mode=True).published is None
    repaired = present(hub, path).published
    assert repaired not in (None, first)
    assert present(hub, path, verify=True).published == repaired


# --- pickles ---


def test_pickles_are_left_out_and_named(hub, path):
    hub.commits[ONE] = {**FILES, "pytorch_model.bin": b"cos\nsystem", "sub/rng.PTH": b"x"}
    real = present(hub, path)
    assert tree(path) == FILES
    assert real.left_out == ("pytorch_model.bin", "sub/rng.PTH")
    assert "pytorch_model.bin, sub/rng.PTH" in real.warnings[0]
    again = present(hub, path)
    assert (again.changed, again.left_out, again.warnings, hub.asked) == (False, real.left_out, [], ["resolve"])


def test_pickles_are_taken_when_asked_for_and_removed_when_not(hub, path):
    hub.commits[ONE] = {**FILES, "pytorch_model.bin": b"cos\nsystem"}
    present(hub, path)
    taken = present(hub, path, allow_pickle=True)
    assert (taken.changed, taken.left_out, taken.bytes_fetched) == (True, (), len(b"cos\nsystem"))
    assert set(tree(path)) == {*FILES, "pytorch_model.bin"}
    assert not present(hub, path, allow_pickle=True).changed
    assert present(hub, path).changed
    assert tree(path) == FILES


def test_a_model_of_pickles_alone_is_refused(hub, path, tmp_path):
    hub.commits[ONE] = {"config.json": b"{}", "pytorch_model.bin": b"cos\nsystem"}
    for check_mode in (True, False):
        with pytest.raises(FleetError, match=r"pytorch_model\.bin") as caught:
            present(hub, path, check_mode=check_mode)
        assert caught.value.code == "manifest.pickle"
    assert everything(tmp_path) == []
    assert present(hub, path, allow_pickle=True).changed
    assert present(hub, path, exclude=("*.bin",)).changed


def test_a_monitor_hears_of_every_byte(hub, path):
    monitor = Monitor()
    _artifact.present(request(path), hub, monitor=monitor)
    assert monitor.snapshot()["phase"] == "done"
    assert monitor.received == total(FILES)
    _artifact.present(request(path), hub, verify=True, monitor=monitor)
    assert monitor.received == total(FILES)
