# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.filter.failure_text import FilterModule, failure_text


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"failed": True, "msg": "no space"}, "no space"),
        ({"msg": ["a", "b"]}, "['a', 'b']"),
        ({"failed": True}, "the task failed without a message"),
        ({"msg": ""}, "the task failed without a message"),
        ({"results": None, "msg": "x"}, "x"),
        ({"msg": "All items failed", "results": [{"failed": True, "msg": "a"}, {"msg": "fine"}]}, "a"),
        ({"msg": "One or more items failed",
          "results": [{"failed": True, "msg": text} for text in ("a", "b", "a")]}, "a\nb"),
        ({"msg": "m", "results": [{"msg": "fine"}]}, "m"),
        ({"msg": "m", "results": ["text"]}, "m"),
        ({"results": [{"failed": True, "results": [{"failed": True, "msg": "deep"}]}]}, "deep"),
    ],
)  # fmt: skip
def test_failure_text(result: dict[str, t.Any], text: str) -> None:
    assert failure_text(result) == text


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"failure_text": failure_text}
