# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A small client of vLLM's OpenAI-compatible server: standard library only, so that it runs on any managed host."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import time
import typing as t
import urllib.parse
from dataclasses import dataclass

# A probe's answer is short; more than this is not an answer but a fault.
LARGEST_BODY = 8 * 1024 * 1024
# What a header can carry; http.client would show the key in its complaint.
KEY = re.compile(r"[\x21-\x7e]+")


class EngineError(Exception):
    """The engine answered, but not with what was asked for; the text says what was seen."""


class EngineUnreachable(EngineError):
    """No HTTP answer at all: refused, reset, timed out. Retried while an engine starts."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> t.Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise EngineError(f"HTTP {self.status} with a body that is not JSON: {excerpt(self.body)}") from None


@dataclass(frozen=True)
class Streamed:
    """A streamed chat: the whole text, seconds to the first token and to the last."""

    text: str
    first_token_seconds: float
    seconds: float
    chunks: int


def excerpt(body: bytes, limit: int = 200) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text if len(text) <= limit else text[:limit] + "...")


def error_message(answer: Answer) -> str:
    """vLLM's own words: ``{"error": {"message": ...}}``, or ``{"message": ...}`` from older releases."""
    try:
        value = json.loads(answer.body)
        error = value.get("error", value)
        return f"HTTP {answer.status}: {error['message'] if isinstance(error, dict) else error}"
    except (ValueError, AttributeError, KeyError, RecursionError):
        return f"HTTP {answer.status}: {excerpt(answer.body)}"


class Engine:
    """One endpoint: ``url`` without a path, and the API key if it has one."""

    def __init__(self, url: str, api_key: str = "", timeout: float = 120.0) -> None:
        parts = urllib.parse.urlsplit(url)
        self.url = url
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._secure = parts.scheme == "https"
        self._api_key = api_key
        self.timeout = timeout

    def get(self, path: str, *, timeout: float | None = None, key: str | None = None) -> Answer:
        return self._request("GET", path, None, {}, timeout, key)

    def post(self, path: str, value: t.Any, *, key: str | None = None) -> Answer:
        body = json.dumps(value).encode()
        return self._request("POST", path, body, {"Content-Type": "application/json"}, None, key)

    def post_form(self, path: str, fields: t.Mapping[str, str], file: tuple[str, str, bytes]) -> Answer:
        """multipart/form-data with one file: (file name, content type, bytes)."""
        boundary = secrets.token_hex(16)
        lines = []
        for name, value in fields.items():
            lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        file_name, content_type, content = file
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
            f"Content-Type: {content_type}\r\n\r\n"
        )
        body = b"".join([*lines, head.encode(), content, f"\r\n--{boundary}--\r\n".encode()])
        return self._request(
            "POST",
            path,
            body,
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
            None,
            None,
        )

    def stream_chat(self, value: t.Mapping[str, t.Any]) -> Streamed:
        """POST /v1/chat/completions with ``stream``: server-sent events up to ``[DONE]``."""
        started = time.monotonic()
        connection = self._connect(self.timeout)
        try:
            body = json.dumps({**value, "stream": True}).encode()
            headers = {**self._headers(None), "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise EngineError(error_message(Answer(response.status, _read_body(response, started + self.timeout))))
            return _read_stream(response, started, self.timeout)
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(exc, self.timeout) from None
        finally:
            connection.close()

    def _headers(self, key: str | None) -> dict[str, str]:
        used = self._api_key if key is None else key
        if used and not KEY.fullmatch(used):
            raise EngineError("the API key has a space, a line break or another character that no header can carry")
        return {"Authorization": f"Bearer {used}"} if used else {}

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: t.Mapping[str, str],
        timeout: float | None,
        key: str | None,
    ) -> Answer:
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        connection = self._connect(limit)
        try:
            connection.request(method, path, body, {**self._headers(key), **headers})
            response = connection.getresponse()
            return Answer(response.status, _read_body(response, deadline))
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(exc, limit) from None
        finally:
            connection.close()

    def _unreachable(self, exc: Exception, limit: float) -> EngineUnreachable:
        if isinstance(exc, (socket.timeout, TimeoutError)):
            return EngineUnreachable(f"no answer from {self.url} within {limit:g} s")
        if isinstance(exc, http.client.IncompleteRead):
            return EngineUnreachable(f"{self.url}: the connection was cut in the middle of an answer")
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return EngineUnreachable(f"{self.url}: {reason}")


def _read_body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, however slowly its pieces come; the socket's own time limit is for each of them."""
    body = bytearray()
    while len(body) < LARGEST_BODY:
        piece = response.read1(65536)
        if not piece:
            if response.length:
                raise http.client.IncompleteRead(bytes(body), response.length)
            break
        body += piece
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(body[:LARGEST_BODY])


def _read_stream(response: http.client.HTTPResponse, started: float, limit: float) -> Streamed:
    kind = response.headers.get_content_type()
    if kind != "text/event-stream":
        raise EngineError(f"{kind} instead of an event stream: {excerpt(_read_body(response, started + limit))}")
    pieces: list[str] = []
    first = 0.0
    done = False
    size = 0
    while True:
        raw = response.readline(LARGEST_BODY)
        size += len(raw)
        # Comments keep a connection alive whose engine has stopped answering.
        if time.monotonic() - started > limit:
            raise TimeoutError
        if not raw or size > LARGEST_BODY:
            break
        line = raw.strip()
        # Lines that start with a colon are comments (vLLM's --sse-keep-alive-interval).
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            break
        piece = _delta(data)
        if piece:
            first = first or time.monotonic() - started
            pieces.append(piece)
    if not done:
        raise EngineError(f"the stream ended without [DONE] after {len(pieces)} pieces")
    return Streamed("".join(pieces), first, time.monotonic() - started, len(pieces))


def _delta(data: bytes) -> str:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise EngineError(f"a stream event that is not JSON: {excerpt(data)}") from None
    try:
        if "error" in event:
            error = event["error"]
            raise EngineError(f"the stream reported an error: {error.get('message', error)}")
        choices = event.get("choices") or [{}]
        return spoken(choices[0].get("delta") or {})
    except (AttributeError, KeyError, IndexError, TypeError):
        raise EngineError(f"a stream event in a shape that is not OpenAI's: {excerpt(data)}") from None


def spoken(message: t.Mapping[str, t.Any]) -> str:
    """The words of a message or delta; reasoning models speak in another field first."""
    return str(message.get("content") or message.get("reasoning_content") or message.get("reasoning") or "")
