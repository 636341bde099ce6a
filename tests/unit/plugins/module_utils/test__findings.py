# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    INFO,
    WARNING,
    Finding,
    as_text,
    errors,
    worst_first,
)


def finding(code: str, severity: str = ERROR, service: str = "") -> Finding:
    return Finding(code, severity, "seen", "expected", "remedy", service)


def test_a_finding_survives_a_trip_through_plain_data() -> None:
    one = finding("plan.port_taken", service="chat")
    assert one.as_dict() == {
        "code": "plan.port_taken",
        "severity": "error",
        "seen": "seen",
        "expected": "expected",
        "remedy": "remedy",
        "service": "chat",
        "page": "",
    }
    assert Finding(**one.as_dict()) == one


def test_worst_first_then_by_service() -> None:
    mixed = [
        finding("i", INFO),
        finding("b", ERROR, "b"),
        finding("w", WARNING),
        finding("z", ERROR, "a"),
        finding("a", ERROR, "a"),
        finding("h", ERROR),
    ]
    assert [item.code for item in worst_first(mixed)] == ["h", "a", "z", "b", "w", "i"]
    assert [item.code for item in errors(mixed)] == ["b", "z", "a", "h"]


def test_as_text() -> None:
    assert as_text([finding("i", INFO), finding("plan.port_taken", service="chat")]) == (
        "error plan.port_taken (chat): seen\n  expected: expected\n  remedy:   remedy\n"
        "info i: seen\n  expected: expected\n  remedy:   remedy"
    )
    assert as_text([]) == ""
