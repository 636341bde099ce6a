# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Puts a model artifact into a mirror's layout (see ``_mirror``).

A commit is built beside its place, of hard links where the file system can, and renamed into it when it is whole; then
the branch or tag moves, then the list of revisions. A web server that reads meanwhile sees the one or the other.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _mirror, _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, Manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror import Ref
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror_home import (
    OLD,
    Home,
    described,
    locked,
    opened,
    read,
)

_NEW = ".new-"
_MANIFEST = f"{_manifest.STATE_DIRECTORY}/{_manifest.MANIFEST_NAME}"
_CHUNK = 1 << 20
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)


@dataclass
class Outcome:
    """What a call did, or in check mode would do. ``before`` and ``after`` describe the model for a diff."""

    model: str
    commit: str | None = None
    changed: bool = False
    entries: tuple[Entry, ...] = ()
    bytes_copied: int = 0
    repaired: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""


class Artifact:
    """An artifact's directory, open: its manifest, and its files as long as they are what the manifest records."""

    def __init__(self, path: str, handle: int, manifest: Manifest) -> None:
        self.path, self.handle, self.manifest = path, handle, manifest

    @property
    def commit(self) -> str:
        commit = self.manifest.commit
        if commit is None or not _mirror.is_commit(commit):
            raise FleetError(
                "mirror.no_commit",
                f"the manifest of {self.path} holds no commit: the hub did not tell it",
                "a commit, so that a revision means the same on the mirror and on the hub",
                "Fetch the model with the commit as its revision",
            )
        return commit

    def check(self) -> None:
        """Raise unless every file has the size and time with which it was verified."""
        for entry in self.manifest.entries:
            found = _safefs.lstat(self.handle, entry.path)
            known = self.manifest.stats[entry.path]
            if found is None or not stat.S_ISREG(found.st_mode):
                raise self.changed(entry.path, "is not there any more")
            if (found.st_size, found.st_mtime_ns) != (known.size, known.mtime_ns):
                raise self.changed(entry.path, "was changed since it was verified")

    def changed(self, path: str, how: str) -> FleetError:
        return FleetError(
            "mirror.artifact_changed",
            f"{path} in {self.path} {how}",
            "the files as gpufleet.vllm.modelscope_model left them",
            "Run gpufleet.vllm.modelscope_model on the directory again; it repairs what is wrong",
        )


@contextlib.contextmanager
def artifact(path: str) -> Iterator[Artifact | None]:
    """The artifact at ``path``; None where there is none. Raises FleetError for a damaged one."""
    parent, name = os.path.split(os.path.abspath(path))
    try:
        handle = _safefs.open_directory(os.path.join(os.path.realpath(parent), name))
    except FileNotFoundError:
        yield None
        return
    except OSError as exc:
        raise FleetError(
            "mirror.bad_artifact", f"{path} cannot be opened: {exc.strerror}", "an artifact's directory", "Correct path"
        ) from exc
    try:
        text = read(handle, _MANIFEST)
        try:
            found = None if text is None else Artifact(path, handle, _manifest.load(text.decode()))
        except ValueError as exc:
            raise FleetError(
                "mirror.bad_artifact",
                f"the manifest of {path} is damaged: {exc}",
                "a manifest that gpufleet.vllm.modelscope_model wrote",
                "Run gpufleet.vllm.modelscope_model on the directory again",
            ) from exc
        yield found
    finally:
        os.close(handle)


def publish(root: str, source: Artifact, revision: str | None, timeout: float, check_mode: bool) -> Outcome:
    """Have the artifact on the mirror at its commit, and ``revision`` (the manifest's own by default) mean it."""
    model = _mirror.check_model(source.manifest.model)
    name = _mirror.check_revision(source.manifest.revision if revision is None else revision)
    source.check()
    if check_mode:
        with opened(root, model) as home:
            return _Publish(root, source, name, home).outcome
    with locked(root, model, timeout, create=True) as home:
        work = _Publish(root, source, name, home)
        work.apply()
        return work.outcome


class _Publish:
    """What is to be done for one artifact, found by reading alone; :meth:`apply` does it."""

    def __init__(self, root: str, source: Artifact, name: str, home: Home | None) -> None:
        self._root, self._source, self._home = root, source, home
        self._commit = commit = source.commit
        model = source.manifest.model
        refs = dict(home.refs) if home is not None else {}
        commits = home.listed() if home is not None else {}
        before = described(refs, commits)
        old = commits.get(commit, ())
        self._entries = _mirror.united(model, commit, old, source.manifest.entries)
        self._answers = _mirror.commit_answers(self._entries, commit)
        self._right = self._verified(old)
        self._build = (
            home is None
            or len(self._right) < len(self._entries)
            or home.stale(self._answers, f"{_mirror.COMMITS}/{commit}/")
        )
        self._donors = _donors(home, commit) if home is not None and self._build else {}
        self._ref = self._moved(refs, name)
        if self._ref is not None:
            refs[name] = self._ref
        commits[commit] = self._entries
        self._model_answers = _mirror.model_answers(model, refs, commits)
        stale = home is None or home.stale(self._model_answers)
        self.outcome = Outcome(model, commit, self._build or self._ref is not None or stale, self._entries)
        self.outcome.repaired = [entry.path for entry in old if entry.path not in self._right]
        self.outcome.before, self.outcome.after = before, described(refs, commits)
        self._check_repair()
        self._check_space()

    def _moved(self, refs: Mapping[str, Ref], name: str) -> Ref | None:
        """The branch or tag as it is to be; None where there is none, or nothing to do."""
        if _mirror.is_commit(name):
            return None
        known = refs.get(name, Ref(name, ""))
        return None if known.commit == self._commit else Ref(name, self._commit, known.tag, known.created)

    def _verified(self, old: Sequence[Entry]) -> dict[str, int]:
        """The files of the commit that are on the mirror and right: path to modification time."""
        home = self._home
        if home is None or not old:
            return {}
        stats = home.stats(self._commit)
        offered = self._source.manifest.by_path()
        right = {}
        try:
            with _safefs.directory(home.handle, _tree(self._commit)) as tree:
                for entry in old:
                    found = _safefs.lstat(tree, entry.path)
                    if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
                        continue
                    known = stats.get(entry.path) == found.st_mtime_ns or (
                        entry.path in offered and self._same_file(entry, found)
                    )
                    if known or _hash(tree, entry.path) == entry.sha256:
                        right[entry.path] = found.st_mtime_ns
        except FileNotFoundError:
            pass
        return right

    def _same_file(self, entry: Entry, found: os.stat_result) -> bool:
        mine = _safefs.lstat(self._source.handle, entry.path)
        return mine is not None and os.path.samestat(mine, found)

    def _check_repair(self) -> None:
        offered = self._source.manifest.by_path()
        lost = [path for path in self.outcome.repaired if path not in offered]
        if lost:
            raise FleetError(
                "mirror.damaged",
                f"{lost[0]} of {self.outcome.model} at {self._commit} is damaged on the mirror, and the artifact in "
                f"{self._source.path} does not have it",
                "an artifact that has every file that is damaged",
                "Fetch the model without include and exclude and publish it again, or remove the commit with state "
                "absent first",
            )

    def _check_space(self) -> None:
        nearest = os.path.realpath(self._root)
        while not os.path.isdir(nearest):
            nearest = os.path.dirname(nearest)
        if not self._build or os.stat(nearest).st_dev == os.fstat(self._source.handle).st_dev:
            return
        missing = (entry for entry in self._entries if entry.path not in self._right)
        needed = sum(entry.size for entry in missing if entry.sha256 not in self._donors)
        self.outcome.bytes_copied = needed
        room = os.statvfs(nearest)
        free = room.f_bavail * room.f_frsize
        if needed > free:
            raise FleetError(
                "mirror.no_space",
                f"{self._source.path} is on another file system than {self._root}, which has {free} bytes free",
                f"{needed} bytes for a copy",
                "Fetch the model to the mirror's own file system, where hard links take no space, or make room",
            )

    # --- doing it ---

    def apply(self) -> None:
        home = self._home
        if home is None:  # whoever holds the lock has made it
            raise FleetError("mirror.gone", f"{self._root} was removed meanwhile", "the mirror's root", "Run it again")
        if self._build:
            self._put_commit(home)
        elif home.stats(self._commit) != self._right:
            with _safefs.directory(home.handle, f"{_mirror.COMMITS}/{self._commit}") as handle:
                _safefs.write_file(handle, _mirror.STATS, _mirror.dump(self._right))
        if self._ref is not None:
            home.point(self._ref.name, self._commit)
        home.write_answers(self._model_answers)

    def _put_commit(self, home: Home) -> None:
        name = _NEW + secrets.token_hex(8)
        with _safefs.directory(home.handle, _mirror.COMMITS, create=True) as commits:
            _safefs.make_directory(commits, name, 0o700)
            try:
                building = _safefs.open_directory(name, commits)
                try:
                    self._fill(home, building)
                    os.fchmod(building, _safefs.DIRECTORY_MODE)
                    _safefs.sync_directories(building)
                finally:
                    os.close(building)
                self._swap(commits, name)
            except BaseException:
                _safefs.remove_tree(commits, name)
                raise
            _safefs.remove_tree(commits, name)
            _safefs.sync_directory(commits)

    def _swap(self, commits: int, name: str) -> None:
        """Put the new directory in the commit's place; what was there has the name ``name`` afterwards."""
        try:
            os.stat(self._commit, dir_fd=commits, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, self._commit, src_dir_fd=commits, dst_dir_fd=commits)
            return
        try:
            _safefs.exchange(commits, name, commits, self._commit)
        except _safefs.ExchangeUnsupported:
            old = OLD + self._commit
            os.rename(self._commit, old, src_dir_fd=commits, dst_dir_fd=commits)
            os.rename(name, self._commit, src_dir_fd=commits, dst_dir_fd=commits)
            _safefs.remove_tree(commits, old)

    def _fill(self, home: Home, building: int) -> None:
        self.outcome.bytes_copied = 0
        stats = {}
        with _safefs.directory(building, _mirror.TREE, create=True) as tree:
            for entry in self._entries:
                if entry.path in self._right:
                    self._place(home.handle, f"{_tree(self._commit)}/{entry.path}", tree, entry)
                elif entry.sha256 in self._donors:
                    self._place(home.handle, self._donors[entry.sha256], tree, entry)
                else:
                    self._place(self._source.handle, entry.path, tree, entry)
                stats[entry.path] = self._settled(tree, entry)
        for path, data in {**self._answers, _mirror.STATS: _mirror.dump(stats)}.items():
            head, tail = _safefs.split(path)
            with _safefs.directory(building, head, create=True) as handle:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(tail, flags, _safefs.FILE_MODE, dir_fd=handle), "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fchmod(stream.fileno(), _safefs.FILE_MODE)
                    os.fsync(stream.fileno())

    def _place(self, source: int, path: str, tree: int, entry: Entry) -> None:
        try:
            _safefs.link(source, path, tree, entry.path)
            return
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
        head, tail = _safefs.split(entry.path)
        digest = hashlib.sha256()
        with open(_safefs.open_regular(source, path), "rb") as origin, _safefs.directory(tree, head, create=True) as at:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(tail, flags, _safefs.FILE_MODE, dir_fd=at), "wb") as stream:
                while piece := origin.read(_CHUNK):
                    digest.update(piece)
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
                mtime = os.fstat(origin.fileno()).st_mtime_ns
                os.utime(stream.fileno(), ns=(mtime, mtime))
        self.outcome.bytes_copied += entry.size
        if digest.hexdigest() != entry.sha256:
            raise self._source.changed(entry.path, "has another content than when it was verified")

    def _settled(self, tree: int, entry: Entry) -> int:
        """The modification time of a file that was put in place; it is readable for the web server now."""
        handle = _safefs.open_regular(tree, entry.path)
        try:
            found = os.fstat(handle)
            if found.st_size != entry.size:
                raise self._source.changed(entry.path, f"has {found.st_size} bytes now")
            if found.st_mode & 0o444 != 0o444:
                os.fchmod(handle, _safefs.FILE_MODE)
            return found.st_mtime_ns
        finally:
            os.close(handle)


def _hash(root: int, path: str) -> str:
    digest = hashlib.sha256()
    with open(_safefs.open_regular(root, path), "rb", buffering=0) as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _tree(commit: str) -> str:
    return f"{_mirror.COMMITS}/{commit}/{_mirror.TREE}"


def _donors(home: Home, commit: str) -> dict[str, str]:
    """Files of the model's other commits by content, as long as they are what was verified: they are not stored
    twice."""
    found: dict[str, str] = {}
    for other in sorted(home.commits - {commit}):
        stats = home.stats(other)
        for entry in home.entries(other):
            path = f"{_tree(other)}/{entry.path}"
            there = _safefs.lstat(home.handle, path)
            if there is None or not stat.S_ISREG(there.st_mode):
                continue
            if (there.st_size, there.st_mtime_ns) == (entry.size, stats.get(entry.path)):
                found.setdefault(entry.sha256, path)
    return found
