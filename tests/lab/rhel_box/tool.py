# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every stand-in is this file, under the name of the program. What is not simulated ends with 2, and says so."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import typing as t
from collections.abc import Callable

BOX = os.environ["RHEL_BOX"]
STATE = os.path.join(BOX, "state.json")
NAME, WORDS = os.path.basename(sys.argv[0]), sys.argv[1:]
VERSIONS = {"docker-ce": "28.5.1-1.el9", "nvidia-container-toolkit": "1.20.0-1"}
BRINGS = {
    "docker-ce": ["dockerd"],
    "docker-ce-cli": ["docker"],
    "nvidia-container-toolkit": ["nvidia-ctk", "nvidia-container-runtime-hook"],
}

with open(STATE) as stream:
    state: dict[str, t.Any] = json.load(stream)


def save() -> None:
    state["asked"].append(" ".join([NAME, *WORDS]))
    with open(STATE, "w") as stream:
        json.dump(state, stream)


def answer(text: str = "", rc: int = 0) -> t.NoReturn:
    sys.stdout.write(text)
    sys.exit(rc)


def config() -> dict[str, t.Any]:
    try:
        with open("/etc/docker/daemon.json") as stream:
            found: dict[str, t.Any] = json.load(stream)
            return found
    except FileNotFoundError:
        return {}


def rpm() -> t.NoReturn:
    names = [word for word in WORDS[1:] if not word.startswith("--") and "%" not in word]
    missing = 0
    for name in names:
        version = state["packages"].get(name)
        missing += version is None
        print(f"installed {name} {version}" if version else f"package {name} is not installed")
    sys.exit(missing)


def dnf() -> None:
    names = WORDS[WORDS.index("install") + 1 :]
    repositories = os.listdir("/etc/yum.repos.d")
    for wanted in names:
        name, version = wanted, VERSIONS.get(wanted, "1.0-1")
        if wanted.startswith(("nvidia-", "libnvidia-")):
            stem, _dash, last = wanted.rpartition("-")
            if last[:1].isdigit():
                name, version = stem, f"{last}-1"
            if "gpufleet-nvidia-container-toolkit.repo" not in repositories:
                print(f"Error: Unable to find a match: {wanted}", file=sys.stderr)
                sys.exit(1)
        state["packages"][name] = version
        for tool in BRINGS.get(name, []):
            shutil.copy(os.path.join(BOX, "bin/rpm"), os.path.join(BOX, "bin", tool))
        if name == "docker-ce":
            state["docker"] = "inactive"
    save()


def systemctl() -> None:
    verbs = [word for word in WORDS if not word.startswith("-")]
    if verbs[0] == "show":
        known = verbs[1] == "docker.service" and state["docker"] != "missing"
        since = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(state.get("since", 0)))
        answer(
            f"LoadState={'loaded' if known else 'not-found'}\nActiveState={state['docker'] if known else 'inactive'}\n"
            f"UnitFileState={'enabled' if state['enabled'] else 'disabled'}\nStateChangeTimestamp={since}\n"
        )
    if verbs[0] == "enable":
        state["enabled"] = True
    elif verbs[0] in ("start", "restart", "reload"):
        state["docker"], state["since"] = "active", int(time.time()) + 1
    save()


def docker() -> t.NoReturn:
    if state["docker"] != "active":
        answer("", 1)
    version = state["packages"].get("docker-ce", state.get("docker_version", "28.5.1")).partition("-")[0]
    text = " ".join(WORDS)
    if WORDS[0] == "version":
        client = {"Version": version, **({"OsArch": "linux/amd64"} if state.get("podman") else {})}
        full = {"Client": client, "Server": {"Version": version, "ApiVersion": "1.51"}}
        answer(version if "Server" in text else json.dumps(full))
    if WORDS[0] == "info":
        if "LiveRestore" in text:
            answer(json.dumps(config().get("live-restore", False)))
        plugins = [] if state.get("no_compose") else [{"Name": "compose", "Version": "v2.40.1", "Path": "/x"}]
        answer(
            json.dumps(
                {
                    "ServerVersion": version,
                    "Runtimes": {name: {"path": name} for name in ["runc", *config().get("runtimes", {})]},
                    "DockerRootDir": state.get("root_dir", "/var/lib/docker"),
                    "SecurityOptions": ["name=seccomp"],
                    "ClientInfo": {"Plugins": plugins},
                }
            )
        )
    if WORDS[0] == "ps":
        answer("".join(f"{name}\n" for name in state["containers"]))
    if WORDS[0] == "inspect":
        rows = [f'"/{n}"\t{"[{}]" if gpu else "null"}\t"runc"\n' for n, gpu in state["containers"].items()]
        answer("".join(rows))
    answer(f"not simulated: {text}\n", 2)


def tools() -> t.NoReturn:
    answer("configuration OK\n" if NAME == "dockerd" else "version 1.20.0\n")


PROGRAMS: dict[str, Callable[[], None]] = {"rpm": rpm, "dnf": dnf, "systemctl": systemctl, "docker": docker}
PROGRAMS.get(NAME, tools)()
