# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of a run, and who asks it: friends, strangers and the hostile, over loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_client import Authorities, PeerClient, PeerFailure
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_server import PeerServer, ServerLimits
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Shelf
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import DIGESTS, PIECE, Question

SIZE = 64 * 1024
DATA = Random(5).randbytes(9 * SIZE + 5)
ENTRY = Entry("model.safetensors", len(DATA), hashlib.sha256(DATA).hexdigest())
SECRET = "a1" * 32
GIVER, TAKER, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.4"
LIMITS = ServerLimits(connections=8, each=6, head=0.5, idle=1.0, send=0.5)
PATIENCE = Patience(connect=2.0, answer=2.0, piece=5.0)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    made = Shelf(SIZE)
    made.expect([ENTRY])
    made.offer(ENTRY, lambda: os.open(path, os.O_RDONLY))
    yield made
    made.close()


@pytest.fixture
def server(shelf: Shelf) -> Iterator[PeerServer]:
    made = PeerServer(shelf, SECRET, GIVER, 0, [GIVER, TAKER], limits=LIMITS)
    made.start()
    yield made
    made.close()


def client(server: PeerServer, secret: str = SECRET, bind: str = TAKER, patience: Patience = PATIENCE) -> PeerClient:
    return PeerClient(secret, {"giver": GIVER}, server.port, bind, patience)


def piece(index: int, wait: float = 0.0) -> Question:
    return Question(PIECE, ENTRY.sha256, index * SIZE, min((index + 1) * SIZE, len(DATA)), wait)


def speak(server: PeerServer, data: bytes, bind: str = TAKER, seconds: float = 5.0) -> bytes:
    """What a connection hears until its end."""
    with socket.create_connection((GIVER, server.port), seconds, (bind, 0)) as sock:
        sock.sendall(data)
        heard = b""
        while more := sock.recv(65536):
            heard += more
        return heard


# ---- friends


def test_pieces_and_digests_come_over_kept_connections(server: PeerServer) -> None:
    asker = client(server)
    whole = b""
    for index in range(10):
        reply = asker.ask("giver", piece(index))
        assert reply.status == _swarm_wire.OK
        assert hashlib.sha256(reply.body).hexdigest() == reply.facts.digest
        whole += reply.body
    assert whole == DATA
    reply = asker.ask("giver", Question(DIGESTS, ENTRY.sha256, 3))
    wanted = [hashlib.sha256(DATA[index * SIZE : (index + 1) * SIZE]).digest() for index in range(3, 10)]
    assert bytes(reply.body) == b"".join(wanted)
    assert reply.facts.verified
    assert server.served == {TAKER: len(DATA)}
    assert sum(len(kept) for kept in asker._idle.values()) == 1
    asker.close()


def test_connection_that_the_other_side_closed_is_opened_anew(server: PeerServer) -> None:
    asker = client(server)
    asker.ask("giver", piece(0))
    for sock in list(server._connections):
        sock.shutdown(socket.SHUT_RDWR)
    time.sleep(0.1)
    assert asker.ask("giver", piece(1)).status == _swarm_wire.OK
    asker.close()


def test_who_asks_too_early_is_told_to_wait(server: PeerServer, shelf: Shelf) -> None:
    later = Entry("later", 10, "77" * 32)
    shelf.expect([later])
    asker = client(server)
    began = time.monotonic()
    reply = asker.ask("giver", Question(PIECE, later.sha256, 0, 10, 0.3))
    assert (reply.status, bytes(reply.body)) == (_swarm_wire.WAITING, b"")
    assert time.monotonic() - began >= 0.3
    shelf.abandon([later])
    assert asker.ask("giver", Question(PIECE, later.sha256, 0, 10, 5.0)).status == _swarm_wire.GONE
    assert asker.ask("giver", Question(PIECE, "99" * 32, 0, 10)).status == _swarm_wire.UNKNOWN
    asker.close()


@pytest.mark.parametrize(("start", "end"), [(1, SIZE), (0, SIZE - 1), (0, 2 * SIZE), (10 * SIZE, 10 * SIZE + 1)])
def test_only_whole_pieces_are_given(server: PeerServer, start: int, end: int) -> None:
    asker = client(server)
    with pytest.raises(PeerFailure):
        asker.ask("giver", Question(PIECE, ENTRY.sha256, start, end))
    asker.close()


def test_bandwidth_is_kept(shelf: Shelf) -> None:
    made = PeerServer(shelf, SECRET, GIVER, 0, [TAKER], bandwidth=256 * 1024)
    made.start()
    asker = client(made)
    began = time.monotonic()
    for index in range(4):
        asker.ask("giver", piece(index))
    assert time.monotonic() - began >= 0.7, "256 KiB at 256 KiB/s, but for the first bytes"
    asker.close()
    made.close()


# ---- strangers


def test_stranger_is_cut_off_before_it_speaks(server: PeerServer) -> None:
    request, _nonce = _swarm_wire.ask(SECRET, "giver", piece(0))
    try:
        heard = speak(server, request, STRANGER)
    except ConnectionResetError:
        heard = b""
    assert heard == b""
    assert server.refused == {STRANGER: 1}


def test_neighbour_without_the_secret_hears_no_more_than_no(server: PeerServer) -> None:
    asker = client(server, "b2" * 32)
    with pytest.raises(PeerFailure, match="refused us"):
        asker.ask("giver", piece(0))
    asker.close()
    assert server.refused == {TAKER: 1}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET /piece/../../etc/passwd HTTP/1.1\r\n\r\n", 403),
        (b"POST / HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: 1\r\nA: 2\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000, 431),
        (b"GET / HTTP/1.1\r\nX: slow", 408),
    ],
    ids=range(12),
)
def test_nonsense_is_refused_with_a_bare_status(server: PeerServer, data: bytes, status: int) -> None:
    try:
        heard = speak(server, data)
    except ConnectionResetError:  # a flood that is not read to its end
        return
    assert heard == _swarm_wire.refusal_head(status)


def test_who_drips_is_cut_off(server: PeerServer) -> None:
    began = time.monotonic()
    with socket.create_connection((GIVER, server.port), 5, (TAKER, 0)) as sock:
        with pytest.raises(OSError, match=r".*"):  # noqa: PT012 - whichever byte it is
            for _unused in range(100):
                sock.sendall(b"G")
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_who_says_nothing_is_cut_off(server: PeerServer) -> None:
    assert speak(server, b"") == b""


def test_who_does_not_read_is_cut_off_and_others_are_served(server: PeerServer) -> None:
    lazy = socket.create_connection((GIVER, server.port), 5, (TAKER, 0))
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for index in range(9):
        lazy.sendall(_swarm_wire.ask(SECRET, "giver", piece(index))[0])
    asker = client(server, bind=GIVER)
    assert asker.ask("giver", piece(1)).status == _swarm_wire.OK
    deadline = time.monotonic() + 10
    while len(server._connections) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(server._connections) == 1
    asker.close()
    lazy.close()


def test_crowd_is_let_in_up_to_the_limit(server: PeerServer) -> None:
    crowd = [socket.create_connection((GIVER, server.port), 5, (TAKER, 0)) for _unused in range(20)]
    time.sleep(0.3)
    assert len(server._connections) == LIMITS.each
    asker = client(server, bind=GIVER)
    assert asker.ask("giver", piece(0)).status == _swarm_wire.OK, "others still get in"
    asker.close()
    for sock in crowd:
        sock.close()


# ---- places


def test_taken_port_is_an_error_that_names_it(server: PeerServer, shelf: Shelf) -> None:
    second = PeerServer(shelf, SECRET, GIVER, server.port, [TAKER])
    with pytest.raises(FleetError, match=f"port {server.port} of {GIVER} is taken") as caught:
        second.start()
    assert caught.value.code == "swarm.port_taken"
    assert "vllm_artifact_peer_port" in caught.value.remedy


def test_foreign_address_is_an_error_that_names_it(shelf: Shelf) -> None:
    with pytest.raises(FleetError, match=r"192\.0\.2\.1 is not an address of this host") as caught:
        PeerServer(shelf, SECRET, "192.0.2.1", 0, [TAKER]).start()
    assert caught.value.code == "swarm.foreign_address"


def test_closed_server_frees_its_port_and_breaks_what_waits(server: PeerServer, shelf: Shelf) -> None:
    later = Entry("later", 10, "77" * 32)
    shelf.expect([later])
    asker = client(server)
    failed: list[str] = []

    def wait() -> None:
        try:
            asker.ask("giver", Question(PIECE, later.sha256, 0, 10, 5.0))
        except PeerFailure as exc:
            failed.append(str(exc))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    server.close()
    thread.join(10)
    assert failed
    assert time.monotonic() - began < 5
    again = PeerServer(shelf, SECRET, GIVER, server.port, [TAKER])
    again.start()
    again.close()
    asker.close()


# ---- odd servers


def odd(behave: Callable[[socket.socket], None]) -> tuple[socket.socket, int]:
    listener = socket.create_server((GIVER, 0))

    def run() -> None:
        while True:
            try:
                sock, _address = listener.accept()
            except OSError:
                return
            with sock:
                try:
                    sock.recv(4096)
                    behave(sock)
                except OSError:
                    pass

    threading.Thread(target=run, daemon=True).start()
    return listener, listener.getsockname()[1]


@pytest.mark.parametrize(
    ("behave", "text"),
    [
        (lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), "not of this run"),
        (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"), "not of this run"),
        (lambda sock: sock.sendall(b"x" * 10_000), "without end"),
        (lambda sock: sock.sendall(b"HTTP/1.1 200"), "middle of an answer"),
        (lambda sock: None, "without an answer"),
        (lambda sock: time.sleep(3), "timeout"),
    ],
    ids=["a web server", "sshd", "a flood", "half an answer", "nothing", "silence"],
)
def test_odd_server_is_a_failure_with_a_reason(behave: Callable[[socket.socket], None], text: str) -> None:
    listener, port = odd(behave)
    asker = PeerClient(SECRET, {"giver": GIVER}, port, TAKER, Patience(connect=1.0, answer=1.0))
    with pytest.raises(PeerFailure, match=text):
        asker.ask("giver", piece(0))
    asker.close()
    with pytest.raises(PeerFailure):
        asker.ask("giver", piece(0))
    listener.close()


def test_nobody_there_is_a_failure_with_a_reason() -> None:
    with socket.create_server((GIVER, 0)) as free:
        port = free.getsockname()[1]
    asker = PeerClient(SECRET, {"giver": GIVER}, port, None, PATIENCE)
    with pytest.raises(PeerFailure, match="cannot be reached: connection refused"):
        asker.ask("giver", piece(0))
    asker.close()


# ---- authorities


def test_digests_are_asked_in_batches_and_kept(server: PeerServer) -> None:
    asker, asked = client(server), list[int]()

    def ask(name: str, question: Question) -> object:
        asked.append(question.start)
        return asker.ask(name, question)

    slept: list[float] = []
    authorities = Authorities(ask, 0.5, clock=lambda: 100.0, sleep=slept.append)  # type: ignore[arg-type]
    wanted = [hashlib.sha256(DATA[index * SIZE : (index + 1) * SIZE]).digest() for index in range(10)]
    assert [authorities.find("giver", ENTRY.sha256, index) for index in range(2, 10)] == wanted[2:]
    assert asked == [2]
    assert authorities.find("giver", ENTRY.sha256, 0) == wanted[0]
    assert asked == [2, 0]
    assert slept == [0.5], "not more often than that"
    facts = authorities.facts("giver", ENTRY.sha256)
    assert facts is not None
    assert facts.verified
    authorities.forget(ENTRY.sha256)
    assert authorities.facts("giver", ENTRY.sha256) is None
    assert authorities.find("giver", ENTRY.sha256, 0) == wanted[0]
    assert asked == [2, 0, 0]
    assert authorities.find("giver", "99" * 32, 0) is None
    asker.close()
