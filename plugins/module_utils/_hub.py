# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A client of ModelScope's hub protocol: revision to commit, file listing, file bytes. Standard library only.

Rules that hold for every request: one endpoint and no other site; the token goes to that endpoint alone, never over
plain http except to loopback; redirects only to http(s), never from https down to http; nothing of a URL's query
(signed URLs) and nothing of the token in any message.
"""

from __future__ import annotations

import contextlib
import json
import re
import string
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urljoin, urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils._addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import (
    is_directory,
    path_fault,
    row_path,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import (
    OverloadError,
    RangeRefusedError,
    RetryPolicy,
    TransientError,
    describe,
)

if TYPE_CHECKING:
    from email.message import Message

    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._wire import Answer, Wire

DEFAULT_ENDPOINT = "https://modelscope.cn"
DEFAULT_REVISION = "master"
USER_AGENT = "gpufleet.vllm (Ansible collection)"

LISTING_CAP = 3000
"""Entries at which the hub cuts a listing off, silently."""

_LISTINGS_MAX = 4096
_REDIRECTS_MAX = 5
_UNREACHABLE_TRIES = 3
_JSON_MAX = 64 * 1024 * 1024
_REFUSAL_MAX = 64 * 1024
_NAMES_SHOWN = 20

_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*/[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)\s*")

# The hub answers every access failure with HTTP 404; its own Code tells them apart.
_CODE_NOT_FOUND = 10010205001
_CODE_NO_ACCESS = 10010200001
_CODE_NO_TREE = 10990101004


# --- arguments -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """Where the hub is: ``url`` without trailing slash, its origin, and whether it is this machine itself."""

    url: str
    origin: tuple[str, str, int]

    @property
    def loopback(self) -> bool:
        return is_loopback(self.origin[1])


def parse_endpoint(text: str) -> Endpoint:
    """``https://host[:port][/prefix]``; without a scheme https is meant. Raises FleetError for anything else."""
    url = text.strip()
    if "://" not in url:
        url = "https://" + url
    try:
        parts = urlsplit(url)
        origin = _origin(url)
    except ValueError:
        parts, origin = None, None
    if parts is None or origin is None or parts.username is not None or parts.query or parts.fragment:
        raise FleetError(
            "hub.bad_endpoint",
            f"endpoint {safe_url(url)} is not usable",
            "an http or https URL with a host, without user name, query or fragment",
            f"Set endpoint to a URL such as {DEFAULT_ENDPOINT}",
        )
    return Endpoint(url.rstrip("/"), origin)


def check_model(model: str) -> str:
    """Return ``model`` when it has the form ``owner/name``."""
    if not _MODEL.fullmatch(model):
        raise FleetError(
            "hub.bad_model",
            f"model {model!a} is not a model id",
            "owner/name of letters, digits, '.', '_' and '-'",
            "Copy the id from the model's page, for example Qwen/Qwen2.5-VL-7B-Instruct",
        )
    return model


def check_revision(revision: str) -> str:
    """Return ``revision`` when it can name a branch, tag or commit."""
    bad = not revision or len(revision) > 255 or revision.startswith(("-", "/", ".")) or ".." in revision
    if bad or path_fault(revision) is not None or any(char.isspace() for char in revision):
        raise FleetError(
            "hub.bad_revision",
            f"revision {revision!a} is not a revision",
            "a branch, a tag, or a commit of 40 hexadecimal digits",
            f"The default branch is {DEFAULT_REVISION}",
        )
    return revision


def safe_url(url: str) -> str:
    """A URL without what may be secret: user name, password, query, fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an unreadable URL)"
    return ascii(f"{parts.scheme}://{host}{port}{parts.path}")[1:-1]


def _origin(url: str) -> tuple[str, str, int] | None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return (
        parts.scheme,
        parts.hostname.lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
    )


# --- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resolution:
    """A revision as asked for and the commit it means now. ``commit`` is None when the hub does not tell it."""

    revision: str
    commit: str | None
    warnings: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """What to ask the hub for, so that listing and files cannot drift apart."""
        return self.commit or self.revision


class FileStream:
    """A file's bytes as they arrive; the transfer's Stream."""

    def __init__(self, answer: Answer, offset: int | None, total: int | None, whole: bool = False) -> None:
        self.offset, self.total, self.whole = offset, total, whole
        kind = answer.headers.get_content_type()
        self.described = f"HTTP {answer.status}, {kind}, from {safe_url(answer.url)}"
        self._answer, self._buffer = answer, memoryview(b"")

    def read(self, limit: int) -> memoryview:
        # Into one buffer, which stays in the processor's cache: that is what a fast link is bound by.
        if len(self._buffer) < limit:
            self._buffer = memoryview(bytearray(limit))
        return self._buffer[: self._answer.readinto1(self._buffer[:limit])]

    def close(self) -> None:
        self._answer.close()


@dataclass
class HubClient:
    """One hub, as one user of it.

    ``timeout`` is in seconds without any byte arriving (connecting included), not in total. ``requests`` counts the
    requests sent, redirects included.
    """

    endpoint: Endpoint
    token: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    requests: int = 0

    def __post_init__(self) -> None:
        self.token = self.token or None
        if self.token is not None:
            self._check_token(self.token)
        self._lock = threading.Lock()
        self._wire: Wire | None = None

    def _check_token(self, token: str) -> None:
        if any(not 33 <= ord(char) <= 126 or char in ";," for char in token):
            raise FleetError(
                "hub.bad_token",
                "the token holds characters that no token has (spaces, line ends, non-ASCII)",
                "the token as the hub's site shows it",
                "Check how the token is stored; a trailing newline from a file is the usual cause",
            )
        if self.endpoint.origin[0] != "https" and not self.endpoint.loopback:
            raise FleetError(
                "hub.token_over_http",
                f"a token is set and the endpoint {self.endpoint.url} is plain http",
                "https, so that nobody on the way can read the token",
                "Use an https endpoint, or leave the token out (empty) for an endpoint that needs none",
            )

    # --- the three questions ---

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution:
        """Find the commit that ``revision`` (branch, tag or 40 hexadecimal digits) means now.

        ``patient=False`` gives up after two short tries, for a caller that can go on without an answer.
        """
        check_model(model)
        check_revision(revision)
        if _COMMIT.fullmatch(revision):
            return Resolution(revision, revision.lower())
        data = self._json(f"{model}/revisions", {}, f"the revisions of {model}", patient)
        known = _named_revisions(data)
        if revision not in known:
            raise _unknown_revision(model, revision, data)
        commit = known[revision] or self._newest_commit(model, revision, patient)
        if commit is None:
            warning = (
                f"The hub does not tell the commit of revision {revision} of {model}; it is pinned by name only, and "
                "every run has to list it again."
            )
            return Resolution(revision, None, (warning,))
        return Resolution(revision, commit)

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, Any]]:
        """Every row of the file listing; not validated beyond being complete. See ``_manifest.entries_from_rows``."""
        check_model(model)
        return _Listing(self, model, resolution).rows()

    def source(self, model: str, resolution: Resolution) -> HubSource:
        """Where a transfer gets this model's files from."""
        return HubSource(self, check_model(model), resolution.ref)

    # --- details of the questions ---

    def _newest_commit(self, model: str, revision: str, patient: bool) -> str | None:
        try:
            query = {"Ref": revision, "PageSize": "1"}
            data = self._json(f"{model}/commits", query, f"the commits of {model}", patient)
        except FleetError as exc:
            if isinstance(exc, TransientError) or exc.code == "hub.unreachable":
                raise
            return None  # an undocumented call: a hub without it is still usable, pinned by name
        commits = data.get("Commit") if isinstance(data, dict) else None
        first = commits[0] if isinstance(commits, list) and commits else None
        return _commit(first.get("Id")) if isinstance(first, dict) else None

    def list_once(self, model: str, ref: str, root: str | None, recursive: bool) -> list[dict[str, Any]]:
        query = {"Revision": ref, "Recursive": str(recursive)}
        if root is not None:
            query["Root"] = root
        data = self._json(f"{model}/repo/files", query, f"the files of {model} at {ref}")
        rows = data.get("Files") if isinstance(data, dict) else data
        if rows is None:
            rows = []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self._odd_answer(f"the files of {model}", "JSON without a list of files")
        return cast("list[dict[str, Any]]", rows)

    # --- JSON calls ---

    def _json(self, path: str, query: Mapping[str, str], what: str, patient: bool = True) -> Any:
        """The ``Data`` of a successful answer. Retries what may pass; raises FleetError for the rest."""
        attempts = self.policy.attempts if patient else 2
        timeout = self.timeout if patient else min(self.timeout, 10.0)
        failures = 0
        while True:
            try:
                return self._json_once(path, query, what, timeout)
            except TransientError as exc:
                failures += 1
                # Nobody there is known soon; a hub that is busy deserves more patience.
                if failures >= (min(attempts, _UNREACHABLE_TRIES) if exc.code == "hub.unreachable" else attempts):
                    raise
                self.policy.sleep(self.policy.wait(failures, exc.retry_after))

    def _json_once(self, path: str, query: Mapping[str, str], what: str, timeout: float) -> Any:
        answer = self.get(f"/api/v1/models/{quote(path)}", query, {}, timeout)
        try:
            body = answer.read_all(_JSON_MAX)
        except OSError as exc:
            raise self._unreachable(exc) from exc
        finally:
            answer.close()
        document = _parse(body)
        if answer.status != 200 or (isinstance(document, dict) and document.get("Success") is False):
            raise self._refusal(answer, document, what)
        if not isinstance(document, dict):
            kind = "an HTML page" if _is_html(answer, body) else "something that is not a JSON object"
            raise self._odd_answer(what, kind)
        code = document.get("Code", 200)
        if code != 200:
            raise self._refusal(answer, document, what)
        return document.get("Data")

    def _odd_answer(self, what: str, seen: str) -> FleetError:
        return FleetError(
            "hub.odd_answer",
            f"{self.endpoint.url} answered {seen} when asked for {what}",
            "ModelScope's JSON",
            "Check that endpoint is a ModelScope hub and that no login page or proxy stands between",
        )

    def refusal(self, answer: Answer, what: str) -> FleetError:
        """The error of an answer that is not a success; reads its body."""
        document = None
        with contextlib.suppress(OSError):
            document = _parse(answer.read_all(_REFUSAL_MAX))
        return self._refusal(answer, document, what)

    def _refusal(self, answer: Answer, document: object, what: str) -> FleetError:
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        code, message = fields.get("Code"), self.scrub(str(fields.get("Message") or ""))
        status = answer.status
        said = f"HTTP {status}" + (f", code {code}" if isinstance(code, int) and code != status else "")
        said += f", {message}" if message else ""
        seen = f"{self.endpoint.url} refused {what}: {said}"
        if status in (429, 500, 502, 503, 504):
            kind = OverloadError if status in (429, 503) else TransientError
            return kind(
                "hub.busy" if status == 429 else "hub.unavailable",
                seen,
                "an answer",
                "The hub is busy or down; run it again later",
                retry_after=_retry_after(answer.headers),
            )
        if not _same_origin(answer.url, self.endpoint):
            # A signed URL that expired, or a content server that is out of order: the next try gets a new URL.
            return TransientError(
                "hub.content_server",
                f"{safe_url(answer.url)} refused {what}: HTTP {status}",
            )
        if code == _CODE_NOT_FOUND and message and "not found" not in message:
            # Seen in public under overload: a database error in the clothes of "not found".
            return OverloadError("hub.busy", seen, "an answer", "The hub is overloaded; run it again later")
        return self._final_refusal(status, code, seen)

    def _final_refusal(self, status: int, code: object, seen: str) -> FleetError:
        token = "the token has no access to it" if self.token else "no token was given"
        if code == _CODE_NO_ACCESS or status in (401, 403):
            return FleetError(
                "hub.no_access",
                f"{seen} ({token})",
                "access",
                "If the repository is private or gated: accept its terms on the hub's site, and set token or "
                "MODELSCOPE_API_TOKEN to one of an account that may read it",
            )
        if code == _CODE_NO_TREE:
            return FleetError(
                "hub.unknown_revision",
                seen,
                "a revision that has files",
                "Check revision; it must be a branch, tag or commit of this repository",
            )
        if status == 404 or code == _CODE_NOT_FOUND:
            return FleetError(
                "hub.not_found",
                f"{seen} ({token})",
                "a repository and revision that exist and are readable",
                "Check the spelling of model and revision and which hub endpoint names; the hub also hides private "
                "repositories behind this answer",
            )
        return FleetError("hub.refused", seen, "HTTP 200 with Success true", "See the hub's message")

    def _unreachable(self, exc: OSError) -> FleetError:
        verdict = getattr(exc, "verify_message", None)  # ssl.SSLCertVerificationError
        if verdict is not None:
            return FleetError(
                "hub.tls",
                f"the certificate of {self.endpoint.url} is not trusted: {self.scrub(verdict)}",
                "a certificate signed by an authority this host trusts",
                "Install the authority's certificate on the host, or set SSL_CERT_FILE in the task's environment",
            )
        return TransientError(
            "hub.unreachable",
            f"{self.endpoint.url} cannot be reached: {self.scrub(describe(exc))}",
            "a connection",
            "Check the network, name resolution and the proxy variables (HTTPS_PROXY, NO_PROXY) on this host, or set "
            "endpoint to a mirror it can reach",
        )

    def scrub(self, text: str) -> str:
        """Text from outside, made fit for a message: one line, no token, no query strings, at most 300 characters."""
        if self.token:
            text = text.replace(self.token, "***")
        text = re.sub(r"(https?://[^\s?\"'<>]*)\?[^\s\"'<>]*", r"\1", text)
        text = "".join(char if char.isprintable() else " " for char in text).strip()
        return text if len(text) <= 300 else text[:297] + "..."

    # --- HTTP ---

    def get(
        self,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        """GET ``path`` of the endpoint, redirects followed under our rules. The caller closes the answer.

        Raises TransientError when there is no answer, FleetError for a forbidden redirect.
        """
        url = self.endpoint.url + path + ("?" + urlencode(query, quote_via=quote, safe="") if query else "")
        return self.follow(url, headers, timeout)

    def follow(self, url: str, headers: Mapping[str, str], timeout: float) -> Answer:
        """GET a URL, redirects followed under our rules. As :meth:`get`."""
        asked = url
        for _unused in range(_REDIRECTS_MAX + 1):
            answer = self._get_once(url, headers, timeout)
            if answer.status not in (301, 302, 303, 307, 308):
                answer.redirected = url != asked
                return answer
            location = answer.headers.get("Location")
            with contextlib.suppress(OSError):  # so that the connection can be used again
                answer.read_all(_REFUSAL_MAX)
            answer.close()
            url = self._next_url(url, location)
        raise FleetError(
            "hub.redirects",
            f"{self.endpoint.url} redirected more than {_REDIRECTS_MAX} times for {safe_url(asked)}",
            f"at most {_REDIRECTS_MAX} redirects",
            "Check endpoint; a login page or proxy may redirect in circles",
        )

    def _next_url(self, url: str, location: str | None) -> str:
        try:
            target = quote(urljoin(url, location), safe=string.punctuation) if location else ""
            origin = _origin(target)
        except ValueError:
            target, origin = "", None
        if origin is None or (urlsplit(url).scheme == "https" and origin[0] != "https"):
            raise FleetError(
                "hub.bad_redirect",
                f"{safe_url(url)} redirects to {safe_url(target) if target else 'nowhere'}",
                "a redirect to https (or from http to http)",
                "Check endpoint and the proxies between; the redirect was not followed",
            )
        return target

    def _get_once(self, url: str, headers: Mapping[str, str], timeout: float) -> Answer:
        sent = dict(headers)
        if self.token is not None and _same_origin(url, self.endpoint):
            sent["Authorization"] = f"Bearer {self.token}"
            sent["Cookie"] = f"m_session_id={self.token}"
        with self._lock:
            self.requests += 1
            if self._wire is None:
                # Only here: a run that asks nothing shall not load an HTTP client.
                from ansible_collections.gpufleet.vllm.plugins.module_utils._wire import Wire

                self._wire = Wire(USER_AGENT)
        try:
            return self._wire.get(url, sent, timeout)
        except OSError as exc:
            raise self._unreachable(exc) from exc


class HubSource:
    """The files of one model at one ref, as the transfer's Source. Safe to use from several threads."""

    piece: int | None = None
    connections: int | None = None

    def __init__(self, client: HubClient, model: str, ref: str) -> None:
        self._client, self._model, self._ref = client, model, ref
        self._located: dict[str, str] = {}
        self._lock = threading.Lock()

    def open(self, entry: Entry, start: int, end: int) -> FileStream:
        headers = {} if (start, end) == (0, entry.size) else {"Range": f"bytes={start}-{end - 1}"}
        answer = self._ask(entry, headers)
        if answer.status in (200, 206):
            return _file_stream(answer, start)
        try:
            if answer.status == 416:
                raise RangeRefusedError
            raise self._client.refusal(answer, f"{entry.path} of {self._model}")
        finally:
            answer.close()

    def _ask(self, entry: Entry, headers: Mapping[str, str]) -> Answer:
        """Where the hub sent us for this file before comes first; a signed URL that expired is asked for anew."""
        with self._lock:
            known = self._located.get(entry.path)
        if known is not None:
            try:
                answer = self._client.follow(known, headers, self._client.timeout)
            except FleetError:
                self._forget(entry)
                raise
            if answer.status in (200, 206, 416, 429, 503):
                return answer
            answer.close()
            self._forget(entry)
        query = {"Revision": self._ref, "FilePath": entry.path}
        answer = self._client.get(f"/api/v1/models/{quote(self._model)}/repo", query, headers, self._client.timeout)
        if answer.redirected and answer.status in (200, 206):
            with self._lock:
                self._located[entry.path] = answer.url
        return answer

    def _forget(self, entry: Entry) -> None:
        with self._lock:
            self._located.pop(entry.path, None)


def _file_stream(answer: Answer, offset: int) -> FileStream:
    """Judge by Content-Range, not by the status: gateways answer ranges with 200, and others ignore them."""
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in (
        "",
        "identity",
    ):
        answer.close()
        raise TransientError(
            "hub.encoded",
            f"{safe_url(answer.url)} sent an encoded body although told not to",
        )
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
    if match is not None:
        total = None if match.group(3) == "*" else int(match.group(3))
        return FileStream(answer, int(match.group(1)), total)
    if answer.status == 206 and offset:
        return FileStream(answer, None, None)
    length = answer.headers.get("Content-Length") or ""
    return FileStream(answer, 0, int(length) if length.isdigit() else None, whole=True)


class _Listing:
    """A complete listing, directory by directory where the hub cuts off."""

    def __init__(self, client: HubClient, model: str, resolution: Resolution) -> None:
        self._client, self._model, self._ref = client, model, resolution.ref
        self._asked = 0

    def rows(self) -> list[dict[str, Any]]:
        whole = self._ask(None, True)
        return whole if len(whole) < LISTING_CAP else list(self._walk(None).values())

    def _ask(self, root: str | None, recursive: bool) -> list[dict[str, Any]]:
        self._asked += 1
        if self._asked > _LISTINGS_MAX:
            raise self._incomplete(f"more than {_LISTINGS_MAX} directories that have to be listed one by one")
        return self._client.list_once(self._model, self._ref, root, recursive)

    def _walk(self, root: str | None) -> dict[str, dict[str, Any]]:
        """Rows below ``root`` by path; ``root`` is known to be cut off when listed whole."""
        direct = self._ask(root, False)
        if len(direct) >= LISTING_CAP:
            where = "its top directory" if root is None else f"directory {root!a}"
            raise self._incomplete(f"{where} holds {LISTING_CAP} entries or more, and the hub shows no more than that")
        found: dict[str, dict[str, Any]] = {}
        for row in direct:
            path = str(row_path(row))
            if not is_directory(row):
                found[path] = row
                continue
            if path_fault(path) is not None or (root is not None and not path.startswith(root + "/")):
                raise self._incomplete(f"directory {path!a} is listed in {root or '/'!a}")
            below = self._ask(path, True)
            if len(below) < LISTING_CAP:
                found.update((str(row_path(item)), item) for item in below if not is_directory(item))
            else:
                found.update(self._walk(path))
        return found

    def _incomplete(self, why: str) -> FleetError:
        return FleetError(
            "hub.listing_incomplete",
            f"{self._model} cannot be listed completely: {why}",
            "a listing with every file, so that nothing is missing without notice",
            "Ask the owner of the repository to spread the files over directories",
        )


# --- small helpers ---------------------------------------------------------------------------------------------------


def _same_origin(url: str, endpoint: Endpoint) -> bool:
    return _origin(url) == endpoint.origin


def _parse(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError included; nested without end
        return None


def _is_html(answer: Answer, body: bytes) -> bool:
    start = body[:200].lstrip().lower()
    return answer.headers.get_content_type() == "text/html" or start.startswith((b"<!doctype", b"<html"))


def _retry_after(headers: Message) -> float | None:
    value = (headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):  # TypeError: before Python 3.10
        return None


def _commit(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and _COMMIT.fullmatch(value) else None


def _revision_rows(data: object, kind: str) -> list[dict[str, Any]]:
    revisions = data.get("RevisionMap") if isinstance(data, dict) else None
    rows = revisions.get(kind) if isinstance(revisions, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _named_revisions(data: object) -> dict[str, str | None]:
    """Branch or tag to commit; a branch wins over a tag of the same name, as in git's refs on the hub."""
    named: dict[str, str | None] = {}
    for kind in ("Tags", "Branches"):
        for row in _revision_rows(data, kind):
            if isinstance(row.get("Revision"), str):
                named[row["Revision"]] = _commit(row.get("CommitId"))
    return named


def _unknown_revision(model: str, revision: str, data: object) -> FleetError:
    def names(kind: str) -> str:
        found = [ascii(str(row.get("Revision")))[1:-1] for row in _revision_rows(data, kind)]
        more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
        return (", ".join(found[:_NAMES_SHOWN]) + more) or "none"

    return FleetError(
        "hub.unknown_revision",
        f"{model} has no revision {revision}",
        f"one of its branches ({names('Branches')}) or tags ({names('Tags')}), or a commit of 40 hexadecimal digits",
        "Correct revision",
    )
