# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _summary as summary

OK = {
    "kind": "chat",
    "asked": "Capital of France?",
    "answered": "Paris.",
    "ok": True,
    "seconds": 0.25,
    "first_token_seconds": 0.012,
}
BAD = {**OK, "ok": False, "reason": "answered 'Lyon', expected Paris"}
PLAN = {
    "engine": {"version": "0.33.0", "flavor": "cuda"},
    "runtime": "systemd",
    "services": [
        {
            "name": "chat",
            "model": "acme/tiny",
            "revision": "master",
            "path": "/data/tiny",
            "served_model_name": "tiny",
            "url": "http://127.0.0.1:8000",
            "public_url": "http://10.0.0.11:8000",
            "gpus": [{"index": 2, "uuid": "GPU-2", "name": "x"}],
        }
    ],
}
ARTIFACT = {
    "path": "/data/tiny",
    "commit": "0123456789abcdef",
    "bytes_total": 269_100_000,
    "bytes_fetched": 0,
    "files": ["x"],
}


def host(**keys: t.Any) -> dict[str, t.Any]:
    return summary.host_report(PLAN, **keys)


def report(*results: dict[str, t.Any], ok: bool = True) -> list[dict[str, t.Any]]:
    return [{"name": "chat", "ok": ok, "results": list(results), "version": "0.33.0"}]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (269_100_000, "269.1 MB"),
        (16.6e9, "16.6 GB"),
        (999.96e9, "1.0 TB"),
        (4e15, "4000.0 TB"),
    ],
)
def test_human_bytes(count: float, text: str) -> None:
    assert summary.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 ms"), (0.0124, "12 ms"), (0.999, "999 ms"), (0.9996, "1.0 s"), (61.25, "61.2 s")]
)
def test_human_seconds(seconds: float, text: str) -> None:
    assert summary.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("hosts", "text", "well"),
    [
        ({}, "0 hosts, 0 services: nothing to run", True),
        ({"a": {"services": []}}, "1 host, 0 services: nothing to run", True),
        ({"a": {"services": [{"ok": True}]}}, "1 host, 1 service: it answers", True),
        ({"a": {"services": [{"ok": True}]}, "b": {"services": [{"ok": True}]}},
         "2 hosts, 2 services: all answer", True),
        ({"a": {"services": [{"ok": True}, {"ok": False, "results": [BAD]}]}},
         "1 host, 2 services: 1 of 2 answer", False),
        ({"a": {"services": [{"ok": False, "state": "failed"}]}}, "1 host, 1 service: 0 of 1 answer", False),
        ({"a": {"services": [{"ok": False}]}}, "1 host, 1 service: none was asked", False),
        ({"b": {"services": [{"ok": True}], "failure": "x"}, "a": {"failure": "y"}},
         "2 hosts, 1 service: FAILED on a, b", False),
    ],
)  # fmt: skip
def test_headline(hosts: dict[str, t.Any], text: str, well: bool) -> None:
    assert summary.headline(hosts) == text
    assert summary.all_well(hosts) is well


def test_a_service_that_answers() -> None:
    made = host(artifacts=[ARTIFACT], reports=report({"kind": "models", "ok": True}, OK))
    assert summary.host_lines("gpu-01", made) == [
        "gpu-01  vLLM 0.33.0 (cuda) under systemd",
        "  chat  http://10.0.0.11:8000  ok",
        "    model     acme/tiny @ 0123456789ab, 269.1 MB",
        "    GPUs      2 (GPU-2)",
        "    asked     Capital of France?",
        "    answered  Paris.",
        "    timing    first token 12 ms, whole answer 250 ms",
    ]
    assert made["services"][0]["artifact"] == {key: ARTIFACT[key] for key in ARTIFACT if key != "files"}


def test_what_was_fetched_is_said() -> None:
    made = host(artifacts=[{**ARTIFACT, "bytes_fetched": 1_000_000}])
    assert "269.1 MB, 1.0 MB fetched" in summary.host_lines("a", made)[2]


def test_a_wrong_answer() -> None:
    lines = summary.host_lines("a", host(reports=report(BAD, ok=False), failure="one\ntwo"))
    assert lines[1].endswith("WRONG ANSWER")
    assert lines[-4:] == [
        "    FAILED    chat: Capital of France?",
        "              answered 'Lyon', expected Paris",
        "  FAILED: one",
        "  two",
    ]


@pytest.mark.parametrize(
    ("states", "text"), [(None, "not probed"), ({"chat": {"state": "failed"}}, "failed"), ({"other": {}}, "not probed")]
)
def test_a_service_that_was_not_asked(states: t.Any, text: str) -> None:
    assert summary.host_lines("a", host(states=states))[1].endswith(text)
    assert summary.host_lines("a", host(states=states))[2].strip() == "model     acme/tiny @ master"


def test_a_host_without_a_plan() -> None:
    made = summary.host_report({}, failure="unreachable")
    assert made == {"engine": None, "runtime": None, "services": [], "failure": "unreachable"}
    assert summary.host_lines("a", made) == ["a", "  FAILED: unreachable"]


def test_the_whole_text() -> None:
    text = summary.as_text(
        "Deployed",
        {"b": host(reports=report(OK)), "a": summary.host_report({})},
        {"ask it": "curl \\\n  x", "stop": 7, "nothing": ""},  # type: ignore[dict-item]
    )
    lines = text.splitlines()
    assert lines[:3] == ["Deployed: 2 hosts, 1 service: it answers", "", "a"]
    assert lines[-5:] == ["Next", "  ask it   curl \\", "             x", "  stop     7", "  nothing  "]
    assert "Next" not in summary.as_text("Deployed", {}, {})


def test_what_a_model_says_cannot_move_the_cursor() -> None:
    nasty = {**OK, "asked": "a\nb", "answered": "\x1b[2J\x1b]0;owned\x07Paris\r\n\u202e模型 é 👩\u200d🔬\u3000x"}
    text = summary.as_text("Deployed", {"a": host(reports=report(nasty), failure="log: \x1b[31mred")}, {})
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
    assert "asked     a b" in text
    assert "Paris \ufffd模型 é 👩\u200d🔬 x" in text
    assert summary.printable("模型\u3000\xa0é\tx") == "模型\u3000\xa0é\tx"
