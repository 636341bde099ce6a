# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hub's HTTP surface: ModelScope's API for models, over a store, with faults in between."""

from __future__ import annotations

import contextlib
import email.utils
import fnmatch
import hashlib
import hmac
import http.cookies
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .faults import Effect, FaultError, FaultSet, change_rows
from .store import Row, Store, StoreError, envelope, is_commit, is_model_id
from .wire import Body, Cut, Sender, Stopping, Unsatisfiable, parse_range, prepare_reset

HUB_NAME = "gpufleet-model-hub"
HEALTH_PATH = "/__hub/health"
LISTING_CAP = 3000
"""Rows of one ``repo/files`` answer; the real hub cuts there without a word."""
URL_TTL = 3600.0
"""Seconds a signed URL is good for."""
REQUESTS_KEPT = 100_000
"""Requests the log remembers, so that a hub can run for weeks."""

# The Codes that tell the hub's 404s apart.
CODE_NOT_FOUND = 10010205001
CODE_NO_ACCESS = 10010200001
CODE_NO_TREE = 10990101004

_NOT_FOUND_TEXT = "获取模型信息失败，信息：record not found"


@dataclass
class Request:
    """One request as the hub saw it. ``headers`` has lower-case names; ``sent`` counts body bytes and grows while the
    answer is on its way; ``done`` once it is over, and ``ended`` says when (``began`` when it came, by one clock).
    ``peer`` is the client's port: requests that share it came over one connection."""

    op: str
    target: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int = 0
    sent: int = 0
    done: bool = False
    peer: int = 0
    began: float = 0.0
    ended: float = float("inf")


class RequestLog:
    """The requests since the last ``clear``, in order of arrival. Patterns are those of ``Fault.match``."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Request]:
        with self._lock:
            return iter(list(self._requests))

    def __len__(self) -> int:
        with self._lock:
            return len(self._requests)

    def append(self, request: Request) -> None:
        """Add one request."""
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._requests.clear()

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until every answer is over: a client may have the last byte before the hub has counted it."""
        deadline = time.monotonic() + seconds
        while any(not request.done for request in self) and time.monotonic() < deadline:
            time.sleep(0.002)

    def select(self, match: str = "*") -> list[Request]:
        """The requests whose target matches."""
        return [request for request in self if fnmatch.fnmatchcase(request.target, match)]

    def count(self, match: str = "*") -> int:
        """How many targets match."""
        return len(self.select(match))

    def counts(self) -> Counter[str]:
        """Requests per target."""
        return Counter(request.target for request in self)

    def at_once(self, match: str = "*") -> int:
        """How many of the requests whose target matches were being answered at the same time, at most."""
        chosen = self.select(match)
        edges = [(request.began, 1) for request in chosen] + [(request.ended, -1) for request in chosen]
        most = now = 0
        for _moment, step in sorted(edges):
            now += step
            most = max(most, now)
        return most

    def connections(self, match: str = "*") -> int:
        """How many connections the requests whose target matches came over."""
        return len({request.peer for request in self.select(match)})

    def sent(self, match: str = "*") -> int:
        """Body bytes sent for the targets that match, once every answer is over."""
        self.settle()
        return sum(request.sent for request in self.select(match))


@dataclass(frozen=True)
class Access:
    """Who may read what. A private model needs any of ``tokens``, a gated one a token in ``approved``."""

    tokens: Collection[str] = ()
    private: Collection[str] = ()
    gated: Collection[str] = ()
    approved: Collection[str] = ()

    def allows(self, model: str, offered: Collection[str]) -> bool:
        """Whether a request that carries ``offered`` may read ``model``."""
        if model in self.gated and not set(offered) & set(self.approved):
            return False
        return model not in self.private or bool(set(offered) & (set(self.tokens) | set(self.approved)))


@dataclass
class _Route:
    op: str
    model: str = ""
    path: str = ""
    revision: str = ""

    @property
    def target(self) -> str:
        return "/".join(part for part in (self.op, self.model, self.path) if part)


@dataclass
class _Reply:
    status: int
    body: Body
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """A hub over ``root``, on a port of its own unless ``port`` says otherwise; a context manager.

    ``lfs_base`` (``http://localhost:{port}``) puts the signed URLs on another host name than the API, as a real hub
    does. ``log`` gets one JSON object per request, without secrets. Attributes: ``endpoint``, ``port``, ``faults``,
    ``requests``. Raises StoreError when ``root`` is no directory and OSError when the port is taken.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        access: Access = Access(),
        faults_file: Path | None = None,
        log: Path | None = None,
        lfs_base: str | None = None,
        instance: str = "",
    ) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise StoreError(f"{self.root} is not a directory. Expected: a hub root; 'model_hub add' makes one.")
        self.store = Store(self.root)
        self.access = access
        self.faults = FaultSet(faults_file)
        self.requests = RequestLog()
        self.instance = instance
        self.stopping = threading.Event()
        self.lfs_base = lfs_base
        self._secret = secrets.token_bytes(32)
        self._server = _Server((host, port), self)
        self.port: int = self._server.server_address[1]
        self.endpoint = f"http://{host}:{self.port}"
        self._log: TextIO | None = log.open("a", encoding="utf-8") if log else None
        self._log_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self.serve_forever, name="model-hub", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self.close()

    def serve_forever(self) -> None:
        """Answer requests until ``stop``."""
        self._server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """Make ``serve_forever`` return, from another thread, and break every connection."""
        self.stopping.set()
        self._server.shutdown()
        self._server.break_connections()

    def close(self) -> None:
        """Free the port and the log."""
        self._server.server_close()
        if self._log is not None:
            self._log.close()

    def sign(self, path: str, ttl: float) -> str:
        """A URL path with the ``auth_key`` that lets it be read for ``ttl`` seconds."""
        expiry, nonce = int((time.time() + ttl) * 1000), secrets.token_hex(8)
        return f"{quote(path)}?auth_key={expiry}-{nonce}-0-{self._digest(path, expiry, nonce)}"

    def signature_fault(self, path: str, auth_key: str) -> str | None:
        """Why ``auth_key`` does not open ``path``, or None when it does."""
        expiry, nonce, _unused, digest = [*auth_key.split("-"), "", "", ""][:4]
        if not auth_key.isascii() or not expiry.isdigit():
            return "denied by req auth: no auth_key"
        if not hmac.compare_digest(digest, self._digest(path, int(expiry), nonce)):
            return "denied by req auth: invalid md5hash"
        return "denied by req auth: expired timestamp" if int(expiry) < time.time() * 1000 else None

    def absolute(self, base: str, path_and_query: str) -> str:
        """The URL of ``path_and_query`` under ``base``; ``base`` itself where it names a path. ``{port}`` is ours."""
        url = base.replace("{port}", str(self.port))
        return url if urlsplit(url).path else url + path_and_query

    def write_log(self, request: Request, seconds: float) -> None:
        """Append one request to the access log, if there is one; credentials show only as present."""
        if self._log is None:
            return
        entry = {
            "time": email.utils.formatdate(usegmt=True),
            "method": request.method,
            "target": request.target,
            "status": request.status,
            "sent": request.sent,
            "seconds": round(seconds, 4),
            "range": request.headers.get("range"),
            "token": bool(request.headers.get("authorization") or request.headers.get("cookie")),
            "user_agent": request.headers.get("user-agent"),
        }
        with self._log_lock, contextlib.suppress(ValueError):  # ValueError: closed while the last answer ended
            self._log.write(json.dumps(entry) + "\n")
            self._log.flush()

    def _digest(self, path: str, expiry: int, nonce: str) -> str:
        return hmac.new(self._secret, f"{path}-{expiry}-{nonce}".encode(), hashlib.sha256).hexdigest()[:32]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a client with many connections must not see refused ones

    def __init__(self, address: tuple[str, int], hub: Hub) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host name up, which hangs where there is no name service.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        linger = request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        if int.from_bytes(linger[:4], sys.byteorder):  # a shutdown would send FIN before the RST
            request.close()
        else:
            super().shutdown_request(request)

    def break_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that goes away is nothing to report
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Tengine"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = 300
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub
        self.sender = Sender(self.connection, self.hub.stopping)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the hub keeps its own log."""

    def do_GET(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path == HEALTH_PATH:
            self._answer(_json_reply(200, self._health()), Effect(), None)
            return
        route = _route(unquote(url.path), query)
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(route.op, route.target, self.command, url.path, query, headers)
        request.peer, request.began = self.client_address[1], time.monotonic()
        self.hub.requests.append(request)
        try:
            self._serve(route, request)
        except Cut:
            self.close_connection = True
        except (Stopping, OSError):
            self.close_connection = True
        finally:
            request.ended, request.done = time.monotonic(), True
            self.hub.write_log(request, request.ended - request.began)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Refuse: the hub is read-only."""
        self.close_connection = True  # the request's body stays unread
        self._answer(_error(405, 405, "this hub only answers GET and HEAD"), Effect(), None)

    do_PUT = do_DELETE = do_PATCH = do_POST

    def _health(self) -> dict[str, Any]:
        return {"hub": HUB_NAME, "root": str(self.hub.root), "pid": os.getpid(), "instance": self.hub.instance}

    def _serve(self, route: _Route, request: Request) -> None:
        try:
            effect = self.hub.faults.take(route.target)
        except FaultError as error:
            self._answer(_error(500, 500, f"the hub's fault file is wrong: {error}"), Effect(), request)
            return
        self.sender.pause(effect.delay or 0.0)
        reply = self._replacement(route, request, effect) or self._reply(route, request, effect)
        reply.headers.update(effect.headers or {})
        self._answer(reply, effect, request)

    def _answer(self, reply: _Reply, effect: Effect, request: Request | None) -> None:
        body = reply.body
        if effect.truncate is not None:
            body = body.slice(body.start, min(effect.truncate, body.length))
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(body.length), **reply.headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if request is not None:
            request.status = reply.status
        if self.command == "HEAD":
            return
        if body.path is None and not effect.shaped:
            self.wfile.write(body.data[body.start : body.start + body.length])  # one packet with the headers
            _count(request, body.length)
            return
        self.wfile.flush()
        try:
            self.sender.send(body, effect, lambda count: _count(request, count))
        except Cut:
            if effect.drop != "fin":
                prepare_reset(self.connection)
            raise

    def _replacement(self, route: _Route, request: Request, effect: Effect) -> _Reply | None:
        """The answer a fault gives in place of the hub's own, or None."""
        if effect.body is not None:
            return _raw_reply(effect.status or 200, effect.body)
        if effect.status is not None:
            return _error(effect.status, effect.status, f"the hub was told to answer {effect.status}")
        if effect.redirect is not None and route.op != "file":
            path_and_query = self.path if route.op != "lfs" else self.hub.sign(unquote(request.path), URL_TTL)
            return _redirect(self.hub.absolute(effect.redirect, path_and_query))
        return None

    def _reply(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        """The hub's own answer."""
        if route.op == "lfs":
            return self._lfs(route, request, effect)
        if route.op == "accel":
            return _json_reply(200, envelope({"InternalRegionQueryAddress": ""}, str(uuid.uuid4())))
        if route.op == "me":
            return self._me(request)
        if route.op == "none":
            return _error(404, 404, "no such endpoint")
        if not self.hub.store.has(route.model):
            return self._denied(route, CODE_NOT_FOUND, _NOT_FOUND_TEXT)
        if not self.hub.access.allows(route.model, _offered_tokens(request)):
            return self._denied(route, CODE_NO_ACCESS, "无权限访问该模型: no access to the model")
        answer = {
            "list": self._list,
            "file": self._file,
            "resolve": self._file,
            "revisions": self._revisions,
            "commits": self._commits,
            "info": self._info,
            "openapi": self._openapi,
            "git": self._git,
        }[route.op]
        return answer(route, request, effect)

    def _denied(self, route: _Route, code: int, text: str) -> _Reply:
        if route.op == "openapi":
            return _json_reply(404, {"success": False, "request_id": str(uuid.uuid4()), "code": code, "message": text})
        return _error(404, code, text)

    def _me(self, request: Request) -> _Reply:
        known = set(self.hub.access.tokens) | set(self.hub.access.approved)
        if known & set(_offered_tokens(request)):
            return _json_reply(200, {"success": True, "request_id": str(uuid.uuid4()), "data": {"username": "tester"}})
        return _json_reply(401, {"success": False, "request_id": str(uuid.uuid4()), "message": "invalid token"})

    def _list(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        if effect.success is False:
            return _error(200, 500, "the hub was told to fail")
        commit = self.hub.store.resolve(route.model, route.revision)
        if commit is None and effect.bad_revision != "empty":
            return _error(404, CODE_NO_TREE, f"没有找到文件树: no file tree at revision {route.revision}")
        rows: list[Row] = []
        if commit is not None and not effect.empty:
            # The key is case-sensitive, as on the real hub: any other spelling is ignored without an error.
            recursive = request.query.get("Recursive", "").lower() == "true"
            rows = _under(self.hub.store.rows(route.model, commit), request.query.get("Root", ""), recursive=recursive)
            rows = change_rows(rows, effect)
        rows = rows[: LISTING_CAP if effect.cap is None else effect.cap]
        return _json_reply(200, envelope({"Files": rows, "IsVisual": 0, "LatestCommitter": {}}, str(uuid.uuid4())))

    def _file(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        extra = self.hub.faults.extra_content(f"list/{route.model}", route.path)
        if extra is not None:
            return _Reply(200, Body.of_bytes(extra), {"Content-Type": "application/octet-stream"})
        commit = self.hub.store.resolve(route.model, route.revision)
        if commit is None:
            return _error(404, CODE_NO_TREE, f"没有找到文件树: no file tree at revision {route.revision}")
        row = self.hub.store.row(route.model, commit, route.path)
        if row is None:
            return _error(404, CODE_NOT_FOUND, f"file not found: {route.path}")
        signed = self.hub.sign(f"/lfs/{route.model}/{commit}/{route.path}", effect.url_ttl or URL_TTL)
        if effect.redirect is not None:
            return _redirect(self.hub.absolute(effect.redirect, signed))
        # HEAD on this endpoint answers for the file itself, without the redirect.
        if row["IsLFS"] and not effect.direct and self.command == "GET":
            host = request.headers.get("host") or f"127.0.0.1:{self.hub.port}"
            return _redirect(self.hub.absolute(self.hub.lfs_base or f"http://{host}", signed))
        honour = row["IsLFS"] or effect.range is not None
        return self._bytes(route.model, commit, row, request, effect, honour_range=honour)

    def _lfs(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        problem = self.hub.signature_fault(unquote(request.path), request.query.get("auth_key", ""))
        row = None
        if problem is None and self.hub.store.has(route.model) and self.hub.store.resolve(route.model, route.revision):
            row = self.hub.store.row(route.model, route.revision, route.path)
        if row is None:
            page = "<html><head><title>403 Forbidden</title></head><body><h1>403 Forbidden</h1></body></html>\n"
            return _Reply(
                403,
                Body.of_bytes(page.encode()),
                {"Content-Type": "text/html", "X-Tengine-Error": problem or "denied by req auth: no such object"},
            )
        return self._bytes(route.model, route.revision, row, request, effect, honour_range=True)

    def _bytes(
        self, model: str, commit: str, row: Row, request: Request, effect: Effect, *, honour_range: bool
    ) -> _Reply:
        """The bytes of one file, or the part asked for, the way ``effect.range`` wants it."""
        path = self.hub.store.blob(model, commit, row["Path"])
        if not path.is_file() or path.stat().st_size != row["Size"]:
            return _error(500, 500, f"the hub's copy of {row['Path']} is missing or was changed: add the model again")
        whole = Body.of_file(path, row["Size"])
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{hashlib.md5(row["Sha256"].encode(), usedforsecurity=False).hexdigest()}"',
        }
        if row["IsLFS"]:
            headers["X-Linked-ETag"] = f'"{row["Sha256"]}"'
        mode = effect.range or ("206" if honour_range else "ignore")
        if mode == "ignore" or request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
            return _Reply(200, whole, headers)
        headers["Accept-Ranges"] = "bytes"
        try:
            asked = parse_range(request.headers.get("range"), whole.total)
        except Unsatisfiable:
            return _Reply(416, Body.of_bytes(b""), {**headers, "Content-Range": f"bytes */{whole.total}"})
        if asked is None:
            return _Reply(200, whole, headers)
        start, length = asked
        other = start - length if start >= length else min(start + length, whole.total - length)
        headers["Content-Range"] = _content_range(
            other if mode == "shift" else start, length, whole.total + (1 if mode == "total" else 0)
        )
        part = whole.slice(other if mode in ("lie", "shift") else start, length)
        return _Reply(200 if mode == "200" else 206, part, headers)

    def _revisions(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        revision_map = self.hub.store.revisions(route.model)
        return _json_reply(200, envelope({"RevisionMap": revision_map}, str(uuid.uuid4())))

    def _commits(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        commit = self.hub.store.resolve(route.model, route.revision)
        if commit is None:
            return _json_reply(200, envelope({"Commit": None, "TotalCount": 0}, str(uuid.uuid4())))
        found = self._history(route.model, commit)
        size, page = _number(request.query.get("PageSize"), 20), _number(request.query.get("PageNumber"), 1)
        shown = found[(page - 1) * size : page * size]
        return _json_reply(200, envelope({"Commit": shown, "TotalCount": len(found)}, str(uuid.uuid4())))

    def _history(self, model: str, commit: str) -> list[Row]:
        found: dict[str, Row] = {}
        waiting = [commit]
        while waiting:
            current = waiting.pop()
            if current not in found and self.hub.store.resolve(model, current):
                found[current] = self.hub.store.commit(model, current)
                waiting.extend(found[current]["ParentIds"])
        return list(found.values())

    def _info(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        owner, name = route.model.split("/")
        data = {"Name": name, "Path": owner, "Revision": "master", "Visibility": 1 if self._hidden(route.model) else 5}
        return _json_reply(200, envelope(data, str(uuid.uuid4())))

    def _openapi(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        revision_map = self.hub.store.revisions(route.model)
        head = (revision_map["Branches"] + revision_map["Tags"])[0]
        rows = self.hub.store.rows(route.model, head["CommitId"])
        data = {
            "id": route.model,
            "downloads": 1,
            "file_size": sum(row["Size"] for row in rows),
            "tags": [],
            "private": self._hidden(route.model),
            "gated": route.model in self.hub.access.gated,
            "last_modified": email.utils.formatdate(head["CreatedAt"], usegmt=True),
        }
        return _json_reply(200, {"success": True, "request_id": str(uuid.uuid4()), "data": data})

    def _git(self, route: _Route, request: Request, effect: Effect) -> _Reply:
        if not request.headers.get("user-agent", "").startswith("git/"):
            return _error(421, 421, "misdirected request")
        if request.query.get("service") != "git-upload-pack":
            return _error(404, CODE_NOT_FOUND, "no such service")
        body = _advertisement(self.hub.store.revisions(route.model))
        headers = {"Content-Type": "application/x-git-upload-pack-advertisement", "Cache-Control": "no-cache"}
        return _Reply(200, Body.of_bytes(body), headers)

    def _hidden(self, model: str) -> bool:
        return model in self.hub.access.private


def _route(path: str, query: dict[str, str]) -> _Route:
    """What a decoded URL path asks for; op ``none`` for what no hub answers."""
    parts = path.lstrip("/").split("/")
    revision = query.get("Revision") or "master"
    if path == "/api/v1/repos/internalAccelerationInfo":
        return _Route("accel")
    if path == "/openapi/v1/users/me":
        return _Route("me")
    if parts[:3] == ["openapi", "v1", "models"] and len(parts) == 5:
        return _model_route("openapi", parts[3:5])
    if parts[:3] == ["api", "v1", "models"] and len(parts) >= 5:
        op = {(): "info", ("repo", "files"): "list", ("repo",): "file", ("revisions",): "revisions"}.get(
            tuple(parts[5:])
        )
        if parts[5:] == ["commits"]:
            # A misspelt parameter is not an error: the real hub answers for master.
            return _model_route("commits", parts[3:5], revision=query.get("Ref") or "master")
        if op is not None:
            return _model_route(op, parts[3:5], query.get("FilePath", "") if op == "file" else "", revision)
    if parts[0] == "models" and len(parts) >= 6 and parts[3] == "resolve":
        return _model_route("resolve", parts[1:3], "/".join(parts[5:]), parts[4])
    if parts[0] == "lfs" and len(parts) >= 5 and is_commit(parts[3]):
        return _model_route("lfs", parts[1:3], "/".join(parts[4:]), parts[3])
    if len(parts) == 4 and parts[1].endswith(".git") and parts[2:] == ["info", "refs"]:
        return _model_route("git", [parts[0], parts[1].removesuffix(".git")])
    return _Route("none", path=path.lstrip("/"))


def _model_route(op: str, model: list[str], path: str = "", revision: str = "") -> _Route:
    name = "/".join(model)
    return _Route(op, name, path, revision) if is_model_id(name) else _Route("none", path=f"{op}/{name}")


def _under(rows: list[Row], root: str, *, recursive: bool) -> list[Row]:
    """The rows below the directory ``root``; only its direct children unless ``recursive``."""
    prefix = root.strip("/") + "/" if root.strip("/") else ""
    below = [row for row in rows if row["Path"].startswith(prefix)]
    return below if recursive else [row for row in below if "/" not in row["Path"][len(prefix) :]]


def _offered_tokens(request: Request) -> list[str]:
    scheme, _unused, token = request.headers.get("authorization", "").partition(" ")
    offered = [token.strip()] if scheme.lower() == "bearer" else []
    with contextlib.suppress(http.cookies.CookieError):
        cookie = http.cookies.SimpleCookie(request.headers.get("cookie", "")).get("m_session_id")
        if cookie is not None:
            offered.append(cookie.value)
    return offered


def _json_reply(status: int, value: Any) -> _Reply:
    # ASCII only: some fault rows hold what UTF-8 cannot.
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    return _Reply(status, Body.of_bytes(body), {"Content-Type": "application/json; charset=utf-8"})


def _error(status: int, code: int, message: str) -> _Reply:
    return _json_reply(status, {"Code": code, "Message": message, "RequestId": str(uuid.uuid4()), "Success": False})


def _raw_reply(status: int, body: Any) -> _Reply:
    if isinstance(body, (dict, list)):
        return _json_reply(status, body)
    data = body if isinstance(body, bytes) else str(body).encode()
    kind = "text/html" if data.lstrip().startswith(b"<") else "text/plain"
    return _Reply(status, Body.of_bytes(data), {"Content-Type": f"{kind}; charset=utf-8"})


def _redirect(location: str) -> _Reply:
    return _Reply(302, Body.of_bytes(b""), {"Location": location})


def _content_range(start: int, length: int, total: int) -> str:
    return f"bytes {start}-{start + length - 1}/{total}"


def _advertisement(revision_map: dict[str, list[Row]]) -> bytes:
    """The refs as git's smart HTTP protocol (version 0) announces them."""
    heads = [(f"refs/heads/{row['Revision']}", row["CommitId"]) for row in revision_map["Branches"]]
    refs = heads + [(f"refs/tags/{row['Revision']}", row["CommitId"]) for row in revision_map["Tags"]]
    head, commit = next((ref for ref in heads if ref[0] == "refs/heads/master"), refs[0])
    lines = [f"{commit} HEAD\0symref=HEAD:{head} agent=git/model-hub\n"]
    lines += [f"{target} {name}\n" for name, target in sorted(refs)]
    return _packet("# service=git-upload-pack\n") + b"0000" + b"".join(map(_packet, lines)) + b"0000"


def _packet(line: str) -> bytes:
    data = line.encode()
    return f"{len(data) + 4:04x}".encode() + data


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() and int(text) > 0 else default


def _count(request: Request | None, count: int) -> None:
    if request is not None:
        request.sent += count
