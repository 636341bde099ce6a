# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real vLLM's root file system: the CPU engine that the collection installs, moved into a Debian of the same Python.

As the official image, it comes without what decodes audio; that is a layer of its own.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import _engine
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

from .errors import ImageError
from .root import SUITES, debian, write
from .store import archive, cache_root, pack, run

VERSION = _engine.VERSIONS[_engine.CPU]
# The same engine and packages make another image when this file does other things with them.
RECIPE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

# vLLM's CPU kernels link libnuma and libstdc++; /bin/sh and coreutils come with minbase, and so does apt.
PACKAGES = ("python3", "libnuma1", "libstdc++6", "ca-certificates")
PLACE = "opt/vllm"
AUDIO = ("av", "av.libs", "_soundfile.py", "_soundfile_data", "soundfile.py", "soxr")
"""What the extra vllm[audio] adds, as it lies in site-packages; with each its dist-info."""

_FILES = Path(__file__).parents[3] / "roles" / "vllm_engine" / "files"
_SKIPPED = ("./gpufleet-engine.*", "./include", "./share", "./bin/*")


def engine_rootfs() -> Path:
    """The archive without audio."""
    return archive("vllm-openai", _inputs(), _build_rootfs)


def audio_layer() -> Path:
    """The archive of what the other one lacks."""
    return archive("vllm-openai-audio", _inputs(), _build_layer)


def _inputs() -> dict[str, Any]:
    return {"recipe": RECIPE, "packages": PACKAGES, "audio": AUDIO, "engine": _engine_inputs()}


def _engine_inputs() -> dict[str, Any]:
    """What the engine that is installed, or would be, is made of."""
    wanted = _wanted()
    there = _engine.read_manifest(wanted.path).get("inputs", {})
    said = _engine.inputs(wanted, _engine.interpreter(""))
    # As the engine's own module: one that is there for another Python is used as it is.
    said["python"] = str(there.get("python", said["python"]))
    if said["python"] not in SUITES:
        raise ImageError(
            f"the engine is for Python {said['python']}",
            f"a Python that a Debian release has: {', '.join(SUITES)}",
            "make .venv with one of them: make clean; PYTHON=python3.11 make dev-setup",
        )
    return said


def _wanted() -> _engine.Wanted:
    return _engine.Wanted(
        # The quickstart's: whoever is first installs it.
        path=str(cache_root() / "engine" / "quickstart"),
        requirements=(_FILES / "engine-cpu.txt").read_text(encoding="utf-8"),
        torch_requirements=(_FILES / "engine-cpu-torch.txt").read_text(encoding="utf-8"),
    )


def _installed() -> tuple[Path, str]:
    """Where the engine is, installed now if it was not, and for which Python."""
    wanted = _wanted()
    try:
        _engine.present(wanted)
    except FleetError as error:
        raise ImageError(f"the CPU engine cannot be installed: {error}", "it is", "see its message") from error
    return Path(wanted.path), str(_engine_inputs()["python"])


def _build_rootfs(scratch: Path, target: Path) -> None:
    engine, python = _installed()
    root = scratch / "root"
    debian(root, SUITES[python], "minbase", PACKAGES)
    place = root / PLACE
    place.mkdir(parents=True)
    site = f"./lib/python{python}/site-packages"
    skipped = [*_SKIPPED, *(f"{site}/{name}" for name in _audio_entries(engine / site))]
    # Through a pipe, with the files' times, which the compiled modules refer to.
    copy = 'source=$1 place=$2; shift 2; tar -C "$source" "$@" -cf - . | tar -C "$place" -xf - --no-same-owner'
    run("sh", "-ec", copy, "sh", engine, place, *(f"--exclude={pattern}" for pattern in skipped))
    _relocate(root, python)
    version = run("chroot", root, "/usr/local/bin/vllm", "--version", environment=_OFFLINE).splitlines()[-1]
    if not version.startswith(VERSION):
        raise ImageError(f"vllm --version says {version!r} in the image", VERSION, "see what it says above that")
    for cache in (root / "root", root / "tmp"):
        run("find", cache, "-mindepth", "1", "-delete")
    pack(root, target)


_OFFLINE = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def _relocate(root: Path, python: str) -> None:
    """The virtual environment, with Debian's Python, under its new path.

    Its python3 is found through PATH alone: behind a link from elsewhere Python would not know that it belongs to it.
    """
    full = run("chroot", root, "/usr/bin/python3", "-c", "import platform; print(platform.python_version())")
    config = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {full}\n"
    write(root, f"{PLACE}/pyvenv.cfg", config)
    binaries = root / PLACE / "bin"
    binaries.mkdir(exist_ok=True)
    for name, link in ((f"python{python}", f"/usr/bin/python{python}"), ("python3", f"python{python}")):
        (binaries / name).symlink_to(link)
    (binaries / "python").symlink_to("python3")
    # Guarded: the engine's own processes start by importing it.
    entry = (
        "import sys\n\nfrom vllm.entrypoints.cli.main import main\n\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    write(root, f"{PLACE}/bin/vllm", f"#!/{PLACE}/bin/python3\n{entry}", 0o755)
    (root / "usr/local/bin/vllm").symlink_to(f"/{PLACE}/bin/vllm")


def _audio_entries(site: Path) -> list[str]:
    """The names in site-packages that are the audio extra's. Raises ImageError where one is missing."""
    names = {entry.name for entry in site.iterdir()}
    info = [name for name in names if re.fullmatch(r"(av|soundfile|soxr)-[^-]+\.dist-info", name)]
    missing = sorted(set(AUDIO) - names)
    if missing or len(info) != 3:
        raise ImageError(
            f"the engine in {site} lacks {', '.join(missing) or 'metadata of its audio packages'}",
            "the packages of vllm[audio]",
            "compare roles/vllm_engine/files/engine-cpu.txt with AUDIO in tests/lab/lab_images/engine.py",
        )
    return sorted((*AUDIO, *info))


def _build_layer(scratch: Path, target: Path) -> None:
    engine, python = _installed()
    site = f"lib/python{python}/site-packages"
    layer = scratch / "layer"
    into = layer / PLACE / site
    into.mkdir(parents=True)
    run("cp", "-a", *(engine / site / name for name in _audio_entries(engine / site)), into)
    run("chown", "-R", "0:0", layer)
    pack(layer, target, (PLACE,))
