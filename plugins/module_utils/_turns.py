# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Turns: services that share a card load one after the other, whoever starts them. Pure, no I/O.

vLLM measures a card's free memory while it loads, and ends where a neighbour changes it meanwhile ("Error in memory
profiling"). A process manager that starts them in an order would do at a deploy; after a reboot or a crash all of them
are started at once. So each takes a lock for each card before vLLM starts, and holds it until ``/health`` is good. The
lock ends with the process that holds it, and knows no names: a neighbour that comes or goes changes nothing.
"""

from __future__ import annotations

import posixpath
import typing as t

CONTAINER_PATH = "/run/turns"
PROGRAM = "start.py"
# A lock needs no right to write, so the files are root's, and a container gets them read-only.
START = """import fcntl, os, sys, time, urllib.request

locks, url, limit, command = sys.argv[1].split(","), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
held = [os.open(lock, os.O_RDONLY) for lock in sorted(locks)]
for lock in held:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waits for its turn: another service loads on the same GPU", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
engine, end = os.getpid(), time.monotonic() + limit
if os.fork() == 0:
    if os.fork() == 0:
        ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < end:
            time.sleep(1)
            try:
                os.kill(engine, 0)
            except OSError:
                break
            try:
                ask.open(url, timeout=5).close()
                break
            except Exception:
                pass
    os._exit(0)
os.wait()
os.execvp(command[0], command)
"""


def shared_cards(service: t.Mapping[str, t.Any]) -> list[str]:
    """The UUIDs of the cards that a service of the plan shares with another one."""
    return [str(gpu["uuid"]) for gpu in service.get("gpus") or [] if gpu.get("shared")]


def directory(root: str) -> str:
    return f"{root}/turns"


def lock_path(card: str, where: str) -> str:
    # The old form of a MIG device's UUID has slashes.
    return f"{where}/{card.replace('/', '_')}"


def arguments(service: t.Mapping[str, t.Any], where: str, url: str) -> list[str]:
    """What the program is called with, before the command that it becomes."""
    locks = ",".join(lock_path(card, where) for card in shared_cards(service))
    return [locks, url, str(service["ready_timeout"])]


def in_turn(service: t.Mapping[str, t.Any], root: str) -> t.Mapping[str, t.Any]:
    """A service without a container whose command waits for its turn; others as they are."""
    command = list(service.get("command") or [])
    if "container" in service or not command or not shared_cards(service):
        return service
    program = f"{directory(root)}/{PROGRAM}"
    if program in command[:2]:
        return service
    # The engine's own Python is there wherever the engine is.
    python = f"{posixpath.dirname(command[0])}/python"
    called = arguments(service, directory(root), f"{service['url']}/health")
    return {**service, "command": [python, program, *called, *command]}
