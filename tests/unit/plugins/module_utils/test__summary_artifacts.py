# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _summary as summary
from ansible_collections.gpufleet.vllm.plugins.module_utils import _summary_artifacts as artifacts

FETCHED = {
    "item": {"model": "Qwen/Qwen2.5-VL-7B-Instruct"},
    "path": "/data/models/qwen",
    "commit": "2e50b77b0eee3083842019e257b74854323d880a",
    "bytes_total": 16_584_333_312,
    "bytes_fetched": 16_584_333_312,
    "seconds": 41.2,
    "changed": True,
    "failed": False,
    "files": ["many"],
}
KEPT = {**FETCHED, "bytes_fetched": 0, "seconds": 0.1, "changed": False}
FAILED = {"item": {"model": "acme/gone"}, "path": "/data/models/gone", "failed": True, "changed": False, "msg": "no"}


def test_what_a_report_keeps() -> None:
    part = artifacts.artifact_part(FETCHED)
    assert part == {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct", "path": "/data/models/qwen", "commit": FETCHED["commit"], "ok": True,
        "bytes_total": 16_584_333_312, "bytes_fetched": 16_584_333_312, "seconds": 41.2, "changed": True,
    }  # fmt: skip
    assert artifacts.artifact_part(FAILED) == {
        "model": "acme/gone", "path": "/data/models/gone", "changed": False, "ok": False
    }  # fmt: skip
    assert artifacts.artifact_part({}) == {"model": None, "ok": True}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.2, "16.6 GB fetched in 41 s, 403 MB/s"), (4.9, "16.6 GB fetched"), (None, "16.6 GB fetched")],
)
def test_the_time_is_said_if_it_was_long(seconds: float | None, text: str) -> None:
    assert artifacts.fetched_text({**FETCHED, "seconds": seconds}) == text


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([FETCHED], "complete, 16.6 GB fetched"),
        ([FETCHED, KEPT], "all complete, 16.6 GB fetched"),
        ([KEPT], "complete, nothing fetched"),
        ([FETCHED, FAILED], "1 of 2 complete, 16.6 GB fetched"),
        ([FAILED], "0 of 1 complete, nothing fetched"),
    ],
)
def test_the_headline(results: list[dict[str, object]], text: str) -> None:
    assert artifacts.artifact_headline([artifacts.artifact_part(result) for result in results]) == text


def test_a_fetch_is_summed_up() -> None:
    hosts = {
        "gpu-01": summary.host_report({}, artifacts=[FETCHED, KEPT]),
        "gpu-02": summary.host_report({}, artifacts=[FAILED], failure="acme/gone at /data/models/gone: no"),
    }
    assert summary.as_text("Fetched", hosts, {}).splitlines() == [
        "Fetched: 2 hosts, 3 artifacts: 2 of 3 complete, 16.6 GB fetched; FAILED on gpu-02",
        "",
        "gpu-01",
        "  Qwen/Qwen2.5-VL-7B-Instruct @ 2e50b77b0eee  16.6 GB, 16.6 GB fetched in 41 s, 403 MB/s",
        "    /data/models/qwen",
        "  Qwen/Qwen2.5-VL-7B-Instruct @ 2e50b77b0eee  16.6 GB",
        "    /data/models/qwen",
        "",
        "gpu-02",
        "  acme/gone  FAILED",
        "    /data/models/gone",
        "  FAILED: acme/gone at /data/models/gone: no",
    ]


def test_many_hosts_are_a_table() -> None:
    hosts = {f"gpu-{n:02}": summary.host_report({}, artifacts=[FETCHED]) for n in range(1, 6)}
    hosts["gpu-06"] = summary.host_report({}, artifacts=[FAILED], failure="no")
    hosts["gpu-07"] = {"unreachable": True}
    lines = summary.as_text("Fetched", hosts, {}).splitlines()
    assert lines[0].endswith("5 of 6 complete, 82.9 GB fetched; FAILED on gpu-06; UNREACHABLE: gpu-07")
    assert [line.split() for line in (lines[2], lines[3], lines[8], lines[9])] == [
        ["host", "state", "model", "size", "fetched", "took", "rate"],
        ["gpu-01", "ok", "Qwen/Qwen2.5-VL-7B-Instruct", "16.6", "GB", "16.6", "GB", "41", "s", "403", "MB/s"],
        ["gpu-06", "FAILED", "acme/gone", "-", "-", "-", "-"],
        ["gpu-07", "UNREACHABLE", "-", "-", "-", "-", "-"],
    ]


def test_a_deploy_says_it_with_its_services() -> None:
    service = {
        "name": "chat", "model": "acme/tiny", "revision": "v1", "path": "/data/models/qwen",
        "served_model_name": "tiny", "public_url": "http://10.0.0.11:8000", "secrets": [], "gpus": [],
    }  # fmt: skip
    made = summary.host_report({"services": [service]}, artifacts=[FETCHED])
    lines = summary.host_lines("gpu-01", made)
    assert "    model     acme/tiny @ 2e50b77b0eee, 16.6 GB, 16.6 GB fetched in 41 s, 403 MB/s" in lines
    assert not any("/data/models" in line for line in lines)
