# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host on which modules run as processes of their own, a small model for them to fetch, and ways to look at both."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import ansible
import pytest
from model_hub import Hub, add_model

MODEL = "acme/tiny"
TOKEN = "ms-0123456789abcdef-secret"
WEIGHTS = 6_000_000
REPOSITORY = Path(__file__).resolve().parents[2]

RUNNER = """
import atexit, json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import {module} as module
{preamble}
# Not getrusage: its peak includes that of the parent this process was forked from.
peak = lambda: next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
atexit.register(lambda: print("RSS", peak(), file=sys.stderr))
with patch_module_args(json.load(sys.stdin)):
    module.main()
"""


@functools.cache
def pythons() -> list[str]:
    """This interpreter, and the oldest one that managed hosts may have, where it is installed."""
    found = [sys.executable]
    for name in ("python3.9", *map(str, Path.home().glob(".pyenv/versions/3.9*/bin/python"))):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return [*found, path]
    return found


class Host:
    """A host on which modules run: its Python finds the standard library and the module's own world, nothing else.

    ``home`` is the user's home directory below ``directory``: two hosts that share a file system have two of them.
    ``environment`` is added to what a module sees, ``preamble`` is Python that runs before it, and ``wrapper`` a
    command that starts it; ``rss`` is the memory in MiB that the last one took at most.
    """

    def __init__(self, directory: Path, endpoint: str, home: str = "home") -> None:
        self.endpoint, self.home = endpoint, directory / home
        self.home.mkdir()
        self.library = directory / "library"
        if not self.library.exists():
            (self.library / "ansible_collections/gpufleet").mkdir(parents=True)
            (self.library / "ansible").symlink_to(Path(ansible.__file__).parent)
            (self.library / "ansible_collections/gpufleet/vllm").symlink_to(REPOSITORY)
        self.python, self.rss = sys.executable, 0
        self.environment: dict[str, str] = {}
        self.preamble, self.wrapper = "", list[str]()

    def start(self, module: str = "modelscope_model", **args: Any) -> subprocess.Popen[str]:
        """Start a module; ``result`` takes what it answers. An argument that is None is not given."""
        options = {"model": MODEL, "endpoint": self.endpoint, **args}
        options = {name: value for name, value in options.items() if value is not None}
        environment = {"HOME": str(self.home), "PYTHONPATH": str(self.library), "PATH": os.environ["PATH"]}
        process = subprocess.Popen(
            # Without site-packages: what a managed host has not is not found here either.
            [*self.wrapper, self.python, "-S", "-c", RUNNER.format(module=module, preamble=self.preamble)],
            env={**environment, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(options))
        process.stdin.close()
        process.stdin = None
        return process

    def result(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a module and take its answer, which is all that it may say, and tells no secret."""
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        said, _mark, rss = err.rpartition("RSS ")
        assert not said, out + err
        self.rss = int(rss)
        answer: dict[str, Any] = json.loads(out)
        assert (process.returncode != 0) == bool(answer.get("failed"))
        assert TOKEN not in out
        assert "auth_key" not in out
        return answer

    def run(self, module: str = "modelscope_model", **args: Any) -> dict[str, Any]:
        """Run a module that has to succeed."""
        answer = self.result(self.start(module, **args))
        assert not answer.get("failed"), answer
        return answer

    def fail(self, code: str, **args: Any) -> str:
        """Run a module that has to fail with ``code``; returns its message."""
        answer = self.result(self.start(**args))
        assert answer.get("code") == code, answer
        assert all(answer[key] for key in ("msg", "seen", "expected", "remedy"))
        return str(answer["msg"])


# --- the model ---


def make_source(directory: Path) -> Path:
    """The files of the model: weights, and small ones of which two are equal and one is empty."""
    (directory / "sub").mkdir(parents=True)
    (directory / "config.json").write_text('{"architectures": []}')
    (directory / "model.safetensors").write_bytes(random.Random(1).randbytes(WEIGHTS))
    (directory / "sub/tokenizer.json").write_text("{}")
    (directory / "sub/twin.json").write_text("{}")
    (directory / "empty.txt").write_text("")
    return directory


def new_revision(root: Path, source: Path, tmp_path: Path) -> dict[str, bytes]:
    """Move master: one file changed, one new, one gone. Returns the new tree."""
    following = tmp_path / "following"
    shutil.copytree(source, following)
    (following / "model.safetensors").write_bytes(random.Random(2).randbytes(WEIGHTS))
    (following / "new.txt").write_text("new")
    (following / "sub/twin.json").unlink()
    add_model(root, MODEL, following)
    return tree(following)


class Endpoint(Protocol):
    """What has an address: a hub, a mirror."""

    endpoint: str


def official(host: Host, repo: Endpoint, path: Path, model: str = MODEL) -> subprocess.CompletedProcess[str]:
    """The official client, which has to succeed."""
    command = Path(sys.executable).with_name("modelscope")
    if not command.is_file():
        pytest.fail(f"{command} does not exist. Install the pinned official client: modelscope==1.40.2")
    environment = {"HOME": str(host.home), "PATH": os.environ["PATH"], "MODELSCOPE_ENDPOINT": repo.endpoint}
    return subprocess.run(
        [str(command), "download", "--model", model, "--local_dir", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


# --- what is there ---


def tree(directory: Path) -> dict[str, bytes]:
    """The files of an artifact with their contents, without our own directory."""
    return {
        str(item.relative_to(directory)): item.read_bytes()
        for item in directory.rglob("*")
        if item.is_file() and ".gpufleet" not in item.parts
    }


def total(directory: Path) -> int:
    """Bytes to fetch for a directory: equal files come once."""
    return sum(len(data) for data in set(tree(directory).values()))


def nothing_but_the_model(path: Path) -> bool:
    """Whether neither beside the artifact nor in it anything is left of a run."""
    return os.listdir(path.parent) == [path.name] and os.listdir(path / ".gpufleet") == ["manifest.json"]


def everything(base: Path) -> list[str]:
    """Every path below a directory."""
    return sorted(str(item.relative_to(base)) for item in base.rglob("*"))


# --- what is going on ---


def moved(repo: Hub, match: str = "lfs/*") -> int:
    """Body bytes that the hub has sent up to now."""
    return sum(request.sent for request in repo.requests.select(match))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within 60 s"
        time.sleep(0.01)


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root; the unit tests cover the check itself")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)
