# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""How the GPUs of a host are linked: ``nvidia-smi topo -m`` and ``topo -p2p r``, or NVML. No I/O of its own.

``link`` is nvidia-smi's word in lower case: ``nv18`` (a bonded set of 18 NVLinks), ``pix``, ``pxb``, ``phb``, ``node``,
``sys``, or None where it cannot be told. ``p2p`` is ``ok`` or why not: ``cns`` (chipset), ``gns`` (GPU), ``tns``
(topology), ``dr`` (disabled by registry key), ``ns`` (not supported), ``u`` (unknown).
"""

from __future__ import annotations

import re
import typing as t


class Link(t.TypedDict):
    """The connection of two GPUs, the lower index first."""

    gpus: list[int]
    link: str | None
    nvlinks: int
    p2p: str | None


# nvidia-smi underlines the header, on no terminal too.
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_COLUMN = re.compile(r"GPU(\d+)$")
_NVLINK = re.compile(r"nv(\d+)$")
_LINKS = frozenset({"pix", "pxb", "phb", "node", "soc", "sys", "psb", "c2c"})
_P2P = frozenset({"ok", "cns", "gns", "tns", "ns", "dr", "u"})
_MOST_GPUS = 64

Matrix = dict[tuple[int, int], str]


def parse_matrix(text: str) -> Matrix:
    """The cells between GPUs of a matrix of ``nvidia-smi topo``, in lower case; other devices are left out."""
    cells: Matrix = {}
    columns: list[int | None] = []
    for line in _ANSI.sub("", text).splitlines():
        # "CPU Affinity" and its like come after all devices, so that a blank in a name does no harm.
        words = line.split()
        if not words:
            continue
        heads = [_COLUMN.match(word) for word in words]
        if (heads[0] and not columns) or (len(heads) > 1 and heads[0] and heads[1]):
            columns = [int(head.group(1)) if head else None for head in heads]
        elif heads[0] and columns:
            row = int(heads[0].group(1))
            for column, cell in zip(columns, words[1:]):
                if column is not None and column != row:
                    cells[row, column] = cell.lower()
        elif words[0].startswith("Legend"):
            break
    return cells


def _link(word: str | None) -> tuple[str | None, int]:
    match = _NVLINK.match(word or "")
    if match:
        return word, int(match.group(1))
    return (word if word in _LINKS else None), 0


def combine(indices: t.Sequence[int], topology: Matrix, p2p: Matrix) -> list[Link] | None:
    """Both matrices as one list; None where neither says anything of two GPUs."""
    links: list[Link] = []
    for position, one in enumerate(sorted(indices)[:_MOST_GPUS]):
        for other in sorted(indices)[position + 1 : _MOST_GPUS]:
            link, nvlinks = _link(topology.get((one, other)) or topology.get((other, one)))
            status = p2p.get((one, other)) or p2p.get((other, one))
            links.append(
                {"gpus": [one, other], "link": link, "nvlinks": nvlinks, "p2p": status if status in _P2P else None}
            )
    if links and all(item["link"] is None and item["p2p"] is None for item in links):
        return None
    return links


# --------------------------------------------------------------------------------------------------------------------
# NVML
# --------------------------------------------------------------------------------------------------------------------

# What of the binding's calls gives: a value, or None where it fails.
Get = t.Callable[..., t.Any]

_LEVELS = {10: "pix", 20: "pxb", 30: "phb", 40: "node", 50: "sys"}
_STATUS = {0: "ok", 1: "cns", 2: "gns", 3: "tns", 4: "dr", 5: "ns", 6: "u"}
_READ = 0
_SWITCH = 2
_MOST_NVLINKS = 18


class _Ports(t.NamedTuple):
    """The active NVLinks of one GPU: how many lead to a switch, and how many to each bus address."""

    switch: int
    peers: dict[str, int]


def _ports(get: Get, what: str, handle: t.Any, most: int) -> _Ports:
    switch, peers = 0, dict[str, int]()
    for number in range(most):
        active = get(what, "nvmlDeviceGetNvLinkState", handle, number)
        if active is None and number == 0:
            break  # a GPU without NVLink
        if not active:
            continue
        if get(what, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, number) == _SWITCH:
            switch += 1
            continue
        bus = _bus(get(what, "nvmlDeviceGetNvLinkRemotePciInfo", handle, number))
        if bus:
            peers[bus] = peers.get(bus, 0) + 1
    return _Ports(switch, peers)


def _bus(info: t.Any) -> str:
    value = getattr(info, "busId", None)
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.upper() if isinstance(text, str) else ""


def nvml_topology(get: Get, count: int, most_nvlinks: int = _MOST_NVLINKS) -> list[Link] | None:
    """The links as NVML tells them: as ``nvidia-smi topo`` prints, which asks the same."""
    handles: dict[int, t.Any] = {}
    ports: dict[int, _Ports] = {}
    buses: dict[int, str] = {}
    for index in range(min(count, _MOST_GPUS)):
        handle = get(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index)
        if handle is not None:
            handles[index] = handle
            ports[index] = _ports(get, f"GPU {index}", handle, most_nvlinks)
            buses[index] = _bus(get(f"GPU {index}", "nvmlDeviceGetPciInfo", handle))
    topology: Matrix = {}
    p2p: Matrix = {}
    for one, handle in handles.items():
        for other, peer in handles.items():
            if other <= one:
                continue
            what = f"GPU {one} and GPU {other}"
            nvlinks = min(ports[one].switch, ports[other].switch) or ports[one].peers.get(buses[other], 0)
            level = _LEVELS.get(get(what, "nvmlDeviceGetTopologyCommonAncestor", handle, peer) or 0)
            if nvlinks or level:
                topology[one, other] = f"nv{nvlinks}" if nvlinks else str(level)
            status = get(what, "nvmlDeviceGetP2PStatus", handle, peer, _READ)
            if status in _STATUS:
                p2p[one, other] = _STATUS[status]
    return combine(list(handles), topology, p2p)
