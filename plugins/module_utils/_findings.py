# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Findings: one preflight or validation result each, in words an operator can act on."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass

ERROR = "error"
WARNING = "warning"
INFO = "info"
SEVERITIES = (ERROR, WARNING, INFO)


@dataclass(frozen=True)
class Finding:
    """``code`` is stable (``plan.port_taken``). ``service`` is empty where the finding is about the host; ``page`` is
    where more is told.
    """

    code: str
    severity: str
    seen: str
    expected: str
    remedy: str
    service: str = ""
    page: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def errors(findings: t.Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == ERROR]


def worst_first(findings: t.Iterable[Finding]) -> list[Finding]:
    return sorted(
        findings,
        key=lambda finding: (
            SEVERITIES.index(finding.severity),
            finding.service,
            finding.code,
        ),
    )


def as_text(findings: t.Iterable[Finding]) -> str:
    """A block a person reads, worst first::

    error plan.port_taken (whisper): port 8000 is also the port of qwen-vl
      expected: one service per port and host
      remedy:   set another port: for whisper
    """
    lines: list[str] = []
    for finding in worst_first(findings):
        where = f" ({finding.service})" if finding.service else ""
        lines.append(f"{finding.severity} {finding.code}{where}: {finding.seen}")
        lines.append(f"  expected: {finding.expected}")
        lines.append(f"  remedy:   {finding.remedy}")
    return "\n".join(lines)
