# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The work of a background job that fetches a host's artifacts, and the places for what goes along with it."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _job
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import Piece, stopped_error, summed
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Hub
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import Observer

_YIELD_SECONDS = 1.0


class Companion:
    """What goes along with a fetch, and here does nothing. A swarm is one: it gives from what it gets."""

    def order(self, pieces: t.Sequence[Piece]) -> list[Piece]:
        """In which order the pieces are fetched."""
        return list(pieces)

    def before(self, pieces: t.Sequence[Piece], monitor: Monitor) -> None:
        """Before anything is fetched; ``pieces`` are those with work to do."""

    def hub(self, piece: Piece, hub: Hub) -> Hub:
        """Where this artifact comes from: the hub itself, or something in front of it."""
        return hub

    def observer(self, piece: Piece) -> Observer | None:
        """Who is told what is received of this artifact."""
        return None

    def ended(self, piece: Piece) -> None:
        """After this artifact, whatever came of it."""

    def result(self) -> dict[str, t.Any]:
        """What belongs into the job's result beside its own; ``warnings`` come after those of the artifacts."""
        return {}

    def after(self) -> float:
        """For how many seconds the job has to go on for others, once its own work is done."""
        return 0.0

    def over(self) -> bool:
        """Whether the others need it no more; asked again and again."""
        return False

    def close(self) -> None:
        """At the very end, come what may."""


class Fetch:
    """Fetches what is not settled, one artifact after the other: each has all connections and all bandwidth."""

    def __init__(
        self,
        pieces: t.Sequence[Piece],
        verify: bool,
        diff: bool,
        job: _job.Run,
        companion: Companion | None = None,
    ) -> None:
        self._pieces, self._verify, self._diff = pieces, verify, diff
        self._job, self._companion = job, companion or Companion()
        self._monitor = Monitor()
        self._position, self._model = 0, ""

    def run(self) -> None:
        todo = self._companion.order([piece for piece in self._pieces if piece.entry is None])
        stopped = False
        try:
            try:
                self._job.report(self._status)
                self._job.say(f"fetching {', '.join(piece.model for piece in todo) or 'nothing'}")
                self._companion.before(todo, self._monitor)
                self._fetch(todo)
            except KeyboardInterrupt:
                stopped = True
                self._job.say("stopped")
                for piece in self._pieces:
                    if piece.entry is None:
                        piece.fail(stopped_error())
            seconds = 0.0 if stopped or self._job.stopping() else self._companion.after()
            self._job.finish(self._result(), lingers=seconds > 0)
            if seconds > 0:
                self._linger(seconds)
        finally:
            self._companion.close()

    def _fetch(self, todo: list[Piece]) -> None:
        waiting = list(todo)
        while waiting:
            piece = self._next(waiting)
            waiting.remove(piece)
            self._position, self._model = len(todo) - len(waiting), piece.model
            self._monitor.work_on(piece.model)
            self._monitor.begin("resolving")
            piece.attempt(self._present)
            self._companion.ended(piece)
            entry = piece.entry or {}
            self._job.say(f"{piece.model}: {entry.get('msg') or str(entry.get('bytes_fetched')) + ' bytes fetched'}")

    def _result(self) -> dict[str, t.Any]:
        result, more = summed(self._pieces, self._diff), self._companion.result()
        return {**result, **more, "warnings": [*result["warnings"], *more.get("warnings", [])]}

    def _present(self, piece: Piece) -> t.Any:
        hub = self._companion.hub(piece, piece.hub())
        return piece.present(self._verify, hub, self._monitor, self._companion.observer(piece))

    def _next(self, waiting: t.Sequence[Piece]) -> Piece:
        """One that no older job of this user is at; where all are taken, the first that becomes free.

        Only older jobs are waited for, so that no two jobs wait for each other.
        """
        while True:
            taken = {path for job in self._older() for path in job.record.get("paths") or []}
            free = [piece for piece in waiting if piece.path not in taken]
            if free:
                return free[0]
            self._model = waiting[0].model
            self._monitor.begin("waiting")
            time.sleep(_YIELD_SECONDS)

    def _older(self) -> list[_job.Job]:
        jobs = _job.Jobs().on((piece.path for piece in self._pieces), but=self._job.id)
        mine = _age(_job.Job(self._job.directory))
        return [job for job in jobs if _age(job) < mine]

    def _linger(self, seconds: float) -> None:
        try:
            self._job.linger(seconds, self._companion.over)
        except KeyboardInterrupt:
            self._job.say("stopped")
        jobs = _job.Jobs()
        with jobs.locked():
            _job.Job(self._job.directory).discard()

    def _status(self) -> dict[str, t.Any]:
        todo = [piece for piece in self._pieces if piece.entry is None]
        done = self._position - 1 if self._position else 0
        count = max(self._position, done + len(todo))
        return {**self._monitor.snapshot(), "model": self._model, "position": self._position, "count": count}


def _age(job: _job.Job) -> tuple[int, int]:
    record = job.record
    return int(record.get("start") or 0), int(record.get("pid") or 0)
