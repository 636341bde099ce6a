# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _hub, _plan_hub

REMEDIES = sorted(_plan_hub.REMEDIES)


@pytest.mark.parametrize("code", REMEDIES)
def test_a_remedy_names_what_an_operator_sets(code: str) -> None:
    remedy = _plan_hub.remedy_of(code, "Set endpoint", "chat")
    assert "{" not in remedy
    assert not re.search(r"(?<!_)\b(endpoint|token)\b", remedy), "an option of a module"
    assert remedy[0].islower()


def test_every_code_is_one_of_the_hubs() -> None:
    source = Path(_hub.__file__).read_text(encoding="utf-8")
    for code in {*REMEDIES, *_plan_hub.ANSWERS}:
        assert f'"{code}"' in source, code


def test_what_is_not_of_the_hub_keeps_its_own_remedy() -> None:
    assert _plan_hub.remedy_of("model.gguf", "Set max_model_len", "chat") == "Set max_model_len"


def test_an_answer_without_words() -> None:
    finding = _plan_hub.check_answer("chat", {"error": {"code": "hub.not_found"}})
    assert finding is not None
    assert (finding.seen, finding.expected) == ("the hub answered hub.not_found", "a model that the hub has")


@pytest.mark.parametrize("entry", [None, 7, "x", [], {}, {"error": None}, {"error": 7}, {"error": {"code": None}}])
def test_what_is_no_answer(entry: t.Any) -> None:
    assert _plan_hub.check_answer("chat", entry) is None


def test_an_answer_is_one_line_whatever_a_hub_sends() -> None:
    error = {"code": "hub.no_access", "seen": "refused\n\x1b[31mit." + "x" * 2000, "expected": "\0"}
    finding = _plan_hub.check_answer("chat", {"error": error})
    assert finding is not None
    assert finding.seen.isprintable()
    assert len(finding.seen) <= 600
    assert finding.expected == "a model that the hub has"
