# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``make bench``: compare modelscope_model with the official client, and print a table.

Nothing here passes or fails by time. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from . import machine
from .cases import cases
from .clients import REPOSITORY, spawning
from .figures import Round
from .models import QUICK, BenchError, Sizes
from .report import Done, report
from .rounds import Bench


def main(argv: Sequence[str]) -> int:
    """Measure and print; returns the exit status."""
    arguments = _parser().parse_args(argv)
    sizes = QUICK if arguments.quick else Sizes()
    given = {item.name: getattr(arguments, item.name) for item in dataclasses.fields(Sizes)}
    sizes = dataclasses.replace(sizes, **{name: value for name, value in given.items() if value is not None})
    wanted = [case for case in cases(sizes) if not arguments.only or case.name in arguments.only]
    if arguments.list:
        print("\n".join(f"{case.name:14}{case.title}" for case in wanted))
        return 0
    disk = arguments.disk or REPOSITORY / "tests/output"
    disk.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hub-bench-", dir=arguments.fast) as fast,
            tempfile.TemporaryDirectory(prefix="hub-bench-", dir=disk) as slow,
            spawning(Path(fast)) as spawner,
        ):
            bench = Bench(
                Path(fast),
                Path(slow),
                sizes,
                spawner,
                rounds=arguments.rounds or (1 if arguments.quick else 5),
                slow_rounds=arguments.slow_rounds or (1 if arguments.quick else 3),
                tuned=arguments.tuned,
                patience=arguments.patience,
                spare=arguments.spare,
                ahead=arguments.ahead,
            )
            try:
                done = bench.run(wanted)
            finally:
                bench.close()
    except (BenchError, OSError) as error:
        print(f"hub_bench: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        raw = [{"case": item.case.name, "rounds": [_plain(one) for one in item.rounds]} for item in done]
        arguments.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    print(report(done, _conditions(arguments.fast, disk, argv, done), markdown=arguments.markdown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hub_bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small files and one round: does it work at all?")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=[case.name for case in cases(Sizes())])
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of a fast case (5; 1 with --quick)")
    parser.add_argument("--slow-rounds", type=int, metavar="N", help="rounds of a case with a limited link (3)")
    parser.add_argument("--tuned", action="store_true", help="also run the official client at its highest settings")
    parser.add_argument("--markdown", action="store_true", help="print for docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep every single run")
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds to wait for a quiet machine before each round"
    )
    parser.add_argument(
        "--spare", type=int, default=0, metavar="N", help="rounds to add where others disturbed some (0)"
    )
    parser.add_argument(
        "--ahead", action="store_true", help="take the processor before all others, as root: a shared machine"
    )
    parser.add_argument("--fast", type=Path, default=Path("/dev/shm"), metavar="DIR", help="a directory in memory")
    parser.add_argument("--disk", type=Path, metavar="DIR", help="a directory on a disk (tests/output)")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--big-files", type=int, help="files of the big model (4)")
    sizes.add_argument("--big-mib", type=int, help="MiB of each (512)")
    sizes.add_argument("--one-mib", type=int, help="MiB of the model with one file (2048)")
    sizes.add_argument("--many", type=int, help="small files (1005)")
    sizes.add_argument("--rate", type=float, help="bytes per second of a limited connection (20e6)")
    sizes.add_argument("--latency", type=float, help="seconds before each answer of a distant hub (0.05)")
    return parser


def _plain(one: Round) -> dict[str, dict[str, object]]:
    return {name: dataclasses.asdict(run) for name, run in one.items()}


def _conditions(fast: Path, disk: Path, arguments: Sequence[str], done: Sequence[Done]) -> list[tuple[str, str]]:
    """What a reader has to know about where the figures come from."""
    clients = f"modelscope {version('modelscope')}, modelscope-hub {version('modelscope-hub')}"
    own = (REPOSITORY / "galaxy.yml").read_text(encoding="utf-8").split("\nversion: ", 1)[1].split("\n", 1)[0]
    return [
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Machine", machine.description()),
        ("Others", _others(done)),
        ("File systems", f"memory: {machine.file_system(fast)}; disk: {machine.file_system(disk)}"),
        ("Versions", f"gpufleet.vllm {own}; {clients}; Python {platform.python_version()} for all of them"),
        ("Command", f"make bench BENCH={shlex.quote(shlex.join(arguments))}"),
    ]


def _others(done: Sequence[Done]) -> str:
    runs = [run for item in done for one in item.counted for run in one.values()]
    used = sum(run.foreign_cpu for run in runs) / sum(run.wall * run.cores for run in runs)
    how = "; clients and hub ran ahead of them, so that it cost caches and memory bandwidth alone"
    return f"used {used:.0%} of the machine meanwhile{how if any(run.ahead for run in runs) else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
