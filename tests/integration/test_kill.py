# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SIGKILL at fifty random moments of a run, then the run again: the tree is right every time.

At no moment is there anything but nothing, the whole old version or the whole new one. A seed decides everything about
a round but the machine's own timing; a failure names it.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest
from model_hub import Fault, Hub, add_model
from module_host import MODEL, Host, moved, nothing_but_the_model, tree, wait_for

ROUNDS, BATCHES, SIDE_BY_SIDE = 50, 5, 2

LARGE = 12 * 1024 * 1024
"""Fetched in ranges."""

SECONDS = 0.5
"""What the transfer of everything takes."""

STEPS = 110
"""About as many calls to the file system as one run makes, writing left out."""

CALLS = ("fchmod", "fsync", "ftruncate", "link", "mkdir", "open", "rename", "rmdir", "unlink")

KILL_AT_A_CALL = """
import os, signal, threading
left, lock = {step}, threading.Lock()
def deadly(call):
    def wrapped(*args, **options):
        global left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapped
for name in {calls}:
    setattr(os, name, deadly(getattr(os, name)))
"""


@dataclass(frozen=True)
class World:
    """A hub's directory with two revisions of a model, their trees, and a directory that holds the old one."""

    root: Path
    installed: Path
    old: dict[str, bytes]
    new: dict[str, bytes]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base, chance = tmp_path_factory.mktemp("kill"), random.Random(0)
    old, root = base / "old", base / "hub"
    (old / "sub").mkdir(parents=True)
    root.mkdir()
    (old / "model-1.safetensors").write_bytes(chance.randbytes(LARGE))
    (old / "model-2.safetensors").write_bytes(chance.randbytes(LARGE // 8))
    (old / "config.json").write_text("{}")
    (old / "sub/tokenizer.json").write_bytes(chance.randbytes(50_000))
    (old / "sub/gone.json").write_text("[]")
    add_model(root, MODEL, old, tag="v1", copy=True)
    new = base / "new"
    shutil.copytree(old, new)
    (new / "model-1.safetensors").write_bytes(chance.randbytes(LARGE))
    (new / "sub/gone.json").unlink()
    (new / "sub/more").mkdir()
    (new / "sub/more/new.json").write_text("{ }")
    add_model(root, MODEL, new)
    installed = base / "installed"
    with Hub(root) as hub:
        (base / "setup").mkdir()
        Host(base / "setup", hub.endpoint).run(path=str(installed), revision="v1")
    return World(root, installed, tree(old), tree(new))


class Round:
    """One model directory, one hub of its own, and everything that is done to them, out of one seed."""

    def __init__(self, world: World, seed: int, directory: Path, hub: Hub) -> None:
        self.world, self.chance, self.hub = world, random.Random(seed), hub
        self.update = self.chance.random() < 0.5
        self.path = directory / "models/tiny"
        self.host = Host(directory, hub.endpoint)
        self.killed = 0
        if self.update:
            shutil.copytree(world.installed, self.path)

    @property
    def missing(self) -> int:
        known = set(self.world.old.values()) if self.update else set()
        return sum(len(data) for data in set(self.world.new.values()) - known)

    def play(self) -> None:
        connections = self.chance.choice([1, 4, 32])
        slow = self.hub.faults.add(Fault(match="lfs/*", total_rate=self.missing / SECONDS))
        for _unused in range(self.chance.choice([1, 1, 2])):
            self._kill(connections)
            self._check_whole()
        self.hub.faults.remove(slow)
        check = self.host.run(path=str(self.path), connections=connections, _ansible_check_mode=True)
        real = self.host.run(path=str(self.path), connections=connections)
        assert real["bytes_fetched"] == check["bytes_fetched"] <= self.missing
        assert tree(self.path) == self.world.new
        assert nothing_but_the_model(self.path)

    def _kill(self, connections: int) -> None:
        self.hub.requests.clear()
        kind = self.chance.choice(["start", "transfer", "transfer", "end", "call", "call"])
        share, wait = self.chance.random(), self.chance.random()
        if kind == "call":
            step = self.chance.randint(1, STEPS)
            self.host.preamble = KILL_AT_A_CALL.format(step=step, calls=CALLS)
        process = self.host.start(path=str(self.path), connections=connections)
        self.host.preamble = ""
        try:
            if kind == "start":
                time.sleep(0.5 * wait)
            elif kind == "transfer":
                wait_for(lambda: moved(self.hub) >= share * self.missing or process.poll() is not None, "progress")
            elif kind == "end":
                wait_for(lambda: moved(self.hub) >= self.missing or process.poll() is not None, "end of the transfer")
                time.sleep(0.15 * wait)
            else:
                process.wait(60)
        finally:
            process.kill()
            process.communicate()
        self.killed += process.returncode == -9

    def _check_whole(self) -> None:
        """Nothing, or one of the two versions with the manifest that goes with it."""
        if not self.path.exists():
            assert not self.update, "what served is gone"
            return
        found = tree(self.path)
        assert found == self.world.new or (self.update and found == self.world.old)
        manifest = _manifest.load((self.path / ".gpufleet/manifest.json").read_text())
        assert {entry.path for entry in manifest.entries} == set(found)
        assert manifest.revision == ("master" if found == self.world.new else "v1")


@pytest.fixture
def hubs(world: World) -> Iterator[list[Hub]]:
    with Hub(world.root) as one, Hub(world.root) as two:
        yield [one, two]


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_kill_at_any_moment_costs_nothing_but_time(world: World, hubs: list[Hub], tmp_path: Path, batch: int) -> None:
    def rounds(lane: int) -> list[tuple[int, bool]]:
        done = []
        for seed in range(batch * ROUNDS // BATCHES + lane, (batch + 1) * ROUNDS // BATCHES, SIDE_BY_SIDE):
            directory = tmp_path / str(seed)
            directory.mkdir()
            try:
                this = Round(world, seed, directory, hubs[lane])
                this.play()
            except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as exc:
                raise AssertionError(f"seed {seed}: {exc}") from exc
            done.append((seed, bool(this.killed)))
            shutil.rmtree(directory)
        return done

    with ThreadPoolExecutor(SIDE_BY_SIDE) as lanes:
        done = [item for lane in lanes.map(rounds, range(SIDE_BY_SIDE)) for item in lane]
    assert sorted(seed for seed, _killed in done) == list(range(batch * 10, batch * 10 + 10))
    assert sum(killed for _seed, killed in done) >= 3, "or this shows nothing"
