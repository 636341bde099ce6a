# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From what every host of a play saw when it looked, to what each of them is told for a run. Pure, on the controller.

Each host's worker computes the same from the same looks, so nothing has to be handed around but the secret.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    Chain,
    HostState,
    Membership,
    Pinned,
    chains,
    piece_size,
)

Look = t.Mapping[str, t.Any]
"""What a host said: its ``address``, and under ``artifacts`` for each what is wanted (``model``, ``revision``,
``include``, ``exclude``, ``allow_pickle``) and what there is: ``complete``, ``commit``, ``missing`` (bytes), ``rows``
(the hub's listing, where it was asked) or ``files`` (of a complete artifact), and ``warnings`` of the hub."""


@dataclass(frozen=True)
class _Listing:
    commit: str | None
    rows: tuple[dict[str, t.Any], ...]
    warnings: tuple[str, ...] = ()


def memberships(
    looks: t.Mapping[str, Look], mode: str, seed: str | None, port: int, secret: str
) -> dict[str, Membership]:
    """What each host is told that has a part; empty where nobody lacks anything. ``looks`` in the order of the play."""
    wanted: dict[str, t.Mapping[str, t.Any]] = {}
    for look in looks.values():
        for artifact in look["artifacts"]:
            wanted.setdefault(_key(artifact), artifact)
    agreed = {key: _agree(artifact, looks, seed) for key, artifact in wanted.items()}
    states = [_state(name, look, agreed) for name, look in looks.items()]
    found_chains = [chain for chain in chains(states, seed) if len(chain.hosts) > 1]
    if not found_chains:
        return {}
    piece = piece_size(max(sum(state.missing.values()) for state in states))
    return {
        name: _membership(name, found_chains, wanted, agreed, looks, mode, port, secret, piece)
        for name in looks
        if any(name in chain.hosts for chain in found_chains)
    }


def _state(name: str, look: Look, agreed: t.Mapping[str, _Listing | None]) -> HostState:
    missing, blind = {}, set()
    for item in look["artifacts"]:
        listing = agreed[_key(item)]
        if listing is not None:
            missing[_key(item)] = _missing(item, listing)
            if not item.get("rows"):
                blind.add(_key(item))
    return HostState(name, missing, frozenset(blind))


def _membership(
    name: str,
    found: t.Sequence[Chain],
    wanted: t.Mapping[str, t.Mapping[str, t.Any]],
    agreed: t.Mapping[str, _Listing | None],
    looks: t.Mapping[str, Look],
    mode: str,
    port: int,
    secret: str,
    piece: int,
) -> Membership:
    mine = [chain for chain in found if name in chain.hosts]
    artifacts = []
    for chain in mine:
        artifact, listing = wanted[chain.key], agreed[chain.key]
        if listing is None:
            raise AssertionError("a chain is of what was agreed on")
        artifacts.append(
            Pinned(
                model=str(artifact["model"]),
                revision=str(artifact["revision"]),
                commit=listing.commit,
                rows=listing.rows,
                chain=chain.hosts,
                complete=chain.complete,
                include=tuple(artifact["include"]),
                exclude=tuple(artifact["exclude"]),
                warnings=listing.warnings,
            )
        )
    known = {name, *(host for chain in mine for host in chain.hosts)}
    addresses = {host: str(looks[host]["address"]) for host in looks if host in known}
    return Membership(name, secret, addresses, tuple(artifacts), mode=mode, port=port, piece=piece)


def _key(artifact: t.Mapping[str, t.Any]) -> str:
    """One artifact, whichever host wants it: what is selected of a model at a revision."""
    parts = [artifact["model"], artifact["revision"], *artifact["include"], "\n", *artifact["exclude"]]
    return "\n".join(str(part) for part in parts)


def _agree(artifact: t.Mapping[str, t.Any], looks: t.Mapping[str, Look], seed: str | None) -> _Listing | None:
    """What the fleet takes the revision to be: the word of the seed, else of the first host that asked the hub for the
    files, else of a host that has the artifact complete. None where no host can tell."""
    names = sorted(looks, key=lambda name: name != seed)  # stable: the play's order otherwise
    model = (artifact["model"], artifact["revision"])
    for name in names:
        for item in looks[name]["artifacts"]:
            if (item["model"], item["revision"]) == model and item.get("rows"):
                return _Listing(item.get("commit"), tuple(item["rows"]), tuple(item.get("warnings") or ()))
    for name in names:
        for item in looks[name]["artifacts"]:
            if _key(item) == _key(artifact) and item["complete"] and item.get("files"):
                return _Listing(item.get("commit"), tuple(_as_row(file) for file in item["files"]))
    return None


def _as_row(file: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"Path": file["path"], "Type": "blob", "Size": file["size"], "Sha256": file["sha256"]}


def _missing(artifact: t.Mapping[str, t.Any], listing: _Listing) -> int:
    """Bytes that the host lacks of what was agreed on; 0 where it has all of it."""
    if artifact["complete"] and _same(artifact, listing):
        return 0
    if not artifact["complete"] and artifact.get("rows"):
        return max(1, int(artifact["missing"]))
    total = sum(int(row.get("Size") or 0) for row in listing.rows)
    return max(1, total - int(artifact.get("parts") or 0))


def _same(artifact: t.Mapping[str, t.Any], listing: _Listing) -> bool:
    if listing.commit is not None and artifact.get("commit") is not None:
        return bool(listing.commit == artifact["commit"])
    try:
        entries = _manifest.entries_from_rows(listing.rows, artifact["include"], artifact["exclude"])
        entries, _left_out = _manifest.without_pickles(entries, bool(artifact.get("allow_pickle")))
    except FleetError:
        return False
    files = artifact.get("files") or []
    there = [_manifest.Entry(file["path"], file["size"], file["sha256"]) for file in files]
    return _manifest.digest_of(entries) == _manifest.digest_of(there)
