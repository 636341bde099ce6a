# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_docker import RULES
from rules_case import DROP, FACTS, IMAGE, Case, ask, fails, holds, host, incomplete, passes, unknown

BARE = {"plan>runtime": "systemd"}
CPU = {"plan>device": "cpu", "gpus": []}
DOCKER = "nvidia>container>docker"
SERVER = f"{DOCKER}>server_version"
LIMITS = "plan>services>*>container>ulimits"
FACTS_OF = f"nvidia>container>images>{IMAGE}"
CDI = "nvidia>container>cdi"
SPEC = f"{CDI}>specs>0"
THROUGH_CDI = {SERVER: "29.2.1"}
GPUS = "plan>services>*>container>deploy>resources>reservations>devices"
OLD_SPEC = {f"{SPEC}>driver_version": "570.124.06"}
NO_NOFILE = {LIMITS: {"memlock": -1}}

CASES = [
    passes("docker.engine_old"),
    passes("docker.engine_old", {SERVER: "20.10.24", **BARE}),
    fails("docker.engine_old", "warning", "Docker Engine 20.10.24", {SERVER: "20.10.24"}),
    unknown("docker.engine_old", {SERVER: None, f"{DOCKER}>error": "This user may not talk to the Docker server."}),
    passes("docker.compose_trap"),
    fails("docker.compose_trap", "warning", "Docker Compose 2.32.0: it recreates",
          {"nvidia>container>compose>version": "2.32.0"}),
    fails("docker.compose_trap", "warning", "may not tell its version", {"nvidia>container>compose>version": "2.32.3"}),
    unknown("docker.compose_trap", {"nvidia>container>compose>version": "dev"}),
    passes("docker.nofile"),
    passes("docker.nofile", {SERVER: "29.1.0", f"{DOCKER}>default_nofile_soft": 1024}),
    passes("docker.nofile", {**NO_NOFILE}),
    passes("docker.nofile", {**NO_NOFILE, f"{DOCKER}>containerd_nofile_soft": 1024}),
    passes("docker.nofile", {**NO_NOFILE, f"{DOCKER}>default_nofile_soft": -1, f"{DOCKER}>containerd_nofile_soft": 9}),
    passes("docker.nofile",
           {**NO_NOFILE, f"{DOCKER}>default_nofile_soft": None, f"{DOCKER}>containerd_nofile_soft": None}),
    fails("docker.nofile", "warning", "sets no nofile, and Docker 29.1.0 gives 1024",
          {**NO_NOFILE, SERVER: "29.1.0", f"{DOCKER}>default_nofile_soft": 1024}),
    fails("docker.nofile", "warning", "may open 1024 files", {LIMITS: {"nofile": {"soft": 1024, "hard": 1024}}}),
    fails("docker.nofile", "warning", "may open 512 files", {LIMITS: {"nofile": 512}}),
    unknown("docker.nofile", {**NO_NOFILE, SERVER: "29.1.0", f"{DOCKER}>default_nofile_soft": None,
                              f"{DOCKER}>containerd_nofile_soft": None}),
    passes("docker.cgroup_reload"),
    passes("docker.cgroup_reload", {f"{DOCKER}>cgroup_driver": "cgroupfs", f"{DOCKER}>dev_char_links": False}),
    passes("docker.cgroup_reload", {f"{DOCKER}>dev_char_links": False, **CPU}),
    passes("docker.cgroup_reload", {f"{DOCKER}>dev_char_links": False, f"{GPUS}>0>driver": "cdi"}),
    passes("docker.cgroup_reload", {f"{DOCKER}>dev_char_links": False, **THROUGH_CDI}),
    fails("docker.cgroup_reload", "warning", "no links to the NVIDIA devices", {f"{DOCKER}>dev_char_links": False}),
    unknown("docker.cgroup_reload", {f"{DOCKER}>dev_char_links": None}),
    unknown("docker.cgroup_reload", {f"{DOCKER}>cgroup_driver": None}),
    passes("docker.storage_driver"),
    fails("docker.storage_driver", "warning", "storage driver vfs", {f"{DOCKER}>storage_driver": "vfs"}),
    unknown("docker.storage_driver", {f"{DOCKER}>storage_driver": None}),
    passes("docker.user_namespaces"),
    passes("docker.user_namespaces", {f"{DOCKER}>rootless": True, **BARE}),
    fails("docker.user_namespaces", "error", "Docker runs without root", {f"{DOCKER}>rootless": True}),
    fails("docker.user_namespaces", "error", "Docker remaps users", {f"{DOCKER}>security_options": ["name=userns"]}),
    unknown("docker.user_namespaces", {f"{DOCKER}>rootless": None, f"{DOCKER}>security_options": None}),
    passes("docker.toolkit_old"),
    passes("docker.toolkit_old", {"nvidia>container>toolkit>version": "1.16.1", **CPU}),
    fails("docker.toolkit_old", "warning", "Toolkit 1.16.1", {"nvidia>container>toolkit>version": "1.16.1"}),
    unknown("docker.toolkit_old", {"nvidia>container>toolkit>version": None}),
    passes("docker.toolkit_unregistered"),
    passes("docker.toolkit_unregistered", {f"{DOCKER}>runtimes>nvidia": DROP, **THROUGH_CDI}),
    fails("docker.toolkit_unregistered", "warning", "io.containerd.runc.v2, runc", {f"{DOCKER}>runtimes>nvidia": DROP}),
    unknown("docker.toolkit_unregistered", {f"{DOCKER}>runtimes": {}}),
    passes("docker.cdi_stale"),
    passes("docker.cdi_stale", {f"{CDI}>specs": []}),
    passes("docker.cdi_stale", {**OLD_SPEC, **BARE}),
    # /run wins over /etc.
    passes("docker.cdi_stale", {f"{CDI}>specs": [
        {**FACTS["nvidia"]["container"]["cdi"]["specs"][0], "path": "/etc/cdi/nvidia.yaml", "driver_version": "535.1"},
        FACTS["nvidia"]["container"]["cdi"]["specs"][0]]}),
    fails("docker.cdi_stale", "warning", "was made for driver 570.124.06, and the host runs 580.95.05", OLD_SPEC),
    fails("docker.cdi_stale", "error", "was made for driver 570.124.06", {**OLD_SPEC, **THROUGH_CDI}),
    fails("docker.cdi_stale", "error", "was made for driver", {**OLD_SPEC, f"{GPUS}>0>driver": "cdi"}),
    fails("docker.cdi_stale", "warning", "is older than the driver",
          {f"{SPEC}>driver_version": None, f"{SPEC}>mtime": 1763000000}),
    unknown("docker.cdi_stale", {f"{CDI}>specs": None}),
    unknown("docker.cdi_stale", {f"{SPEC}>driver_version": None, "nvidia>driver_installed_at": None}),
    passes("docker.cdi_missing"),
    passes("docker.cdi_missing", THROUGH_CDI),
    passes("docker.cdi_missing", {f"{CDI}>specs": []}),
    passes("docker.cdi_missing",
           {**THROUGH_CDI, f"{SPEC}>devices": [f"nvidia.com/gpu={gpu['uuid']}" for gpu in FACTS["gpus"][:3]]}),
    passes("docker.cdi_missing", {**THROUGH_CDI, f"{CDI}>specs": [], f"{GPUS}>0>driver": "cdi"}),
    fails("docker.cdi_missing", "error", "names GPU 1, 2", {**THROUGH_CDI, f"{SPEC}>devices": ["nvidia.com/gpu=0"]}),
    # Docker takes the toolkit's hook then.
    fails("docker.cdi_missing", "info", "names GPU 0, 1, 2", {**THROUGH_CDI, f"{CDI}>specs": []}),
    fails("docker.cdi_missing", "error", "names GPU 0, 1, 2",
          {**THROUGH_CDI, f"{CDI}>specs": [], "nvidia>container>toolkit>runtime_hook": None}),
    unknown("docker.cdi_missing", {SERVER: None}),
    unknown("docker.cdi_missing", {**THROUGH_CDI, f"{CDI}>specs": None}),
    passes("docker.image_architecture"),
    fails("docker.image_architecture", "error", "is for arm64, and the host is amd64",
          {f"{FACTS_OF}>architecture": "arm64"}),
    unknown("docker.image_architecture", {f"{FACTS_OF}>architecture": None}),
    unknown("docker.image_architecture", {FACTS_OF: {"present": False, "architecture": "amd64"}}),
    passes("docker.image_absent"),
    passes("docker.image_absent", {"settings>vllm_image_pull": "never"}),
    passes("docker.image_absent", {f"{FACTS_OF}>present": False}),
    fails("docker.image_absent", "error", "is not on the host, and is not pulled",
          {"settings>vllm_image_pull": "never", f"{FACTS_OF}>present": False}),
    unknown("docker.image_absent", {"settings>vllm_image_pull": "never", "nvidia>container>images": None}),
    passes("docker.image_version"),
    fails("docker.image_version", "warning", "has vLLM 0.32.1", {f"{FACTS_OF}>vllm_version": "0.32.1"}),
    unknown("docker.image_version", {f"{FACTS_OF}>vllm_version": None}),
    passes("docker.memlock"),
    passes("docker.memlock", {LIMITS: {}, **CPU}),
    fails("docker.memlock", "info", "memlock is not set", {LIMITS: {}}),
    fails("docker.memlock", "info", "memlock is 65536", {LIMITS: {"memlock": {"soft": 65536, "hard": 65536}}}),
    unknown("docker.memlock", {"plan>services>0>container": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
@pytest.mark.parametrize("runtime", ["systemd", "supervisor"])
def test_a_bare_host_is_asked_nothing_about_docker(rule: t.Any, runtime: str) -> None:
    assert not rule.check(host({"plan>runtime": runtime, "nvidia>container": None}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_host_without_docker_hears_it_from_the_plan_alone(rule: t.Any) -> None:
    assert not rule.check(host({DOCKER: {"installed": False}}))


def test_what_docker_said_is_the_reason() -> None:
    case = unknown(
        "docker.engine_old", {SERVER: None, f"{DOCKER}>error": "This user may not talk to the Docker server."}
    )
    _rule, verdict = ask(RULES, case)
    assert verdict.reason == "the version of Docker Engine is not told (This user may not talk to the Docker server)"
