# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Probes: real requests with expected answers. A deploy is done when these were answered right, and not before."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import time
import typing as t
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._openai import (
    Answer,
    Engine,
    EngineError,
    EngineUnreachable,
    error_message,
    excerpt,
    spoken,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._probe_clip import (
    CLIP_EXPECT,
    CLIP_NAME,
    clip,
)

CHAT_PROMPT = "What is the capital of France? Answer in one short sentence."
CHAT_EXPECT = r"(?i)\bparis\b"
COMPLETION_PROMPT = "The capital of France is"
VISION_PROMPT = "What colour is this image? Answer with one word."
VISION_EXPECT = r"(?i)\bred\b"
EMBEDDING_TEXTS = (
    "A cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "The central bank raised interest rates.",
)
EMBEDDING_EXPECT = "the first two closer than the first and the third"
# Where each kind of question goes.
ROUTES = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "vision": "/v1/chat/completions",
    "transcription": "/v1/audio/transcriptions",
    "embedding": "/v1/embeddings",
}
WRONG_KEY = "wrong-on-purpose"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Endpoint:
    """``probes`` is ``None`` where they follow from the model: its ``architecture`` facts and the engine's routes."""

    name: str
    url: str
    served_model_name: str
    path: str = ""
    probes: t.Sequence[t.Mapping[str, t.Any]] | None = None
    api_key: str = ""
    request_timeout: float = 120.0


@dataclass
class Result:
    """One probe: what was asked, what was answered, and why it is not right where it is not."""

    kind: str
    asked: str
    expected: str
    answered: str = ""
    ok: bool = False
    reason: str = ""
    seconds: float = 0.0
    first_token_seconds: float | None = None
    silent: bool = False

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "kind": self.kind,
            "asked": self.asked,
            "expected": self.expected,
            "answered": self.answered,
            "ok": self.ok,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            "first_token_seconds": None if self.first_token_seconds is None else round(self.first_token_seconds, 4),
        }


@dataclass
class Report:
    """Everything that one endpoint was asked."""

    name: str
    url: str
    ok: bool = False
    version: str = ""
    model_id: str = ""
    max_model_len: int | None = None
    results: list[Result] = field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "name": self.name,
            "url": self.url,
            "ok": self.ok,
            "version": self.version,
            "model_id": self.model_id,
            "max_model_len": self.max_model_len,
            "results": [result.as_dict() for result in self.results],
        }


@dataclass(frozen=True)
class Readiness:
    ready: bool
    seen: str


# Waiting


def health(endpoint: Endpoint, timeout: float = 5.0) -> Readiness:
    """One ``GET /health``. vLLM binds its port early but listens late, so an open port alone says nothing."""
    try:
        answer = Engine(endpoint.url, endpoint.api_key).get("/health", timeout=timeout)
    except EngineError as exc:
        return Readiness(False, str(exc))
    return Readiness(answer.status == 200, f"GET /health answered {answer.status}")


def wait_for_health(
    endpoints: t.Sequence[Endpoint],
    seconds: float,
    keep_waiting: t.Callable[[], bool] = lambda: True,
    clock: t.Callable[[], float] = time.monotonic,
    sleep: t.Callable[[float], None] = time.sleep,
) -> dict[str, Readiness]:
    """Poll all endpoints side by side for at most ``seconds``; ends early when all are ready or waiting is idle."""
    deadline = clock() + seconds
    seen: dict[str, Readiness] = {}
    while True:
        waiting = [endpoint for endpoint in endpoints if not seen.get(endpoint.name, Readiness(False, "")).ready]
        with ThreadPoolExecutor(max(1, len(waiting))) as pool:
            seen.update(zip([endpoint.name for endpoint in waiting], pool.map(health, waiting)))
        if all(state.ready for state in seen.values()) or clock() >= deadline or not keep_waiting():
            return seen
        sleep(POLL_SECONDS)


# What a model can do


def model_config(path: str) -> dict[str, t.Any]:
    """config.json of a model directory; empty where there is none to read."""
    try:
        with open(f"{path}/config.json", encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def kinds_for(routes: t.Container[str], config: t.Mapping[str, t.Any]) -> list[str]:
    """Probe kinds from the engine's own routes and the model's architecture."""
    named = config.get("architectures")
    architectures = " ".join(str(name) for name in named) if isinstance(named, list) else ""
    if (
        "/v1/audio/transcriptions" in routes
        and "ForConditionalGeneration" in architectures
        and "Whisper" in architectures
    ):
        return ["transcription"]
    kinds = []
    if "/v1/chat/completions" in routes:
        kinds.append("chat")
        if "vision_config" in config or "visual" in config:
            kinds.append("vision")
    elif "/v1/completions" in routes:
        kinds.append("completion")
    if "/v1/audio/transcriptions" in routes:
        kinds.append("transcription")
    if "/v1/embeddings" in routes and not kinds:
        kinds.append("embedding")
    return kinds


def _routes(engine: Engine) -> set[str]:
    """From /openapi.json; an engine with --disable-fastapi-docs has none, and is taken for one that chats."""
    answer = engine.get("/openapi.json")
    if answer.status != 200:
        return {"/v1/chat/completions"}
    document = answer.json()
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        raise EngineError("GET /openapi.json answered in a shape that is not OpenAPI's")
    return set(paths)


# Asking


def interrogate(endpoint: Endpoint) -> Report:
    """Models list, version, keys, then each probe. Failures are results, not exceptions."""
    engine = Engine(endpoint.url, endpoint.api_key, endpoint.request_timeout)
    report = Report(endpoint.name, endpoint.url)
    report.results.append(_timed(_check_models, engine, endpoint, report))
    probes, failure = _probes(engine, endpoint) if report.results[0].ok else ([], None)
    if endpoint.api_key:
        report.results.append(_timed(_check_key, engine, [str(probe["kind"]) for probe in probes]))
    report.results += [failure] if failure else []
    for probe in probes:
        report.results += _asked(engine, endpoint, probe)
    report.ok = all(result.ok for result in report.results)
    return report


def _asked(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> list[Result]:
    """One result, or two for a chat: it is asked in one piece and as a stream, since many clients do only one of them.

    The stream comes second: the first request to an engine may take longer than all that follow, and the time to the
    first token should be that of the service. An engine that is silent is not waited for twice.
    """
    result = _timed(_ASK[str(probe["kind"])], engine, endpoint, probe)
    if result.kind != "chat" or result.silent:
        return [result]
    return [result, _timed(_ask_stream, engine, endpoint, probe)]


def _timed(ask: t.Callable[..., Result], *arguments: t.Any) -> Result:
    started = time.monotonic()
    result = ask(*arguments)
    result.seconds = time.monotonic() - started
    return result


def _probes(engine: Engine, endpoint: Endpoint) -> tuple[list[t.Mapping[str, t.Any]], Result | None]:
    if endpoint.probes is not None:
        return list(endpoint.probes), None
    try:
        kinds = kinds_for(_routes(engine), model_config(endpoint.path))
    except EngineError as exc:
        return [], Result("routes", "GET /openapi.json", "the engine's routes", reason=str(exc))
    if not kinds:
        reason = "the engine offers no chat, completion, transcription or embedding route"
        return [], Result("routes", "GET /openapi.json", "a route that a probe knows", reason=reason)
    return [{"kind": kind} for kind in kinds], None


def _check_models(engine: Engine, endpoint: Endpoint, report: Report) -> Result:
    result = Result("models", "GET /v1/models", endpoint.served_model_name)
    try:
        answer = engine.get("/v1/models")
        if answer.status != 200:
            result.reason = error_message(answer)
            return result
        models = {str(model["id"]): model for model in answer.json()["data"]}
        result.answered = ", ".join(models)
        version = engine.get("/version")
        report.version = str(version.json().get("version", "")) if version.status == 200 else ""
    except EngineError as exc:
        result.reason = str(exc)
        return result
    except (KeyError, TypeError, AttributeError):
        result.reason = "GET /v1/models answered in a shape that is not OpenAI's"
        return result
    found = models.get(endpoint.served_model_name)
    if found is None:
        result.reason = f"the engine serves {result.answered or 'nothing'}"
        return result
    report.model_id = endpoint.served_model_name
    length = found.get("max_model_len")
    report.max_model_len = length if isinstance(length, int) else None
    result.ok = True
    return result


def _check_key(engine: Engine, kinds: t.Sequence[str]) -> Result:
    """Without a key and with a wrong one the engine must refuse, also where it works: the routes of its probes.

    Those are sent an empty question. A guarded engine refuses before it looks, an open one refuses the question itself.
    """
    doors: list[tuple[str, str]] = [("GET", "/v1/models")]
    doors += [("POST", route) for route in dict.fromkeys(ROUTES[kind] for kind in kinds)]
    asked = ", ".join(f"{method} {route}" for method, route in doors)
    result = Result("key", f"{asked}: without the key, and with a wrong one", "401")
    wrong = []
    try:
        for method, route in doors:
            for words, key in (("without the key", ""), ("with a wrong key", WRONG_KEY)):
                send = engine.get(route, key=key) if method == "GET" else engine.post(route, {}, key=key)
                if send.status != 401:
                    wrong.append((f"{method} {route} answered {send.status} {words}", send.status))
    except EngineError as exc:
        result.reason = str(exc)
        return result
    result.answered = "; ".join(text for text, _status in wrong) or "401"
    result.ok = not wrong
    if wrong:
        # 4xx other than these: it judged the question, so it had let it in.
        let_in = any(status < 500 and status not in (403, 407) for _text, status in wrong)
        result.reason = ("the engine lets requests in without its API key: " if let_in else "") + result.answered
    return result


def _expected(probe: t.Mapping[str, t.Any], built_in: str) -> str:
    """The user's pattern; else the one that belongs to the built-in prompt; else any words will do."""
    return str(probe.get("expect") or ("" if probe.get("prompt") else built_in))


def judge(result: Result, text: str) -> Result:
    """The answer against the expected pattern; without one, any words will do."""
    result.answered = " ".join(text.split())
    result.ok = bool(re.search(result.expected, text)) if result.expected else bool(text.strip())
    if not result.ok:
        wanted = f"an answer that matches {result.expected}" if result.expected else "an answer with words in it"
        result.reason = f"answered {excerpt(text.encode())}, expected {wanted}"
    return result


def _chat_body(endpoint: Endpoint, content: t.Any, probe: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {
        "model": endpoint.served_model_name,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": int(probe.get("max_tokens") or 32),
        "temperature": 0,
        "seed": 0,
    }


def _ask_chat(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> Result:
    prompt = str(probe.get("prompt") or CHAT_PROMPT)
    result = Result("chat", prompt, _expected(probe, CHAT_EXPECT))
    try:
        answer = engine.post("/v1/chat/completions", _chat_body(endpoint, prompt, probe))
    except EngineUnreachable as exc:
        result.reason = f"/health is good, but a chat request failed: {exc}"
        result.silent = True
        return result
    if answer.status != 200 and endpoint.probes is None and "chat template" in error_message(answer):
        # A base model: the engine offers the chat route, but the model has no template to chat with.
        return _ask_completion(engine, endpoint, {})
    return _judge_answer(lambda: answer, result, lambda value: spoken(value["choices"][0]["message"]))


def _ask_stream(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> Result:
    prompt = str(probe.get("prompt") or CHAT_PROMPT)
    result = Result("stream", prompt, _expected(probe, CHAT_EXPECT))
    try:
        streamed = engine.stream_chat(_chat_body(endpoint, prompt, probe))
    except EngineUnreachable as exc:
        result.reason = f"/health is good, but a streamed chat failed: {exc}"
        return result
    except EngineError as exc:
        result.reason = str(exc)
        return result
    result.first_token_seconds = streamed.first_token_seconds
    return judge(result, streamed.text)


def _ask_completion(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> Result:
    prompt = str(probe.get("prompt") or COMPLETION_PROMPT)
    result = Result("completion", prompt, _expected(probe, CHAT_EXPECT))
    body = {
        "model": endpoint.served_model_name,
        "prompt": prompt,
        "max_tokens": int(probe.get("max_tokens") or 32),
        "temperature": 0,
        "seed": 0,
    }
    return _judge_post(
        engine,
        "/v1/completions",
        body,
        result,
        lambda value: str(value["choices"][0]["text"] or ""),
    )


def _ask_vision(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> Result:
    prompt = str(probe.get("prompt") or VISION_PROMPT)
    result = Result("vision", f"{prompt} [red square]", _expected(probe, VISION_EXPECT))
    url = "data:image/png;base64," + base64.b64encode(png(112, (255, 0, 0))).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": prompt},
    ]
    body = _chat_body(endpoint, content, probe)
    return _judge_post(
        engine,
        "/v1/chat/completions",
        body,
        result,
        lambda value: spoken(value["choices"][0]["message"]),
    )


def _ask_transcription(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> Result:
    result = Result("transcription", f"[{CLIP_NAME}]", str(probe.get("expect") or CLIP_EXPECT))
    fields = {
        "model": endpoint.served_model_name,
        "language": "en",
        "temperature": "0",
        "response_format": "json",
    }

    def send() -> Answer:
        return engine.post_form("/v1/audio/transcriptions", fields, (CLIP_NAME, "audio/wav", clip()))

    return _judge_answer(send, result, lambda value: str(value["text"] or ""))


def _ask_embedding(engine: Engine, endpoint: Endpoint, probe: t.Mapping[str, t.Any]) -> Result:
    """Two sentences of one meaning must lie closer than two of different meanings.

    A pattern of the user's own is searched in the line that tells the dimensions and the distances instead.
    """
    pattern = str(probe.get("expect") or "")
    result = Result("embedding", " | ".join(EMBEDDING_TEXTS), pattern or EMBEDDING_EXPECT)
    body = {
        "model": endpoint.served_model_name,
        "input": list(EMBEDDING_TEXTS),
        "encoding_format": "float",
    }

    def vectors(value: t.Any) -> list[list[float]]:
        return [row["embedding"] for row in sorted(value["data"], key=lambda row: int(row["index"]))]

    try:
        answer = engine.post("/v1/embeddings", body)
        if answer.status != 200:
            result.reason = error_message(answer)
            return result
        first, second, third = vectors(answer.json())
        near, far = cosine(first, second), cosine(first, third)
    except EngineError as exc:
        result.reason = str(exc)
        return result
    except (KeyError, TypeError, ValueError, OverflowError):
        result.reason = "/v1/embeddings answered in a shape that is not OpenAI's"
        return result
    answered = f"{len(first)} dimensions, cosine {near:.3f} and {far:.3f}"
    if pattern:
        return judge(result, answered)
    result.answered = answered
    result.ok = near > far
    result.reason = "" if result.ok else "the vectors do not carry the meaning of the sentences"
    return result


def _judge_post(
    engine: Engine,
    path: str,
    body: t.Mapping[str, t.Any],
    result: Result,
    text: t.Callable[[t.Any], str],
) -> Result:
    return _judge_answer(lambda: engine.post(path, body), result, text)


def _judge_answer(send: t.Callable[[], Answer], result: Result, text: t.Callable[[t.Any], str]) -> Result:
    try:
        answer = send()
        if answer.status != 200:
            result.reason = error_message(answer)
            return result
        return judge(result, text(answer.json()))
    except EngineError as exc:
        result.reason = str(exc)
    except (KeyError, IndexError, TypeError, AttributeError):
        result.reason = "the answer has a shape that is not OpenAI's"
    return result


def cosine(first: t.Sequence[float], second: t.Sequence[float]) -> float:
    """0 where a vector is zero or not finite: such a vector is near to nothing."""
    dot = sum(a * b for a, b in zip(first, second))
    norm = math.sqrt(sum(a * a for a in first)) * math.sqrt(sum(b * b for b in second))
    value = dot / norm if norm else 0.0
    return value if math.isfinite(value) else 0.0


def png(size: int, colour: tuple[int, int, int]) -> bytes:
    """A square of one colour: 8-bit RGB, no filter."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


_ASK: dict[str, t.Callable[[Engine, Endpoint, t.Mapping[str, t.Any]], Result]] = {
    "chat": _ask_chat,
    "completion": _ask_completion,
    "vision": _ask_vision,
    "transcription": _ask_transcription,
    "embedding": _ask_embedding,
}
