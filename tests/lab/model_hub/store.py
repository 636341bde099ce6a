# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hub's models on disk.

::

    ROOT/models/<owner>/<name>/
        revisions.json                          the answer of .../revisions
        info.json, openapi.json                 the answers about the model itself
        commits/<40 hex>/files.json             the answer of .../repo/files, recursive
        commits/<40 hex>/listings/.direct.json  the same for the top directory alone
        commits/<40 hex>/listings/<dir>/        .all.json and .direct.json, of each directory of the model
        commits/<40 hex>/commit.json            one entry of .../commits
        commits/<40 hex>/commits.json           the answer of .../commits
        commits/<40 hex>/tree/<path>            the bytes
        refs/<branch or tag>                    -> ../commits/<40 hex>

The JSON files are whole API answers, so that a plain web server can serve them as they lie: the role ``mirror`` does,
and its module writes the same layout. A commit never changes once it is there; only ``refs`` and ``revisions.json``
move, each by one rename.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

Row = dict[str, Any]

LFS_THRESHOLD = 1 << 20
"""Files of at least this many bytes are kept as LFS objects, as git hosts do."""

DEFAULT_DATE = 1735689600
"""Commit date (epoch seconds) when none is given: fixed, so that two imports of the same bytes are equal."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_CHUNK = 1 << 20


class StoreError(Exception):
    """The store cannot do what was asked; the text says what was seen and what to do."""


@dataclass(frozen=True)
class Added:
    """What an import did: the commit, whether anything changed, number of files and their bytes."""

    model: str
    commit: str
    changed: bool
    files: int
    bytes: int


@dataclass(frozen=True)
class _File:
    path: str
    size: int
    sha256: str


def envelope(data: Any, request_id: str = "00000000-0000-0000-0000-000000000000") -> dict[str, Any]:
    """``data`` as a successful answer of the ``/api/v1`` surface."""
    return {"Code": 200, "Data": data, "Message": "success", "RequestId": request_id, "Success": True}


def is_commit(revision: str) -> bool:
    """Whether ``revision`` has the form of a commit id (40 lower-case hex digits)."""
    return _COMMIT.match(revision) is not None


def is_model_id(model: str) -> bool:
    """Whether ``model`` has the form ``owner/name``."""
    parts = model.split("/")
    return len(parts) == 2 and all(_PART.match(part) for part in parts)


def add_model(
    root: Path,
    model: str,
    source: Path,
    *,
    branch: str = "master",
    tag: str | None = None,
    copy: bool = False,
    date: int = DEFAULT_DATE,
) -> Added:
    """Import the regular files under ``source`` as the head of ``branch``.

    The commit id follows from the content alone (paths, sizes, SHA-256), so importing the same directory again changes
    nothing. Files are hard-linked where the file system can; ``copy`` forces copies, for a source that is later edited
    in place. A ``.git`` directory in ``source`` is left out. Raises StoreError.
    """
    _check_names(model, branch, tag)
    files = _scan(source)
    commit = _commit_id(files)
    home = root / "models" / model
    (home / "commits").mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    with _locked(home / ".lock"):
        revisions = _read_revisions(home)
        _check_refs(model, revisions, branch, tag, commit)
        changed = False
        if not (home / "commits" / commit).is_dir():
            parent = _ref_target(home, branch)
            _write_commit(home, commit, parent, source, files, copy=copy, date=date)
            changed = True
        for kind, name in (("Branches", branch), ("Tags", tag)):
            if name is not None and _ref_target(home, name) != commit:
                _point(home, name, commit)
                changed = True
            if name is not None:
                changed |= _record(revisions[kind], name, commit, date)
        if changed or not (home / "revisions.json").is_file():
            _write_model(home, model, revisions)
            _write_json(home / "revisions.json", envelope({"RevisionMap": revisions}))
    return Added(model, commit, changed, len(files), sum(file.size for file in files))


class Store:
    """Read access to the models under ``root``; safe for concurrent use, and sees imports made meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cache: dict[Path, tuple[tuple[int, int, int], Any]] = {}
        self._lock = threading.Lock()

    def has(self, model: str) -> bool:
        """Whether ``model`` (``owner/name``) is here."""
        return is_model_id(model) and (self._home(model) / "revisions.json").is_file()

    def resolve(self, model: str, revision: str) -> str | None:
        """The commit a branch, tag or commit id stands for, or None."""
        home = self._home(model)
        if is_commit(revision):
            return revision if (home / "commits" / revision / "files.json").is_file() else None
        return _ref_target(home, revision) if _PART.match(revision) else None

    def revisions(self, model: str) -> dict[str, list[Row]]:
        """The API's RevisionMap: ``Branches`` and ``Tags``."""
        data = self._json(self._home(model) / "revisions.json")
        return data["Data"]["RevisionMap"]  # type: ignore[no-any-return]

    def commit(self, model: str, commit: str) -> Row:
        """The commit as the ``commits`` endpoint shows it."""
        return self._json(self._home(model) / "commits" / commit / "commit.json")  # type: ignore[no-any-return]

    def rows(self, model: str, commit: str) -> list[Row]:
        """Every row of the recursive listing, trees included, in path order. Do not change them."""
        return self._json(self._home(model) / "commits" / commit / "files.json")["Data"]["Files"]  # type: ignore[no-any-return]

    def row(self, model: str, commit: str, path: str) -> Row | None:
        """The listing row of one file, or None."""
        for row in self.rows(model, commit):
            if row["Path"] == path and row["Type"] == "blob":
                return row
        return None

    def blob(self, model: str, commit: str, path: str) -> Path:
        """Where the bytes of a listed file lie. ``path`` must come from a row: it is not checked here."""
        return self._home(model) / "commits" / commit / "tree" / path

    def _home(self, model: str) -> Path:
        return self.root / "models" / model

    def _json(self, path: Path) -> Any:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        with self._lock:
            cached = self._cache.get(path)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        value = json.loads(path.read_text(encoding="utf-8"))
        with self._lock:
            self._cache[path] = (stamp, value)
        return value


def _check_names(model: str, branch: str, tag: str | None) -> None:
    if not is_model_id(model):
        raise StoreError(f"{model!r} is no model id. Expected: owner/name of letters, digits, '.', '_' and '-'.")
    for name in (branch, tag):
        if name is not None and (not _PART.match(name) or is_commit(name)):
            raise StoreError(f"{name!r} is no branch or tag name. Expected: letters, digits, '.', '_' and '-'.")
    if branch == tag:
        raise StoreError(f"branch and tag are both {tag!r}. Use two different names.")


def _check_refs(model: str, revisions: dict[str, list[Row]], branch: str, tag: str | None, commit: str) -> None:
    branches = {row["Revision"] for row in revisions["Branches"]}
    tags = {row["Revision"]: row["CommitId"] for row in revisions["Tags"]}
    if branch in tags or tag in branches:
        name = branch if branch in tags else tag
        raise StoreError(f"{model} has {name!r} as a branch or a tag already, and not the other. Use another name.")
    if tag is not None and tags.get(tag, commit) != commit:
        raise StoreError(
            f"tag {tag!r} of {model} is commit {tags[tag]}, the directory is {commit}. "
            "A tag does not move: use another tag, or remove the model from the hub's root first."
        )


def _scan(source: Path) -> list[_File]:
    """Every regular file under ``source``, hashed, in path order."""
    if not source.is_dir():
        raise StoreError(f"{source} is not a directory. Expected: the directory that holds the model's files.")
    files = [_hashed(source, path) for path in _walk(source, "")]
    if not files:
        raise StoreError(f"{source} holds no file. Expected: at least one file to import.")
    return sorted(files, key=lambda file: file.path)


def _walk(directory: Path, prefix: str) -> Iterator[str]:
    for entry in sorted(os.scandir(directory), key=lambda item: item.name):
        path = prefix + entry.name
        if "\\" in path or any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF or ord(char) == 127 for char in path):
            raise StoreError(f"{path!r} is a name no hub takes (control character, backslash or not UTF-8). Rename it.")
        if entry.is_dir(follow_symlinks=False):
            if path != ".git":
                yield from _walk(Path(entry.path), path + "/")
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            raise StoreError(
                f"{entry.path} is a link or a special file. Expected: regular files. Replace or remove it."
            )


def _hashed(source: Path, path: str) -> _File:
    with open(source / path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return _File(path, stream.tell(), digest.hexdigest())


def _commit_id(files: list[_File]) -> str:
    canonical = json.dumps([[file.path, file.size, file.sha256] for file in files], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:40]


def _write_commit(
    home: Path, commit: str, parent: str | None, source: Path, files: list[_File], *, copy: bool, date: int
) -> None:
    """Build the commit in a temporary directory beside its place and move it there in one step."""
    building = Path(tempfile.mkdtemp(prefix=".new-", dir=home / "commits"))
    try:
        for file in files:
            _place(source / file.path, building / "tree" / file.path, copy=copy)
        inherited = _blob_rows(home, parent) if parent else {}
        rows = _listing_rows(files, commit, inherited, date)
        _write_listings(building, rows)
        about = _commit_row(commit, parent, date)
        _write_json(building / "commit.json", about)
        _write_json(building / "commits.json", envelope({"Commit": [about], "TotalCount": 1}))
        building.chmod(0o755)
        building.rename(home / "commits" / commit)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _write_listings(building: Path, rows: list[Row]) -> None:
    """Every listing that can be asked for: of the whole, and of each directory with and without what is below it."""
    folders = ["", *(row["Path"] for row in rows if row["Type"] == "tree")]
    direct: dict[str, list[Row]] = {folder: [] for folder in folders}
    below: dict[str, list[Row]] = {folder: [] for folder in folders}
    for row in rows:
        parents = ["" if folder == PurePosixPath(".") else str(folder) for folder in PurePosixPath(row["Path"]).parents]
        direct[parents[0]].append(row)
        for folder in parents:
            below[folder].append(row)
    for folder in folders:
        home = building / "listings" / folder
        home.mkdir(parents=True)
        _write_json(home / ".direct.json", _listing(direct[folder]))
        _write_json(home / ".all.json" if folder else building / "files.json", _listing(below[folder]))


def _listing(rows: list[Row]) -> dict[str, Any]:
    return envelope({"Files": rows, "IsVisual": 0, "LatestCommitter": {}})


def _write_model(home: Path, model: str, revisions: dict[str, list[Row]]) -> None:
    """The answers about the model itself; its size is that of master, or else of the first revision."""
    owner, name = model.split("/")
    known = {row["Revision"]: row["CommitId"] for kind in ("Tags", "Branches") for row in revisions[kind]}
    size = sum(row["Size"] for row in _blob_rows(home, known.get("master") or known[min(known)]).values())
    about = {"Name": name, "Path": owner, "Revision": "master", "Visibility": 5}
    _write_json(home / "info.json", envelope(about))
    data = {"id": model, "downloads": 0, "file_size": size, "tags": [], "private": False, "gated": False}
    data["last_modified"] = email.utils.formatdate(DEFAULT_DATE, usegmt=True)
    request = "00000000-0000-0000-0000-000000000000"
    _write_json(home / "openapi.json", {"success": True, "request_id": request, "data": data})


def _place(source: Path, target: Path, *, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links: the copy below is as good
            pass
    shutil.copyfile(source, target)


def _blob_rows(home: Path, commit: str) -> dict[str, Row]:
    data = json.loads((home / "commits" / commit / "files.json").read_text(encoding="utf-8"))
    return {row["Path"]: row for row in data["Data"]["Files"] if row["Type"] == "blob"}


def _listing_rows(files: list[_File], commit: str, inherited: dict[str, Row], date: int) -> list[Row]:
    """Blob and tree rows in path order. A file that did not change keeps the commit that last touched it."""
    rows: dict[str, Row] = {}
    for file in files:
        for folder in PurePosixPath(file.path).parents:
            if folder.name:
                rows.setdefault(str(folder), _tree_row(str(folder), commit, date))
        before = inherited.get(file.path)
        if before is not None and before["Sha256"] == file.sha256:
            rows[file.path] = before
        else:
            rows[file.path] = _blob_row(file, commit, date)
    return [rows[path] for path in sorted(rows)]


def _blob_row(file: _File, commit: str, date: int) -> Row:
    lfs = file.size >= LFS_THRESHOLD or file.path.endswith(".safetensors")
    return _row(file.path, "blob", "33188", commit, date, size=file.size, sha256=file.sha256, lfs=lfs)


def _tree_row(path: str, commit: str, date: int) -> Row:
    return _row(path, "tree", "16384", commit, date, size=0, sha256="", lfs=False)


def _row(path: str, kind: str, mode: str, commit: str, date: int, *, size: int, sha256: str, lfs: bool) -> Row:
    return {
        "CommitId": commit,
        "CommitMessage": "import",
        "CommittedDate": date,
        "CommitterName": "model-hub",
        "InCheck": False,
        "IsLFS": lfs,
        "Mode": mode,
        "Name": PurePosixPath(path).name,
        "Path": path,
        "Revision": commit,
        "Sha256": sha256,
        "Size": size,
        "Type": kind,
    }


def _commit_row(commit: str, parent: str | None, date: int) -> Row:
    return {
        "CommittedDate": date,
        "CommitterName": "model-hub",
        "Id": commit,
        "ParentIds": [parent] if parent else [],
        "ShortId": commit[:8],
        "Title": "import",
    }


def _read_revisions(home: Path) -> dict[str, list[Row]]:
    try:
        data = json.loads((home / "revisions.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"Branches": [], "Tags": []}
    return data["Data"]["RevisionMap"]  # type: ignore[no-any-return]


def _record(rows: list[Row], name: str, commit: str, date: int) -> bool:
    for row in rows:
        if row["Revision"] == name:
            moved = bool(row["CommitId"] != commit)
            row["CommitId"] = commit
            return moved
    rows.append({"Revision": name, "CreatedAt": date, "CommitId": commit})
    return True


def _ref_target(home: Path, name: str) -> str | None:
    try:
        commit = os.path.basename(os.readlink(home / "refs" / name))
    except OSError:
        return None
    return commit if is_commit(commit) else None


def _point(home: Path, name: str, commit: str) -> None:
    # '.' cannot begin a ref name, so this temporary name cannot clash with one.
    temporary = home / "refs" / f".{name}.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"../commits/{commit}")
    temporary.replace(home / "refs" / name)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
