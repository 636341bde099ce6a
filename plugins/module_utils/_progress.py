# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""How far a long piece of work is: counters that its threads feed and somebody else reads."""

from __future__ import annotations

import threading
import time
import typing as t

WINDOW_SECONDS = 10.0
"""The rate is that of the last so many seconds: long enough to be calm, short enough to be true."""


class Monitor:
    """Thread-safe counters of one piece of work, in bytes.

    ``phase`` is one of resolving, checking, fetching, publishing and done. ``total`` is what the phase has to get
    through, ``done`` how much of it is behind it (what an earlier run left included), ``received`` what came over the
    network in all phases.
    """

    def __init__(self, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._phase, self._item = "resolving", ""
        self._total = self._done = self._received = self._connections = 0
        self._samples: list[tuple[float, int]] = []
        self._notes: list[str] = []

    def begin(self, phase: str, total: int = 0, done: int = 0) -> None:
        """Enter a phase."""
        with self._lock:
            self._phase, self._total, self._done = phase, total, done
            self._samples = [(self._clock(), done)]

    def work_on(self, item: str) -> None:
        """Say what is being worked on, for example a model."""
        with self._lock:
            self._item = item

    def add(self, done: int, received: int = 0) -> None:
        """Some bytes are behind us; negative when they have to be done again."""
        with self._lock:
            self._done += done
            self._received += received
            now = self._clock()
            if now - self._samples[-1][0] >= 0.5 if self._samples else True:
                self._samples.append((now, self._done))
                while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_SECONDS:
                    del self._samples[0]

    def use(self, connections: int) -> None:
        """How many connections are in use now."""
        with self._lock:
            self._connections = connections

    def note(self, text: str) -> None:
        """Something a person should know although the work goes on."""
        with self._lock:
            if text not in self._notes:
                self._notes.append(text)

    @property
    def received(self) -> int:
        with self._lock:
            return self._received

    def snapshot(self) -> dict[str, t.Any]:
        """All of it; ``rate`` in bytes per second, ``eta`` in seconds, None when nobody can tell."""
        with self._lock:
            now = self._clock()
            rate = 0.0
            if self._samples and now > self._samples[0][0]:
                rate = max(0.0, (self._done - self._samples[0][1]) / (now - self._samples[0][0]))
            left = max(0, self._total - self._done)
            return {
                "phase": self._phase,
                "item": self._item,
                "total": self._total,
                "done": self._done,
                "received": self._received,
                "rate": int(rate),
                "eta": round(left / rate, 1) if rate > 0 else None,
                "connections": self._connections,
                "notes": list(self._notes),
            }
