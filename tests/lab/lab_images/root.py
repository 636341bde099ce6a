# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Debian root file system with the official image's contract: user 2000 of group 0, and a home that it may write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .store import run

UID, GID = 2000, 0
HOME = "/home/vllm"
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
"""The Debian release that has a Python, by its version: compiled modules fit no other."""

_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/log")
# What a server needs least of Python's library.
_UNUSED = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo", "unittest")


def debian(root: Path, suite: str, variant: str, packages: Sequence[str]) -> None:
    """Unpack (variant extract) or install (minbase) packages below ``root``."""
    run(
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude=/{path}/*" for path in _UNWANTED[:4]),
        suite,
        root,
    )
    for path in _UNWANTED:
        shutil.rmtree(root / path, ignore_errors=True)
    (root / "var" / "log").mkdir(parents=True)
    add_user(root)


def add_user(root: Path) -> None:
    """The user that services run as, beside root."""
    passwd = root / "etc" / "passwd"
    lines = passwd.read_text(encoding="utf-8") if passwd.exists() else "root:x:0:0:root:/root:/bin/sh\n"
    passwd.write_text(f"{lines}vllm:x:{UID}:{GID}::{HOME}:/bin/sh\n", encoding="utf-8")
    group = root / "etc" / "group"
    if not group.exists():
        group.write_text("root:x:0:\n", encoding="utf-8")
    home = root / HOME[1:]
    home.mkdir(parents=True)
    os.chown(home, UID, GID)
    home.chmod(0o2775)


def trim_python(root: Path) -> None:
    """Leave the standard library's unlikely parts out, and compile the rest: nobody can while the image runs."""
    for library in (root / "usr" / "lib").glob("python3.*"):
        for name in _UNUSED:
            shutil.rmtree(library / name, ignore_errors=True)
        compiled = (f"/usr/lib/{library.name}", f"/usr/local/lib/{library.name}")
        # Never checked against the source: a root file system that is copied may get other times.
        mode = "unchecked-hash"
        run("chroot", root, "/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", mode, *compiled)


def write(root: Path, path: str, text: str, mode: int = 0o644) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
