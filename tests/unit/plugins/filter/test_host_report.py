# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.filter.host_report import FilterModule, host_report


@pytest.mark.parametrize("plan", [{}, None])
def test_without_a_plan(plan: None) -> None:
    assert host_report(plan, failure="no facts") == {
        "engine": None,
        "runtime": None,
        "services": [],
        "artifacts": [],
        "failure": "no facts",
        "unreachable": False,
    }


def test_with_one() -> None:
    service = {
        "name": "chat",
        "model": "acme/tiny",
        "revision": "v1",
        "path": "/data/tiny",
        "served_model_name": "tiny",
        "public_url": "http://10.0.0.11:8000",
        "secrets": ["HF_TOKEN", "VLLM_API_KEY"],
        "gpus": [],
    }
    made = host_report(
        {"engine": {"version": "1"}, "runtime": "systemd", "services": [service]},
        artifacts=[{"path": "/data/tiny", "commit": "0123"}, {"path": "/data/other", "commit": "4567"}],
        reports=[{"name": "chat", "ok": True, "results": [{"kind": "chat"}], "version": "1"}],
        states={"chat": {"state": "running"}},
    )
    assert made["services"] == [
        {
            "name": "chat",
            "model": "acme/tiny",
            "revision": "v1",
            "served_model_name": "tiny",
            "url": "http://10.0.0.11:8000",
            "keyed": True,
            "gpus": [],
            "artifact": {"path": "/data/tiny", "commit": "0123"},
            "ok": True,
            "state": "running",
            "state_text": made["services"][0]["state_text"],
            "version": "1",
            "results": [{"kind": "chat"}],
            "memory": [],
        }
    ]
    assert made["failure"] == ""


def test_a_host_that_was_not_reached() -> None:
    made = host_report({}, failure="the plan failed", steps=[{"unreachable": True, "msg": "Connection refused"}])
    assert made["unreachable"]
    assert "seen:     Connection refused" in made["failure"]


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"host_report": host_report}
