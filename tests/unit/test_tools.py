# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The programs in tests/tools: a gate that cannot fail guards nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

import gates  # noqa: E402
import lanes  # noqa: E402
import tarball  # noqa: E402
import tree  # noqa: E402


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small tree with files to keep and files to leave out."""
    for name in (
        "galaxy.yml",
        "plugins/modules/one.py",
        "plugins/modules/__pycache__/one.pyc",
        ".venv/bin/python",
        "tests/output/log.txt",
        "tests/unit/output/kept.json",
        "docs/build/kept.md",
        "build/vllm.tar.gz",
        ".coverage.host.1",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    (tmp_path / "roles").mkdir()
    (tmp_path / "roles" / "self").symlink_to("..")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    return tmp_path


KEPT = [
    ".gitignore",
    "docs/build/kept.md",
    "galaxy.yml",
    "plugins/modules/one.py",
    "roles/self",
    "tests/unit/output/kept.json",
]


def test_walk_keeps_what_gitignore_keeps(checkout: Path) -> None:
    assert tree.source_files(checkout) == KEPT


@pytest.mark.skipif(not shutil.which("git"), reason="compares with git")
def test_git_and_walk_agree(checkout: Path) -> None:
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    assert tree.git_files(checkout) == tree.walk_files(checkout) == KEPT


@pytest.mark.skipif(not shutil.which("git"), reason="compares with git")
def test_deleted_file_is_not_listed(checkout: Path) -> None:
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    subprocess.run(["git", "-C", str(checkout), "add", "galaxy.yml"], check=True)
    (checkout / "galaxy.yml").unlink()
    assert "galaxy.yml" not in tree.source_files(checkout)


def test_copy_is_where_ansible_wants_it(checkout: Path) -> None:
    with tree.collection_copy(checkout) as copy:
        assert copy.parts[-3:] == ("ansible_collections", "gpufleet", "vllm")
        assert tree.walk_files(copy) == KEPT
        assert (copy / "roles" / "self").is_symlink()
    assert not copy.exists()


@pytest.mark.parametrize(
    "name",
    [
        ".venv/bin/python",
        ".gitignore",
        "Makefile",
        "ansible.cfg",
        "tests/lab/model_hub/server.py",
        "requirements/dev.txt",
        "plugins/modules/__pycache__/x.cpython-311.pyc",
        "plugins/modules/.hidden.py",
        "roles/one/molecule/default.yml",
        "playbooks/roll-back.yml",
        "gpufleet-vllm-0.1.0.tar.gz",
    ],
)
def test_tarball_refuses(name: str) -> None:
    assert tarball.problems([*tarball.REQUIRED, name]) == [f"unwanted: {name}"]


@pytest.mark.parametrize(
    "name",
    [
        "plugins/modules/one.py",
        "plugins/module_utils/_one.py",
        "roles/one/templates/unit.service.j2",
        "roles/one/README.md",
        "playbooks/roll_back.yml",
        "inventory/fleet/group_vars/all.yml",
        "docs/docsite/links.yml",
    ],
)
def test_tarball_allows(name: str) -> None:
    assert tarball.problems([*tarball.REQUIRED, name]) == []


def test_tarball_misses_what_is_not_there() -> None:
    assert tarball.problems([name for name in tarball.REQUIRED if name != "LICENSE"]) == ["missing: LICENSE"]


def gate(name: str, *argv: str) -> gates.Gate:
    return gates.Gate(name, "a test", argv)


@pytest.mark.parametrize(
    ("code", "outcome"), [("", "passed"), ("raise SystemExit(3)", "failed"), ("raise SystemExit(77)", "not run")]
)
def test_gate_outcome(
    code: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gates, "LOGS", tmp_path)
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    one = gate("one", sys.executable, "-c", f"print('said', flush=True)\n{code}")
    assert gates.run_gate(one, verbose=False)[0] == outcome
    assert (tmp_path / "one.log").read_text(encoding="utf-8").strip() == "said"
    assert "in 0" in capsys.readouterr().out


def test_gate_that_hangs_is_stopped_as_ctrl_c_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gates, "LOGS", tmp_path)
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    code = "import time\ntry:\n    time.sleep(60)\nfinally:\n    print('cleaned up')"
    hanging = gates.Gate("one", "a test", (sys.executable, "-c", code), limit=1)
    outcome, seconds = gates.run_gate(hanging, verbose=False)
    assert (outcome, seconds < 30) == ("failed", True)
    assert "longer than 1 s" in capsys.readouterr().out
    assert "cleaned up" in (tmp_path / "one.log").read_text(encoding="utf-8")


def test_gate_that_cannot_start_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gates, "LOGS", tmp_path)
    assert gates.run_gate(gate("one", str(tmp_path / "absent")), verbose=False)[0] == "failed"
    assert "make dev-setup" in capsys.readouterr().out


def test_summary_closes_with_the_line_that_ci_reads() -> None:
    results = [(gate("a"), "passed", 1.0), (gate("b"), "failed", 2.5), (gate("c"), "passed", 0.1)]
    assert gates.summary(results).splitlines()[-1] == "2 passed, 1 failed"
    assert "total      3.6  in 2.6 s by the clock" in gates.summary(results, 2.6)
    assert gates.summary([*results, (gate("d"), "not run", 0.0)]).splitlines()[-1] == "2 passed, 1 failed, 1 skipped"


def test_gates_are_chosen_by_name_or_family() -> None:
    every = [gate("units"), gate("units-2.19"), gate("unitsx")]
    assert [one.name for one in gates.choose(every, ["units"])] == ["units", "units-2.19"]
    with pytest.raises(SystemExit, match="no gate is called 'nope'"):
        gates.choose(every, ["nope"])


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the logs of gates, and for what they leave."""
    monkeypatch.setattr(gates, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    return tmp_path


def using(name: str, code: str, *uses: str) -> gates.Gate:
    return gates.Gate(name, "a test", (sys.executable, "-c", code), limit=60, uses=uses)


MEET = """
import pathlib, sys, time
pathlib.Path({mine!r}).touch()
end = time.monotonic() + 50
while not pathlib.Path({other!r}).exists():
    time.sleep(0.02)
    if time.monotonic() > end:
        sys.exit("alone")
"""


def test_gates_run_side_by_side(quiet: Path) -> None:
    """Each waits for the other; and the table has them in their order, whichever ended first."""
    pair = [using(name, MEET.format(mine=name, other=other)) for name, other in (("a", "b"), ("b", "a"))]
    runner = gates.Runner(pair, 2, verbose=False)
    runner.run()
    assert [(gate.name, outcome) for gate, outcome, _seconds in runner.results] == [("a", "passed"), ("b", "passed")]


ALONE = """
import pathlib, time
lock = pathlib.Path("lock")
lock.touch(exist_ok=False)
with open("order", "a") as order:
    order.write({name!r})
time.sleep(0.1)
lock.unlink()
"""


def test_gates_that_use_the_same_thing_do_not_and_keep_their_order(quiet: Path) -> None:
    several = [using(name, ALONE.format(name=name), "thing") for name in "abcd"]
    runner = gates.Runner(several, 3, verbose=False)
    runner.run()
    assert [outcome for _gate, outcome, _seconds in runner.results] == ["passed"] * 4
    assert (quiet / "order").read_text() == "abcd"


def test_the_longest_chain_goes_on_all_the_time(quiet: Path) -> None:
    tests = using("tests", "", gates.LAB)
    one, two, three = (
        gates.Gate(name, "a scenario", ("true",), shares=(gates.LAB,)) for name in ("one", "two", "three")
    )
    chosen = [using("a", ""), using("b", ""), tests, one, two, three]

    def taken(jobs: int, count: int) -> tuple[gates.Runner, list[str]]:
        runner = gates.Runner(chosen, jobs, verbose=False)
        return runner, [gate.name for gate in (runner._next() for _turn in range(count)) if gate]

    assert taken(1, 2)[1] == ["a", "b"], "one after the other, they keep their order"
    runner, names = taken(2, 3)
    assert names == ["tests", "a", "b"]
    assert runner._first() is None, "scenarios do not run beside the tests"
    runner._busy.remove(tests)
    assert runner._next() is one
    assert runner._next() is two, "but beside each other, when there is nothing else to do"


def test_one_that_has_to_wait_is_not_overtaken_by_what_it_waits_for(quiet: Path) -> None:
    shared = [gates.Gate(name, "", ("true",), shares=("x",)) for name in ("one", "two")]
    runner = gates.Runner([shared[0], using("all", "", "x"), shared[1]], 3, verbose=False)
    assert runner._next() is shared[0]
    assert runner._first() is None


def test_a_gate_that_fails_stops_no_other(quiet: Path) -> None:
    runner = gates.Runner([using("a", "raise SystemExit(1)"), using("b", "")], 1, verbose=False)
    runner.run()
    assert [outcome for _gate, outcome, _seconds in runner.results] == ["failed", "passed"]


def test_ctrl_c_stops_all_that_run_and_starts_no_other(quiet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import pathlib, time
pathlib.Path({0!r}).touch()
try:
    time.sleep(60)
finally:
    pathlib.Path({0!r} + ".cleaned").touch()
"""
    running = [using(name, code.format(name)) for name in ("a", "b")]
    runner = gates.Runner([*running, using("c", "open('c', 'w')")], 2, verbose=False)

    def interrupt_when_both_run() -> None:
        while not ((quiet / "a").exists() and (quiet / "b").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_both_run, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert runner.results == []
    assert sorted(path.name for path in quiet.iterdir() if path.is_file()) == ["a", "a.cleaned", "b", "b.cleaned"]


def test_the_hosts_of_the_lab_belong_to_one_gate_at_a_time() -> None:
    every = {one.name: one for one in gates.all_gates()}
    for name, one in every.items():
        assert (gates.LAB in one.uses) == (name == "integration-lab"), name
        assert (gates.LAB in one.shares) == name.startswith("molecule-"), name
    marked = [every[name].argv for name in ("integration", "integration-lab")]
    assert [argv[argv.index("-m", 3) + 1] for argv in marked] == ["not lab", "lab"], "every test is in one of them"
    for core in (lanes.own_core(), lanes.other_core()):
        assert every[f"sanity-{core}"].uses == every[f"units-{core}"].uses == (f"core-{core}",)
    assert len({every[name].uses for name in ("build", "contents", "install", "galaxy")}) == 1
    assert list(every).index("build") < list(every).index("contents")


@pytest.mark.parametrize(("text", "expected"), [("", None), ("1", 1), ("3", 3)])
def test_how_many_run_at_a_time(monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None) -> None:
    monkeypatch.setenv("JOBS", text)
    assert gates.jobs() == (expected or min(2, os.cpu_count() or 1))


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_what_is_no_number_of_jobs(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("JOBS", text)
    with pytest.raises(SystemExit, match="JOBS is"):
        gates.jobs()


def test_what_could_not_run_is_an_error_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert lanes.not_run("no Python 3.13") == lanes.NOT_RUN
    monkeypatch.setenv("CI", "true")
    assert lanes.not_run("no Python 3.13") == 1
    assert "NOT RUN: no Python 3.13" in capsys.readouterr().out


def test_broken_shim_is_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert lanes.find_interpreter("3.99") is None
