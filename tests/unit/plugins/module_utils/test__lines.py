# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding, as_text
from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import folded, in_brief, told


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("short", ["short"]),
        ("", [""]),
        ("  one two three four five", ["  one two three four", "    five"]),
        ("  remedy:   run a-b --c-d e or wait", ["  remedy:   run a-b", "            --c-d e", "            or wait"]),
        ("  seen:     one two three", ["  seen:     one two", "            three"]),
        ("x " + "y" * 30 + " z", ["x", "  " + "y" * 30, "  z"]),
    ],
)
def test_between_words_and_under_the_label(line: str, lines: list[str]) -> None:
    assert folded(line, 20) == lines


def test_a_failure_in_one_line_is_three() -> None:
    error = FleetError("a.b", "The disk is full", "20 GB free", "Remove what is not needed")
    assert told(str(error), 80, "FAILED: ") == [
        "FAILED: The disk is full",
        "  expected: 20 GB free",
        "  remedy:   Remove what is not needed",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["FAILED: "]),
        ("no", ["FAILED: no"]),
        ("Stopped. Remedy: go on.", ["FAILED: Stopped", "  remedy:   go on"]),
        ("a\nRemedy: b c", ["FAILED: a", "  remedy:   b c"]),
        ("2 failed.\nx: gone. Expected: y. Remedy: z.\nw: gone. Remedy: v.",
         ["FAILED: 2 failed.", "x: gone", "  expected: y", "  remedy:   z", "w: gone", "  remedy:   v"]),
        ("lost\n  seen:     one two three four five six\n  log " + "x " * 30,
         ["FAILED: lost", "  seen:     one two three four", "            five six", "  log " + "x " * 30]),
        ("one two three four five six seven", ["FAILED: one two three four five", "  six seven"]),
    ],
)  # fmt: skip
def test_what_else_a_failure_says(text: str, lines: list[str]) -> None:
    assert told(text, 32, "FAILED: ") == lines


def test_findings_in_a_failure_are_wrapped_and_not_taken_apart() -> None:
    finding = Finding("gpu.ecc", "error", "many words " * 6, "few words", "reboot. Remedy: no", "chat")
    lines = told("It has 1 error.\n" + as_text([finding]), 40)
    assert lines[1] == "error gpu.ecc (chat): many words many"
    assert max(map(len, lines)) <= 40
    assert lines[-2:] == ["  expected: few words", "  remedy:   reboot. Remedy: no"]


@pytest.mark.parametrize(
    ("codes", "failure", "text"),
    [
        (["plan.docker_down"], "", "plan.docker_down (1 error)"),
        (["a.b", "a.c", "a.b"], "", "a.b, a.c (3 errors)"),
        (["a.b", "a.c", "a.d", "a.e", "a.f"], "", "a.b, a.c, a.d and 2 more (5 errors)"),
        ([], "the host cannot be reached\n  seen:     x", "the host cannot be reached"),
        ([], "No space. Expected: some. Remedy: make some.", "No space"),
        (["a.b"], "Stopped.", "a.b (1 error); Stopped"),
        ([], "", ""),
    ],
)
def test_what_ends_a_host_in_brief(codes: list[str], failure: str, text: str) -> None:
    assert in_brief(codes, failure) == text
