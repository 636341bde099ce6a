# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact_module
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Outcome
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

PARAMS = {
    "model": "acme/tiny",
    "revision": "v1",
    "endpoint": "hub.example.com/",
    "token": None,
    "timeout": 60.0,
    "include": ["*.json"],
    "exclude": [],
    "path": "/srv/tiny",
    "state": "present",
    "connections": 3,
    "bandwidth": "2MiB",
    "retries": 4,
    "allow_pickle": True,
    "engine": "native",
    "client": "modelscope",
    "lock_timeout": 7.0,
}


def module(diff=False, **changes):
    return types.SimpleNamespace(params={**PARAMS, **changes}, check_mode=True, _diff=diff)


@pytest.fixture
def calls(monkeypatch):
    made = []
    entries = (Entry("a", 1, "a" * 64), Entry("b", 2, "b" * 64))
    foreign = tuple(f"f{number}" for number in range(150))
    outcome = Outcome("/srv/tiny", True, "c" * 40, 3, entries, 1, foreign, ("w.bin",), {"x": 1}, {"x": 2}, ["careful"])

    def present(request, hub, verify=False):
        made.append(("present", request, verify))
        return outcome

    def absent(request):
        made.append(("absent", request, None))
        return outcome

    monkeypatch.setattr(_artifact_module._artifact, "present", present)
    monkeypatch.setattr(_artifact_module._artifact, "absent", absent)
    return made


@pytest.mark.parametrize(
    ("state", "call", "verify"),
    [("present", "present", False), ("verified", "present", True), ("absent", "absent", None)],
)
def test_options_become_a_request(calls, state, call, verify):
    _artifact_module.run(module(state=state))
    made, request, verified = calls[0]
    assert (made, verified) == (call, verify)
    assert (request.model, request.revision, request.path) == ("acme/tiny", "v1", "/srv/tiny")
    assert (request.endpoint, request.include, request.exclude) == ("https://hub.example.com", ("*.json",), ())
    assert (request.connections, request.bandwidth, request.policy.attempts) == (3, 2 * 1024 * 1024, 5)
    assert (request.allow_pickle, request.engine, request.client) == (True, "native", "modelscope")
    assert (request.lock_timeout, request.check_mode) == (7.0, True)


def test_an_outcome_becomes_results(calls):
    result = _artifact_module.run(module())
    assert (result["changed"], result["commit"], result["bytes_fetched"], result["bytes_total"]) == (
        True,
        "c" * 40,
        3,
        3,
    )
    assert result["files"][1] == {"path": "b", "size": 2, "sha256": "b" * 64}
    assert (result["adopted"], len(result["foreign"]), result["warnings"]) == (1, 100, ["careful"])
    assert result["left_out"] == ["w.bin"]
    assert "diff" not in result
    diff = _artifact_module.run(module(diff=True))["diff"]
    assert (diff["before"], diff["after"]) == ({"x": 1}, {"x": 2})
    assert diff["before_header"] == "/srv/tiny (acme/tiny)"


def test_absent_asks_no_hub(calls, monkeypatch):
    monkeypatch.setattr(_artifact_module, "hub_client", lambda params: pytest.fail("a hub was made"))
    _artifact_module.run(module(state="absent", token="x", endpoint="http://hub.example.com"))


@pytest.mark.parametrize("change", [{"connections": 0}, {"retries": -1}, {"lock_timeout": -0.5}])
def test_numbers_that_cannot_be(calls, change):
    with pytest.raises(FleetError) as caught:
        _artifact_module.run(module(**change))
    assert caught.value.code == "artifact.bad_option"
    assert calls == []


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", 0),
        (" ", 0),
        ("1024", 1024),
        ("200MB", 200_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("800Mbit", 100_000_000),
        ("20kb", 20_000),
    ],
)
def test_bandwidths(text, rate):
    assert _artifact_module.parse_bandwidth(text) == rate


@pytest.mark.parametrize("text", ["0", "-1", "fast", "10", "1TB/s", "1e9", "MB", "8kbit/"])
def test_bandwidths_that_cannot_be(text):
    with pytest.raises(FleetError) as caught:
        _artifact_module.parse_bandwidth(text)
    assert caught.value.code == "artifact.bad_bandwidth"
