# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two supported pairs of ansible-core and Python, and the environment that holds each.

The pair that ``.venv`` is made of runs from there; the other gets an environment in the cache, keyed by its lock and
interpreter.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tree import ROOT, cache_dir

NOT_RUN = 77
"""Exit status of a step that could not run here and says so."""

LANES = {"2.19": ("3.11",), "2.21": ("3.13", "3.12")}
"""ansible-core series -> the Pythons that the locks give it, preferred first."""


class LaneMissingError(Exception):
    """No interpreter for a lane on this machine."""


@dataclass(frozen=True)
class Lane:
    """One environment: its core series, its Python version ``X.Y``, its ``bin`` directory."""

    core: str
    python: str
    bin: Path


def own_core() -> str:
    """The ansible-core series of the running environment, as ``X.Y``."""
    return ".".join(importlib.metadata.version("ansible-core").split(".")[:2])


def other_core() -> str:
    """The supported series that the running environment does not hold."""
    return next(core for core in LANES if core != own_core())


def _runs_as(executable: Path, version: str) -> bool:
    try:
        probe = subprocess.run(
            [str(executable), "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return probe.stdout.strip() == version


def find_interpreter(version: str) -> Path | None:
    """A working ``pythonX.Y``: on PATH (pyenv's shims may name one that they refuse to run), else among pyenv's own."""
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    versions = Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")) / "versions"
    if versions.is_dir():
        patch = re.compile(re.escape(version) + r"\.(\d+)$")
        installed = [(int(match.group(1)), entry) for entry in versions.iterdir() if (match := patch.match(entry.name))]
        candidates += [entry / "bin" / f"python{version}" for _patch, entry in sorted(installed, reverse=True)]
    return next((candidate for candidate in candidates if _runs_as(candidate, version)), None)


def search_path(*first: Path) -> str:
    """PATH with these directories in front and no shims: a shim answers for Pythons that it then refuses to run."""
    inherited = os.environ.get("PATH", os.defpath).split(os.pathsep)
    kept = [entry for entry in inherited if os.path.basename(entry.rstrip(os.sep)) != "shims"]
    return os.pathsep.join([*map(str, first), *kept])


def cached_environment(name: str, lock: Path, interpreter: Path) -> Path:
    """The ``bin`` directory of an environment in the cache that holds what the lock names, made when it is not there.

    Raises CalledProcessError when it cannot be made; what went wrong has been printed by then.
    """
    real = _real_interpreter(interpreter)
    digest = hashlib.sha256(real.encode() + lock.read_bytes()).hexdigest()[:10]
    place = cache_dir() / "venv" / f"{name}-{digest}"
    argv = ["sh", str(ROOT / "tests" / "tools" / "venv.sh"), str(place), str(lock), f"the {name} environment"]
    subprocess.run(argv, check=True, env={**os.environ, "PYTHON": real})
    return place / "bin"


def _real_interpreter(executable: Path) -> str:
    return subprocess.run(
        [str(executable), "-c", "import os, sys; print(os.path.realpath(sys.executable))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def get_lane(core: str) -> Lane:
    """The lane of one core series, its environment made when it is not there yet.

    Raises LaneMissingError when no fitting interpreter is found, CalledProcessError when the environment cannot be
    made.
    """
    if core == own_core():
        return Lane(core, f"{sys.version_info[0]}.{sys.version_info[1]}", Path(sys.prefix) / "bin")
    for version in LANES[core]:
        executable = find_interpreter(version)
        if executable is None:
            continue
        lock = ROOT / "requirements" / "test.txt"
        return Lane(core, version, cached_environment(f"core-{core}-py{version}", lock, executable))
    wanted = " or ".join(LANES[core])
    raise LaneMissingError(
        f"ansible-core {core} was not tested: no Python {wanted} on PATH or in ~/.pyenv/versions;"
        f" install one (Debian: python{LANES[core][0]} python{LANES[core][0]}-venv, or pyenv install {LANES[core][0]})"
    )


def not_run(reason: str) -> int:
    """Say what was not run; the exit status is an error in CI, where nothing may be left out."""
    print(f"NOT RUN: {reason}", flush=True)
    return 1 if os.environ.get("CI") else NOT_RUN
