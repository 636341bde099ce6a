# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""vLLM's flags and variables, held against the list of the pinned release. Pure, no I/O, on the controller.

The list is ``_vllm_flags_table.py``. What vLLM itself would accept is never an error here: where the list is that of
another release, a flag that it lacks is a warning.
"""

from __future__ import annotations

import functools
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _vllm_flags_table
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._vllm_flags_gone import BEFORE, REPLACED
from ansible_collections.gpufleet.vllm.plugins.module_utils._vllm_flags_value import Flag, nearest, problem, shown

HELP = "see what there is: vllm serve --help=all, or docker run --rm IMAGE --help=all"
# A build of vLLM's main branch is named after the release before it, and may take what the next one takes.
BETWEEN = re.compile(r"dev|rc|nightly")
VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})((?:\.\d{1,6})*(?:\.?post\d+)?)")
# An image of vLLM's own, or of a mirror of it: there the tag is the release.
IMAGE = re.compile(r"(?:^|/)vllm-(?:openai|cpu)[a-z0-9-]*:(v?\d[^@/]*)(?:@|$)")


@dataclass(frozen=True)
class Table:
    """What one release takes. ``options`` has every spelling, dashes included."""

    version: str
    flags: t.Mapping[str, Flag]
    options: t.Mapping[str, Flag]
    deprecated: t.Mapping[str, str]
    environment: frozenset[str]

    @property
    def series(self) -> str:
        return series(self.version)


@dataclass(frozen=True)
class Chosen:
    """The table for a version, and whether it is that of its series; ``why`` says which one it is where it is not."""

    table: Table
    own: bool
    why: str = ""


def series(version: str) -> str:
    """``0.33`` of ``0.33.0``, ``v0.33.1rc2`` and ``0.33.0+cpu``; empty where it names no release."""
    match = VERSION.match(version.strip())
    return f"{int(match.group(1))}.{int(match.group(2))}" if match else ""


def version_of_image(reference: str) -> str:
    """The release that the tag of an image of vLLM's own names, or an empty string: other tags say nothing of it."""
    match = IMAGE.search(reference)
    return match.group(1).lstrip("v") if match and series(match.group(1)) else ""


def known_versions() -> tuple[str, ...]:
    return tuple(_vllm_flags_table.RELEASES.split())


def _plain(version: str) -> str:
    """``0.33.0`` of ``v0.33.0-cu129``."""
    match = VERSION.match(version.strip())
    return match.group(0).lstrip("v") if match else version


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series(version).split("."))


# ---- read the table


@functools.lru_cache(maxsize=1)
def tables() -> t.Mapping[str, Table]:
    """By series, oldest first."""
    names = [series(version) for version in known_versions()]
    flags = _unfold(_lines(_vllm_flags_table.FLAGS), names)
    deprecated = _unfold(_lines(_vllm_flags_table.DEPRECATED), names)
    words = (word.partition(":") for word in _vllm_flags_table.ENVIRONMENT.split())
    marks = {name: [(mark[1:], mark[0]) for mark in text.split(",")] for name, _colon, text in words}
    variables = _unfold(marks, names)
    return {
        name: _table(version, flags[name], deprecated[name], variables[name])
        for name, version in zip(names, known_versions())
    }


def _table(
    version: str,
    specifications: t.Mapping[str, str],
    deprecated: t.Mapping[str, str],
    variables: t.Iterable[str],
) -> Table:
    flags = {name: Flag.read(name, text) for name, text in specifications.items()}
    options = {option: flag for flag in flags.values() for option in flag.options}
    return Table(version, flags, options, deprecated, frozenset(variables))


def _lines(text: str) -> dict[str, list[tuple[str, str]]]:
    """``NAME; SERIES TEXT; ...``, long lines folded before a blank."""
    found = {}
    for line in text.replace("\n  ", " ").splitlines():
        name, *changes = line.split("; ")
        parts = (change.partition(" ") for change in changes)
        found[name] = [(since, value) for since, _blank, value in parts]
    return found


def _unfold(history: t.Mapping[str, t.Sequence[tuple[str, str]]], names: t.Sequence[str]) -> dict[str, dict[str, str]]:
    """What holds in each series, of what changed when."""
    changed: dict[str, list[tuple[str, str]]] = {}
    for name, changes in history.items():
        for since, value in changes:
            changed.setdefault(since, []).append((name, value))
    unfolded: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for one in names:
        current = dict(current)
        for name, value in changed.get(one, ()):
            if value == "-":
                current.pop(name, None)
            else:
                current[name] = value
        unfolded[one] = current
    return unfolded


def choose(version: str) -> Chosen:
    """The table of the version's series, or the next older one; for an unknown version the newest."""
    known = tables()
    wanted = series(version)
    if wanted in known:
        between = BETWEEN.search(version)
        why = (
            f"vLLM {version.strip()} is a build between two releases; the list of {known[wanted].version} was looked at"
        )
        return Chosen(known[wanted], not between, why if between else "")
    newest = list(known.values())[-1]
    if not wanted:
        return Chosen(newest, False, f"the release of vLLM is not known; the list of {newest.version} was looked at")
    older = [table for name, table in known.items() if _order(name) <= _order(wanted)]
    table = older[-1] if older else next(iter(known.values()))
    return Chosen(table, False, f"there is no list for vLLM {wanted}; that of {table.version} was looked at")


# ---- flags


def check_flags(
    arguments: t.Mapping[str, t.Any], version: str, service: str = "", where: str = "args"
) -> list[Finding]:
    """Findings for flags as a service's ``args`` has them after parsing: without dashes, booleans true or false.

    ``where`` is the key or variable that they stand under, for the remedies.
    """
    chosen = choose(version)
    check = _Check(chosen, version, service, where)
    findings = [finding for name, value in arguments.items() for finding in check.flag(str(name), value)]
    if arguments and not chosen.own:
        findings.append(
            Finding(
                "plan.flags_unchecked",
                INFO,
                chosen.why,
                f"a release from {next(iter(tables()))} to {list(tables())[-1]}, so that flags can be checked",
                "pin the release (vllm_engine_version, or an image tag such as v0.33.0), or update gpufleet.vllm",
                service,
            )
        )
    return findings


@dataclass(frozen=True)
class _Check:
    chosen: Chosen
    version: str
    service: str
    where: str

    @property
    def table(self) -> Table:
        return self.chosen.table

    @property
    def release(self) -> str:
        """As a person says it: the release asked for, or the one whose list it is."""
        return f"vLLM {_plain(self.version) if self.chosen.own else self.table.version}"

    def finding(self, code: str, severity: str, seen: str, expected: str, remedy: str) -> Finding:
        return Finding(code, severity, seen, expected, remedy, self.service)

    def flag(self, name: str, value: t.Any) -> list[Finding]:
        # --compilation-config.level 3 is one key of the JSON that the flag takes.
        bare, dotted, _key = name.partition(".")
        found, findings = self._find(bare, value)
        if found is None:
            return findings
        if found.name in self.table.deprecated:
            findings.append(self._deprecated(found.name))
        wrong = problem(found, bare if f"--{bare}" in found.options else found.name, value, bool(dotted))
        if wrong:
            findings.append(self._wrong_value(found, name, value, wrong))
        return findings

    def _find(self, name: str, value: t.Any) -> tuple[Flag | None, list[Finding]]:
        exact = self.table.options.get(f"--{name}")
        if exact and not (value is False and self._begun(f"--no-{name}")):
            return exact, []
        begun = self._begun(f"--no-{name}" if value is False else f"--{name}")
        flags = {self.table.options[option].name: self.table.options[option] for option in begun}
        if exact and exact.name in flags:
            return exact, []
        if len(flags) != 1:
            return None, [self._unknown(name, begun)]
        [flag] = flags.values()
        return flag, [self._abbreviated(name, flag)]

    def _neighbours(self) -> list[Table]:
        """The series before, for a patch release older than the listed one; the series after for a newer one."""
        if not self.chosen.own or _patch(self.version) == _patch(self.table.version):
            return []
        known = list(tables().values())
        step = -1 if _patch(self.version) < _patch(self.table.version) else 1
        position = known.index(self.table) + step
        return [known[position]] if 0 <= position < len(known) else []

    def _severity(self, accepted: t.Callable[[Table], bool]) -> str:
        """A warning where the list is not quite the release's own, and what it does not have may be right."""
        newer = self.table.series == list(tables())[-1] and _patch(self.version) > _patch(self.table.version)
        unsure = not self.chosen.own or newer or any(accepted(table) for table in self._neighbours())
        return WARNING if unsure else ERROR

    # ---- not in the list

    def _begun(self, start: str) -> list[str]:
        """argparse takes the beginning of one option for the option."""
        return sorted(option for option in self.table.options if option.startswith(start))

    def _abbreviated(self, name: str, flag: Flag) -> Finding:
        seen = f"--{name} is taken for --{flag.name}, the only flag of {self.release} that begins so"
        remedy = f"write {flag.name} under {self.where}: a later release may have another flag that begins so"
        return self.finding("plan.flag_abbreviated", INFO, seen, "flags written in full", remedy)

    def _unknown(self, name: str, begun: t.Sequence[str]) -> Finding:
        option = f"--{name}"
        severity = self._severity(lambda table: option in table.options)
        before, after = self._other_series(option)
        if before or name in BEFORE:
            return self._removed(name, severity, before)
        if after:
            seen = f"--{name} exists from vLLM {after} on; this is {self.release}"
            remedy = f"delete {name} under {self.where}, or pin vLLM {after} or newer"
            return self.finding("plan.flag_too_new", severity, seen, f"flags of {self.release}", remedy)
        seen = f"{self.release} has no flag --{name}"
        if begun:
            seen = f"--{name} may be any of {', '.join(begun[:4])}{' and others' if len(begun) > 4 else ''}"
        expected = f"flags of {self.release}"
        return self.finding("plan.flag_unknown", severity, seen, expected, self._spelling(name))

    def _spelling(self, name: str) -> str:
        level = re.fullmatch(r"O(\d?)", name)
        if level and "optimization-level" in self.table.flags:
            return f"write optimization-level: {level.group(1) or 'LEVEL'} under {self.where}"
        short = self.table.options.get(f"-{name}")
        if short:
            return f"write {short.name} under {self.where}: its short form has one dash, and flags are written with two"
        close = nearest(name, [option[2:] for option in self.table.options if option.startswith("--")])
        return f"write {close} under {self.where}" if close else f"delete {name} under {self.where}; {HELP}"

    def _other_series(self, option: str) -> tuple[str, str]:
        """The last series before this one that has the option, and the first after it."""
        known = list(tables().values())
        here = known.index(self.table)
        before = [table.series for table in known[:here] if option in table.options]
        after = [table.series for table in known[here + 1 :] if option in table.options]
        return before[-1] if before else "", after[0] if after else ""

    def _removed(self, name: str, severity: str, last: str) -> Finding:
        names = list(tables())
        since = f"is gone since vLLM {names[names.index(last) + 1]}" if last else f"was gone before vLLM {names[0]}"
        bare = name.removeprefix("no-")
        advice = REPLACED.get(name) or REPLACED.get(bare) or f"delete it; {HELP}"
        seen = f"--{name} {since}; this is {self.release}"
        remedy = f"{name} under {self.where}: {advice}"
        return self.finding("plan.flag_removed", severity, seen, f"flags of {self.release}", remedy)

    # ---- in the list

    def _deprecated(self, name: str) -> Finding:
        message = self.table.deprecated[name]
        says = f"{self.release} says: {message}" if name in message else f"--{name} in {self.release}: {message}"
        remedy = f"{name} under {self.where}: {REPLACED.get(name, 'delete it, or do as vLLM says')}"
        return self.finding("plan.flag_deprecated", WARNING, says, "flags that later releases have too", remedy)

    def _wrong_value(self, flag: Flag, name: str, value: t.Any, wrong: tuple[str, str]) -> Finding:
        expected, remedy = wrong

        def accepted(table: Table) -> bool:
            other = table.flags.get(flag.name)
            return other is not None and not problem(other, flag.name, value)

        seen = f"--{name} is {shown(flag, value)}"
        remedy = remedy.format(where=self.where) or f"correct {name} under {self.where}"
        return self.finding("plan.flag_value", self._severity(accepted), seen, expected, remedy)


def _patch(version: str) -> tuple[int, ...]:
    match = VERSION.match(version.strip())
    return tuple(int(part) for part in re.findall(r"\d+", match.group(3))) if match else ()


# ---- variables


def check_environment(
    names: t.Iterable[str], version: str, service: str = "", where: str = "environment"
) -> list[Finding]:
    """Variables of vLLM's own prefix that the release does not read. vLLM ignores such, with a line in its log."""
    chosen = choose(version)
    findings = []
    for name in names:
        ours = name.startswith("VLLM_") and not name.startswith("VLLM_TEST_")
        if ours and chosen.own and name not in chosen.table.environment:
            findings.append(_unknown_variable(name, chosen.table, version, service, where))
    return findings


def _unknown_variable(name: str, table: Table, version: str, service: str, where: str) -> Finding:
    known = list(tables().values())
    here = known.index(table)
    before = [other.series for other in known[:here] if name in other.environment]
    after = [other.series for other in known[here + 1 :] if name in other.environment]
    seen = f"vLLM {_plain(version)} does not read {name}"
    remedy = f"delete {name} under {where}"
    close = nearest(name, table.environment)
    if before:
        seen += f"; {before[-1]} was the last that did"
    elif after:
        seen += f"; it is read from {after[0]} on"
        remedy += f", or pin vLLM {after[0]} or newer"
    elif close:
        remedy = f"write {close} under {where}"
    return Finding("plan.environment_unknown", WARNING, seen, "variables that this release reads", remedy, service)
