# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``vllm serve MODEL [flags]`` without an engine: OpenAI routes, health, metrics, keys, drain, and faults.

What the model is follows from the ``architectures`` of its config.json, as with vLLM; one that has none chats. Tokens
are words. ``faults.py`` lists how it misbehaves on demand. It writes no file and needs no rights.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import typing as t
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from engine_sim import media
from engine_sim.faults import BadFaults, Faults
from engine_sim.metrics import Metrics

VERSION = "0.32.0+sim"
RIGHT = {
    "capital of france": "The capital of France is Paris.",
    "colour is this image": "Red.",
}
HEARD = "One, two, three, four, five."
OPEN_ROUTES = ("/health", "/ping", "/version", "/metrics", "/load")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "chat": ("/v1/chat/completions", "/v1/completions"),
    "transcription": ("/v1/audio/transcriptions", "/v1/audio/translations"),
    "embedding": ("/v1/embeddings",),
}
TOKEN_ROUTES = ("/tokenize", "/detokenize")


def log(message: str) -> None:
    sys.stderr.write(f"INFO {time.strftime('%m-%d %H:%M:%S')} [engine_sim] {message}\n")
    sys.stderr.flush()


def tokens_of(text: str) -> int | str:
    """``--max-model-len``: a number, 32k, or auto."""
    match = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if text in ("auto", "-1"):
        return "auto"
    if not match:
        raise argparse.ArgumentTypeError(f"invalid value: {text!r}")
    return int(match[1]) * {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}[match[2]]


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags the server acts on; others are accepted, as long as they look like flags."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", allow_abbrev=False)
    serve.add_argument("model_tag")
    serve.add_argument("--host", default="0.0.0.0")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--served-model-name", nargs="+", default=None)
    serve.add_argument("--api-key", nargs="+", default=None)
    serve.add_argument("--max-model-len", type=tokens_of, default="auto")
    serve.add_argument("--max-num-seqs", type=int, default=256)
    serve.add_argument("--max-num-queued-reqs", type=int, default=None)
    serve.add_argument("--shutdown-timeout", type=float, default=0)
    options, unknown = parser.parse_known_args(argv)
    if any(word.startswith("--this-flag-does-not-exist") for word in unknown):
        serve.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def read_config(path: str) -> dict[str, t.Any]:
    file = Path(path) / "config.json"
    return t.cast("dict[str, t.Any]", json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def kind_of(config: dict[str, t.Any]) -> str:
    names = " ".join(config.get("architectures") or [])
    if "Whisper" in names:
        return "transcription"
    return "embedding" if re.search(r"Bert|Embedding|MiniLM", names) else "chat"


class Refused(Exception):
    """An answer that is an error, in vLLM's shape."""

    TYPES: t.ClassVar = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = self.TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace, faults: Faults | None = None) -> None:
        self.options = options
        self.faults = faults or Faults()
        self.config = read_config(options.model_tag)
        self.kind = kind_of(self.config)
        self.sees = bool({"vision_config", "visual"} & set(self.config))
        self.models: list[str] = options.served_model_name or [options.model_tag]
        key = os.environ.get("VLLM_API_KEY")
        self.keys: list[str] = options.api_key or ([key] if key else [])
        known = int(self.config.get("max_position_embeddings") or 2048)
        self.max_model_len = known if options.max_model_len == "auto" else int(options.max_model_len)
        self.metrics = Metrics(self.models[0])
        self.slots = threading.Semaphore(options.max_num_seqs)
        self.words: dict[int, str] = {}
        self.started = int(time.time())
        self.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        super().__init__((options.host, options.port), Handler)

    @property
    def routes(self) -> tuple[str, ...]:
        return (*OPEN_ROUTES, *TOKEN_ROUTES, "/v1/models", *QUESTIONS[self.kind])

    @property
    def busy(self) -> int:
        return self.metrics.running + self.metrics.waiting

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """A client that went away is no news."""

    @contextlib.contextmanager
    def slot(self) -> t.Iterator[None]:
        """Running, or waiting for ``--max-num-seqs`` others; refused where the queue is full."""
        limit = self.options.max_num_queued_reqs
        if not self.slots.acquire(blocking=False):
            if limit is not None and self.metrics.waiting >= limit:
                self.metrics.add("rejections", 1)
                raise Refused(503, "The request queue is full. Try again later.")
            self.metrics.add("waiting", 1)
            self.slots.acquire()
            self.metrics.add("waiting", -1)
        self.metrics.add("running", 1)
        try:
            yield
        finally:
            self.metrics.add("running", -1)
            self.slots.release()

    def model_cards(self) -> list[dict[str, t.Any]]:
        names = [self.faults.now()["served"]] if self.faults.now().get("served") else self.models
        return [
            {
                "id": name,
                "object": "model",
                "created": self.started,
                "owned_by": "vllm",
                "root": self.options.model_tag,
                "parent": None,
                "max_model_len": self.max_model_len,
                "permission": [{"id": f"modelperm-{zlib.crc32(name.encode()):08x}", "object": "model_permission"}],
            }
            for name in names
        ]

    def token_ids(self, text: str) -> list[int]:
        ids = [zlib.crc32(word.encode()) & 0xFFFFF for word in text.split()]
        self.words.update(zip(ids, text.split(), strict=True))
        return ids


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 3700

    def log_message(self, format: str, *arguments: t.Any) -> None:
        if self.route not in OPEN_ROUTES:
            log(f"{self.client_address[0]} {format % arguments}")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        super().log_request(code, size)
        if self.route not in OPEN_ROUTES:
            self.server.metrics.request(
                self.route if self.route in self.server.routes else "none", self.command, int(code)
            )

    @property
    def route(self) -> str:
        return getattr(self, "path", "").split("?")[0]

    # Sending

    def send_body(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: t.Any, status: int = 200) -> None:
        self.send_body(json.dumps(value).encode(), "application/json", status)

    def send_event(self, value: t.Any) -> None:
        data = value if isinstance(value, str) else json.dumps(value)
        self.send_chunk(f"data: {data}\n\n".encode())

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    # Receiving

    def allowed(self) -> bool:
        if not self.server.keys or not self.route.startswith("/v1") or self.server.faults.opens(self.route):
            return True
        sent = self.headers.get("Authorization", "").encode()
        return any(hmac.compare_digest(sent, f"Bearer {key}".encode()) for key in self.server.keys)

    def do_GET(self) -> None:
        self.handle_with(self.get)

    def do_POST(self) -> None:
        self.handle_with(self.post)

    def handle_with(self, answer: t.Callable[[bytes], None]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.allowed():
            self.send_json({"error": "Unauthorized"}, 401)
            return
        try:
            answer(body)
        except Refused as exc:
            self.send_json(exc.body, exc.status)

    def get(self, _body: bytes) -> None:
        documents: dict[str, t.Callable[[], t.Any]] = {
            "/version": lambda: {"version": VERSION},
            "/load": lambda: {"server_load": self.server.busy},
            "/openapi.json": lambda: {"openapi": "3.1.0", "paths": {route: {} for route in self.server.routes}},
            "/v1/models": lambda: {"object": "list", "data": self.server.model_cards()},
        }
        if self.route in ("/health", "/ping"):
            self.send_body(b"", "application/json", int(self.server.faults.now().get("health", 200)))
        elif self.route == "/metrics":
            self.send_body(self.server.metrics.text().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif self.route in documents:
            self.send_json(documents[self.route]())
        elif self.route in self.server.routes:
            raise Refused(405, "Method Not Allowed")
        else:
            raise Refused(404, "Not Found")

    def post(self, body: bytes) -> None:
        if self.route == "/ping":
            self.get(body)
        elif self.route in TOKEN_ROUTES:
            self.count_tokens(self.read_json(body))
        elif self.route in QUESTIONS[self.server.kind]:
            with self.server.slot():
                self.misbehave()
                self.answer(body)
        else:
            raise Refused(405 if self.route in self.server.routes else 404, "Not Found")

    def misbehave(self) -> None:
        faults = self.server.faults
        fault = faults.now()
        if fault.get("hang"):
            time.sleep(3600)
        time.sleep(float(fault.get("slow", 0)))
        if fault.get("status"):
            raise Refused(int(fault["status"]), "made to fail")
        if faults.question_fails():
            raise Refused(503, "made to fail now and then")

    def read_json(self, body: bytes) -> dict[str, t.Any]:
        try:
            value = json.loads(body)
        except ValueError:
            raise Refused(400, "[{'type': 'json_invalid', 'msg': 'JSON decode error'}]") from None
        if not isinstance(value, dict):
            raise Refused(400, "[{'type': 'model_attributes_type', 'msg': 'Input should be a valid dictionary'}]")
        return value

    def check_model(self, name: t.Any) -> None:
        if name not in self.server.models:
            raise Refused(404, f"The model `{name}` does not exist.", "model")

    # Answering

    def answer(self, body: bytes) -> None:
        started = time.monotonic()
        if self.server.kind == "transcription":
            self.hear(body, started)
            return
        request = self.read_json(body)
        self.require(
            request, {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}.get(self.route, "input")
        )
        self.check_model(request.get("model", self.server.models[0]))
        if self.server.kind == "embedding":
            self.embed(request, started)
        else:
            self.speak(request, started)

    def require(self, request: dict[str, t.Any], name: str) -> None:
        if not request.get(name):
            raise Refused(400, f"[{{'type': 'missing', 'loc': ('body', '{name}'), 'msg': 'Field required'}}]", name)

    def hear(self, body: bytes, started: float) -> None:
        try:
            fields = media.form(self.headers.get("Content-Type", ""), body)
            if "file" not in fields:
                raise media.BadMedia("[{'type': 'missing', 'loc': ('body', 'file'), 'msg': 'Field required'}]")
            self.check_model(fields.get("model", self.server.models[0].encode()).decode("utf-8", "replace"))
            heard = HEARD if media.sound(fields["file"]) else ""
        except media.BadMedia as exc:
            raise Refused(400, str(exc)) from None
        text = str(self.server.faults.now().get("answer") or heard)
        seconds = time.monotonic() - started
        self.server.metrics.done("stop", 1, len(text.split()), seconds)
        if fields.get("response_format") == b"text":
            self.send_body(text.encode(), "text/plain; charset=utf-8")
        else:
            self.send_json({"text": text, "usage": {"type": "duration", "seconds": 2}})

    def embed(self, request: dict[str, t.Any], started: float) -> None:
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        rows = []
        for index, text in enumerate(map(str, texts)):
            cat = any(word in text.lower() for word in ("cat", "kitten"))
            vector = [1.0, 0.1 * index] if cat else [0.1, 1.0]
            rows.append({"object": "embedding", "index": index, "embedding": vector})
        count = sum(len(str(text).split()) for text in texts)
        self.server.metrics.done("stop", count, 0, time.monotonic() - started)
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        head = self.head("embd", "list", request)
        self.send_json({**head, "data": rows, "usage": usage})

    def speak(self, request: dict[str, t.Any], started: float) -> None:
        asked = media.words(request["messages"]) if "messages" in request else str(request["prompt"])
        self.check_pictures(request.get("messages"))
        prompt = len(asked.split())
        limit = int(request.get("max_completion_tokens") or request.get("max_tokens") or self.server.max_model_len)
        if prompt > self.server.max_model_len:
            raise Refused(
                400,
                f"This model's maximum context length is {self.server.max_model_len} tokens. However, your request has "
                f"{prompt} input tokens. Please reduce the length of the input messages.",
                "input_tokens",
            )
        right = next((answer for question, answer in RIGHT.items() if question in asked.lower()), "I am a simulator.")
        pieces = str(self.server.faults.now().get("answer") or right).split(" ")
        reason = "length" if len(pieces) > limit else "stop"
        pieces = pieces[:limit]
        usage = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + len(pieces),
            "completion_tokens": len(pieces),
            "prompt_tokens_details": None,
        }
        if request.get("stream"):
            first = self.stream(request, pieces, reason, usage, started)
        else:
            first = None
            self.send_text(request, " ".join(pieces), reason, usage)
        self.server.metrics.done(reason, prompt, len(pieces), time.monotonic() - started, first)

    def check_pictures(self, messages: t.Any) -> None:
        try:
            count = media.pictures(messages)
        except media.BadMedia as exc:
            raise Refused(400, str(exc)) from None
        if count and not self.server.sees:
            raise Refused(400, f"{self.server.models[0]} is not a multimodal model")

    def head(self, prefix: str, kind: str, request: dict[str, t.Any]) -> dict[str, t.Any]:
        name = request.get("model", self.server.models[0])
        return {"id": f"{prefix}-{secrets.token_hex(16)}", "object": kind, "created": int(time.time()), "model": name}

    def send_text(self, request: dict[str, t.Any], text: str, reason: str, usage: dict[str, t.Any]) -> None:
        choice: dict[str, t.Any] = {"index": 0, "logprobs": None, "finish_reason": reason, "stop_reason": None}
        if self.route == "/v1/completions":
            head = self.head("cmpl", "text_completion", request)
            choice["text"] = text
        else:
            head = self.head("chatcmpl", "chat.completion", request)
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
        self.send_json({**head, "choices": [choice], "usage": usage})

    def stream(
        self, request: dict[str, t.Any], pieces: list[str], reason: str, usage: dict[str, t.Any], started: float
    ) -> float:
        """Server-sent events; seconds to the first word."""
        chat = self.route == "/v1/chat/completions"
        head = self.head(
            "chatcmpl" if chat else "cmpl", "chat.completion.chunk" if chat else "text_completion", request
        )
        cut = self.server.faults.now().get("cut_stream")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def event(said: dict[str, t.Any], ended: str | None = None) -> None:
            self.send_event({**head, "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": ended}]})

        if chat:
            event({"delta": {"role": "assistant", "content": ""}})
        first = time.monotonic() - started
        for index, piece in enumerate(pieces):
            if cut is not None and index >= int(cut):
                self.close_connection = True
                return first
            word = piece if index == 0 else f" {piece}"
            event({"delta": {"content": word}} if chat else {"text": word})
        event({"delta": {}} if chat else {"text": ""}, reason)
        if (request.get("stream_options") or {}).get("include_usage"):
            self.send_event({**head, "choices": [], "usage": usage})
        self.send_event("[DONE]")
        self.send_chunk(b"")
        return first

    def count_tokens(self, request: dict[str, t.Any]) -> None:
        self.check_model(request.get("model", self.server.models[0]))
        if self.route == "/detokenize":
            words = [self.server.words.get(int(token), "?") for token in request.get("tokens") or []]
            self.send_json({"prompt": " ".join(words)})
            return
        text = media.words(request["messages"]) if "messages" in request else str(request.get("prompt") or "")
        ids = self.server.token_ids(text)
        limit = self.server.max_model_len
        self.send_json({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None})


def die_later(seconds: float, message: str) -> None:
    def die() -> None:
        time.sleep(seconds)
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=die, daemon=True).start()


def drain(server: Server) -> None:
    """As --shutdown-timeout does: nothing new is accepted, and what runs may end, or is cut when the time is over."""
    server.shutdown()
    server.server_close()
    deadline = time.monotonic() + server.options.shutdown_timeout
    while server.busy and time.monotonic() < deadline:
        time.sleep(0.02)
    log(f"stopped, {server.busy} request(s) aborted" if server.busy else "stopped")
    # Threads that serve requests may never end.
    os._exit(0)


def main(argv: list[str]) -> int:
    options = parse(argv)
    # As PID 1 of a container a process without a handler ignores the signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        faults = Faults()
    except BadFaults as exc:
        sys.stderr.write(f"vllm: {exc}\n")
        return 2
    fault = faults.now()
    log(f"vLLM simulator {VERSION} for {options.model_tag}")
    message = str(fault.get("die_message", "torch.OutOfMemoryError: CUDA out of memory."))
    if "exit" in fault:
        sys.stderr.write(message + "\n")
        return int(fault["exit"])
    if "die_after" in fault:
        die_later(float(fault["die_after"]), message)
    time.sleep(float(fault.get("start_seconds", 0)))
    server = Server(options, faults)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=drain, args=(server,), daemon=True).start())
    log(f"Application startup complete on {options.host}:{options.port}")
    server.serve_forever(poll_interval=0.05)
    # Stopped by drain(), which ends the process.
    threading.Event().wait()
    return 0
