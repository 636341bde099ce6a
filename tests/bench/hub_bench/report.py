# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tables that a benchmark ends with. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .cases import FLOOR, MEMORY_MIB, NEVER_SLOWER, Case
from .clients import BARE, BARE_FSYNC, OFFICIAL, OURS, RAW, RAW_FSYNC, TUNED, ZIPPED
from .figures import Round, Summary, Table, Target, chosen, ratio, seconds, times


@dataclass(frozen=True)
class Done:
    """A case and what was measured of it."""

    case: Case
    rounds: Sequence[Round]
    wanted: int
    """How many rounds were asked for; there are more where some were disturbed."""

    @property
    def counted(self) -> list[Round]:
        """The rounds that the figures are from."""
        return chosen(self.rounds, self.wanted)

    def has(self, client: str) -> bool:
        """Whether ``client`` took part."""
        return client in self.rounds[0]

    def of(self, client: str) -> Summary:
        """The figures of one client."""
        return Summary.of(self.counted, client)


def report(done: Sequence[Done], conditions: Sequence[tuple[str, str]], markdown: bool) -> str:
    """Everything, as text or as Markdown."""
    tables = [_comparison(done), _cost(done), _floor(done), _durable(done), _others(done)]
    shown = [table.markdown() if markdown else table.plain() for table in tables if table.rows]
    mark = "- " if markdown else ""
    lines = [
        f"{mark}{name}: `{value}`" if name == "Command" and markdown else f"{mark}{name}: {value}"
        for name, value in conditions
    ]
    warnings = [f"{mark}{text}" for text in _warnings(done)]
    return "\n\n".join(["\n".join(lines), *shown, *(["\n".join(warnings)] if warnings else [])])


def _comparison(done: Sequence[Done]) -> Table:
    columns = ("Case", "official s", "ours s", "times faster", "wanted", "rounds")
    rows = []
    for item in done:
        factor = ratio(item.counted, OFFICIAL, OURS)
        count = f"{len(item.counted)} of {len(item.rounds)}"
        walls = [_spread(item.of(client)) for client in (OFFICIAL, OURS)]
        rows.append((item.case.title, *walls, times(factor), item.case.wanted.verdict(factor), count))
    return Table("Time: medians (fastest to slowest)", columns, rows)


def _cost(done: Sequence[Done]) -> Table:
    columns = (
        "Case",
        "CPU s official",
        "ours",
        "peak MiB official",
        "ours",
        "wanted",
        "requests official",
        "ours",
        "hub CPU s",
    )
    wanted = Target(most=MEMORY_MIB)
    rows = []
    for item in done:
        official, ours = item.of(OFFICIAL), item.of(OURS)
        memory = (f"{official.peak_mib:.0f}", f"{ours.peak_mib:.0f}", wanted.verdict(ours.peak_mib))
        asked = (str(official.requests), str(ours.requests), seconds(ours.hub_cpu))
        rows.append((item.case.title, seconds(official.cpu), seconds(ours.cpu), *memory, *asked))
    return Table("Cost: CPU, memory, requests, and the hub's CPU for ours", columns, rows)


def _floor(done: Sequence[Done]) -> Table:
    names = {
        RAW: "copied here",
        RAW_FSYNC: "copied here, fsync",
        BARE: "fetched bare",
        BARE_FSYNC: "fetched bare, fsync",
    }
    rows = []
    for item in done:
        for floor in item.case.floors:
            factor = ratio(item.counted, OURS, floor)
            summary, ours = item.of(floor), item.of(OURS)
            walls = (_spread(summary), _spread(ours), times(factor), FLOOR.verdict(factor))
            cpu = (seconds(summary.cpu), seconds(ours.cpu))
            rows.append((f"{item.case.title}: {names[floor]}", *walls, *cpu))
    title = "The floors: the same bytes with SHA-256 in 4 threads, copied locally, and fetched bare"
    return Table(title, ("Case", "floor s", "ours s", "ours / floor", "wanted", "CPU s floor", "ours"), rows)


def _durable(done: Sequence[Done]) -> Table:
    rows = []
    for item in done:
        if item.case.place == "disk":
            walls, settles = [], []
            for client in (OFFICIAL, OURS):
                settles.append(seconds(item.of(client).settle))
                walls.append(seconds(median(one[client].durable for one in item.counted)))
            factor = median(one[OFFICIAL].durable / one[OURS].durable for one in item.counted)
            rows.append((item.case.title, *settles, *walls, times(factor), NEVER_SLOWER.verdict(factor)))
    columns = ("Case", "s after the end: official", "ours", "s in all: official", "ours", "times faster", "wanted")
    return Table("Until the files are on the disk, which only ours waits for", columns, rows)


def _others(done: Sequence[Done]) -> Table:
    names = {
        TUNED: "official, 16 ranges per file and 32 files at a time",
        ZIPPED: "ours as Ansible sends it, in one zip",
    }
    rows = []
    for item in done:
        for client, title in names.items():
            if item.has(client):
                summary = item.of(client)
                factor = ratio(item.counted, client, OURS) if client == TUNED else ratio(item.counted, OFFICIAL, client)
                against = "ours" if client == TUNED else "that"
                rows.append(
                    (
                        f"{item.case.title}: {title}",
                        _spread(summary),
                        seconds(summary.cpu),
                        f"{summary.peak_mib:.0f}",
                        f"{against} {times(factor)}",
                    )
                )
    return Table("Others", ("Case", "s", "CPU s", "peak MiB", "times faster"), rows)


def _spread(summary: Summary) -> str:
    if summary.fastest == summary.slowest:
        return seconds(summary.wall)
    return f"{seconds(summary.wall)} ({seconds(summary.fastest)} to {seconds(summary.slowest)})"


def _warnings(done: Sequence[Done]) -> list[str]:
    found = []
    for item in done:
        busy = sum(any(run.busy for run in one.values()) for one in item.rounds)
        if busy:
            used = (
                "they are counted for want of better" if len(item.counted) == len(item.rounds) else "they are left out"
            )
            found.append(f"Others used the machine in {busy} of {len(item.rounds)} rounds of {item.case.name}; {used}.")
    return found
