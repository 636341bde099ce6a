# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Waiting for artifacts, as the controller sees it: the words for how far a host is, and when to say them. Pure."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._units import (
    human_bytes,
    human_duration,
    human_rate,
    human_share,
)

QUIET_SECONDS = 15.0
"""A job says every second how far it is; after so many without a word the line tells."""

_SLOWEST_SECONDS = 60.0
_SHARE = 30.0

IN_BACKGROUND = (
    "The models are fetched in the background on the hosts. Ctrl-C or a lost connection ends only this wait: the same "
    "command takes it up again. playbooks/fetch.yml with -e vllm_artifacts_state=stopped ends the fetch; what was "
    "received is kept."
)


def interval(quickest: float, elapsed: float) -> float:
    """Seconds between two lines: the longer it takes already, the rarer, so that a log of hours stays short."""
    return max(quickest, min(_SLOWEST_SECONDS, elapsed / _SHARE))


def progress_line(host: str, status: t.Mapping[str, t.Any]) -> str:
    """``[gpu-01] Qwen/Qwen2.5-VL-7B-Instruct: 3.2 of 16.6 GB (19 %), 410 MB/s, 33 s left, 16 connections``."""
    position, count = int(status.get("position") or 0), int(status.get("count") or 0)
    which = f" ({position} of {count})" if count > 1 and position else ""
    parts = _parts(status)
    age = float(status.get("age") or 0.0)
    if age > QUIET_SECONDS:
        parts = [*parts[:1], f"no news for {human_duration(age)}"]
    parts += [str(note) for note in status.get("notes") or []]
    return f"[{host}] {status.get('model') or 'model artifacts'}{which}: {', '.join(parts)}"


def _parts(status: t.Mapping[str, t.Any]) -> list[str]:
    phase, total, done = status.get("phase"), int(status.get("total") or 0), int(status.get("done") or 0)
    if phase == "waiting":
        return ["waits for another job that is fetching it"]
    if phase == "publishing":
        return ["being put in place"]
    if phase not in ("fetching", "checking") or total <= 0:
        return ["looking what is there" if phase == "checking" else "starting"]
    if done >= total:
        return [f"{human_bytes(total)} {'checked' if phase == 'checking' else 'received, being finished'}"]
    parts = [("checking, " if phase == "checking" else "") + human_share(done, total)]
    rate, eta, connections = status.get("rate") or 0, status.get("eta"), int(status.get("connections") or 0)
    parts.append(human_rate(rate))
    if eta is not None:
        parts.append(f"{human_duration(float(eta))} left")
    if connections and phase == "fetching":
        parts.append("1 connection" if connections == 1 else f"{connections} connections")
    return parts
