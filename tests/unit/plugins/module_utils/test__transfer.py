# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import hashlib
import threading

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _transfer as t
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

DATA = bytes(range(256)) * 40


def entry(data=DATA, path="model.bin"):
    return Entry(path, len(data), hashlib.sha256(data).hexdigest())


class MemoryPart:
    def __init__(self, store, name):
        self._store, self._name = store, name
        self.data = store.kept.setdefault(name, bytearray())
        self.size = len(self.data)

    def prefix(self, state, stop):
        state.update(self.data)

    def append(self, data):
        if self._store.room is not None and self.size + len(data) > self._store.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += data
        self.size = len(self.data)

    def restart(self):
        self.data.clear()
        self.size = 0

    def complete(self):
        self._store.complete.append(self._name)

    def close(self):
        self._store.closed += 1


class MemoryStore:
    def __init__(self, **kept):
        self.kept, self.complete, self.closed, self.room = {}, [], 0, None

    def part(self, item):
        return MemoryPart(self, item.sha256)


class Reply:
    """One connection: bytes, then the end of the stream or an exception."""

    described = "HTTP 200, text/plain, from http://hub"

    def __init__(self, data, offset=0, total=None, then=None):
        self.data, self.offset, self.total, self._then = data, offset, total, then
        self.closed = False

    def read(self, limit):
        if not self.data and self._then is not None:
            raise self._then
        chunk, self.data = self.data[: min(limit, 1000)], self.data[min(limit, 1000) :]
        return chunk

    def close(self):
        self.closed = True


class Script:
    """A source that plays a list of replies (exceptions are raised), then the same function for ever."""

    def __init__(self, *replies, always=None):
        self.replies, self.always, self.asked = list(replies), always, []
        self._lock = threading.Lock()

    def open(self, item, offset):
        with self._lock:
            self.asked.append(offset)
            reply = self.replies.pop(0) if self.replies else self.always(item, offset)
        if isinstance(reply, Exception):
            raise reply
        return reply


def right(item, offset):
    return Reply(DATA[offset:], offset, len(DATA))


def fetch(source, store=None, entries=None, **policy):
    store = store or MemoryStore()
    waits = []
    rules = t.RetryPolicy(sleep=waits.append, **policy)
    received = t.fetch_all(entries or [entry()], source, store, workers=1, policy=rules)
    return store, received, waits


def content(store):
    return bytes(store.kept[entry().sha256])


def test_a_fresh_fetch():
    store, received, waits = fetch(Script(always=right))
    assert content(store) == DATA
    assert store.complete == [entry().sha256]
    assert (received, waits, store.closed) == (len(DATA), [], 1)


def test_nothing_to_fetch():
    assert t.fetch_all([], Script(), MemoryStore()) == 0


def test_an_empty_file_needs_no_request():
    source = Script()
    store, received, _waits = fetch(source, entries=[entry(b"")])
    assert (source.asked, received, store.complete) == ([], 0, [entry(b"").sha256])
    with pytest.raises(FleetError, match=r"SHA-256 e3b0c44298fc"):
        fetch(Script(), entries=[Entry("lie", 0, "a" * 64)])


def test_a_part_of_an_earlier_run_is_resumed():
    store = MemoryStore()
    store.kept[entry().sha256] = bytearray(DATA[:3000])
    source = Script(always=right)
    _store, received, _waits = fetch(source, store)
    assert (source.asked, received) == ([3000], len(DATA) - 3000)
    assert content(store) == DATA


def test_a_complete_part_is_only_verified():
    store = MemoryStore()
    store.kept[entry().sha256] = bytearray(DATA)
    source = Script()
    assert fetch(source, store)[1] == 0
    assert source.asked == []


@pytest.mark.parametrize("left", [b"x" * 3000, b"x" * len(DATA), b"x" * (len(DATA) + 1)], ids=["short", "full", "long"])
def test_a_damaged_part_of_an_earlier_run_does_not_count_against_the_server(left):
    store = MemoryStore()
    store.kept[entry().sha256] = bytearray(left)
    fetch(Script(always=right), store, bad_contents=1)
    assert content(store) == DATA


def test_an_ignored_range_starts_from_zero_without_failing():
    source = Script(Reply(DATA[:3000], 0, len(DATA)), Reply(DATA, 0, len(DATA)))
    store, received, waits = fetch(source)
    assert content(store) == DATA
    assert source.asked == [0, 3000]
    assert (received, waits) == (3000 + len(DATA), [0.1])


@pytest.mark.parametrize("offset", [None, 17], ids=["unknown", "another"])
def test_an_answer_from_elsewhere_is_asked_again_from_zero(offset):
    source = Script(Reply(DATA[:3000], 0, len(DATA)), Reply(DATA[17:], offset), always=right)
    assert content(fetch(source)[0]) == DATA
    assert source.asked == [0, 3000, 0]


def test_a_server_that_never_starts_at_zero_is_given_up():
    with pytest.raises(FleetError, match="starts at byte 5"):
        fetch(Script(always=lambda item, offset: Reply(DATA[5:], 5)))


def test_progress_replenishes_the_budget():
    source = Script(always=lambda item, offset: Reply(DATA[offset : offset + 500], offset, len(DATA)))
    store, received, waits = fetch(source)
    assert content(store) == DATA
    assert len(source.asked) == 21
    assert (received, set(waits)) == (len(DATA), {0.1})


def test_no_progress_exhausts_the_budget():
    source = Script(Reply(DATA[:700], 0, len(DATA)), always=lambda item, offset: TimeoutError("timed out"))
    store = MemoryStore()
    waits = []
    with pytest.raises(FleetError) as caught:
        t.fetch_all([entry()], source, store, policy=t.RetryPolicy(sleep=waits.append))
    assert caught.value.code == "transfer.no_progress"
    assert "no byte arrived before the timeout" in caught.value.seen
    assert "at byte 700 of 10240" in caught.value.seen
    assert waits == [0.1, 1.0, 2.0, 4.0]
    assert content(store) == DATA[:700], "what was received is kept"


def test_rereading_the_same_prefix_is_no_progress():
    source = Script(always=lambda item, offset: Reply(DATA[:700], 0, len(DATA)))  # ignores ranges, drops early
    with pytest.raises(FleetError, match="5 tries in a row"):
        fetch(source)


def test_retry_after_is_honoured_within_reason():
    busy = [t.TransientError("hub.busy", "busy", retry_after=value) for value in (7, 9999, -1)]
    assert fetch(Script(*busy, always=right))[2] == [7, 60.0, 0.0]


def test_waits_grow_to_a_limit():
    assert [t.RetryPolicy().wait(count) for count in (1, 2, 3, 7, 8, 50)] == [0.1, 1, 2, 32, 60, 60]


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (lambda item, offset: Reply(b"x" + DATA[1:], 0, len(DATA)), "its content has SHA-256"),
        (lambda item, offset: Reply(b"{}", 0, 2), "the server offers 2 bytes"),
        (lambda item, offset: Reply(DATA + b"more", 0), "more bytes than that"),
        (lambda item, offset: t.RangeRefusedError(), "the server has no byte 0"),
    ],
    ids=["corrupt", "other length", "too long", "416"],
)
def test_wrong_content_is_tried_three_times(reply, what):
    source = Script(always=reply)
    with pytest.raises(FleetError, match=what) as caught:
        fetch(source)
    assert caught.value.code == "transfer.wrong_content"
    assert entry().sha256 in caught.value.expected
    assert source.asked == [0, 0, 0]


def test_wrong_content_once_heals():
    assert content(fetch(Script(Reply(b"x" + DATA[1:], 0, len(DATA)), always=right))[0]) == DATA


def test_416_on_a_resume_starts_over():
    source = Script(Reply(DATA[:10], 0, len(DATA)), t.RangeRefusedError(), always=right)
    assert content(fetch(source)[0]) == DATA
    assert source.asked == [0, 10, 0]


def test_equal_contents_are_fetched_once_and_large_files_first():
    small = b"small"
    source = Script(always=lambda item, offset: Reply((DATA if item.size > 5 else small)[offset:], offset, item.size))
    store, received, _waits = fetch(source, entries=[entry(small, "a"), entry(path="b"), entry(path="c")])
    assert store.complete == [entry().sha256, entry(small).sha256]
    assert received == len(DATA) + len(small)


def test_the_first_failure_ends_it_and_is_raised():
    gone = FleetError("hub.not_found", "gone")
    with pytest.raises(FleetError, match="gone"):
        fetch(Script(gone), entries=[entry(), entry(b"other")])


def test_a_full_disk_ends_it():
    store = MemoryStore()
    store.room = 2500
    with pytest.raises(FleetError) as caught:
        fetch(Script(always=right), store)
    assert caught.value.code == "disk.full"
    assert "byte 2000 of 10240" in caught.value.seen


def test_many_workers_share_the_work():
    items = [entry(bytes([number]) * 5000, f"f{number}") for number in range(20)]
    source = Script(always=lambda item, offset: Reply(bytes([int(item.path[1:])]) * (5000 - offset), offset, 5000))
    store = MemoryStore()
    assert t.fetch_all(items, source, store, workers=8) == 100000
    assert sorted(store.complete) == sorted(item.sha256 for item in items)


def test_an_interrupt_stops_the_workers(monkeypatch):
    class Endless(Reply):
        def read(self, limit):
            return b"x"

    item = Entry("big", 10**9, "a" * 64)
    store = MemoryStore()

    def interrupted(self, timeout=None):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        t.fetch_all([item], Script(always=lambda i, o: Endless(b"", o)), store, workers=1)
    assert store.closed == 1


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (t.TransientError("x", "It is busy."), "It is busy"),
        (TimeoutError("timed out"), "no byte arrived before the timeout"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (ValueError(), "ValueError"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_failures_are_described_in_a_clause(exc, text):
    assert t.describe(exc) == text
