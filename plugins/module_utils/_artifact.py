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
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import (
    CONNECTIONS,
    Limits,
    Observer,
    RetryPolicy,
    Source,
    fetch_all,
)

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_hash import Hashes
    from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
    from ansible_collections.gpufleet.vllm.plugins.module_utils._staging import Staging

MANIFEST_PATH = f"{STATE_DIRECTORY}/{MANIFEST_NAME}"
_MANIFEST_BYTES_MAX = 256 * 1024 * 1024
_SHOWN = 5

_NO_ANSWER = ("hub.unreachable", "hub.unavailable")


class Hub(Protocol):
    """What an artifact needs from a hub. ``_hub.HubClient`` is the one for ModelScope."""

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution: ...

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, Any]]: ...

    def source(self, model: str, resolution: Resolution) -> Source: ...


@dataclass(frozen=True)
class Request:
    """What is wanted. ``lock_timeout`` in seconds, ``bandwidth`` in bytes per second (0: all there is).

    ``engine`` is native or modelscope; ``client`` the official client's command for the latter.
    """

    model: str
    revision: str
    path: str
    endpoint: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    connections: int = CONNECTIONS
    bandwidth: int = 0
    allow_pickle: bool = False
    engine: str = "native"
    client: str = "modelscope"
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
    left_out: tuple[str, ...] = ()
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


def present(
    request: Request,
    hub: Hub,
    verify: bool = False,
    monitor: Monitor | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """Make the artifact be there: every selected file of the model at the revision, verified. Raises FleetError.

    ``verify`` trusts no recorded stat and hashes every file that is there.
    """
    own = monitor or Monitor()
    with os_errors():
        outcome = _Presence(request, hub, verify, own, observer).run()
    if monitor is None:  # else its owner tells
        outcome.warnings.extend(own.snapshot()["notes"])
    return outcome


def settled(request: Request, hub: Hub) -> Outcome | None:
    """What :func:`present` comes to where a look is enough; None where there is work to do. Raises FleetError."""
    with os_errors():
        return _Presence(request, hub, False, Monitor(), None).settled()


def absent(request: Request) -> Outcome:
    """Remove what the manifest owns, the manifest, and what interrupted runs left. Asks no hub. Raises FleetError."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_remove import Absence

    with os_errors():
        return Absence(request).run()


@dataclass(frozen=True)
class Target:
    """What shall be there, what of the listing shall not, and the hub's word on the revision."""

    resolution: Resolution
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]


@dataclass
class Plan:
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
    def __init__(self, request: Request, hub: Hub, verify: bool, monitor: Monitor, observer: Observer | None) -> None:
        self._request, self._hub, self._verify = request, hub, verify
        self._monitor, self._observer = monitor, observer
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

    def settled(self) -> Outcome | None:
        old = self._read_manifest()
        self._outcome.published = old.published if old is not None else None
        target = self._target(old)
        return self._outcome if target is None or self._untouched(old, target) else None

    # --- what is wanted ---

    def _target(self, old: Manifest | None) -> Target | None:
        """What shall be there; None when the hub cannot tell and what is there does."""
        request = self._request
        standing = old if old is not None and self._same_request(old) else None
        try:
            resolution = self._hub.resolve(request.model, request.revision, patient=standing is None)
            self._outcome.warnings.extend(resolution.warnings)
            if old is not None and self._same_content(old, resolution):
                return Target(resolution, old.entries, old.left_out)
            rows = self._hub.list_rows(request.model, resolution)
        except FleetError as exc:
            if standing is None or exc.code not in _NO_ANSWER or not self._complete(standing):
                raise
            self._keep(standing, exc)
            return None
        entries = _manifest.entries_from_rows(rows, request.include, request.exclude)
        entries, left_out = _manifest.without_pickles(entries, request.allow_pickle)
        return Target(resolution, entries, left_out)

    def _same_selection(self, old: Manifest) -> bool:
        request = self._request
        if request.allow_pickle and old.left_out:
            return False
        if not request.allow_pickle and any(_manifest.is_pickle(entry.path) for entry in old.entries):
            return False
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
        self._state(standing.entries, standing.left_out, standing.commit)

    def _complete(self, standing: Manifest) -> bool:
        with self._root() as root:
            if root is None:
                return False
            found = _stat_entries(root, standing.entries)
            comparison = _manifest.compare(standing.entries, standing, found, self._verify)
            if comparison.missing:
                return False
            return not self._hash(root, comparison.to_hash).wrong

    def _hash(self, root: int, entries: Sequence[Entry]) -> Hashes:
        from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_hash import hash_all

        return hash_all(root, entries, self._monitor)

    def _untouched(self, old: Manifest | None, target: Target) -> bool:
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
        self._state(old.entries, old.left_out, commit)
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

    def _state(self, entries: tuple[Entry, ...], left_out: tuple[str, ...], commit: str | None) -> None:
        files = {entry.path: shown(entry.size, entry.sha256) for entry in entries}
        self._outcome.commit, self._outcome.entries, self._outcome.left_out = commit, entries, left_out
        self._outcome.before = self._outcome.after = description(
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

    def _plan(self, target: Target) -> Plan:
        old = self._read_manifest()
        with self._root() as root:
            items = {} if root is None else _safefs.walk(root, skip=STATE_DIRECTORY)
            found = {path: as_found(item) for path, item in items.items()}
            comparison = _manifest.compare(target.entries, old, found, self._verify)
            hashes = None if root is None else self._hash(root, comparison.to_hash)
        wanted = {entry.path for entry in target.entries}
        owned = set(old.by_path()) if old is not None else set()
        foreign = _manifest.foreign(found, owned - wanted)
        self._check_blockers(_manifest.blockers(target.entries, foreign, found))
        kept = {entry.path: found[entry.path].stat for entry in comparison.trusted}
        right, wrong = (hashes.right, hashes.wrong) if hashes is not None else ({}, {})
        kept.update(right)
        plan = Plan(
            old=old,
            found=items,
            kept=kept,
            fetch=tuple(entry for entry in target.entries if entry.path not in kept),
            adopted=tuple(path for path in right if path not in owned),
            obsolete=tuple(sorted(path for path in owned - wanted if path in found)),
            foreign=tuple(path for path in foreign if path not in wanted),
            bytes_to_fetch=0,
            before=_before(old, target, found, kept, wrong),
            after=description(
                self._request.model,
                self._request.revision,
                target.resolution.commit,
                {entry.path: shown(entry.size, entry.sha256) for entry in target.entries},
            ),
        )
        plan.bytes_to_fetch = self._bytes_to_fetch(plan.fetch)
        self._check_space(plan)
        outcome = self._outcome
        outcome.commit, outcome.entries, outcome.left_out = target.resolution.commit, target.entries, target.left_out
        if plan.fetch and target.left_out:
            outcome.warnings.append(_manifest.left_out_warning(target.left_out))
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

    def _check_space(self, plan: Plan) -> None:
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

    def _execute(self, plan: Plan, target: Target, staging: Staging) -> int:
        """Returns the bytes received."""
        from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_publish import Publication

        request, received = self._request, 0
        if plan.fetch:
            received = self._fetch(plan, target, staging)
            staging.sync(entry.sha256 for entry in plan.fetch)
        self._monitor.begin("publishing")
        publication = Publication(self._location, plan, target, staging, request)
        if plan.replaces:
            publication.publish()
        else:
            publication.refresh()
        self._monitor.begin("done")
        return received

    def _fetch(self, plan: Plan, target: Target, staging: Staging) -> int:
        request = self._request
        if request.engine == "modelscope":
            from ansible_collections.gpufleet.vllm.plugins.module_utils import _official
            from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient

            if not isinstance(self._hub, HubClient):
                raise FleetError(
                    "artifact.engine",
                    "the official client is to fetch from other hosts of the fleet",
                    "engine: native for that, as the official client knows hubs alone",
                    "Set the engine to native, or the distribution to direct",
                )
            client = _official.Client(request.client, request.model, target.resolution, self._hub)
            return client.fetch(plan.fetch, staging, self._monitor)
        return fetch_all(
            plan.fetch,
            self._hub.source(request.model, target.resolution),
            staging,
            Limits(request.connections, request.bandwidth),
            request.policy,
            self._monitor,
            self._observer,
        )

    def _report(self, plan: Plan) -> None:
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


# --- shared ----------------------------------------------------------------------------------------------------------


def read_manifest(root: int, path: str, warnings: list[str]) -> Manifest | None:
    """The manifest of the open directory; None when there is none, or none that can be used (with a warning)."""
    try:
        handle = _safefs.open_regular(root, MANIFEST_PATH)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
            warnings.append(f"{path}/{MANIFEST_PATH} cannot be read ({exc.strerror}); it counts as missing.")
        return None
    with open(handle, "rb") as stream:
        raw = stream.read(_MANIFEST_BYTES_MAX)
    try:
        return _manifest.load(raw.decode())
    except ValueError as exc:
        text = f"{path}/{MANIFEST_PATH} is damaged ({exc}); it counts as missing, and files are verified by content."
        if text not in warnings:
            warnings.append(text)
        return None


def _stat_entries(root: int, entries: Iterable[Entry]) -> dict[str, Found]:
    found = {}
    for entry in entries:
        state = _safefs.lstat(root, entry.path)
        if state is not None:
            kind = "file" if stat.S_ISREG(state.st_mode) else "other"
            found[entry.path] = Found(kind, FileStat(state.st_size, state.st_mtime_ns))
    return found


def as_found(item: _safefs.Item) -> Found:
    return Found(item.kind, FileStat(item.stat.st_size, item.stat.st_mtime_ns))


def _before(
    old: Manifest | None,
    target: Target,
    found: dict[str, Found],
    kept: dict[str, FileStat],
    wrong: dict[str, str],
) -> dict[str, Any]:
    """What was there, in the terms of ``_description``: only paths that the old or the new artifact owns."""
    files: dict[str, str] = {}
    for entry in target.entries:
        item = found.get(entry.path)
        if entry.path in kept:
            files[entry.path] = shown(entry.size, entry.sha256)
        elif item is not None:
            files[entry.path] = shown(item.stat.size, wrong.get(entry.path) or f"({item.kind}, not compared)")
    known = old.by_path() if old is not None else {}
    for path, entry in known.items():
        if path not in files and path in found:
            files[path] = shown(entry.size, entry.sha256)
    if old is None:
        return description(None, None, None, files)
    return description(old.model, old.revision, old.commit, files)


def shown(size: int, sha256: str) -> str:
    return f"{size} bytes, sha256 {sha256}"


def description(model: str | None, revision: str | None, commit: str | None, files: dict[str, str]) -> dict[str, Any]:
    return {"model": model, "revision": revision, "commit": commit, "files": dict(sorted(files.items()))}


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
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
