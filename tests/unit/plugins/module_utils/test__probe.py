# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import math
import struct
import threading
import typing as t
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _probe
from ansible_collections.gpufleet.vllm.plugins.module_utils._probe import Endpoint, Readiness, Result, kinds_for

KEY = "sk-correct"
CHAT_ROUTES = {"/v1/chat/completions": {}, "/v1/completions": {}, "/v1/models": {}}
AUDIO_ROUTES = {"/v1/audio/transcriptions": {}, "/v1/audio/translations": {}, "/v1/chat/completions": {}}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_args: t.Any) -> None:
        pass

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = t.cast("Engine", self.server)
        server.paths.append(self.path)
        answer = server.answers.get(self.path, (404, {"detail": "Not Found"}))
        guarded = self.path.startswith("/v1") and self.path not in server.open_routes
        if server.key and guarded and self.headers["Authorization"] != f"Bearer {server.key}":
            answer = (401, {"error": "Unauthorized"})
        elif self.command == "POST" and sent == b"{}":
            answer = (400, {"error": {"message": "Field required"}})
        status, body = answer
        streamed = False
        if isinstance(body, list) and self.path == "/v1/chat/completions":
            streamed = b'"stream": true' in sent
            body = body if streamed else message("".join(body))
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
        self.end_headers()
        if streamed:
            for words in body:
                self.wfile.write(
                    b"data: " + json.dumps({"choices": [{"delta": {"content": words}}]}).encode() + b"\n\n"
                )
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    do_POST = do_GET


class Engine(ThreadingHTTPServer):
    daemon_threads = True
    key = ""
    open_routes: t.Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.answers: dict[str, tuple[int, t.Any]] = {
            "/health": (200, b""),
            "/version": (200, {"version": "0.33.0"}),
            "/v1/models": (200, {"data": [{"id": "m", "max_model_len": 2048}]}),
            "/openapi.json": (200, {"paths": CHAT_ROUTES}),
            "/v1/chat/completions": (200, ["It is ", "Paris."]),
        }

    def endpoint(self, **extra: t.Any) -> Endpoint:
        options = {"name": "a", "url": f"http://127.0.0.1:{self.server_address[1]}", "served_model_name": "m"}
        return Endpoint(**{**options, "request_timeout": 5.0, **extra})


@pytest.fixture
def engine() -> t.Iterator[Engine]:
    with Engine() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(engine: Engine, **extra: t.Any) -> dict[str, Result]:
    return {result.kind: result for result in _probe.interrogate(engine.endpoint(**extra)).results}


def test_a_good_engine(engine: Engine) -> None:
    report = _probe.interrogate(engine.endpoint()).as_dict()
    assert report["ok"]
    assert (report["version"], report["model_id"], report["max_model_len"]) == ("0.33.0", "m", 2048)
    assert [result["kind"] for result in report["results"]] == ["models", "chat", "stream"]
    chat, stream = report["results"][1:]
    assert (chat["answered"], chat["reason"]) == (stream["answered"], stream["reason"]) == ("It is Paris.", "")
    assert chat["first_token_seconds"] is None
    assert 0 < stream["first_token_seconds"] <= stream["seconds"] + 0.001
    assert engine.paths.count("/v1/chat/completions") == 2, "an engine without a key is asked no key questions"
    assert json.dumps(report)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, {"data": [{"id": "other"}, {"id": "lora"}]}, "the engine serves other, lora"),
        (200, {"data": []}, "the engine serves nothing"),
        (200, {"models": []}, "shape that is not OpenAI's"),
        (200, [], "shape that is not OpenAI's"),
        (200, {"data": 5}, "shape that is not OpenAI's"),
        (200, {"data": ["m"]}, "shape that is not OpenAI's"),
        (200, b"<html>", "not JSON"),
        (503, {"error": {"message": "loading"}}, "HTTP 503: loading"),
    ],
)
def test_models_that_are_wrong_end_the_questions(engine: Engine, status: int, body: t.Any, words: str) -> None:
    engine.answers["/v1/models"] = (status, body)
    report = _probe.interrogate(engine.endpoint())
    assert not report.ok
    assert [result.kind for result in report.results] == ["models"]
    assert words in report.results[0].reason


@pytest.mark.parametrize(("status", "body"), [(404, {}), (200, {}), (200, {"version": None})])
def test_a_version_is_no_must(engine: Engine, status: int, body: t.Any) -> None:
    engine.answers["/version"] = (status, body)
    assert _probe.interrogate(engine.endpoint()).ok


def test_keys(engine: Engine) -> None:
    engine.key = KEY
    results = ask(engine, api_key=KEY)
    assert list(results) == ["models", "key", "chat", "stream"]
    assert all(result.ok for result in results.values())
    assert results["key"].answered == "401"
    assert results["key"].asked.startswith("GET /v1/models, POST /v1/chat/completions: without the key")
    assert "HTTP 401: Unauthorized" in ask(engine, api_key="sk-old")["models"].reason
    assert "HTTP 401" in ask(engine)["models"].reason
    assert KEY not in json.dumps(_probe.interrogate(engine.endpoint(api_key=KEY)).as_dict())


def test_an_engine_that_does_not_ask_for_its_key(engine: Engine) -> None:
    result = ask(engine, api_key=KEY)["key"]
    assert not result.ok
    assert result.answered.split("; ") == [
        "GET /v1/models answered 200 without the key",
        "GET /v1/models answered 200 with a wrong key",
        "POST /v1/chat/completions answered 400 without the key",
        "POST /v1/chat/completions answered 400 with a wrong key",
    ]
    assert result.reason == f"the engine lets requests in without its API key: {result.answered}"
    engine.answers["/v1/models"] = (500, {})
    result = ask(engine, api_key=KEY)["key"]
    assert not result.ok
    assert result.reason == result.answered, "an error is no open door"


@pytest.mark.parametrize(
    ("kind", "route"),
    [
        ("chat", "/v1/chat/completions"),
        ("vision", "/v1/chat/completions"),
        ("completion", "/v1/completions"),
        ("transcription", "/v1/audio/transcriptions"),
        ("embedding", "/v1/embeddings"),
    ],
)
def test_the_key_is_asked_for_where_the_work_is(engine: Engine, kind: str, route: str) -> None:
    engine.key = KEY
    assert ask(engine, api_key=KEY, probes=[{"kind": kind}])["key"].ok
    engine.open_routes = [route]
    result = ask(engine, api_key=KEY, probes=[{"kind": kind}])["key"]
    assert not result.ok
    assert "/v1/models" not in result.reason
    assert f"POST {route} answered 400 without the key" in result.reason


def test_a_service_without_probes_still_guards_its_list(engine: Engine) -> None:
    engine.key = KEY
    assert ask(engine, api_key=KEY, probes=[])["key"].asked == "GET /v1/models: without the key, and with a wrong one"


@pytest.mark.parametrize(
    ("routes", "config", "kinds"),
    [
        (CHAT_ROUTES, {"architectures": ["LlamaForCausalLM"]}, ["chat"]),
        (
            CHAT_ROUTES,
            {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}},
            ["chat", "vision"],
        ),
        (AUDIO_ROUTES, {"architectures": ["WhisperForConditionalGeneration"]}, ["transcription"]),
        (AUDIO_ROUTES, {"architectures": ["VoxtralForConditionalGeneration"]}, ["chat", "transcription"]),
        ({"/v1/completions": {}}, {}, ["completion"]),
        ({"/v1/embeddings": {}}, {}, ["embedding"]),
        ({**CHAT_ROUTES, "/v1/embeddings": {}}, {}, ["chat"]),
        ({"/v1/rerank": {}}, {}, []),
        # a model's files are not to be trusted
        (CHAT_ROUTES, {"architectures": 5}, ["chat"]),
        (AUDIO_ROUTES, {"architectures": "WhisperForConditionalGeneration"}, ["chat", "transcription"]),
        (CHAT_ROUTES, {"architectures": [None, 1]}, ["chat"]),
    ],
)
def test_kinds(routes: dict[str, t.Any], config: dict[str, t.Any], kinds: list[str]) -> None:
    assert kinds_for(routes, config) == kinds


@pytest.mark.parametrize(
    ("answer", "kinds", "words"),
    [
        ((404, {}), ["models", "chat", "stream"], ""),
        ((200, {"paths": {"/v1/rerank": {}}}), ["models", "routes"], "no chat, completion, transcription or embedding"),
        ((200, [1]), ["models", "routes"], "shape that is not OpenAPI's"),
        ((200, {"paths": 5}), ["models", "routes"], "shape that is not OpenAPI's"),
        ((200, b"<html>"), ["models", "routes"], "not JSON"),
    ],
)
def test_routes(engine: Engine, answer: tuple[int, t.Any], kinds: list[str], words: str) -> None:
    engine.answers["/openapi.json"] = answer
    results = ask(engine)
    assert list(results) == kinds
    assert words in results[kinds[-1]].reason


@pytest.mark.parametrize("text", [None, "{", "[1]", "[" * 100_000, "\xff"])
def test_a_model_config_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert _probe.model_config(str(tmp_path)) == {}


def test_a_wrong_answer(engine: Engine) -> None:
    engine.answers["/v1/chat/completions"] = (200, ["London!\n", " Or Parisian?"])
    results = ask(engine)
    for kind in ("chat", "stream"):
        assert not results[kind].ok
        assert results[kind].reason.startswith("answered 'London! Or Parisian?', expected an answer that matches")


def test_healthy_but_the_chat_is_cut(engine: Engine) -> None:
    engine.answers["/v1/chat/completions"] = (500, {"error": {"message": "EngineCore died"}})
    results = ask(engine)
    assert results["chat"].reason == results["stream"].reason == "HTTP 500: EngineCore died"


def test_only_the_stream_is_wrong(engine: Engine) -> None:
    engine.answers["/v1/chat/completions"] = (200, message("Paris."))
    results = ask(engine)
    assert (results["chat"].ok, results["stream"].ok) == (True, False)
    assert "instead of an event stream" in results["stream"].reason


def test_a_silent_engine_is_not_waited_for_twice(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def post(self: t.Any, path: str, value: t.Any, *, key: str | None = None) -> t.Any:
        raise _probe.EngineUnreachable("no answer within 120 s")

    monkeypatch.setattr(_probe.Engine, "post", post)
    results = ask(engine)
    assert list(results) == ["models", "chat"]
    assert results["chat"].reason == "/health is good, but a chat request failed: no answer within 120 s"


def test_a_base_model_completes_instead(engine: Engine) -> None:
    message = "As of transformers v4.44, default chat template is no longer allowed"
    engine.answers["/v1/chat/completions"] = (400, {"error": {"message": message}})
    engine.answers["/v1/completions"] = (200, {"choices": [{"text": " Paris, and"}]})
    results = ask(engine)
    assert list(results) == ["models", "completion"]
    assert results["completion"].ok
    assert not ask(engine, probes=[{"kind": "chat"}])["chat"].ok, "a user who asks for a chat gets one"


@pytest.mark.parametrize(
    ("probe", "ok"),
    [
        ({"kind": "chat", "prompt": "Anything?"}, True),
        ({"kind": "chat", "prompt": "Anything?", "expect": "(?i)PARIS"}, True),
        ({"kind": "chat", "expect": "Rome"}, False),
    ],
)
def test_probes_of_ones_own(engine: Engine, probe: dict[str, t.Any], ok: bool) -> None:
    results = ask(engine, probes=[probe])
    assert results["chat"].ok is results["stream"].ok is ok
    assert "/openapi.json" not in engine.paths


@pytest.mark.parametrize(("answer", "ok"), [("xq zv", True), ("。", True), (" ", True), ("", False)])
def test_any_words_will_do_for_a_dot(engine: Engine, answer: str, ok: bool) -> None:
    engine.answers["/v1/chat/completions"] = (200, message(answer))
    assert ask(engine, probes=[{"kind": "vision", "expect": "."}])["vision"].ok is ok


def test_a_prompt_of_ones_own_takes_any_words(engine: Engine) -> None:
    engine.answers["/v1/chat/completions"] = (200, message("A square."))
    assert ask(engine, probes=[{"kind": "vision", "prompt": "What is it?"}])["vision"].ok
    assert not ask(engine, probes=[{"kind": "vision"}])["vision"].ok


@pytest.mark.parametrize(("expect", "ok"), [(".", True), ("^2 dimensions", True), ("^384 dimensions", False)])
def test_embeddings_of_ones_own(engine: Engine, expect: str, ok: bool) -> None:
    vectors = [{"index": i, "embedding": [i % 2, 1]} for i in range(3)]  # the wrong two are close
    engine.answers["/v1/embeddings"] = (200, {"data": vectors})
    assert not ask(engine, probes=[{"kind": "embedding"}])["embedding"].ok
    result = ask(engine, probes=[{"kind": "embedding", "expect": expect}])["embedding"]
    assert (result.ok, result.answered) == (ok, "2 dimensions, cosine 0.707 and 1.000")


def test_an_empty_list_asks_nothing(engine: Engine) -> None:
    assert list(ask(engine, probes=[])) == ["models"]


def message(content: t.Any, **extra: t.Any) -> dict[str, t.Any]:
    return {"choices": [{"message": {"content": content, **extra}}]}


VECTORS = [{"index": 2, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [1, 0.1]}]
SHAPE = "shape that is not OpenAI's"


@pytest.mark.parametrize(
    ("kind", "path", "body", "reason"),
    [
        ("vision", "/v1/chat/completions", message("Red."), ""),
        ("vision", "/v1/chat/completions", message("Reddish green"), "answered 'Reddish green'"),
        ("vision", "/v1/chat/completions", message(None), "answered ''"),
        ("vision", "/v1/chat/completions", message(None, reasoning_content="It looks red"), ""),
        ("vision", "/v1/chat/completions", {"choices": []}, SHAPE),
        ("vision", "/v1/chat/completions", {"choices": [{"message": "red"}]}, SHAPE),
        ("completion", "/v1/completions", {"choices": [{"text": " Paris"}]}, ""),
        ("completion", "/v1/completions", {"choices": [{"text": None}]}, "answered ''"),
        ("completion", "/v1/completions", [1], SHAPE),
        ("transcription", "/v1/audio/transcriptions", {"text": " One, two, three, four, five."}, ""),
        ("transcription", "/v1/audio/transcriptions", {"text": "1 2 3 4 5"}, ""),
        ("transcription", "/v1/audio/transcriptions", {"text": "Thank you."}, "answered 'Thank you.'"),
        ("transcription", "/v1/audio/transcriptions", {"words": []}, SHAPE),
        ("embedding", "/v1/embeddings", {"data": VECTORS}, ""),
        ("embedding", "/v1/embeddings", {"data": VECTORS[:2]}, SHAPE),
        ("embedding", "/v1/embeddings", {"data": [{"index": i, "embedding": [0, 0]} for i in range(3)]}, "the meaning"),
        ("embedding", "/v1/embeddings", b'{"data": [%s]}' % b",".join(
            b'{"index": %d, "embedding": [NaN, 1]}' % i for i in range(3)), "the meaning"),
        ("embedding", "/v1/embeddings", {"data": [{"index": i, "embedding": "abc"} for i in range(3)]}, SHAPE),
        ("embedding", "/v1/embeddings", {"data": [{"index": i, "embedding": [10**400]} for i in range(3)]}, SHAPE),
    ],
)  # fmt: skip
def test_answers_of_each_kind(engine: Engine, kind: str, path: str, body: t.Any, reason: str) -> None:
    engine.answers[path] = (200, body)
    result = ask(engine, probes=[{"kind": kind}])[kind]
    assert result.ok == (not reason)
    assert reason in result.reason
    engine.answers[path] = (500, {"error": {"message": "boom"}})
    assert ask(engine, probes=[{"kind": kind}])[kind].reason == "HTTP 500: boom"


@pytest.mark.parametrize("kind", ["vision", "completion"])
def test_no_words_are_no_answer_whatever_is_expected(engine: Engine, kind: str) -> None:
    engine.answers["/v1/completions"] = (200, {"choices": [{"text": None}]})
    engine.answers["/v1/chat/completions"] = (200, message(None))
    result = ask(engine, probes=[{"kind": kind, "prompt": "Say anything", "expect": "" if kind != "vision" else "x"}])
    assert not result[kind].ok


def test_judge() -> None:
    assert _probe.judge(Result("chat", "?", ""), " words ").ok
    assert not _probe.judge(Result("chat", "?", ""), " \n ").ok
    assert "with words in it" in _probe.judge(Result("chat", "?", ""), "").reason


def test_cosine() -> None:
    assert _probe.cosine([1, 0], [1, 0]) == pytest.approx(1)
    assert _probe.cosine([1, 0], [0, 1]) == 0
    assert _probe.cosine([0, 0], [0, 1]) == 0
    assert _probe.cosine([math.inf, 1], [1, 1]) == 0
    assert _probe.cosine([], []) == 0


def test_the_picture_is_a_red_square() -> None:
    data = _probe.png(3, (255, 0, 0))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 3, 8, 2, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == (b"\0" + b"\xff\0\0" * 3) * 3


# Waiting


def test_health(engine: Engine) -> None:
    assert _probe.health(engine.endpoint()) == Readiness(True, "GET /health answered 200")
    engine.answers["/health"] = (503, b"")
    assert _probe.health(engine.endpoint()) == Readiness(False, "GET /health answered 503")
    closed = Endpoint("a", "http://127.0.0.1:1", "m")
    assert "Connection refused" in _probe.health(closed).seen


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_ends_when_all_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), []
    ready = {"a": 1.0, "b": 3.0}

    def health(endpoint: Endpoint) -> Readiness:
        asked.append(endpoint.name)
        return Readiness(clock.now >= ready[endpoint.name], f"at {clock.now}")

    monkeypatch.setattr(_probe, "health", health)
    endpoints = [Endpoint(name, "http://x", "m") for name in ready]
    seen = _probe.wait_for_health(endpoints, 60, clock=clock, sleep=clock.sleep)
    assert all(state.ready for state in seen.values())
    assert clock.now == 3.0
    assert asked.count("a") == 3, "one that is ready is not asked again"
    ready["b"] = 1e9
    seen = _probe.wait_for_health(endpoints, 5, clock=clock, sleep=clock.sleep)
    assert (seen["a"].ready, seen["b"].ready, clock.now) == (True, False, 8.0)
    seen = _probe.wait_for_health(endpoints, 60, lambda: False, clock=clock, sleep=clock.sleep)
    assert clock.now == 8.0


def test_waiting_for_nothing() -> None:
    assert _probe.wait_for_health([], 60) == {}
