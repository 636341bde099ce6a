# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From what every host of a play saw when it looked, to what each of them is told for a run. Pure, on the controller.

Each host's worker computes the same from the same looks, so nothing has to be handed around but the secret.
"""

from __future__ import annotations

import itertools
import typing as t
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    Chain,
    HostState,
    Membership,
    Pinned,
    chains,
    contents,
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
    doubtful: bool = False


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
                doubtful=listing.doubtful,
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
    """What the fleet takes the revision to be: the word of the seed, else of most of the hosts that asked the hub for
    the files (a branch may move meanwhile), else of a host that has the artifact complete. None where no host can tell,
    or where two contradict each other."""
    if _dispute(artifact, looks):
        return None
    names = sorted(looks, key=lambda name: name != seed)  # stable: the play's order otherwise
    items = [(name, item) for name in names for item in looks[name]["artifacts"] if _same_model(item, artifact)]
    asked = [(name, item) for name, item in items if item.get("rows")]
    if asked:
        votes = Counter(item.get("commit") for _name, item in asked)
        first_name, first = asked[0]
        if first_name != seed:
            first = max((item for _name, item in asked), key=lambda item: votes[item.get("commit")])
        rows = tuple(first["rows"])
    else:
        found = [item for _name, item in items if _key(item) == _key(artifact) and item["complete"]]
        nothing: t.Mapping[str, t.Any] = {}
        first = next((item for item in found if item.get("files")), nothing)
        rows = tuple(_as_row(file) for file in first.get("files") or ())
    if not rows:
        return None
    doubtful = any("commit" in item and item["commit"] != first.get("commit") for _name, item in items)
    return _Listing(first.get("commit"), rows, tuple(first.get("warnings") or ()), doubtful)


def _dispute(artifact: t.Mapping[str, t.Any], looks: t.Mapping[str, Look]) -> tuple[list[str], list[str]] | None:
    """The hosts that say one thing of a commit and those that say another: one of them does not tell the truth."""
    said: dict[str | None, dict[tuple[t.Any, ...], list[str]]] = {}
    for name, look in looks.items():
        for item in look["artifacts"]:
            if not _same_model(item, artifact):
                continue
            commit, rows = item.get("commit"), item.get("rows")
            if rows:
                claim = (True, tuple(sorted(contents(rows).items(), key=str)))
            elif item.get("files") and commit is not None:
                claim = (False, tuple(sorted(contents(map(_as_row, item["files"])).items(), key=str)))
            else:
                continue
            names = said.setdefault(commit, {}).setdefault(claim, [])
            if name not in names:
                names.append(name)
    for claims in said.values():
        for one, other in itertools.combinations(claims, 2):
            if _contradict(one, other):
                return claims[one], claims[other]
    return None


def _contradict(one: tuple[t.Any, ...], other: tuple[t.Any, ...]) -> bool:
    """Whether two claims, (of everything or of a selection, the files), cannot both be true."""
    (whole, files), (other_whole, other_files) = (one[0], dict(one[1])), (other[0], dict(other[1]))
    if any(files[path] != other_files[path] for path in files.keys() & other_files.keys()):
        return True
    return bool((whole and other_files.keys() - files.keys()) or (other_whole and files.keys() - other_files.keys()))


def _same_model(item: t.Mapping[str, t.Any], other: t.Mapping[str, t.Any]) -> bool:
    return bool((item["model"], item["revision"]) == (other["model"], other["revision"]))


# --- what a person should know ---------------------------------------------------------------------------------------


def doubts(looks: t.Mapping[str, Look], seed: str | None, told: t.Mapping[str, Membership]) -> list[str]:
    """Why the fleet does not do what it was asked to do, a sentence for each reason."""
    said: dict[str, None] = {}
    if seed and told and seed not in looks:
        said[f"The seed, {seed!a}, is none of the hosts that take part in this run. Another host asks the hub."] = None
    wanted = {_key(item): item for look in looks.values() for item in look["artifacts"]}
    for key, artifact in wanted.items():
        lacking = {
            name
            for name, look in looks.items()
            if any(_key(item) == key and not item["complete"] for item in look["artifacts"])
        }
        if not lacking:
            continue
        what = f"{artifact['model']} at revision {artifact['revision']}"
        dispute = _dispute(artifact, looks)
        if dispute is not None:
            one, other = (_some(names) for names in dispute)
            said[
                f"{what}: {one} and {other} say different things of the files of one commit. One of them does not tell "
                "the truth, or they ask different hubs. It is not shared in this run: every host asks the hub itself."
            ] = None
        elif len(lacking) > 1 and _agree(artifact, looks, seed) is None:
            said[
                f"{what}: none of the hosts can ask the hub for it, and none has it complete. It cannot be shared in "
                "this run: every host asks the hub itself."
            ] = None
        elif (
            seed is not None
            and seed in lacking
            and any(_asks(looks[name], key) for name in lacking)
            and not _asks(looks[seed], key)
        ):
            said[f"{what}: the seed, {seed!a}, cannot ask the hub. Another host does."] = None
    return list(said)


def _asks(look: Look, key: str) -> bool:
    return any(_key(item) == key and item.get("rows") for item in look["artifacts"])


def _some(names: t.Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


# --- what a host said ------------------------------------------------------------------------------------------------


def read_look(document: object) -> Look:
    """What a host said, which need not be a look at all. Raises ValueError: one host must not stop the others."""
    look = _mapping(document, "it")
    return {
        "address": _text(look.get("address"), "address"),
        "open": bool(look.get("open")),
        "artifacts": [_read_artifact(item) for item in _list(look.get("artifacts"), "artifacts")],
    }


def _read_artifact(document: object) -> dict[str, t.Any]:
    item = _mapping(document, "an artifact")
    found: dict[str, t.Any] = {key: _text(item.get(key), key) for key in ("model", "revision")}
    for key in ("include", "exclude", "warnings"):
        found[key] = [_text(text, key) for text in _list(item.get(key, []), key)]
    for key in ("complete", "allow_pickle"):
        found[key] = bool(item.get(key))
    for key in ("missing", "parts"):
        found[key] = _count(item.get(key, 0), key)
    if "commit" in item:
        found["commit"] = None if item["commit"] is None else _text(item["commit"], "commit")
    if item.get("rows"):
        found["rows"] = [_read_row(row) for row in _list(item["rows"], "rows")]
    if item.get("files"):
        files = [_mapping(file, "a file") for file in _list(item["files"], "files")]
        found["files"] = [
            {
                "path": _text(file.get("path"), "path"),
                "size": _count(file.get("size"), "size"),
                "sha256": _text(file.get("sha256"), "sha256"),
            }
            for file in files
        ]
    return found


def _read_row(document: object) -> dict[str, t.Any]:
    row = _mapping(document, "a row")
    found: dict[str, t.Any] = {"Path": _text(row.get("Path"), "Path")}
    for key in ("Type", "Sha256"):
        if row.get(key) is not None:
            found[key] = _text(row[key], key)
    if row.get("Size") is not None:
        found["Size"] = _count(row["Size"], "Size")
    return found


def _mapping(value: object, what: str) -> t.Mapping[t.Any, t.Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is no mapping")
    return value


def _list(value: object, what: str) -> list[t.Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text")
    return str(value)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what} is no number of bytes")
    return int(value)


# --- small -----------------------------------------------------------------------------------------------------------


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
