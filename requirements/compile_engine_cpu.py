# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compile the locks of the CPU engine: ``python requirements/compile_engine_cpu.py`` (needs uv and Python 3.11).

Resolves for every supported Python at once, then keeps only the wheels a Linux host can install. The lock travels to
every host as a module argument, and the hashes of all other platforms are nine tenths of what a resolver writes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE.parent / "roles" / "vllm_engine" / "files"
PYTHONS = ("311", "312", "313")
MACHINES = ("x86_64", "aarch64")

HEADER = """\
# {title}
# Compiled by requirements/compile_engine_cpu.py from {source}; do not edit.
# For CPython {pythons} on Linux ({machines}). Install with: pip install --require-hashes --no-deps -r FILE
"""


def resolve(source: str, overrides: str) -> list[dict[str, object]]:
    """Every package of the universal resolution of ``source``, as pylock tables."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pylock.toml"
        (Path(folder) / "in.txt").write_text(source, encoding="utf-8")
        (Path(folder) / "overrides.txt").write_text(overrides, encoding="utf-8")
        uv = shutil.which("uv")
        if uv is None:
            sys.exit("uv was not found. Remedy: pip install uv, in a scratch virtual environment.")
        argv = [uv, "pip", "compile", "-q", "--no-config", "--universal", "--python-version", "3.11"]
        argv += ["--format", "pylock.toml", "--override", "overrides.txt", "in.txt", "-o", out.name]
        subprocess.run(argv, cwd=folder, check=True)
        packages: list[dict[str, object]] = tomllib.loads(out.read_text(encoding="utf-8"))["packages"]
    return packages


def installable(filename: str) -> bool:
    """Whether a wheel of this name can be installed on a supported host (glibc; not free-threaded)."""
    _dist, python, abi, platform = filename.removesuffix(".whl").rsplit("-", 3)
    if platform != "any" and not any(re.search(f"(many)?linux.*_{m}", platform) for m in MACHINES):
        return False
    if "musllinux" in platform and "manylinux" not in platform:
        return False
    tags = python.split(".")
    if abi == "none" and any(tag.startswith("py3") or tag == "py3" for tag in tags):
        return True
    if abi.startswith("abi3"):
        return any(tag.startswith("cp3") and int(tag[3:] or 0) <= int(PYTHONS[-1][1:]) for tag in tags)
    return any(f"cp{v}" in tags and abi in (f"cp{v}", "none") for v in PYTHONS)


def marker_of(package: dict[str, object]) -> str | None:
    """The marker to write, or ``""`` for none, or ``None`` when the package is never needed on Linux."""
    marker = str(package.get("marker") or "")
    if "== 'never'" in marker or re.fullmatch(r".*sys_platform == '(win32|emscripten)'", marker):
        return None
    return marker


def lines_of(packages: list[dict[str, object]], skip: frozenset[str] = frozenset()) -> list[str]:
    """The lock's lines, sorted by name; exits when a package has no wheel a host could install."""
    lines: list[str] = []
    for package in sorted(packages, key=lambda p: (str(p["name"]), str(p["version"]))):
        marker = marker_of(package)
        if marker is None or package["name"] in skip:
            continue
        wheels = package.get("wheels") or []
        assert isinstance(wheels, list)
        hashes = sorted(
            {w["hashes"]["sha256"] for w in wheels if installable(w.get("name") or w["url"].rsplit("/", 1)[-1])}
        )
        if not hashes:
            sys.exit(f"{package['name']}=={package['version']} has no wheel for a supported host.")
        head = f"{package['name']}=={package['version']}" + (f" ; {marker}" if marker else "")
        lines.append(" \\\n".join([head, *(f"    --hash=sha256:{digest}" for digest in hashes)]))
    return lines


def write(name: str, title: str, source: str, lines: list[str]) -> None:
    pythons = f"{PYTHONS[0][0]}.{PYTHONS[0][1:]} to {PYTHONS[-1][0]}.{PYTHONS[-1][1:]}"
    header = HEADER.format(title=title, source=source, pythons=pythons, machines=", ".join(MACHINES))
    (FILES / name).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    exclude = (HERE / "engine-cpu-exclude.in").read_text(encoding="utf-8")
    base = resolve((HERE / "engine-cpu.in").read_text(encoding="utf-8"), exclude)
    write("engine-cpu.txt", "The CPU engine, without torch.", "requirements/engine-cpu.in", lines_of(base))

    torch = (FILES / "engine-cpu-torch.txt").read_text(encoding="utf-8")
    pin = re.search(r"(?m)^torch==([0-9.]+)\+cpu", torch)
    if pin is None:
        sys.exit("engine-cpu-torch.txt pins no torch==VERSION+cpu.")
    large = resolve(f"torch=={pin.group(1)}\n", 'triton ; sys_platform == "never"\n')
    in_base = frozenset(str(package["name"]) for package in base) - {"torch"}
    title = "torch with its CUDA libraries, for a host that is offered no CPU build of torch."
    write("engine-cpu-torch-large.txt", title, "engine-cpu-torch.txt", lines_of(large, in_base))


if __name__ == "__main__":
    main()
