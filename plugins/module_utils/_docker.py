# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Docker as a person uses it, through its command: what it answers, and its failures in words.

The command and not the Docker SDK: a host needs no Python package then, every call has a deadline that holds, and an
operator can type what we ran.
"""

from __future__ import annotations

import json
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import NOT_FOUND, CommandResult, Runner
from ansible_collections.gpufleet.vllm.plugins.module_utils._wait import shorten

QUICK_SECONDS = 60.0


class Known(t.NamedTuple):
    """A failure that Docker words in its own way."""

    pattern: t.Pattern[str]
    code: str
    expected: str
    remedy: str


def _known(pattern: str, code: str, expected: str, remedy: str) -> Known:
    return Known(re.compile(pattern, re.IGNORECASE), code, expected, remedy)


# The first that matches counts: what is special stands before what is general.
KNOWN = (
    _known(
        r"permission denied.*docker\.sock|docker\.sock.*permission denied",
        "docker.permission",
        "the right to use the Docker daemon",
        "run as root (become: true)",
    ),
    _known(
        r"cannot connect to the docker daemon|is the docker daemon running|error during connect|docker\.sock.*"
        r"(?:connection refused|connection reset|EOF|no such file)|unexpected EOF|error reading from server: EOF",
        "docker.not_running",
        "a running Docker daemon",
        "start it (systemctl start docker; journalctl -u docker says why it ended), then run again",
    ),
    _known(
        r"no space left on device|disk quota exceeded",
        "host.disk_full",
        "space left where Docker keeps its images and containers",
        "free some there (docker system df, docker image prune), then run again",
    ),
    _known(
        r"port is already allocated|address already in use",
        "stack.port_taken",
        "a port that nothing else on the host listens on",
        "stop what listens there (ss -ltnp), or set another port: for the service",
    ),
    _known(
        r"cannot assign requested address",
        "stack.no_address",
        "an address of this host to publish on",
        "set vllm_bind_address (or bind_address: of the service) to one that 'ip address' shows",
    ),
    _known(
        r"could not select device driver|unknown or invalid runtime name: nvidia",
        "docker.no_gpu_driver",
        "the NVIDIA container toolkit, registered in Docker",
        "run playbooks/prerequisites.yml (by hand: nvidia-ctk runtime configure --runtime=docker, then restart Docker)",
    ),
    _known(
        r"unresolvable CDI devices|CDI device injection failed",
        "docker.cdi_stale",
        "a CDI specification that names the GPUs of this host",
        "systemctl restart nvidia-cdi-refresh (where there is no such unit: nvidia-ctk cdi generate "
        "--output=/etc/cdi/nvidia.yaml), or set vllm_container_gpu_driver: nvidia",
    ),
    _known(
        r"driver/library version mismatch",
        "docker.driver_mismatch",
        "an NVIDIA library of the loaded kernel module's version",
        "reboot the host, or reload the NVIDIA kernel modules",
    ),
    _known(
        r"nvidia-container-cli|unknown device|nvidia-container-runtime-hook",
        "docker.gpu_refused",
        "a container toolkit that hands out the GPUs of the plan",
        "compare nvidia-smi -L on the host with gpus: of the service, then run again",
    ),
    _known(
        r"bind source path does not exist|invalid mount config",
        "stack.no_mount",
        "every directory that the containers mount",
        "run the deploy again, which makes what is its own; a model's directory comes from vllm_artifacts",
    ),
    _known(
        r"error setting rlimit",
        "stack.ulimit",
        "limits within those of the Docker daemon",
        "lower vllm_container_ulimits to what 'grep . /proc/$(pidof dockerd)/limits' allows",
    ),
    _known(
        r"executable file not found|no such file or directory: unknown",
        "image.no_engine",
        "an image that has the command vllm",
        "set vllm_image to an image of vLLM, such as vllm/vllm-openai",
    ),
)
KNOWN_PULL = (
    KNOWN[0],
    _known(
        r"cannot connect to the docker daemon|is the docker daemon running|error during connect",
        *KNOWN[1][1:],
    ),
    KNOWN[2],
    _known(
        r"server gave HTTP response to HTTPS client",
        "image.insecure_registry",
        "a registry that speaks TLS, or one that Docker was told to trust",
        "add it to insecure-registries in /etc/docker/daemon.json (gpu_host_daemon does), then run again",
    ),
    _known(
        r"toomanyrequests|rate limit",
        "image.rate_limit",
        "a registry that still answers",
        "docker login on the host, wait, or set vllm_image to an image of your own registry",
    ),
    _known(
        r"x509:|certificate",
        "image.registry_tls",
        "a registry whose certificate Docker trusts",
        "put its authority into /etc/docker/certs.d/REGISTRY/ca.crt on the host, then run again",
    ),
    _known(
        r"no matching manifest|does not match the specified platform",
        "image.no_platform",
        "an image for this host's processor",
        "set vllm_image (or image: of the service) to one that is built for it",
    ),
    _known(
        r"manifest unknown|manifest for .* not found|not found: manifest|name unknown|pull access denied"
        r"|repository does not exist|: not found",
        "image.not_found",
        "an image that the registry has, and gives to this host",
        "correct vllm_image (or image: of the service); docker login on the host if it is private; build it if it is"
        " your own (playbooks/audio_image.yml)",
    ),
    _known(
        r"unauthorized|authentication required|no basic auth|access denied|access forbidden|denied:",
        "image.unauthorized",
        "the right to pull it",
        "docker login on the host as the user of the deploy, then run again",
    ),
    _known(
        r"no such host|connection refused|connection reset|i/o timeout|dial tcp|TLS handshake|EOF|"
        r"context deadline exceeded|Client\.Timeout|server misbehaving|network is unreachable|no route to host",
        "image.registry_unreachable",
        "a registry that answers",
        "look at the network, DNS and proxy of the Docker daemon; where there is no way out, set vllm_image to an image"
        " of your own registry, or load it (docker load)",
    ),
)


def failure(done: CommandResult, what: str, known: t.Sequence[Known] = KNOWN) -> FleetError:
    """A failed command as an error an operator can act on."""
    if done.rc == NOT_FOUND and not done.timed_out:
        remedy = "run playbooks/prerequisites.yml, or install Docker Engine and its Compose plugin"
        return FleetError("docker.missing", "the host has no command docker", "Docker Engine with Compose", remedy)
    text = f"{done.err}\n{done.out}"
    for item in known:
        match = item.pattern.search(text)
        if match:
            return FleetError(item.code, f"{what}: {_line_of(text, match.start())}", item.expected, item.remedy)
    if done.timed_out:
        remedy = "look at 'journalctl -u docker' on the host, then run again"
        return FleetError("docker.timeout", f"{what}: {done.last_words}", "an answer in time", remedy)
    seen = f"{what} failed: {done.last_words}"
    remedy = "look at 'journalctl -u docker' on the host, correct what it says, then run again"
    return FleetError("docker.failed", seen, "exit status 0", remedy)


def _line_of(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return shorten(text[start : end if end >= 0 else len(text)], 400)


class Docker:
    """The docker command on a host."""

    def __init__(self, run: Runner) -> None:
        self.run = run

    def call(self, *arguments: str, timeout: float = QUICK_SECONDS, check: bool = True) -> CommandResult:
        done = self.run(["docker", *arguments], timeout)
        if check and done.rc != 0:
            raise failure(done, f"'docker {' '.join(arguments[:2])}'")
        return done

    def lines(self, *arguments: str) -> list[str]:
        return [line.strip() for line in self.call(*arguments).out.splitlines() if line.strip()]

    def inspect(self, kind: str, names: t.Sequence[str]) -> list[dict[str, t.Any]]:
        """What Docker knows of those that are there; a name that is not is left out."""
        if not names:
            return []
        done = self.call(kind, "inspect", *names, check=False)
        found = _json_list(done.out)
        if done.rc != 0 and not re.search(r"no such (?:container|image|object)", done.err, re.IGNORECASE):
            raise failure(done, f"'docker {kind} inspect'")
        return found


def _json_list(text: str) -> list[dict[str, t.Any]]:
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return []
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
