# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the preflight found, as a table for a tired person. Pure, no I/O.

Equal findings of several hosts are one, and findings that are about the same hosts stand below one heading.
"""

from __future__ import annotations

import re
import textwrap
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    INFO,
    SEVERITIES,
    WARNING,
    Finding,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import told
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import FAILED
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import as_findings
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_report import placement_failed
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import BLANK, INDENT, Part, printable
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

COLOURS: dict[str, str | None] = {ERROR: "red", WARNING: "yellow", INFO: None}
# So many names or ranges of hosts are shown; the file has them all.
MOST_HOSTS = 20
# From so many hosts on, a finding is one also where each of them shows it in numbers of its own.
MANY_HOSTS = 4
# So many ways in which hosts show the same finding are told.
MOST_SEEN = 6
NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$", re.DOTALL)
LABELS = ("expected", "remedy", "more")
Host = t.Mapping[str, t.Any]


# ---- names of hosts


def compact(names: t.Iterable[str], most: int = MOST_HOSTS) -> str:
    """``gpu-01 .. gpu-14, gpu-20``: numbers that follow each other are one range."""
    parts = _ranges(sorted(set(names), key=_natural))
    if len(parts) <= most:
        return ", ".join(text for text, _count in parts)
    left = sum(count for _text, count in parts[most:])
    return ", ".join(text for text, _count in parts[:most]) + f" and {left} more"


def _split(name: str) -> tuple[str, str, str] | None:
    """The name around its number: the last one of the first label, or of an address its last."""
    label, dot, rest = name.partition(".")
    if not label.isdigit():
        match = NUMBERED.match(label)
        return (match[1], match[2], match[3] + dot + rest) if match else None
    match = NUMBERED.match(name)
    return (match[1], match[2], match[3]) if match else None


def _natural(name: str) -> tuple[str, str, int, str]:
    parts = _split(name)
    return (parts[0], parts[2], int(parts[1]), name) if parts else (name, "", -1, name)


def _ranges(names: t.Sequence[str]) -> list[tuple[str, int]]:
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    found: list[tuple[str, int]] = []
    for run in runs:
        # Two are sooner read as two.
        found += [(f"{run[0]} .. {run[-1]}", len(run))] if len(run) > 2 else [(name, 1) for name in run]
    return found


def _follows(first: str, second: str) -> bool:
    one, other = _split(first), _split(second)
    if one is None or other is None or (one[0], one[2]) != (other[0], other[2]):
        return False
    padded = len(one[1]) == len(other[1]) or not (one[1].startswith("0") or other[1].startswith("0"))
    return padded and int(other[1]) == int(one[1]) + 1


def heading(names: t.Collection[str], total: int) -> str:
    """``gpu-03``, ``14 hosts: gpu-01 .. gpu-14``, ``both hosts``, ``all 20 hosts``; ``the fleet`` for no host."""
    if not names:
        return "the fleet"
    if len(names) == 1:
        return next(iter(names))
    if len(names) == total:
        return "both hosts" if total == 2 else f"all {total} hosts"
    return f"{len(names)} hosts: {compact(names)}"


# ---- folding


@dataclass
class Fold:
    """One finding of one or more hosts; ``seen`` has the hosts by what they show."""

    finding: Finding
    seen: dict[str, list[str]] = field(default_factory=dict)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted({host for names in self.seen.values() for host in names}, key=_natural))


@dataclass
class Group:
    """What is to be said about the same hosts, worst first."""

    hosts: tuple[str, ...]
    folds: list[Fold]

    @property
    def worst(self) -> int:
        return min(SEVERITIES.index(fold.finding.severity) for fold in self.folds)


def fold(found: t.Iterable[tuple[t.Sequence[str], Finding]]) -> list[Fold]:
    """Equal findings are one; so are those of many hosts that want the same done, each with numbers of its own."""
    folds: dict[tuple[str, ...], Fold] = {}
    for hosts, finding in found:
        key = (finding.code, finding.severity, finding.service, finding.expected, finding.remedy)
        known = folds.setdefault(key, Fold(finding)).seen.setdefault(finding.seen, [])
        known += [host for host in hosts if host not in known]
    return [part for one in folds.values() for part in _parts(one)]


def _parts(one: Fold) -> list[Fold]:
    if len(one.hosts) == 1 or len(one.hosts) >= MANY_HOSTS:
        return [one]
    by_hosts: dict[tuple[str, ...], Fold] = {}
    for seen, hosts in one.seen.items():
        part = by_hosts.setdefault(tuple(sorted(hosts)), Fold(replace(one.finding, seen=seen)))
        part.seen[seen] = hosts
    return list(by_hosts.values())


def group(folds: t.Iterable[Fold]) -> list[Group]:
    groups: dict[tuple[str, ...], Group] = {}
    for one in folds:
        groups.setdefault(one.hosts, Group(one.hosts, [])).folds.append(one)
    for each in groups.values():
        each.folds.sort(key=lambda one: (_rank(one), one.finding.service, one.finding.code))
    # What most hosts have is the first thing to know, and often the cause of the rest.
    return sorted(
        groups.values(),
        key=lambda each: (each.worst, bool(each.hosts), -len(each.hosts), [_natural(host) for host in each.hosts]),
    )


def _rank(one: Fold) -> int:
    return SEVERITIES.index(one.finding.severity)


def findings_of(hosts: t.Mapping[str, Host], fleet: t.Mapping[str, t.Any]) -> list[tuple[list[str], Finding]]:
    found = [([name], one) for name in hosts for one in as_findings(hosts[name].get("findings") or [])]
    if placement_failed(fleet):
        found = [(names, one) for names, one in found if one.code != FAILED]
    for item in fleet.get("findings") or []:
        found += [([str(host) for host in item.get("hosts") or []], one) for one in as_findings([item])]
    return found


# ---- the table


def table(title: str, document: t.Mapping[str, t.Any], width: int, verbose: bool = False) -> list[Part]:
    """In pieces of one colour, from the document of `_preflight_report`."""
    hosts: t.Mapping[str, Host] = document["hosts"]
    parts: list[Part] = [(f"{title}: {headline(document)}", _colour(document)), BLANK]
    shown: set[str] = set()
    for each in _silent(hosts):
        parts += [*_paragraph(*each, total=len(hosts), width=width), BLANK]
    for one in group(fold(findings_of(hosts, document["fleet"]))):
        parts.append((_filled(heading(one.hosts, len(hosts)), "", width), None))
        for each_fold in one.folds:
            parts.append(_finding_part(each_fold, width, shown))
        parts.append(BLANK)
    if verbose:
        parts += _unknown_parts(document, width)
    return [*parts, *((line, None) for line in closing(document, width)), BLANK]


def headline(document: t.Mapping[str, t.Any]) -> str:
    counts = document["counts"]
    if not counts["hosts"]:
        return "no host"
    if counts["hosts_ok"] == counts["hosts"]:
        return f"{plural(counts['hosts'], 'host')}, all is well"
    words = [
        (counts["hosts_unreachable"], "UNREACHABLE"),
        (counts["hosts_failed"], "with errors"),
        (counts["hosts_warned"], "with warnings"),
        (counts["hosts_ok"], "well"),
    ]
    if counts["hosts"] == 1:
        return "1 host, " + next(word for count, word in words if count)
    return f"{plural(counts['hosts'], 'host')}: " + ", ".join(f"{count} {word}" for count, word in words if count)


def _colour(document: t.Mapping[str, t.Any]) -> str:
    counts = document["counts"]
    if counts["hosts_unreachable"] or counts["hosts_failed"]:
        return "red"
    return "yellow" if counts["hosts_warned"] else "green"


def _silent(hosts: t.Mapping[str, Host]) -> list[tuple[list[str], str, str]]:
    """Hosts that could not be looked at: their names, the word for it, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(hosts, key=_natural):
        if hosts[name].get("failure"):
            word = "UNREACHABLE" if hosts[name].get("unreachable") else "NOT CHECKED"
            found.setdefault((word, str(hosts[name]["failure"])), []).append(name)
    return [(names, word, why) for (word, why), names in found.items()]


def _paragraph(names: t.Sequence[str], word: str, why: str, total: int, width: int) -> list[Part]:
    lines = [printable(INDENT + line) for line in told(why, width - len(INDENT), f"{word}: ")]
    return [(_filled(heading(names, total), "", width), None), ("\n".join(lines), "red")]


def _finding_part(one: Fold, width: int, shown: set[str]) -> Part:
    finding = one.finding
    service = f" ({finding.service})" if finding.service else ""
    first = f"{INDENT}{finding.severity} {finding.code}{service}: "
    lines = [_filled(first + seen, INDENT * 2, width) for seen in _seen(one)[:1]]
    lines += [_filled(INDENT * 2 + seen, INDENT * 3, width) for seen in _seen(one)[1:]]
    texts = [finding.expected, finding.remedy, finding.page if finding.code not in shown else ""]
    shown.add(finding.code)
    label_width = max(map(len, LABELS)) + 2
    for label, text in zip(LABELS, texts):
        if text:
            head = INDENT * 2 + f"{label}:".ljust(label_width)
            lines.append(_filled(head + text, " " * len(head), width))
    return "\n".join(lines), COLOURS[finding.severity]


def _seen(one: Fold) -> list[str]:
    """What is there to see: in one line where all show the same, else a line for each."""
    if len(one.seen) == 1:
        return list(one.seen)
    pairs = list(one.seen.items())
    if len(one.hosts) <= 1:
        return [text for text, _names in pairs]
    lines = [f"{compact(names)}: {text}" for text, names in pairs[:MOST_SEEN]]
    rest = pairs[MOST_SEEN:]
    if rest:
        left = sorted({name for _text, names in rest for name in names}, key=_natural)
        lines.append(f"and likewise on {compact(left)}")
    return ["", *lines]


def _filled(text: str, hanging: str, width: int) -> str:
    """Wrapped, and nothing in it that moves a cursor; commands and paths stay in one piece."""
    clean = printable(" ".join(text.splitlines()))
    kept = len(clean) - len(clean.lstrip(" "))
    return "\n".join(
        textwrap.wrap(
            clean.strip(),
            width,
            initial_indent=" " * kept,
            subsequent_indent=hanging or " " * (kept + len(INDENT)),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _unknown_parts(document: t.Mapping[str, t.Any], width: int) -> list[Part]:
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(document["hosts"], key=_natural):
        for one in document["hosts"][name].get("unknown") or []:
            found.setdefault((one["code"], one["reason"]), []).append(name)
    for one in document["fleet"].get("unknown") or []:
        found.setdefault((one["code"], one["reason"]), [])
    lines = []
    for (code, reason), names in found.items():
        where = f" ({heading(names, len(document['hosts']))})" if names else ""
        lines.append(_filled(f"{INDENT}{code}{where}: {reason}", INDENT * 2, width))
    return [("\n".join(["unknown", *lines]), None), BLANK] if lines else []


def closing(document: t.Mapping[str, t.Any], width: int) -> list[str]:
    """The counts; what is turned off is always said, and where the unknown is listed."""
    counts, codes = document["counts"], document["skipped"]
    silent = sum(1 for host in document["hosts"].values() if host.get("failure"))
    hosts = plural(counts["hosts"], "host") + (f" ({silent} not looked at)" if silent else "")
    line = (
        f"{hosts}, {plural(counts['checks'], 'check')}: {counts['passed']} passed, "
        f"{counts['failed']} failed, {counts['unknown']} unknown, {counts['skipped']} turned off; "
        f"{plural(counts['errors'], 'error')}, {plural(counts['warnings'], 'warning')}"
    )
    lines = [_filled(line, INDENT, width)]
    if codes:
        lines.append(_filled(f"turned off by vllm_preflight_skip: {', '.join(codes)}", INDENT, width))
    if counts["unknown"]:
        lines.append(
            _filled("unknown is held against no host; vllm_preflight_path lists it in a file, and -v", INDENT, width)
        )
    return lines


def notes(document: t.Mapping[str, t.Any], severity: str = WARNING) -> list[str]:
    """One line for each finding of a severity, for the end of a run, where the table has long scrolled away."""
    total = len(document["hosts"])
    found = fold(findings_of(document["hosts"], document["fleet"]))
    lines = []
    for one in sorted(found, key=lambda each: (each.finding.code, each.finding.service)):
        if one.finding.severity == severity:
            service = f" ({one.finding.service})" if one.finding.service else ""
            first, *others = one.seen
            seen = f"{first}, and {len(others)} more" if others else first
            lines.append(printable(f"{one.finding.code}{service}: {seen} ({heading(one.hosts, total)})"))
    if document["skipped"]:
        lines.append(f"turned off by vllm_preflight_skip: {', '.join(document['skipped'])}")
    return lines
