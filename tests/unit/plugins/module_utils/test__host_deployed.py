# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_deployed import (
    container_choices,
    deployed_plan,
    deployed_service,
)

SERVICE = {
    "name": "chat",
    "model": "acme/chat",
    "port": 8000,
    "arguments": ["/model", "--max-model-len", "32000"],
    "environment": {"B": "hunter2", "A": "hunter3"},
    "digest": "d",
    "command": ["/opt/vllm/bin/vllm", "serve"],
}
CONTAINER = {
    "user": "2000:0",
    "image": "x:1",
    "command": ["/model"],
    "environment": {"A": "hunter2"},
    "deploy": {"resources": {"limits": {"memory": "1g"}, "reservations": {"devices": [{"driver": "cdi"}]}}},
}


def test_a_host_that_never_had_a_deploy() -> None:
    assert deployed_plan({}, {}) is None


def test_what_was_applied() -> None:
    document = {"digest": "p", "runtime": "systemd", "engine": {"version": "0.33.0", "x": 1}, "services": [SERVICE]}
    found = deployed_plan(document, {"chat": "d"})
    assert found is not None
    assert (found["digest"], found["runtime"], found["installed"]) == ("p", "systemd", {"chat": "d"})
    assert found["engine"]["version"] == "0.33.0"
    assert "x" not in found["engine"]
    assert found["services"]["chat"]["environment"] == ["A", "B"]
    assert "hunter" not in json.dumps(found)


def test_services_without_a_plan_file_are_known_to_be_installed() -> None:
    found = deployed_plan({}, {"chat": "d"})
    assert found is not None
    assert (found["services"], found["installed"], found["runtime"]) == ({}, {"chat": "d"}, None)


def test_the_choices_of_a_container() -> None:
    kept = container_choices(CONTAINER)
    assert kept == {"user": "2000:0", "limits": {"memory": "1g"}, "gpu_driver": "cdi"}
    assert container_choices({"deploy": "?"}) == {"limits": {}, "gpu_driver": None}
    assert deployed_service({**SERVICE, "container": CONTAINER})["container"] == kept


@pytest.mark.parametrize(
    "odd", [{"services": 3}, {"services": [None, {}, {"name": ""}]}, {"images": {}, "artifacts": "x"}]
)
def test_a_damaged_file_is_no_failure(odd: dict[str, t.Any]) -> None:
    found = deployed_plan(odd, {})
    assert found is not None
    assert (found["services"], found["images"], found["artifacts"]) == ({}, [], [])
