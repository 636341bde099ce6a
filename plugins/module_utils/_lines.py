# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Findings and failures in lines for a terminal, wrapped between words. Pure, no I/O."""

from __future__ import annotations

import re
import textwrap
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

LABEL = re.compile(r" *(?:seen|expected|remedy): +")
FINDING = re.compile(r" *(?:error|warning|info) [a-z_]+\.[a-z_]+")
# Where a failure in one line goes over to what was expected and what to do.
SENTENCES = re.compile(r"(?:^|\.? )(?=(?:Expected|Remedy): )")
INDENT = "  "
NAMED_CODES = 3


def folded(line: str, width: int) -> list[str]:
    """Within the width but for words that are longer; below a label, what follows stands under what it labels."""
    if len(line) <= width:
        return [line]
    label = LABEL.match(line)
    start = line[: label.end()] if label else line[: len(line) - len(line.lstrip(" "))]
    wrapper = textwrap.TextWrapper(width, initial_indent=start, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = " " * len(start) + ("" if label else INDENT)
    return wrapper.wrap(line[len(start) :]) or [line]


def told(failure: str, width: int, mark: str = "") -> list[str]:
    """A failure: what was seen, and on lines of their own what was expected and what to do.

    What else it has in lines, such as the end of a log, is left as it is.
    """
    lines: list[str] = []
    for number, line in enumerate(f"{mark}{failure}".splitlines()):
        known = LABEL.match(line) or FINDING.match(line)
        parts = [line] if known else [_labelled(part) for part in SENTENCES.split(line) if part] or [line]
        whole = number > 0 and not known and parts == [line]
        lines += parts if whole else [piece for part in parts for piece in folded(part, width)]
    return lines


def in_brief(codes: t.Sequence[str], failure: str = "", noun: str = "error") -> str:
    """What ends a host, for a line in which its name stands already: ``plan.docker_down, gpu.ecc (3 errors)``."""
    kinds = list(dict.fromkeys(codes))
    more = f" and {len(kinds) - NAMED_CODES} more" if len(kinds) > NAMED_CODES else ""
    said = [f"{', '.join(kinds[:NAMED_CODES])}{more} ({plural(len(codes), noun)})"] if kinds else []
    said += [SENTENCES.split(failure.splitlines()[0])[0].rstrip(".")] if failure.strip() else []
    return "; ".join(said)


def _labelled(part: str) -> str:
    for word in ("Expected: ", "Remedy: "):
        if part.startswith(word):
            return f"{INDENT}{word.lower():<10}{part[len(word) :].rstrip('.')}"
    return part
