# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_disk import RULES
from rules_case import DROP, FACTS, GIB, IMAGE, PLAN, Case, ask, fails, holds, host, incomplete, passes, unknown

ROOT, DATA, DOCKER = "filesystems>0", "filesystems>1", "filesystems>2"
ARTIFACTS = PLAN["artifacts"]
PRESENT = f"nvidia>container>images>{IMAGE}>present"
RAN = {
    "services": {
        "chat": {key: ARTIFACTS[0][key] for key in ("model", "revision", "path")},
        "whisper": {key: ARTIFACTS[1][key] for key in ("model", "revision", "path")},
    }
}
FIRST: dict[str, t.Any] = {"record": None, "deployed": None}
SIZES = "plan>artifacts>*>artifact_bytes"


def looked_at(source: str, missing: int | None = None, **other: t.Any) -> dict[str, t.Any]:
    """What the host itself found of its models."""
    return {"models": {
        f"{one['model']}@{one['revision']}": {"source": source, "path": one["path"], "missing_bytes": missing, **other}
        for one in ARTIFACTS
    }}  # fmt: skip


KNOWN_MODELS = {
    f"{one['model']}@{one['revision']}": {"source": "hub", "bytes_total": 1, "artifact_bytes": 71 * GIB // 2}
    for one in ARTIFACTS
}
BARE: dict[str, t.Any] = {
    "plan>runtime": "systemd",
    "plan>engine": {"flavor": "cuda", "managed": True, "version": "0.33.0", "path": "/var/lib/gpufleet-vllm/engine"},
}
LOCAL = {"device": 1, "path": "/data/models", "mount": "/data", "type": "ext4", "options": ["rw"], "read_only": False}

CASES = [
    passes("disk.space"),
    passes("disk.space", {f"{DATA}>free_bytes": GIB, "record": RAN}),
    passes("disk.space", {f"{DATA}>free_bytes": GIB, "record": None, "deployed>artifacts": ARTIFACTS}),
    passes("disk.space", {f"{DATA}>free_bytes": GIB, **FIRST, **looked_at("artifact", 0)}),
    # A fetch that was interrupted goes on, in the space that it has.
    passes("disk.space", {f"{DATA}>free_bytes": 10 * GIB, **FIRST, **looked_at("hub", 4 * GIB)}),
    fails("disk.space", "error", "the deploy adds 24.0 GiB",
          {f"{DATA}>free_bytes": 10 * GIB, **FIRST, **looked_at("hub", 12 * GIB)}),
    # Deployed once, and deleted since.
    fails("disk.space", "error", "10.0 GiB free on /data",
          {f"{DATA}>free_bytes": 10 * GIB, "record": RAN, **looked_at("hub", 66 * GIB)}),
    # What another host found, or what lies elsewhere, is not here.
    fails("disk.space", "error", "10.0 GiB free on /data", {f"{DATA}>free_bytes": 10 * GIB, **FIRST, "plan>models": {
        f"{one['model']}@{one['revision']}": {"source": "artifact"} for one in ARTIFACTS}}),
    fails("disk.space", "error", "10.0 GiB free on /data",
          {f"{DATA}>free_bytes": 10 * GIB, **FIRST, **looked_at("artifact", 0, path="/data/elsewhere")}),
    passes("disk.space", {f"{DOCKER}>free_bytes": GIB}),
    passes("disk.space", {f"{DATA}>free_bytes": GIB, "plan>services": [], "plan>artifacts": []}),
    fails("disk.space", "error", "10.0 GiB free on /data, and the deploy adds 69.0 GiB (Qwen/Qwen3-32B 66.0 GiB",
          {f"{DATA}>free_bytes": 10 * GIB, **FIRST}),
    # An older record does not tell what is there.
    fails("disk.space", "warning", "10.0 GiB free", {f"{DATA}>free_bytes": 10 * GIB, "record>services": {}}),
    fails("disk.space", "error", "the deploy adds 71.0 GiB",
          {SIZES: None, f"{DATA}>free_bytes": 10 * GIB, "plan>models": KNOWN_MODELS}),
    # Each alone fits.
    fails("disk.space", "error", "the deploy adds 93.4 GiB", {
        "filesystems": [{**LOCAL, "path": path, "free_bytes": 80 * GIB, "total_bytes": 99 * GIB}
                        for path in ("/data/models", "/var/lib/docker", "/var/lib/gpufleet-vllm")],
        PRESENT: False, **FIRST}),
    fails("disk.space", "warning", "about 32.0 GiB", {
        PRESENT: False, f"nvidia>container>images>{IMAGE}>size_bytes": None, f"{ROOT}>free_bytes": 20 * GIB,
        f"{DOCKER}>free_bytes": 20 * GIB, **FIRST}),
    # What is known fits: an estimate stops nobody.
    fails("disk.space", "warning", "about 32.0 GiB", {
        "filesystems": [{**LOCAL, "path": path, "free_bytes": 80 * GIB, "total_bytes": 99 * GIB}
                        for path in ("/data/models", "/var/lib/docker", "/var/lib/gpufleet-vllm")],
        PRESENT: False, f"nvidia>container>images>{IMAGE}>size_bytes": None, **FIRST}),
    passes("disk.space", {
        PRESENT: False, f"nvidia>container>images>{IMAGE}>size_bytes": None, f"{ROOT}>free_bytes": 20 * GIB,
        f"{DOCKER}>free_bytes": 20 * GIB, "plan>device": "cpu", **FIRST}),
    fails("disk.space", "warning", "the engine about 12.0 GiB", {f"{ROOT}>free_bytes": 8 * GIB, **BARE, **FIRST}),
    unknown("disk.space", {SIZES: None}),
    unknown("disk.space", {"filesystems": None}),
    unknown("disk.space", {f"{DATA}>free_bytes": -1}),
    passes("disk.tight"),
    fails("disk.tight", "warning", "70.0 GiB free on /data, and the deploy adds 69.0 GiB",
          {f"{DATA}>free_bytes": 70 * GIB}),
    fails("disk.tight", "warning", "1.0 GiB free on /", {f"{ROOT}>free_bytes": GIB, f"{DOCKER}>free_bytes": GIB}),
    unknown("disk.tight", {"filesystems": []}),
    passes("disk.inodes"),
    passes("disk.inodes", {f"{DATA}>free_inodes": 0, f"{DATA}>total_inodes": 0}),
    fails("disk.inodes", "warning", "15000 inodes are free where /data/models lies", {f"{DATA}>free_inodes": 15000}),
    fails("disk.inodes", "error", "12 inodes", {f"{ROOT}>free_inodes": 12}),
    unknown("disk.inodes", {f"{DATA}>free_inodes": None}),
    passes("disk.read_only"),
    passes("disk.read_only", {f"{DOCKER}>read_only": True, **BARE}),
    fails("disk.read_only", "error", "/var/lib/gpufleet-vllm (vllm_root) lies on /", {f"{ROOT}>read_only": True}),
    fails("disk.read_only", "error", "/data/models (the model", {f"{DATA}>read_only": True}),
    fails("disk.read_only", "warning", "/data/models (the model", {f"{DATA}>read_only": True, "record": RAN}),
    unknown("disk.read_only", {f"{DATA}>read_only": None}),
    passes("disk.noexec"),
    passes("disk.noexec", {f"{DATA}>options": ["rw", "noexec"]}),
    fails("disk.noexec", "error", "vllm_root) lies on /, which is mounted noexec",
          {f"{ROOT}>options": ["rw", "noexec"]}),
    fails("disk.noexec", "error", "/var/lib/docker (Docker)", {f"{DOCKER}>options": ["rw", "noexec"]}),
    unknown("disk.noexec", {f"{ROOT}>options": None}),
    passes("disk.network"),
    fails("disk.network", "error", "/var/lib/docker (Docker) lies on nfs4", {f"{DOCKER}>type": "nfs4"}),
    fails("disk.network", "warning", "vllm_root) lies on cifs", {f"{ROOT}>type": "cifs"}),
    fails("disk.network", "warning", "/data/models (the model", {f"{DATA}>type": "nfs4"}),
    fails("disk.network", "info", "lies on lustre", {f"{DATA}>type": "lustre"}),
    unknown("disk.network", {f"{DATA}>type": None}),
    passes("disk.volatile"),
    fails("disk.volatile", "warning", "/data/models (the model Qwen/Qwen3-32B) lies on tmpfs",
          {f"{DATA}>type": "tmpfs"}),
    unknown("disk.volatile", {f"{DATA}>type": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


def test_what_is_added_is_summed_by_device_and_named() -> None:
    paths = ("/data/models", "/var/lib/docker", "/var/lib/gpufleet-vllm")
    filesystems = [{**LOCAL, "path": path, "free_bytes": 80 * GIB, "total_bytes": 99 * GIB} for path in paths]
    _rule, verdict = ask(
        RULES, fails("disk.space", "error", "", {"filesystems": filesystems, PRESENT: False, "record": None})
    )
    assert len(verdict) == 1
    for part in (
        "Qwen/Qwen3-32B 66.0 GiB",
        "whisper-large-v3 3.0 GiB",
        IMAGE[:44] + " 20.4 GiB",
        "2 services about 4.0 GiB",
    ):
        assert part in verdict[0].seen


def test_volumes_of_one_pool_have_one_space() -> None:
    paths = ("/data/models", "/var/lib/docker", "/var/lib/gpufleet-vllm")
    for kind, count in (("btrfs", 1), ("zfs", 1), ("ext4", 0)):
        filesystems = [
            {**LOCAL, "path": path, "device": number, "type": kind, "free_bytes": 80 * GIB, "total_bytes": 99 * GIB}
            for number, path in enumerate(paths)
        ]
        change = {"filesystems": filesystems, PRESENT: False, **FIRST}
        _rule, verdict = ask(RULES, passes("disk.space", change))
        assert len(verdict) == count, kind


def test_images_lie_where_containerd_has_them() -> None:
    small = {**LOCAL, "path": "/var/lib/containerd", "mount": "/var", "device": 7, "free_bytes": 9 * GIB}
    change = {
        "filesystems": [*FACTS["filesystems"], small], PRESENT: False, **FIRST,
        "nvidia>container>docker>storage_driver": "overlayfs", f"nvidia>container>images>{IMAGE}>size_bytes": None,
    }  # fmt: skip
    _rule, verdict = ask(RULES, passes("disk.space", change))
    assert [failure.seen.partition(",")[0] for failure in verdict] == ["9.0 GiB free on /var"]
    _rule, verdict = ask(RULES, passes("disk.space", {**change, "nvidia>container>docker>storage_driver": "overlay2"}))
    assert verdict == []


def test_a_path_of_a_service_lies_where_its_mount_says() -> None:
    change = {"plan>artifacts>0>path": "/data/other/qwen", f"{DATA}>read_only": True}
    _rule, verdict = ask(RULES, fails("disk.read_only", "error", "", change))
    assert {failure.seen.split()[0] for failure in verdict} == {"/data/other", "/data/models"}


def test_a_host_that_runs_nothing_writes_nothing() -> None:
    nothing = host({"plan>services": [], "plan>artifacts": [], "filesystems": DROP})
    assert not [rule.code for rule in RULES if rule.check(nothing)]


def test_the_fixture_tells_each_path() -> None:
    assert [entry["path"] for entry in FACTS["filesystems"]][:3] == [
        "/var/lib/gpufleet-vllm",
        "/data/models",
        "/var/lib/docker",
    ]
