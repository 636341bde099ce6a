# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make quickstart` as a user types it: real vLLM, a real model from the embedded hub, real answers.

The engine is kept in the cache between runs of this test; everything else is made and removed by it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, Run, controller_environment, free_port
from openai import OpenAI
from tree import cache_dir

MODEL = "smollm2-135m"


def cwd_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


class Quickstart:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.hub_port = free_port()

    def make(self, target: str, *arguments: str, timeout: float = 1500) -> Run:
        environment = controller_environment(
            GPUFLEET_HOME=str(self.home),
            GPUFLEET_PORT=str(self.port),
            GPUFLEET_HUB_PORT=str(self.hub_port),
            GPUFLEET_ENGINE=str(cache_dir() / "engine" / "quickstart"),
        )
        # The make that runs these tests must not hand its flags down.
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
            environment.pop(name, None)
        done = subprocess.run(
            ["make", target, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Run(done.returncode, done.stdout)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Quickstart, Run]]:
    # Short: a Unix socket lies below it.
    made = Quickstart(Path(f"/tmp/gf-quickstart-{os.getpid()}"))
    try:
        yield made, made.make("quickstart")
    finally:
        down = made.make("quickstart-down", "KEEP_ENGINE=1")
        assert down.rc == 0, down.output


def test_the_first_run_answers(quickstart: tuple[Quickstart, Run]) -> None:
    _made, run = quickstart
    assert run.rc == 0, run.output
    # What it says before it starts, on its way, and at its end.
    assert "MB" in run.output
    assert "the CPU engine is used" in run.output
    assert "1 service: it answers" in run.output
    assert "answered  The capital of France is Paris." in run.output
    assert re.search(r"timing    first token [\d.]+ m?s", run.output)
    assert re.search(r"HuggingFaceTB/SmolLM2-135M-Instruct @ [0-9a-f]{12}, 272\.6 MB", run.output)
    for label in ("ask it", "your own hosts", "stop it"):
        assert f"  {label}" in run.output


def test_the_curl_line_of_the_summary_works(quickstart: tuple[Quickstart, Run]) -> None:
    _made, run = quickstart
    found = re.search(r"ask it +(curl .*?\}'$)", run.output, re.MULTILINE | re.DOTALL)
    assert found, run.output
    asked = subprocess.run(["sh", "-c", found[1]], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(asked.stdout)["choices"][0]["message"]["content"].strip()


def test_the_openai_client_talks_to_it(quickstart: tuple[Quickstart, Run]) -> None:
    made, _run = quickstart
    client = OpenAI(base_url=f"http://127.0.0.1:{made.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_the_second_run_changes_nothing(quickstart: tuple[Quickstart, Run]) -> None:
    made, _run = quickstart
    run = made.make("quickstart")
    assert run.rc == 0, run.output
    assert run.changed == 0, run.output
    status = made.make("quickstart-status")
    assert status.rc == 0, status.output
    assert f"http://127.0.0.1:{made.port}  ok" in status.output


def test_a_killed_engine_comes_back_by_itself(quickstart: tuple[Quickstart, Run]) -> None:
    made, _run = quickstart
    control = [made.home / "supervisor/venv/bin/supervisorctl", "-c", made.home / "supervisor/supervisord.conf"]
    pid = int(subprocess.run([*control, "pid", "smollm2"], capture_output=True, text=True, check=True).stdout)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 240
    while True:
        now = subprocess.run([*control, "pid", "smollm2"], capture_output=True, text=True, check=False).stdout.strip()
        if now.isdigit() and int(now) not in (0, pid):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{made.port}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
        assert time.monotonic() < deadline
        time.sleep(1)


def test_down_removes_all_of_it(quickstart: tuple[Quickstart, Run]) -> None:
    made, _run = quickstart
    down = made.make("quickstart-down", "KEEP_ENGINE=1")
    assert down.rc == 0, down.output
    assert not made.home.exists()
    # Also what a killed engine left behind, which holds its memory.
    left = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    working = [line for line in left.splitlines() if "VLLM::" in line or str(made.home) in line]
    assert not [line for line in working if cwd_of(line.split()[0]).startswith(str(made.home))], working
    for port in (made.port, made.hub_port):
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
    again = made.make("quickstart-down", "KEEP_ENGINE=1")
    assert again.rc == 0, again.output
