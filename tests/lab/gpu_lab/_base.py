# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every part of the lab needs: where it keeps things, commands, locks, background processes, progress."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REPOSITORY = Path(__file__).parents[3]


class LabError(Exception):
    """Something the lab cannot do: what was seen, what was expected, what to do."""

    def __init__(self, seen: str, expected: str, remedy: str) -> None:
        super().__init__(f"{seen}\n  expected: {expected}\n  do this:  {remedy}")


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError(
            f"the lab was started by uid {os.geteuid()}",
            "root: it starts a container engine, mounts and makes network interfaces",
            "run the same command with sudo",
        )


def cache_root() -> Path:
    """Where the lab keeps what is worth keeping: images, packages, the registry's storage, the state of labs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("GPUFLEET_CACHE") or os.path.join(home, "gpufleet-vllm")) / "lab"


def runtime_root() -> Path:
    """What must not outlive a reboot: sockets and pids. Short, because the path of a Unix socket has 107 bytes."""
    return Path("/run") / f"gpufleet-lab-{hashlib.sha256(os.fsencode(cache_root())).hexdigest()[:8]}"


def say(text: str) -> None:
    """A line of progress, on stderr: stdout is for what a command answers."""
    print(f"    {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(text: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - began:.1f} s")


def run(
    *command: object,
    check: bool = True,
    input_bytes: bytes | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 600,
) -> str:
    """What a command prints on stdout. Where it fails, all of what it said is in the error."""
    argv = [str(word) for word in command]
    try:
        done = subprocess.run(
            argv,
            input=input_bytes,
            stdin=subprocess.DEVNULL if input_bytes is None else None,
            capture_output=True,
            env={**os.environ, "PATH": SEARCH, "LC_ALL": "C.UTF-8", **(environment or {})},
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(
            f"there is no {argv[0]} in {SEARCH}", "it is installed", "install the package that has it"
        ) from None
    except subprocess.TimeoutExpired:
        raise LabError(
            f"{' '.join(argv)[:300]} did not end",
            f"an end within {timeout:.0f} s",
            "see whether the machine is overloaded",
        ) from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(
            f"{' '.join(argv)[:300]} ended with {done.returncode}: {said[-3000:]}", "an end with 0", "see its message"
        )
    return done.stdout.decode(errors="replace")


def find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH)


def need(programs: dict[str, str]) -> None:
    """Install the Debian packages (the values) of programs (the keys) that are missing, without starting services."""
    missing = sorted({package for program, package in programs.items() if not find(program)})
    if not missing:
        return
    command = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if not find("apt-get"):
        raise LabError(f"missing on this machine: {', '.join(missing)}", "a Debian or Ubuntu machine", command)
    with locked(cache_root() / "apt.lock"), timed(f"installed {', '.join(missing)} with apt-get"), _no_services():
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "-qq", "update", environment=quiet)
        run("apt-get", "-qq", "-y", "--no-install-recommends", "install", *missing, environment=quiet)


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """The lab runs its own daemons: a package must not start the machine's."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One holder at a time, of all processes; the kernel frees it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def built(final: Path) -> Iterator[Path]:
    """A directory to build in, that becomes ``final`` at once when nothing was raised."""
    partial = final.with_name(f"{final.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def digest_of(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]


def digest_of_tree(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest_of(*((path.relative_to(root), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files))


def within(seconds: float, condition: Callable[[], bool], pause: float = 0.1) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def tail(path: Path, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"


# Background processes


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def kill(pids: Iterable[int], gently: bool = True, seconds: float = 10) -> None:
    """End processes, with SIGKILL where SIGTERM is not enough."""
    left = list(pids)
    for number in (signal.SIGTERM, signal.SIGKILL) if gently else (signal.SIGKILL,):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if within(seconds, lambda: not any(command_line(pid) for pid in left), 0.05):
            return


class Daemon:
    """A process that outlives its caller. It is known by its pid and by a word of its command line."""

    def __init__(self, name: str, word: str) -> None:
        self.name = name
        self.word = word
        self.pid_file = runtime_root() / f"{name}.pid"
        self.log = runtime_root() / f"{name}.log"

    @property
    def pid(self) -> int | None:
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if self.word in command_line(pid) else None

    def start(self, command: t.Sequence[object], answers: Callable[[], bool], seconds: float = 30) -> None:
        if not self.pid:
            self.pid_file.unlink(missing_ok=True)
            self.pid_file.parent.mkdir(parents=True, exist_ok=True)
            words = [str(word) for word in command]
            script = 'echo $$ >"$0.new"; mv "$0.new" "$0"; exec "$@"'
            with self.log.open("ab") as log:
                subprocess.run(
                    ["setsid", "--fork", "sh", "-c", script, self.pid_file, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PATH": SEARCH},
                    cwd="/",
                    check=True,
                )
        began = time.monotonic()
        up = within(seconds, lambda: answers() or (time.monotonic() - began > 1 and not self.pid))
        if not up or not self.pid:
            raise LabError(
                f"{self.name} did not come up; the end of {self.log}:\n{tail(self.log)}",
                f"it answers within {seconds:.0f} s",
                "see the log; python -m gpu_lab stop ends all of the lab's processes",
            )

    def stop(self) -> None:
        if pid := self.pid:
            kill([pid])
        self.pid_file.unlink(missing_ok=True)
