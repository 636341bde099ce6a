# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs one program after another and says what each cost; a process of its own, small enough to measure others by.

One JSON object per line comes in, one goes out. A process's peak memory, as wait4 tells it, is never less than that of
the process it was forked from; so this one imports next to nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time


def run(job: dict[str, object]) -> dict[str, object]:
    """Run ``argv`` with ``env``, stdin from ``input``, stdout and stderr to files, for ``limit`` seconds at most."""
    argv, env, limit = job["argv"], job["env"], job["limit"]
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    assert isinstance(limit, (int, float))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = [os.open(str(job["input"]), os.O_RDONLY)]
    files += [os.open(str(job[name]), flags, 0o600) for name in ("output", "errors")]
    actions = [(os.POSIX_SPAWN_DUP2, number, target) for target, number in enumerate(files)]
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions, setpgroup=0)
    ended_early = True
    try:
        handle = os.pidfd_open(pid)
        ready, _unused, _unused = select.select([handle], [], [], limit)
        ended_early = not ready
        os.close(handle)
    finally:
        if ended_early:
            os.killpg(pid, signal.SIGKILL)
        _pid, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    for number in files:
        os.close(number)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "timed_out": ended_early,
        "wall": wall,
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "peak_kib": usage.ru_maxrss,
    }


def main() -> None:
    """Answer lines until there are no more. SIGTERM ends what runs, too."""
    signal.signal(signal.SIGTERM, lambda *_unused: sys.exit(1))
    for line in sys.stdin:
        try:
            answer = run(json.loads(line))
        except OSError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
