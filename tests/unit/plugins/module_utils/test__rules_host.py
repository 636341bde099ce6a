# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_host import RULES, _bytes
from rules_case import DROP, GIB, NOW, Case, ask, fails, holds, incomplete, passes, unknown

BARE = {"plan>runtime": "systemd"}
SUPERVISED = {"plan>runtime": "supervisor"}
CPU: dict[str, t.Any] = {"plan>device": "cpu", "gpus": [], "plan>services>*>gpus": []}
DOCKER = "nvidia>container>docker"
SHM = "plan>services>0>container>shm_size"
SELINUX: dict[str, t.Any] = {
    "selinux": "enforcing",
    f"{DOCKER}>security_options": ["name=seccomp,profile=builtin", "name=selinux"],
}

CASES = [
    passes("host.python"),
    passes("host.python", {"python_version": "3.9.21"}),
    fails("host.python", "error", "Python 3.6", {"python_version": "3.6.8"}),
    unknown("host.python", {"python_version": None}),
    passes("host.kernel_old"),
    passes("host.kernel_old", {"kernel": "4.18.0-553.el8_10.x86_64"}),
    fails("host.kernel_old", "warning", "Linux 3.10.0-1160.el7", {"kernel": "3.10.0-1160.el7.x86_64"}),
    unknown("host.kernel_old", {"kernel": ""}),
    passes("host.cpu_avx2"),
    passes("host.cpu_avx2", {"machine": "aarch64", "cpu": {"flags": ["asimd"]}}),
    passes("host.cpu_avx2", {"cpu>flags": [], **CPU}),
    fails("host.cpu_avx2", "warning", "without AVX2", {"cpu>flags": ["sse4_2"]}),
    unknown("host.cpu_avx2", {"cpu>model": "", "cpu>flags": []}),
    passes("host.cpu_avx512"),
    passes("host.cpu_avx512", CPU),
    fails("host.cpu_avx512", "info", "has no AVX-512", {"cpu>flags": ["avx2"], **CPU}),
    unknown("host.cpu_avx512", {"cpu": None, **CPU}),
    passes("host.memory"),
    passes("host.memory", {"memory": None, "plan>services": []}),
    fails("host.memory", "warning", "8.0 GiB of memory, and 2 services take about 15.0 GiB",
          {"memory>total_bytes": 8 * GIB}),
    fails("host.memory", "error", "models of 69.0 GiB and 2.0 GiB for their KV caches",
          {"memory>total_bytes": 64 * GIB, **CPU}),
    unknown("host.memory", {"memory>total_bytes": 0}),
    passes("host.shm"),
    passes("host.shm", {"plan>services>1>container>shm_size": "64mb"}),
    passes("host.shm", {"shm": None}),
    passes("host.shm", BARE),
    fails("host.shm", "error", "64 MiB of shared memory for 2 workers", {SHM: "64mb"}),
    fails("host.shm", "warning", "4.0 GiB of shared memory", {SHM: "4gb"}),
    fails("host.shm", "error", "64 MiB", {"shm>size_bytes": 64 << 20, **BARE}),
    unknown("host.shm", {SHM: "much"}),
    unknown("host.shm", {"shm": None, **BARE}),
    passes("host.limits"),
    passes("host.limits", SUPERVISED),
    passes("host.limits", {"limits>nofile_hard": 1024}),
    fails("host.limits", "warning", "4096 open files at most", {"limits>nofile_hard": 4096, **SUPERVISED}),
    fails("host.limits", "warning", "8 MiB of locked memory", {"limits>memlock_bytes": 8 << 20, **SUPERVISED}),
    unknown("host.limits", {"limits": None, **SUPERVISED}),
    passes("host.clock_skew"),
    passes("host.clock_skew", {"clock>epoch": NOW - 29}),
    fails("host.clock_skew", "warning", "60 s behind", {"clock>epoch": NOW - 60}),
    fails("host.clock_skew", "error", "3600 s ahead of", {"clock>epoch": NOW + 3600}),
    unknown("host.clock_skew", {"clock>epoch": None}),
    unknown("host.clock_skew", {"now": None}),
    passes("host.clock_unsynchronised"),
    fails("host.clock_unsynchronised", "warning", "not synchronised", {"clock>synchronized": False}),
    unknown("host.clock_unsynchronised", {"clock>synchronized": None}),
    passes("host.reboot_pending"),
    fails("host.reboot_pending", "warning", "a reboot is pending: the kernel 6.8.0-90 waits (up 1 days)",
          {"reboot": {"required": True, "why": "the kernel 6.8.0-90 waits."}}),
    fails("host.reboot_pending", "warning", "a reboot is pending",
          {"reboot": {"required": True, "why": ""}, "boot": None}),
    unknown("host.reboot_pending", {"reboot>required": None}),
    passes("host.selinux_models"),
    passes("host.selinux_models", {"selinux": "enforcing"}),
    passes("host.selinux_models", {**SELINUX, **BARE}),
    passes("host.selinux_models", {**SELINUX, "labels": {"/data/models": "container_file_t"}}),
    fails("host.selinux_models", "error", "/data/models/Qwen3-32B has the type default_t",
          {**SELINUX, "labels": {"/data/models": "default_t", "/": "container_file_t"}}),
    fails("host.selinux_models", "warning", "/var/lib/gpufleet-vllm, where containers keep their caches, has the type",
          {**SELINUX, "labels": {"/data/models": "container_file_t", "/var/lib/gpufleet-vllm": "var_lib_t"}}),
    unknown("host.selinux_models", {**SELINUX, "labels": {"/data/models": None}}),
    unknown("host.selinux_models", {"selinux": "enforcing", f"{DOCKER}>security_options": None}),
    passes("host.apparmor"),
    passes("host.apparmor", {"apparmor": "disabled", f"{DOCKER}>security_options": []}),
    unknown("host.apparmor", {f"{DOCKER}>security_options": [], f"{DOCKER}>server_version": None}),
    fails("host.apparmor", "info", "Docker does not use it", {f"{DOCKER}>security_options": ["name=seccomp"]}),
    unknown("host.apparmor", {"apparmor": None}),
    passes("host.services_unknown"),
    passes("host.services_unknown", {"services_problem": "no answer", f"{DOCKER}>running": False}),
    fails("host.services_unknown", "warning", "permission denied",
          {"services_problem": "docker: permission denied. Expected: the right to. Remedy: none"}),
    unknown("host.services_unknown", {"services_problem": DROP}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


def test_the_remedy_types_the_path_of_the_model() -> None:
    change = {**SELINUX, "labels": {"/data/models": "default_t"}}
    _rule, verdict = ask(RULES, fails("host.selinux_models", "error", "", change))
    assert [failure.service for failure in verdict] == ["chat", "whisper"]
    # A model is renamed into its place: what is below has the type of the directory that it was made in.
    assert verdict[0].remedy == (
        "mkdir -p /data/models && semanage fcontext -a -t container_file_t '/data/models(/.*)?' && "
        "restorecon -R /data/models"
    )


@pytest.mark.parametrize(
    ("text", "amount"),
    [("16gb", 16 * GIB), ("64m", 64 << 20), (4096, 4096), ("1t", 1 << 40), ("", None), ("x", None), ("-1", None)],
)
def test_sizes_as_docker_writes_them(text: t.Any, amount: int | None) -> None:
    assert _bytes(text) == amount
