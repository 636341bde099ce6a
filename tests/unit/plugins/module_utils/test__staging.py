# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import socket
import time

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _lock, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

ENTRY = Entry("x", 10, "a" * 64)


class Clock:
    def __init__(self):
        self.now = 0.0
        self.events = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.events:
            self.events.pop(0)()


def acquire(path, timeout=0.0, clock=None):
    clock = clock or Clock()
    return _staging.acquire(_staging.locate(str(path)), timeout, clock.sleep, clock)


def test_it_lies_beside_the_artifact(tmp_path):
    location = _staging.locate(f"{tmp_path}/a/../b/./model/")
    assert location.staging == f"{tmp_path}/b/.model.gpufleet"
    assert location.path == f"{tmp_path}/b/model"
    assert location.nearest == str(tmp_path)


def test_the_way_to_the_parent_may_use_links(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    assert _staging.locate(f"{tmp_path}/link/model").path == f"{tmp_path}/real/model"


@pytest.mark.parametrize(
    ("kind", "seen"), [("link", "symbolic link"), ("file", "not a directory"), ("below", "cannot be made")]
)
def test_paths_that_cannot_be(tmp_path, kind, seen):
    path = tmp_path / "model"
    if kind == "link":
        os.symlink(tmp_path, path)
    else:
        path.write_text("x")
    with pytest.raises(FleetError, match=seen) as caught:
        acquire(path / "below" if kind == "below" else path)
    assert caught.value.code == "path.unusable"


def test_the_root_directory_is_refused():
    with pytest.raises(FleetError, match="root directory"):
        _staging.locate("/")


def test_a_parent_that_is_not_writable_moves_it_inside(tmp_path, monkeypatch):
    path = tmp_path / "model"
    monkeypatch.setattr(os, "access", lambda where, mode: str(where) != str(tmp_path))
    with pytest.raises(FleetError, match="cannot be made"):
        _staging.locate(str(path))
    path.mkdir()
    location = _staging.locate(str(path))
    assert location.staging == f"{path}/.gpufleet/staging"
    staging = acquire(path)
    assert os.listdir(path) == [".gpufleet"]
    staging.release()
    assert os.listdir(path) == []


def test_a_mount_point_is_staged_inside(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    assert not _staging.locate(str(path)).inside
    monkeypatch.setattr(os.path, "ismount", lambda where: True)
    assert _staging.locate(str(path)).inside


def test_it_is_private_and_leaves_nothing(tmp_path):
    path = tmp_path / "deep/er/model"
    staging = acquire(path)
    assert (path.parent / ".model.gpufleet").stat().st_mode & 0o777 == 0o700
    holder = json.loads((path.parent / ".model.gpufleet/lock").read_text())
    assert holder["pid"] == os.getpid()
    staging.release()
    assert os.listdir(tmp_path) == []


def test_parts_stay_for_the_next_run(tmp_path):
    path = tmp_path / "model"
    staging = acquire(path)
    part = staging.part(ENTRY)
    part.write(b"1234", 0)
    part.note(0, 4)
    part.close()
    staging.part(Entry("y", 1, "b" * 64)).close()  # empty: of no use
    staging.release()
    location = _staging.locate(str(path))
    assert os.listdir(location.staging) == ["parts"]
    assert _staging.parts_on_disk(location) == {ENTRY.sha256: 4}
    staging = acquire(path)
    part = staging.part(ENTRY)
    assert list(part.done) == [(0, 4)]
    assert (part.read(10, 0), part.read(10, 2)) == (b"1234", b"34")
    part.restart()
    assert os.fstat(part.fileno()).st_size == 0
    part.close()
    staging.discard()
    staging.release()
    assert os.listdir(tmp_path) == []


def test_a_second_run_is_told_who_holds_it(tmp_path):
    staging = acquire(tmp_path / "model")
    clock = Clock()
    with pytest.raises(FleetError) as caught:
        acquire(tmp_path / "model", 2.0, clock)
    assert caught.value.code == "artifact.locked"
    assert f"process {os.getpid()} of user" in caught.value.seen
    assert "(heard of 0 s ago)" in caught.value.seen
    assert clock.now == 2.0
    staging.release()
    acquire(tmp_path / "model").release()


def test_a_waiting_run_goes_on_when_the_first_one_ends(tmp_path):
    first = acquire(tmp_path / "model")
    clock = Clock()
    clock.events = [lambda: None, first.release]
    second = acquire(tmp_path / "model", 10.0, clock)
    assert clock.now < 1.0
    assert os.path.exists(tmp_path / ".model.gpufleet/lock"), "not the lock file that the first run removed"
    second.release()


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    os.makedirs(tmp_path / ".model.gpufleet", 0o700)
    lock = tmp_path / ".model.gpufleet/lock"
    lock.write_text(json.dumps({"pid": 1, "user": "u", "host": socket.gethostname(), "since": "s"}))
    acquire(tmp_path / "model").release()
    assert os.listdir(tmp_path) == []


def test_another_host_is_believed_while_its_lock_file_is_touched(tmp_path):
    """Where the file system's locks do not reach the other host."""
    os.makedirs(tmp_path / ".model.gpufleet", 0o700)
    lock = tmp_path / ".model.gpufleet/lock"
    lock.write_text(json.dumps({"pid": 1, "user": "u", "host": "elsewhere", "since": "s"}))
    with pytest.raises(FleetError, match="process 1 of user 'u' on host 'elsewhere' since 's'") as caught:
        acquire(tmp_path / "model")
    assert caught.value.code == "artifact.locked"
    old = time.time() - _lock.FRESH - 1
    os.utime(lock, (old, old))
    acquire(tmp_path / "model").release()
    assert os.listdir(tmp_path) == []


def test_a_held_lock_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(_lock, "PULSE", 0.01)
    staging = acquire(tmp_path / "model")
    lock = tmp_path / ".model.gpufleet/lock"
    os.utime(lock, (1, 1))
    deadline = time.monotonic() + 10
    while lock.stat().st_mtime < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    staging.release()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_lock.fcntl, "flock", no_locks)
    with pytest.raises(FleetError, match="No locks available") as caught:
        acquire(tmp_path / "model")
    assert caught.value.code == "artifact.no_locks"


LARGE = Entry("large", _staging.JOURNAL_MIN + 100, "c" * 64)


def test_a_large_part_knows_what_of_it_is_there(tmp_path):
    path = tmp_path / "model"
    staging = acquire(path)
    part = staging.part(LARGE)
    part.write(b"end", LARGE.size - 3)
    part.write(b"start", 0)
    part.note(LARGE.size - 3, LARGE.size)
    part.note(0, 5)
    part.write(b"not noted", 1000)
    part.close()
    staging.release()
    location = _staging.locate(str(path))
    assert _staging.parts_on_disk(location) == {LARGE.sha256: 8}
    journal = f"{location.staging}/parts/{LARGE.sha256}.ranges"
    with open(journal, "ab") as stream:
        stream.write(b"torn")
    staging = acquire(path)
    part = staging.part(LARGE)
    assert list(part.done) == [(0, 5), (LARGE.size - 3, LARGE.size)]
    part.restart()
    part.close()
    assert os.path.getsize(journal) == 0
    part = staging.part(LARGE)
    part.write(b"x" * LARGE.size, 0)
    part.complete()
    part.close()
    assert os.listdir(f"{location.staging}/parts") == [LARGE.sha256]
    staging.discard()
    staging.release()


def test_a_large_part_without_a_journal_was_written_from_its_beginning(tmp_path):
    staging = acquire(tmp_path / "model")
    (tmp_path / ".model.gpufleet/parts" / LARGE.sha256).write_bytes(b"12345")
    part = staging.part(LARGE)
    assert list(part.done) == [(0, 5)]
    part.close()
    assert _staging.parts_on_disk(staging.location) == {LARGE.sha256: 5}
    staging.discard()
    staging.release()


def test_a_journal_that_says_more_than_there_is(tmp_path):
    """What a power failure leaves."""
    staging = acquire(tmp_path / "model")
    parts = tmp_path / ".model.gpufleet/parts"
    (parts / LARGE.sha256).write_bytes(b"12345")
    (parts / f"{LARGE.sha256}.ranges").write_bytes((0).to_bytes(8, "little") + (500).to_bytes(8, "little"))
    part = staging.part(LARGE)
    assert list(part.done) == [(0, 5)]
    part.close()
    staging.discard()
    staging.release()


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"pid": "x"}'])
def test_an_unreadable_holder_is_no_failure(tmp_path, content):
    staging = acquire(tmp_path / "model")
    (tmp_path / ".model.gpufleet/lock").write_text(content)
    with pytest.raises(FleetError, match="another run"):
        acquire(tmp_path / "model")
    staging.release()


def test_what_others_planted_is_refused(tmp_path):
    planted = tmp_path / ".model.gpufleet"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.raises(FleetError) as caught:
        acquire(tmp_path / "model")
    assert caught.value.code == "path.foreign_staging"
    planted.rmdir()
    (tmp_path / "victim").mkdir()
    os.symlink(tmp_path / "victim", planted)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        acquire(tmp_path / "model")
    assert os.listdir(tmp_path / "victim") == []


@pytest.mark.parametrize("plant", ["symlink", "hard link", "directory", "fifo"])
def test_a_planted_part_is_replaced_and_its_target_untouched(tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    staging = acquire(tmp_path / "model")
    name = tmp_path / ".model.gpufleet/parts" / ENTRY.sha256
    if plant == "symlink":
        os.symlink(victim, name)
    elif plant == "hard link":
        os.link(victim, name)
    elif plant == "directory":
        name.mkdir()
    else:
        os.mkfifo(name)
    part = staging.part(ENTRY)
    part.write(b"x" * ENTRY.size, 0)
    part.complete()
    part.close()
    assert victim.read_text() == "precious"
    assert name.stat().st_mode & 0o777 == 0o644
    staging.discard()
    staging.release()


def test_a_kill_between_two_renames_is_mended(tmp_path):
    staging = tmp_path / ".model.gpufleet"
    (staging / "old").mkdir(parents=True)
    staging.chmod(0o700)
    (staging / "old/file").write_text("old")
    acquire(tmp_path / "model").release()
    assert (tmp_path / "model/file").read_text() == "old"
    (staging / "old").mkdir(parents=True)
    staging.chmod(0o700)
    acquire(tmp_path / "model").release()
    assert sorted(os.listdir(tmp_path)) == ["model"]
