# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._docker import KNOWN_PULL, Docker, failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult


def failed(text: str, rc: int = 1) -> CommandResult:
    return CommandResult(rc, "", text)


# What Docker Engine 20.10 to 29 and Compose 2.x say.
SAID = {
    "docker.not_running": "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon "
    "running?",
    "docker.permission": "permission denied while trying to connect to the Docker daemon socket at "
    "unix:///var/run/docker.sock: Get ...: dial unix /var/run/docker.sock: connect: permission denied",
    "stack.port_taken": "Error response from daemon: driver failed programming external connectivity on endpoint "
    "vllm-a (0f): Error starting userland proxy: listen tcp4 127.0.0.1:8000: bind: address already in use",
    "stack.no_address": "Error starting userland proxy: listen tcp4 10.9.9.9:8000: bind: cannot assign requested "
    "address",
    "docker.no_gpu_driver": 'Error response from daemon: could not select device driver "nvidia" with capabilities: '
    "[[gpu]]",
    "docker.cdi_stale": "Error response from daemon: CDI device injection failed: unresolvable CDI devices "
    "nvidia.com/gpu=GPU-1",
    "docker.gpu_refused": "Auto-detected mode as 'legacy'\nnvidia-container-cli: device error: GPU-1: unknown device: "
    "unknown",
    "docker.driver_mismatch": "nvidia-container-cli: initialization error: nvml error: driver/library version "
    "mismatch: unknown",
    "host.disk_full": "write /var/lib/docker/tmp/GetImageBlob1: no space left on device",
    "stack.no_mount": 'Error response from daemon: invalid mount config for type "bind": bind source path does not '
    "exist: /data/models/x",
    "stack.ulimit": "runc create failed: unable to start container process: error during container init: error "
    "setting rlimits for ready process: error setting rlimit type 7: operation not permitted: unknown",
    "image.no_engine": 'exec: "vllm": executable file not found in $PATH: unknown',
}
PULL = {
    "image.not_found": "Error response from daemon: manifest for 10.0.0.1:5000/engine:9 not found: manifest unknown: "
    "manifest unknown",
    "image.unauthorized": "Error response from daemon: pull access denied for acme/private, repository does not exist "
    "or may require 'docker login': denied: requested access to the resource is denied",
    "image.registry_unreachable": 'Error response from daemon: Get "http://10.0.0.1:5000/v2/": dial tcp '
    "10.0.0.1:5000: connect: connection refused",
    "image.insecure_registry": 'Error response from daemon: Get "https://10.0.0.1:5000/v2/": http: server gave HTTP '
    "response to HTTPS client",
    "image.rate_limit": "toomanyrequests: You have reached your unauthenticated pull rate limit.",
    "image.registry_tls": 'Get "https://registry.lan/v2/": x509: certificate signed by unknown authority',
    "image.no_platform": "no matching manifest for linux/arm64/v8 in the manifest list entries",
    "image.registry_cut": "download failed after attempts=6: unexpected EOF",
    "image.unauthorized_basic": "no basic auth credentials",
    "host.disk_full": "failed to register layer: write /usr/lib/x.so: no space left on device",
    "docker.not_running": "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon "
    "running?",
}


@pytest.mark.parametrize("code", SAID)
def test_what_docker_says_is_understood(code: str) -> None:
    problem = failure(failed(f"a line before\n{SAID[code]}\na line after"), "service a")
    assert problem.code == code
    assert problem.seen.startswith("service a: ")
    assert "line after" not in problem.seen
    assert problem.expected
    assert problem.remedy


# One code, and two ways in which it is worded.
SAME = {"image.registry_cut": "image.registry_unreachable", "image.unauthorized_basic": "image.unauthorized"}


@pytest.mark.parametrize("code", [code for code in PULL if code != "image.unauthorized"])
def test_what_a_pull_says_is_understood(code: str) -> None:
    assert failure(failed(PULL[code]), "pulling x", KNOWN_PULL).code == SAME.get(code, code)


def test_a_pull_that_is_denied_or_of_nothing_names_both_ways_out() -> None:
    """The registry does not tell a private repository from one that is not there."""
    problem = failure(failed(PULL["image.unauthorized"]), "pulling x", KNOWN_PULL)
    assert problem.code == "image.not_found"
    assert "docker login" in problem.remedy
    assert "playbooks/audio_image.yml" in problem.remedy


def test_the_rest_is_told_as_it_is() -> None:
    assert failure(failed("strange things"), "'docker stop a'").seen == "'docker stop a' failed: strange things"
    assert failure(CommandResult(127, "", "docker: No such file or directory"), "x").code == "docker.missing"
    late = failure(CommandResult(124, "", "docker did not end within 60 s", timed_out=True), "x")
    assert (late.code, late.seen) == ("docker.timeout", "x: docker did not end within 60 s")


class Said:
    """A docker command that gives one answer."""

    def __init__(self, result: CommandResult) -> None:
        self.result = result
        self.asked: list[list[str]] = []

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        self.asked.append(list(argv))
        return self.result


def test_what_is_not_there_is_left_out_of_an_inspection() -> None:
    said = Said(CommandResult(1, '[{"Id": "sha256:1"}]', "Error: No such image: b:1"))
    assert Docker(said).inspect("image", ["a:1", "b:1"]) == [{"Id": "sha256:1"}]
    assert said.asked == [["docker", "image", "inspect", "a:1", "b:1"]]
    assert Docker(said).inspect("image", []) == []


def test_an_inspection_that_failed_is_no_empty_one() -> None:
    with pytest.raises(FleetError) as caught:
        Docker(Said(failed(SAID["docker.not_running"]))).inspect("container", ["a"])
    assert caught.value.code == "docker.not_running"


def test_a_call_that_fails_raises_unless_told_not_to() -> None:
    docker = Docker(Said(failed("boom")))
    assert docker.call("ps", check=False).rc == 1
    with pytest.raises(FleetError, match="docker ps"):
        docker.call("ps")


def test_lines_are_those_with_something_in_them() -> None:
    assert Docker(Said(CommandResult(0, "a\n\n b \n", ""))).lines("ps") == ["a", "b"]
