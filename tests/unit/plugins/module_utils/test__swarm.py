# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One host's part in a run, with other hosts at other loopback addresses and a hub in memory."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Request
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm import Swarm
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import Membership, Pinned
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Absent
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_source import SwarmSource
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RetryPolicy, TransientError

PIECE = 64 * 1024
FILES = {"model.safetensors": Random(1).randbytes(40 * PIECE + 9), "config.json": b"{}", "vocab.txt": b"a" * 3 * PIECE}
ROWS = tuple(
    {"Path": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
    for name, data in FILES.items()
)
TOTAL = sum(map(len, FILES.values()))
BIG = Entry("model.safetensors", len(FILES["model.safetensors"]), str(ROWS[0]["Sha256"]))
COMMIT = "c" * 40
PATIENCE = Patience(start=60.0, stall=60.0, hub=60.0, connect=10.0, answer=30.0, poll=0.2, first_retry=0.1)
"""Enough for a machine that is busy with something else: here nothing ends because time ran out."""
HASTY = replace(PATIENCE, start=1.0, stall=0.4)
"""For hosts that get nowhere."""


class Bytes:
    whole = False
    described = "from memory"

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self.offset: int | None = start
        self.total: int | None = len(data)
        self._data, self._pos = data[:end], start

    def read(self, limit: int) -> bytes:
        found = self._data[self._pos : self._pos + limit]
        self._pos += len(found)
        return found

    def close(self) -> None:
        """Nothing."""


class MemoryHub:
    """A hub that counts what is asked; ``down`` makes it unreachable."""

    piece: int | None = None
    connections: int | None = None

    def __init__(self, down: bool = False, corrupt: Callable[[bytes, int], bytes] | None = None) -> None:
        self.down, self.corrupt = down, corrupt
        self.asked: list[str] = []
        self.given = 0

    def _check(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise TransientError("hub.unreachable", "the hub cannot be reached: no route to host")

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution:
        self._check("resolve")
        return Resolution(revision, COMMIT)

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, Any]]:
        self._check("list")
        return [dict(row) for row in ROWS]

    def source(self, model: str, resolution: Resolution) -> MemoryHub:
        return self

    def open(self, entry: Entry, start: int, end: int) -> Bytes:
        self._check("open")
        self.given += end - start
        data = FILES[entry.path]
        return Bytes(self.corrupt(data, start) if self.corrupt else data, start, end)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Fleet:
    """Hosts of one run; each is a thread of this process."""

    def __init__(self, base: Path, chain: Sequence[str], complete: int = 0, mode: str = "swarm") -> None:
        self.base, self.chain, self.complete, self.mode = base, tuple(chain), complete, mode
        # Addresses of this process alone: another one may be given the same port meanwhile.
        net = f"127.{1 + os.getpid() // 250 % 250}.{1 + os.getpid() % 250}"
        self.addresses = {name: f"{net}.{11 + place}" for place, name in enumerate(chain)}
        self.port = free_port()
        self.monitors: dict[str, Monitor] = {}

    def membership(self, name: str, **changes: Any) -> Membership:
        pinned = Pinned("acme/tiny", "master", COMMIT, ROWS, self.chain, self.complete)
        told = {"mode": self.mode, "port": self.port, "piece": PIECE, **changes}
        return Membership(name, "ab" * 32, told.pop("addresses", self.addresses), (pinned,), **told)

    def swarm(self, name: str, hub: MemoryHub, patience: Patience = PATIENCE, **changes: Any) -> Swarm:
        self.monitors[name] = Monitor()
        return Swarm(self.membership(name, **changes), hub, self.monitors[name], patience=patience)

    def request(self, name: str, attempts: int = 2) -> Request:
        policy = RetryPolicy(attempts=attempts, longest_wait=0.1)
        return Request("acme/tiny", "master", str(self.base / name), "https://hub.example", policy=policy)

    def notes(self, name: str) -> str:
        return "\n".join(self.monitors[name].snapshot()["notes"])

    def right(self, name: str) -> bool:
        return {path: (self.base / name / path).read_bytes() for path in FILES} == FILES


def test_one_fetches_and_all_have_it(tmp_path: Path) -> None:
    fleet, hub = Fleet(tmp_path, ["a", "b", "c"]), MemoryHub()
    swarms = {name: fleet.swarm(name, hub) for name in fleet.chain}
    failed: list[BaseException] = []

    def fetch(name: str) -> None:
        try:
            swarms[name].fetch(fleet.request(name))
        except BaseException as exc:  # noqa: BLE001 - told below
            failed.append(exc)

    for swarm in swarms.values():
        swarm.start()
    threads = [threading.Thread(target=fetch, args=[name]) for name in fleet.chain]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    reports = {name: swarm.report() for name, swarm in swarms.items()}
    for swarm in swarms.values():
        swarm.close()
    assert failed == []
    assert [fleet.right(name) for name in fleet.chain] == [True] * 3
    assert hub.given == TOTAL
    assert "resolve" not in hub.asked, "the fleet agreed on the commit and the files before"
    assert reports["a"] == {
        "mode": "swarm",
        "serving": True,
        "from_hub": TOTAL,
        "from_peers": {},
        "to_peers": {"b": TOTAL},
        "given_up": {},
        "banned": {},
    }
    assert reports["c"]["from_peers"] == {"b": TOTAL}
    assert not reports["c"]["serving"], "nobody is behind the last one"
    assert fleet.notes("c") == ""


def complete(fleet: Fleet, name: str) -> Swarm:
    """A host that has everything, and gives it."""
    alone = Fleet(fleet.base, [name])
    with alone.swarm(name, MemoryHub()) as swarm:
        swarm.fetch(alone.request(name))
    swarm = fleet.swarm(name, MemoryHub(down=True))
    swarm.start()
    swarm.offer(str(fleet.base / name))
    return swarm


def test_without_a_hub_a_complete_host_is_enough(tmp_path: Path) -> None:
    fleet, hub = Fleet(tmp_path, ["have", "need"], complete=1), MemoryHub(down=True)
    giver = complete(fleet, "have")
    with fleet.swarm("need", hub) as taker:
        outcome = taker.fetch(fleet.request("need"))
        report = taker.report()
    giver.close()
    assert (outcome.changed, outcome.commit, outcome.bytes_fetched) == (True, COMMIT, TOTAL)
    assert fleet.right("need")
    assert hub.asked == []
    assert report["from_peers"] == {"have": TOTAL}


def test_new_version_is_fetched_where_the_old_one_was(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["have", "need"], complete=1)
    giver = complete(fleet, "have")
    with fleet.swarm("need", MemoryHub(down=True)) as taker:
        taker.fetch(fleet.request("need"))
        (tmp_path / "need" / "vocab.txt").unlink()
        again = taker.fetch(fleet.request("need"))
    giver.close()
    assert again.changed
    assert again.bytes_fetched == len(FILES["vocab.txt"])
    assert fleet.right("need")


def test_artifact_outside_of_the_run_comes_from_the_hub_as_ever(tmp_path: Path) -> None:
    fleet, hub = Fleet(tmp_path, ["a", "b"]), MemoryHub()
    request = Request("acme/tiny", "v2", str(tmp_path / "own"), "https://hub.example")
    with fleet.swarm("b", hub) as swarm:
        swarm.fetch(request)
        swarm.abandon(request)
    assert hub.asked[:2] == ["resolve", "list"]
    assert (tmp_path / "own" / "config.json").read_bytes() == b"{}"


def test_failure_sends_those_who_wait_elsewhere(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["a", "b"])
    with fleet.swarm("a", MemoryHub(down=True)) as swarm:
        with pytest.raises(FleetError, match="cannot be reached"):
            swarm.fetch(fleet.request("a"))
        taken = swarm.shelf.take(BIG.sha256, 0, 0.0)
    assert taken == Absent(False, 0)


# ---- those who get nowhere


def test_who_gets_nowhere_is_passed_over_by_those_who_see_more(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["have", "stuck", "need"], complete=1)
    giver = complete(fleet, "have")
    with fleet.swarm("stuck", MemoryHub(down=True)), fleet.swarm("need", MemoryHub(down=True), HASTY) as taker:
        taker.fetch(fleet.request("need"))
        report = taker.report()
    giver.close()
    assert fleet.right("need")
    assert report["from_peers"] == {"have": TOTAL}
    assert report["given_up"] == {"stuck": ["got nowhere while others had more"]}
    assert "stuck got nowhere while others had more. Others are asked instead." in fleet.notes("need")


def test_where_nobody_gets_anywhere_the_hub_is_asked(tmp_path: Path) -> None:
    fleet, hub = Fleet(tmp_path, ["stuck", "need"]), MemoryHub()
    hasty = replace(HASTY, hub=1.5, stagger=0.2)
    began = time.monotonic()
    with fleet.swarm("stuck", MemoryHub(down=True)), fleet.swarm("need", hub, hasty) as taker:
        taker.fetch(fleet.request("need"))
    assert time.monotonic() - began >= hasty.hub
    assert fleet.right("need")
    assert hub.given == TOTAL
    assert "The hub is asked instead" in fleet.notes("need")


def test_with_all_lost_and_no_hub_the_error_tells_of_both(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["dead", "need"])
    with fleet.swarm("need", MemoryHub(down=True), HASTY) as taker, pytest.raises(FleetError) as caught:
        taker.fetch(fleet.request("need"))
    assert "dead cannot be reached: connection refused" in str(caught.value)
    assert "no route to host" in str(caught.value)
    assert not (tmp_path / "need").exists()


# ---- wrong content


def test_wrong_content_of_the_hub_is_dropped_by_all_and_nobody_is_banned(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["a", "b"])
    spoilt: list[int] = []

    def corrupt(data: bytes, start: int) -> bytes:
        if start == 3 * PIECE and not spoilt:
            spoilt.append(start)
            return data[:start] + b"\0" + data[start + 1 :]
        return data

    with fleet.swarm("a", MemoryHub(corrupt=corrupt)) as first, fleet.swarm("b", MemoryHub(down=True)) as second:
        thread = threading.Thread(target=lambda: first.fetch(fleet.request("a")))
        thread.start()
        # The first one breaks off what it gave of the wrong content, and is asked again a moment later.
        second.fetch(fleet.request("b", attempts=100))
        thread.join(60)
        reports = first.report(), second.report()
    assert spoilt
    assert fleet.right("a")
    assert fleet.right("b")
    assert [report["banned"] for report in reports] == [{}, {}]


# ---- addresses, ends


def test_host_that_others_cannot_reach_says_so_and_only_takes(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["a", "b"])
    swarm = fleet.swarm("a", MemoryHub(), addresses={"a": "127.0.1.1", "b": "192.0.2.7"})
    with swarm:
        assert not swarm.serving
        assert "which no other host can reach" in fleet.notes("a")
        assert "vllm_address" in fleet.notes("a")
        assert swarm.serve(lambda: False) == "idle", "nothing to wait for"


def test_name_that_nobody_knows_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object, **_more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    fleet = Fleet(tmp_path, ["a", "b"])
    with fleet.swarm("a", MemoryHub(), addresses={"a": "127.0.0.11", "b": "gpu-b.example"}) as swarm:
        assert swarm.serving
    assert "The address of b, gpu-b.example, is unknown to this host." in fleet.notes("a")


def test_name_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, ["have", "need"], complete=1)
    giver = complete(fleet, "have")
    address = fleet.addresses["have"]

    def known(host: str, *_arguments: object, **_more: object) -> list[Any]:
        return [(2, 1, 6, "", (address, 0))] if host == "have.example" else pytest.fail(host)

    monkeypatch.setattr("ansible_collections.gpufleet.vllm.plugins.module_utils._swarm.socket.getaddrinfo", known)
    swarm = fleet.swarm("need", MemoryHub(down=True), addresses={**fleet.addresses, "have": "have.example"})
    monkeypatch.undo()
    with swarm:
        swarm.fetch(fleet.request("need"))
    giver.close()
    assert fleet.right("need")


def test_serving_ends_when_told_or_forgotten(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["a", "b"])
    with fleet.swarm("a", MemoryHub()) as swarm:
        assert swarm.serve(lambda: True) == "stopped"
        assert swarm.serve(lambda: False, idle=0.3) == "idle"
        assert swarm.serve(lambda: False, total=0.3) == "over"
    with socket.create_server((fleet.addresses["a"], fleet.port)):
        pass  # the port is free again


def test_taken_port_leaves_a_host_that_only_takes(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, ["have", "taken", "need"], complete=1)
    giver = complete(fleet, "have")
    with (
        socket.create_server((fleet.addresses["taken"], fleet.port)),
        fleet.swarm("taken", MemoryHub(down=True)) as swarm,
    ):
        swarm.fetch(fleet.request("taken"))
        assert not swarm.serving
    giver.close()
    assert fleet.right("taken")
    assert f"port {fleet.port} of {fleet.addresses['taken']} is taken" in fleet.notes("taken")


def test_first_host_takes_more_connections_than_those_behind(tmp_path: Path) -> None:
    fleet, hub = Fleet(tmp_path, ["a", "b"]), MemoryHub()
    with fleet.swarm("a", hub) as first, fleet.swarm("b", hub) as second:
        sources = [
            swarm.hub(fleet.request(name), hub).source("acme/tiny", Resolution("master", COMMIT))
            for name, swarm in (("a", first), ("b", second))
        ]
    assert all(isinstance(source, SwarmSource) and source.piece == PIECE for source in sources)
    assert [source.connections for source in sources] == [4, 4]
