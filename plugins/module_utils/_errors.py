# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The one exception tree of the collection: every failure says what was seen, what was expected and what to do."""

from __future__ import annotations


class FleetError(Exception):
    """A failure an operator can act on.

    ``code`` is stable and short (``hub.not_found``), so that a playbook can branch on it; ``seen``, ``expected`` and
    ``remedy`` are sentences for a person. None of them may hold a secret or a signed URL.
    """

    def __init__(self, code: str, seen: str, expected: str = "", remedy: str = "") -> None:
        self.code = code
        self.seen = seen
        self.expected = expected
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.seen.rstrip(".") + "."]
        if self.expected:
            parts.append(f"Expected: {self.expected.rstrip('.')}.")
        if self.remedy:
            parts.append(f"Remedy: {self.remedy.rstrip('.')}.")
        return " ".join(parts)

    def as_result(self) -> dict[str, str]:
        """The fields as module results, for ``fail_json(msg=str(e), **e.as_result())``."""
        return {
            "code": self.code,
            "seen": self.seen,
            "expected": self.expected,
            "remedy": self.remedy,
        }
