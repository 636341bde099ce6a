# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The engine simulator's root file system: a small Debian with Python, and ``vllm`` on PATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import engine_sim

from .errors import ImageError
from .root import SUITES, debian, trim_python, write
from .store import archive, digest_of_files, pack

PACKAGES = ("base-files", "coreutils", "dash", "libc-bin", "python3")
RECIPE = 1
"""Raise it when what is installed changes while no source of this package does."""

_HERE = Path(__file__).parent
_SITE = "usr/local/lib/python3.11/dist-packages"
_VLLM = """#!/usr/bin/python3
import sys

from engine_sim.server import main

sys.exit(main(sys.argv[1:]))
"""


def simulator_rootfs(audio: bool) -> Path:
    """The archive; with ``audio``, a decoder for the audio check to find."""
    simulator = Path(engine_sim.__file__).parent
    own = digest_of_files(_HERE / "root.py", _HERE / "simulator.py", _HERE / "overlay", simulator)
    inputs = {"recipe": RECIPE, "packages": PACKAGES, "sources": own, "audio": audio}

    def build(scratch: Path, target: Path) -> None:
        root = scratch / "root"
        debian(root, SUITES["3.11"], "extract", PACKAGES)
        _install(root, simulator, audio)
        trim_python(root)
        pack(root, target, mtime="@0")

    return archive("engine-sim" if audio else "engine-sim-noaudio", inputs, build)


def _install(root: Path, simulator: Path, audio: bool) -> None:
    site = root / _SITE
    shutil.copytree(simulator, site / "engine_sim", ignore=shutil.ignore_patterns("__pycache__"))
    version = _version(simulator)
    write(root, f"{_SITE}/vllm/__init__.py", f'__version__ = "{version}"\n')
    about = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nSummary: The engine simulator\n"
    write(root, f"{_SITE}/vllm-{version}.dist-info/METADATA", about)
    write(root, "usr/local/bin/vllm", _VLLM, 0o755)
    if audio:
        shutil.copy(_HERE / "overlay" / "av.py", site)


def _version(simulator: Path) -> str:
    argv = [sys.executable, "-m", "engine_sim", "--version"]
    done = subprocess.run(argv, cwd=simulator.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        raise ImageError(
            f"the engine simulator does not tell its version: {done.stderr.strip()[-300:]}",
            "python -m engine_sim --version prints it",
            "see what is wrong with tests/lab/engine_sim",
        )
    return done.stdout.split()[-1]
