# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Running programs on a host: argument vectors, a deadline that holds, and a result instead of an exception."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
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


def run_command(
    argv: t.Sequence[str],
    timeout: float,
    environment: t.Mapping[str, str] | None = None,
    inherit: int | None = None,
) -> CommandResult:
    """Run ``argv`` without a shell, in its own process group, in the C locale, killed after ``timeout`` seconds.

    ``environment`` replaces the caller's. The child keeps the descriptor ``inherit``, for example a lock that
    must be held until the child has ended, whatever becomes of this process.

    AnsibleModule.run_command() has no deadline, and subprocess.run() waits without limit for the process it has killed.
    A process that sits in the driver's kernel code does not die, so here it is left behind after a short wait.
    """
    deadline = time.monotonic() + timeout
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    try:
        try:
            pid = _spawn(argv, environment, inherit, out_writer, err_writer)
        finally:
            os.close(out_writer)
            os.close(err_writer)
        try:
            out, err, ended = _read_both(out_reader, err_reader, deadline)
        except BaseException:
            # Whoever interrupts this run must not find the program at work still.
            _end(pid)
            raise
    except OSError as error:
        return CommandResult(NOT_FOUND, "", f"{argv[0]}: {error.strerror or error}")
    finally:
        os.close(out_reader)
        os.close(err_reader)
    status = reap(pid, max(0.0, deadline - time.monotonic())) if ended else None
    if status is None:
        _end(pid)
        message = decode(err) or f"{argv[0]} did not end within {timeout:g} s"
        return CommandResult(TIMED_OUT, decode(out), message, timed_out=True)
    return CommandResult(_exit_code(status), decode(out), decode(err))


def _end(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    reap(pid, REAP_SECONDS)


def _spawn(
    argv: t.Sequence[str], environment: t.Mapping[str, str] | None, inherit: int | None, out: int, err: int
) -> int:
    """The pid of the program; what keeps it from starting is raised here as the OSError that it is."""
    variables = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C"} if environment is None else dict(environment)
    if inherit is not None:
        os.set_inheritable(inherit, True)
    # Both ends close when the program starts: then the read below ends without a word.
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _become(list(argv), variables, out, err, writer)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as words:
        failure = words.read()
    if failure:
        os.waitpid(pid, 0)
        raise OSError(int(failure), os.strerror(int(failure)))
    return pid


def _become(argv: list[str], variables: dict[str, str], out: int, err: int, failure: int) -> t.NoReturn:
    # Nothing of the parent may run in the child: no exit handler, no flush of its buffers.
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        # Python ignores these, and the program would inherit that.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(argv[0], argv, variables)
    except OSError as error:
        os.write(failure, str(error.errno).encode())
    finally:
        os._exit(NOT_FOUND)


def _read_both(out: int, err: int, deadline: float) -> tuple[bytes, bytes, bool]:
    """All that comes before the deadline, and whether both pipes were closed by then."""
    chunks: dict[int, list[bytes]] = {out: [], err: []}
    with selectors.DefaultSelector() as selector:
        for reader in chunks:
            selector.register(reader, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for key, _events in ready:
                chunk = os.read(key.fd, 65536)
                chunks[key.fd].append(chunk)
                if not chunk:
                    selector.unregister(key.fd)
        closed = not selector.get_map()
    return b"".join(chunks[out]), b"".join(chunks[err]), closed


def reap(pid: int, seconds: float) -> int | None:
    """The wait status of a child that ends within ``seconds``, else ``None``: it is left to the system then."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


def _exit_code(status: int) -> int:
    """As subprocess has it: the exit status, or minus the signal that ended it."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def decode(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
