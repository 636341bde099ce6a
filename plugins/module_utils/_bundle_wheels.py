# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Python packages in a directory, with the requirements that they satisfy, for ``pip install --no-index``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle_tree
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import path_fault
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, run_command

STAMP = ".gpufleet-wheels.json"
REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Options:
    """``requirements`` are texts of requirements files, each resolved by itself; ``timeout`` in seconds."""

    path: str
    requirements: t.Sequence[str]
    python: str
    pip_args: t.Sequence[str] = ()
    timeout: int = 3600
    check_mode: bool = False


Run = t.Callable[[t.Sequence[str], float, t.Mapping[str, str]], CommandResult]


def file_names(count: int) -> list[str]:
    """Under which names the requirements are kept: one is ``requirements.txt``, of several each has its number."""
    return [REQUIREMENTS] if count == 1 else [f"requirements-{number}.txt" for number in range(1, count + 1)]


def is_locked(requirements: str) -> bool:
    """Whether each package comes with its SHA-256, and so with all that it needs."""
    return "--hash=sha256:" in requirements


def present(options: Options, run: Run = run_command) -> dict[str, t.Any]:
    """Have the packages in ``path``. Raises FleetError or OSError."""
    _check(options)
    wanted = _digest(options)
    before = _read_stamp(options.path)
    files = _unchanged(options.path, before) if before.get("wanted") == wanted else None
    changed = files is None
    if files is None and not options.check_mode:
        files = _Download(options, run).run(wanted)
    return {
        "changed": changed,
        "path": options.path,
        "files": sorted(files or {}),
        "bytes_total": sum(size for size, _mtime in (files or {}).values()),
        "diff": {
            "before_header": options.path,
            "after_header": options.path,
            "before": {"requirements": before.get("wanted", ""), "files": sorted(before.get("files", {}))},
            "after": {"requirements": wanted, **({} if files is None else {"files": sorted(files)})},
        },
    }


def _check(options: Options) -> None:
    if not options.requirements or not all(text.strip() for text in options.requirements):
        raise FleetError(
            "wheels.no_requirements", f"no requirements for {options.path}", "at least one requirement", "name some"
        )
    if path_fault(os.path.basename(options.path.rstrip("/"))):
        raise FleetError("wheels.bad_path", f"path {options.path!a}", "a directory of its own", "correct path")
    _bundle_tree.check_own(options.path, STAMP, "wheels.path_in_use")


def _digest(options: Options) -> str:
    given = [list(options.requirements), options.python, list(options.pip_args)]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def _read_stamp(path: str) -> dict[str, t.Any]:
    try:
        with open(os.path.join(path, STAMP), encoding="utf-8") as stream:
            document = json.load(stream)
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _unchanged(path: str, stamp: t.Mapping[str, t.Any]) -> dict[str, tuple[int, int]] | None:
    """The files, where all of them are as they were written."""
    found = _look(path)
    return found if {name: list(stat) for name, stat in found.items()} == stamp.get("files") else None


def _look(path: str) -> dict[str, tuple[int, int]]:
    found = {}
    with os.scandir(path) as items:
        for item in items:
            if item.name != STAMP:
                state = item.stat(follow_symlinks=False)
                found[item.name] = (state.st_size, state.st_mtime_ns)
    return found


class _Download:
    def __init__(self, options: Options, run: Run) -> None:
        self._options, self._run = options, run
        parent, name = os.path.split(os.path.abspath(options.path))
        self._path, self._parent = os.path.join(parent, name), parent
        self._new, self._old, self._lock = (
            os.path.join(parent, f".{name}.gpufleet-{what}") for what in ("new", "old", "lock")
        )

    def run(self, wanted: str) -> dict[str, tuple[int, int]]:
        """Into a directory beside, that takes the old one's place: what nobody needs any more is gone."""
        options = self._options
        os.makedirs(self._parent, 0o755, exist_ok=True)
        held = _bundle_tree.lock(self._lock, options.path)
        try:
            self._clean()
            os.mkdir(self._new, 0o755)
            for name, text in zip(file_names(len(options.requirements)), options.requirements):
                with open(os.path.join(self._new, name), "w", encoding="utf-8") as stream:
                    stream.write(f"{text.rstrip()}\n")
                self._pip(name, text)
            files = _look(self._new)
            for name in files:
                os.chmod(os.path.join(self._new, name), 0o644)
            with open(os.path.join(self._new, STAMP), "w", encoding="utf-8") as stream:
                json.dump({"wanted": wanted, "files": files}, stream)
            self._swap()
        finally:
            self._clean()
            os.unlink(self._lock)
            os.close(held)
        return files

    def _swap(self) -> None:
        """By two renames: a run that is killed between them leaves nothing that is half ours."""
        _bundle_tree.check_own(self._path, STAMP, "wheels.path_in_use")  # pip took its time
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path, self._old)
        os.rename(self._new, self._path)

    def _clean(self) -> None:
        # Between the two renames the packages are in here, and only there.
        if not os.path.lexists(self._path) and os.path.isfile(os.path.join(self._old, STAMP)):
            os.rename(self._old, self._path)
        for path in (self._new, self._old):
            shutil.rmtree(path, ignore_errors=True)

    def _pip(self, name: str, text: str) -> None:
        options = self._options
        argv = [options.python, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        argv += ["--require-hashes", "--no-deps"] if is_locked(text) else []
        argv += ["--dest", self._new, "--requirement", os.path.join(self._new, name), *options.pip_args]
        done = self._run(argv, float(options.timeout), {**os.environ, "LC_ALL": "C.UTF-8"})
        if done.rc != 0:
            words = [line.strip() for line in done.err.splitlines() if line.strip()][-6:] or [done.last_words]
            raise FleetError(
                "wheels.pip",
                f"pip download ended with status {done.rc}: {' '.join(words)}",
                "every package from the indexes that pip is configured with, as a wheel for the hosts' Python",
                "check the way to the package index (pip.conf, PIP_INDEX_URL, proxy), that python has pip, and whether "
                "pip_args fit the hosts (--python-version, --platform)",
            )
