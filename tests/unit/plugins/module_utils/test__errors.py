# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("nothing listens",), "nothing listens."),
        (("nothing listens.",), "nothing listens."),
        (("a", "b", "c"), "a. Expected: b. Remedy: c."),
        (("a.", "b.", "c."), "a. Expected: b. Remedy: c."),
        (("a", "", "c"), "a. Remedy: c."),
        (("a", "b"), "a. Expected: b."),
    ],
)
def test_one_sentence_each(fields: tuple[str, ...], text: str) -> None:
    error = FleetError("hub.down", *fields)
    assert str(error) == text
    assert error.args == (text,)


def test_as_result() -> None:
    error = FleetError("hub.not_found", "a", "b", "c")
    assert error.as_result() == {"code": "hub.not_found", "seen": "a", "expected": "b", "remedy": "c"}
