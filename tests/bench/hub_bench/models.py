# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The models that are downloaded, and a hub of its own process that serves them."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_hub import add_model

from . import machine

MIB = 1 << 20
_LAB = Path(__file__).resolve().parents[2] / "lab"

_NOT_LONGER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # when the benchmark is killed, the hub is to end too
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class BenchError(Exception):
    """The benchmark cannot go on; the text says what was seen and what to do."""


@dataclass(frozen=True)
class Sizes:
    """How big everything is."""

    big_files: int = 4
    big_mib: int = 512
    one_mib: int = 2048
    many: int = 1005
    rate: float = 20e6
    latency: float = 0.05

    def bytes_of(self, model: str) -> int:
        """About how many bytes ``model`` has."""
        return {"acme/big": self.big_files * self.big_mib, "acme/one": self.one_mib, "acme/many": 64}[model] * MIB


QUICK = Sizes(big_mib=32, one_mib=128, many=105)


def _random(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as writer:
        while size > 0:
            size -= writer.write(os.urandom(min(size, 8 * MIB)))


def _small(directory: Path) -> None:
    for name, size in (("config.json", 700), ("generation_config.json", 240), ("tokenizer_config.json", 7_000)):
        _random(directory / name, size)
    _random(directory / "vocab.json", 900_000)
    _random(directory / "README.md", 5_000)


def _big(directory: Path, sizes: Sizes) -> None:
    for number in range(1, sizes.big_files + 1):
        _random(directory / f"model-{number:05}-of-{sizes.big_files:05}.safetensors", sizes.big_mib * MIB)
    _small(directory)


def _one(directory: Path, sizes: Sizes) -> None:
    _random(directory / "model.safetensors", sizes.one_mib * MIB)


def _many(directory: Path, sizes: Sizes) -> None:
    for number in range(sizes.many):
        _random(directory / f"part-{number % 10}" / f"{number:05}.json", 500 + 7 * number % 4000)


_MAKERS: dict[str, Callable[[Path, Sizes], None]] = {"acme/big": _big, "acme/one": _one, "acme/many": _many}


class Hub:
    """The lab's hub as its own process, so that its CPU is told from the clients'."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._root, self._faults = directory / "hub", directory / "faults.json"
        self._log = directory / "requests.log"
        self._root.mkdir(parents=True)
        self._log.touch()
        self.faults([])
        command = [sys.executable, "-c", _NOT_LONGER, "-m", "model_hub", "serve", "--root", str(self._root)]
        command += ["--faults", str(self._faults), "--log", str(self._log)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(_LAB)}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if "at" not in words:
            self.close()
            raise BenchError("the hub did not start; its own message is above")
        self.endpoint = words[words.index("at") + 1]

    def close(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu(self) -> float:
        """CPU seconds it has used."""
        return machine.process_seconds(self._process.pid)

    def faults(self, faults: list[dict[str, Any]]) -> None:
        """From now on it misbehaves so."""
        partial = self._faults.with_suffix(".new")
        partial.write_text(json.dumps({"faults": faults}), encoding="utf-8")
        partial.replace(self._faults)

    def position(self) -> int:
        """Where its log of requests ends now."""
        return self._log.stat().st_size

    def requests_since(self, position: int) -> int:
        """How many requests it has answered since then."""
        with self._log.open("rb") as reader:
            reader.seek(position)
            return reader.read().count(b"\n")

    def source(self, model: str) -> Path:
        """The files of a model as they were made."""
        return self._directory / "source" / model

    def add(self, model: str, sizes: Sizes) -> None:
        """Make a model, unless it is there."""
        if self.source(model).is_dir():
            return
        needed = 2 * sizes.bytes_of(model) + 256 * MIB  # the model, and a copy of it
        if machine.free_bytes(self._directory) < needed:
            raise BenchError(
                f"{self._directory} has {machine.free_bytes(self._directory) // MIB} MiB to spare. "
                f"Expected: {needed // MIB} MiB for {model}. Free memory, name another --fast, or use --quick"
            )
        _MAKERS[model](self.source(model), sizes)
        add_model(self._root, model, self.source(model))

    def drop(self, model: str) -> None:
        """Free the room that a model takes."""
        shutil.rmtree(self.source(model), ignore_errors=True)
        shutil.rmtree(self._root / "models" / model, ignore_errors=True)


def differences(source: Path, target: Path, contents: bool) -> list[str]:
    """Files of ``source`` that ``target`` lacks or has otherwise; by size alone unless ``contents``."""
    wrong = []
    for path in sorted(item for item in source.rglob("*") if item.is_file()):
        other = target / path.relative_to(source)
        same = other.is_file() and other.stat().st_size == path.stat().st_size
        if not same or (contents and not filecmp.cmp(path, other, shallow=False)):
            wrong.append(str(path.relative_to(source)))
    return wrong
