# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the hub does wrong when asked to: the faults, and the set of them that is switched on."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

RangeMode = Literal["206", "200", "ignore", "lie", "shift", "total"]


class FaultError(Exception):
    """A fault, or a file of faults, that means nothing; the text says what is wrong with it."""


class Bucket:
    """A rate in bytes per second, shared by everyone who draws from the same bucket."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    def draw(self, count: int) -> float:
        """Take ``count`` bytes; returns the seconds to wait before sending them."""
        with self._lock:
            now = time.monotonic()
            start = max(self._free_at, now)
            self._free_at = start + count / self.rate
            return start - now


@dataclass(eq=False)
class Fault:
    """One misbehaviour, for the requests whose target matches.

    A target is ``<op>/<owner>/<name>[/<file>]``; op is one of ``list``, ``file`` (the repo endpoint), ``lfs`` (the
    signed URL it redirects to), ``resolve``, ``revisions``, ``commits``, ``info``, ``openapi`` and ``git``; ``accel``
    and ``me`` stand alone. ``match`` is a shell pattern on it in which ``*`` also crosses ``/``. Several faults may
    hit one request: of each field, the first one set counts.
    """

    match: str = "*"
    times: int | None = None
    """Only the first so many matching requests; None: all."""
    after: int = 0
    """Let this many matching requests pass first."""

    # Instead of the answer
    status: int | None = None
    """HTTP status; without ``body`` the answer is a hub error with this Code."""
    headers: dict[str, str] | None = None
    """Set or replaced on the answer, whatever it is."""
    body: str | bytes | dict[str, Any] | list[Any] | None = None
    """Sent in place of the answer: a string or bytes as they are (HTML when it begins with ``<``), else as JSON."""
    redirect: str | None = None
    """Answer 302 to this URL. Without a path (``http://localhost:{port}``) the path of the right target is kept.
    ``{port}`` is the hub's own port."""

    # The way it is sent
    delay: float | None = None
    """Seconds before the first byte."""
    rate: float | None = None
    """Bytes per second of one connection."""
    total_rate: float | None = None
    """Bytes per second of all requests that match this fault together."""
    drop_after: int | None = None
    """Break the connection after so many bytes of the body; Content-Length still promises all of them."""
    drop: Literal["rst", "fin"] | None = None
    """How to break it; ``rst`` when not set."""
    stall_after: int | None = None
    """Stop sending after so many bytes of the body, for ``stall`` seconds, then go on."""
    stall: float | None = None
    """Seconds; 3600 when not set."""
    corrupt_at: int | None = None
    """Flip the byte at this offset of the whole body (negative: from its end), also when only a range is sent."""
    truncate: int | None = None
    """Send only so many bytes, with a Content-Length that agrees."""

    # Ranges and signed URLs
    range: RangeMode | None = None
    """How a Range is answered: ``206`` (right), ``200`` (the range, a right Content-Range, but status 200), ``ignore``
    (all of the file), ``lie`` (Content-Range as asked, other bytes), ``shift`` (another range, Content-Range says so),
    ``total`` (right bytes, wrong total in Content-Range)."""
    direct: bool | None = None
    """The repo endpoint serves LFS files itself instead of redirecting."""
    url_ttl: float | None = None
    """Seconds a signed URL is good for."""

    # Listings
    empty: bool | None = None
    """200 and no rows."""
    success: bool | None = None
    """False: 200, ``Success: false`` and no Data."""
    cap: int | None = None
    """Rows in one listing at most, silently (3000 without a fault)."""
    bad_revision: Literal["404", "empty"] | None = None
    """An unknown revision is a 404 (as without a fault) or 200 with no rows."""
    sha256: Literal["missing", "empty", "upper", "wrong"] | None = None
    """What becomes of the rows' Sha256."""
    rows: str | None = None
    """Shell pattern on Path: the rows that ``sha256`` and ``patch`` change; all when not set."""
    patch: dict[str, Any] | None = None
    """Fields to set in the rows; a None removes the field."""
    extra_rows: list[dict[str, Any]] | None = None
    """Rows to add. ``content`` (text) is what the hub serves under that Path; Size and Sha256 follow from it."""

    hits: int = field(default=0, init=False)
    """Requests that this fault was applied to."""
    _seen: int = field(default=0, init=False, repr=False)
    _bucket: Bucket | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("rate", "total_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FaultError(f"{name} is {value!r}. Expected: bytes per second, more than 0.")
        if self.total_rate is not None:
            self._bucket = Bucket(self.total_rate)

    def hurry(self, total_rate: float) -> None:
        """Change ``total_rate``, of answers that are on their way too."""
        if self._bucket is None:
            raise FaultError("this fault has no total_rate to change.")
        self.total_rate = self._bucket.rate = total_rate

    @classmethod
    def from_json(cls, value: Any) -> Fault:
        """A fault from its JSON object, with the field names above. Raises FaultError."""
        if not isinstance(value, dict):
            raise FaultError(f"a fault is {value!r}. Expected: an object.")
        unknown = sorted(set(value) - _FIELDS)
        if unknown:
            raise FaultError(f"unknown fault field {', '.join(unknown)}. Expected: {', '.join(sorted(_FIELDS))}.")
        return cls(**value)


_FIELDS = {item.name for item in dataclasses.fields(Fault) if item.init}
_EFFECTS = sorted(_FIELDS - {"match", "times", "after"})


class Effect(Fault):
    """What all faults together do to one request. Buckets come from the faults that set the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets: list[Bucket] = []
        self.rate_owner: Fault | None = None

    def absorb(self, fault: Fault) -> None:
        """Take the fields of ``fault`` that no earlier fault has set."""
        if fault.rate is not None and self.rate is None:
            self.rate_owner = fault
        for name in _EFFECTS:
            if getattr(self, name) is None:
                setattr(self, name, getattr(fault, name))
        if fault._bucket is not None:
            self.buckets.append(fault._bucket)

    @property
    def shaped(self) -> bool:
        """Whether the body cannot be sent in one go."""
        numbers = (self.rate, self.drop_after, self.stall_after, self.corrupt_at)
        return bool(self.buckets) or any(value is not None for value in numbers)


class FaultSet:
    """The faults that are on: added here, and read from a JSON file that may change at any time.

    The file holds ``{"faults": [{...}, ...]}``. Counters (``times``, ``after``) begin anew when it changes; write it
    by renaming, so that the hub never reads half of it. No file: no faults.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._added: list[Fault] = []
        self._loaded: list[Fault] = []
        self._stamp: tuple[int, int, int] | None = None
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Switch ``fault`` on; returns it."""
        with self._lock:
            self._added.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Switch a fault that was added off again."""
        with self._lock:
            self._added.remove(fault)

    def clear(self) -> None:
        """Switch every added fault off."""
        with self._lock:
            self._added.clear()

    def take(self, target: str) -> Effect:
        """What the faults do to one request for ``target``; counts it. Raises FaultError for a bad file."""
        effect = Effect()
        with self._lock:
            self._reload()
            for fault in self._added + self._loaded:
                if not fnmatch.fnmatchcase(target, fault.match):
                    continue
                fault._seen += 1
                spent = fault.times is not None and fault._seen > fault.after + fault.times
                if fault._seen > fault.after and not spent:
                    fault.hits += 1
                    effect.absorb(fault)
        return effect

    def extra_content(self, target: str, path: str) -> bytes | None:
        """The bytes an ``extra_rows`` entry of the listing ``target`` gave ``path``, or None."""
        with self._lock:
            self._reload()
            for fault in self._added + self._loaded:
                if fault.extra_rows and fnmatch.fnmatchcase(target, fault.match):
                    for row in fault.extra_rows:
                        if row.get("Path") == path and "content" in row:
                            return str(row["content"]).encode()
        return None

    def _reload(self) -> None:
        if self._path is None:
            return
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._loaded, self._stamp = [], None
            return
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._loaded = _load(self._path)
            self._stamp = stamp


def _load(path: Path) -> list[Fault]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FaultError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("faults"), list):
        raise FaultError(f'{path} holds no list of faults. Expected: {{"faults": [{{...}}]}}.')
    return [Fault.from_json(item) for item in value["faults"]]


def change_rows(rows: list[dict[str, Any]], effect: Effect) -> list[dict[str, Any]]:
    """The listing rows after ``sha256``, ``patch``, ``rows`` and ``extra_rows``; the input is left as it is."""
    changed = [_change_row(row, effect) for row in rows]
    for extra in effect.extra_rows or []:
        changed.append(extra_row(extra))
    return changed


def _change_row(row: dict[str, Any], effect: Effect) -> dict[str, Any]:
    if row.get("Type") != "blob" or not fnmatch.fnmatchcase(row["Path"], effect.rows or "*"):
        return row
    row = dict(row)
    if effect.sha256 == "missing":
        del row["Sha256"]
    elif effect.sha256 == "empty":
        row["Sha256"] = ""
    elif effect.sha256 == "upper":
        row["Sha256"] = row["Sha256"].upper()
    elif effect.sha256 == "wrong":
        row["Sha256"] = hashlib.sha256(row["Sha256"].encode()).hexdigest()
    for key, value in (effect.patch or {}).items():
        if value is None:
            row.pop(key, None)
        else:
            row[key] = value
    return row


def extra_row(extra: dict[str, Any]) -> dict[str, Any]:
    """A listing row from an ``extra_rows`` entry: its own fields over those of a small, unremarkable file."""
    content = str(extra.get("content", "")).encode()
    row = {
        "CommitId": "0" * 40,
        "IsLFS": False,
        "Mode": "33188",
        "Name": PurePosixPath(str(extra.get("Path", ""))).name,
        "Revision": "0" * 40,
        "Sha256": hashlib.sha256(content).hexdigest(),
        "Size": len(content),
        "Type": "blob",
    }
    row.update({key: value for key, value in extra.items() if key != "content"})
    return row


def hostile_rows(outside: str) -> dict[str, list[dict[str, Any]]]:
    """Listing rows that no client may write to disk, by name; for ``extra_rows``.

    ``outside`` is an absolute directory that the test owns, for the paths that would land there. ``symlink`` is
    hostile only where ``link`` in the target directory is a link; ``case`` and ``file_as_directory`` where the model
    has a ``config.json``; ``partial`` names the official client's partial file of it.
    """
    paths = {
        "parent": "../../evil-rel.txt",
        "absolute": f"{outside}/evil-abs.txt",
        "middle": "ok/../../evil-mid.txt",
        "symlink": "link/inside.txt",
        "dotdot": "..",
        "dot": "./evil-dot.txt",
        "empty": "",
        "empty_component": "a//evil.txt",
        "trailing_slash": "evil/",
        "backslash": "..\\evil-backslash.txt",
        "drive": "C:evil.txt",
        "nul": "evil\0.txt",
        "newline": "evil\n.txt",
        "escape": "evil\x1b[2J.txt",
        "surrogate": "evil\ud800.txt",
        "long": "e" * 300 + ".txt",
        "case": "CONFIG.json",
        "file_as_directory": "config.json/inside.txt",
        "partial": "config.json.incomplete",
    }
    rows: dict[str, list[dict[str, Any]]] = {
        name: [{"Path": path, "content": f"evil {name}\n"}] for name, path in paths.items()
    }
    rows["duplicate"] = [{"Path": "twice.txt", "content": text} for text in ("one\n", "two\n")]
    rows["no_path"] = [{"content": "evil\n"}]
    rows["number_path"] = [{"Path": 7, "content": "evil\n"}]
    rows["negative_size"] = [{"Path": "negative.txt", "content": "evil\n", "Size": -1}]
    rows["text_size"] = [{"Path": "text-size.txt", "content": "evil\n", "Size": "5 bytes"}]
    rows["huge_size"] = [{"Path": "huge.txt", "content": "evil\n", "Size": 1 << 62}]
    return rows
