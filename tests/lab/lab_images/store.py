# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where built archives are kept, and the commands that build them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ImageError

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Beside each program, the Debian package that has it.
PROGRAMS = {"mmdebstrap": "mmdebstrap", "chroot": "coreutils", "tar": "tar", "cp": "coreutils"}


def cache_root() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("GPUFLEET_CACHE") or os.path.join(home, "gpufleet-vllm"))


def digest_of(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def digest_of_files(*paths: Path) -> str:
    """A digest of the Python sources in directories, and of single files."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return digest_of({f"{file.parent.name}/{file.name}": file.read_text(encoding="utf-8") for file in files})


def archive(name: str, inputs: Mapping[str, Any], write: Callable[[Path, Path], None]) -> Path:
    """The archive made of ``inputs``, in the cache: made now by ``write(scratch, target)`` where it is not there yet.

    Older archives of that name are removed. Safe for several at once: the second waits, and then finds it.
    """
    store = cache_root() / "lab" / "images"
    store.mkdir(parents=True, exist_ok=True)
    target = store / f"{name}-{digest_of(inputs)[:16]}.tar"
    with _locked(store / f".{name}.lock"):
        if not target.exists():
            _require()
            for left in store.glob(f".{name}-{'?' * 8}"):  # by a build that was killed
                _remove(left)
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=store))
            try:
                write(scratch, scratch / "archive.tar")
                for old in store.glob(f"{name}-{'?' * 16}.tar"):
                    old.unlink()
                (scratch / "archive.tar").rename(target)
            finally:
                _remove(scratch)
    return target


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """What a command printed, both streams together; ImageError with it where the command failed."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": SEARCH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(environment or {})},
        check=False,
    )
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise ImageError(
            f"{' '.join(str(word) for word in command)[:200]} ended with {done.returncode}: {said[-2000:]}",
            "an end with 0",
            "see its message; downloads need the machine's way to its Debian mirror and package index",
        )
    return said


def pack(directory: Path, target: Path, entries: Sequence[str] = (".",), mtime: str | None = None) -> None:
    """Write the archive: in the order of names, with numeric owners, and the files' times or one time for all."""
    times = ["--mtime", mtime] if mtime else []
    run("tar", "-C", directory, "-cf", target, "--sort=name", "--numeric-owner", *times, "--", *entries)


def _remove(directory: Path) -> None:
    """Remove a directory, but nothing of what a killed mmdebstrap may have left mounted in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", directory], stderr=subprocess.DEVNULL, check=False)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _require() -> None:
    if os.geteuid() != 0:
        raise ImageError(
            f"the image builder was started by uid {os.geteuid()}",
            "root: an image's files belong to several users, and their programs run once in a chroot",
            "run the same command with sudo",
        )
    missing = sorted({package for name, package in PROGRAMS.items() if not shutil.which(name, path=SEARCH)})
    if missing:
        raise ImageError(
            f"missing on this machine: {', '.join(missing)}",
            "what an image is built with",
            f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
