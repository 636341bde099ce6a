# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Bringing verified parts into an artifact's directory: all at once where the file system can, else file by file."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _safefs, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import (
    MANIFEST_NAME,
    STATE_DIRECTORY,
    FileStat,
    Manifest,
)

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Plan, Request, Target
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._staging import Location, Staging

_COPY_CHUNK = 1024 * 1024

_FOREIGN_MAX = 10000
"""Foreign items above which a directory is not rebuilt to be swapped: it holds more than a model."""


class _CannotSwap(Exception):
    """The new tree cannot be built or swapped in here; files have to be published one by one."""


class Publication:
    """Brings verified parts into the artifact's directory and writes the manifest last."""

    def __init__(self, location: Location, plan: Plan, target: Target, staging: Staging, request: Request) -> None:
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
            left_out=self._target.left_out,
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
        shutil.copyfileobj(reader, writer, _COPY_CHUNK)
        writer.flush()
        os.fchmod(writer.fileno(), _safefs.FILE_MODE)
        os.fsync(writer.fileno())
