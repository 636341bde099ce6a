# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run ansible-test on this checkout: ``ansible_test.py {sanity,units,floor} CORE [ARGUMENT...]``.

What it needs beyond ansible-test itself: a copy of the tree in a collection's place, a HOME of its own (ansible-test
keeps its environments under HOME; the user's stays untouched), a get-pip that needs no download, and the caller's pip
settings, since ansible-test clears the environment.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lanes import Lane, LaneMissingError, find_interpreter, get_lane, not_run, search_path
from tree import cache_dir, collection_copy

# ansible-test downloads a get-pip from a host of its own before it makes an environment, unless this file is there.
GET_PIP = """\
import subprocess, sys
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"])
packages = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
if packages:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])
"""

# ansible-test only warns when it skips; a gate that tests nothing is a failed gate.
TESTED_NOTHING = re.compile(r"All targets skipped|Required program .* not found|Skipping sanity test .* due to missing")

FLOOR_PYTHON = "3.9"
"""The oldest Python that code for managed hosts runs on."""


def write_get_pip(home: Path, lane: Lane) -> None:
    """Put the get-pip of the lane's ansible-test version where it looks for a downloaded one."""
    code = "import ansible_test._internal.python_requirements as module; print(module.__file__)"
    located = subprocess.run([str(lane.bin / "python"), "-c", code], capture_output=True, text=True, check=True)
    source = Path(located.stdout.strip()).read_text(encoding="utf-8")
    versions = set(re.findall(r"""pip\s*=\s*["']([0-9.]+)["']""", source))
    if not versions:
        raise SystemExit(f"ansible-test of core {lane.core} names no pip version: update {Path(__file__).name}")
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in versions:
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(GET_PIP, encoding="utf-8")


def write_pip_settings(home: Path, lane: Lane) -> None:
    """Carry the caller's pip settings (files, PIP_* and proxy variables) into a file that survives ansible-test."""
    listed = subprocess.run(
        [str(lane.bin / "python"), "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = {
        "quiet": "2",
        "proxy": os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"),
        "cert": os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE"),
    }
    # pip lists environment variables as ":env:.key", files as "global.key" or "install.key"; the variables win.
    entries = [re.fullmatch(r"(:env:|global|install)\.([\w-]+)='(.*)'", line) for line in listed.splitlines()]
    for match in sorted((entry for entry in entries if entry), key=lambda entry: entry.group(1) == ":env:"):
        settings[match.group(2)] = match.group(3).replace("\\n", "\n")
    settings.pop("config-file", None)
    config = configparser.RawConfigParser()
    config["global"] = {key: value for key, value in settings.items() if value}
    path = home / ".config" / "pip" / "pip.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    # An index address can hold a password.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        config.write(stream)


def environment(lane: Lane) -> dict[str, str]:
    """The environment of one ansible-test run: own HOME per lane and interpreter, no pyenv shims on PATH."""
    base = os.path.realpath(lane.bin / "python").replace(os.sep, "_")[-40:].strip("_")
    home = cache_dir() / "ansible-test" / f"{lane.core}-{base}"
    home.mkdir(parents=True, exist_ok=True)
    write_get_pip(home, lane)
    write_pip_settings(home, lane)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ANSIBLE_"))},
        "HOME": str(home),
        "PATH": search_path(lane.bin),
        "LC_ALL": "C.UTF-8",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["sanity", "units", "floor"])
    parser.add_argument("core")
    options, extra = parser.parse_known_args()
    try:
        lane = get_lane(options.core)
    except LaneMissingError as error:
        return not_run(str(error))
    except subprocess.CalledProcessError as error:
        return error.returncode
    env = environment(lane)
    argv = [str(lane.bin / "ansible-test"), options.kind, "--python", lane.python, "--color", "no"]
    if options.kind == "floor":
        floor = find_interpreter(FLOOR_PYTHON)
        if floor is None:
            return not_run(f"code for managed hosts was not compiled and imported on Python {FLOOR_PYTHON}: none found")
        env["PATH"] = os.pathsep.join([env["PATH"], os.path.dirname(os.path.realpath(floor))])
        argv[1:4] = ["sanity", "--test", "compile", "--test", "import", "--python", FLOOR_PYTHON]
    if options.kind == "sanity" and not shutil.which("shellcheck", path=env["PATH"]):
        print(
            f"ERROR: no shellcheck in {lane.bin}; expected: the one in requirements/test.txt; do this: make dev-setup"
        )
        return 1
    with collection_copy() as tree:
        process = subprocess.Popen(
            [*argv, *extra], cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        nothing_tested = []
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if TESTED_NOTHING.search(line):
                nothing_tested.append(line.strip())
        status = process.wait()
    if nothing_tested and status == 0:
        print(f"ERROR: a test did not run: {nothing_tested[0]}; expected: all run; do this: install what it names")
        return 1
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
