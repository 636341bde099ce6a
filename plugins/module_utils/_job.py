# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Work that goes on in the background of a host after the module call that began it: its process and its directory.

A job is known by the digest of what is wanted, so that the same request finds the same job. Its directory is private
to the user and holds ``job.json`` (who works on what), ``status.json`` (how far it is, rewritten once a second),
``result.json`` (written last) and ``log``. The result stays until somebody read it; then all of it goes.

Whether a job lives is told by the boot, the process number and the time at which that process began: a number that was
given out again, or a reboot, is not taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import pkgutil
import re
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import typing as t
import zipimport

from ansible_collections.gpufleet.vllm.plugins import module_utils
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import reap

RECORD, STATUS, RESULT, TOLD = "job.json", "status.json", "result.json", "told"
LOG, STOP, LOCK = "log", "stop", ".lock"
PROCESS_NAME = "gpufleet-job"
REPORT_SECONDS = 1.0
STOP_SECONDS = 30.0
LOG_LINES = 15
STALE_SECONDS = 7 * 24 * 3600.0
"""A job that ended, or died, and that nobody asked about for so long is swept away."""

_POLL = 0.2
_ID = re.compile(r"[0-9a-f]{16}")
_LOG_BYTES = 16 * 1024
_READY_SECONDS = 30.0


def home() -> str:
    """Where this user's jobs lie: private, on local disk, and there for users without a home, too."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        return os.path.join(state, "gpufleet-vllm", "jobs")
    if os.geteuid() == 0:
        return "/var/lib/gpufleet-vllm/jobs"
    # Nobody else can rename or remove what lies right there; who made it first is checked.
    return f"/var/tmp/gpufleet-vllm-jobs-{os.geteuid()}"  # noqa: S108


# --- processes -------------------------------------------------------------------------------------------------------


class Process(t.NamedTuple):
    """One process for good: ``start`` is when it began, in the kernel's ticks since ``boot``."""

    boot: str
    pid: int
    start: int


def process_of(pid: int) -> Process | None:
    """The process that has this number now; None when there is none, or it is dead and only not waited for yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # The second field is a name in parentheses, which may hold anything.
            fields = stream.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            boot = stream.read().strip()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else Process(boot, pid, int(fields[19]))


# --- the jobs of a user ----------------------------------------------------------------------------------------------


class Job:
    """One job's directory, seen from outside. Everything in it may be missing, or from another version of this code."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.id = os.path.basename(directory)
        self.record = _read_json(os.path.join(directory, RECORD)) or {}

    def there(self) -> bool:
        return os.path.isdir(self.directory)

    @property
    def process(self) -> Process | None:
        """The process of the job, while it lives."""
        try:
            mine = Process(str(self.record["boot"]), int(self.record["pid"]), int(self.record["start"]))
        except (KeyError, TypeError, ValueError):
            return None
        return mine if process_of(mine.pid) == mine else None

    @property
    def works(self) -> bool:
        """Whether it still does what it was started for; one that only goes on serving others does not."""
        return self.process is not None and self.result() is None

    def status(self) -> dict[str, t.Any]:
        """How far it is, and under ``age`` how many seconds ago it said so."""
        path = os.path.join(self.directory, STATUS)
        status = _read_json(path) or {}
        with contextlib.suppress(OSError):
            status["age"] = max(0.0, time.time() - os.stat(path).st_mtime)
        return status

    def result(self) -> dict[str, t.Any] | None:
        return _read_json(os.path.join(self.directory, RESULT))

    @property
    def told(self) -> bool:
        """Whether somebody read the result of a job that goes on for others."""
        return os.path.exists(os.path.join(self.directory, TOLD))

    def tell(self) -> None:
        with contextlib.suppress(OSError):
            _write(self.directory, TOLD, b"")

    def log(self, lines: int = LOG_LINES) -> list[str]:
        """The end of what it wrote to its output."""
        try:
            with open(os.path.join(self.directory, LOG), "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LOG_BYTES))
                return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def age(self) -> float:
        """Seconds since something last happened in its directory."""
        try:
            return time.time() - os.stat(self.directory).st_mtime
        except OSError:
            return 0.0

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """End it in order, what it received is kept; False when it was not running. Killed when it does not end."""
        process = self.process
        if process is None:
            return False
        with contextlib.suppress(OSError):
            _write(self.directory, STOP, b"")
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)  # and what it started, which would else go on
                else:
                    os.kill(process.pid, number)
            while self.process is not None and time.monotonic() < deadline:
                time.sleep(_POLL / 4)
        return True

    def discard(self, above: bool = True) -> None:
        """Remove the directory, and those above it that were made for jobs and are empty now."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.directory, name))
        parent = os.path.dirname(self.directory)
        with contextlib.suppress(OSError):
            os.rmdir(self.directory)
        if not above:
            return
        with contextlib.suppress(OSError):
            if os.listdir(parent) == [LOCK]:
                made = (_read_json(os.path.join(parent, LOCK)) or {}).get("made")
                os.unlink(os.path.join(parent, LOCK))
                os.rmdir(parent)
                for path in made if isinstance(made, list) else []:
                    os.rmdir(path)


class Jobs:
    """All jobs of this user on this host."""

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory or home()

    def get(self, job_id: str) -> Job:
        """The job of this id, which may not be there."""
        if not _ID.fullmatch(job_id):
            raise FleetError(
                "job.bad_id",
                f"{job_id!a} is not the id of a job",
                "the job that an earlier task returned",
                "Pass it on",
            )
        self._check()
        return Job(os.path.join(self.directory, job_id))

    def all(self) -> list[Job]:
        self._check()
        try:
            names = sorted(os.listdir(self.directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [Job(os.path.join(self.directory, name)) for name in names if _ID.fullmatch(name)]

    def on(self, paths: t.Iterable[str], but: str = "") -> list[Job]:
        """The jobs that work on one of the directories now, without the one whose id is ``but``."""
        wanted = set(paths)
        jobs = [job for job in self.all() if job.id != but and wanted & set(job.record.get("paths") or [])]
        return [job for job in jobs if job.works]

    def sweep(self) -> None:
        """Remove what ended long ago and nobody asked about."""
        for job in self.all():
            if job.age() > STALE_SECONDS and job.process is None:
                job.discard(above=False)

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[None]:
        """Starting and clearing up is one run's business at a time."""
        made: list[str] = []
        while True:
            made += self._make()
            handle = self._lock()
            if handle is not None:
                break
        try:
            if made:
                # For whoever clears up last.
                os.pwrite(handle, json.dumps({"made": made}).encode(), 0)
            yield
        finally:
            os.close(handle)

    def _lock(self) -> int | None:
        """The lock, held; None where another run has just removed it with all the rest."""
        path = os.path.join(self.directory, LOCK)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
        os.close(handle)
        return None

    def _make(self) -> list[str]:
        """Make what is missing; the directories made above the jobs' own, deepest first."""
        made: list[str] = []
        missing = [self.directory]
        while not os.path.lexists(os.path.dirname(missing[-1])):
            missing.append(os.path.dirname(missing[-1]))
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700 if path == self.directory else 0o755)
                if path != self.directory:
                    made.insert(0, path)
        self._check()
        return made

    def _check(self) -> None:
        """What another user put in its place is not ours to read, let alone to act upon."""
        try:
            state = os.lstat(self.directory)
        except (FileNotFoundError, NotADirectoryError):  # no job yet, or another run removed it meanwhile
            return
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            raise FleetError(
                "job.foreign_directory",
                f"{self.directory} is no directory of uid {os.geteuid()} alone (uid {state.st_uid}, mode "
                f"{stat.S_IMODE(state.st_mode):04o})",
                "a directory of this user with mode 0700, or nothing in its place",
                "Find out who made it, then remove it",
            )

    def launch(self, job_id: str, record: t.Mapping[str, t.Any], work: t.Callable[[Run], None]) -> Job:
        """Begin ``work`` in a process of its own that outlives this one. Call it with the lock held.

        The new process has nothing of the caller but its memory: no terminal, no session, no open file. So whatever
        ``work`` needs it has, secrets included, without a command line or a file that others could read.
        """
        directory = os.path.join(self.directory, job_id)
        os.mkdir(directory, 0o700)
        try:
            _preload()
            said = _spawn(directory, record, work)
            if said != b"ready":
                log = Job(directory).log()
                raise FleetError(
                    "job.not_started",
                    "The background job did not start" + (f"; it said: {' | '.join(log)}" if log else ""),
                    "a process that begins its work",
                    "Correct what it says, then run again",
                )
        except BaseException:
            Job(directory).discard()
            raise
        return Job(directory)


# --- inside the job --------------------------------------------------------------------------------------------------


class Run:
    """The job, seen from inside: where it says how far it is and what came of it, and learns that it has to stop."""

    def __init__(self, directory: str) -> None:
        self.directory, self.id = directory, os.path.basename(directory)
        self._end = threading.Event()
        self._reporter: threading.Thread | None = None

    def report(self, snapshot: t.Callable[[], dict[str, t.Any]]) -> None:
        """Write what ``snapshot`` says into the status file, now and once a second until the result is there."""

        def loop() -> None:
            last: dict[str, t.Any] = {}
            while not self._end.wait(REPORT_SECONDS):
                last = self._tell(snapshot(), last)

        self._tell(snapshot(), {})
        reporter = threading.Thread(target=loop, name="reporter", daemon=True)
        reporter.start()
        self._reporter = reporter  # after it: a signal may come between the two, and who was not started is not joined

    def _tell(self, status: dict[str, t.Any], last: dict[str, t.Any]) -> dict[str, t.Any]:
        # A full disk does not stop the work; who reads the status sees that it is old.
        with contextlib.suppress(OSError):
            if status == last:
                os.utime(os.path.join(self.directory, STATUS))
            else:
                _write(self.directory, STATUS, json.dumps(status).encode())
        return status

    def finish(self, result: dict[str, t.Any], lingers: bool = False) -> None:
        """Leave the result. One that ``lingers`` goes on for others, and reports on; it clears up after itself."""
        if not lingers:
            self._end.set()
            if self._reporter is not None:
                self._reporter.join()
        _write(self.directory, RESULT, json.dumps({**result, "lingers": lingers}).encode(), durable=True)

    def stopping(self) -> bool:
        """Whether somebody asked the job to end."""
        return os.path.exists(os.path.join(self.directory, STOP))

    def linger(self, seconds: float, over: t.Callable[[], bool] = lambda: False) -> None:
        """Go on until somebody asks the job to stop, or it is ``over``, or so many seconds have passed."""
        deadline = time.monotonic() + seconds
        while not self.stopping() and not over() and time.monotonic() < deadline:
            time.sleep(_POLL)

    def say(self, text: str) -> None:
        """A line for the log, which a failure shows."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):
            os.write(2, f"{stamp} {text}\n".encode("utf-8", "replace"))


def _spawn(directory: str, record: t.Mapping[str, t.Any], work: t.Callable[[Run], None]) -> bytes:
    """Fork the job; what it said about its start."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _become(directory, record, work, writer)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as words:
        said = words.read(16)
    reap(pid, _READY_SECONDS)
    return said


def _become(directory: str, record: t.Mapping[str, t.Any], work: t.Callable[[Run], None], ready: int) -> t.NoReturn:
    # Nothing of the caller may run here at the end: no exit handler, no clearing up of what is still needed there.
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setpgid(0, 0)
        _detach(directory, ready)
        me = process_of(os.getpid())
        who = {"pid": os.getpid(), "boot": me.boot if me else "", "start": me.start if me else 0}
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        full = {**record, **who, "id": os.path.basename(directory), "host": socket.gethostname(), "since": since}
        _write(directory, RECORD, json.dumps(full).encode())
        inside = Run(directory)
        try:
            # From here on it can be found, and so be stopped.
            os.write(ready, b"ready")
            os.close(ready)
            work(inside)
        except KeyboardInterrupt:
            # Stopped before the work could see to that itself.
            inside.finish({"stopped": True})
        code = 0
    finally:
        if sys.exc_info()[0] is not None:
            with contextlib.suppress(OSError):
                os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        os._exit(code)


def _detach(directory: str, keep: int) -> None:
    os.umask(0o022)
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    # The end of the session that began it is not the end of the job.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(os.path.join(directory, LOG), flags, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as stream:
        stream.write(PROCESS_NAME)


def _interrupt(signum: int, frame: object) -> t.NoReturn:
    del frame
    # Once is enough: what is being put in order is not interrupted again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signum)


def _preload() -> None:
    """Load all of this collection's code that came along, while it is there.

    Ansible brings it in an archive that is gone when the module call ends; what the job needs later it has to have.
    """
    if isinstance(getattr(module_utils, "__loader__", None), zipimport.zipimporter):
        for found in pkgutil.iter_modules(module_utils.__path__, f"{module_utils.__name__}."):
            importlib.import_module(found.name)


# --- files -----------------------------------------------------------------------------------------------------------


def _read_json(path: str) -> dict[str, t.Any] | None:
    """The object in a file; None when it is not there or is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            value = json.loads(stream.read())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write(directory: str, name: str, data: bytes, durable: bool = False) -> None:
    """Write a file at once or not at all, readable for its owner alone."""
    path = os.path.join(directory, name)
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    os.replace(temporary, path)
