# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""One host's part in a run in which the hosts of a fleet get model artifacts from each other.

The way in: :class:`Swarm` with a membership, as the controller handed it out (``_swarm_plan``)::

    with Swarm(membership, hub, monitor) as swarm:
        for request in requests:  # in the order of membership.artifacts
            outcome = swarm.fetch(request)
        swarm.serve(told_to_stop)

What it fetches it gives to the others from the first piece on. The bytes of every file are checked against the same
manifest as ever before anything is published.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _manifest, _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_client import Authorities, PeerClient
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    Membership,
    Pinned,
    hub_connections,
    normal_address,
    preference,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience, Peers
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_server import PeerServer, ServerLimits
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Shelf
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_source import Common, SwarmSource

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Hub, Outcome, Request
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import Source

IDLE_SECONDS = 1800.0
"""A server that nobody asked anything for so long ends by itself: the controller is gone."""

TOTAL_SECONDS = 24 * 3600.0

_FILES_MAX = 65536
_POLL = 0.2


class Swarm:
    """This host in one run. Starts to serve when entered, and leaves nothing behind when left.

    ``bandwidth`` limits what it gives, in bytes per second (0: all there is); what it takes is the transfer's business.
    """

    def __init__(
        self,
        membership: Membership,
        hub: Hub,
        monitor: Monitor | None = None,
        bandwidth: int = 0,
        patience: Patience | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self._membership, self._hub, self._monitor = membership, hub, monitor or Monitor()
        self._limits, self._bandwidth = limits, bandwidth
        self._server: PeerServer | None = None
        self._stop = threading.Event()
        self._sources: dict[str, SwarmSource] = {}
        patience = patience or Patience()
        self.shelf = Shelf(membership.piece)
        self.shelf.judge = self._judge
        self._peers = Peers(patience, self._monitor.note)
        addresses = self._resolved()
        self._addresses = addresses
        own = addresses.get(membership.name, "")
        client = PeerClient(membership.secret, addresses, membership.port, None if membership.bind else own, patience)
        place = max((pinned.chain.index(membership.name) for pinned in self._mine()), default=0)
        self._common = Common(
            name=membership.name,
            shelf=self.shelf,
            peers=self._peers,
            client=client,
            # The nearer to the first host, the fewer digests one answer brings, and the more often one has to ask.
            authorities=Authorities(self._ask, min(0.005 * max(place, 1), 0.05)),
            patience=patience,
            tell=self._monitor.note,
            stop=self._stop,
        )

    def __enter__(self) -> Swarm:
        self.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to give. Where that cannot be, say so and only take: nobody waits long for one that never answers."""
        for pinned in self._mine():
            self.shelf.expect(pinned.entries)
        _raise_file_limit()
        if not self._membership.serves:
            return
        own = self._membership.bind or self._addresses.get(self._membership.name, "")
        try:
            self._check_own(own)
            server = PeerServer(
                self.shelf,
                self._membership.secret,
                own,
                self._membership.port,
                [address for address in self._addresses.values() if _is_ip(address)],
                self._bandwidth,
                self._limits,
            )
            server.start()
        except FleetError as exc:
            self._monitor.note(f"This host gives nothing to the others: {exc}")
            return
        self._server = server

    @property
    def serving(self) -> bool:
        return self._server is not None

    # --- what this host fetches ---

    def fetch(self, request: Request, verify: bool = False) -> Outcome:
        """As ``_artifact.present``, with bytes from the other hosts, and for them. Raises FleetError."""
        self.offer(request.path)
        try:
            outcome = _artifact.present(request, self.hub(request, self._hub), verify, self._monitor, self.shelf)
        except BaseException:
            self.abandon(request)
            raise
        self.offer(request.path)
        return outcome

    def hub(self, request: Request, hub: Hub) -> Hub:
        """What ``request`` has to be fetched through: ``hub`` with the other hosts in front of it."""
        return PinnedHub(
            hub, self._pinned(request), lambda pinned, direct: self.source(pinned, direct, request.connections)
        )

    def offer(self, path: str) -> None:
        """Give what lies complete in an artifact's directory, as its manifest records it."""
        with contextlib.suppress(OSError):
            root = _safefs.open_directory(path)
            try:
                manifest = _artifact.read_manifest(root, path, [])
                if manifest is None:
                    return
                for entry in manifest.entries:
                    state = _safefs.lstat(root, entry.path)
                    found = None if state is None else _manifest.FileStat(state.st_size, state.st_mtime_ns)
                    if found == manifest.stats[entry.path]:
                        self.shelf.offer(entry, _opener(path, entry.path))
            finally:
                os.close(root)

    def abandon(self, request: Request) -> None:
        """It will not be complete here: whoever waits for it shall ask somebody else."""
        pinned = self._pinned(request)
        if pinned is not None:
            self.shelf.abandon(pinned.entries)

    def source(self, pinned: Pinned, direct: Source, most: int) -> SwarmSource:
        """Where the files of an artifact come from, over at most so many connections."""
        membership = self._membership
        order = preference(pinned.chain, pinned.complete, membership.name, membership.mode)
        connections = hub_connections(sum(entry.size for entry in pinned.entries), membership.piece, most)
        source = SwarmSource(self._common, order, direct, membership.piece, connections)
        for entry in pinned.entries:
            self._sources[entry.sha256] = source
        return source

    # --- what it gives ---

    def serve(
        self,
        stop: Callable[[], bool],
        idle: float = IDLE_SECONDS,
        total: float = TOTAL_SECONDS,
    ) -> str:
        """Go on giving until ``stop`` says so, or nobody asked for ``idle`` seconds, or ``total`` are over. Returns
        which of the three: stopped, idle or over."""
        deadline = time.monotonic() + total
        while not stop():
            if time.monotonic() >= deadline:
                return "over"
            if self.silence >= idle:
                return "idle"
            time.sleep(_POLL)
        return "stopped"

    @property
    def silence(self) -> float:
        """Seconds since another host asked for anything; without end where none can."""
        return time.monotonic() - self._server.asked_at if self._server is not None else float("inf")

    def close(self) -> None:
        """Stop giving and asking; nothing of the run is left."""
        self._stop.set()
        if self._server is not None:
            self._server.close()
        self._common.client.close()
        self.shelf.close()

    def report(self) -> dict[str, Any]:
        """Where the bytes came from and went to, in bytes by host name, and which peers were given up why."""
        names = {normal_address(address): name for name, address in self._addresses.items() if _is_ip(address)}
        served = dict(self._server.served) if self._server is not None else {}
        with self._common.lock:
            from_hub = self._common.hub_bytes
        return {
            "mode": self._membership.mode,
            "serving": self.serving,
            "from_hub": from_hub,
            "from_peers": (peers := self._peers.report())["received"],
            "to_peers": {names.get(address, address): count for address, count in sorted(served.items())},
            "given_up": peers["given_up"],
            "banned": peers["banned"],
        }

    # --- inside ---

    def _ask(self, name: str, question: Any) -> Any:
        return self._common.ask(name, question)

    def _mine(self) -> list[Pinned]:
        return [pinned for pinned in self._membership.artifacts if self._membership.name in pinned.chain]

    def _pinned(self, request: Request) -> Pinned | None:
        return self._membership.find(request.model, request.revision, request.include, request.exclude)

    def _judge(self, entry: Entry, index: int) -> bytes | None:
        source = self._sources.get(entry.sha256)
        return source.judge(entry, index) if source is not None else None

    def _resolved(self) -> dict[str, str]:
        """The IP address of every host; one that has none keeps its name, and cannot be reached."""
        found = {}
        for name, address in self._membership.addresses.items():
            try:
                found[name] = _resolve(address)
            except OSError:
                found[name] = address
                self._monitor.note(f"The address of {name}, {address}, is unknown to this host.")
        return found

    def _check_own(self, own: str) -> None:
        if not _is_ip(own):
            seen, why = own or "no address", "which this host cannot resolve"
        elif is_loopback(own) and not all(is_loopback(item) for item in self._addresses.values() if _is_ip(item)):
            seen, why = own, "which no other host can reach"
        else:
            return
        raise FleetError(
            "swarm.bad_address",
            f"This host shall listen at {seen}, {why}",
            "the address at which the other hosts of the fleet reach this one",
            "Set vllm_address for this host to its IP address on the fleet's network",
        )


class PinnedHub:
    """A hub in whose place the fleet's own agreement answers: what a revision means now, and what belongs to it.

    So hosts without a way to the hub can take part, and no two hosts fetch different things.
    """

    def __init__(
        self,
        hub: Hub,
        pinned: Pinned | None,
        source: Callable[[Pinned, Source], Source] = lambda _pinned, direct: direct,
    ) -> None:
        self._hub, self._pinned, self._source = hub, pinned, source

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution:
        pinned = self._pinned
        if pinned is None:
            return self._hub.resolve(model, revision, patient)
        return Resolution(revision, pinned.commit, pinned.warnings)

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, Any]]:
        pinned = self._pinned
        if pinned is None:
            return self._hub.list_rows(model, resolution)
        return [dict(row) for row in pinned.rows]

    def source(self, model: str, resolution: Resolution) -> Source:
        direct = self._hub.source(model, resolution)
        return direct if self._pinned is None else self._source(self._pinned, direct)


def _opener(directory: str, path: str) -> Callable[[], int]:
    def open_file() -> int:
        root = _safefs.open_directory(directory)
        try:
            return _safefs.open_regular(root, path)
        finally:
            os.close(root)

    return open_file


def _resolve(address: str) -> str:
    if _is_ip(address):
        return normal_address(address)
    found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    return normal_address(str(found[0][4][0]))


def _is_ip(address: str) -> bool:
    try:
        normal_address(address)
    except ValueError:
        return False
    return True


def _raise_file_limit() -> None:
    """Every file on its way is open as long as it is given, and a model may have more than the usual limit of 1024."""
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
