# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Waiting for engines, as the controller sees it: progress, deaths, deadlines, and the words for a failure. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural


@dataclass
class Watch:
    """What one service did since the wait began; ``deaths`` counts the ends of its process."""

    name: str
    timeout: float
    deaths: int = 0
    down: bool = False
    pid: int | None = None
    restarts: int | None = None
    last: dict[str, t.Any] = field(default_factory=dict)

    def observe(self, state: t.Mapping[str, t.Any]) -> None:
        """Take in one slice: a new pid, a higher restart count or a state without a process is a death.

        A death that was seen as such a state is not counted again when the process is back.
        """
        pid, restarts = state.get("pid"), state.get("restarts")
        down = state.get("state") in ("failed", "restarting")
        returned = int(bool(self.pid and pid and pid != self.pid))
        if restarts is not None and self.restarts is not None:
            returned = max(returned, restarts - self.restarts)
        self.deaths += max(0, returned + down - self.down)
        self.down = down
        self.pid = pid or self.pid
        self.restarts = restarts if restarts is not None else self.restarts
        self.last = dict(state)

    def given_up(self, max_restarts: int) -> bool:
        """The process manager gave up on it, it is stopped, or it died more often than it may."""
        unknown = self.last.get("managed") and self.last.get("state") is None
        return bool(unknown) or self.last.get("state") in ("stopped", "failed") or self.deaths > max_restarts


def progress_line(host: str, watch: Watch, elapsed: float) -> str:
    """``[gpu-01] qwen-vl: starting, 35 s of 1800 s | Loading safetensors checkpoint shards: 40%``."""
    state = watch.last.get("state") or "waiting"
    log = watch.last.get("log") or []
    said = f" | {shorten(log[-1], 100)}" if log else ""
    return f"[{host}] {watch.name}: {state}, {elapsed:.0f} s of {watch.timeout:.0f} s{said}"


def shorten(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def log_block(log: t.Sequence[str]) -> str:
    return "\n  the end of its log:\n" + "\n".join(f"    {line}" for line in log) if log else ""


def not_ready(watch: Watch, url: str, elapsed: float, max_restarts: int) -> str:
    """Why a service is not ready: it died, or it is late."""
    seen = watch.last.get("seen") or "nothing"
    state = watch.last.get("state") or "unknown"
    if watch.last.get("state") is None and watch.last.get("managed"):
        return (
            f"{watch.name} is not deployed on this host\n"
            f"  seen:     {seen}\n"
            f"  expected: a service that the process manager knows\n"
            f"  remedy:   run playbooks/deploy.yml"
        )
    if watch.given_up(max_restarts):
        times = f"its process ended {plural(watch.deaths, 'time')}" if watch.deaths else f"its process is {state}"
        text = (
            f"{watch.name} did not start: {times} within {elapsed:.0f} s\n"
            f"  seen:     {seen}; state {state}\n"
            f"  expected: HTTP 200 from {url}/health\n"
            f"  remedy:   correct what its log says below, then run again"
        )
    else:
        text = (
            f"{watch.name} is not ready after {elapsed:.0f} s\n"
            f"  seen:     {seen}; state {state}\n"
            f"  expected: HTTP 200 from {url}/health within {watch.timeout:.0f} s\n"
            f"  remedy:   if its log shows that it still loads, raise ready_timeout: for it, then run again"
        )
    return text + log_block(watch.last.get("log") or [])


def wrong_answers(reports: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """One block for each service that did not answer right."""
    blocks = []
    for report in reports:
        failed = [result for result in report["results"] if not result["ok"]]
        for result in failed:
            blocks.append(
                f"{report['name']} failed the {result['kind']} probe\n"
                f"  asked:    {result['asked']}\n"
                f"  seen:     {result['reason']}\n"
                f"  expected: {result['expected'] or 'an answer'}\n"
                f"  remedy:   read its log; if the model answers well but differently, set probes: on the service"
            )
        if failed:
            blocks[-1] += log_block(report.get("log") or [])
    return "\n".join(blocks)
