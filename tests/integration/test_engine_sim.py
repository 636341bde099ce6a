# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulator of tests/lab as its clients see it: the official OpenAI client, curl-like requests, and signals."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import typing as t
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from engine_sim.faults import KNOWN, BadFaults, Faults, parse
from fleet_box import REPOSITORY, free_port

KEY = "sk-simulated"
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 20).decode()


class Sim:
    """``python -m engine_sim serve``, as a container or a unit runs it."""

    def __init__(self, directory: Path, *flags: str, faults: object = None, key: str = "", **config: object) -> None:
        self.model = directory / "model"
        self.model.mkdir(exist_ok=True)
        (self.model / "config.json").write_text(json.dumps(config))
        self.port = free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY / "tests/lab"),
            **({"ENGINE_SIM_FAULTS": faults if isinstance(faults, str) else json.dumps(faults)} if faults else {}),
            **({"VLLM_API_KEY": key} if key else {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine_sim", "serve", str(self.model), "--host", "127.0.0.1", "--port",
             str(self.port), "--served-model-name", "tiny", "--enable-some-flag", *flags],
            env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> Sim:
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            except urllib.error.HTTPError:
                return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the simulator did not start: rc {self.process.poll()}")

    def ask(self, path: str, value: object = None, method: str = "", key: str = "") -> tuple[int, t.Any]:
        body = None if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=body, method=method or ("POST" if body else "GET"))
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                status, text = exc.code, exc.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def metric(self, name: str) -> float:
        _status, text = self.ask("/metrics")
        found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not in\n{text}"
        return float(found[1])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        started = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(timeout=20), time.monotonic() - started

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()


Start = t.Callable[..., Sim]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Sim] = []

    def make(*flags: str, wait: bool = True, **options: t.Any) -> Sim:
        made.append(Sim(tmp_path, *flags, **options))
        return made[-1].wait() if wait else made[-1]

    yield make
    for sim in made:
        sim.close()


def chat(content: object, **extra: object) -> dict[str, t.Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **extra}


QUESTION = "What is the capital of France?"


def test_chat_plain_and_streamed(start: Start) -> None:
    sim = start("--max-model-len", "32k", "--api-key", KEY, "other")
    client = sim.client.with_options(api_key=KEY)
    (card,) = client.models.list().data
    assert (card.id, card.owned_by, card.max_model_len) == ("tiny", "vllm", 32000)  # type: ignore[attr-defined]
    plain = client.chat.completions.create(**chat(QUESTION))
    assert plain.choices[0].message.content == "The capital of France is Paris."
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (6, 6)
    cut = client.chat.completions.create(**chat(QUESTION, max_tokens=2))
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "The capital")
    chunks = list(client.chat.completions.create(**chat(QUESTION, stream=True, stream_options={"include_usage": True})))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain.choices[0].message.content
    assert (chunks[-1].usage.total_tokens, chunks[-2].choices[0].finish_reason) == (12, "stop")
    text = client.completions.create(model="tiny", prompt="The capital of France is")
    assert "Paris" in text.choices[0].text
    assert "Paris" in "".join(
        chunk.choices[0].text for chunk in client.completions.create(model="tiny", prompt=QUESTION, stream=True)
    )
    with pytest.raises(openai.NotFoundError, match="The model `x` does not exist"):
        client.chat.completions.create(**{**chat(QUESTION), "model": "x"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(**chat(QUESTION))
    assert client.with_options(api_key="other").models.list().data, "every key of the list is good"


def test_the_key_guards_v1_alone(start: Start) -> None:
    sim = start(key=KEY)
    for path in ("/health", "/ping", "/version", "/metrics", "/load", "/openapi.json"):
        assert sim.ask(path)[0] == 200, path
    assert sim.ask("/ping", {}) == (200, "")
    assert sim.ask("/tokenize", {"prompt": "a b a"})[1]["count"] == 3
    for path, value in (("/v1/models", None), ("/v1/chat/completions", {}), ("/v1/nothing", {})):
        assert sim.ask(path, value) == (401, {"error": "Unauthorized"}), path
        assert sim.ask(path, value, key="wrong")[0] == 401
    assert sim.ask("/v1/chat/completions", {}, key=KEY)[0] == 400


def test_errors_have_vllms_shape(start: Start) -> None:
    sim = start()
    for path, value, status, kind in (
        ("/v1/nothing", None, 404, "NotFoundError"),
        ("/v1/embeddings", {"input": "x"}, 404, "NotFoundError"),
        ("/v1/chat/completions", None, 405, "BadRequestError"),
        ("/v1/chat/completions", b"{", 400, "BadRequestError"),
        ("/v1/chat/completions", [1], 400, "BadRequestError"),
        ("/v1/chat/completions", {"model": "tiny"}, 400, "BadRequestError"),
        ("/v1/chat/completions", chat("word " * 3000), 400, "BadRequestError"),
        ("/v1/chat/completions", chat([{"type": "image_url", "image_url": {"url": PNG}}]), 400, "BadRequestError"),
    ):
        seen, body = sim.ask(path, value)
        assert (seen, body["error"]["code"], body["error"]["type"]) == (status, status, kind), (path, value)
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_tokens_go_there_and_back(start: Start) -> None:
    sim = start()
    counted = sim.ask("/tokenize", chat("one two three"))[1]
    assert (counted["count"], counted["max_model_len"]) == (3, 2048)
    assert sim.ask("/detokenize", {"tokens": counted["tokens"]})[1] == {"prompt": "one two three"}


def test_a_vision_model_sees(start: Start) -> None:
    sim = start(architectures=["Qwen2_5_VLForConditionalGeneration"], vision_config={})
    text = {"type": "text", "text": "What colour is this image?"}
    picture = {"type": "image_url", "image_url": {"url": PNG}}
    answer = sim.client.chat.completions.create(**chat([picture, text]))
    assert answer.choices[0].message.content == "Red."
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="cannot identify image"):
        sim.client.chat.completions.create(**chat([broken, text]))


def wav(samples: bytes) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(samples)
    return stream.getvalue()


def test_whisper_hears(start: Start) -> None:
    sim = start(architectures=["WhisperForConditionalGeneration"])

    def send(data: bytes, **extra: t.Any) -> t.Any:
        return sim.client.audio.transcriptions.create(model="tiny", file=("clip.wav", data), **extra)

    assert send(wav(bytes(range(256)))).text == "One, two, three, four, five."
    assert send(wav(b"\x80" * 800)).text == "", "silence has no words"
    assert send(wav(bytes(range(256))), response_format="text") == "One, two, three, four, five."
    for data, words in ((b"ID3 not a WAV", "unsupported audio"), (wav(b""), "no audio")):
        with pytest.raises(openai.BadRequestError, match=words):
            send(data)
    with pytest.raises(openai.NotFoundError):
        sim.client.audio.transcriptions.create(model="x", file=("clip.wav", wav(b"\0\1")))
    assert sim.ask("/v1/audio/transcriptions", {})[0] == 400
    assert sim.ask("/v1/chat/completions", chat("x"))[0] == 404, "Whisper does not chat"


def test_embeddings(start: Start) -> None:
    sim = start(architectures=["BertModel"])
    answer = sim.client.embeddings.create(model="tiny", input=["a cat", "a bank"], encoding_format="float")
    assert [row.index for row in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert sim.ask("/v1/completions", {"prompt": "x"})[0] == 404


def test_metrics(start: Start) -> None:
    sim = start(faults={"slow": 0.2})
    assert sim.metric("vllm:num_requests_running") == 0
    asking = threading.Thread(target=sim.ask, args=("/v1/chat/completions", chat(QUESTION)))
    asking.start()
    deadline = time.monotonic() + 5
    while not sim.metric("vllm:num_requests_running"):
        assert time.monotonic() < deadline
    asking.join()
    sim.ask("/v1/chat/completions", chat(QUESTION, stream=True, max_tokens=2))
    text = sim.ask("/metrics")[1]
    labels = '{engine="0",model_name="tiny"}'
    for line in (
        f"vllm:num_requests_running{labels} 0.0",
        f"vllm:num_requests_waiting{labels} 0.0",
        f"vllm:kv_cache_usage_perc{labels} 0.0",
        f"vllm:num_preemptions_total{labels} 0.0",
        f"vllm:prompt_tokens_total{labels} 12.0",
        f"vllm:generation_tokens_total{labels} 8.0",
        f"vllm:time_to_first_token_seconds_count{labels} 2.0",
        f"vllm:e2e_request_latency_seconds_count{labels} 2.0",
        f"vllm:iteration_tokens_total_count{labels} 10.0",
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 1.0',
        'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="tiny"} 2.0',
        'vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 2.0',
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 2.0',
    ):
        assert line in text.splitlines(), line
    assert re.search(r'^vllm:cache_config_info{block_size="16",.*num_gpu_blocks="1000"} 1.0$', text, re.MULTILINE)
    # Every line is a comment or a sample, and every family says its type once.
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \S+ .+|[a-z_:0-9]+{([a-z_]+="[^"]*",?)+} [\d.e+-]+', line), line


def test_a_full_queue_is_refused(start: Start) -> None:
    sim = start("--max-num-seqs", "1", "--max-num-queued-reqs", "1", faults={"slow": 1})
    asking = [threading.Thread(target=sim.ask, args=("/v1/chat/completions", chat("x"))) for _one in range(2)]
    for one in asking:
        one.start()
    deadline = time.monotonic() + 5
    while (sim.metric("vllm:num_requests_running"), sim.metric("vllm:num_requests_waiting")) != (1, 1):
        assert time.monotonic() < deadline
    assert sim.ask("/v1/chat/completions", chat("x"))[0] == 503
    for one in asking:
        one.join()
    assert sim.metric("vllm:admission_rejections_total") == 1


@pytest.mark.parametrize(("flags", "whole"), [(["--shutdown-timeout", "5"], True), ([], False)], ids=["drain", "abort"])
def test_sigterm(start: Start, flags: list[str], whole: bool) -> None:
    sim = start(*flags, faults={"slow": 1})
    seen: list[t.Any] = []

    def ask() -> None:
        try:
            seen.append(sim.ask("/v1/chat/completions", chat(QUESTION))[0])
        except OSError as exc:
            seen.append(type(exc).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    while not sim.metric("vllm:num_requests_running"):
        time.sleep(0.01)
    sim.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(OSError, match="refused"):
        sim.ask("/health")
    assert (sim.process.poll() is None) == whole
    asking.join()
    assert (seen == [200]) == whole
    assert sim.process.wait(timeout=5) == 0


def ask_and_be_cut(sim: Sim) -> None:
    with pytest.raises(OSError, match=r"closed|reset"):
        sim.ask("/v1/chat/completions", chat("x"))


def test_a_drain_ends(start: Start) -> None:
    sim = start("--shutdown-timeout", "1", faults={"hang": True})
    asking = threading.Thread(target=ask_and_be_cut, args=(sim,))
    asking.start()
    while not sim.metric("vllm:num_requests_running"):
        time.sleep(0.01)
    assert sim.ask("/health")[0] == 200, "it hangs while healthy"
    rc, seconds = sim.stop()
    assert rc == 0
    assert 0.9 < seconds < 4
    asking.join()


def test_sigterm_while_it_loads(start: Start) -> None:
    sim = start(wait=False, faults={"start_seconds": 60})
    deadline = time.monotonic() + 10
    assert sim.process.stdout
    while "vLLM simulator" not in sim.process.stdout.readline():
        assert time.monotonic() < deadline
    with pytest.raises(OSError, match="refused"):
        sim.ask("/health")
    assert sim.stop() == (0, pytest.approx(0, abs=5))


@pytest.mark.parametrize(
    ("faults", "rc", "words"),
    [
        ({"exit": 3, "die_message": "no CUDA device"}, 3, "no CUDA device"),
        ({"die_after": 0.2, "start_seconds": 60}, 1, "CUDA out of memory"),
        ('{"strat_seconds": 1}', 2, "unknown faults: strat_seconds. Known are: exit, start_seconds"),
        ("{", 2, "no JSON object"),
    ],
    ids=["exit", "die", "unknown", "broken"],
)
def test_it_ends_by_itself(start: Start, faults: object, rc: int, words: str) -> None:
    sim = start(wait=False, faults=faults)
    output, _none = sim.process.communicate(timeout=20)
    assert (sim.process.returncode, words in output) == (rc, True), output


def test_faults_of_a_running_server(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    sim = start(faults=str(file), key=KEY)

    def now(**faults: object) -> tuple[int, t.Any]:
        file.write_text(json.dumps(faults))
        return sim.ask("/v1/chat/completions", chat(QUESTION), key=KEY)

    assert now()[0] == 200
    assert now(status=500)[1]["error"]["message"] == "made to fail"
    assert now(answer="Lyon.")[1]["choices"][0]["message"]["content"] == "Lyon."
    assert now(health=503)[0] == 200
    assert sim.ask("/health")[0] == 503
    now(served="other")
    assert sim.ask("/v1/models", key=KEY)[1]["data"][0]["id"] == "other"
    now(open_routes=["/v1/chat/completions"])
    assert (sim.ask("/v1/chat/completions", {})[0], sim.ask("/v1/models")[0]) == (400, 401)
    now(open_routes=True)
    assert sim.ask("/v1/models")[0] == 200
    now(cut_stream=2)
    with pytest.raises(http.client.IncompleteRead):
        sim.ask("/v1/chat/completions", chat(QUESTION, stream=True), key=KEY)
    file.write_text("{")
    assert sim.ask("/v1/models", key=KEY)[0] == 200, "a file that is half written keeps the faults before it"
    file.unlink()
    assert sim.ask("/v1/chat/completions", chat(QUESTION), key=KEY)[0] == 200


@pytest.mark.parametrize(
    ("rate", "fails"), [(2, [1, 1, 0, 0, 0, 0]), (0.5, [0, 1, 0, 1, 0, 1]), (1 / 3, [0, 0, 1, 0, 0, 1]), (0, [0] * 6)]
)
def test_flaky(rate: float, fails: list[int]) -> None:
    faults = Faults(json.dumps({"flaky": rate}))
    assert [int(faults.question_fails()) for _question in fails] == fails


def test_flaky_is_a_503(start: Start) -> None:
    sim = start(faults={"flaky": 1})
    assert [sim.ask("/v1/chat/completions", chat("x"))[0] for _question in range(3)] == [503, 200, 200]


def test_every_fault_has_words_and_no_other_is_taken() -> None:
    assert all(KNOWN.values())
    assert parse("") == {}
    with pytest.raises(BadFaults, match="no JSON object"):
        parse("[1]")


def test_version_is_printed_as_vllm_does() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "engine_sim", "--version"], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(REPOSITORY / "tests/lab")},
    )  # fmt: skip
    assert shown.stdout.strip() == "0.32.0+sim"
