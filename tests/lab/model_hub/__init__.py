# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A model hub on loopback that speaks ModelScope's protocol and can misbehave on demand.

Standard library only. From a test::

    with Hub(root) as hub:
        hub.faults.add(Fault(match="lfs/*", drop_after=1 << 20, times=2))
        ...  # point a client at hub.endpoint
        assert hub.requests.count("lfs/*") == 3

From a shell: ``python -m model_hub --help``.
"""

from __future__ import annotations

from .faults import Fault, FaultError, FaultSet, hostile_rows
from .server import Hub, Request
from .store import Added, Store, StoreError, add_model

__all__ = [
    "Added",
    "Fault",
    "FaultError",
    "FaultSet",
    "Hub",
    "Request",
    "Store",
    "StoreError",
    "add_model",
    "hostile_rows",
]
