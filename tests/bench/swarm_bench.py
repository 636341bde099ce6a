# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long a fleet takes to have a model: the chain, a seed, everybody from the hub, and the limit of one link.

``PYTHONPATH=tests/lab:tests/bench .venv/bin/python -m swarm_bench`` as root. Hosts are processes in network namespaces
with shaped links; the hub's link is as wide as theirs. ``--torrent PYTHON`` names an interpreter that has libtorrent,
and adds it to the comparison. Nothing here passes or fails by time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    HostState,
    Membership,
    Pinned,
    chains,
    piece_size,
    preference,
    short_rows,
)
from model_hub import add_model
from swarm_net import HUB, REPOSITORY, Member, SwarmNet

MIB = 1024 * 1024
MODEL = "acme/large"
NAME = "model.safetensors"
TORRENT = REPOSITORY / "tests/bench/swarm_torrent.py"
PATIENCE_SECONDS = 1800


@dataclass
class Figures:
    """One try: seconds from the first host that began to the last that was done, bytes sent by the hub and by the host
    that sent most, as shares of the model."""

    seconds: float
    origin: float
    host: float


class Bench:
    """One model, and the ways to have it on all hosts."""

    def __init__(self, base: Path, hosts: int, mib: int, mbit: int, torrent: str | None) -> None:
        self.base, self.hosts, self.mib, self.mbit, self.torrent = base, hosts, mib, mbit, torrent
        self.total = mib * MIB
        source, self.hub = base / "model", base / "hub"
        source.mkdir()
        self.hub.mkdir()
        chance, digest = Random(1), hashlib.sha256()
        with (source / NAME).open("wb") as stream:
            for _unused in range(mib):
                data = chance.randbytes(MIB)
                digest.update(data)
                stream.write(data)
        self.digest = digest.hexdigest()
        self.commit = add_model(self.hub, MODEL, source).commit
        row = {"Path": NAME, "Type": "blob", "Size": self.total, "Sha256": self.digest}
        self.rows = short_rows([row])

    def run(self, way: Callable[[SwarmNet], list[Member]]) -> Figures:
        """One try over a network of its own."""
        with SwarmNet(self.hosts, self.mbit, hub_mbit=self.mbit) as net:
            before = {name: net.sent(name) for name in [HUB, *net.hosts]}
            members = way(net)
            began = min(member.wait("ready", 60)["at"] for member in members)
            ended = max(member.wait("done", PATIENCE_SECONDS)["at"] for member in members)
            sent = {name: (net.sent(name) - before[name]) / self.total for name in [HUB, *net.hosts]}
            for member in members:
                member.stop()
        self._check(net)
        return Figures(ended - began, sent.pop(HUB), max(sent.values()))

    def _check(self, net: SwarmNet) -> None:
        for name in net.hosts:
            with (self.base / name / NAME).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != self.digest:
                raise AssertionError(f"{name} has other bytes")
            shutil.rmtree(self.base / name)

    # --- the ways ---

    def swarm(self, mode: str) -> Callable[[SwarmNet], list[Member]]:
        """By our own engine; ``direct`` leaves every host alone with the hub."""

        def start(net: SwarmNet) -> list[Member]:
            endpoint, secret = net.serve_hub(self.hub), _swarm_wire.new_secret()
            (chain,) = chains([HostState(name, {"model": self.total}) for name in net.hosts])
            members = []
            for name in net.hosts:
                hosts = (name,) if mode == "direct" else chain.hosts
                pinned = Pinned(MODEL, "master", self.commit, self.rows, hosts)
                kind = "seed" if mode == "seed" else "swarm"
                assert mode != "direct" or preference(hosts, 0, name, kind) == ()
                told = Membership(name, secret, net.addresses, (pinned,), mode=kind, piece=piece_size(self.total))
                request = {"model": MODEL, "revision": "master", "path": str(self.base / name)}
                whole = {"membership": told.as_dict(), "endpoint": endpoint, "requests": [request]}
                members.append(net.start(name, [sys.executable, "-m", "swarm_member"], whole))
            return members

        return start

    def libtorrent(self, tuned: bool) -> Callable[[SwarmNet], list[Member]]:
        """By libtorrent, whose seed stands where the hub does; all know each other's address from the start."""
        assert self.torrent is not None
        torrent = self.base / "model.torrent"
        making = (
            "import libtorrent as lt, sys\n"
            "files = lt.file_storage(); lt.add_files(files, sys.argv[1])\n"
            "made = lt.create_torrent(files, 1 << 20); lt.set_piece_hashes(made, sys.argv[2])\n"
            "open(sys.argv[3], 'wb').write(lt.bencode(made.generate()))\n"
        )
        origin = self.base / "model"
        subprocess.run(
            [self.torrent, "-c", making, str(origin / NAME), str(origin), str(torrent)],
            check=True,
        )

        def start(net: SwarmNet) -> list[Member]:
            assert self.torrent is not None
            everybody = [net.address(name) for name in [HUB, *net.hosts]]
            members = []
            for name in [HUB, *net.hosts]:
                told = {
                    "torrent": str(torrent),
                    "address": net.address(name),
                    "peers": everybody,
                    "port": 6881,
                    "directory": str(origin if name == HUB else self.base / name),
                    "seed": name == HUB,
                    "tuned": tuned,
                }
                members.append(net.start(name, [self.torrent, str(TORRENT)], told))
            return members

        return start


def main() -> int:
    """Measure and print."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="swarm-bench-", dir=arguments.directory) as directory:
        bench = Bench(Path(directory), arguments.hosts, arguments.mib, arguments.mbit, arguments.torrent)
        ways = {"chain (swarm)": bench.swarm("swarm"), "hub and spoke (seed)": bench.swarm("seed")}
        if arguments.direct:
            ways["everybody from the hub (direct)"] = bench.swarm("direct")
        if arguments.torrent:
            ways["libtorrent as it comes"] = bench.libtorrent(False)
            ways["libtorrent, tuned"] = bench.libtorrent(True)
        found: dict[str, list[Figures]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, way in ways.items():
                if arguments.only and not any(name.startswith(only) for only in arguments.only):
                    continue
                if number and name.startswith(("hub", "everybody")):
                    continue  # their time is the link's, and long
                found[name].append(bench.run(way))
                print(f"# {name}: {found[name][-1]}", file=sys.stderr, flush=True)
                time.sleep(1)
    _print(arguments, found)
    return 0


def _print(arguments: argparse.Namespace, found: dict[str, list[Figures]]) -> None:
    limit = arguments.mib * MIB * 8 / (arguments.mbit * 1e6)
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    print(
        f"{arguments.mib} MiB to {arguments.hosts} hosts, {arguments.mbit} Mbit/s each; {when}, "
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n"
    )
    print("| way | seconds (median, best, worst) | of the limit | hub sent | busiest host sent |")
    print("|---|---|---|---|---|")
    print(f"| limit: one link, no header | {limit:.1f} | 1.00 | 1.00 | |")
    for name, tries in found.items():
        if tries:
            times = sorted(item.seconds for item in tries)
            middle = statistics.median(times)
            origin, host = (max(getattr(item, key) for item in tries) for key in ("origin", "host"))
            print(
                f"| {name} | {middle:.1f}, {times[0]:.1f}, {times[-1]:.1f} | {middle / limit:.2f} | {origin:.2f} | "
                f"{host:.2f} |"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarm_bench", description=__doc__)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--mib", type=int, default=256, help="size of the model")
    parser.add_argument("--mbit", type=int, default=200, help="every link, both ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--direct", action="store_true", help="also with every host alone")
    parser.add_argument("--torrent", metavar="PYTHON", help="an interpreter that has libtorrent")
    parser.add_argument("--only", action="append", metavar="WAY", help="only ways that begin so")
    parser.add_argument(
        "--directory", help="where the copies lie; memory, else the disk is measured", default="/dev/shm"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
