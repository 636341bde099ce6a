# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host gives: only pieces that are there and that a digest vouches for."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import piece_count, piece_range
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Absent, Ready, Shelf
from hypothesis import given, settings
from hypothesis import strategies as st

PIECE = 4096
DATA = Random(3).randbytes(5 * PIECE + 100)
ENTRY = Entry("model.safetensors", len(DATA), hashlib.sha256(DATA).hexdigest())
COUNT = piece_count(len(DATA), PIECE)


def digest(index: int) -> bytes:
    start, end = piece_range(index, len(DATA), PIECE)
    return hashlib.sha256(DATA[start:end]).digest()


class Stage:
    """A shelf and the part file of one entry."""

    def __init__(self, path: Path) -> None:
        self.shelf = Shelf(PIECE)
        self.shelf.expect([ENTRY])
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def begin(self, *done: tuple[int, int]) -> None:
        for start, end in done:
            os.pwrite(self.handle, DATA[start:end], start)
        self.shelf.begun(ENTRY, self.handle, done)

    def write(self, start: int, end: int, checked: bool = False, data: bytes = DATA) -> None:
        for index in range(start // PIECE, -(-end // PIECE)):
            if checked:
                self.shelf.checked(ENTRY, index, digest(index))
        os.pwrite(self.handle, data[start:end], start)
        self.shelf.written(ENTRY, start, end)

    def take(self, index: int, wait: float = 0.0) -> bytes | bool:
        """The bytes of a piece, or whether it is worth waiting for."""
        taken = self.shelf.take(ENTRY.sha256, index, wait)
        if isinstance(taken, Absent):
            return taken.waiting
        start, end = piece_range(index, len(DATA), PIECE)
        data = os.pread(taken.handle, end - start, start)
        os.close(taken.handle)
        assert hashlib.sha256(data).digest() == taken.digest
        return data


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "part")
    yield made
    made.shelf.close()
    os.close(made.handle)


def test_nothing_but_the_run_is_on_the_shelf(stage: Stage) -> None:
    other = Entry("other", 5, "00" * 32)
    stage.shelf.offer(other, lambda: os.open(os.devnull, os.O_RDONLY))
    stage.shelf.begun(other, stage.handle, [])
    stage.shelf.written(other, 0, 5)
    stage.shelf.verified(other)
    stage.shelf.dropped(other)
    assert stage.shelf.entry(other.sha256) is None
    assert stage.shelf.entry(ENTRY.sha256) == ENTRY


def test_piece_is_given_once_all_of_it_is_there(stage: Stage) -> None:
    assert stage.take(0) is True, "it will come"
    stage.begin()
    stage.write(0, PIECE - 1, checked=True)
    assert stage.take(0) is True
    stage.write(PIECE - 1, PIECE, checked=True)
    assert stage.take(0) == DATA[:PIECE]
    assert stage.take(1) is True


def test_who_waits_hears_at_once(stage: Stage) -> None:
    stage.begin()
    heard: list[bytes | bool] = []
    waiting = threading.Thread(target=lambda: heard.append(stage.take(COUNT - 1, 30.0)))
    waiting.start()
    began = time.monotonic()
    stage.write((COUNT - 1) * PIECE, len(DATA), checked=True)
    waiting.join(20)
    assert heard == [DATA[(COUNT - 1) * PIECE :]]
    assert time.monotonic() - began < 20


def test_what_came_from_the_hub_is_vouched_for_alone(stage: Stage) -> None:
    stage.shelf.judge = lambda _entry, _index: pytest.fail("nobody else is asked")
    stage.begin()
    stage.shelf.owned(ENTRY, 0, PIECE)
    stage.write(0, PIECE)
    assert stage.take(0) == DATA[:PIECE]
    assert stage.shelf.digests(ENTRY.sha256, 0, 10) == [digest(0)]


def test_what_an_earlier_run_left_is_judged_first(stage: Stage) -> None:
    asked: list[int] = []

    def judge(_entry: Entry, index: int) -> bytes | None:
        asked.append(index)
        if index == 2:
            raise LookupError(index)
        return digest(index) if index != 1 else b"another"

    stage.shelf.judge = judge
    stage.begin((0, 3 * PIECE))
    assert stage.take(0) == DATA[:PIECE]
    assert stage.take(1) is False, "not before the content changes"
    assert stage.take(2) is True, "nobody could tell"
    assert stage.take(2) is True
    assert asked == [0, 1, 2], "and is not asked again at once"
    assert stage.shelf.digests(ENTRY.sha256, 0, 10) == [digest(0)]


def test_first_host_vouches_for_what_an_earlier_run_left(stage: Stage) -> None:
    stage.begin((0, PIECE))
    assert stage.take(0) == DATA[:PIECE]


def test_dropped_content_is_given_anew(stage: Stage) -> None:
    stage.begin()
    stage.write(0, PIECE, checked=True)
    stage.shelf.dropped(ENTRY)
    os.ftruncate(stage.handle, 0)
    assert stage.take(0) is True
    assert stage.shelf.generation(ENTRY.sha256) == (1, False)
    stage.write(0, PIECE, checked=True)
    taken = stage.shelf.take(ENTRY.sha256, 0, 0.0)
    assert isinstance(taken, Ready)
    os.close(taken.handle)
    assert taken.generation == 1


def test_complete_file_is_given_from_its_place(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "published"
    path.write_bytes(DATA)
    stage.begin()
    stage.write(0, PIECE, checked=True)
    stage.shelf.verified(ENTRY)
    stage.shelf.offer(ENTRY, lambda: os.open(path, os.O_RDONLY))
    os.ftruncate(stage.handle, 0)
    assert [stage.take(index) for index in range(COUNT)] == [
        DATA[index * PIECE : (index + 1) * PIECE] for index in range(COUNT)
    ]
    assert stage.shelf.digests(ENTRY.sha256, 1, 2) == [digest(1), digest(2)]
    assert stage.shelf.generation(ENTRY.sha256) == (0, True)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_complete_file_that_went_away_is_not_given(stage: Stage, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "published"
    if damage == "short":
        path.write_bytes(DATA[:-1])
    stage.shelf.offer(ENTRY, lambda: os.open(path, os.O_RDONLY))
    assert stage.take(0) is False
    assert stage.shelf.digests(ENTRY.sha256, 0, 10) == []


def test_small_file_is_judged_by_the_manifest(tmp_path: Path) -> None:
    small = Entry("config.json", 5, hashlib.sha256(b"right").hexdigest())
    for content, given_out in ((b"right", True), (b"wrong", False)):
        shelf = Shelf(PIECE)
        shelf.expect([small])
        path = tmp_path / content.decode()
        path.write_bytes(content)
        shelf.offer(small, lambda path=path: os.open(path, os.O_RDONLY))  # type: ignore[misc]
        taken = shelf.take(small.sha256, 0, 0.0)
        assert isinstance(taken, Ready) is given_out
        if isinstance(taken, Ready):
            os.close(taken.handle)
        shelf.close()


def test_abandoned_content_sends_people_elsewhere(stage: Stage) -> None:
    stage.begin()
    stage.write(0, PIECE, checked=True)
    stage.shelf.abandon([ENTRY])
    assert stage.take(0) is False
    assert stage.take(1) is False
    stage.begin()
    assert stage.take(1) is True, "a second try"


def test_verified_content_is_not_abandoned(stage: Stage) -> None:
    stage.begin((0, len(DATA)))
    stage.shelf.verified(ENTRY)
    stage.shelf.abandon([ENTRY])
    assert stage.take(3) == DATA[3 * PIECE : 4 * PIECE]


def test_progress_grows_with_everything_that_happens(stage: Stage) -> None:
    seen = [stage.shelf.progress]
    stage.begin()
    seen.append(stage.shelf.progress)
    stage.write(0, 10)
    seen.append(stage.shelf.progress)
    stage.shelf.dropped(ENTRY)
    seen.append(stage.shelf.progress)
    assert seen == sorted(set(seen))


def test_closed_shelf_gives_nothing_and_holds_no_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = Stage(tmp_path / "part")
    made.begin((0, len(DATA)))
    made.shelf.verified(ENTRY)
    made.take(0)
    made.shelf.close()
    assert made.take(0) is False
    made.begin()
    os.close(made.handle)
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "check", "drop"]), st.integers(0, len(DATA)), st.integers(0, len(DATA)))
    )
)
def test_never_a_byte_that_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    stage = Stage(tmp_path_factory.mktemp("shelf") / "part")
    stage.shelf.judge = lambda _entry, index: digest(index)
    stage.begin()
    there = set[int]()
    for what, first, second in steps:
        start, end = sorted((first, second))
        if what == "write" and start < end:
            stage.write(start, end)
            there |= set(range(start, end))
        elif what == "check":
            stage.shelf.checked(ENTRY, min(start // PIECE, COUNT - 1), digest(min(start // PIECE, COUNT - 1)))
        elif what == "drop":
            stage.shelf.dropped(ENTRY)
            os.ftruncate(stage.handle, 0)
            there = set()
        for index in range(COUNT):
            begin, stop = piece_range(index, len(DATA), PIECE)
            whole = there >= set(range(begin, stop))
            assert stage.take(index) == (DATA[begin:stop] if whole else True)
    stage.shelf.close()
    os.close(stage.handle)
