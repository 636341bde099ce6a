# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import threading
import time

from ansible_collections.gpufleet.vllm.plugins.module_utils._sources import Sources


def test_answers_come_side_by_side() -> None:
    """Each waits for the other, so that neither could end alone."""
    sources, both = Sources(), threading.Barrier(2, timeout=30)
    for name in ("one", "two"):
        sources.ask(name, both.wait, 30)
    assert sorted(sources.answer(name, -1) for name in ("one", "two")) == [0, 1]
    assert sources.problems == []


def test_what_hangs_costs_its_own_answer() -> None:
    sources, never = Sources(), threading.Event()
    sources.ask("the disk", never.wait, 0.05)
    sources.ask("the clock", lambda: 7, 30)
    assert sources.answer("the disk", None) is None
    assert sources.answer("the clock", 0) == 7
    assert sources.problems == ["Reading the disk gave no answer within 0.05 s, so it is not known."]
    never.set()


def test_what_fails_is_said_in_words() -> None:
    sources = Sources()

    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/x")

    def crash() -> None:
        raise ValueError("no such thing")

    def bare() -> None:
        raise KeyError

    for name, function in (("the disk", refuse), ("the clock", crash), ("the log", bare)):
        sources.ask(name, function, 30)
        assert sources.answer(name, "otherwise") == "otherwise"
    assert sources.problems == [
        "The disk can not be told: Permission denied.",
        "The clock can not be told: no such thing.",
        "The log can not be told: KeyError.",
    ]


def test_an_answer_that_came_before_it_was_wanted_counts() -> None:
    sources = Sources()
    sources.ask("the clock", lambda: 7, 0.01)
    while threading.active_count() > 1 and any(thread.name == "the clock" for thread in threading.enumerate()):
        time.sleep(0.01)
    time.sleep(0.02)
    assert sources.answer("the clock", 0) == 7
