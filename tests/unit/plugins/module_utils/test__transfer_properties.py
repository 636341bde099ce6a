# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A transfer that is killed at any step, over connections that break anywhere, ends with the right bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import typing as t
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _staging, _transfer, _transfer_crew
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

# The sizes at which the engine decides, small enough that a file of a kilobyte meets them all.
WHOLE, PIECE_MIN, PIECE_MAX, NOTE = 100, 40, 160, 60
READ = 50
PIECE_CONNECTIONS = 3

SIZES = [0, 1, PIECE_MIN, WHOLE, WHOLE + 1, 3 * WHOLE, 1000]


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WHOLE", WHOLE), ("PIECE_MIN", PIECE_MIN), ("PIECE_MAX", PIECE_MAX), ("NOTE", NOTE)):
        monkeypatch.setattr(_transfer_crew, name, value)
    # As in the large: no piece that a source asks for is smaller than a file without a journal.
    monkeypatch.setattr(_staging, "JOURNAL_MIN", PIECE_MIN)


class Killed(BaseException):
    """The process is gone."""


class Life:
    """One run of a process: it ends at the step ``end``, and nothing it does after that reaches the disk."""

    def __init__(self, end: int | None) -> None:
        self._end, self._steps, self._lock = end, 0, threading.Lock()
        self.over = False

    def step(self) -> bool:
        """Whether this is the last step. Raises Killed for every later one."""
        with self._lock:
            if self.over:
                raise Killed
            self._steps += 1
            self.over = self._steps == self._end
            return self.over


class Part:
    """A part on disk that its process writes to while it lives."""

    def __init__(self, part: _staging.FilePart, life: Life, chance: Random) -> None:
        self._part, self._life, self._chance = part, life, chance
        self.done = part.done

    def fileno(self) -> int:
        return self._part.fileno()

    def read(self, limit: int, offset: int) -> bytes:
        return self._part.read(limit, offset)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        last = self._life.step()
        self._part.write(data[: self._chance.randint(0, len(data))] if last else data, offset)
        if last:
            raise Killed

    def note(self, start: int, end: int) -> None:
        if not self._life.over:
            self._either(lambda: self._part.note(start, end))

    def restart(self) -> None:
        self._either(self._part.restart)

    def complete(self) -> None:
        self._either(self._part.complete)

    def close(self) -> None:
        self._part.close()

    def _either(self, call: t.Callable[[], None]) -> None:
        """Die before it, after it, or not at all."""
        last = self._life.step()
        if not last or self._chance.random() < 0.5:
            call()
        if last:
            raise Killed


class Store:
    part_type: type[Part] = Part

    def __init__(self, parts: int, life: Life, chance: Random) -> None:
        self._parts, self._life, self._chance = parts, life, chance

    def part(self, entry: Entry) -> _transfer.Part:
        return self.part_type(_staging.FilePart(self._parts, entry), self._life, self._chance)


class Stream:
    described = "HTTP 206, application/octet-stream, from http://hub"

    def __init__(self, data: bytes, offset: int | None, total: int | None, whole: bool, then: Exception | None) -> None:
        self._data, self.offset, self.total, self.whole, self._then = data, offset, total, whole, then
        self._chance = Random(len(data))

    def read(self, limit: int) -> bytes:
        if not self._data and self._then is not None:
            raise self._then
        count = self._chance.randint(1, max(1, min(limit, READ)))
        data, self._data = self._data[:count], self._data[count:]
        return data

    def close(self) -> None:
        """Nothing to close."""


FAILURES: list[t.Callable[[], Exception]] = [
    lambda: _transfer.TransientError("hub.busy", "busy", retry_after=0.0),
    lambda: _transfer.OverloadError("hub.busy", "busy", retry_after=0.0),
    lambda: ConnectionResetError(104, "Connection reset by peer"),
    lambda: TimeoutError("timed out"),
]


MODES = ["right", "to the end", "from the start", "says nothing", "lies", "pieces", "mixed"]
ODD_MODES = ["right", "right", "to the end", "from the start", "says nothing"]


class Source:
    """Gives the contents over connections that fail to open, break, or end early, as ``mode`` answers ranges."""

    def __init__(self, contents: dict[str, bytes], mode: str, chance: Random) -> None:
        self._contents, self._mode, self._chance, self._lock = contents, mode, chance, threading.Lock()
        self.piece: int | None = PIECE_MIN if mode == "pieces" else None
        self.connections: int | None = PIECE_CONNECTIONS if mode == "pieces" else None
        self.asked: list[tuple[int, int]] = []

    def open(self, entry: Entry, start: int, end: int) -> Stream:
        content = self._contents[entry.sha256]
        assert 0 <= start < end <= len(content)
        with self._lock:
            self.asked.append((start, end))
            fails, breaks, corrupts = (self._chance.random() for _unused in range(3))
            cut, at = self._chance.random(), self._chance.random()
            failure = self._chance.choice(FAILURES)()
            mode = self._chance.choice(ODD_MODES) if self._mode == "mixed" else self._mode
        if fails < 0.15:
            raise failure
        offset: int | None = start
        whole, total = False, len(content) if at < 0.5 else None
        data = content[start:end]
        if mode == "to the end":
            data, whole = content[start:], True
        elif mode == "from the start":
            data, whole, offset = content, True, 0
        elif mode == "says nothing" and start:
            data, offset = content, None
        elif mode == "lies" and corrupts < 0.2:
            place = int(at * len(data))
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        if breaks < 0.3:
            return Stream(data[: int(cut * len(data))], offset, total, whole, failure if at < 0.5 else None)
        return Stream(data, offset, total, whole, None)


@dataclass
class Witness:
    """An observer that believes nothing: what it is told has to be in the file."""

    contents: dict[str, bytes]
    honest: bool
    files: dict[str, int] = field(default_factory=dict)
    told: dict[str, Ranges] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def begun(self, entry: Entry, fileno: int, done: Sequence[tuple[int, int]]) -> None:
        self.files[entry.sha256], self.told[entry.sha256] = fileno, Ranges(done)
        for start, end in done:
            self._compare(entry, start, end)

    def written(self, entry: Entry, start: int, end: int) -> None:
        self._compare(entry, start, end)
        self.told[entry.sha256].add(start, end)

    def dropped(self, entry: Entry) -> None:
        self.told[entry.sha256] = Ranges()

    def verified(self, entry: Entry) -> None:
        self.verdicts.append(entry.sha256)
        if not self.told[entry.sha256].covers(0, entry.size):
            self.faults.append(f"verified {entry.size} bytes after {self.told[entry.sha256]}")
        if os.pread(self.files[entry.sha256], entry.size + 1, 0) != self.contents[entry.sha256]:
            self.faults.append("verified what is not right")

    def _compare(self, entry: Entry, start: int, end: int) -> None:
        found = os.pread(self.files[entry.sha256], end - start, start)
        if self.honest and found != self.contents[entry.sha256][start:end]:
            self.faults.append(f"[{start}, {end}) of {entry.size} bytes is not there")


def run(
    entries: Sequence[Entry],
    source: Source,
    parts: int,
    life: Life,
    connections: int,
    witness: Witness,
    chance: Random,
) -> tuple[Monitor, bool]:
    """One process; False when it was killed."""
    monitor = Monitor()
    policy = _transfer.RetryPolicy(attempts=10_000, bad_contents=10_000, longest_wait=0.0)
    store, limits = Store(parts, life, chance), _transfer.Limits(connections=connections)
    try:
        received = _transfer.fetch_all(entries, source, store, limits, policy, monitor, witness)
    except Killed:
        return monitor, False
    assert received == monitor.received
    return monitor, True


def lives(kills: Sequence[int]) -> Iterator[Life]:
    yield from map(Life, kills)
    yield Life(None)


@given(
    sizes=st.lists(st.sampled_from(SIZES) | st.integers(0, 1000), min_size=1, max_size=4),
    kills=st.lists(st.integers(1, 60), max_size=6),
    mode=st.sampled_from(MODES) | st.just("right"),
    connections=st.integers(1, 4),
    impatient=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example(sizes=[1000], kills=[5, 9, 14, 20, 27, 35], mode="right", connections=4, impatient=False, seed=1)
@example(sizes=[1000], kills=[5, 9, 14, 20, 27, 35], mode="right", connections=1, impatient=False, seed=2)
def test_whatever_breaks_the_bytes_are_right_in_the_end(
    sizes: list[int], kills: list[int], mode: str, connections: int, impatient: bool, seed: int
) -> None:
    """``impatient`` shares every range with whoever has nothing to do, which else takes seconds of slowness."""
    with pytest.MonkeyPatch.context() as patched:
        if impatient:
            patched.setattr(_transfer_crew, "SLOW_SECONDS", 0.0)
            patched.setattr(_transfer_crew, "SILENT_SECONDS", 0.0)
        deaths, received, whole = killed_until_done(sizes, kills, mode, connections, seed)
    if mode in ("right", "pieces") and not impatient:
        lost = deaths * max(connections, PIECE_CONNECTIONS) * (NOTE + READ)
        assert received <= whole + lost, "a kill costs what was not noted, and no more"


def killed_until_done(
    sizes: list[int], kills: list[int], mode: str, connections: int, seed: int
) -> tuple[int, int, int]:
    """How often it was killed, and the bytes received and those there are."""
    chance = Random(seed)
    contents = {hashlib.sha256(data).hexdigest(): data for data in map(chance.randbytes, sizes)}
    entries = [Entry(f"file{number}", len(data), name) for number, (name, data) in enumerate(contents.items())]
    witness = Witness(contents, honest=mode != "lies")
    source, received, deaths = Source(contents, mode, chance), 0, 0
    with tempfile.TemporaryDirectory() as directory:
        parts = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for life in lives(kills):
                monitor, finished = run(entries, source, parts, life, connections, witness, chance)
                received += monitor.received
                if finished:
                    break
                deaths += 1
        finally:
            os.close(parts)
        assert finished
        assert witness.faults == [], source.asked
        assert set(witness.verdicts) == set(contents)
        assert monitor.snapshot()["done"] == sum(len(data) for data in contents.values())
        assert {item.name: item.read_bytes() for item in Path(directory).iterdir()} == contents, (
            "and no journal is left"
        )
    return deaths, received, sum(map(len, contents.values()))


# --- what the search above found, and is rare ---


class Answers:
    """A source of one file: ``odd`` may answer a range in its own way, all others are as they should be."""

    piece: int | None = None
    connections: int | None = 2

    def __init__(self, content: bytes, odd: t.Callable[[int, int], Stream | None]) -> None:
        self._content, self._odd = content, odd

    def open(self, entry: Entry, start: int, end: int) -> Stream:
        return self._odd(start, end) or Stream(self._content[start:end], start, entry.size, False, None)


def fetched(source: Answers, content: bytes, part_type: type[Part] = Part) -> bytes:
    """The content as it is in the store after a transfer that came to its end."""
    entry = Entry("file", len(content), hashlib.sha256(content).hexdigest())
    with tempfile.TemporaryDirectory() as directory:
        parts = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        store = Store(parts, Life(None), Random(0))
        store.part_type = part_type
        policy = _transfer.RetryPolicy(attempts=100, longest_wait=0.0)
        thread = threading.Thread(target=_transfer.fetch_all, args=([entry], source, store, None, policy), daemon=True)
        try:
            thread.start()
            thread.join(20)
            assert not thread.is_alive(), "it never ends"
        finally:
            os.close(parts)
        return (Path(directory) / entry.sha256).read_bytes()


def test_a_connection_that_fell_silent_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one brings the rest of its range; whoever ends last has to see to it that the file is verified."""
    monkeypatch.setattr(_transfer_crew, "SILENT_SECONDS", 0.0)
    content = Random(1).randbytes(1000)

    class Silent(Stream):
        def read(self, limit: int) -> bytes:
            if len(self._data) > 100:
                return super().read(20)
            rest_is_there.wait(30)
            raise TimeoutError("timed out")

    class Counting(Part):
        def write(self, data: bytes | memoryview, offset: int) -> None:
            super().write(data, offset)
            written.add(offset, offset + len(data))
            if written.covers(0, len(content)):
                # The other connection is to find that there is nothing left for it to do.
                threading.Timer(0.3, rest_is_there.set).start()

    def odd(start: int, end: int) -> Stream | None:
        first = start == 0 and not written
        return Silent(content[start:end], start, len(content), False, None) if first else None

    rest_is_there, written = threading.Event(), Ranges()
    assert fetched(Answers(content, odd), content, Counting) == content


def test_a_late_answer_does_not_undo_what_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range that was given to somebody else is answered after all, from byte 0, while the whole is verified."""
    monkeypatch.setattr(_transfer_crew, "SILENT_SECONDS", 0.0)
    content = Random(2).randbytes(1000)

    def odd(start: int, end: int) -> Stream | None:
        if not start or late.is_set():
            return None
        late.set()
        hashed.wait(30)
        return Late(content, 0, len(content), True, None)

    class Late(Stream):
        def read(self, limit: int) -> bytes:
            completed.wait(0.5)
            return super().read(limit)

    class Watched(Part):
        def read(self, limit: int, offset: int) -> bytes:
            data = super().read(limit, offset)
            if offset + len(data) == len(content):
                hashed.set()
                dropped.wait(0.5)
            return data

        def restart(self) -> None:
            super().restart()
            dropped.set()

        def complete(self) -> None:
            super().complete()
            completed.set()

    late, hashed, dropped, completed = (threading.Event() for _unused in range(4))
    assert fetched(Answers(content, odd), content, Watched) == content


def test_an_answer_that_goes_on_to_the_end_does_not_stand_for_what_is_before_it() -> None:
    """A gateway that honours only the start of a range: what other connections had before it is still to be fetched."""
    content = Random(3).randbytes(1000)

    def odd(start: int, end: int) -> Stream | None:
        if start:
            later_one_answered.set()
            return Stream(content[start:], start, len(content), True, None)
        later_one_answered.wait(30)
        return None

    class Slow(Part):
        def write(self, data: bytes | memoryview, offset: int) -> None:
            super().write(data, offset)
            if offset:
                time.sleep(0.01)  # so that the first one has its answer before the other one is through

    later_one_answered = threading.Event()
    assert fetched(Answers(content, odd), content, Slow) == content
