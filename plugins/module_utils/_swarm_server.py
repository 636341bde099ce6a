# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Gives what is on the shelf to the other hosts of the run, and nothing to anybody else.

One thread a connection. Whoever is not of the inventory is cut off before a byte is read; a request without the run's
secret gets a bare 403; heads are small and have a deadline; a client that does not read is cut off too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import normal_address, piece_count, piece_range
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Absent, Shelf
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import (
    DENIED,
    GONE,
    OK,
    UNKNOWN,
    WAITING,
    Facts,
    Question,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import Bucket

_SENT_AT_ONCE = 1024 * 1024
_UNSENT = 128 * 1024
_AT_ONCE = 2
_TURN = 1.0
"""Seconds that a piece which is there may wait for its turn beyond what its client asked for."""


@dataclass(frozen=True)
class ServerLimits:
    """Connections in all and from one address, and seconds: for a request's head once it began, between two requests,
    for a client to read anything."""

    connections: int = 1024
    each: int = 16
    head: float = 10.0
    idle: float = 120.0
    send: float = 20.0


class PeerServer:
    """Serves ``shelf`` at ``bind``:``port`` to the addresses ``allowed``, ``bandwidth`` bytes per second (0: all)."""

    def __init__(
        self,
        shelf: Shelf,
        secret: str,
        bind: str,
        port: int,
        allowed: Collection[str],
        bandwidth: int = 0,
        limits: ServerLimits | None = None,
    ) -> None:
        self._shelf, self._secret, self._bind, self.port = shelf, secret, bind, port
        self._allowed = {normal_address(address) for address in allowed}
        self._bucket, self._limits = Bucket(bandwidth), limits or ServerLimits()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, str] = {}
        self._turns: dict[str, threading.Semaphore] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._sent = 0
        self.served: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.asked_at = time.monotonic()

    def start(self) -> None:
        """Raises FleetError where nobody can listen there."""
        family = socket.AF_INET6 if ":" in self._bind else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._bind, self.port))
            listener.listen(128)
        except OSError as exc:
            listener.close()
            raise self._cannot_listen(exc) from exc
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def close(self) -> None:
        """Break every connection and free the port."""
        self._stopping.set()
        with self._lock:
            listener, self._listener = self._listener, None
            connections, threads = list(self._connections), list(self._threads)
        for item in ([listener] if listener else []) + connections:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 2.0
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        if listener is not None:
            listener.close()

    def _cannot_listen(self, exc: OSError) -> FleetError:
        where = f"port {self.port} of {self._bind}"
        if exc.errno == errno.EADDRINUSE:
            return FleetError(
                "swarm.port_taken",
                f"{where} is taken by another program",
                "a free port for the hosts of the fleet to get model artifacts from each other",
                "Stop that program, or choose another port for the whole fleet: vllm_artifact_peer_port",
            )
        if exc.errno == errno.EADDRNOTAVAIL:
            return FleetError(
                "swarm.foreign_address",
                f"{self._bind} is not an address of this host",
                "the address at which the other hosts of the fleet reach this one",
                "Set vllm_address to an address that one of the host's interfaces has",
            )
        return FleetError(
            "swarm.cannot_listen",
            f"{where} cannot be listened on: {exc.strerror or type(exc).__name__}",
            "a port of its own for giving model artifacts to the other hosts",
            "Choose a port above 1023 with vllm_artifact_peer_port, or see what forbids it",
        )

    # --- connections ---

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._lock:
            self._threads = [item for item in self._threads if item.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                sock, address = listener.accept()
            except OSError as exc:
                if self._stopping.is_set() or exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    return
                self._stopping.wait(0.1)
                continue
            client = normal_address(address[0])
            if not self._admit(sock, client):
                with contextlib.suppress(OSError):
                    sock.close()
                continue
            try:
                self._spawn(self._serve, sock, client)
            except RuntimeError:  # no more threads
                self._leave(sock)

    def _admit(self, sock: socket.socket, client: str) -> bool:
        with self._lock:
            full = len(self._connections) >= self._limits.connections
            if client not in self._allowed:
                self.refused[client] += 1
                return False
            if full or sum(other == client for other in self._connections.values()) >= self._limits.each:
                return False
            self._connections[sock] = client
            return True

    def _leave(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.pop(sock, None)
        with contextlib.suppress(OSError):
            sock.close()

    def _serve(self, sock: socket.socket, client: str) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Else the kernel takes whole pieces at once, and those whose turn it is not are sent all the same.
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", 25), _UNSENT)
            reader = _Heads(sock, self._limits)
            while not self._stopping.is_set():
                head = reader.next()
                if head is None or not self._answer(sock, client, head):
                    return
        except _Refuse as exc:
            with contextlib.suppress(OSError):
                sock.settimeout(1.0)
                sock.sendall(_swarm_wire.refusal_head(exc.status))
        except (OSError, _CutOff):
            pass  # a client that went away is nothing to report
        finally:
            self._leave(sock)

    def _answer(self, sock: socket.socket, client: str, head: bytes) -> bool:
        """Answer one request; whether more may come over this connection."""
        question, headers = self._question(client, head)
        entry = self._shelf.entry(question.sha256)
        self.asked_at = time.monotonic()
        if entry is None:
            self._send(sock, question, UNKNOWN, self._facts(), b"")
        elif question.kind == _swarm_wire.DIGESTS:
            self._digests(sock, question)
        else:
            index = question.start // self._shelf.piece
            known = index < piece_count(entry.size, self._shelf.piece)
            if not known or (question.start, question.end) != piece_range(index, entry.size, self._shelf.piece):
                raise _Refuse(416)
            self._piece(sock, client, question, index)
        return headers.get("connection", "").lower() != "close"

    def _question(self, client: str, head: bytes) -> tuple[Question, dict[str, str]]:
        try:
            line, headers = _swarm_wire.read_head(head)
            method, path, version = line.split(" ")
        except ValueError as exc:
            raise _Refuse(400) from exc
        if version != "HTTP/1.1" or "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            raise _Refuse(400)
        if method != "GET":
            raise _Refuse(405)
        try:
            return _swarm_wire.read_question(self._secret, path, headers), headers
        except _swarm_wire.NotOurs as exc:
            with self._lock:
                self.refused[client] += 1
            raise _Refuse(DENIED) from exc
        except ValueError as exc:
            raise _Refuse(UNKNOWN) from exc

    # --- answers ---

    def _digests(self, sock: socket.socket, question: Question) -> None:
        found = self._shelf.digests(question.sha256, question.start, _swarm_wire.DIGESTS_MAX)
        generation, verified = self._shelf.generation(question.sha256)
        body = b"".join(found)
        facts = self._facts(generation, hashlib.sha256(body).digest(), verified)
        self._send(sock, question, OK, facts, body)

    def _piece(self, sock: socket.socket, client: str, question: Question, index: int) -> None:
        deadline = time.monotonic() + question.wait
        taken = self._shelf.take(question.sha256, index, question.wait)
        if isinstance(taken, Absent):
            self._send(sock, question, WAITING if taken.waiting else GONE, self._facts(taken.generation), b"")
            return
        with self._lock:
            turn = self._turns.setdefault(client, threading.Semaphore(_AT_ONCE))
        try:
            # One piece after the other to each client, the next one close behind: side by side they would all be late,
            # and the host behind the client waits for the first that is whole.
            if not turn.acquire(timeout=max(0.0, deadline - time.monotonic()) + _TURN):
                self._send(sock, question, WAITING, self._facts(taken.generation), b"")
                return
            try:
                count = question.end - question.start
                facts = self._facts(taken.generation, taken.digest)
                self._send_all(sock, _swarm_wire.answer_head(self._secret, question.nonce, OK, facts, count))
                self._send_file(sock, taken.handle, question.start, count)
            finally:
                turn.release()
        finally:
            os.close(taken.handle)
        with self._lock:
            self.served[client] += count

    def _facts(self, generation: int = 0, digest: bytes = b"", verified: bool = False) -> Facts:
        # What was sent counts too: a client that waits for its turn sees that it comes nearer.
        return Facts(generation, verified, self._shelf.progress + self._sent, digest.hex())

    def _send(self, sock: socket.socket, question: Question, status: int, facts: Facts, body: bytes) -> None:
        head = _swarm_wire.answer_head(self._secret, question.nonce, status, facts, len(body))
        self._send_all(sock, head + body)

    def _send_all(self, sock: socket.socket, data: bytes) -> None:
        sock.settimeout(self._limits.send)
        sock.sendall(data)

    def _send_file(self, sock: socket.socket, handle: int, offset: int, count: int) -> None:
        writable = select.poll()
        writable.register(sock, select.POLLOUT)
        most = self._bucket.chunk if self._bucket.rate else _SENT_AT_ONCE
        while count > 0:
            try:
                # The socket has a timeout, so this does not block.
                sent = os.sendfile(sock.fileno(), handle, offset, min(count, most))
            except BlockingIOError:
                if self._stopping.is_set() or not writable.poll(self._limits.send * 1000):
                    raise _CutOff from None
                continue
            if sent == 0:  # the file was dropped meanwhile
                raise _CutOff
            offset += sent
            count -= sent
            with self._lock:
                self._sent += sent
            if wait := self._bucket.draw(sent):
                self._stopping.wait(wait)


class _Refuse(Exception):
    """An answer that tells a stranger nothing, and the end of the connection."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _CutOff(Exception):
    """The connection is of no use any more."""


class _Heads:
    """The heads of one connection's requests; no request has a body."""

    def __init__(self, sock: socket.socket, limits: ServerLimits) -> None:
        self._sock, self._limits, self._data = sock, limits, b""

    def next(self) -> bytes | None:
        """The next head without its blank line; None when the client is done, or says nothing for too long."""
        deadline = 0.0
        while True:
            head, blank, rest = self._data.partition(b"\r\n\r\n")
            if blank:
                self._data = rest
                return head
            if len(self._data) > _swarm_wire.HEAD_MAX:
                raise _Refuse(431)
            now = time.monotonic()
            if self._data and not deadline:
                deadline = now + self._limits.head
            left = deadline - now if deadline else self._limits.idle
            if left <= 0:
                raise _Refuse(408)
            self._sock.settimeout(left)
            try:
                more = self._sock.recv(_swarm_wire.HEAD_MAX)
            except (TimeoutError, socket.timeout):  # two classes before Python 3.10
                if self._data:
                    raise _Refuse(408) from None
                return None
            if not more:
                return None
            self._data += more
