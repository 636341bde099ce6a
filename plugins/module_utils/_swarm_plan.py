# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Who gets which model artifact from whom, decided once for the fleet. No I/O.

For each artifact the hosts stand in a chain. Those that have it complete come first; every other host gets the pieces
from the host before it as soon as that has them, so all links carry bytes at the same time, each byte once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, is_directory, row_path

DEFAULT_PORT = 8791
SWARM, SEED = "swarm", "seed"
MODES = (SWARM, SEED)
"""``swarm``: each host from the one before it. ``seed``: each host from the first one."""

SPARES = 1
"""How many hosts that have an artifact complete stand by beside the one that gives it."""

_MIB = 1024 * 1024
_PIECES = ((1024 * _MIB, _MIB), (0, 4 * _MIB))
_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROW = ("Type", "Size", "Sha256")
_SECRET = re.compile(r"[0-9a-f]{64}")


# --- pieces ----------------------------------------------------------------------------------------------------------


def piece_size(total: int) -> int:
    """Bytes of a piece in a run that moves ``total`` bytes to a host: a host can give a piece once it has all of it,
    so small ones keep the chain short, and large ones save requests."""
    for limit, size in _PIECES:
        if limit == 0 or total <= limit:
            return size
    raise AssertionError(total)


def piece_count(size: int, piece: int) -> int:
    return -(-size // piece)


def piece_range(index: int, size: int, piece: int) -> tuple[int, int]:
    """The bytes ``[start, end)`` of one piece; the last one is shorter."""
    return index * piece, min((index + 1) * piece, size)


def hub_connections(total: int, piece: int, most: int) -> int | None:
    """How many pieces the first host gets from the hub at a time; None leaves it to the transfer.

    They come side by side, so the host behind waits for about as many before it gets the first: in a short transfer
    that is no small part of it.
    """
    fitting = piece_count(total, piece) // 32
    return None if fitting >= most else max(min(4, most), fitting)


# --- the chain -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostState:
    """What one host lacks of each artifact that it shall have: bytes by the artifact's key, 0 for none. ``blind`` are
    those of which it could not ask the hub."""

    name: str
    missing: Mapping[str, int]
    blind: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Chain:
    """The hosts of one artifact in order; the first ``complete`` of them have all of it already."""

    key: str
    hosts: tuple[str, ...]
    complete: int

    @property
    def bytes_matter(self) -> bool:
        """Whether any host of it has to fetch."""
        return len(self.hosts) > self.complete


def chains(states: Sequence[HostState], seed: str | None = None) -> tuple[Chain, ...]:
    """The chains of all artifacts that somebody lacks, in the order in which every host shall go through them: what
    most hosts lack comes first, so that those who lack little do not wait for those who lack much.

    Of the hosts that have an artifact, one gives it and ``SPARES`` more stand by. The others follow: who has a way to
    the hub, of those ``seed`` first, then who lacks least, so that what earlier runs left is not asked of the hub
    again, then who has least to do besides, so that nobody waits for one that is at something else; then as in
    ``states``.
    """
    keys = sorted({key for state in states for key in state.missing})
    found = [chain for chain in (_chain(key, states, seed) for key in keys) if chain.bytes_matter]
    lacking = {key: sum(state.missing.get(key, 0) for state in states) for key in keys}
    return tuple(
        sorted(found, key=lambda chain: (chain.complete - len(chain.hosts), -lacking[chain.key], chain.key)),
    )


def _chain(key: str, states: Sequence[HostState], seed: str | None) -> Chain:
    ranked = [(state.missing[key], state.name) for state in states if key in state.missing]
    complete = [name for missing, name in ranked if missing == 0]
    # The nearest to those in need gives, so the preferred one comes last.
    complete.sort(key=lambda name: name == seed)
    complete = complete[-1 - SPARES :]
    blind = {state.name for state in states if key in state.blind}
    load = {state.name: sum(state.missing.values()) for state in states}
    needy = [item for item in ranked if item[0] > 0]
    # The first one has nobody but the hub to ask, so not even the preferred one can be it without a way there.
    needy.sort(key=lambda item: (item[1] in blind, item[1] != seed, item[0], load[item[1]]))
    return Chain(key, (*complete, *(name for _missing, name in needy)), len(complete))


def preference(chain: Sequence[str], complete: int, name: str, mode: str) -> tuple[str, ...]:
    """Whom ``name`` asks for pieces, first choice first: the host before it, then the one before that."""
    if name not in chain:
        return ()
    before = tuple(reversed(chain[: chain.index(name)]))
    if mode == SWARM:
        return before
    sources = chain[: max(complete, 1)]
    return tuple(peer for peer in before if peer in sources)


# --- what a host is told ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pinned:
    """One artifact as the fleet agreed on it: the hub's whole listing of the model at one commit, and the chain of
    the hosts that shall have what ``include`` and ``exclude`` select of it. ``doubtful``: not all hosts were told of
    that commit, so one that can ask the hub compares before it goes along."""

    model: str
    revision: str
    commit: str | None
    rows: tuple[Mapping[str, Any], ...]
    chain: tuple[str, ...] = ()
    complete: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    doubtful: bool = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The files that can be known by their content, whatever is selected; as the listing has them, not judged."""
        found = []
        for row in self.rows:
            size, sha256 = row.get("Size"), str(row.get("Sha256") or "").strip().lower()
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                continue
            if not is_directory(row) and _SHA256.fullmatch(sha256):
                found.append(Entry(str(row_path(row)), size, sha256))
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "revision": self.revision,
            "commit": self.commit,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "warnings": list(self.warnings),
            "doubtful": self.doubtful,
            "chain": list(self.chain),
            "complete": self.complete,
            "rows": [dict(row) for row in self.rows],
        }


def short_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """A listing without what nobody reads: it is sent to every host."""
    return tuple({"Path": row_path(row), **{key: row[key] for key in _ROW if key in row}} for row in rows)


def contents(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[object, str]]:
    """What a listing says: size and SHA-256 by path. Two listings of one commit say the same."""
    return {
        str(row_path(row)): (row.get("Size"), str(row.get("Sha256") or "").strip().lower())
        for row in rows
        if not is_directory(row)
    }


@dataclass(frozen=True)
class Membership:
    """What one host needs to know to take part in one run. ``secret`` is the run's: 64 hexadecimal digits.

    ``addresses`` has every host of the run, this one included. ``bind`` is where this host listens, its own address
    unless said otherwise.
    """

    name: str
    secret: str = field(repr=False)
    addresses: Mapping[str, str]
    artifacts: tuple[Pinned, ...]
    mode: str = SWARM
    port: int = DEFAULT_PORT
    bind: str = ""
    piece: int = _MIB

    @property
    def serves(self) -> bool:
        """Whether anybody asks this host for anything."""
        return any(
            self.name in preference(pinned.chain, pinned.complete, other, self.mode)
            for pinned in self.artifacts
            for other in pinned.chain
        )

    def find(self, model: str, revision: str, include: Sequence[str], exclude: Sequence[str]) -> Pinned | None:
        """The artifact of the run that this is, if this host has a place in its chain."""
        wanted = (model, revision, tuple(include), tuple(exclude))
        for pinned in self.artifacts:
            known = (pinned.model, pinned.revision, pinned.include, pinned.exclude)
            if known == wanted and self.name in pinned.chain:
                return pinned
        return None

    def as_dict(self) -> dict[str, Any]:
        """As it is handed to the host. It holds the secret."""
        return {
            "format": _FORMAT,
            "name": self.name,
            "secret": self.secret,
            "mode": self.mode,
            "port": self.port,
            "bind": self.bind,
            "piece": self.piece,
            "addresses": dict(self.addresses),
            "artifacts": [pinned.as_dict() for pinned in self.artifacts],
        }


def read_membership(document: object) -> Membership:
    """Read what :meth:`Membership.as_dict` gave. Raises FleetError ``swarm.bad_membership``."""
    try:
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        membership = Membership(
            name=str(document["name"]),
            secret=str(document["secret"]),
            mode=str(document["mode"]),
            port=int(document["port"]),
            bind=str(document["bind"]),
            piece=int(document["piece"]),
            addresses={str(name): str(address) for name, address in document["addresses"].items()},
            artifacts=tuple(_read_pinned(item) for item in document["artifacts"]),
        )
        _check(membership)
    except (AttributeError, KeyError, TypeError, ValueError, FleetError) as exc:
        # Of a KeyError only the name of what is missing is shown; values may hold the secret.
        said = f"it has no {exc}" if isinstance(exc, KeyError) else str(exc)
        raise FleetError(
            "swarm.bad_membership",
            f"What this host was told about the run of the fleet cannot be used: {said}",
            "what the controller's part of the same version of the collection writes",
            "Run the playbook again, with one version of the collection",
        ) from exc
    return membership


def _read_pinned(item: Mapping[str, Any]) -> Pinned:
    rows, commit = item["rows"], item["commit"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a listing that is none")
    return Pinned(
        model=str(item["model"]),
        revision=str(item["revision"]),
        commit=None if commit is None else str(commit),
        rows=tuple(rows),
        chain=tuple(str(name) for name in item["chain"]),
        complete=int(item["complete"]),
        include=tuple(str(pattern) for pattern in item["include"]),
        exclude=tuple(str(pattern) for pattern in item["exclude"]),
        warnings=tuple(str(text) for text in item["warnings"]),
        doubtful=bool(item["doubtful"]),
    )


def _check(membership: Membership) -> None:
    if not _SECRET.fullmatch(membership.secret):
        raise ValueError("the secret is not one")
    if membership.mode not in MODES:
        raise ValueError(f"mode is {membership.mode!a}")
    if not 1 <= membership.port <= 65535:
        raise ValueError(f"port is {membership.port}")
    if not 4096 <= membership.piece <= 64 * _MIB:
        raise ValueError(f"a piece of {membership.piece} bytes")
    named = {membership.name}.union(*(pinned.chain for pinned in membership.artifacts))
    strangers = sorted(named - set(membership.addresses))
    if strangers:
        raise ValueError(f"there is no address of {', '.join(ascii(name) for name in strangers)}")
    for pinned in membership.artifacts:
        if len(set(pinned.chain)) != len(pinned.chain) or not 0 <= pinned.complete <= len(pinned.chain):
            raise ValueError(f"the chain of {pinned.model!a} is none")


def normal_address(text: str) -> str:
    """An IP address in its one spelling, IPv4 inside IPv6 as IPv4, without a zone. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
