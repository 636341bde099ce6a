# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One host of a libtorrent swarm, to compare with: no tracker, no DHT, peers named beforehand. Needs ``libtorrent``.

Standard input has one line of JSON: ``name``, ``address``, ``peers`` (addresses), ``port``, ``directory``, ``seed``,
``tuned``. Says ``ready`` and ``done`` as JSON lines, and goes on giving until standard input ends.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

import libtorrent

PLAIN: dict[str, Any] = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True,
}
# What its manual suggests for a fast local network with few peers.
TUNED: dict[str, Any] = {
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "mixed_mode_algorithm": 0,
    "unchoke_slots_limit": -1,
    "seed_choking_algorithm": 0,
    "max_out_request_queue": 1500,
    "max_allowed_in_request_queue": 2000,
    "request_queue_time": 3,
    "send_buffer_watermark": 4 * 1024 * 1024,
    "send_buffer_low_watermark": 512 * 1024,
    "send_buffer_watermark_factor": 150,
    "connection_speed": 100,
    "min_reconnect_time": 1,
    "piece_timeout": 3,
    "peer_turnover_interval": 300,
    "suggest_mode": 1,
    "out_enc_policy": 2,
    "in_enc_policy": 2,
}


def say(kind: str, **values: Any) -> None:
    """One line for whoever started this."""
    print(json.dumps({"event": kind, "at": time.monotonic(), **values}), flush=True)


def main() -> int:
    """Take part until told to stop."""
    told = json.loads(sys.stdin.readline())
    settings = {**PLAIN, **(TUNED if told["tuned"] else {}), "listen_interfaces": f"{told['address']}:{told['port']}"}
    session = libtorrent.session(settings)
    parameters = libtorrent.add_torrent_params()
    parameters.ti = libtorrent.torrent_info(told["torrent"])
    parameters.save_path = told["directory"]
    Path(told["directory"]).mkdir(exist_ok=True)
    flags = libtorrent.torrent_flags
    parameters.flags &= ~(flags.auto_managed | flags.paused)
    if told["seed"]:
        parameters.flags |= flags.seed_mode | (flags.super_seeding if told["tuned"] else 0)
    handle = session.add_torrent(parameters)
    say("ready")
    peers = [(address, told["port"]) for address in told["peers"] if address != told["address"]]
    asked = 0.0
    while not handle.status().is_seeding:
        if time.monotonic() - asked > 1.0:
            asked = time.monotonic()
            for peer in peers:
                handle.connect_peer(peer)
        time.sleep(0.02)
    say("done")
    select.select([sys.stdin], [], [])
    say("report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
