# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run quality gates one after the other: ``gates.py [--all | --check | NAME...]``.

A gate that fails does not hide the later ones. Each gate's output goes to ``build/logs/NAME.log`` and is shown when it
fails (``VERBOSE=1`` shows it as it comes). At the end: a table, and ``N passed, N failed`` alone on the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
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


class Terminated(Exception):
    """SIGTERM came."""


def _on_terminate(_signal: int, _frame: object) -> None:
    raise Terminated


@dataclass(frozen=True)
class Gate:
    """One command with a name, what it shows in a few words, and the seconds after which it is stopped."""

    name: str
    what: str
    argv: tuple[str, ...]
    in_check: bool = False
    limit: int = 1800


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
    pytest = _python("-m", "pytest", "-q", "--tb=short")
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
        ),
        Gate(
            "types-tools",
            "mypy --strict on the tests' own programs",
            (*mypy, "tests/tools", "tests/lab", "tests/bench"),
            True,
        ),
        Gate("ansible-lint", "profile production", _tool("ansible-lint", "--offline", "--nocolor"), True),
        Gate("units", "unit tests", (*pytest, "tests/unit"), True),
        Gate(f"sanity-{own}", f"ansible-test sanity, core {own}", _python(ansible_test, "sanity", own), True),
        Gate(f"sanity-{other}", f"ansible-test sanity, core {other}", _python(ansible_test, "sanity", other)),
        Gate("floor", "host code compiles and imports on Python 3.9", _python(ansible_test, "floor", own)),
        Gate(f"units-{own}", f"ansible-test units, core {own}", _python(ansible_test, "units", own)),
        Gate(f"units-{other}", f"ansible-test units, core {other}", _python(ansible_test, "units", other)),
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
        Gate("build", "the tarball builds", _python(tarball, "build")),
        Gate("contents", "the tarball holds what it should", _python(tarball, "check")),
        Gate("install", "the tarball installs and is usable", _python(tarball, "install")),
        Gate("galaxy", "galaxy-importer accepts it", _python(tarball, "galaxy")),
        *(
            Gate(f"molecule-{name}", f"molecule {name}, on emulated hosts", _tool("molecule", "test", "-s", name))
            for name in scenarios()
        ),
        # Which tests share a worker, tests/integration/conftest.py says.
        Gate("integration", "integration tests", (*pytest, "-n", "2", "--dist", "loadfile", "tests/integration")),
    ]


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
    try:
        while chunk := process.stdout.read1():
            log.write(chunk)
            log.flush()
            if verbose:
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
        return process.wait()
    except (KeyboardInterrupt, Terminated):
        stop(process)
        raise


def run_gate(gate: Gate, verbose: bool) -> tuple[str, float]:
    """Run one gate; returns ``passed``, ``failed`` or ``not run``, and its seconds."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{gate.name}.log"
    print(f"==> {gate.name}: {gate.what}", flush=True)
    started = time.monotonic()
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
        print(f"    cannot start {gate.argv[0]}: {error.strerror}; do this: make dev-setup")
        return "failed", 0.0
    limit = threading.Timer(gate.limit, stop, [process])
    limit.start()
    try:
        with process, log.open("wb") as stream:
            status = copy_output(process, stream, verbose)
    finally:
        limit.cancel()
    seconds = time.monotonic() - started
    outcome = {0: "passed", NOT_RUN: "not run"}.get(status, "failed")
    if seconds >= gate.limit:
        outcome = "failed"
        print(f"    stopped: it ran longer than {gate.limit} s")
    if outcome != "passed" and not verbose:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > TAIL_LINES:
            print(f"    ... {len(lines) - TAIL_LINES} earlier lines in {log.relative_to(ROOT)}")
        for text in lines[-TAIL_LINES:]:
            print(f"    {text}")
    print(f"    {outcome} in {seconds:.1f} s: {last_line(log)}", flush=True)
    return outcome, seconds


def summary(results: list[tuple[Gate, str, float]]) -> str:
    """The closing table, and the closing line that CI reads."""
    width = max(len(gate.name) for gate, _outcome, _seconds in results)
    lines = ["", f"{'gate':{width}}  {'seconds':>7}  result"]
    lines += [f"{gate.name:{width}}  {seconds:7.1f}  {outcome}" for gate, outcome, seconds in results]
    lines.append(f"{'total':{width}}  {sum(seconds for _gate, _outcome, seconds in results):7.1f}")
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
    results = []
    signal.signal(signal.SIGTERM, _on_terminate)
    # A shell starts background jobs with Ctrl-C ignored, and the gates would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for gate in chosen:
            outcome, seconds = run_gate(gate, verbose=bool(os.environ.get("VERBOSE")))
            results.append((gate, outcome, seconds))
    except (KeyboardInterrupt, Terminated):
        print("\ninterrupted: the gate that ran, and those after it, are not in the table")
        return 130
    finally:
        if results:
            print(summary(results), flush=True)
    return 1 if any(outcome == "failed" for _gate, outcome, _seconds in results) else 0


if __name__ == "__main__":
    sys.exit(main())
