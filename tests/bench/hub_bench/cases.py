# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cases: what is downloaded, over which link, and how much faster ours should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .clients import BARE, BARE_FSYNC, OFFICIAL, OURS, RAW, RAW_FSYNC, TUNED, ZIPPED
from .figures import Target
from .models import Sizes

NEVER_SLOWER = Target(least=1)
MEMORY_MIB = 64
"""Peak memory of ours, in every case."""

FLOOR = Target(most=1.15)
"""Ours against the floors: the same bytes copied here, and fetched from the same hub by a program that does no more."""


@dataclass(frozen=True)
class Case:
    """One line of the table. ``floors`` show the least that the work can cost."""

    name: str
    title: str
    model: str
    place: Literal["fast", "disk"] = "fast"
    complete: bool = False
    slow: bool = False
    wanted: Target = NEVER_SLOWER
    floors: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    faults: list[dict[str, Any]] = field(default_factory=list)

    def clients(self, tuned: bool) -> list[str]:
        """Who runs, in this order, in each round."""
        return [OFFICIAL, OURS, *self.floors, *(item for item in self.others if item != TUNED or tuned)]


def cases(sizes: Sizes) -> list[Case]:
    """Every case, those of one model together."""
    gigabytes = f"{(sizes.big_files * sizes.big_mib << 20) / 1e9:.2f} GB"
    big = f"{sizes.big_files} x {sizes.big_mib} MiB"
    one = f"one file of {sizes.one_mib} MiB"
    link = f"{sizes.rate / 1e6:g} MB/s per connection"
    limited = [{"match": "lfs/*", "rate": sizes.rate}]
    distant = [{"delay": sizes.latency}]
    return [
        Case("fresh-tmpfs", f"{gigabytes} ({big} + 5 small), fast link, to memory", "acme/big", floors=(RAW, BARE)),
        Case(
            "fresh-disk",
            f"{gigabytes} ({big} + 5 small), fast link, to disk",
            "acme/big",
            place="disk",
            floors=(RAW_FSYNC, BARE_FSYNC),
        ),
        Case(
            "no-op",
            f"complete {gigabytes}: nothing to do",
            "acme/big",
            complete=True,
            wanted=Target(least=15),
            others=(ZIPPED,),
        ),
        Case("big-limited", f"{big} at {link}", "acme/big", slow=True, faults=limited, others=(TUNED,)),
        Case(
            "one-limited",
            f"{one} at {link}",
            "acme/one",
            slow=True,
            wanted=Target(least=10),
            faults=limited,
            others=(TUNED,),
        ),
        Case("one-fast", f"{one}, fast link, to memory", "acme/one", floors=(RAW, BARE)),
        Case("many", f"{sizes.many} small files, no latency", "acme/many", others=(TUNED,)),
        Case(
            "many-distant",
            f"{sizes.many} small files, {sizes.latency * 1000:g} ms per answer",
            "acme/many",
            wanted=Target(least=4),
            faults=distant,
            others=(TUNED,),
        ),
    ]
