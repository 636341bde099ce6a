# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a mirror has on disk: a hub's answers as whole files, so that a plain web server can serve them. No I/O.

::

    ROOT/models/<owner>/<name>/
        revisions.json                          the answer of .../revisions
        info.json, openapi.json                 the answers about the model itself
        refs/<branch or tag>                    -> ../commits/<40 hex>
        commits/<40 hex>/files.json             the answer of .../repo/files, recursive
        commits/<40 hex>/listings/.direct.json  the same for the top directory alone
        commits/<40 hex>/listings/<dir>/        .all.json and .direct.json, of each directory of the model
        commits/<40 hex>/commit.json            one entry of .../commits
        commits/<40 hex>/commits.json           the answer of .../commits
        commits/<40 hex>/tree/<path>            the bytes
        commits/<40 hex>/stats.json             when each file was verified; not served

The model hub of the tests has the same layout. A commit keeps the id that the hub gave it, so a revision that is pinned
means the same everywhere.
"""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, ancestors, check_paths
from ansible_collections.gpufleet.vllm.plugins.module_utils._safefs import split

MODELS = "models"
COMMITS = "commits"
REFS = "refs"
TREE = "tree"
REVISIONS = "revisions.json"
INFO = "info.json"
OPENAPI = "openapi.json"
FILES = "files.json"
COMMIT = "commit.json"
COMMITS_ANSWER = "commits.json"
STATS = "stats.json"
LISTINGS = "listings"
ALL = ".all.json"
DIRECT = ".direct.json"

LFS_THRESHOLD = 1 << 20
"""Files of at least this many bytes are shown as LFS objects, as git hosts keep them."""

DATE = 1735689600
"""The date of every commit (epoch seconds): a manifest does not tell, and equal commits are to give equal answers."""

_REQUEST_ID = "00000000-0000-0000-0000-000000000000"
_AUTHOR = "model-hub"
_TITLE = "import"
_COMMIT_ID = re.compile(r"[0-9a-f]{40}\Z")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


# --- names -----------------------------------------------------------------------------------------------------------


def is_commit(revision: str) -> bool:
    """Whether ``revision`` has the form of a commit id."""
    return _COMMIT_ID.match(revision) is not None


def is_part(name: str) -> bool:
    """Whether ``name`` can be an owner, a model's name, a branch or a tag here."""
    return _PART.match(name) is not None and len(name) <= 255


def check_model(model: str) -> str:
    """Return ``model`` when it has the form ``owner/name``."""
    parts = model.split("/")
    if len(parts) != 2 or not all(map(is_part, parts)):
        raise FleetError(
            "mirror.bad_model",
            f"model {model!a} is not a model id",
            "owner/name of letters, digits, '.', '_' and '-'",
            "Copy the id from the model's page, for example Qwen/Qwen2.5-VL-7B-Instruct",
        )
    return model


def check_revision(revision: str) -> str:
    """Return ``revision`` when a mirror can serve it: it becomes one name on disk and one word in a URL."""
    if not is_part(revision):
        raise FleetError(
            "mirror.bad_revision",
            f"revision {revision!a} cannot be served by a mirror",
            "a branch or tag of letters, digits, '.', '_' and '-', or a commit of 40 hexadecimal digits",
            "Use the commit that the branch or tag stands for",
        )
    return revision


def check_entries(entries: Sequence[Entry]) -> None:
    """Raise for what a mirror cannot serve, beyond what no artifact may hold."""
    check_paths(entry.path for entry in entries)
    for path in directories(entries):
        if split(path)[1] in (ALL, DIRECT):
            raise FleetError(
                "mirror.reserved_name",
                f"the model has a directory {path!a}",
                f"no directory named {ALL} or {DIRECT}: a mirror keeps its listings under these names",
                "Leave the directory out with exclude",
            )


# --- answers ---------------------------------------------------------------------------------------------------------


def envelope(data: Any) -> dict[str, Any]:
    """``data`` as a successful answer of the ``/api/v1`` surface."""
    return {"Code": 200, "Data": data, "Message": "success", "RequestId": _REQUEST_ID, "Success": True}


def dump(value: Any) -> bytes:
    """An answer as it lies on disk; equal values give equal bytes."""
    return (json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n").encode()


def directories(entries: Iterable[Entry]) -> list[str]:
    """Every directory of the model, sorted, without its top."""
    return sorted({parent for entry in entries for parent in ancestors(entry.path)})


def rows(entries: Sequence[Entry], commit: str) -> list[dict[str, Any]]:
    """The recursive listing: blobs and trees in path order."""
    found = {path: _row(path, "tree", "16384", commit, 0, "", False) for path in directories(entries)}
    for entry in entries:
        lfs = entry.size >= LFS_THRESHOLD or entry.path.endswith(".safetensors")
        found[entry.path] = _row(entry.path, "blob", "33188", commit, entry.size, entry.sha256, lfs)
    return [found[path] for path in sorted(found)]


def _row(path: str, kind: str, mode: str, commit: str, size: int, sha256: str, lfs: bool) -> dict[str, Any]:
    return {
        "CommitId": commit,
        "CommitMessage": _TITLE,
        "CommittedDate": DATE,
        "CommitterName": _AUTHOR,
        "InCheck": False,
        "IsLFS": lfs,
        "Mode": mode,
        "Name": split(path)[1],
        "Path": path,
        "Revision": commit,
        "Sha256": sha256,
        "Size": size,
        "Type": kind,
    }


def commit_answers(entries: Sequence[Entry], commit: str) -> dict[str, bytes]:
    """The JSON files of a commit, by path below its directory."""
    every = rows(entries, commit)
    about = {
        "CommittedDate": DATE,
        "CommitterName": _AUTHOR,
        "Id": commit,
        "ParentIds": [],
        "ShortId": commit[:8],
        "Title": _TITLE,
    }
    answers = {
        FILES: _listing(every),
        COMMIT: dump(about),
        COMMITS_ANSWER: dump(envelope({"Commit": [about], "TotalCount": 1})),
    }
    below: dict[str, list[dict[str, Any]]] = {path: [] for path in directories(entries)}
    direct: dict[str, list[dict[str, Any]]] = {path: [] for path in ["", *below]}
    for row in every:
        direct[split(row["Path"])[0]].append(row)
        for parent in ancestors(row["Path"]):
            below[parent].append(row)
    answers[f"{LISTINGS}/{DIRECT}"] = _listing(direct[""])
    for path, found in below.items():
        answers[f"{LISTINGS}/{path}/{ALL}"] = _listing(found)
        answers[f"{LISTINGS}/{path}/{DIRECT}"] = _listing(direct[path])
    return answers


def _listing(found: list[dict[str, Any]]) -> bytes:
    return dump(envelope({"Files": found, "IsVisual": 0, "LatestCommitter": {}}))


def entries_of(document: object) -> tuple[Entry, ...]:
    """The files of a ``files.json``. Raises ValueError for one that is not whole."""
    try:
        found = document["Data"]["Files"]  # type: ignore[index]
        entries = tuple(_entry(row) for row in found if row["Type"] == "blob")
        check_paths(entry.path for entry in entries)
    except (KeyError, TypeError, FleetError) as exc:
        raise ValueError(f"not a listing: {exc}") from exc
    return entries


def _entry(row: Mapping[str, Any]) -> Entry:
    entry = Entry(str(row["Path"]), int(row["Size"]), str(row["Sha256"]))
    if not _SHA256.match(entry.sha256) or entry.size < 0:
        raise ValueError(f"bad size or digest of {entry.path!a}")
    return entry


# --- revisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ref:
    """A branch or tag and its commit."""

    name: str
    commit: str
    tag: bool = False
    created: int = DATE


def revisions_answer(refs: Iterable[Ref]) -> bytes:
    """The answer of ``.../revisions``."""
    kinds: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for ref in sorted(refs, key=lambda item: item.name):
        kinds[ref.tag].append({"Revision": ref.name, "CreatedAt": ref.created, "CommitId": ref.commit})
    return dump(envelope({"RevisionMap": {"Branches": kinds[False], "Tags": kinds[True]}}))


def refs_of(document: object) -> dict[str, Ref]:
    """The refs of a ``revisions.json``, by name. Raises ValueError for one that is not whole."""
    found = {}
    try:
        kinds = document["Data"]["RevisionMap"]  # type: ignore[index]
        for kind in ("Branches", "Tags"):
            for row in kinds[kind]:
                ref = Ref(str(row["Revision"]), str(row["CommitId"]), kind == "Tags", int(row["CreatedAt"]))
                if not is_part(ref.name) or not is_commit(ref.commit):
                    raise ValueError(f"bad revision {ref.name!a}")
                found[ref.name] = ref
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not a list of revisions: {exc}") from exc
    return found


def model_answers(model: str, refs: Mapping[str, Ref], commits: Mapping[str, Sequence[Entry]]) -> dict[str, bytes]:
    """The JSON files of the model itself, in the order in which they are to be written: the revisions last."""
    owner, name = model.split("/")
    head = refs.get("master") or next((refs[name] for name in sorted(refs)), None)
    size = sum(entry.size for entry in commits.get(head.commit, ())) if head is not None else 0
    about = {"Name": name, "Path": owner, "Revision": "master", "Visibility": 5}
    openapi = {
        "id": model,
        "downloads": 0,
        "file_size": size,
        "tags": [],
        "private": False,
        "gated": False,
        "last_modified": email.utils.formatdate(DATE, usegmt=True),
    }
    return {
        INFO: dump(envelope(about)),
        OPENAPI: dump({"success": True, "request_id": _REQUEST_ID, "data": openapi}),
        REVISIONS: revisions_answer(refs.values()),
    }


# --- decisions -------------------------------------------------------------------------------------------------------


def united(model: str, commit: str, old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Entry, ...]:
    """The files of a commit of which two selections are known. A commit has one content: a difference is a fault."""
    found = {entry.path: entry for entry in old}
    for entry in new:
        if found.setdefault(entry.path, entry) != entry:
            raise FleetError(
                "mirror.commit_differs",
                f"{entry.path} of {model} at {commit} is SHA-256 {found[entry.path].sha256} on the mirror and "
                f"{entry.sha256} in the artifact",
                "one content of one commit",
                "Find out which of the two is the hub's, and remove the other: the commit from the mirror with state "
                "absent, or the artifact's directory",
            )
    entries = tuple(sorted(found.values(), key=lambda entry: entry.path))
    check_entries(entries)
    return entries


@dataclass(frozen=True)
class Kept:
    """What a prune leaves of a mirror: this name or commit of this model."""

    model: str
    revision: str
    commit: str | None


def doomed(
    model: str, refs: Mapping[str, Ref], commits: Iterable[str], keep: Sequence[Kept]
) -> tuple[list[str], list[str]]:
    """The refs and the commits of ``model`` that a prune removes; all of them when nothing of it is kept."""
    mine = [item for item in keep if item.model == model]
    names = {item.revision for item in mine}
    wanted = {item.commit for item in mine} | {item.revision for item in mine}
    wanted |= {ref.commit for ref in refs.values() if ref.name in names}
    return sorted(set(refs) - names), sorted(set(commits) - wanted)


def removed_with(
    refs: Mapping[str, Ref], commits: Iterable[str], revision: str | None
) -> tuple[list[str], list[str]] | None:
    """The refs and commits that go when ``revision`` goes: a commit with the names that mean it, a name with its
    commit unless another name means that too; None stands for all. The answer None: it is not here."""
    here = set(commits)
    if revision is None:
        return sorted(refs), sorted(here)
    if is_commit(revision):
        names = sorted(ref.name for ref in refs.values() if ref.commit == revision)
        return (names, [revision] if revision in here else []) if names or revision in here else None
    if revision not in refs:
        return None
    commit = refs[revision].commit
    needed = any(ref.commit == commit and ref.name != revision for ref in refs.values())
    return [revision], [] if needed or commit not in here else [commit]
