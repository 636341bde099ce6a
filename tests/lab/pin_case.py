# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's cards, what joins them, and services, for the tests of pinning; and short ways to ask what came of them."""

from __future__ import annotations

import json
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_record import applied_facts
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import assign_gpus, recorded_pins, wish_data
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service, parse_services

GIB = 1 << 30
MIG = "MIG-11111111-0000-4000-8000-000000000000"
H100, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA L40S"


def uuid(letter: str) -> str:
    return f"GPU-{letter * 8}-0000-4000-8000-000000000000"


def card(index: int, letter: str = "", **keys: t.Any) -> dict[str, t.Any]:
    """Card a has index 0 and slot 10, card b index 1 and slot 11, and so on, unless it is told otherwise."""
    letter = letter or "abcdef0123456789"[index]
    return {
        "index": index,
        "uuid": uuid(letter),
        "name": H100,
        "pci_bus_id": f"00000000:{'abcdef0123456789'.index(letter) + 16:02X}:00.0",
        "memory_total_bytes": 80 * GIB,
        "compute_capability": "9.0",
        "mig": {"current": "disabled", "devices": []},
        "ecc": {"uncorrected_volatile": 0, "remapped_rows": {"pending": False, "failure": False}},
        **keys,
    }


def cards(count: int = 4, **keys: t.Any) -> list[dict[str, t.Any]]:
    return [card(index, **keys) for index in range(count)]


def links(count: int, *islands: t.Sequence[int], other: str = "sys") -> list[dict[str, t.Any]]:
    """NVLink between all of an island, and ``other`` between the rest."""
    return [
        {"gpus": [one, two], "link": "nv4" if same else other, "nvlinks": 4 if same else 0, "p2p": None}
        for one in range(count)
        for two in range(one + 1, count)
        for same in [any(one in island and two in island for island in islands)]
    ]


def services(**gpus: t.Any) -> list[Service]:
    """By name: what stands under ``gpus:``, or all keys of the service."""
    raw = []
    for name, keys in gpus.items():
        keys = keys if isinstance(keys, dict) and keys.pop("service", False) else {"gpus": keys}
        raw.append({"name": name, "model": f"acme/{name}", **keys})
    parsed, findings = parse_services(raw)
    assert findings == []
    return parsed


def shared(gpus: t.Any, part: t.Any = None, **keys: t.Any) -> dict[str, t.Any]:
    return {"service": True, "gpus": gpus, "gpu_memory_utilization": part, **keys}


Result = tuple[dict[str, list[dict[str, t.Any]]], list[Finding]]


def record(wanted: t.Sequence[Service], result: Result) -> dict[str, t.Any]:
    """The facts of the host after a deploy of this result: through the file, where cards have no index."""
    entries = [
        {
            "name": service.name,
            "wish": wish_data(service.gpus),
            "gpus": [{key: value for key, value in one.items() if key != "index"} for one in result[0][service.name]],
        }
        for service in wanted
    ]
    return {"applied": applied_facts(json.loads(json.dumps({"digest": "d", "services": entries})))}


def assign(wanted: t.Sequence[Service], host: t.Any, facts: t.Any = None, **keys: t.Any) -> Result:
    return assign_gpus(wanted, host, keys.pop("topology", None), recorded_pins(facts or {}), **keys)


def letters(result: Result) -> dict[str, str]:
    return {name: "".join(one["uuid"].removeprefix("GPU-")[0] for one in mine) for name, mine in result[0].items()}


def codes(result: Result) -> list[tuple[str, str]]:
    return [(finding.code, finding.service) for finding in result[1]]


def only(result: Result) -> Finding:
    assert len(result[1]) == 1, result[1]
    return result[1][0]


def partitioned() -> list[dict[str, t.Any]]:
    devices = [
        {"uuid": MIG, "name": "3g.40gb", "memory_total_bytes": 40 * GIB},
        {"uuid": MIG.replace("1", "2"), "name": None, "memory_total_bytes": None},
        {"uuid": None},
        None,
    ]
    return [card(0, mig={"current": "enabled", "devices": devices}), card(1)]


def renumber(host: t.Sequence[dict[str, t.Any]], order: t.Sequence[int]) -> list[dict[str, t.Any]]:
    """The same cards in the same slots under other indices."""
    return [{**host[old], "index": new} for new, old in enumerate(order)]
