# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that get a model from each other: processes in network namespaces of their own, over shaped links.

Bytes are counted on the interfaces and held to what is promised. Times are printed, never judged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    HostState,
    Membership,
    Pinned,
    chains,
    short_rows,
)
from model_hub import add_model
from swarm_net import HUB, Member, SwarmNet

MIB = 1024 * 1024
BIG = 16 * MIB
MODEL = "acme/swarm"
MBIT = 200
PIECE = MIB // 2
IMPATIENT = {"start": 4.0, "stall": 1.0, "hub": 4.0, "stagger": 1.0, "connect": 1.0, "answer": 2.0, "poll": 0.5}


class Model:
    """A model on the hub: one large file, a middling one and some small ones, two of them of equal content."""

    def __init__(self, base: Path) -> None:
        self.tree, self.hub = base / "model", base / "hub"
        self.tree.mkdir()
        self.hub.mkdir()
        chance = random.Random(7)
        sizes = {"model.safetensors": BIG, "tokenizer.json": 3 * MIB + 17, "config.json": 700, "onnx/empty.json": 0}
        for name, size in sizes.items():
            path = self.tree / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"".join(chance.randbytes(min(MIB, size - at)) for at in range(0, size, MIB)))
        (self.tree / "copy.json").write_bytes((self.tree / "config.json").read_bytes())
        self.commit = add_model(self.hub, MODEL, self.tree).commit
        self.files = {path.relative_to(self.tree).as_posix(): path.read_bytes() for path in self._paths(self.tree)}
        self.total = sum({hashlib.sha256(data).digest(): len(data) for data in self.files.values()}.values())
        self.rows = [
            {"Path": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for name, data in self.files.items()
        ]

    @staticmethod
    def _paths(root: Path) -> list[Path]:
        return [path for path in sorted(root.rglob("*")) if path.is_file()]

    def read(self, root: Path) -> dict[str, bytes]:
        """The files of a directory, without what is the collection's own."""
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in self._paths(root)
            if ".gpufleet" not in path.relative_to(root).parts
        }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("swarm"))


class Run:
    """One run over a network: who takes part, and what came of it."""

    def __init__(self, net: SwarmNet, model: Model, home: Path, endpoint: str) -> None:
        self.net, self.model, self.home, self.endpoint = net, model, home, endpoint
        self.secret = _swarm_wire.new_secret()
        self.port = 8791
        self.members: dict[str, Member] = {}

    def path(self, name: str) -> Path:
        return self.home / name / "model"

    def membership(
        self, name: str, hosts: Sequence[str], complete: Sequence[str] = (), mode: str = "swarm"
    ) -> Membership:
        states = [HostState(host, {"model": 0 if host in complete else self.model.total}) for host in hosts]
        (chain,) = chains(states)
        pinned = Pinned(MODEL, "master", self.model.commit, short_rows(self.model.rows), chain.hosts, chain.complete)
        addresses = {host: self.net.address(host) for host in hosts}
        return Membership(name, self.secret, addresses, (pinned,), mode=mode, port=self.port, piece=PIECE)

    def start(
        self,
        hosts: Sequence[str],
        complete: Sequence[str] = (),
        lies: Mapping[str, str] | None = None,
        only: Sequence[str] = (),
        mode: str = "swarm",
        **more: Any,
    ) -> None:
        """Start the hosts of the chain, or ``only`` some of them; the others are dead from the start."""
        lies = lies or {}
        for name in only or self.membership(hosts[0], hosts, complete).artifacts[0].chain:
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            told = {
                "membership": self.membership(name, hosts, complete, mode).as_dict(),
                "endpoint": self.endpoint,
                "requests": [{"model": MODEL, "revision": "master", "path": str(self.path(name))}],
                "patience": IMPATIENT,
                "lie": lies.get(name),
                **more,
            }
            self.members[name] = self.net.start(name, [sys.executable, "-m", "swarm_member"], told)

    def done(self, *names: str) -> dict[str, dict[str, Any]]:
        """What the hosts say once they have everything; nobody has failed."""
        said = {}
        for name in names or self.members:
            member = self.members[name]
            said[name] = member.wait("done")
            assert [line for line in member.said if line["event"] == "failed"] == []
        return said

    def right(self, *names: str) -> None:
        """These hosts have exactly the model, and nothing of the run beside it."""
        for name in names or self.members:
            assert self.model.read(self.path(name)) == self.model.files, name
            assert [item.name for item in self.path(name).parent.iterdir()] == ["model"], name

    def stop(self) -> dict[str, dict[str, Any]]:
        return {name: member.stop() for name, member in self.members.items() if member.process.poll() is None}

    def half_way(self, name: str) -> None:
        """Until a host has received about half of the model."""
        deadline = time.monotonic() + 60
        start = self.net.received(name)
        while self.net.received(name) - start < self.model.total // 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def fresh(self) -> Run:
        """Another run on the same hosts, with what the first one left."""
        return Run(self.net, self.model, self.home, self.endpoint)


@contextlib.contextmanager
def network(count: int, model: Model, home: Path, hub: bool = True, mbit: int = MBIT) -> Iterator[Run]:
    with SwarmNet(count, mbit) as net:
        endpoint = net.serve_hub(model.hub) if hub else f"http://{net.address(HUB)}:9"
        yield Run(net, model, home, endpoint)


def test_each_byte_crosses_each_link_once(model: Model, tmp_path: Path) -> None:
    with network(8, model, tmp_path) as run:
        hosts = run.net.hosts
        before = {name: run.net.sent(name) for name in [HUB, *hosts]}
        began = time.monotonic()
        # Nobody is lost here, so a machine that is busy with something else must not look like that.
        run.start(hosts, patience={"stall": 60.0, "hub": 120.0})
        said = run.done()
        took = time.monotonic() - began
        sent = {name: (run.net.sent(name) - before[name]) / model.total for name in [HUB, *hosts]}
        reports = run.stop()
        run.right()
    print(f"{took:.1f} s, a link alone {model.total * 8 / MBIT / 1e6:.1f} s; sent: {sent}")
    # Headers and questions are a few percent; the bytes themselves cross each link once.
    assert sent[HUB] < 1.1
    assert all(sent[name] < 1.15 for name in hosts)
    assert said[hosts[0]]["from_hub"] == model.total
    assert [said[name]["from_hub"] for name in hosts[1:]] == [0] * 7
    assert [said[name]["from_peers"] for name in hosts[1:]] == [{name: model.total} for name in hosts[:-1]]
    assert reports[hosts[3]]["to_peers"] == {hosts[4]: model.total}
    assert all(report["notes"] == [] and report["given_up"] == {} for report in reports.values())


def test_with_a_seed_everybody_asks_it_alone(model: Model, tmp_path: Path) -> None:
    with network(3, model, tmp_path) as run:
        hosts = run.net.hosts
        before = run.net.sent(HUB)
        run.start(hosts, mode="seed")
        said = run.done()
        origin = (run.net.sent(HUB) - before) / model.total
        run.stop()
        run.right()
    assert origin < 1.1
    assert [said[name]["from_peers"] for name in hosts[1:]] == [{hosts[0]: model.total}] * 2


def test_a_host_killed_in_the_middle_is_left_out(model: Model, tmp_path: Path) -> None:
    with network(5, model, tmp_path) as run:
        hosts = run.net.hosts
        before = run.net.sent(HUB)
        run.start(hosts)
        run.half_way(hosts[2])
        run.members[hosts[2]].kill()
        living = [name for name in hosts if name != hosts[2]]
        said = run.done(*living)
        origin = (run.net.sent(HUB) - before) / model.total
        run.stop()
        run.right(*living)
        assert origin < 1.1, "nobody ran to the hub"
        assert said[hosts[3]]["from_hub"] == 0
        assert list(said[hosts[3]]["given_up"]) == [hosts[2]]
        assert set(said[hosts[3]]["from_peers"]) == {hosts[1], hosts[2]}
        assert any(hosts[2] in note for note in said[hosts[3]]["notes"]), "and says so"
        assert said[hosts[4]]["given_up"] == {}

        # The killed one comes back: what it had is resumed, the rest comes from a host that has it all.
        again = run.fresh()
        again.start(hosts[:3], complete=hosts[:2])
        back = again.done()[hosts[2]]
        again.stop()
        again.right(hosts[2])
        assert back["from_hub"] == 0
        assert 0 < sum(back["from_peers"].values()) < model.total


def test_the_first_host_lost_half_way_is_replaced(model: Model, tmp_path: Path) -> None:
    with network(4, model, tmp_path) as run:
        hosts = run.net.hosts
        before = run.net.sent(HUB)
        run.start(hosts)
        run.half_way(hosts[1])
        run.net.cut(hosts[0])  # no reset, no refusal: silence
        said = run.done(*hosts[1:])
        origin = (run.net.sent(HUB) - before) / model.total
        run.members[hosts[0]].kill()
        run.stop()
        run.right(*hosts[1:])
    print(f"origin {origin:.2f}, of that {said[hosts[1]]['from_hub'] / model.total:.2f} to the second host")
    assert origin < 1.85, "the second host did not begin anew"
    assert 0 < said[hosts[1]]["from_hub"] < model.total
    assert [said[name]["from_hub"] for name in hosts[2:]] == [0, 0]
    assert list(said[hosts[1]]["given_up"]) == [hosts[0]]
    assert any("hub" in note for note in said[hosts[1]]["notes"]), "and says so"


def test_a_host_that_was_never_there_is_passed_over(model: Model, tmp_path: Path) -> None:
    with network(3, model, tmp_path) as run:
        hosts = run.net.hosts
        run.start(hosts, only=[hosts[0], hosts[2]])
        said = run.done()
        run.stop()
        run.right()
    assert said[hosts[2]]["from_hub"] == 0
    assert said[hosts[2]]["from_peers"] == {hosts[0]: model.total}


@pytest.mark.parametrize(
    ("lie", "liar", "banned"),
    [("rot", 1, 1), ("lie", 1, 1), ("perjury", 0, 0)],
    ids=["bytes other than it says", "wrong bytes, and stands by them", "wrong digests of right bytes"],
)
def test_a_liar_is_banned_and_poisons_nobody(model: Model, tmp_path: Path, lie: str, liar: int, banned: int) -> None:
    with network(4, model, tmp_path) as run:
        hosts = run.net.hosts
        before = run.net.sent(HUB)
        run.start(hosts, lies={hosts[liar]: lie})
        said = run.done()
        origin = (run.net.sent(HUB) - before) / model.total
        run.stop()
        run.right()
    print(f"origin {origin:.2f}", {name: values["banned"] for name, values in said.items()})
    assert list(said[hosts[2]]["banned"]) == [hosts[banned]]
    assert any(hosts[banned] in note and "not asked again" in note for note in said[hosts[2]]["notes"])
    assert {name for values in said.values() for name in values["banned"]} == {hosts[banned]}, "nobody is slandered"
    assert origin < 1.5, "the hub is asked for single pieces, to tell who is right"


def test_a_first_host_that_lies_about_everything_is_found_out_by_the_whole(model: Model, tmp_path: Path) -> None:
    with network(3, model, tmp_path) as run:
        hosts = run.net.hosts
        run.start(hosts, lies={hosts[0]: "fraud"})
        said = run.done()
        run.stop()
        run.right()
    assert list(said[hosts[1]]["banned"]) == [hosts[0]]
    assert said[hosts[0]]["banned"] == {}


def test_without_the_hub_one_complete_host_is_enough_and_others_join_later(model: Model, tmp_path: Path) -> None:
    with network(4, model, tmp_path) as run:
        hosts = run.net.hosts
        run.start(hosts[:1])
        run.done()
        run.stop()
        run.net.cut(HUB)

        joined = run.fresh()
        joined.start(hosts[:3], complete=hosts[:1])
        said = joined.done()
        joined.stop()
        joined.right()
        assert {values["from_hub"] for values in said.values()} == {0}
        assert said[hosts[1]]["from_peers"] == {hosts[0]: model.total}

        late = run.fresh()
        before = run.net.sent(hosts[2])
        late.start(hosts, complete=hosts[:3])
        said = late.done()
        assert list(said) == hosts[1:], "one gives, one stands by, the others are left alone"
        late.stop()
        late.right(hosts[3])
        assert said[hosts[3]]["from_peers"] == {hosts[2]: model.total}
        assert run.net.sent(hosts[2]) - before < 1.1 * model.total


def test_a_damaged_complete_host_is_found_out(model: Model, tmp_path: Path) -> None:
    with network(3, model, tmp_path) as run:
        hosts = run.net.hosts
        run.start(hosts[:2])
        run.done()
        run.stop()
        # The disk rots, and no time stamp tells.
        victim = run.path(hosts[1]) / "model.safetensors"
        stamp = victim.stat()
        with victim.open("r+b") as stream:
            stream.seek(5 * PIECE + 3)
            stream.write(b"\0\0\0\0")
        os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        again = run.fresh()
        again.start(hosts, complete=hosts[:2])
        said = again.done()
        again.stop()
        again.right(hosts[2])
    assert list(said[hosts[2]]["banned"]) == [hosts[1]]
    assert said[hosts[2]]["from_peers"][hosts[0]] > 0


def test_everybody_lost_is_an_error_that_tells_the_story(model: Model, tmp_path: Path) -> None:
    with network(2, model, tmp_path) as run:
        hosts = run.net.hosts
        run.start(hosts, attempts=3)
        run.half_way(hosts[1])
        run.net.cut(HUB)
        run.members[hosts[0]].kill()
        member = run.members[hosts[1]]
        failed = member.wait("failed", 120)
        assert hosts[0] in failed["text"]
        assert "hub" in failed["text"]
        member.wait("done")
        member.stop()
        assert not run.path(hosts[1]).exists(), "nothing half-done is published"
        run.net.join(HUB)
        again = run.fresh()
        again.start(hosts[1:])
        rest = again.done()[hosts[1]]
        again.stop()
        again.right(hosts[1])
        assert rest["from_hub"] < model.total, "what was received is resumed"


STRANGER = """
import json, socket, sys
address, port, request = json.loads(sys.stdin.readline())
try:
    with socket.create_connection((address, port), 5) as sock:
        sock.settimeout(5)
        sock.sendall(bytes.fromhex(request))
        said = b""
        while data := sock.recv(4096):
            said += data
except OSError as exc:
    said = type(exc).__name__.encode()
print(json.dumps({"event": "heard", "said": said.decode("latin-1")}), flush=True)
"""


def test_strangers_get_nothing(model: Model, tmp_path: Path) -> None:
    with network(3, model, tmp_path) as run:
        hosts = run.net.hosts
        run.start(hosts[:2])
        run.done()
        pair = (run.net.address(hosts[0]), run.port)
        digest = hashlib.sha256(model.files["config.json"]).hexdigest()
        question = _swarm_wire.Question(_swarm_wire.PIECE, digest, 0, 700)
        right, nonce = _swarm_wire.ask(run.secret, hosts[0], question)
        wrong, _nonce = _swarm_wire.ask(_swarm_wire.new_secret(), hosts[0], question)

        def hear(name: str, request: bytes) -> str:
            member = run.net.start(name, [sys.executable, "-c", STRANGER], [*pair, request.hex()])
            return str(member.wait("heard", 30)["said"])

        # Right secret, but not of this run's hosts: cut off before it is read.
        assert hear(hosts[2], right) in ("", "ConnectionResetError")
        # Of this run's hosts, but without the secret.
        assert hear(hosts[1], wrong).startswith("HTTP/1.1 403 ")
        assert hear(hosts[1], b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n").startswith("HTTP/1.1 403 ")
        unknown, _nonce = _swarm_wire.ask(run.secret, hosts[0], _swarm_wire.Question(_swarm_wire.PIECE, "0" * 64, 0, 1))
        assert hear(hosts[1], unknown[:-2] + b"Connection: close\r\n\r\n").startswith("HTTP/1.1 404 ")
        reports = run.stop()
        command_lines = [member.process.args for member in run.members.values()]
    assert run.secret not in str(command_lines)
    assert run.secret not in str(reports)
    assert nonce


def test_a_taken_port_is_said_and_the_others_go_around(model: Model, tmp_path: Path) -> None:
    with network(3, model, tmp_path) as run:
        hosts = run.net.hosts
        occupier = (
            "import json, socket, sys\n"
            f"sock = socket.create_server(('{run.net.address(hosts[1])}', {run.port}))\n"
            "print(json.dumps({'event': 'taken'}), flush=True)\n"
            "sys.stdin.readline()\n"
        )
        run.net.start(hosts[1], [sys.executable, "-c", occupier]).wait("taken")
        run.start(hosts)
        said = run.done()
        run.stop()
        run.right()
    assert said[hosts[1]]["serving"] is False
    assert any(f"port {run.port}" in note and "vllm_artifact_peer_port" in note for note in said[hosts[1]]["notes"])
    assert said[hosts[1]]["from_peers"] == {hosts[0]: model.total}
    assert said[hosts[2]]["from_peers"] == {hosts[0]: model.total}
