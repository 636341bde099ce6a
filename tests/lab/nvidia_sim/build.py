# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put the simulation into a root file system. The library is compiled once and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nvidia_sim.host import TOOLKIT
from nvidia_sim.state import SimError

HERE = Path(__file__).parent
NVIDIA_ML_PY = "nvidia-ml-py==13.615.71"
NVIDIA_ML_PY_SHA256 = "959bf4adf6fe1308e4bd739e722236b0d1ec8392e2cefad33ff70c311380b9b6"
_COMPILE = (
    "gcc",
    "-shared",
    "-fPIC",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-std=c11",
    "-Wl,-soname,libnvidia-ml.so.1",
)
_PROGRAMS = {
    "usr/bin/nvidia-smi": "smi:main",
    "usr/lib/gpusim/gpusim": "host:main",
    "usr/local/bin/dmesg": "host:dmesg",
    "usr/bin/nv-fabricmanager": "host:fabric_manager",
}
# Every program finds the file system that it lies in by its own place, so an installed tree works below any directory.
_LAUNCHER = """#!{python} -I
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[{depth}]
sys.path.insert(0, str(root / "usr/lib/gpusim"))
from nvidia_sim.{module} import {function}
from nvidia_sim.state import SimError

try:
    sys.exit({function}(root, sys.argv[1:]))
except SimError as error:
    sys.exit(f"{{sys.argv[0]}}: {{error}}")
"""
_UNITS = {
    "gpusim.service": """[Unit]
Description=Simulated NVIDIA driver
Before=docker.service containerd.service ssh.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/usr/bin/gpusim apply

[Install]
WantedBy=multi-user.target
""",
    "nvidia-fabricmanager.service": """[Unit]
Description=Simulated Fabric Manager

[Service]
ExecStart=/usr/bin/sleep infinity
""",
    "nvidia-persistenced.service": """[Unit]
Description=Simulated persistence daemon

[Service]
ExecStart=/usr/bin/sleep infinity
""",
    "gpusim.path": """[Unit]
Description=Changes of the simulated GPUs

[Path]
PathChanged=/etc/gpusim/gpus.json

[Install]
WantedBy=multi-user.target
""",
}


def digest() -> str:
    """Of everything that :func:`install` puts into a root: a key for whoever keeps what holds it."""
    total = hashlib.sha256(platform.machine().encode())
    for path in sorted(HERE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()


def install(
    root: Path,
    *,
    driver: bool = True,
    toolkit: bool = True,
    nvidia_ml_py: bool = False,
    python: str = "/usr/bin/python3",
) -> None:
    """Put the driver's part, the container toolkit's, or both into the root file system ``root``.

    :param driver: nvidia-smi, the NVML library, ``gpusim`` and its units. The toolkit needs it, but may come later.
    :param toolkit: nvidia-ctk, the runtime, its hook and their like; without, those that are there are removed.
    :param nvidia_ml_py: also NVIDIA's Python binding of NVML, for the interpreter of Debian.
    :param python: the interpreter of the programs: 3.11 or later, with its standard library.
    """
    if driver:
        _install_driver(root, python)
    for name, entry in TOOLKIT.items():
        path = root / "usr/bin" / name
        (root / "usr/lib/gpusim/hidden" / name).unlink(missing_ok=True)
        if toolkit:
            _write_program(path, entry, python, depth=2)
        else:
            path.unlink(missing_ok=True)
    if nvidia_ml_py:
        target = root / "usr/lib/python3/dist-packages"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(binding() / "pynvml.py", target / "pynvml.py")


def _install_driver(root: Path, python: str) -> None:
    package = root / "usr/lib/gpusim/nvidia_sim"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "__main__.py", "nvml.c", "build.py", "__init__.py")
    shutil.copytree(HERE, package, ignore=ignored)
    shutil.copyfile(library(), package.parent / "libnvidia-ml.so")
    for path, entry in _PROGRAMS.items():
        _write_program(root / path, entry, python, depth=len(Path(path).parts) - 1)
    _link(root / "usr/bin/gpusim", "../lib/gpusim/gpusim")
    _link(root / f"usr/lib/{platform.machine()}-linux-gnu/libnvidia-ml.so.1", "../gpusim/libnvidia-ml.so")
    for name, text in _UNITS.items():
        _write(root / "usr/lib/systemd/system" / name, text)
        if "[Install]" in text:
            _link(root / "etc/systemd/system/multi-user.target.wants" / name, f"/usr/lib/systemd/system/{name}")


def _write_program(path: Path, entry: str, python: str, depth: int) -> None:
    module, _colon, function = entry.partition(":")
    _write(path, _LAUNCHER.format(python=python, depth=depth, module=module, function=function))
    path.chmod(0o755)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# --------------------------------------------------------------------------------------------------------------------
# What is built or fetched once
# --------------------------------------------------------------------------------------------------------------------


def _cache() -> Path:
    own = os.environ.get("GPUFLEET_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpufleet-vllm"
    directory = base / "nvidia-sim"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def library() -> Path:
    """The compiled library. Two who build it at once both do, and one replaces the other's equal file."""
    source = HERE / "nvml.c"
    key = hashlib.sha256(source.read_bytes() + "\0".join([*_COMPILE, platform.machine()]).encode()).hexdigest()[:16]
    built = _cache() / f"libnvidia-ml-{key}.so"
    if built.exists():
        return built
    with tempfile.TemporaryDirectory(dir=built.parent) as directory:
        made = Path(directory) / built.name
        try:
            subprocess.run([*_COMPILE, "-o", made, source], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise SimError(
                "gcc was not found", "a C compiler for libnvidia-ml.so.1", "apt-get install gcc libc6-dev"
            ) from error
        except subprocess.CalledProcessError as error:
            raise SimError(
                f"gcc could not compile {source}: {error.stderr.strip()}",
                "a C compiler and the C library's headers",
                "apt-get install gcc libc6-dev",
            ) from error
        made.replace(built)
    return built


def binding() -> Path:
    """A directory with NVIDIA's own nvidia-ml-py, from the package index, checked by its digest."""
    target = _cache() / f"nvidia-ml-py-{NVIDIA_ML_PY_SHA256[:16]}"
    if (target / "pynvml.py").exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", directory, NVIDIA_ML_PY]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(Path(directory).glob("*.whl"), None)
        seen = done.stderr.strip() if wheel is None else hashlib.sha256(wheel.read_bytes()).hexdigest()
        if wheel is None or seen != NVIDIA_ML_PY_SHA256:
            raise SimError(
                f"{' '.join(command)} gave: {seen}",
                f"the wheel with the SHA-256 {NVIDIA_ML_PY_SHA256}",
                "look at pip's index and network settings",
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extract("pynvml.py", Path(directory) / "made")
        target.mkdir(exist_ok=True)
        (Path(directory) / "made/pynvml.py").replace(target / "pynvml.py")
    return target
