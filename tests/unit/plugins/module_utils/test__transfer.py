# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import hashlib
import threading

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _transfer as t
from ansible_collections.gpufleet.vllm.plugins.module_utils import _transfer_crew as crew
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges

DATA = bytes(range(256)) * 40


def entry(data=DATA, path="model.bin"):
    return Entry(path, len(data), hashlib.sha256(data).hexdigest())


class MemoryPart:
    def __init__(self, store, name):
        self._store, self._name = store, name
        self.data = store.kept.setdefault(name, bytearray())
        self.done = Ranges(store.noted.setdefault(name, Ranges([(0, len(self.data))])))

    def fileno(self):
        return 99

    def read(self, limit, offset):
        return bytes(self.data[offset : offset + limit])

    def write(self, data, offset):
        if self._store.room is not None and offset + len(data) > self._store.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        if len(self.data) < offset + len(data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def note(self, start, end):
        assert self.data[start:end], "noted before it was written"
        self._store.noted[self._name].add(start, end)

    def restart(self):
        self.data.clear()
        self._store.noted[self._name] = Ranges()

    def complete(self):
        self._store.complete.append(self._name)

    def close(self):
        self._store.closed += 1


class MemoryStore:
    def __init__(self):
        self.kept, self.noted, self.complete, self.closed, self.room = {}, {}, [], 0, None

    def part(self, item):
        return MemoryPart(self, item.sha256)


class Reply:
    """One connection: bytes, then the end of the stream or an exception."""

    described = "HTTP 200, text/plain, from http://hub"

    def __init__(self, data, offset=0, total=None, then=None, whole=False):
        self.data, self.offset, self.total, self.whole, self._then = data, offset, total, whole, then

    def read(self, limit):
        if not self.data and self._then is not None:
            raise self._then
        chunk, self.data = self.data[: min(limit, 1000)], self.data[min(limit, 1000) :]
        return chunk

    def close(self):
        pass


class Script:
    """A source that plays a list of replies (exceptions are raised), then the same function for ever."""

    def __init__(self, *replies, always=None, piece=None, connections=None):
        self.replies, self.always, self.asked = list(replies), always, []
        self.piece, self.connections = piece, connections
        self._lock = threading.Lock()

    def open(self, item, start, end):
        with self._lock:
            self.asked.append((start, end))
            reply = self.replies.pop(0) if self.replies else self.always(item, start, end)
        if isinstance(reply, Exception):
            raise reply
        return reply

    @property
    def starts(self):
        return [start for start, _end in self.asked]


def right(item, start, end):
    return Reply(DATA[start:end], start, len(DATA))


class Patience(t.RetryPolicy):
    """Keeps the waits that were due, and waits for none of them."""

    def wait(self, failures, retry_after=None):
        WAITS.append(super().wait(failures, retry_after))
        return 0.0


WAITS: list[float] = []


@pytest.fixture(autouse=True)
def _fresh():
    WAITS.clear()


@pytest.fixture
def small(monkeypatch):
    """Ranges of a thousand bytes."""
    monkeypatch.setattr(crew, "WHOLE", 2000)
    monkeypatch.setattr(crew, "PIECE_MIN", 1000)
    monkeypatch.setattr(crew, "PIECE_MAX", 1000)


def fetch(source, store=None, entries=None, connections=1, observer=None, monitor=None, **policy):
    store = store or MemoryStore()
    limits = t.Limits(connections)
    received = t.fetch_all(entries or [entry()], source, store, limits, Patience(**policy), monitor, observer)
    return store, received


def content(store):
    return bytes(store.kept[entry().sha256])


def test_a_fresh_fetch():
    monitor = Monitor()
    store, received = fetch(Script(always=right), monitor=monitor)
    assert content(store) == DATA
    assert store.complete == [entry().sha256]
    assert (received, WAITS, store.closed) == (len(DATA), [], 1)
    seen = monitor.snapshot()
    assert (seen["total"], seen["done"], seen["received"], seen["connections"]) == (10240, 10240, 10240, 0)


def test_nothing_to_fetch():
    assert t.fetch_all([], Script(), MemoryStore()) == 0


def test_an_empty_file_needs_no_request():
    source = Script()
    store, received = fetch(source, entries=[entry(b"")])
    assert (source.asked, received, store.complete) == ([], 0, [entry(b"").sha256])
    with pytest.raises(FleetError, match=r"SHA-256 e3b0c44298fc"):
        fetch(Script(), entries=[Entry("lie", 0, "a" * 64)])


def test_a_part_of_an_earlier_run_is_resumed():
    store = MemoryStore()
    store.kept[entry().sha256] = bytearray(DATA[:3000])
    source, monitor = Script(always=right), Monitor()
    _store, received = fetch(source, store, monitor=monitor)
    assert (source.asked, received) == ([(3000, 10240)], len(DATA) - 3000)
    assert content(store) == DATA
    assert monitor.snapshot()["done"] == len(DATA)


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
    source = Script(Reply(DATA[:3000], 0, len(DATA), whole=True), Reply(DATA, 0, len(DATA), whole=True))
    store, received = fetch(source)
    assert content(store) == DATA
    assert source.starts == [0, 3000]
    assert (received, WAITS) == (3000 + len(DATA), [0.1])


@pytest.mark.parametrize("offset", [None, 17], ids=["unknown", "another"])
def test_an_answer_from_elsewhere_is_asked_again_from_zero(offset):
    source = Script(Reply(DATA[:3000], 0, len(DATA)), Reply(DATA[17:], offset), always=right)
    assert content(fetch(source)[0]) == DATA
    assert source.starts == [0, 3000, 0]


def test_a_server_that_never_starts_at_zero_is_given_up():
    with pytest.raises(FleetError, match="starts at byte 5"):
        fetch(Script(always=lambda item, start, end: Reply(DATA[5:], 5)))


def test_progress_replenishes_the_budget():
    source = Script(always=lambda item, start, end: Reply(DATA[start : start + 500], start, len(DATA)))
    store, received = fetch(source)
    assert content(store) == DATA
    assert len(source.asked) == 21
    assert (received, set(WAITS)) == (len(DATA), {0.1})


def test_no_progress_exhausts_the_budget():
    source = Script(Reply(DATA[:700], 0, len(DATA)), always=lambda item, start, end: TimeoutError("timed out"))
    store = MemoryStore()
    with pytest.raises(FleetError) as caught:
        fetch(source, store)
    assert caught.value.code == "transfer.no_progress"
    assert "no byte arrived before the timeout" in caught.value.seen
    assert "at byte 700 of 10240" in caught.value.seen
    assert WAITS == [0.1, 1.0, 2.0, 4.0, 8.0]
    assert content(store) == DATA[:700], "what was received is kept"
    assert list(store.noted[entry().sha256]) == [(0, 700)]


def test_rereading_the_same_prefix_is_no_progress():
    # ignores ranges, drops early
    source = Script(always=lambda item, start, end: Reply(DATA[:700], 0, len(DATA), whole=True))
    with pytest.raises(FleetError, match="5 tries in a row"):
        fetch(source)


def test_retry_after_is_honoured_within_reason():
    busy = [t.TransientError("hub.busy", "busy", retry_after=value) for value in (7, 9999, -1)]
    fetch(Script(*busy, always=right))
    assert WAITS == [7, 60.0, 0.0]


def test_waits_grow_to_a_limit():
    assert [t.RetryPolicy().wait(count) for count in (1, 2, 3, 7, 8, 50)] == [0.1, 1, 2, 32, 60, 60]
    assert t.RetryPolicy(longest_wait=0.0).wait(1) == 0


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (lambda item, start, end: Reply(b"x" + DATA[1:], 0, len(DATA)), "its content has SHA-256"),
        (lambda item, start, end: Reply(b"{}", 0, 2), "the server offers 2 bytes"),
        (lambda item, start, end: Reply(DATA + b"more", 0), "more bytes than that"),
        (lambda item, start, end: t.RangeRefusedError(), "the server has no byte 0"),
    ],
    ids=["corrupt", "other length", "too long", "416"],
)
def test_wrong_content_is_tried_three_times(reply, what):
    source = Script(always=reply)
    with pytest.raises(FleetError, match=what) as caught:
        fetch(source)
    assert caught.value.code == "transfer.wrong_content"
    assert entry().sha256 in caught.value.expected
    assert source.starts == [0, 0, 0]


def test_wrong_content_once_heals():
    assert content(fetch(Script(Reply(b"x" + DATA[1:], 0, len(DATA)), always=right))[0]) == DATA


def test_416_on_a_resume_starts_over():
    source = Script(Reply(DATA[:10], 0, len(DATA)), t.RangeRefusedError(), always=right)
    assert content(fetch(source)[0]) == DATA
    assert source.starts == [0, 10, 0]


def test_equal_contents_are_fetched_once_and_large_files_first():
    few = b"small"
    source = Script(
        always=lambda item, start, end: Reply((DATA if item.size > 5 else few)[start:end], start, item.size)
    )
    store, received = fetch(source, entries=[entry(few, "a"), entry(path="b"), entry(path="c")])
    assert store.complete == [entry().sha256, entry(few).sha256]
    assert received == len(DATA) + len(few)


def test_the_first_failure_ends_it_and_is_raised():
    gone = FleetError("hub.not_found", "gone")
    with pytest.raises(FleetError, match="gone"):
        fetch(Script(gone), entries=[entry(), entry(b"other")])


def test_a_part_that_cannot_be_opened_ends_it():
    store = MemoryStore()

    def part(item):
        raise OSError(errno.EACCES, "Permission denied")

    store.part = part
    with pytest.raises(PermissionError):
        fetch(Script(always=right), store)


@pytest.mark.parametrize("what", ["write", "read", "complete"])
def test_a_disk_that_fails_ends_it_and_is_not_called_the_network(what):
    class Store(MemoryStore):
        def part(self, item):
            made = super().part(item)

            def broken(*args):
                raise OSError(errno.EIO, "Input/output error")

            setattr(made, what, broken)
            return made

    store = Store()
    store.kept[entry().sha256] = bytearray(DATA[:3000])  # so that something is read back
    with pytest.raises(FleetError, match="Input/output error") as caught:
        fetch(Script(always=right), store)
    assert caught.value.code == "disk.failed"


@pytest.mark.usefixtures("small")
def test_a_silent_connection_is_taken_over_and_harms_nothing_when_it_wakes_up(monkeypatch):
    """The rest of its range is fetched by another; the file may be complete and closed when its bytes come."""
    monkeypatch.setattr(crew, "SILENT_SECONDS", 0.3)
    complete = threading.Event()

    class Sleeper(Reply):
        def read(self, limit):
            complete.wait(20)
            return super().read(limit)

    class Store(MemoryStore):
        def part(self, item):
            made, finish = super().part(item), MemoryPart.complete

            def done():
                finish(made)
                complete.set()

            made.complete = done
            return made

    store = Store()
    source = Script(Sleeper(b"x" * 1000, 0, len(DATA)), always=right)
    fetch(source, store, connections=2)
    assert content(store) == DATA
    assert source.starts.count(0) == 2


def test_a_full_disk_ends_it():
    store = MemoryStore()
    store.room = 2500
    with pytest.raises(FleetError) as caught:
        fetch(Script(always=right), store)
    assert caught.value.code == "disk.full"
    assert "byte 2000 of 10240" in caught.value.seen


def test_many_connections_share_the_files():
    items = [entry(bytes([number]) * 5000, f"f{number}") for number in range(20)]
    source = Script(always=lambda i, start, end: Reply(bytes([int(i.path[1:])]) * (end - start), start, 5000))
    store = MemoryStore()
    assert fetch(source, store, items, connections=8)[1] == 100000
    assert sorted(store.complete) == sorted(item.sha256 for item in items)


# --- ranges ---


class Rendezvous(Script):
    """Gives no byte before so many connections are open at a time."""

    def __init__(self, parties, **more):
        super().__init__(**more)
        self._barrier = threading.Barrier(parties, timeout=20)
        self._first = parties

    def open(self, item, start, end):
        with self._lock:
            wait, self._first = self._first > 0, self._first - 1
        if wait:
            self._barrier.wait()
        return super().open(item, start, end)


@pytest.mark.usefixtures("small")
def test_one_large_file_is_fetched_over_all_connections():
    source = Rendezvous(4, always=right)
    store, received = fetch(source, connections=4)
    assert content(store) == DATA
    assert received == len(DATA)
    assert sorted(source.asked) == [(start, min(start + 1000, 10240)) for start in range(0, 10240, 1000)]


@pytest.mark.usefixtures("small")
def test_what_an_earlier_run_left_here_and_there_is_not_fetched_again():
    store = MemoryStore()
    kept = bytearray(len(DATA))
    kept[0:1000], kept[5000:7000] = DATA[0:1000], DATA[5000:7000]
    store.kept[entry().sha256] = kept
    store.noted[entry().sha256] = Ranges([(0, 1000), (5000, 7000)])
    source = Script(always=right)
    assert fetch(source, store, connections=3)[1] == len(DATA) - 3000
    assert content(store) == DATA
    assert not [ask for ask in source.asked if ask[0] < 1000 or 5000 <= ask[0] < 7000]


@pytest.mark.usefixtures("small")
def test_pieces_are_asked_for_in_order_and_aligned():
    source = Script(always=right, piece=3000, connections=1)
    store = MemoryStore()
    store.kept[entry().sha256] = bytearray(DATA[:500])
    fetch(source, store)
    assert source.asked == [(500, 3000), (3000, 6000), (6000, 9000), (9000, 10240)]


@pytest.mark.usefixtures("small")
def test_a_server_without_ranges_is_read_as_one_stream():
    source = Script(always=lambda item, start, end: Reply(DATA, 0, len(DATA), whole=True))
    store, _received = fetch(source, connections=4)
    assert content(store) == DATA
    assert store.complete == [entry().sha256]


@pytest.mark.usefixtures("small")
def test_ranges_that_lie_are_read_as_one_stream():
    def lie(item, start, end):
        return right(item, start, end) if start == 0 and end == len(DATA) else Reply(b"x" * (end - start), start)

    source = Script(always=lie)
    store, _received = fetch(source, connections=4)
    assert content(store) == DATA
    assert (0, len(DATA)) in source.asked


@pytest.mark.usefixtures("small")
def test_connections_that_fail_side_by_side_are_one_failure():
    source = Rendezvous(4, always=lambda item, start, end: OSError(errno.ECONNRESET, "reset"))
    with pytest.raises(FleetError, match="3 tries in a row"):
        fetch(source, connections=4, attempts=3)
    assert len(source.asked) >= 6


@pytest.mark.usefixtures("small")
def test_an_overloaded_server_gets_fewer_connections():
    now = [10.0]
    adaptive = t.Adaptive(32, clock=lambda: now[0])
    adaptive.allowed = 9
    adaptive.back_off()
    adaptive.back_off()
    assert adaptive.allowed == 4
    now[0] = 12.0
    adaptive.back_off()
    assert adaptive.allowed == 2
    busy = t.OverloadError("hub.busy", "busy", retry_after=3)
    store, _received = fetch(Script(busy, always=right), connections=4)
    assert content(store) == DATA
    assert 3 in WAITS


class Ear:
    def __init__(self):
        self.heard, self.there = [], Ranges()

    def begun(self, item, fileno, done):
        self.heard.append(("begun", fileno, list(done)))

    def written(self, item, start, end):
        self.there.add(start, end)

    def dropped(self, item):
        self.heard.append("dropped")
        self.there = Ranges()

    def verified(self, item):
        self.heard.append("verified")


def test_an_observer_hears_all_of_it():
    store, ear = MemoryStore(), Ear()
    store.kept[entry().sha256] = bytearray(b"x" * 3000)
    fetch(Script(always=right), store, observer=ear)
    assert ear.heard == [("begun", 99, [(0, 3000)]), "dropped", "verified"]
    assert list(ear.there) == [(0, len(DATA))]


def test_an_interrupt_stops_the_connections(monkeypatch):
    class Endless(Reply):
        def read(self, limit):
            return b"x"

    item = Entry("big", 10**9, "a" * 64)
    store = MemoryStore()

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(crew.Adaptive, "tick", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(Script(always=lambda i, start, end: Endless(b"", start)), store, [item])
    assert store.closed == 1
    assert store.noted[item.sha256].size > 0, "what was received is noted"


# --- how many connections, how fast ---


class Link:
    """A clock, and a server that gives each connection ``each`` bytes a second, and all of them ``whole`` at most."""

    def __init__(self, most, each, whole, fixed=None):
        self.now, self.moved, self.each, self.whole = 0.0, 0.0, each, whole
        self.adaptive = t.Adaptive(most, fixed, clock=lambda: self.now)

    def run(self, seconds, busy=True):
        levels = []
        for _unused in range(int(seconds / 0.25)):
            self.now += 0.25
            self.moved += 0.25 * min(self.each * self.adaptive.allowed, self.whole)
            self.adaptive.tick(int(self.moved), busy, 0.25)
            levels.append(self.adaptive.allowed)
        return levels


def test_connections_grow_to_the_most_while_each_is_slow():
    link = Link(32, each=20e6, whole=1e12)
    assert link.run(1.5)[-1] == 32
    assert set(link.run(20)) == {32}


def test_connections_stay_few_on_a_link_that_is_full():
    link = Link(32, each=1e9, whole=1e9)
    link.run(1.5)
    levels = link.run(60)
    assert sorted(set(levels)) == [4, 8], "one step is tried now and then"
    assert levels.count(4) > 0.8 * len(levels)


def test_connections_stop_where_the_link_is_full():
    link = Link(32, each=20e6, whole=170e6)
    link.run(3)
    assert link.adaptive.allowed in (8, 16)
    levels = link.run(60)
    assert max(levels) <= 16


def test_connections_do_not_grow_where_the_processor_is_busy():
    adaptive = t.Adaptive(32)
    for moved in range(100):
        adaptive.tick(moved * 10**9, True, 0.25, load=0.9)
    assert adaptive.allowed == 4


def test_connections_do_not_grow_without_work():
    assert set(Link(32, 20e6, 1e12).run(5, busy=False)) == {4}


def test_connections_may_be_fixed_or_few():
    assert set(Link(32, 20e6, 1e12, fixed=6).run(5)) == {6}
    assert set(Link(2, 20e6, 1e12).run(5)) == {2}


def test_a_bucket_holds_to_its_rate():
    now = [0.0]
    bucket = t.Bucket(1000, clock=lambda: now[0])
    assert [bucket.draw(500), bucket.draw(500)] == [0.5, 1.0]
    now[0] = 5.0
    assert bucket.draw(100) == pytest.approx(0.1)
    assert t.Bucket(0).draw(10**9) == 0.0
    assert [t.Bucket(0).chunk_of(count) for count in (1, 8, 32, 500)] == [2**20, 2**20, 2**18, 2**17]
    assert t.Bucket(100_000).chunk == 10_000


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
