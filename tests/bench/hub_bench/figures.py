# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From single runs to the figures of a table, and the table itself. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

BUSY = 0.05
"""Share of the machine that others may use during a run before its times are not to be trusted."""


@dataclass(frozen=True)
class Run:
    """One run of one client. Seconds, KiB, and the hub's share: requests answered and CPU used meanwhile."""

    client: str
    wall: float
    user: float
    system: float
    peak_kib: int
    settle: float = 0.0
    """Seconds until what it wrote was on the disk, after it had ended."""
    requests: int = 0
    hub_cpu: float = 0.0
    foreign_cpu: float = 0.0
    """CPU seconds that were neither its own nor the hub's."""
    cores: int = 1
    ahead: bool = False
    """It had the processor before all others."""

    @property
    def cpu(self) -> float:
        return self.user + self.system

    @property
    def durable(self) -> float:
        """Seconds until what it wrote cannot be lost to a power failure."""
        return self.wall + self.settle

    @property
    def busy(self) -> bool:
        """Whether others used so much of the machine that this run's time says little."""
        return not self.ahead and self.foreign_cpu > max(BUSY * self.wall * self.cores, 0.05)


Round = dict[str, Run]
"""One run of each client, one after another."""


ENOUGH = 3
"""Rounds on a quiet machine that are worth more than any number of disturbed ones."""


def quiet(rounds: Iterable[Round]) -> list[Round]:
    """The rounds during which others left the machine alone."""
    return [item for item in rounds if not any(run.busy for run in item.values())]


def chosen(rounds: Sequence[Round], wanted: int) -> list[Round]:
    """The rounds to count: those on a quiet machine, or all of them where there are too few."""
    found = quiet(rounds)
    return found if len(found) >= min(wanted, ENOUGH) else list(rounds)


def ratio(rounds: Iterable[Round], slow: str, fast: str) -> float:
    """How many times longer ``slow`` takes than ``fast``: the median over rounds, so that a slow hour hits both."""
    return median(item[slow].wall / item[fast].wall for item in rounds)


@dataclass(frozen=True)
class Summary:
    """The medians of one client over the rounds of one case; the peak is the highest."""

    wall: float
    fastest: float
    slowest: float
    cpu: float
    peak_mib: float
    settle: float
    requests: int
    hub_cpu: float

    @classmethod
    def of(cls, rounds: Sequence[Round], client: str) -> Summary:
        runs = [item[client] for item in rounds]
        walls = [run.wall for run in runs]
        return cls(
            wall=median(walls),
            fastest=min(walls),
            slowest=max(walls),
            cpu=median(run.cpu for run in runs),
            peak_mib=max(run.peak_kib for run in runs) / 1024,
            settle=median(run.settle for run in runs),
            requests=round(median(run.requests for run in runs)),
            hub_cpu=median(run.hub_cpu for run in runs),
        )


@dataclass(frozen=True)
class Target:
    """What a ratio should be: at least ``least``, or at most ``most``."""

    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        wanted = [f">= {self.least:g}"] if self.least is not None else []
        wanted += [f"<= {self.most:g}"] if self.most is not None else []
        return ", ".join(wanted) or "-"

    def verdict(self, value: float) -> str:
        """``met`` or ``MISSED``, with what was wanted."""
        if self.least is None and self.most is None:
            return "-"
        return f"{self} {'met' if self.met(value) else 'MISSED'}"


def seconds(value: float) -> str:
    """As many digits as mean something."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


@dataclass(frozen=True)
class Table:
    """A heading, columns and rows of text. Columns after the first are set flush right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def plain(self) -> str:
        """For a terminal."""
        widths = [max(len(row[index]) for row in (self.columns, *self.rows)) for index in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            first, *others = (
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join([first, *others]).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, "", line(self.columns), rule, *map(line, self.rows)])

    def markdown(self) -> str:
        """For docs/benchmarks.md."""
        head = "| " + " | ".join(self.columns) + " |"
        rule = "|" + "|".join("---" if index == 0 else "---:" for index in range(len(self.columns))) + "|"
        body = ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([f"## {self.title}", "", head, rule, *body])
