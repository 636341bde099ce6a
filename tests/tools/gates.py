# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run quality gates, two at a time: ``gates.py [--all | --check | NAME...]``.

A gate that fails does not hide the others. Each gate's output goes to ``build/logs/NAME.log`` and is shown when it
fails. ``JOBS=1`` runs them one after the other, ``JOBS=3`` three at a time; ``VERBOSE=1`` shows their output as it
comes, one gate at a time. At the end: a table in the order of the gates, and ``N passed, N failed`` alone on the last
line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lanes import NOT_RUN, other_core, own_core, search_path
from tree import ROOT, git_files, source_files

BIN = Path(sys.prefix) / "bin"
TOOLS = ROOT / "tests" / "tools"
LOGS = ROOT / "build" / "logs"
COLLECTIONS = Path(sys.prefix) / "collections"
COLLECTION = COLLECTIONS / "ansible_collections" / "gpufleet" / "vllm"
TAIL_LINES = 200
STOP_SECONDS = 30
JOBS = 2
LAB = "lab"
"""The emulated hosts share one engine: scenarios run beside each other, and beside no test that kills the engine."""


class Terminated(Exception):
    """SIGTERM came."""


def _on_terminate(_signal: int, _frame: object) -> None:
    raise Terminated


@dataclass(frozen=True)
class Gate:
    """One command with a name, what it shows in a few words, and the seconds after which it is stopped.

    What a gate ``uses`` is its own meanwhile; what it ``shares`` may be shared by others. Gates that one thing keeps
    apart run in their order.
    """

    name: str
    what: str
    argv: tuple[str, ...]
    in_check: bool = False
    limit: int = 1800
    uses: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()

    def clashes(self, other: Gate) -> bool:
        """Whether the two may not run at the same time."""
        mine, others = set(self.uses), set(other.uses)
        return bool(mine & (others | set(other.shares)) or others & set(self.shares))


def _python(*argv: str) -> tuple[str, ...]:
    return (sys.executable, *argv)


def _tool(name: str, *argv: str) -> tuple[str, ...]:
    return (str(BIN / name), *argv)


def shell_scripts() -> list[str]:
    """Every shell script of the tree, by its first line: the sanity test looks at ``*.sh`` alone."""
    scripts = []
    for name in source_files():
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix in {".py", ".md", ".yml", ".txt", ".j2"}:
            continue
        with path.open("rb") as stream:
            first = stream.readline(100)
        if first.startswith(b"#!") and first.split()[-1].rsplit(b"/", 1)[-1] in {b"sh", b"bash"}:
            scripts.append(name)
    return scripts


def scenarios() -> list[str]:
    """The Molecule scenarios, by name."""
    return sorted(path.parent.name for path in (ROOT / "extensions" / "molecule").glob("*/molecule.yml"))


def all_gates() -> list[Gate]:
    """Every gate, in the order in which they run: quick ones first."""
    own, other = own_core(), other_core()
    # Two of them may run at a time, and would write one cache.
    pytest = _python("-m", "pytest", "-q", "--tb=short", "--durations=25", "-p", "no:cacheprovider")
    mypy = _python("-m", "mypy")
    ansible_test = str(TOOLS / "ansible_test.py")
    tarball = str(TOOLS / "tarball.py")
    return [
        Gate("format", "Python is in ruff's format", _tool("ruff", "format", "--check", "."), True),
        Gate("ruff", "no ruff finding", _tool("ruff", "check", "."), True),
        Gate("yamllint", "YAML is clean", _tool("yamllint", "--strict", "."), True),
        Gate("shellcheck", "shell scripts are clean", _tool("shellcheck", *shell_scripts()), True),
        Gate(
            "types-plugins",
            "mypy --strict on plugins",
            (*mypy, "-p", "ansible_collections.gpufleet.vllm.plugins"),
            True,
            uses=("mypy",),
        ),
        Gate(
            "types-tools",
            "mypy --strict on the tests' own programs",
            (*mypy, "tests/tools", "tests/lab", "tests/bench"),
            True,
            uses=("mypy",),
        ),
        Gate("ansible-lint", "profile production", _tool("ansible-lint", "--offline", "--nocolor"), True),
        Gate("units", "unit tests", (*pytest, "tests/unit"), True),
        # ansible-test keeps its environments in one place for each core.
        _core_gate("sanity", own, "ansible-test sanity", in_check=True),
        _core_gate("sanity", other, "ansible-test sanity"),
        Gate(
            "floor",
            "host code compiles and imports on Python 3.9",
            _python(ansible_test, "floor", own),
            uses=(f"core-{own}",),
        ),
        _core_gate("units", own, "ansible-test units"),
        _core_gate("units", other, "ansible-test units"),
        Gate(
            "docs",
            "antsibull-docs lint-collection-docs",
            _tool(
                "antsibull-docs",
                "lint-collection-docs",
                "--plugin-docs",
                "--skip-rstcheck",
                "--validate-collection-refs",
                "self",
                str(COLLECTION),
            ),
        ),
        Gate("changelog", "antsibull-changelog lint", _tool("antsibull-changelog", "lint")),
        Gate("build", "the tarball builds", _python(tarball, "build"), uses=("tarball",)),
        Gate("contents", "the tarball holds what it should", _python(tarball, "check"), uses=("tarball",)),
        Gate("install", "the tarball installs and is usable", _python(tarball, "install"), uses=("tarball",)),
        Gate("galaxy", "galaxy-importer accepts it", _python(tarball, "galaxy"), uses=("tarball",)),
        # The longest comes first: what follows it goes on beside it.
        Gate(
            "integration",
            "integration tests",
            # Which tests share a worker, tests/integration/conftest.py says.
            (*pytest, "-m", "not lab", "-n", "2", "--dist", "loadfile", "tests/integration"),
            limit=3600,
        ),
        Gate(
            "integration-lab",
            "integration tests on emulated hosts",
            (*pytest, "-m", "lab", "tests/integration"),
            limit=3600,
            uses=(LAB,),
        ),
        *(
            Gate(
                f"molecule-{name}",
                f"molecule {name}, on emulated hosts",
                _tool("molecule", "test", "-s", name),
                shares=(LAB,),
            )
            for name in scenarios()
        ),
    ]


def _core_gate(kind: str, core: str, what: str, in_check: bool = False) -> Gate:
    argv = _python(str(TOOLS / "ansible_test.py"), kind, core)
    return Gate(f"{kind}-{core}", f"{what}, core {core}", argv, in_check, uses=(f"core-{core}",))


def environment() -> dict[str, str]:
    """What every gate sees: the environment's tools first, this checkout's configuration, UTF-8."""
    return {
        **os.environ,
        "PATH": search_path(BIN),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "",
    }


def last_line(log: Path) -> str:
    """The last line of a gate's output that says something, cut to fit a table."""
    lines = [line.strip(" =") for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("WARNING")), "")[:90]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the gate's process group as Ctrl-C does, so that pytest takes down what its fixtures started; then insist."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)


def copy_output(process: subprocess.Popen[bytes], log: BinaryIO, verbose: bool) -> int:
    """Copy what the process says to the log, and to our output when verbose, until it ends; returns its status."""
    assert isinstance(process.stdout, io.BufferedReader)
    while chunk := process.stdout.read1():
        log.write(chunk)
        log.flush()
        if verbose:
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
    return process.wait()


def run_gate(
    gate: Gate, verbose: bool, started: Callable[[subprocess.Popen[bytes]], None] = lambda _process: None
) -> tuple[str, float]:
    """Run one gate; returns ``passed``, ``failed`` or ``not run``, and its seconds. ``started`` gets its process."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{gate.name}.log"
    say(f"==> {gate.name}: {gate.what}")
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            gate.argv,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        say(f"    {gate.name}: cannot start {gate.argv[0]}: {error.strerror}; do this: make dev-setup")
        return "failed", 0.0
    started(process)
    limit = threading.Timer(gate.limit, stop, [process])
    limit.start()
    try:
        with process, log.open("wb") as stream:
            status = copy_output(process, stream, verbose)
    finally:
        limit.cancel()
    seconds = time.monotonic() - began
    outcome = {0: "passed", NOT_RUN: "not run"}.get(status, "failed")
    lines = []
    if seconds >= gate.limit:
        outcome = "failed"
        lines.append(f"    stopped: it ran longer than {gate.limit} s")
    if outcome != "passed" and not verbose:
        lines += shown_tail(log)
    # In one piece: another gate may speak at the same time.
    say("\n".join([*lines, f"    {gate.name} {outcome} in {seconds:.1f} s: {last_line(log)}"]))
    return outcome, seconds


def say(text: str) -> None:
    """Print lines that nothing of another gate comes between."""
    with _SPEAKING:
        print(text, flush=True)


_SPEAKING = threading.Lock()


def shown_tail(log: Path) -> list[str]:
    """The end of a gate's output, to stand below its name."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    cut = len(lines) - TAIL_LINES
    first = [f"    ... {cut} earlier lines in {log.relative_to(ROOT)}"] if cut > 0 else []
    return first + [f"    {text}" for text in lines[-TAIL_LINES:]]


def _at_lab(gate: Gate) -> bool:
    return LAB in gate.uses or LAB in gate.shares


class Runner:
    """Runs gates, some at a time. ``results`` are those of the gates that ended, in the order of the gates."""

    def __init__(self, gates: Sequence[Gate], jobs: int, verbose: bool) -> None:
        self._gates, self._jobs, self._verbose = list(gates), jobs, verbose
        self._pending = list(gates)
        self._busy: list[Gate] = []
        self._ended: dict[str, tuple[str, float]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False
        self._moved = threading.Condition()

    @property
    def results(self) -> list[tuple[Gate, str, float]]:
        return [(gate, *self._ended[gate.name]) for gate in self._gates if gate.name in self._ended]

    def run(self) -> None:
        """Return when all ended. What the caller is interrupted by is raised here, when all was stopped."""
        workers = [threading.Thread(target=self._work, daemon=True) for _job in range(self._jobs)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join()
        except (KeyboardInterrupt, Terminated):
            self._stop()
            for worker in workers:
                worker.join()
            raise

    def _work(self) -> None:
        while (gate := self._next()) is not None:
            outcome = "failed", 0.0
            try:
                outcome = run_gate(gate, self._verbose, functools.partial(self._register, gate.name))
            except OSError as error:  # a full disk, say; the others may still tell something
                say(f"    {gate.name} failed: {error}")
            finally:
                with self._moved:
                    self._busy.remove(gate)
                    self._processes.pop(gate.name, None)
                    if not self._stopping:
                        self._ended[gate.name] = outcome
                    self._moved.notify_all()

    def _next(self) -> Gate | None:
        """The next gate, waiting while none of those that are left may run now; None when none is left."""
        with self._moved:
            while self._pending and not self._stopping:
                gate = self._first()
                if gate is not None:
                    self._pending.remove(gate)
                    self._busy.append(gate)
                    return gate
                self._moved.wait()
            return None

    def _first(self) -> Gate | None:
        """The gate to run now. The lab's gates are the longest way to the end: one of them goes on all the time."""
        waiting: list[Gate] = []
        free: list[Gate] = []
        for gate in self._pending:
            # One that has to wait is not overtaken by those that would keep it waiting.
            if not any(gate.clashes(other) for other in [*self._busy, *waiting]):
                free.append(gate)
            else:
                waiting.append(gate)
        if self._jobs == 1 or not free:
            return free[0] if free else None
        lab = any(_at_lab(gate) for gate in self._busy)
        return next((gate for gate in free if _at_lab(gate) is not lab), free[0])

    def _register(self, name: str, process: subprocess.Popen[bytes]) -> None:
        with self._moved:
            self._processes[name] = process
            late = self._stopping
        if late:
            stop(process)

    def _stop(self) -> None:
        with self._moved:
            self._stopping = True
            processes = list(self._processes.values())
            self._moved.notify_all()
        stoppers = [threading.Thread(target=stop, args=[process], daemon=True) for process in processes]
        for stopper in stoppers:
            stopper.start()
        try:
            for stopper in stoppers:
                stopper.join()
        except (KeyboardInterrupt, Terminated):
            # A second Ctrl-C: no more patience.
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def summary(results: list[tuple[Gate, str, float]], elapsed: float | None = None) -> str:
    """The closing table, and the closing line that CI reads. ``elapsed``: by the clock, as gates ran side by side."""
    width = max(len(gate.name) for gate, _outcome, _seconds in results)
    lines = ["", f"{'gate':{width}}  {'seconds':>7}  result"]
    lines += [f"{gate.name:{width}}  {seconds:7.1f}  {outcome}" for gate, outcome, seconds in results]
    total = sum(seconds for _gate, _outcome, seconds in results)
    lines.append(f"{'total':{width}}  {total:7.1f}" + (f"  in {elapsed:.1f} s by the clock" if elapsed else ""))
    count = {
        name: sum(outcome == name for _gate, outcome, _seconds in results) for name in ("passed", "failed", "not run")
    }
    skipped = f", {count['not run']} skipped" if count["not run"] else ""
    return "\n".join([*lines, "", f"{count['passed']} passed, {count['failed']} failed{skipped}"])


def choose(gates: list[Gate], names: Iterable[str]) -> list[Gate]:
    """The gates of these names; ``sanity`` stands for each ``sanity-X``. SystemExit names a wrong one."""
    chosen = []
    for name in names:
        found = [gate for gate in gates if gate.name == name or gate.name.startswith(f"{name}-")]
        if not found:
            raise SystemExit(f"no gate is called {name!r}; there are: {', '.join(gate.name for gate in gates)}")
        chosen += found
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every gate")
    parser.add_argument("--check", action="store_true", help="the quick ones")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    gates = all_gates()
    if options.all:
        chosen = gates
    elif options.check:
        chosen = [gate for gate in gates if gate.in_check]
    else:
        chosen = choose(gates, options.names)
    if not chosen:
        parser.error("name a gate, or say --check or --all")
    if git_files(ROOT) is None:
        print("(no git here: the source tree is what .gitignore leaves visible)")
    signal.signal(signal.SIGTERM, _on_terminate)
    # A shell starts background jobs with Ctrl-C ignored, and the gates would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    verbose = bool(os.environ.get("VERBOSE"))
    runner = Runner(chosen, 1 if verbose else jobs(), verbose)
    began = time.monotonic()
    try:
        runner.run()
    except (KeyboardInterrupt, Terminated):
        say("\ninterrupted: the gates that ran, and those after them, are not in the table")
        return 130
    finally:
        if runner.results:
            say(summary(runner.results, time.monotonic() - began))
    ended = len(runner.results) == len(chosen)
    return 0 if ended and not any(outcome == "failed" for _gate, outcome, _seconds in runner.results) else 1


def jobs() -> int:
    """How many gates run at a time: JOBS of the environment, or two where there are two cores."""
    wanted = os.environ.get("JOBS", "")
    if wanted and not (wanted.isdecimal() and int(wanted)):
        raise SystemExit(
            f"JOBS is {wanted!r}; expected: a number from 1 up; do this: JOBS=1 make test, or leave it unset"
        )
    return int(wanted) if wanted else min(JOBS, os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(main())
