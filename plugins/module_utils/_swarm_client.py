# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Asking another host of the run: one question, one signed answer, over connections that are kept. Never by a proxy."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import Facts, NotOurs, Question

_BODY_MAX = 64 * 1024 * 1024


class PeerFailure(Exception):
    """A peer did not answer as it should; the text is the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class Reply:
    status: int
    facts: Facts
    body: bytearray


class _Connection:
    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock, self.name, self.used = sock, name, False


class PeerClient:
    """Asks the hosts of one run. ``bind`` is the own address that they know this host by, None for any.

    Safe to use from several threads.
    """

    def __init__(
        self,
        secret: str,
        addresses: Mapping[str, str],
        port: int,
        bind: str | None,
        patience: Patience,
    ) -> None:
        self._secret, self._addresses, self._port, self._bind = secret, addresses, port, bind
        self._patience = patience
        self._lock = threading.Lock()
        self._idle: dict[str, list[_Connection]] = {}
        self._busy: set[_Connection] = set()
        self._closed = False

    def ask(self, name: str, question: Question) -> Reply:
        """Raises PeerFailure."""
        connection = self._obtain(name)
        while True:
            try:
                reply = self._ask(connection, question)
            except _Stale:
                # The other side may close a connection at any time between two questions.
                self._drop(connection)
                connection = self._connect(name)
            except PeerFailure:
                self._drop(connection)
                raise
            except OSError as exc:
                self._drop(connection)
                raise PeerFailure(_said(exc)) from exc
            else:
                self._keep(connection)
                return reply

    def close(self) -> None:
        """Also breaks the questions that wait for an answer."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
            busy = list(self._busy)
        for connection in idle:
            connection.sock.close()
        for connection in busy:
            _shut(connection.sock)

    # --- one question ---

    def _ask(self, connection: _Connection, question: Question) -> Reply:
        sock, patience = connection.sock, self._patience
        request, nonce = _swarm_wire.ask(self._secret, connection.name, question)
        deadline = time.monotonic() + question.wait + patience.answer
        sock.settimeout(patience.answer)
        try:
            sock.sendall(request)
            head, rest = _receive_head(sock, deadline)
        except (ConnectionError, BrokenPipeError, _Ended) as exc:
            if connection.used:
                raise _Stale from exc
            raise PeerFailure("closed the connection without an answer") from exc
        connection.used = True
        status, facts, length = self._understand(head, nonce)
        body = bytearray(length)
        body[: len(rest)] = rest[:length]
        _receive_body(sock, body, min(len(rest), length), time.monotonic() + patience.piece, patience.answer)
        if len(rest) > length:
            raise PeerFailure("sent more than it said")
        return Reply(status, facts, body)

    def _understand(self, head: bytes, nonce: str) -> tuple[int, Facts, int]:
        try:
            line, headers = _swarm_wire.read_head(head)
            version, status_text = line.split(" ")[:2]
            status, length = int(status_text), int(headers.get("content-length", "-1"))
            if version != "HTTP/1.1" or not 0 <= length <= _BODY_MAX:
                raise ValueError(line)
            if status in (_swarm_wire.DENIED, _swarm_wire.TOO_MANY) and "swarm-seal" not in headers:
                raise PeerFailure(f"refused us (HTTP {status})")
            return status, _swarm_wire.read_facts(self._secret, nonce, status, length, headers), length
        except (ValueError, NotOurs) as exc:
            raise PeerFailure(f"has something on port {self._port} that is not of this run") from exc

    # --- connections ---

    def _obtain(self, name: str) -> _Connection:
        with self._lock:
            kept = self._idle.get(name)
            if kept:
                connection = kept.pop()
                self._busy.add(connection)
                return connection
        return self._connect(name)

    def _connect(self, name: str) -> _Connection:
        source = (self._bind, 0) if self._bind else None
        try:
            sock = socket.create_connection((self._addresses[name], self._port), self._patience.connect, source)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:
            raise PeerFailure(f"cannot be reached: {_said(exc)}") from exc
        connection = _Connection(sock, name)
        with self._lock:
            if not self._closed:
                self._busy.add(connection)
                return connection
        sock.close()
        raise PeerFailure("is not asked any more")

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if not self._closed:
                self._idle.setdefault(connection.name, []).append(connection)
                return
        connection.sock.close()

    def _drop(self, connection: _Connection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.sock.close()


class _Stale(Exception):
    """A kept connection was closed by the other side before our question."""


class _Ended(Exception):
    """The connection ended before an answer began."""


def _receive_head(sock: socket.socket, deadline: float) -> tuple[bytes, bytes]:
    """The head without its blank line, and what came behind it."""
    data = b""
    while True:
        _set_timeout(sock, deadline)
        more = sock.recv(_swarm_wire.HEAD_MAX)
        if not more:
            if data:
                raise PeerFailure("ended the connection in the middle of an answer")
            raise _Ended
        data += more
        head, blank, rest = data.partition(b"\r\n\r\n")
        if blank:
            return head, rest
        if len(data) > _swarm_wire.HEAD_MAX:
            raise PeerFailure("sent an answer without end")


def _receive_body(sock: socket.socket, body: bytearray, filled: int, deadline: float, silence: float) -> None:
    view = memoryview(body)
    while filled < len(body):
        _set_timeout(sock, deadline, silence)
        count = sock.recv_into(view[filled:])
        if not count:
            raise PeerFailure("ended the connection in the middle of a piece")
        filled += count


def _set_timeout(sock: socket.socket, deadline: float, silence: float | None = None) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise PeerFailure("took too long")
    sock.settimeout(left if silence is None else min(left, silence))


def _said(exc: OSError) -> str:
    if isinstance(exc, (TimeoutError, socket.timeout)):  # two classes before Python 3.10
        return "no byte arrived before the timeout"
    return (exc.strerror or type(exc).__name__).lower()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Authorities:
    """The digests of pieces, each asked of the host that vouches for it, never of the one that gave the bytes.

    Many digests come in one answer and are kept;
    ``interval`` is the least time between two requests.
    """

    def __init__(
        self,
        ask: Callable[[str, Question], Reply],
        interval: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask, self._interval, self._clock, self._sleep = ask, interval, clock, sleep
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._asked_at: dict[str, float] = {}
        self._known: dict[tuple[str, str], dict[int, bytes]] = {}
        self._facts: dict[tuple[str, str], Facts] = {}

    def find(self, voucher: str, sha256: str, index: int) -> bytes | None:
        """The digest that ``voucher`` vouches for; None where it has none yet. Raises PeerFailure."""
        known = self._known.get((voucher, sha256), {}).get(index)
        if known is not None:
            return known
        with self._lock:
            turn = self._asking.setdefault(voucher, threading.Lock())
        with turn:
            known = self._known.get((voucher, sha256), {}).get(index)
            if known is not None:
                return known
            rest = self._asked_at.get(voucher, -self._interval) + self._interval - self._clock()
            if rest > 0:
                self._sleep(rest)
            self._asked_at[voucher] = self._clock()
            return self._fetch(voucher, sha256, index)

    def facts(self, voucher: str, sha256: str) -> Facts | None:
        """What the voucher said about the content when it was last asked for digests of it."""
        return self._facts.get((voucher, sha256))

    def forget(self, sha256: str) -> None:
        """The content was dropped: ask anew."""
        with self._lock:
            for table in (self._known, self._facts):
                for key in [key for key in table if key[1] == sha256]:
                    del table[key]

    def _fetch(self, voucher: str, sha256: str, index: int) -> bytes | None:
        reply = self._ask(voucher, Question(_swarm_wire.DIGESTS, sha256, index))
        if reply.status != _swarm_wire.OK:
            return None
        body = bytes(reply.body)
        if len(body) % 32 or hashlib.sha256(body).hexdigest() != reply.facts.digest:
            raise PeerFailure("sent digests that are none")
        key = (voucher, sha256)
        with self._lock:
            before = self._facts.get(key)
            if before is not None and before.generation != reply.facts.generation:
                self._known.pop(key, None)
            self._facts[key] = reply.facts
            table = self._known.setdefault(key, {})
            for place in range(len(body) // 32):
                table[index + place] = body[32 * place : 32 * place + 32]
        return body[:32] or None
