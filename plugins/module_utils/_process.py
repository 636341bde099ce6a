# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Running programs on a host: argument vectors, a deadline that holds, and a result instead of an exception."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import typing as t

NOT_FOUND = 127
TIMED_OUT = 124
REAP_SECONDS = 2.0


class CommandResult(t.NamedTuple):
    """``timed_out`` comes with rc 124; a command that could not be started has rc 127."""

    rc: int
    out: str
    err: str
    timed_out: bool = False

    @property
    def last_words(self) -> str:
        """The last line that says something, for a message."""
        lines = [line.strip() for line in (self.out + "\n" + self.err).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.rc}"


# argv and a deadline in seconds.
Runner = t.Callable[[t.Sequence[str], float], CommandResult]


def run_command(argv: t.Sequence[str], timeout: float) -> CommandResult:
    """Run ``argv`` without a shell, in its own process group, in the C locale, killed after ``timeout`` seconds.

    subprocess.run() waits without limit for the process it has killed. A process that sits in the driver's kernel code
    does not die, so here it is left behind after a short wait.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C"},
        )
    except OSError as error:
        return CommandResult(NOT_FOUND, "", f"{argv[0]}: {error.strerror or error}")
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            out, err = process.communicate(timeout=REAP_SECONDS)
        except subprocess.TimeoutExpired:
            out, err = b"", b""
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        message = decode(err) or f"{argv[0]} did not end within {timeout:g} s"
        return CommandResult(TIMED_OUT, decode(out), message, timed_out=True)
    return CommandResult(process.returncode, decode(out), decode(err))


def decode(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
