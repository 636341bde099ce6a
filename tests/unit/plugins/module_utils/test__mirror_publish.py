# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""_mirror_home, _mirror_publish and _mirror_prune on a real file system; _mirror_module is tested with its modules."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _manifest,
    _mirror_home,
    _mirror_prune,
    _mirror_publish,
    _safefs,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, FileStat, Manifest

MODEL = "acme/tiny"
ONE, TWO = "1" * 40, "2" * 40
SHA = "a" * 64
FILES = {"config.json": b"{}", "sub/model.bin": b"weights", "sub/empty": b""}


def make_artifact(path, files=None, commit=ONE, revision="master", model=MODEL):
    """What modelscope_model leaves behind."""
    files = FILES if files is None else files
    entries, stats = [], {}
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if not (path / name).exists() or (path / name).read_bytes() != data:
            (path / name).unlink(missing_ok=True)
            (path / name).write_bytes(data)
        entries.append(Entry(name, len(data), hashlib.sha256(data).hexdigest()))
        stats[name] = FileStat(len(data), (path / name).stat().st_mtime_ns)
    entries.sort(key=lambda entry: entry.path)
    manifest = Manifest(
        model=model,
        revision=revision,
        commit=commit,
        endpoint="https://hub",
        include=(),
        exclude=(),
        left_out=(),
        entries=tuple(entries),
        stats=stats,
        published="x",
    )
    (path / ".gpufleet").mkdir(exist_ok=True)
    (path / ".gpufleet/manifest.json").write_text(_manifest.dump(manifest))
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "mirror"


@pytest.fixture
def path(tmp_path):
    return make_artifact(tmp_path / "work/tiny")


def publish(root, path, revision=None, timeout=5, check_mode=False):
    with _mirror_publish.artifact(str(path)) as source:
        return _mirror_publish.publish(str(root), source, revision, timeout, check_mode)


def fails(*args, **more):
    with pytest.raises(FleetError) as caught:
        publish(*args, **more)
    assert all((caught.value.seen, caught.value.expected, caught.value.remedy))
    return caught.value.code


def home(root):
    return root / "models" / MODEL


def tree(directory):
    return {str(item.relative_to(directory)): item.read_bytes() for item in directory.rglob("*") if item.is_file()}


def test_a_commit_is_links_and_a_name(root, path):
    old = os.umask(0o077)
    try:
        outcome = publish(root, path)
    finally:
        os.umask(old)
    assert (outcome.changed, outcome.commit, outcome.bytes_copied) == (True, ONE, 0)
    assert tree(home(root) / "refs/master/tree") == FILES
    assert os.readlink(home(root) / "refs/master") == f"../commits/{ONE}"
    one = home(root) / "commits" / ONE
    assert os.path.samefile(one / "tree/sub/model.bin", path / "sub/model.bin")
    for item in [root, *(item for item in root.rglob("*") if item.name != ".lock" and not item.is_symlink())]:
        assert item.stat().st_mode & 0o777 == (0o755 if item.is_dir() else item.stat().st_mode & 0o777 | 0o444), item
    stats = json.loads((one / "stats.json").read_text())
    assert stats == {name: (path / name).stat().st_mtime_ns for name in FILES}
    assert not publish(root, path).changed


def test_a_file_that_others_may_not_read_is_made_readable(root, path):
    (path / "config.json").chmod(0o600)
    publish(root, path)
    assert (home(root) / "refs/master/tree/config.json").stat().st_mode & 0o777 == 0o644


def test_check_mode_changes_nothing_and_tells_the_same(root, path):
    check = publish(root, path, check_mode=True)
    assert not root.exists()
    assert vars(check) == vars(publish(root, path))
    make_artifact(path, {**FILES, "config.json": b"[]"}, TWO)
    before = tree(root)
    check = publish(root, path, check_mode=True)
    assert tree(root) == before
    assert vars(check) == vars(publish(root, path))
    assert check.before.splitlines()[0] == f"master -> {ONE}"
    assert check.after.splitlines()[0] == f"master -> {TWO}"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK], ids=errno.errorcode.get)
def test_without_hard_links_files_are_copied_and_hashed(root, path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_safefs, "link", refuse)
    outcome = publish(root, path)
    assert outcome.bytes_copied == sum(map(len, FILES.values()))
    assert tree(home(root) / "refs/master/tree") == FILES
    assert not publish(root, path).changed
    damaged = path / "sub/model.bin"
    when = damaged.stat().st_mtime_ns
    damaged.write_bytes(b"WEIGHTS")
    os.utime(damaged, ns=(when, when))
    assert not publish(root, path).changed, "the mirror's own copy was verified"
    (home(root) / "commits" / ONE / "tree/sub/model.bin").unlink()
    before = tree(home(root) / "commits" / ONE)
    assert fails(root, path) == "mirror.artifact_changed"
    assert tree(home(root) / "commits" / ONE) == before
    assert [item.name for item in (home(root) / "commits").iterdir()] == [ONE]


def test_another_error_while_linking_is_not_hidden(root, path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(_safefs, "link", refuse)
    with pytest.raises(OSError, match="broken disk"):
        publish(root, path)
    assert not (root / "models").exists(), "nothing half-made is left"


def test_a_link_in_the_artifact_is_not_followed(root, path, tmp_path):
    (tmp_path / "secret").write_bytes(b"{}")
    (path / "config.json").unlink()
    (path / "config.json").symlink_to(tmp_path / "secret")
    assert fails(root, path) == "mirror.artifact_changed"


def test_what_cannot_be_published(root, path, tmp_path):
    assert fails(root, make_artifact(tmp_path / "a", commit=None)) == "mirror.no_commit"
    assert fails(root, make_artifact(tmp_path / "b", revision="feature/x")) == "mirror.bad_revision"
    publish(root, path)
    other = make_artifact(tmp_path / "c", {"config.json": b"[]"})
    assert fails(root, other) == "mirror.commit_differs"
    part = make_artifact(tmp_path / "d", {"config.json": b"{}"})
    assert not publish(root, part).changed
    (home(root) / "commits" / ONE / "tree/sub/model.bin").unlink()
    assert fails(root, part) == "mirror.damaged"
    outcome = publish(root, path)
    assert (outcome.changed, outcome.repaired) == (True, ["sub/model.bin"])


def test_a_pinned_commit_makes_no_name(root, tmp_path):
    publish(root, make_artifact(tmp_path / "pinned", revision=ONE))
    assert not (home(root) / "refs").exists()
    revisions = json.loads((home(root) / "revisions.json").read_text())["Data"]["RevisionMap"]
    assert revisions == {"Branches": [], "Tags": []}
    assert (home(root) / "commits" / ONE / "files.json").is_file()


def test_the_kind_of_a_name_stays_and_a_lost_list_is_made_anew(root, path):
    publish(root, path, "v1")
    file = home(root) / "revisions.json"
    document = json.loads(file.read_text())
    revisions = document["Data"]["RevisionMap"]
    revisions["Tags"], revisions["Branches"] = revisions["Branches"], []
    file.write_text(json.dumps(document))
    publish(root, path, "master")
    revisions = json.loads(file.read_text())["Data"]["RevisionMap"]
    assert [[row["Revision"] for row in revisions[kind]] for kind in ("Branches", "Tags")] == [["master"], ["v1"]]
    file.unlink()
    assert publish(root, path).changed
    revisions = json.loads(file.read_text())["Data"]["RevisionMap"]
    assert [row["Revision"] for row in revisions["Branches"]] == ["master", "v1"]


def test_what_a_killed_run_left_is_removed(root, path):
    publish(root, path)
    (home(root) / "commits/.new-1/tree").mkdir(parents=True)
    (home(root) / "commits/.old-2").mkdir()
    (home(root) / "refs/.master.new").symlink_to("nowhere")
    publish(root, path)
    assert sorted(os.listdir(home(root) / "commits")) == [ONE]
    assert os.listdir(home(root) / "refs") == ["master"]


def test_a_directory_in_the_place_of_a_name_is_replaced(root, path):
    publish(root, path)
    (home(root) / "refs/master").unlink()
    (home(root) / "refs/master/x").mkdir(parents=True)
    assert publish(root, path).changed
    assert tree(home(root) / "refs/master/tree") == FILES


@pytest.mark.parametrize("supported", [True, False], ids=["exchange", "two renames"])
def test_more_files_of_a_commit_replace_it_whole(root, tmp_path, monkeypatch, supported):
    def unsupported(*args):
        raise _safefs.ExchangeUnsupported

    if not supported:
        monkeypatch.setattr(_safefs, "exchange", unsupported)
    publish(root, make_artifact(tmp_path / "part", {"config.json": b"{}"}))
    before = (home(root) / "commits" / ONE / "tree/config.json").stat().st_ino
    outcome = publish(root, make_artifact(tmp_path / "whole"))
    assert (outcome.changed, outcome.repaired) == (True, [])
    assert tree(home(root) / "refs/master/tree") == FILES
    assert (home(root) / "commits" / ONE / "tree/config.json").stat().st_ino == before
    assert os.listdir(home(root) / "commits") == [ONE]


def test_files_that_another_commit_has_are_not_stored_twice(root, path, tmp_path):
    publish(root, path)
    publish(root, make_artifact(tmp_path / "other", {**FILES, "config.json": b"[]"}, TWO, "v2"))
    one, two = (home(root) / "commits" / commit / "tree/sub/model.bin" for commit in (ONE, TWO))
    assert os.path.samefile(one, two)
    assert not os.path.samefile(one, tmp_path / "other/sub/model.bin")
    assert not publish(root, tmp_path / "other").changed


def test_a_mirror_that_is_a_link_itself(root, path, tmp_path):
    (tmp_path / "disk").mkdir()
    root.symlink_to(tmp_path / "disk")
    assert publish(root, path).changed
    assert tree(tmp_path / "disk/models" / MODEL / "refs/master/tree") == FILES
    assert _mirror_home.models(str(root)) == [MODEL]


def test_links_below_the_root_are_not_followed(root, path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "models").mkdir(parents=True)
    (root / "models/acme").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):  # noqa: PT011  # ELOOP or ENOTDIR, as the kernel has it
        publish(root, path)
    assert os.listdir(tmp_path / "elsewhere") == []
    assert _mirror_home.models(str(root)) == []


def test_removal_of_revisions_and_of_the_last(root, path, tmp_path):
    publish(root, path)
    publish(root, make_artifact(tmp_path / "two", {**FILES, "config.json": b"[]!"}, TWO, "v2"))
    for revision, refs, commits, freed in (("v2", ["v2"], [TWO], 0), (ONE, ["master"], [ONE], 0)):
        check = _mirror_prune.absent(str(root), MODEL, revision, 5, True)
        real = _mirror_prune.absent(str(root), MODEL, revision, 5, False)
        assert vars(check) == vars(real)
        assert real.refs == [f"{MODEL}@{name}" for name in refs]
        assert real.commits == [f"{MODEL}@{commit}" for commit in commits]
        assert real.bytes_freed == freed, "the artifacts still have the files"
        assert not _mirror_prune.absent(str(root), MODEL, revision, 5, False).changed
    assert real.models == [MODEL]
    assert os.listdir(root) == []


def test_bytes_are_free_when_the_last_name_goes(root, path, tmp_path):
    publish(root, path)
    keep = [_mirror_prune.as_kept({"model": "acme/other", "revision": "master"})]
    work = _mirror_prune.Work(str(path.parent), [])
    (path.parent / "notes").mkdir()
    (path.parent / "file").write_text("x")
    (path.parent / "link").symlink_to(path)
    check = _mirror_prune.prune(str(root), keep, work, 5, True)
    real = _mirror_prune.prune(str(root), keep, work, 5, False)
    assert vars(check) == vars(real)
    assert (real.models, real.artifacts) == ([MODEL], [str(path)])
    manifest_and_files = real.bytes_freed
    assert manifest_and_files > sum(map(len, FILES.values()))
    assert sorted(os.listdir(path.parent)) == ["file", "link", "notes"]
    assert not _mirror_prune.prune(str(root), keep, work, 5, False).changed


def test_work_that_is_wanted_stays_with_what_is_being_fetched(path):
    for name in (".tiny.gpufleet", ".gone.gpufleet", ".other"):
        (path.parent / name).mkdir()
    work, left = _mirror_prune.Work(str(path.parent), [str(path)]), []
    assert [item.path for item in work.strangers(left)] == [str(path.parent / ".gone.gpufleet")]
    assert _mirror_prune.Work(str(path.parent / "none"), []).strangers(left) == []
    assert left == []


def pruned(root, work, timeout=5.0):
    """What a prune that keeps nothing does in ``work``; check mode has said so."""
    check = _mirror_prune.prune(str(root), [], _mirror_prune.Work(str(work), []), timeout, True)
    real = _mirror_prune.prune(str(root), [], _mirror_prune.Work(str(work), []), timeout, False)
    assert vars(check) == vars(real)
    return real


def test_of_an_artifact_in_work_only_what_the_manifest_owns_goes(root, path):
    (path / "mine.txt").write_text("mine")
    (path / "sub/notes").write_text("mine")
    done = pruned(root, path.parent)
    assert done.artifacts == [str(path)]
    assert done.left == [f"{path} keeps what is not of the model: mine.txt, sub/notes."]
    assert sorted(item.name for item in path.rglob("*")) == ["mine.txt", "notes", "sub"]
    again = pruned(root, path.parent)
    assert (again.changed, again.left) == (False, [])


def test_what_a_run_works_on_in_work_stays(root, path):
    parts = path.parent / ".new.gpufleet/parts"
    parts.mkdir(parents=True)
    (parts / SHA).write_bytes(b"half")
    for name in ("new", "tiny"):
        staging = path.parent / f".{name}.gpufleet"
        staging.mkdir(exist_ok=True)
        with (staging / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(FleetError) as caught:
                _mirror_prune.prune(str(root), [], _mirror_prune.Work(str(path.parent), []), 0, False)
        assert caught.value.code == "artifact.locked"
        assert name in caught.value.seen
        if name == "new":
            assert (parts / SHA).read_bytes() == b"half"
            assert pruned(root, path.parent).artifacts == [str(parts.parent), str(path)]
            make_artifact(path)
    assert (path / "config.json").exists()
    assert pruned(root, path.parent).artifacts == [str(path.parent / ".tiny.gpufleet"), str(path)]
    assert list(path.parent.iterdir()) == []


def test_what_cannot_be_told_to_be_ours_stays_in_work(root, path):
    (path / ".gpufleet/manifest.json").write_text("{}")
    (path.parent / ".gone.gpufleet").mkdir()
    (path.parent / ".gone.gpufleet/notes.txt").write_text("mine")
    for _unused in range(2):
        done = pruned(root, path.parent)
        assert not done.changed
        assert [text.split(":")[0] for text in done.left] == [str(path.parent / ".gone.gpufleet"), str(path)]
    assert (path / "config.json").exists()
    assert (path.parent / ".gone.gpufleet/notes.txt").exists()


def test_what_a_process_uses_in_work_stays(root, path):
    code = "import sys; f = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(path / "config.json")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        done = pruned(root, path.parent)
        process.stdin.close()
    assert not done.changed
    assert done.left[0].startswith(f"{path} is in use: process {process.pid} ")
    assert pruned(root, path.parent).artifacts == [str(path)]


def test_the_only_copy_of_a_version_that_nobody_wants(root, path):
    staging = path.parent / ".tiny.gpufleet"
    staging.mkdir()
    path.rename(staging / "old")
    assert pruned(root, path.parent).artifacts == [str(staging)]
    assert list(path.parent.iterdir()) == []
