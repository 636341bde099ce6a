# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long placement takes, and how much memory, from 10 hosts to 500 of 8 GPUs each.

``make bench-placement``. Each row is a process of its own: facts as ``vllm_host_info`` returns them, two services
a host of mixed sizes and replicas, placed once on an empty fleet, then again with the record of the first time (which
must change nothing), then with one service too many. Nothing here passes or fails by time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_plan import Fleet, Known, place_fleet

HOSTS = (10, 20, 50, 100, 200, 500)
CARDS = 8
GIB = 1 << 30
# By weight: most services take one card, few take a whole host.
SIZES = (1, 1, 1, 1, 1, 1, 2, 2, 4, 8)
REPLICAS = (1, 1, 1, 1, 1, 2, 3)


@dataclass(frozen=True)
class Row:
    """One size of fleet: seconds of each placement, and the highest memory of the process."""

    hosts: int
    services: int
    replicas: int
    cards: int
    first: float
    again: float
    short: float
    peak_mib: float


def facts(name: str) -> dict[str, t.Any]:
    """A host with NVSwitch, all of its cards one island."""
    gpus = [
        {
            "index": index,
            "uuid": f"GPU-{name}-{index}",
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total_bytes": 80 * GIB,
            "compute_capability": "9.0",
            "numa_node": index // 4,
            "mig": {"current": "disabled", "devices": []},
            "processes": [],
        }
        for index in range(CARDS)
    ]
    pairs = [[one, other] for one in range(CARDS) for other in range(one + 1, CARDS)]
    links = [{"gpus": pair, "link": "nv18", "nvlinks": 18, "p2p": "ok"} for pair in pairs]
    return {"gpus": gpus, "nvidia": {"topology": links}, "listening": [], "record": None}


def services(hosts: int, seed: int = 1) -> list[dict[str, t.Any]]:
    """At most two services a host, and at most nine cards of ten."""
    chance = random.Random(seed)
    found: list[dict[str, t.Any]] = []
    left = hosts * CARDS * 9 // 10
    while len(found) < 2 * hosts:
        size, replicas = chance.choice(SIZES), min(hosts, chance.choice(REPLICAS))
        if size * replicas > left:
            break
        left -= size * replicas
        gpus: t.Any = {"count": size, "link": "nvlink", "min_memory_gib": chance.choice([24, 40, 79])}
        found.append({"name": f"s{len(found):04}", "model": "acme/tiny", "gpus": gpus, "replicas": replicas})
    return found


def place(listed: list[dict[str, t.Any]], known: dict[str, dict[str, t.Any]]) -> tuple[Fleet, float]:
    begun = time.perf_counter()
    fleet = place_fleet(listed, {name: Known(one) for name, one in known.items()}, lambda _patterns: known)
    return fleet, time.perf_counter() - begun


def recorded(known: dict[str, dict[str, t.Any]], fleet: Fleet) -> dict[str, dict[str, t.Any]]:
    return {
        name: {
            **one,
            "deployed": {
                "services": {
                    entry["name"]: {"gpus": [{"uuid": uuid} for uuid in entry["gpus"]], "port": entry["port"]}
                    for entry in fleet.hosts.get(name, [])
                }
            },
        }
        for name, one in known.items()
    }


def measure(hosts: int) -> Row:
    known = {f"gpu-{number:03}": facts(f"{number:03}") for number in range(hosts)}
    listed = services(hosts)
    first, seconds = place(listed, known)
    if first.findings:
        raise SystemExit(f"{hosts} hosts: {first.findings[0]}")
    known = recorded(known, first)
    again, second = place(listed, known)
    if (again.hosts, again.findings) != (first.hosts, ()):
        raise SystemExit(f"{hosts} hosts: the second placement is another")
    extra = {"name": "too-many", "model": "acme/tiny", "gpus": CARDS, "replicas": hosts}
    refused, third = place([*listed, extra], known)
    if [finding.code for finding in refused.findings] != ["plan.unplaced"]:
        raise SystemExit(f"{hosts} hosts: one service too many was not refused")
    entries = [entry for placed in first.hosts.values() for entry in placed]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cards = sum(len(entry["gpus"]) for entry in entries)
    return Row(hosts, len(listed), len(entries), cards, seconds, second, third, peak)


def table(rows: list[Row]) -> str:
    heads = (
        "hosts",
        "services",
        "replicas",
        "GPUs held",
        "first s",
        "again s",
        "refused s",
        "peak MiB",
        "hosts x",
        "first x",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for row in rows:
        cells = [
            str(row.hosts), str(row.services), str(row.replicas), f"{row.cards} of {row.hosts * CARDS}",
            f"{row.first:.3f}", f"{row.again:.3f}", f"{row.short:.3f}", f"{row.peak_mib:.0f}",
            f"{row.hosts / rows[0].hosts:g}", f"{row.first / rows[0].first:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="placement_bench", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=list(HOSTS))
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of so many counts")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(asdict(measure(options.one))))
        return 0
    rows = []
    for hosts in options.hosts:
        command = [sys.executable, __file__, "--one", str(hosts)]
        tries = [
            Row(**json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            for _unused in range(options.rounds)
        ]
        rows.append(min(tries, key=lambda row: row.first))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}; one of them is used\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
