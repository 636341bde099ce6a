# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The artifacts of a host as its part in a fleet that gets them together: the look before, and what goes along after.

First every host looks and says what it has and lacks. From that the controller tells each what its part is
(``_swarm_fleet``), and the job that fetches takes a :class:`SwarmCompanion` along.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _manifest, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_fetch import Companion
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import Piece
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm import (
    IDLE_SECONDS,
    TOTAL_SECONDS,
    PinnedHub,
    Swarm,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    Membership,
    Pinned,
    contents,
    read_membership,
    short_rows,
)

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Hub
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import Observer, Source

_NO_WAY = ("hub.unreachable", "hub.unavailable")


def membership_of(params: t.Mapping[str, t.Any]) -> Membership | None:
    """The host's part, as the controller told it; None where there is none (yet). Raises FleetError."""
    told = params["membership"]
    return read_membership({**told, "secret": params["secret"] or ""}) if told else None


def check(params: t.Mapping[str, t.Any]) -> None:
    """Raises FleetError for options that do not go together."""
    if params["engine"] != "native":
        raise FleetError(
            "artifact.bad_option",
            f"engine is {params['engine']} and distribution {params['distribution']}",
            "engine native, as the official client cannot fetch from other hosts",
            "Set engine to native, or distribution to direct",
        )
    if not 1 <= params["peer_port"] <= 65535:
        raise FleetError("artifact.bad_option", f"peer_port is {params['peer_port']}", "1 to 65535", "Correct it")
    if not params["address"]:
        raise FleetError(
            "artifact.bad_option",
            f"distribution is {params['distribution']} and address is not set",
            "the address at which the other hosts of the fleet reach this one",
            "Set address (vllm_address)",
        )


def run_mark(membership: Membership) -> str:
    """What tells one run from another without telling its secret."""
    return hashlib.sha256(membership.secret.encode()).hexdigest()[:16]


# --- the look --------------------------------------------------------------------------------------------------------


class _Notebook:
    """A hub that is not waited for, and that remembers what it answered."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.resolution: Resolution | None = None
        self.rows: list[dict[str, t.Any]] | None = None

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution:
        # Others may know, so there is no point in patience.
        self.resolution = self._hub.resolve(model, revision, patient=False)
        return self.resolution

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, t.Any]]:
        self.rows = self._hub.list_rows(model, resolution)
        return self.rows

    def source(self, model: str, resolution: Resolution) -> Source:
        return self._hub.source(model, resolution)


def look(piece: Piece) -> dict[str, t.Any] | None:
    """Settle a piece if a look can, and say what the fleet has to know of it: a ``Look`` of ``_swarm_fleet``. None for
    one that nobody can help."""
    notebook = _Notebook(piece.hub())
    piece.attempt(lambda one: _artifact.settled(one.request, notebook))
    request, entry = piece.request, piece.entry
    said: dict[str, t.Any] = {
        "model": request.model,
        "revision": request.revision,
        "include": list(request.include),
        "exclude": list(request.exclude),
        "allow_pickle": request.allow_pickle,
        "complete": False,
    }
    if entry is not None and not entry["failed"]:
        return {**said, "complete": True, "commit": entry["commit"], "files": entry["files"], "missing": 0}
    if entry is not None and entry.get("code") not in _NO_WAY:
        return None
    # The hub may be out of this host's reach, and not of that of all.
    piece.entry = None
    parts = _staging.parts_on_disk(_staging.locate(request.path))
    try:
        if notebook.resolution is None:
            return {**said, "parts": sum(parts.values())}
        rows = notebook.rows or notebook.list_rows(request.model, notebook.resolution)
        entries = _manifest.entries_from_rows(rows, request.include, request.exclude)
        entries, _left_out = _manifest.without_pickles(entries, request.allow_pickle)
    except FleetError:
        return {**said, "parts": sum(parts.values())}
    sizes = {item.sha256: item.size for item in entries}
    return {
        **said,
        "commit": notebook.resolution.commit,
        "warnings": list(notebook.resolution.warnings),
        "rows": list(short_rows(rows)),
        "missing": sum(max(0, size - parts.get(sha256, 0)) for sha256, size in sizes.items()),
    }


def vet(pieces: t.Sequence[Piece], membership: Membership) -> tuple[Membership | None, list[str]]:
    """The part without what this host's own hub contradicts, and what a person should know of that. Where the hosts
    were told of different commits, the one that the fleet settled on may be the word of a single host."""
    refused, warnings = [], []
    for piece in pieces:
        pinned = _pinned(piece, membership)
        why = _contradiction(piece.hub(), pinned) if pinned is not None and pinned.doubtful else ""
        if pinned is not None and why:
            refused.append(pinned)
            warnings.append(
                f"{pinned.model} at revision {pinned.revision}: the hosts were told of different commits, and of "
                f"{pinned.commit}, which the fleet settled on, {why}. This host does not believe the others, and asks "
                "the hub itself."
            )
    if not refused:
        return membership, []
    kept = tuple(pinned for pinned in membership.artifacts if pinned not in refused)
    return (dataclasses.replace(membership, artifacts=kept) if kept else None), warnings


def _contradiction(hub: Hub, pinned: Pinned) -> str:
    """What this host's hub says against it; empty where it says the same, or cannot be asked."""
    try:
        hub.resolve(pinned.model, pinned.revision, patient=False)
        rows = hub.list_rows(pinned.model, Resolution(pinned.revision, pinned.commit))
    except FleetError as exc:
        return "" if exc.code in _NO_WAY else f"the hub says to this host: {exc.seen.rstrip('.')}"
    return "" if contents(rows) == contents(pinned.rows) else "the hub lists other files to this host"


def settle(piece: Piece, membership: Membership) -> None:
    """Settle a piece if a look can; what the fleet agreed on is not asked of the hub."""
    pinned = _pinned(piece, membership)
    piece.attempt(lambda one: _artifact.settled(one.request, PinnedHub(one.hub(), pinned)))


def _pinned(piece: Piece, membership: Membership) -> Pinned | None:
    return membership.find(piece.request.model, piece.request.revision, piece.request.include, piece.request.exclude)


# --- in the job ------------------------------------------------------------------------------------------------------


class SwarmCompanion(Companion):
    """Gives the other hosts what this one has, from the first piece on, and takes from them."""

    def __init__(self, membership: Membership, pieces: t.Sequence[Piece], bandwidth: int) -> None:
        self._membership, self._pieces, self._bandwidth = membership, pieces, bandwidth
        self._swarm: Swarm | None = None
        self._notes: t.Callable[[], list[str]] = list

    def order(self, pieces: t.Sequence[Piece]) -> list[Piece]:
        """As every other host has it, so that nobody waits for one that is at something else."""
        ranks = {id(pinned): rank for rank, pinned in enumerate(self._membership.artifacts)}
        last = len(ranks)
        return sorted(pieces, key=lambda piece: ranks.get(id(_pinned(piece, self._membership)), last))

    def before(self, pieces: t.Sequence[Piece], monitor: Monitor) -> None:
        hub = self._pieces[0].hub()
        self._swarm = Swarm(self._membership, hub, monitor, self._bandwidth)
        self._notes = lambda: list(monitor.snapshot()["notes"])
        self._swarm.start()
        for piece in self._pieces:
            self._swarm.offer(piece.path)

    def hub(self, piece: Piece, hub: Hub) -> Hub:
        return self._swarm.hub(piece.request, hub) if self._swarm is not None else hub

    def observer(self, piece: Piece) -> Observer | None:
        return self._swarm.shelf if self._swarm is not None else None

    def ended(self, piece: Piece) -> None:
        if self._swarm is None:
            return
        self._swarm.offer(piece.path)
        if (piece.entry or {}).get("failed"):
            self._swarm.abandon(piece.request)

    def result(self) -> dict[str, t.Any]:
        if self._swarm is None:
            return {}
        return {"distribution": self._swarm.report(), "warnings": self._notes()}

    def after(self) -> float:
        return TOTAL_SECONDS if self._swarm is not None and self._swarm.serving else 0.0

    def over(self) -> bool:
        return self._swarm is None or self._swarm.silence >= IDLE_SECONDS

    def close(self) -> None:
        if self._swarm is not None:
            self._swarm.close()
