# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``vllm serve MODEL [flags]`` without an engine: OpenAI routes, health, metrics, keys, drain, and faults.

Faults come from the file that ``ENGINE_SIM_FAULTS`` names (JSON, read for each request and at start), so that a test
can change them while the server runs:

``start_seconds``      how long it "loads" before it listens
``die_after``          seconds until it exits with status 1, as an engine that runs out of memory does; before it
listens too
``die_message``        its last words on stderr
``slow``               seconds that the answer to every question takes
``hang``               true: /health stays good, every other request never ends
``answer``             the text of every answer instead of the right one
``status``             an HTTP status for every question
``served``             the id that /v1/models tells instead of the served one
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = "0.32.0+sim"
KNOWN = {
    "capital of france": "The capital of France is Paris.",
    "colour is this image": "Red.",
}
OPEN_ROUTES = ("/health", "/ping", "/version", "/metrics", "/load")


def faults() -> dict[str, t.Any]:
    """The faults of now; none where there is no file."""
    path = os.environ.get("ENGINE_SIM_FAULTS")
    if not path or not Path(path).is_file():
        return {}
    try:
        return t.cast("dict[str, t.Any]", json.loads(Path(path).read_text(encoding="utf-8") or "{}"))
    except ValueError:
        return {}


def log(message: str) -> None:
    sys.stderr.write(f"INFO {time.strftime('%m-%d %H:%M:%S')} [engine_sim] {message}\n")
    sys.stderr.flush()


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags the server acts on; others are accepted, as long as they look like flags."""
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve")
    serve.add_argument("model_tag")
    serve.add_argument("--host", default="0.0.0.0")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--served-model-name", nargs="+", default=None)
    serve.add_argument("--api-key", nargs="+", default=None)
    serve.add_argument("--max-model-len", default="2048")
    serve.add_argument("--shutdown-timeout", type=int, default=0)
    options, unknown = parser.parse_known_args(argv)
    if any(word.startswith("--this-flag-does-not-exist") for word in unknown):
        serve.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = (options.served_model_name or [options.model_tag])[0]
        key = os.environ.get("VLLM_API_KEY")
        self.keys = options.api_key or ([key] if key else [])
        self.config = _config(options.model_tag)
        self.running = 0
        self.answered = 0
        self.lock = threading.Lock()
        super().__init__((options.host, options.port), Handler)

    @property
    def kinds(self) -> set[str]:
        names = " ".join(self.config.get("architectures", []))
        if "Whisper" in names:
            return {"transcription"}
        if "BertModel" in names:
            return {"embedding"}
        return {"chat"}

    def routes(self) -> list[str]:
        per_kind = {
            "chat": ["/v1/chat/completions", "/v1/completions"],
            "transcription": ["/v1/audio/transcriptions"],
            "embedding": ["/v1/embeddings"],
        }
        return [*OPEN_ROUTES, "/v1/models", *(route for kind in self.kinds for route in per_kind[kind])]


def _config(path: str) -> dict[str, t.Any]:
    file = Path(path) / "config.json"
    return t.cast("dict[str, t.Any]", json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: t.Any) -> None:
        if self.path not in OPEN_ROUTES:
            log(f"{self.client_address[0]} {format % arguments}")

    def send_json(self, value: t.Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error_json(self, status: int, message: str) -> None:
        self.send_json({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)

    def allowed(self) -> bool:
        if not self.server.keys or not self.path.startswith("/v1"):
            return True
        return self.headers.get("Authorization", "") in [f"Bearer {key}" for key in self.server.keys]

    def faulty(self) -> bool:
        fault = faults()
        if fault.get("hang"):
            time.sleep(3600)
        if fault.get("status"):
            self.send_error_json(int(fault["status"]), "made to fail")
            return True
        return False

    def do_GET(self) -> None:
        if self.path in ("/health", "/ping"):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/version":
            self.send_json({"version": VERSION})
        elif self.path == "/metrics":
            self.send_metrics()
        elif not self.allowed():
            self.send_json({"error": "Unauthorized"}, 401)
        elif self.path == "/openapi.json":
            self.send_json({"paths": {route: {} for route in self.server.routes()}})
        elif self.path == "/v1/models":
            name = faults().get("served") or self.server.model
            card = {"id": name, "object": "model", "max_model_len": int(self.server.options.max_model_len)}
            self.send_json({"object": "list", "data": [card]})
        else:
            self.send_error_json(404, "Not Found")

    def send_metrics(self) -> None:
        label = f'{{engine="0",model_name="{self.server.model}"}}'
        text = (
            f"vllm:num_requests_running{label} {self.server.running}.0\n"
            f"vllm:num_requests_waiting{label} 0.0\n"
            f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="{self.server.model}"}} '
            f"{self.server.answered}.0\n"
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.allowed():
            self.send_json({"error": "Unauthorized"}, 401)
            return
        if self.faulty():
            return
        with self.server.lock:
            self.server.running += 1
        try:
            time.sleep(float(faults().get("slow", 0)))
            self.answer(body)
        finally:
            with self.server.lock:
                self.server.running -= 1
                self.server.answered += 1

    def answer(self, body: bytes) -> None:
        if self.path not in self.server.routes():
            self.send_error_json(404, "Not Found")
        elif self.path == "/v1/audio/transcriptions":
            good = b"RIFF" in body and self.server.model.encode() in body
            self.send_json({"text": faults().get("answer") or ("One, two, three, four, five." if good else "")})
        else:
            request = json.loads(body)
            if request.get("model") != self.server.model:
                self.send_error_json(404, f"The model `{request.get('model')}` does not exist.")
            elif self.path == "/v1/embeddings":
                self.send_embeddings(request["input"])
            else:
                self.send_text(request)

    def send_embeddings(self, texts: list[str]) -> None:
        rows = []
        for index, text in enumerate(texts):
            cat = any(word in text.lower() for word in ("cat", "kitten"))
            rows.append({"index": index, "embedding": [1.0, 0.1 * index] if cat else [0.1, 1.0]})
        self.send_json({"object": "list", "data": rows})

    def send_text(self, request: dict[str, t.Any]) -> None:
        asked = json.dumps(request.get("messages") or request.get("prompt"), ensure_ascii=False).lower()
        right = next((answer for question, answer in KNOWN.items() if question in asked), "I am a simulator.")
        text = faults().get("answer") or right
        if request.get("stream"):
            self.send_stream(text)
        elif self.path == "/v1/completions":
            self.send_json({"object": "text_completion", "choices": [{"index": 0, "text": text}]})
        else:
            message = {"role": "assistant", "content": text}
            self.send_json({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def send_stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in ["", *text.split(" ")]:
            delta = {"content": word + " "} if word else {"role": "assistant", "content": ""}
            event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def die_later(seconds: float, message: str) -> None:
    def die() -> None:
        time.sleep(seconds)
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=die, daemon=True).start()


def drain(server: Server) -> None:
    """As --shutdown-timeout does: no new connections, running requests may end."""
    deadline = time.monotonic() + server.options.shutdown_timeout
    while server.running and time.monotonic() < deadline:
        time.sleep(0.05)
    log("stopped")
    os._exit(0)


def main(argv: list[str]) -> int:
    options = parse(argv)
    fault = faults()
    log(f"vLLM simulator {VERSION} for {options.model_tag}")
    if "die_after" in fault:
        die_later(
            float(fault["die_after"]), str(fault.get("die_message", "torch.OutOfMemoryError: CUDA out of memory."))
        )
    time.sleep(float(fault.get("start_seconds", 0)))
    server = Server(options)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=drain, args=(server,), daemon=True).start())
    log(f"Application startup complete on {options.host}:{options.port}")
    server.serve_forever()
    return 0
