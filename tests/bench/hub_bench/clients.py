# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The programs that are compared, each started as a host or a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ansible

from . import spawner
from .models import BenchError

REPOSITORY = Path(__file__).resolve().parents[3]

OURS, OFFICIAL, TUNED, ZIPPED = "ours", "official", "tuned", "ansiballz"
RAW, RAW_FSYNC, BARE, BARE_FSYNC = "raw", "raw+fsync", "bare", "bare+fsync"

_RUNNER = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import modelscope_model as module
with patch_module_args(json.load(sys.stdin)):
    module.main()
"""


@dataclass(frozen=True)
class Task:
    """One download: what, from where, to where."""

    model: str
    endpoint: str
    target: Path
    source: Path


@dataclass(frozen=True)
class Command:
    """A program ready to be started."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""


class Clients:
    """Makes the commands; ``home`` is a directory of its own for what they write beside the target."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._library = home / "library"
        (self._library / "ansible_collections/gpufleet").mkdir(parents=True)
        (self._library / "ansible").symlink_to(Path(ansible.__file__).parent)
        (self._library / "ansible_collections/gpufleet/vllm").symlink_to(REPOSITORY)
        self._official = Path(sys.executable).with_name("modelscope")
        if not self._official.is_file():
            raise BenchError(
                f"{self._official} does not exist. Expected: the pinned official client; run make dev-setup"
            )

    def command(self, client: str, task: Task) -> Command:
        """How ``client`` does ``task``."""
        if client == OURS:
            return self._ours(task)
        if client == OFFICIAL:
            return self._modelscope(task, {}, [])
        if client == TUNED:
            # The most that it allows, by its own environment variables and options.
            more = {"MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "16"}
            return self._modelscope(task, more, ["--max-workers", "32"])
        if client == ZIPPED:
            return self._zipped(task)
        return self._floor(task, client)

    @staticmethod
    def options(task: Task) -> dict[str, object]:
        """Our module's options: what a user would set, so everything else is at its default."""
        return {"model": task.model, "endpoint": task.endpoint, "path": str(task.target)}

    def _environment(self, **more: str) -> dict[str, str]:
        return {"HOME": str(self._home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **more}

    def _ours(self, task: Task) -> Command:
        environment = self._environment(PYTHONPATH=str(self._library))
        return Command([sys.executable, "-c", _RUNNER], environment, json.dumps(self.options(task)))

    def _modelscope(self, task: Task, more: Mapping[str, str], options: list[str]) -> Command:
        argv = [str(self._official), "download", "--model", task.model, "--local_dir", str(task.target), *options]
        return Command(argv, self._environment(MODELSCOPE_ENDPOINT=task.endpoint, **more))

    def _floor(self, task: Task, client: str) -> Command:
        options = ["4", "1" if client in (RAW_FSYNC, BARE_FSYNC) else "0"]
        places = [str(task.source), str(task.target)]
        if client in (RAW, RAW_FSYNC):
            program, options = "raw_copy.py", [*options, *places]
        else:
            program, options = "bare_get.py", [*options, task.endpoint, task.model, *places]
        argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name(program)), *options]
        return Command(argv, self._environment())

    def _zipped(self, task: Task) -> Command:
        """The module as Ansible sends it to a host, everything in one file; this runs it once."""
        kept = self._home / "sent"
        shutil.rmtree(kept, ignore_errors=True)
        environment = self._environment(
            ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
            ANSIBLE_COLLECTIONS_PATH=str(self._library),
            ANSIBLE_KEEP_REMOTE_FILES="1",
            ANSIBLE_REMOTE_TMP=str(kept),
        )
        argv = [str(Path(sys.executable).with_name("ansible")), "-i", "localhost,", "-c", "local", "localhost"]
        argv += ["-e", f"ansible_python_interpreter={sys.executable}", "-m", "gpufleet.vllm.modelscope_model"]
        argv += ["-a", json.dumps(self.options(task))]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        found = list(kept.glob("*/AnsiballZ_modelscope_model.py"))
        if done.returncode or not found:
            raise BenchError(f"Ansible could not run the module: {(done.stdout + done.stderr).strip()[-500:]}")
        return Command([sys.executable, str(found[0])], self._environment())


@dataclass(frozen=True)
class Cost:
    """What one process cost, by wait4."""

    wall: float
    user: float
    system: float
    peak_kib: int


class Spawner:
    """The small process that starts the clients."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(spawner.__file__))],
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, command: Command, limit: float) -> Cost:
        """Run one command to its end. Raises BenchError when it fails."""
        files = {name: str(self._directory / name) for name in ("input", "output", "errors")}
        Path(files["input"]).write_text(command.stdin, encoding="utf-8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"argv": command.argv, "env": dict(command.env), "limit": limit, **files}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer or answer["status"] or answer["timed_out"]:
            said = "".join(Path(files[name]).read_text(errors="replace")[-1500:] for name in ("output", "errors"))
            raise BenchError(f"{command.argv[:4]} did not succeed: {answer}\n{said}")
        return Cost(answer["wall"], answer["user"], answer["system"], answer["peak_kib"])

    def close(self) -> None:
        """End it, and what it runs."""
        self._process.terminate()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


@contextlib.contextmanager
def spawning(directory: Path) -> Iterator[Spawner]:
    """A spawner for the time of a with statement."""
    running = Spawner(directory)
    try:
        yield running
    finally:
        running.close()
