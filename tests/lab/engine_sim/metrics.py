# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``GET /metrics`` of vLLM tells, under vLLM's names and labels, in Prometheus' text format."""

from __future__ import annotations

import threading
import typing as t
from dataclasses import dataclass, field

LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)
FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
REASONS = ("stop", "length", "abort", "error", "repetition")
BLOCKS = 1000
BLOCK_SIZE = 16


@dataclass
class Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    count: int = 0

    def observe(self, value: float) -> None:
        self.counts = self.counts or [0] * len(self.bounds)
        for index, bound in enumerate(self.bounds):
            self.counts[index] += value <= bound
        self.total += value
        self.count += 1

    def samples(self, name: str, labels: dict[str, str]) -> list[str]:
        counts = self.counts or [0] * len(self.bounds)
        buckets = [(str(bound), count) for bound, count in zip(self.bounds, counts, strict=True)]
        lines = [
            sample(f"{name}_bucket", {**labels, "le": le}, count) for le, count in [*buckets, ("+Inf", self.count)]
        ]
        return [*lines, sample(f"{name}_count", labels, self.count), sample(f"{name}_sum", labels, self.total)]


def sample(name: str, labels: dict[str, str], value: float) -> str:
    escaped = {key: text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, text in labels.items()}
    inside = ",".join(f'{key}="{text}"' for key, text in sorted(escaped.items()))
    return f"{name}{{{inside}}} {float(value)}"


class Metrics:
    """Counts of one server; every method may be called from any thread."""

    def __init__(self, model: str) -> None:
        self.labels = {"engine": "0", "model_name": model}
        self.lock = threading.Lock()
        self.running = 0
        self.waiting = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.rejections = 0
        self.finished = dict.fromkeys(REASONS, 0)
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS)
        self.latency = Histogram(LATENCY_BUCKETS)
        self.iteration_tokens = Histogram(TOKEN_BUCKETS)
        self.requests: dict[tuple[str, str, str], int] = {}

    def add(self, name: str, amount: int) -> None:
        """Raise or lower ``running``, ``waiting`` or ``rejections``."""
        with self.lock:
            setattr(self, name, getattr(self, name) + amount)

    def done(self, reason: str, prompt: int, generated: int, seconds: float, first: float | None = None) -> None:
        with self.lock:
            self.finished[reason] += 1
            self.prompt_tokens += prompt
            self.generation_tokens += generated
            self.latency.observe(seconds)
            self.first_token.observe(seconds if first is None else first)
            self.iteration_tokens.observe(prompt)
            for _token in range(generated):
                self.iteration_tokens.observe(1)

    def request(self, handler: str, method: str, status: int) -> None:
        key = (handler, method, f"{status // 100}xx")
        with self.lock:
            self.requests[key] = self.requests.get(key, 0) + 1

    def text(self) -> str:
        with self.lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> t.Iterator[str]:
        plain: tuple[tuple[str, str, str, float], ...] = (
            ("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", self.running),
            ("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", self.waiting),
            ("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", self._usage()),
            ("vllm:num_preemptions_total", "counter", "Cumulative number of preemptions.", self.preemptions),
            ("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", self.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", "Number of generated tokens.", self.generation_tokens),
        )
        for name, kind, words, value in plain:
            yield from (*_head(name, kind, words), sample(name, self.labels, value))
        yield from self._labelled()
        for name, words, histogram in (
            ("vllm:time_to_first_token_seconds", "Time to first token in seconds.", self.first_token),
            ("vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", self.latency),
            ("vllm:iteration_tokens_total", "Number of tokens per engine step.", self.iteration_tokens),
        ):
            yield from (*_head(name, "histogram", words), *histogram.samples(name, self.labels))

    def _labelled(self) -> t.Iterator[str]:
        yield from _head("vllm:request_success_total", "counter", "Count of successfully processed requests.")
        for reason, count in self.finished.items():
            yield sample("vllm:request_success_total", {**self.labels, "finished_reason": reason}, count)
        yield from _head("vllm:admission_rejections_total", "counter", "Requests refused because the queue was full.")
        yield sample("vllm:admission_rejections_total", {**self.labels, "reason": "queue_full"}, self.rejections)
        yield from _head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
        cache = {
            "block_size": str(BLOCK_SIZE),
            "cache_dtype": "auto",
            "enable_prefix_caching": "True",
            "engine": "0",
            "gpu_memory_utilization": "0.92",
            "num_gpu_blocks": str(BLOCKS),
        }
        yield sample("vllm:cache_config_info", cache, 1)
        yield from _head("http_requests_total", "counter", "Total number of requests by method, status and handler.")
        for (handler, method, status), count in sorted(self.requests.items()):
            yield sample("http_requests_total", {"handler": handler, "method": method, "status": status}, count)

    def _usage(self) -> float:
        """Each running request holds a hundredth of the cache."""
        return min(1.0, self.running / 100)


def _head(name: str, kind: str, words: str) -> tuple[str, str]:
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}"
