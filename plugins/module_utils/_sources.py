# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Several slow questions at once, each with a deadline: one that hangs costs its own answer and nothing else."""

from __future__ import annotations

import threading
import time
import typing as t

T = t.TypeVar("T")


class _Source:
    def __init__(self, function: t.Callable[[], t.Any], seconds: float) -> None:
        self.function, self.seconds = function, seconds
        self.value: t.Any = None
        self.error: BaseException | None = None
        self.deadline = time.monotonic() + seconds
        self.ended = threading.Event()

    def work(self) -> None:
        try:
            self.value = self.function()
        except Exception as error:  # noqa: BLE001 - a host can be broken in any way, and the other facts still count
            self.error = error
        finally:
            self.ended.set()


class Sources:
    """Questions that are asked side by side. A thread that hangs is left behind: it keeps no process from ending."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._sources: dict[str, _Source] = {}

    def ask(self, name: str, function: t.Callable[[], t.Any], seconds: float) -> None:
        """Start ``function``; ``name`` is what a person calls what it reads."""
        source = self._sources[name] = _Source(function, seconds)
        threading.Thread(target=source.work, name=name, daemon=True).start()

    def answer(self, name: str, otherwise: T) -> T:
        """What the function gave; ``otherwise`` where it failed, or gave nothing by its deadline."""
        source = self._sources[name]
        if not source.ended.wait(max(0.0, source.deadline - time.monotonic())):
            self.problems.append(f"Reading {name} gave no answer within {source.seconds:g} s, so it is not known.")
            return otherwise
        if source.error is not None:
            error = source.error
            said = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
            self.problems.append(f"{name[:1].upper()}{name[1:]} can not be told: {said}.")
            return otherwise
        return t.cast(T, source.value)
