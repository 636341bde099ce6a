# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import email
import email.policy
import http.server
import json
import socket
import threading
import time
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _openai
from ansible_collections.gpufleet.vllm.plugins.module_utils._openai import (
    Answer,
    Engine,
    EngineError,
    EngineUnreachable,
    error_message,
)

KEY = "sk-correct"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5

    def log_message(self, *_args: t.Any) -> None:
        pass

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = t.cast("Server", self.server)
        server.seen.append(self)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            server.answer(self)
        self.close_connection = True

    do_POST = do_GET

    def send(self, status: int, body: bytes, kind: str = "application/json", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, *pieces: bytes, chunked: bool = True, end: bool = True, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            self.wfile.flush()
        if chunked and end:
            self.wfile.write(b"0\r\n\r\n")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[Handler] = []
        self.answer: t.Callable[[Handler], None] = lambda handler: handler.send(200, b"{}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> t.Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def event(content: str, key: str = "content") -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {key: content}}]}).encode() + b"\n\n"


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def chat(server: Server, timeout: float = 5.0) -> _openai.Streamed:
    return Engine(server.url, timeout=timeout).stream_chat({"model": "m", "messages": []})


@pytest.mark.parametrize("chunked", [True, False])
def test_stream(server: Server, chunked: bool) -> None:
    pieces = (b": keep-alive\n\n", ROLE, event("Par"), b"event: ping\nid: 3\n\n", event("is"), USAGE, DONE)
    server.answer = lambda handler: handler.stream(*pieces, chunked=chunked)
    streamed = chat(server)
    assert (streamed.text, streamed.chunks) == ("Paris", 2)
    assert 0 < streamed.first_token_seconds <= streamed.seconds < 5
    (seen,) = server.seen
    assert (seen.command, seen.path) == ("POST", "/v1/chat/completions")
    assert json.loads(seen.body)["stream"] is True
    assert seen.headers["Authorization"] is None


@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning"])
def test_reasoning_counts_as_speech(server: Server, key: str) -> None:
    server.answer = lambda handler: handler.stream(event("Hmm", key), DONE)
    assert chat(server).text == "Hmm"


def test_events_split_across_packets(server: Server) -> None:
    text = event("Zürich") + DONE
    server.answer = lambda handler: handler.stream(*(text[i : i + 7] for i in range(0, len(text), 7)))
    assert chat(server).text == "Zürich"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((event("Par"),), "ended without [DONE] after 1 pieces"),
        ((), "ended without [DONE] after 0 pieces"),
        ((b'data: {"error": {"message": "CUDA out of memory", "code": 500}}\n\n', DONE), "error: CUDA out of memory"),
        ((b'data: {"error": "plain words"}\n\n', DONE), "shape that is not OpenAI's"),
        ((b"data: {not json\n\n", DONE), "not JSON: '{not json'"),
        ((b"data: [1]\n\n", DONE), "shape that is not OpenAI's"),
        ((b"data: 5\n\n", DONE), "shape that is not OpenAI's"),
        ((b'data: {"choices": {"a": 1}}\n\n', DONE), "shape that is not OpenAI's"),
        ((b'data: {"choices": [null]}\n\n', DONE), "shape that is not OpenAI's"),
        ((b'data: {"choices": [{"delta": "text"}]}\n\n', DONE), "shape that is not OpenAI's"),
        ((b"data: " + b"[" * 100_000 + b"\n\n", DONE), "not JSON"),
    ],
)
def test_streams_that_go_wrong(server: Server, pieces: tuple[bytes, ...], words: str) -> None:
    server.answer = lambda handler: handler.stream(*pieces)
    with pytest.raises(EngineError) as caught:
        chat(server)
    assert words in str(caught.value)
    assert not isinstance(caught.value, EngineUnreachable)


def test_a_stream_that_is_cut(server: Server) -> None:
    server.answer = lambda handler: handler.stream(event("Par"), end=False)
    with pytest.raises(EngineError, match=r"cut in the middle|without \[DONE\]"):
        chat(server)


def test_a_stream_that_is_a_page(server: Server) -> None:
    page = b"<html><body>Login</body></html>"
    server.answer = lambda handler: handler.send(200, page, "text/html; charset=utf-8")
    with pytest.raises(EngineError, match="text/html instead of an event stream: '<html>"):
        chat(server)


def test_a_stream_that_only_keeps_alive_ends_at_the_limit(server: Server) -> None:
    def ping(handler: Handler) -> None:
        handler.stream(chunked=False)
        for _unused in range(60):
            handler.wfile.write(b": ping\n\n")
            handler.wfile.flush()
            time.sleep(0.1)

    server.answer = ping
    started = time.monotonic()
    with pytest.raises(EngineUnreachable, match=r"within 0\.5 s"):
        chat(server, 0.5)
    assert time.monotonic() - started < 3


def test_an_endless_stream_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_openai, "LARGEST_BODY", 10_000)
    server.answer = lambda handler: handler.stream(*[event("x" * 100)] * 200, DONE)
    with pytest.raises(EngineError, match=r"without \[DONE\]"):
        chat(server)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error": {"message": "no chat template", "type": "BadRequestError"}}', "HTTP 400: no chat template"),
        (404, b'{"object": "error", "message": "The model `x` does not exist."}', "HTTP 404: The model `x`"),
        (404, b'{"detail": "Not Found"}', 'HTTP 404: \'{"detail": "Not Found"}\''),
        (401, b'{"error": "Unauthorized"}', "HTTP 401: Unauthorized"),
        (502, b"<html>\n<h1>502  Bad Gateway</h1></html>", "HTTP 502: '<html> <h1>502 Bad Gateway</h1></html>'"),
        (500, b"", "HTTP 500: ''"),
        (500, b"null", "HTTP 500: 'null'"),
        (500, b"[1]", "HTTP 500: '[1]'"),
        (500, b'{"error": {}}', "HTTP 500: "),
        (500, b"\xff" * 500, "..."),
    ],
)
def test_error_answers(server: Server, status: int, body: bytes, words: str) -> None:
    assert words in error_message(Answer(status, body))
    server.answer = lambda handler: handler.send(status, body)
    with pytest.raises(EngineError) as caught:
        chat(server)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_json_of_an_answer(server: Server) -> None:
    assert Answer(200, b'{"a": 1}').json() == {"a": 1}
    for body in (b"<html>", b"", b"[" * 100_000):
        with pytest.raises(EngineError, match="HTTP 200 with a body that is not JSON"):
            Answer(200, body).json()


@pytest.mark.parametrize(
    ("configured", "key", "sent"),
    [("", None, None), (KEY, None, f"Bearer {KEY}"), (KEY, "", None), (KEY, "wrong", "Bearer wrong")],
)
def test_which_key_is_sent(server: Server, configured: str, key: str | None, sent: str | None) -> None:
    Engine(server.url, configured).get("/v1/models", key=key)
    assert server.seen[0].headers["Authorization"] == sent


@pytest.mark.parametrize("key", [f"{KEY}\n", "with space", "schlüssel", "密钥", "a\r\nX-Evil: 1"])
def test_a_key_that_no_header_can_carry_is_not_shown(server: Server, key: str) -> None:
    with pytest.raises(EngineError) as caught:
        Engine(server.url, key).get("/v1/models")
    assert "API key" in str(caught.value)
    assert key.strip() not in str(caught.value)
    assert server.seen == []


def test_multipart(server: Server) -> None:
    content = bytes(range(256)) + b"\r\n--"
    Engine(server.url).post_form(
        "/v1/audio/transcriptions", {"model": "w", "language": "en"}, ("a.wav", "audio/wav", content)
    )
    (seen,) = server.seen
    head = f"Content-Type: {seen.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + seen.body, policy=email.policy.HTTP)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    assert {name: part.get_payload(decode=True) for name, part in parts.items()} == {
        "model": b"w",
        "language": b"en",
        "file": content,
    }
    assert parts["file"].get_filename() == "a.wav"
    assert parts["file"].get_content_type() == "audio/wav"


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for ask in (lambda: Engine(url).get("/health"), lambda: Engine(url).stream_chat({})):
            with pytest.raises(EngineUnreachable, match="Connection refused"):
                ask()


def test_reset_and_hang_up(server: Server) -> None:
    def reset(handler: Handler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        handler.connection.close()

    server.answer = reset
    with pytest.raises(EngineUnreachable):
        Engine(server.url).get("/health")
    server.answer = lambda handler: None
    with pytest.raises(EngineUnreachable, match="closed connection without response"):
        Engine(server.url).get("/health")


def test_a_body_that_is_cut(server: Server) -> None:
    server.answer = lambda handler: handler.send(200, b'{"data": ', length=500)
    with pytest.raises(EngineUnreachable, match="cut in the middle"):
        Engine(server.url).get("/v1/models")


def test_slow_answers(server: Server) -> None:
    release = threading.Event()
    server.answer = lambda handler: (release.wait(5), None)[1]
    with pytest.raises(EngineUnreachable, match=r"no answer from http://127.0.0.1:\d+ within 0\.2 s"):
        Engine(server.url, timeout=60).get("/health", timeout=0.2)
    release.set()

    def drip(handler: Handler) -> None:
        handler.send(200, b"", length=1000)
        for _unused in range(50):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    server.answer = drip
    started = time.monotonic()
    with pytest.raises(EngineUnreachable, match=r"within 0\.4 s"):
        Engine(server.url, timeout=0.4).get("/v1/models")
    assert time.monotonic() - started < 3


def test_a_body_without_end_is_not_read_to_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_openai, "LARGEST_BODY", 1000)
    server.answer = lambda handler: handler.send(200, b"x" * 200_000)
    assert len(Engine(server.url).get("/").body) == 1000


def test_a_server_that_does_not_speak_http(server: Server) -> None:
    server.answer = lambda handler: (handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"), None)[1]
    with pytest.raises(EngineUnreachable):
        Engine(server.url).get("/health")
