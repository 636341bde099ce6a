# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What plan.json and record.json say of the services, as facts. Pure: documents in, plain data out, no I/O.

The files are the host's: whatever is of another type than we write is left out, and no value of an environment leaves
the host.
"""

from __future__ import annotations

import typing as t

Document = t.Optional[t.Mapping[str, t.Any]]

CARD = {"index": int, "uuid": str, "name": str, "pci_bus_id": str, "memory_total_bytes": int}
TEXTS = ("model", "revision", "path", "bind_address", "image")
NUMBERS = ("port", "tensor_parallel_size")


def record_facts(record: Document) -> dict[str, t.Any] | None:
    """What was last proved to answer; ``None`` where nothing was."""
    if not record:
        return None
    services = {name: _service(entry) for name, entry in _entries(record)}
    return {"digest": record.get("digest"), "recorded_at": record.get("recorded_at"), "services": services}


def applied_facts(plan: Document) -> dict[str, t.Any] | None:
    """What was applied last, proved or not: which cards each service holds, and what it asked for."""
    if not plan:
        return None
    services = {name: _pin(entry) for name, entry in _entries(plan)}
    return {"digest": plan.get("digest"), "services": services}


def _entries(document: t.Mapping[str, t.Any]) -> t.Iterator[tuple[str, t.Mapping[str, t.Any]]]:
    services = document.get("services")
    for entry in services if isinstance(services, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield entry["name"], entry


def _pin(entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """``wish`` is there only where it is known: records of an older release have none."""
    pin: dict[str, t.Any] = {"gpus": _cards(entry.get("gpus"))}
    if "wish" in entry:
        pin["wish"] = entry["wish"]
    return pin


def _service(entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    environment = entry.get("environment")
    return {
        **{key: _of(entry.get(key), str) for key in TEXTS},
        **{key: _of(entry.get(key), int) for key in NUMBERS},
        "arguments": [word for word in _list(entry.get("arguments")) if isinstance(word, str)],
        "environment": sorted(map(str, environment)) if isinstance(environment, dict) else [],
        **_pin(entry),
    }


def _cards(cards: t.Any) -> list[dict[str, t.Any]]:
    return [
        {key: _of(card.get(key), kind) for key, kind in CARD.items()}
        for card in _list(cards)
        if isinstance(card, dict) and isinstance(card.get("uuid"), str)
    ]


def _list(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else []


def _of(value: t.Any, kind: type) -> t.Any:
    return value if isinstance(value, kind) and not isinstance(value, bool) else None
