# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A lock on a directory, held by a file in it that says who holds it.

``flock`` frees itself when its process ends, and on NFS it counts for all clients, as the Linux client turns it into a
lock of the server. Where it does not (mounted with ``nolock`` or ``local_lock``, some FUSE file systems), the lock
file's age still tells: whoever holds it touches it every ``PULSE`` seconds, and one of another host that was touched
within ``FRESH`` seconds is respected.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import socket
import threading
import time

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

PULSE = 10.0
FRESH = 60.0

PROBE = "clock"


def take(lock: int, directory: int) -> str | None:
    """Lock the open file in the open directory and sign it; who holds it already, else None."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise FleetError(
                "artifact.no_locks",
                f"the file system cannot lock a file ({exc.strerror}), so two runs could damage each other's work",
                "a file system with locks; on NFS version 3 that is the service rpc-statd (lockd) on both sides",
                "Start it, mount with local_lock=flock if no other host writes there, or choose another path",
            ) from exc
        if exc.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise
        return _named(_read(lock), _age(lock, directory))
    holder = _read(lock)
    if holder and holder.get("host") != socket.gethostname():
        age = _age(lock, directory)
        if age < FRESH:
            fcntl.flock(lock, fcntl.LOCK_UN)
            return _named(holder, age)
    _sign(lock)
    return None


class Pulse:
    """Touches the lock file while it is held."""

    def __init__(self, lock: int) -> None:
        self._lock, self._stop = lock, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(PULSE):
            with contextlib.suppress(OSError):
                os.utime(self._lock)


def _read(lock: int) -> dict[str, object]:
    try:
        who = json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}
    return who if isinstance(who, dict) else {}


def _named(who: dict[str, object], age: float) -> str:
    try:
        text = f"process {int(str(who['pid']))} of user {str(who['user'])!a} on host {str(who['host'])!a} "
        since = str(who["since"])
    except (ValueError, KeyError):
        return "another run"
    return f"{text}since {since!a} (heard of {max(0.0, age):.0f} s ago)"


def _age(lock: int, directory: int) -> float:
    """Seconds since the lock file was touched, both by the clock of the file system."""
    name = f"{PROBE}.{os.getpid()}"
    try:
        probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            os.utime(probe)
            now = os.fstat(probe).st_mtime
        finally:
            os.close(probe)
            os.unlink(name, dir_fd=directory)
    except OSError:
        now = time.time()
    return now - os.fstat(lock).st_mtime


def _sign(lock: int) -> None:
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    data = json.dumps({"pid": os.getpid(), "user": user, "host": socket.gethostname(), "since": since}).encode()
    os.ftruncate(lock, 0)
    os.pwrite(lock, data + b"\n", 0)
