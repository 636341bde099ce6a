# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m swarm_member``: one host of a run, as a process of its own. The collection's code, and lies on request.

Standard input has one line of JSON: ``membership``, ``requests`` (options of ``_artifact.Request``), ``endpoint``, and
optionally ``patience``, ``bandwidth`` and ``lie``. It says one JSON object a line: ``ready``, then ``fetched`` for
each request, then ``done``; it serves until standard input ends, and says ``report``.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import time
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient, parse_endpoint
from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm import Swarm
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import piece_range, read_membership
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Absent, Ready, Shelf
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RetryPolicy


class RottenShelf(Shelf):
    """Gives other bytes than it says: a broken disk."""

    consistent = False

    def take(self, sha256: str, index: int, wait: float) -> Ready | Absent:
        taken = super().take(sha256, index, wait)
        if isinstance(taken, Absent) or index % 3 != 1:
            return taken
        entry = self.entry(sha256)
        assert entry is not None
        start, end = piece_range(index, entry.size, self.piece)
        data = bytearray(os.pread(taken.handle, end - start, start))
        data[len(data) // 2] ^= 1
        os.close(taken.handle)
        copy = os.memfd_create("lie")
        os.pwrite(copy, data, start)
        digest = hashlib.sha256(data).digest() if self.consistent else taken.digest
        return Ready(copy, digest, taken.generation)


class LyingShelf(RottenShelf):
    """Gives wrong bytes and stands by them."""

    consistent = True


class PerjuredShelf(Shelf):
    """Gives right bytes, and wrong digests to those who ask only for those."""

    def digests(self, sha256: str, first: int, most: int) -> list[bytes]:
        return [hashlib.sha256(digest).digest() for digest in super().digests(sha256, first, most)]


class FraudulentShelf(LyingShelf):
    """Gives wrong bytes, and vouches for them to everybody."""

    def digests(self, sha256: str, first: int, most: int) -> list[bytes]:
        found = super().digests(sha256, first, most)
        for place in range(len(found)):
            taken = self.take(sha256, first + place, 0.0)
            if isinstance(taken, Ready):
                os.close(taken.handle)
                found[place] = taken.digest
        return found


LIES = {"rot": RottenShelf, "lie": LyingShelf, "perjury": PerjuredShelf, "fraud": FraudulentShelf}


def say(kind: str, **values: Any) -> None:
    """One line for whoever started this."""
    print(json.dumps({"event": kind, "at": time.monotonic(), **values}), flush=True)


def main() -> int:
    """Take part; returns the exit status."""
    told = json.loads(sys.stdin.readline())
    monitor = Monitor()
    client = HubClient(parse_endpoint(told["endpoint"]), timeout=3.0)
    swarm = Swarm(
        read_membership(told["membership"]),
        client,
        monitor,
        bandwidth=told.get("bandwidth", 0),
        patience=Patience(**told.get("patience", {})),
    )
    if told.get("lie"):
        swarm.shelf.__class__ = LIES[told["lie"]]
    policy = RetryPolicy(attempts=told.get("attempts", 8), longest_wait=2.0)
    status = 0
    with swarm:
        say("ready", serving=swarm.serving)
        for options in told["requests"]:
            request = _artifact.Request(**{"endpoint": told["endpoint"], "policy": policy, **options})
            try:
                outcome = swarm.fetch(request)
            except FleetError as exc:
                status = 1
                say("failed", code=exc.code, text=str(exc))
            else:
                say("fetched", changed=outcome.changed, bytes=outcome.bytes_fetched, warnings=outcome.warnings)
        say("done", notes=monitor.snapshot()["notes"], **swarm.report())
        swarm.serve(lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
        say("report", notes=monitor.snapshot()["notes"], **swarm.report())
    return status


if __name__ == "__main__":
    sys.exit(main())
