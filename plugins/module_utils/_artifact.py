# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A model artifact on this host: present, absent or verified.

Order of things, so that a failure at any point leaves what served before: resolve the revision, list and validate,
look at the disk, check the space (all of it read-only, and the whole of check mode), lock, fetch into private parts,
build the new tree beside the old one, write the manifest into it last, swap the two, remove the old one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _safefs, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import (
    MANIFEST_NAME,
    STATE_DIRECTORY,
    Entry,
    FileStat,
    Found,
    Manifest,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RetryPolicy, Source, Tally, fetch_all

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
    from ansible_collections.gpufleet.vllm.plugins.module_utils._staging import Location, Staging

_MANIFEST_PATH = f"{STATE_DIRECTORY}/{MANIFEST_NAME}"
_MANIFEST_BYTES_MAX = 256 * 1024 * 1024
_HASH_CHUNK = 1024 * 1024
_SHOWN = 5

_FOREIGN_MAX = 10000
"""Foreign items above which a directory is not rebuilt to be swapped: it holds more than a model."""

_NO_ANSWER = ("hub.unreachable", "hub.unavailable")


class Hub(Protocol):
    """What an artifact needs from a hub. ``_hub.HubClient`` is the one for ModelScope."""

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution: ...

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, Any]]: ...

    def source(self, model: str, resolution: Resolution) -> Source: ...


@dataclass(frozen=True)
class Request:
    """What is wanted. ``lock_timeout`` in seconds."""

    model: str
    revision: str
    path: str
    endpoint: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    workers: int = 4
    lock_timeout: float = 60.0
    check_mode: bool = False
    policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass
class Outcome:
    """What was found and done. ``before`` and ``after`` are what a diff shows; sizes in bytes."""

    path: str
    changed: bool = False
    commit: str | None = None
    bytes_fetched: int = 0
    entries: tuple[Entry, ...] = ()
    adopted: int = 0
    foreign: tuple[str, ...] = ()
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    published: str | None = None


def default_path(model: str, revision: str, environment: Mapping[str, str] | None = None) -> str:
    """Where the official client keeps this revision when nobody names a directory."""
    environment = os.environ if environment is None else environment
    cache = environment.get("MODELSCOPE_CACHE") or os.path.join("~", ".cache", "modelscope")
    owner, _slash, name = model.partition("/")
    return os.path.join(os.path.expanduser(cache), "models", f"{owner}--{name}", "snapshots", revision)


# --- present and verified --------------------------------------------------------------------------------------------


def present(request: Request, hub: Hub, verify: bool = False) -> Outcome:
    """Make the artifact be there: every selected file of the model at the revision, verified. Raises FleetError.

    ``verify`` trusts no recorded stat and hashes every file that is there.
    """
    with _os_errors():
        return _Presence(request, hub, verify).run()


@dataclass(frozen=True)
class _Target:
    """What shall be there, and the hub's word on the revision."""

    resolution: Resolution
    entries: tuple[Entry, ...]


@dataclass
class _Plan:
    """What there is, compared with what shall be there."""

    old: Manifest | None
    found: dict[str, _safefs.Item]
    kept: dict[str, FileStat]
    fetch: tuple[Entry, ...]
    adopted: tuple[str, ...]
    obsolete: tuple[str, ...]
    foreign: tuple[str, ...]
    bytes_to_fetch: int
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def changed(self) -> bool:
        return self.before != self.after

    @property
    def replaces(self) -> bool:
        """Whether other bytes will lie there, and not only another manifest."""
        return bool(self.fetch or self.obsolete)


class _Presence:
    def __init__(self, request: Request, hub: Hub, verify: bool) -> None:
        self._request, self._hub, self._verify = request, hub, verify
        self._location = _staging.locate(request.path)
        self._outcome = Outcome(self._location.path)

    def run(self) -> Outcome:
        old = self._read_manifest()
        self._outcome.published = old.published if old is not None else None
        target = self._target(old)
        if target is None or (not self._verify and self._untouched(old, target)):
            return self._outcome
        if self._request.check_mode:
            plan = self._plan(target)
            self._report(plan)
            if plan.replaces:
                self._outcome.published = None
            return self._outcome
        staging = _staging.acquire(self._location, self._request.lock_timeout, self._request.policy.sleep)
        try:
            # Only under the lock is it certain what is there; another run may just have finished the same work.
            plan = self._plan(target)
            received = self._execute(plan, target, staging)
            self._report(plan)
            published = self._read_manifest()
            self._outcome.published = published.published if published is not None else None
            self._outcome.bytes_fetched = received
            staging.discard()
        finally:
            staging.release()
        return self._outcome

    # --- what is wanted ---

    def _target(self, old: Manifest | None) -> _Target | None:
        """What shall be there; None when the hub cannot tell and what is there does."""
        request = self._request
        standing = old if old is not None and self._same_request(old) else None
        try:
            resolution = self._hub.resolve(request.model, request.revision, patient=standing is None)
            self._outcome.warnings.extend(resolution.warnings)
            if old is not None and self._same_content(old, resolution):
                return _Target(resolution, old.entries)
            rows = self._hub.list_rows(request.model, resolution)
        except FleetError as exc:
            if standing is None or exc.code not in _NO_ANSWER or not self._complete(standing):
                raise
            self._keep(standing, exc)
            return None
        return _Target(resolution, _manifest.entries_from_rows(rows, request.include, request.exclude))

    def _same_selection(self, old: Manifest) -> bool:
        request = self._request
        return (old.model, old.include, old.exclude) == (request.model, request.include, request.exclude)

    def _same_request(self, old: Manifest) -> bool:
        return self._same_selection(old) and old.revision == self._request.revision

    def _same_content(self, old: Manifest, resolution: Resolution) -> bool:
        return self._same_selection(old) and resolution.commit is not None and old.commit == resolution.commit

    def _keep(self, standing: Manifest, exc: FleetError) -> None:
        commit = standing.commit or "an unknown commit"
        self._outcome.warnings.append(
            f"{exc.seen.rstrip('.')}. The complete artifact of {standing.model} at revision {standing.revision}, "
            f"commit {commit}, is kept; whether the revision moved since is not known."
        )
        self._state(standing.entries, standing.commit)

    def _complete(self, standing: Manifest) -> bool:
        with self._root() as root:
            if root is None:
                return False
            found = _stat_entries(root, standing.entries)
            comparison = _manifest.compare(standing.entries, standing, found, self._verify)
            if comparison.missing:
                return False
            return not _hash_all(root, comparison.to_hash, self._request.workers).wrong

    def _untouched(self, old: Manifest | None, target: _Target) -> bool:
        """The quick way: the manifest describes exactly what is wanted, and no file was touched since."""
        commit = target.resolution.commit
        if old is None or not self._same_request(old) or old.commit != commit or old.entries != target.entries:
            return False
        with self._root() as root:
            if root is None:
                return False
            comparison = _manifest.compare(old.entries, old, _stat_entries(root, old.entries))
        if comparison.to_hash or comparison.missing:
            return False
        self._state(old.entries, commit)
        self._sweep()
        return True

    def _sweep(self) -> None:
        """Remove what a run left that was killed right after publishing. Never waits, never fails."""
        if self._request.check_mode or not os.path.isdir(self._location.staging):
            return
        with contextlib.suppress(FleetError, OSError):
            staging = _staging.acquire(self._location, 0.0)
            staging.discard()
            staging.release()

    def _state(self, entries: tuple[Entry, ...], commit: str | None) -> None:
        files = {entry.path: _shown(entry.size, entry.sha256) for entry in entries}
        self._outcome.commit, self._outcome.entries = commit, entries
        self._outcome.before = self._outcome.after = _description(
            self._request.model, self._request.revision, commit, files
        )

    # --- what is there ---

    @contextlib.contextmanager
    def _root(self) -> Iterator[int | None]:
        try:
            handle = _safefs.open_directory(self._location.path)
        except FileNotFoundError:
            yield None
            return
        try:
            yield handle
        finally:
            os.close(handle)

    def _read_manifest(self) -> Manifest | None:
        with self._root() as root:
            return None if root is None else read_manifest(root, self._location.path, self._outcome.warnings)

    def _plan(self, target: _Target) -> _Plan:
        old = self._read_manifest()
        with self._root() as root:
            items = {} if root is None else _safefs.walk(root, skip=STATE_DIRECTORY)
            found = {path: _as_found(item) for path, item in items.items()}
            comparison = _manifest.compare(target.entries, old, found, self._verify)
            hashes = _Hashes()
            if root is not None:
                hashes = _hash_all(root, comparison.to_hash, self._request.workers)
        wanted = {entry.path for entry in target.entries}
        owned = set(old.by_path()) if old is not None else set()
        foreign = _manifest.foreign(found, owned - wanted)
        self._check_blockers(_manifest.blockers(target.entries, foreign, found))
        kept = {entry.path: found[entry.path].stat for entry in comparison.trusted}
        kept.update(hashes.right)
        plan = _Plan(
            old=old,
            found=items,
            kept=kept,
            fetch=tuple(entry for entry in target.entries if entry.path not in kept),
            adopted=tuple(path for path in hashes.right if path not in owned),
            obsolete=tuple(sorted(path for path in owned - wanted if path in found)),
            foreign=tuple(path for path in foreign if path not in wanted),
            bytes_to_fetch=0,
            before=_before(old, target, found, kept, hashes.wrong),
            after=_description(
                self._request.model,
                self._request.revision,
                target.resolution.commit,
                {entry.path: _shown(entry.size, entry.sha256) for entry in target.entries},
            ),
        )
        plan.bytes_to_fetch = self._bytes_to_fetch(plan.fetch)
        self._check_space(plan)
        self._outcome.commit, self._outcome.entries = target.resolution.commit, target.entries
        return plan

    def _bytes_to_fetch(self, fetch: Iterable[Entry]) -> int:
        """Exact but for what goes wrong on the way: equal contents count once, parts of an earlier run not at all."""
        parts = _staging.parts_on_disk(self._location)
        unique = {entry.sha256: entry.size for entry in fetch}
        usable = (parts[name] if parts.get(name, 0) <= size else 0 for name, size in unique.items() if name in parts)
        return sum(unique.values()) - sum(usable)

    def _check_blockers(self, blockers: Sequence[str]) -> None:
        if blockers:
            more = f" and {len(blockers) - _SHOWN} more" if len(blockers) > _SHOWN else ""
            raise FleetError(
                "path.in_the_way",
                f"In {self._location.path}, {', '.join(ascii(item) for item in blockers[:_SHOWN])}{more} of other "
                "origin stand where files or directories of the model have to be (symbolic links are not followed)",
                "regular files, real directories, or nothing in their place",
                "Move them away, or choose another path",
            )

    def _check_space(self, plan: _Plan) -> None:
        if not plan.fetch:
            return
        needed, inodes = space_needed(plan.bytes_to_fetch, plan.fetch, len(plan.found))
        place = self._location.nearest
        free = os.statvfs(place)
        available = free.f_bavail * free.f_frsize
        if available < needed:
            raise FleetError(
                "disk.no_space",
                f"The file system of {place} has {amount(available)} free, and {self._location.path} needs "
                f"{amount(needed)} more",
                f"{needed} bytes free before the first one is fetched",
                "Free some space, choose a path on a larger file system, or leave files out with exclude",
            )
        if free.f_files and free.f_favail < inodes:
            raise FleetError(
                "disk.no_inodes",
                f"The file system of {place} has {free.f_favail} inodes free, and {self._location.path} needs {inodes}",
                f"{inodes} free inodes",
                "Remove small files there, or choose a path on another file system",
            )

    # --- making it so ---

    def _execute(self, plan: _Plan, target: _Target, staging: Staging) -> int:
        """Returns the bytes received."""
        request, tally = self._request, Tally()
        if plan.fetch:
            source = self._hub.source(request.model, target.resolution)
            fetch_all(plan.fetch, source, staging, request.workers, request.policy, tally)
        publication = _Publication(self._location, plan, target, staging, self._request)
        if plan.replaces:
            publication.publish()
        else:
            publication.refresh()
        return tally.received

    def _report(self, plan: _Plan) -> None:
        outcome = self._outcome
        outcome.changed = plan.changed
        outcome.bytes_fetched = plan.bytes_to_fetch
        outcome.adopted = len(plan.adopted)
        outcome.foreign = plan.foreign
        outcome.before, outcome.after = plan.before, plan.after


def space_needed(fetch_bytes: int, fetch: Sequence[Entry], items: int) -> tuple[int, int]:
    """Bytes and inodes that a run needs: what is missing, block rounding, the manifest, and a little air."""
    slack = 4096 * (len(fetch) + 16) + 512 * (len(fetch) + items)
    air = 4 * 1024 * 1024 + min(fetch_bytes // 100, 1024**3)
    return fetch_bytes + slack + air, 2 * len(fetch) + items + 16


def amount(count: int) -> str:
    """Bytes for a person: ``1.5 GiB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


# --- publishing ------------------------------------------------------------------------------------------------------


class _CannotSwap(Exception):
    """The new tree cannot be built or swapped in here; files have to be published one by one."""


class _Publication:
    """Brings verified parts into the artifact's directory and writes the manifest last."""

    def __init__(self, location: Location, plan: _Plan, target: _Target, staging: Staging, request: Request) -> None:
        self._location, self._plan, self._target = location, plan, target
        self._staging, self._request = staging, request

    def refresh(self) -> None:
        """The files are right already: only the manifest is written, and only when it would say something new."""
        with self._open_root() as root:
            for path in self._plan.adopted:
                self._open_to_readers(root, path)
            self._open_directories(root)
            self._write_manifest(root, only_if_new=True)

    def publish(self) -> None:
        if not self._must_go_one_by_one():
            with contextlib.suppress(_CannotSwap):
                self._swap()
                return
        self._one_by_one()

    def _must_go_one_by_one(self) -> bool:
        plan = self._plan
        if self._location.inside or len(plan.foreign) > _FOREIGN_MAX:
            return True
        device = os.fstat(self._staging.handle).st_dev
        return any(item.stat.st_dev != device for item in plan.found.values())

    @contextlib.contextmanager
    def _open_root(self) -> Iterator[int]:
        handle = _safefs.open_directory(self._location.path)
        try:
            yield handle
        finally:
            os.close(handle)

    # --- all at once ---

    def _swap(self) -> None:
        staging = self._staging
        _safefs.remove_tree(staging.handle, _staging.TREE_NAME)
        _safefs.make_directory(staging.handle, _staging.TREE_NAME)
        new = _safefs.open_directory(_staging.TREE_NAME, staging.handle)
        try:
            try:
                old = _safefs.open_directory(self._location.name, staging.parent)
            except FileNotFoundError:
                old = None
            try:
                self._build(new, old)
            finally:
                if old is not None:
                    os.close(old)
            self._write_manifest(new)
            _safefs.sync_directories(new)
        finally:
            os.close(new)
        self._put_in_place(old is not None)
        _safefs.sync_directory(staging.parent)

    def _build(self, new: int, old: int | None) -> None:
        plan, staging = self._plan, self._staging
        try:
            if old is not None:
                for path in [*plan.kept, *plan.foreign]:
                    if plan.found[path].kind == "directory":
                        with _safefs.directory(new, path, create=True):
                            pass
                    else:
                        _safefs.link(old, path, new, path)
            for entry in plan.fetch:
                _safefs.link(staging.parts, entry.sha256, new, entry.path)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise _CannotSwap from exc
            raise
        if old is not None:
            _safefs.copy_ownership(os.fstat(old), new)
            self._copy_directories(new)
        for path in plan.adopted:
            self._open_to_readers(new, path)
        self._open_directories(new)

    def _copy_directories(self, new: int) -> None:
        for path, item in self._plan.found.items():
            if item.kind != "directory":
                continue
            gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
            with gone, _safefs.directory(new, path) as handle:
                _safefs.copy_ownership(item.stat, handle)

    def _put_in_place(self, replaces: bool) -> None:
        parent, staging, name, tree = (
            self._staging.parent,
            self._staging.handle,
            self._location.name,
            _staging.TREE_NAME,
        )
        try:
            if not replaces:
                os.rename(tree, name, src_dir_fd=staging, dst_dir_fd=parent)
                return
            try:
                _safefs.exchange(staging, tree, parent, name)
            except _safefs.ExchangeUnsupported:
                self._two_renames(parent, staging, name, tree)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES):
                raise _CannotSwap from exc
            raise
        _safefs.remove_tree(staging, tree)

    @staticmethod
    def _two_renames(parent: int, staging: int, name: str, tree: str) -> None:
        """Where names cannot be swapped: a moment without the directory. ``Staging.recover`` mends a kill in it."""
        aside = _staging.OLD_NAME
        os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=staging)
        try:
            os.rename(tree, name, src_dir_fd=staging, dst_dir_fd=parent)
        except BaseException:
            os.rename(aside, name, src_dir_fd=staging, dst_dir_fd=parent)
            raise
        _safefs.remove_tree(staging, aside)

    # --- file by file ---

    def _one_by_one(self) -> None:
        """Each file is replaced atomically, the set of them is not; the manifest tells when it is complete."""
        plan, staging = self._plan, self._staging
        if not self._location.inside:
            _safefs.make_directory(staging.parent, self._location.name)
        with self._open_root() as root:
            wanted = {entry.path for entry in self._target.entries}
            parents = {parent for path in wanted for parent in _manifest.ancestors(path)}
            in_the_way = {
                path
                for path in plan.obsolete
                if path in parents or any(parent in wanted for parent in _manifest.ancestors(path))
            }
            self._remove(root, in_the_way)
            remaining = [entry.sha256 for entry in plan.fetch]
            for entry in plan.fetch:
                remaining.remove(entry.sha256)
                self._move(root, entry, last=entry.sha256 not in remaining)
            for path in plan.adopted:
                self._open_to_readers(root, path)
            self._open_directories(root)
            self._remove(root, set(plan.obsolete) - in_the_way)
            _safefs.sync_directories(root)
            self._write_manifest(root)

    def _move(self, root: int, entry: Entry, last: bool) -> None:
        parts, name = self._staging.parts, entry.sha256
        if not last:
            name = f"{entry.sha256}.copy"
            _copy(parts, entry.sha256, name)
        head, tail = _safefs.split(entry.path)
        with _safefs.directory(root, head, create=True) as goal:
            os.rename(name, tail, src_dir_fd=parts, dst_dir_fd=goal)

    @staticmethod
    def _remove(root: int, paths: set[str]) -> None:
        for path in paths:
            _safefs.unlink(root, path)
        _safefs.remove_empty_directories(root, paths)

    # --- both ---

    @staticmethod
    def _open_to_readers(root: int, path: str) -> None:
        """A file that another tool left readable for its owner alone gets the mode of ours."""
        handle = _safefs.open_regular(root, path)
        try:
            if stat.S_IMODE(os.fstat(handle).st_mode) & 0o444 != 0o444:
                with contextlib.suppress(PermissionError):
                    os.fchmod(handle, _safefs.FILE_MODE)
        finally:
            os.close(handle)

    def _open_directories(self, root: int) -> None:
        """The directories above adopted files, for the service user: a tool under umask 077 left them to its own."""
        if not self._plan.adopted:
            return
        above = {parent for path in self._plan.adopted for parent in _manifest.ancestors(path)}
        for path in ["", *sorted(above)]:
            with contextlib.ExitStack() as stack:
                handle = stack.enter_context(_safefs.directory(root, path)) if path else root
                mode = stat.S_IMODE(os.fstat(handle).st_mode)
                if mode & 0o055 != 0o055:
                    with contextlib.suppress(PermissionError):
                        os.fchmod(handle, mode | 0o055)

    def _write_manifest(self, root: int, only_if_new: bool = False) -> None:
        request, kept, old = self._request, self._plan.kept, self._plan.old
        stats = dict(kept)
        for entry in self._target.entries:
            if entry.path not in kept:
                state = _safefs.lstat(root, entry.path)
                if state is None or not stat.S_ISREG(state.st_mode) or state.st_size != entry.size:
                    raise FleetError(
                        "artifact.disturbed",
                        f"{entry.path} changed under {self._location.path} while it was being published",
                        "nobody else to write there during the run",
                        "Find out what else writes there, then run it again",
                    )
                stats[entry.path] = FileStat(state.st_size, state.st_mtime_ns)
        resolution = self._target.resolution
        manifest = Manifest(
            model=request.model,
            revision=request.revision,
            commit=resolution.commit,
            endpoint=request.endpoint,
            include=request.include,
            exclude=request.exclude,
            entries=self._target.entries,
            stats=stats,
            published=secrets.token_hex(8) if old is None or self._plan.replaces else old.published,
        )
        if only_if_new and self._plan.old == manifest:
            return
        with _safefs.directory(root, STATE_DIRECTORY, create=True) as home:
            _safefs.write_file(home, MANIFEST_NAME, _manifest.dump(manifest).encode())


def _copy(parts: int, name: str, copy: str) -> None:
    """A second file of the same content in the parts directory, sharing nothing with the first."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(copy, dir_fd=parts)
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parts)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(source, "rb") as reader, open(os.open(copy, flags, 0o600, dir_fd=parts), "wb") as writer:
        shutil.copyfileobj(reader, writer, _HASH_CHUNK)
        writer.flush()
        os.fchmod(writer.fileno(), _safefs.FILE_MODE)
        os.fsync(writer.fileno())


# --- absent ----------------------------------------------------------------------------------------------------------


def absent(request: Request) -> Outcome:
    """Remove what the manifest owns, the manifest, and what interrupted runs left. Asks no hub. Raises FleetError."""
    with _os_errors():
        return _Absence(request).run()


class _Absence:
    def __init__(self, request: Request) -> None:
        self._request = request
        self._location = _staging.locate(request.path)
        self._outcome = Outcome(self._location.path)

    def run(self) -> Outcome:
        outcome = self._outcome
        leftovers = os.path.lexists(self._location.staging)
        manifest = self._inspect()
        nothing = _description(None, None, None, {})
        outcome.before, outcome.after = nothing, nothing
        if manifest is not None:
            files = {entry.path: _shown(entry.size, entry.sha256) for entry in manifest.entries}
            outcome.before = _description(manifest.model, manifest.revision, manifest.commit, files)
            outcome.commit, outcome.entries = manifest.commit, manifest.entries
        outcome.changed = manifest is not None or leftovers
        if outcome.changed and not self._request.check_mode:
            self._remove()
        return outcome

    def _inspect(self) -> Manifest | None:
        """Our manifest, if the directory holds this model; fills in what is foreign."""
        try:
            root = _safefs.open_directory(self._location.path)
        except FileNotFoundError:
            return None
        try:
            warnings: list[str] = []
            manifest = read_manifest(root, self._location.path, warnings)
            if manifest is None or manifest.model != self._request.model:
                holds = "was not made by this module" if manifest is None else f"holds {manifest.model}"
                holds = warnings[0].rstrip(".") if warnings else f"{self._location.path} {holds}"
                self._outcome.warnings.append(f"{holds}; it was left alone.")
                return None
            found = {path: _as_found(item) for path, item in _safefs.walk(root, skip=STATE_DIRECTORY).items()}
            self._outcome.foreign = tuple(_manifest.foreign(found, manifest.by_path()))
            return manifest
        finally:
            os.close(root)

    def _remove(self) -> None:
        staging = _staging.acquire(self._location, self._request.lock_timeout, self._request.policy.sleep)
        try:
            self._outcome.warnings.clear()
            manifest = self._inspect()
            if manifest is not None:
                self._remove_owned(manifest)
            staging.discard()
        finally:
            staging.release()
        if manifest is not None:
            self._remove_directories()

    def _remove_owned(self, manifest: Manifest) -> None:
        root = _safefs.open_directory(self._location.path)
        try:
            owned = set(manifest.by_path())
            for path in owned:
                state = _safefs.lstat(root, path)
                if state is not None and not stat.S_ISDIR(state.st_mode):
                    _safefs.unlink(root, path)
            _safefs.remove_empty_directories(root, owned)
            # Last, so that a run that was cut short knows what is left to remove.
            _safefs.unlink(root, _MANIFEST_PATH)
        finally:
            os.close(root)

    def _remove_directories(self) -> None:
        for path in (os.path.join(self._location.path, STATE_DIRECTORY), self._location.path):
            with contextlib.suppress(OSError):  # foreign files, or a mount point
                os.rmdir(path)


# --- shared ----------------------------------------------------------------------------------------------------------


def read_manifest(root: int, path: str, warnings: list[str]) -> Manifest | None:
    """The manifest of the open directory; None when there is none, or none that can be used (with a warning)."""
    try:
        handle = _safefs.open_regular(root, _MANIFEST_PATH)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
            warnings.append(f"{path}/{_MANIFEST_PATH} cannot be read ({exc.strerror}); it counts as missing.")
        return None
    with open(handle, "rb") as stream:
        raw = stream.read(_MANIFEST_BYTES_MAX)
    try:
        return _manifest.load(raw.decode())
    except ValueError as exc:
        text = f"{path}/{_MANIFEST_PATH} is damaged ({exc}); it counts as missing, and files are verified by content."
        if text not in warnings:
            warnings.append(text)
        return None


@dataclass
class _Hashes:
    """Hashed files: the stat of the right ones, the SHA-256 found in the wrong ones."""

    right: dict[str, FileStat] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


def _hash_all(root: int, entries: Sequence[Entry], workers: int) -> _Hashes:
    result = _Hashes()
    if not entries:
        return result
    count = max(1, min(workers, os.cpu_count() or 1, len(entries)))
    pool = ThreadPoolExecutor(max_workers=count)
    stop = threading.Event()
    try:
        for entry, (state, digest) in zip(entries, pool.map(lambda item: _hash_one(root, item, stop), entries)):
            if state is not None and digest == entry.sha256:
                result.right[entry.path] = state
            else:
                result.wrong[entry.path] = digest
    finally:
        stop.set()  # an interrupt does not wait for the end of a large file
        pool.shutdown(wait=True, cancel_futures=True)
    return result


def _hash_one(root: int, entry: Entry, stop: threading.Event) -> tuple[FileStat | None, str]:
    """The file's stat, None when it changed meanwhile, and its SHA-256."""
    digest = hashlib.sha256()
    try:
        handle = _safefs.open_regular(root, entry.path)
    except OSError:
        return None, ""
    with open(handle, "rb", buffering=0) as stream:
        before = os.fstat(handle)
        buffer = bytearray(_HASH_CHUNK)
        view = memoryview(buffer)
        while count := stream.readinto(buffer):
            digest.update(view[:count])
            if stop.is_set():
                return None, ""
        after = os.fstat(handle)
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return (FileStat(after.st_size, after.st_mtime_ns) if same else None), digest.hexdigest()


def _stat_entries(root: int, entries: Iterable[Entry]) -> dict[str, Found]:
    found = {}
    for entry in entries:
        state = _safefs.lstat(root, entry.path)
        if state is not None:
            kind = "file" if stat.S_ISREG(state.st_mode) else "other"
            found[entry.path] = Found(kind, FileStat(state.st_size, state.st_mtime_ns))
    return found


def _as_found(item: _safefs.Item) -> Found:
    return Found(item.kind, FileStat(item.stat.st_size, item.stat.st_mtime_ns))


def _before(
    old: Manifest | None,
    target: _Target,
    found: dict[str, Found],
    kept: dict[str, FileStat],
    wrong: dict[str, str],
) -> dict[str, Any]:
    """What was there, in the terms of ``_description``: only paths that the old or the new artifact owns."""
    files: dict[str, str] = {}
    for entry in target.entries:
        item = found.get(entry.path)
        if entry.path in kept:
            files[entry.path] = _shown(entry.size, entry.sha256)
        elif item is not None:
            files[entry.path] = _shown(item.stat.size, wrong.get(entry.path) or f"({item.kind}, not compared)")
    known = old.by_path() if old is not None else {}
    for path, entry in known.items():
        if path not in files and path in found:
            files[path] = _shown(entry.size, entry.sha256)
    if old is None:
        return _description(None, None, None, files)
    return _description(old.model, old.revision, old.commit, files)


def _shown(size: int, sha256: str) -> str:
    return f"{size} bytes, sha256 {sha256}"


def _description(model: str | None, revision: str | None, commit: str | None, files: dict[str, str]) -> dict[str, Any]:
    return {"model": model, "revision": revision, "commit": commit, "files": dict(sorted(files.items()))}


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Failures of the file system in the one exception tree; disk full gets its own code."""
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f" at {exc.filename}" if exc.filename is not None else ""
        raise FleetError(
            "disk.full" if full else "path.failed",
            f"{exc.strerror or type(exc).__name__}{where}",
            "a writable file system with room" if full else "file operations in the artifact's directory to succeed",
            "Free some space and run it again" if full else "Check permissions and the file system, then run it again",
        ) from exc
