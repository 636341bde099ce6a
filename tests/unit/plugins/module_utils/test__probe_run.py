# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _probe_run
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._probe import Readiness, Report, Result
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Status


def endpoint(name: str = "a", **extra: t.Any) -> dict[str, t.Any]:
    return {"name": name, "url": "http://127.0.0.1:8000", "served_model_name": "m", **extra}


def options(*endpoints: dict[str, t.Any], **extra: t.Any) -> dict[str, t.Any]:
    defaults = {name: option.get("default") for name, option in _probe_run.argument_spec().items()}
    return {**defaults, "endpoints": list(endpoints), "runtime": "none", **extra}


def test_endpoints_of_a_plan() -> None:
    service = endpoint(port=8000, command=["vllm"], path="/models/m", probes=None)
    other = endpoint("b", probes=[{"kind": "chat", "expect": "x+", "max_tokens": "8"}])
    secrets = {"a": {"VLLM_API_KEY": "sk-1", "HF_TOKEN": "hf"}}
    first, second = _probe_run.endpoints_of(options(service, other, secrets=secrets, request_timeout=7))
    assert (first.api_key, first.path, first.probes, first.request_timeout) == ("sk-1", "/models/m", None, 7.0)
    assert (second.api_key, second.path) == ("", "")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"url": "http://x", "served_model_name": "m"}, "endpoints[0] has no name"),
        ({"name": "a", "served_model_name": "m"}, "has no url"),
        ({"name": "a", "url": "http://x"}, "has no served_model_name"),
        (endpoint(url="127.0.0.1:8000"), "has the url 127.0.0.1:8000"),
        (endpoint(url="http://"), "has the url http://"),
        (endpoint(url="ftp://x"), "has the url ftp://x"),
        (endpoint(url="http://x:99999"), "has the url http://x:99999"),
        (endpoint(url="http://[::1"), "has the url"),
        (endpoint(probes="chat"), "no list of mappings"),
        (endpoint(probes=["chat"]), "no list of mappings"),
        (endpoint(probes=[{"kind": "chatt"}]), "of the kind chatt"),
        (endpoint(probes=[{}]), "of the kind None"),
        (endpoint(probes=[{"kind": "chat", "expect": "("}]), "bad value"),
        (endpoint(probes=[{"kind": "chat", "max_tokens": "many"}]), "bad value"),
    ],
)
def test_endpoints_that_are_refused(entry: dict[str, t.Any], words: str) -> None:
    with pytest.raises(FleetError) as caught:
        _probe_run.endpoints_of(options(entry))
    assert caught.value.code == "probe.bad_endpoint"
    assert words in caught.value.seen


def test_two_endpoints_of_one_name() -> None:
    with pytest.raises(FleetError, match=r"endpoints\[1\] is the second one named a"):
        _probe_run.endpoints_of(options(endpoint(), endpoint()))


class Backend:
    def __init__(self, **states: Status) -> None:
        self.states = states

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        return {name: self.states[name] for name in names if name in self.states}

    def tail(self, name: str, lines: int) -> list[str]:
        return [f"{name} said"] * lines


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    ready: dict[str, bool] = {}
    calls: list[bool] = []

    def wait(endpoints: t.Any, _seconds: float, keep_waiting: t.Callable[[], bool]) -> dict[str, Readiness]:
        calls.append(keep_waiting())
        ready["kept waiting"] = calls[-1]
        return {one.name: Readiness(ready[one.name], "GET /health answered 200") for one in endpoints}

    monkeypatch.setattr(_probe_run, "wait_for_health", wait)
    return ready


def test_a_slice_without_a_process_manager(health: dict[str, bool]) -> None:
    health["a"] = False
    answer = _probe_run.wait_slice(options(endpoint()))
    assert answer["ready"] is False
    assert answer["services"]["a"] == {
        "ready": False, "seen": "GET /health answered 200", "log": [], "managed": False,
        "state": None, "pid": None, "restarts": None
    }  # fmt: skip
    assert health["kept waiting"]


def test_a_slice_ends_early_when_a_service_died(health: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(a=Status("running", 7, 0), b=Status("failed", None, 2, detail="failed (failed)"))
    monkeypatch.setattr(_probe_run, "make_backend", lambda *_args: backend)
    health.update(a=True, b=False)
    answer = _probe_run.wait_slice(options(endpoint(), endpoint("b"), runtime="systemd", log_lines=2))
    assert health["kept waiting"] is False
    assert answer["ready"] is False
    assert answer["services"]["a"]["log"] == []
    assert answer["services"]["b"]["log"] == ["b said", "b said"]
    assert (answer["services"]["b"]["state"], answer["services"]["b"]["restarts"]) == ("failed", 2)


def test_ask_shows_the_log_of_those_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probe_run, "make_backend", lambda *_args: Backend())

    def interrogate(one: t.Any) -> Report:
        ok = one.name == "a"
        return Report(one.name, one.url, ok=ok, results=[Result("chat", "?", "x", ok=ok)])

    monkeypatch.setattr(_probe_run, "interrogate", interrogate)
    answer = _probe_run.ask(options(endpoint(), endpoint("b"), runtime="supervisor", log_lines=1))
    assert answer["ok"] is False
    assert [report["log"] for report in answer["reports"]] == [[], ["b said"]]
    assert _probe_run.ask(options()) == {"ok": True, "reports": []}


def test_what_the_engine_says_of_its_memory_stands_beside_what_was_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Booted(Backend):
        def tail(self, name: str, lines: int) -> list[str]:
            return [
                "INFO [gpu_worker.py:563] Available KV cache memory: 8.00 GiB",
                "INFO: Application startup complete.",
            ]

    monkeypatch.setattr(_probe_run, "make_backend", lambda *_args: Booted())
    monkeypatch.setattr(_probe_run, "interrogate", lambda one: Report(one.name, one.url, ok=True, results=[]))
    sized = {**endpoint(), "memory": {"kv_available_bytes": 10 * 1024**3}}
    (report, other) = _probe_run.ask(options(sized, endpoint("b"), runtime="supervisor"))["reports"]
    assert report["memory"] == [{"what": "KV cache", "estimated": 10.0, "seen": 8.0, "unit": "GiB", "percent": 25.0}]
    assert other["memory"] == []
    assert _probe_run.ask(options(sized))["reports"][0]["memory"] == [], "no process manager, no log"


def test_a_bad_root_is_refused() -> None:
    with pytest.raises(FleetError):
        _probe_run.ask(options(endpoint(), runtime="supervisor", root="/"))
