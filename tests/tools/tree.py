# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The repository as a list of files, and a copy of it where Ansible's tools want it.

ansible-test and the collection build refuse a plain checkout: they want a directory named
``ansible_collections/<namespace>/<name>``, and they walk everything in it, environments and caches included.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """Where everything derived and large is kept, outside the tree."""
    if own := os.environ.get("GPUFLEET_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "gpufleet-vllm"


def _ignored(relative: str, is_dir: bool, patterns: list[str]) -> bool:
    """Whether a .gitignore made of plain patterns (no negation, no ``**``) hides the path."""
    for raw in patterns:
        if raw.endswith("/") and not is_dir:
            continue
        pattern = raw.rstrip("/")
        if "/" in pattern:
            if fnmatch.fnmatchcase(relative, pattern.lstrip("/")):
                return True
        elif fnmatch.fnmatchcase(os.path.basename(relative), pattern):
            return True
    return False


def walk_files(root: Path) -> list[str]:
    """Every file the root's .gitignore leaves visible, as sorted relative paths; symbolic links are not followed."""
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")] + [".git"]
    found: list[str] = []
    for here, directories, names in os.walk(root):
        base = os.path.relpath(here, root)

        def relative(name: str, base: str = base) -> str:
            return os.path.normpath(os.path.join(base, name))

        links = [name for name in directories if os.path.islink(os.path.join(here, name))]
        directories[:] = [
            name for name in directories if name not in links and not _ignored(relative(name), True, patterns)
        ]
        found += [path for path in map(relative, names + links) if not _ignored(path, False, patterns)]
    return sorted(found)


def git_files(root: Path) -> list[str] | None:
    """What git tracks or would add, or None where this is no working git checkout (a tarball, another owner)."""
    argv = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (root / ".git").exists():
        return None
    try:
        listing = subprocess.run(argv, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    # A deleted file that is still in the index is listed too.
    return sorted({name for name in os.fsdecode(listing).split("\0") if name and os.path.lexists(root / name)})


def source_files(root: Path = ROOT) -> list[str]:
    """The files that make up the source tree, as sorted relative paths, with or without git."""
    listed = git_files(root)
    return walk_files(root) if listed is None else listed


@contextlib.contextmanager
def collection_copy(root: Path = ROOT) -> Iterator[Path]:
    """A temporary copy of the source tree at ``.../ansible_collections/gpufleet/vllm``."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-tree-") as scratch:
        target = Path(scratch) / "ansible_collections" / "gpufleet" / "vllm"
        for name in source_files(root):
            destination = target / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, destination, follow_symlinks=False)
        yield target
