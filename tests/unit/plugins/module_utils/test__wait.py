# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._wait import (
    Watch,
    not_ready,
    progress_line,
    shorten,
    wrong_answers,
)

URL = "http://127.0.0.1:8000"


def state(word: str | None, pid: int | None = None, restarts: int | None = None, **more: t.Any) -> dict[str, t.Any]:
    return {"state": word, "pid": pid, "restarts": restarts, "ready": False, **more}


def watched(*slices: dict[str, t.Any]) -> Watch:
    watch = Watch("chat", 1800)
    for one in slices:
        watch.observe(one)
    return watch


@pytest.mark.parametrize(
    ("slices", "deaths"),
    [
        ([state("starting", 1)], 0),
        ([state("starting", 1), state("starting", 1)], 0),
        ([state("starting", 1), state("starting", 2)], 1),
        ([state("starting", 1, 0), state("starting", 2, 1)], 1),
        ([state("starting", 1, 0), state("starting", 4, 3)], 3),
        # One death, seen first as a failed state and then as a process that is back.
        ([state("starting", 1), state("restarting"), state("starting", 2)], 1),
        ([state("starting", 1, 0), state("restarting", None, 0), state("starting", 2, 1)], 1),
        ([state("starting", 1, 0), state("restarting", None, 0), state("restarting", None, 0)], 1),
        # It died, came back and died again between two slices.
        ([state("starting", 1, 0), state("restarting", None, 1)], 2),
        ([state("starting", 1), state("restarting"), state("starting", 2), state("restarting")], 2),
        ([state("failed")], 1),
        ([state("starting", 1, 5)], 0),
        # A unit that was loaded anew counts from the start.
        ([state("starting", 1, 5), state("starting", 1, 0)], 0),
        ([state(None)], 0),
    ],
)
def test_deaths(slices: list[dict[str, t.Any]], deaths: int) -> None:
    assert watched(*slices).deaths == deaths


@pytest.mark.parametrize(
    ("slices", "given_up"),
    [
        ([state("starting", 1)], False),
        ([state("starting", 1), state("starting", 2)], False),
        ([state("starting", 1), state("starting", 2), state("starting", 3)], True),
        ([state("starting", 1), state("restarting"), state("starting", 2)], False),
        # The manager has given up, or only waits before it starts the service again.
        ([state("starting", 1), state("failed")], True),
        ([state("starting", 1), state("restarting"), state("restarting")], False),
        ([state("starting", 1), state("restarting"), state("starting", 2), state("restarting")], True),
        ([state("stopped")], True),
        ([state(None)], False),
    ],
)
def test_given_up(slices: list[dict[str, t.Any]], given_up: bool) -> None:
    assert watched(*slices).given_up(max_restarts=1) is given_up


def test_progress() -> None:
    watch = watched(state("starting", 1, log=["old", "Loading\tsafetensors  shards: " + "x" * 200]))
    line = progress_line("gpu-01", watch, 35.4)
    assert line.startswith("[gpu-01] chat: starting, 35 s of 1800 s | Loading safetensors shards: xxx")
    assert line.endswith("...")
    assert progress_line("gpu-01", Watch("chat", 60), 0.0) == "[gpu-01] chat: waiting, 0 s of 60 s"


def test_shorten() -> None:
    assert shorten(" a \n b ", 10) == "a b"
    assert shorten("x" * 10, 10) == "x" * 10
    assert shorten("x" * 11, 10) == "x" * 7 + "..."


def test_it_died() -> None:
    watch = watched(state("starting", 1), state("failed", seen="connection refused", log=["CUDA out of memory", "bye"]))
    watch.observe(state("failed", seen="connection refused", log=["CUDA out of memory", "bye"]))
    assert not_ready(watch, URL, 12.0, 1) == (
        "chat did not start: its process ended 1 time within 12 s\n"
        "  seen:     connection refused; state failed\n"
        "  expected: HTTP 200 from http://127.0.0.1:8000/health\n"
        "  remedy:   correct what its log says below, then run again\n"
        "  the end of its log:\n    CUDA out of memory\n    bye"
    )


def test_it_was_stopped() -> None:
    assert "chat did not start: its process is stopped within 3 s" in not_ready(watched(state("stopped")), URL, 3.0, 1)


def test_it_is_late() -> None:
    text = not_ready(watched(state("starting", 1, seen="GET /health answered 503")), URL, 1800.2, 1)
    assert "chat is not ready after 1800 s" in text
    assert "seen:     GET /health answered 503; state starting" in text
    assert "raise ready_timeout: for it" in text
    assert "seen:     nothing; state unknown" in not_ready(Watch("chat", 60), URL, 60, 1)


def test_wrong_answers() -> None:
    good = {"kind": "models", "ok": True, "asked": "", "reason": "", "expected": ""}
    bad = {"kind": "chat", "ok": False, "asked": "Capital?", "reason": "answered 'Lyon'", "expected": ""}
    reports = [
        {"name": "a", "results": [good]},
        {"name": "b", "results": [good, bad, {**bad, "kind": "vision", "expected": "red"}], "log": ["line"]},
    ]
    blocks = wrong_answers(reports)
    assert "a failed" not in blocks
    assert "b failed the chat probe\n  asked:    Capital?\n  seen:     answered 'Lyon'\n  expected: an answer" in blocks
    assert "b failed the vision probe" in blocks
    assert "expected: red" in blocks
    assert blocks.count("the end of its log:\n    line") == 1


def test_it_was_never_deployed() -> None:
    watch = watched(state(None, managed=True, seen="connection refused"))
    assert watch.given_up(max_restarts=1)
    assert "chat is not deployed on this host" in not_ready(watch, "http://127.0.0.1:1", 1, 1)
    assert not watched(state(None, managed=False)).given_up(max_restarts=1)
