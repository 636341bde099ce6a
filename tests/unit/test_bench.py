# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmarks' arithmetic, their tables, and what they measure a process by."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "bench"), str(ROOT / "tests" / "lab")]

from hub_bench import cases, figures, models, report, spawner  # noqa: E402
from hub_bench.figures import Round, Run, Target  # noqa: E402


def run(client: str, wall: float, foreign: float = 0.0, **more: float) -> Run:
    values = {"user": 1.0, "system": 0.5, "peak_kib": 2048, "cores": 2, **more}
    return Run(client, wall, foreign_cpu=foreign, **values)  # type: ignore[arg-type]


def pair(official: float, ours: float, foreign: float = 0.0) -> Round:
    return {"official": run("official", official), "ours": run("ours", ours, foreign)}


def test_a_ratio_is_the_median_of_the_rounds_not_of_the_medians() -> None:
    # A slow machine in the last round slows both: each round's own ratio is 2.
    rounds = [pair(2, 1), pair(2.2, 1.1), pair(20, 10)]
    assert figures.ratio(rounds, "official", "ours") == pytest.approx(2)
    assert figures.ratio([pair(2, 1), pair(3, 1), pair(30, 1)], "official", "ours") == 3


def test_rounds_on_a_busy_machine_do_not_count_while_enough_others_do() -> None:
    quiet, busy = pair(2, 1), pair(2, 1, foreign=0.5)
    assert busy["ours"].busy
    assert not quiet["ours"].busy
    assert not run("ours", 10, foreign=0.9).busy, "5 % of two cores for 10 s"
    assert figures.quiet([quiet, busy]) == [quiet]
    assert figures.chosen([quiet, busy], wanted=1) == [quiet]
    assert figures.chosen([quiet, busy, busy], wanted=2) == [quiet, busy, busy]
    assert figures.chosen([quiet, busy] * 3, wanted=5) == [quiet] * 3
    assert figures.chosen([busy], wanted=1) == [busy]


def test_a_summary_has_medians_and_the_highest_peak() -> None:
    rounds: list[Round] = [
        {"ours": run("ours", wall, peak_kib=peak)} for wall, peak in ((3, 1024), (1, 4096), (2, 512))
    ]
    summary = figures.Summary.of(rounds, "ours")
    assert (summary.wall, summary.fastest, summary.slowest, summary.cpu, summary.peak_mib) == (2, 1, 3, 1.5, 4)


@pytest.mark.parametrize(
    ("target", "value", "text"),
    [
        (Target(least=10), 10.0, ">= 10 met"),
        (Target(least=10), 9.99, ">= 10 MISSED"),
        (Target(most=1.15), 1.15, "<= 1.15 met"),
        (Target(most=1.15), 1.2, "<= 1.15 MISSED"),
        (Target(), 1.0, "-"),
    ],
)
def test_a_target_says_whether_it_was_met(target: Target, value: float, text: str) -> None:
    assert target.verdict(value) == text


def test_figures_have_the_digits_that_mean_something() -> None:
    assert [figures.seconds(value) for value in (0.1234, 1.234, 12.34)] == ["0.123", "1.23", "12.3"]
    assert [figures.times(value) for value in (1.234, 23.45)] == ["1.23", "23.4"]


def test_a_table_is_aligned_and_is_markdown() -> None:
    table = figures.Table("Time", ("Case", "s"), [("a", "10.0"), ("longer", "1")])
    assert table.plain().splitlines() == ["Time", "", "Case       s", "------  ----", "a       10.0", "longer     1"]
    assert table.markdown().splitlines() == [
        "## Time",
        "",
        "| Case | s |",
        "|---|---:|",
        "| a | 10.0 |",
        "| longer | 1 |",
    ]


def done(name: str, rounds: list[Round]) -> report.Done:
    return report.Done(next(case for case in cases.cases(models.Sizes()) if case.name == name), rounds, wanted=1)


@pytest.mark.parametrize("markdown", [False, True])
def test_the_report_tells_what_was_missed_and_what_was_disturbed(markdown: bool) -> None:
    floors = {"raw": run("raw", 1.0), "bare": run("bare", 1.4)}
    text = report.report(
        [
            done("fresh-tmpfs", [{**pair(3, 1.5), **floors}, {**pair(3, 1.5, foreign=1), **floors}]),
            done("many", [pair(3, 4, foreign=1)]),
        ],
        [("Machine", "two cores")],
        markdown=markdown,
    )
    lines = text.splitlines()
    assert lines[0] == "- Machine: two cores" if markdown else "Machine: two cores"
    assert text.count("MISSED") == 2, "ours is slower than the official client once, and than the floor by half once"
    assert "1 of 2 rounds of fresh-tmpfs; they are left out." in text
    assert "1 of 1 rounds of many; they are counted for want of better." in text
    assert "Until the files are on the disk" not in text


def test_what_is_not_on_the_disk_yet_is_counted() -> None:
    rounds: list[Round] = [{"official": run("official", 3, settle=1), "ours": run("ours", 3.2)}]
    rounds[0].update({"raw+fsync": run("raw+fsync", 3), "bare+fsync": run("bare+fsync", 3)})
    text = report.report([done("fresh-disk", rounds)], [], markdown=True)
    assert "| 0.94 | >= 1 MISSED |" in text
    assert "| 1.00 | 0.000 | 4.00 | 3.20 | 1.25 | >= 1 met |" in text


def test_every_case_compares_ours_with_the_official_client() -> None:
    every = cases.cases(models.Sizes())
    assert len({case.name for case in every}) == len(every)
    for case in every:
        assert case.clients(tuned=False)[:2] == ["official", "ours"]
        assert "tuned" not in case.clients(tuned=False)
    models_in_order = [case.model for case in every]
    assert models_in_order == sorted(models_in_order, key=models_in_order.index), "one model at a time in memory"


def test_a_wrong_tree_is_noticed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        (directory / "sub").mkdir(parents=True)
        for name in ("same", "sub/short", "sub/other", "gone"):
            (directory / name).write_text("text")
    assert models.differences(source, target, contents=True) == []
    (target / "sub/short").write_text("tex")
    (target / "sub/other").write_text("TEXT")
    (target / "gone").unlink()
    assert models.differences(source, target, contents=False) == ["gone", "sub/short"]
    assert models.differences(source, target, contents=True) == ["gone", "sub/other", "sub/short"]


def job(tmp_path: Path, code: str, limit: float = 60.0) -> dict[str, object]:
    files = {"input": "/dev/null", "output": str(tmp_path / "out"), "errors": str(tmp_path / "err")}
    return {"argv": [sys.executable, "-I", "-S", "-c", code], "env": {}, "limit": limit, **files}


def test_a_process_is_measured(tmp_path: Path) -> None:
    answer = spawner.run(job(tmp_path, "data = bytearray(200 << 20); print('done'); raise SystemExit(3)"))
    assert (answer["status"], answer["timed_out"], (tmp_path / "out").read_text()) == (3, False, "done\n")
    assert isinstance(answer["peak_kib"], int)
    assert answer["peak_kib"] > 200 << 10


def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    answer = spawner.run(job(tmp_path, "import time; time.sleep(600)", limit=0.2))
    assert (answer["status"], answer["timed_out"]) == (-9, True)
