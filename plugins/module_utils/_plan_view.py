# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a person wants to see of one host's plan, as plain data: cards and who holds them, memory, artifacts, changes.

Pure, no I/O. The values of an environment are left out: one may hold a secret by mistake. Facts and sizes come from
hosts and hubs; what is of another type than expected is not known, and never a failure.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._compose import to_yaml
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_changes import flags_of, plan_changes
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_memory import models_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import lost_connection, unreachable_text

# vLLM's own, since 0.21.
DEFAULT_UTILIZATION = 0.92
UTILIZATION_FLAG = "--gpu-memory-utilization"
CACHE_FLAG = "--kv-cache-memory-bytes"
HIDDEN = "********"
Data = dict[str, t.Any]
Mapping = t.Mapping[str, t.Any]


def plan_view(
    plan: Mapping,
    facts: Mapping,
    models: Mapping | None = None,
    artifacts: t.Sequence[Mapping] = (),
    failure: str = "",
    user: str = "vllm",
) -> Data:
    """One host. ``artifacts`` are the results of a look at them (``vllm_artifacts`` in check mode), if there was one.

    ``models`` is what ``vllm_model_info`` returned, by default that among the facts. ``failure`` is why there is no
    plan.
    """
    lost = lost_connection(dict(facts)) or next((text for text in map(lost_connection, artifacts) if text), "")
    looked = {path: one for one in _mappings(artifacts) for path in [_looked_path(one)] if path}
    known = {**(models_of(facts) if models is None else models)}
    for one in _mappings(plan.get("artifacts")):
        commit = _mapping(looked.get(str(one.get("path")))).get("commit")
        if commit:
            # The look was at exactly what a deploy would take.
            key = f"{one.get('model')}@{one.get('revision')}"
            known[key] = {**_mapping(known.get(key)), "commit": commit}
    services = _mappings(plan.get("services"))
    return {
        "device": plan.get("device"),
        "runtime": plan.get("runtime"),
        "engine": _engine(_mapping(plan.get("engine"))),
        "cards": _cards(facts, services),
        "islands": islands(facts),
        "services": [_service(service) for service in services],
        "artifacts": [
            _artifact(one, looked.get(str(one.get("path"))), facts, known) for one in _mappings(plan.get("artifacts"))
        ],
        "images": [_image(one, facts) for one in _mappings(plan.get("images"))],
        "changes": plan_changes(plan, facts, known, user) if plan else [],
        "findings": [dict(one) for one in _mappings(plan.get("findings"))],
        "errors": _integer(plan.get("errors")) or 0,
        "failure": unreachable_text(lost) if lost else failure,
        "unreachable": bool(lost),
    }


def _looked_path(look: Mapping) -> str:
    """A look that failed names the artifact as it was asked for."""
    return str(look.get("path") or _mapping(look.get("item")).get("path") or "")


def _engine(engine: Mapping) -> str:
    if engine.get("version"):
        return f"vLLM {engine['version']}"
    return f"vLLM of {engine['image']}" if engine.get("image") else ""


# --- cards -----------------------------------------------------------------------------------------------------------


def _cards(facts: Mapping, services: t.Sequence[Mapping]) -> list[Data]:
    found = []
    for card in _mappings(facts.get("gpus")):
        total = _integer(card.get("memory_total_bytes"))
        mig = _mapping(card.get("mig"))
        found.append(
            {
                "index": card.get("index"),
                "uuid": card.get("uuid"),
                "name": str(card.get("name") or "GPU"),
                "memory_total_bytes": total,
                "mig_devices": len(_mappings(mig.get("devices"))) if mig.get("current") == "enabled" else None,
                "holders": [
                    _holder(service, total)
                    for service in services
                    if any(gpu.get("uuid") == card.get("uuid") for gpu in _mappings(service.get("gpus")))
                ],
                "foreign": _foreign(card),
            }
        )
    return found


def _holder(service: Mapping, total: int | None) -> Data:
    """What a service takes of one card: by its sizing, else by the share that it is started with."""
    sizing = _mapping(service.get("memory"))
    budget, weights = _integer(sizing.get("budget_bytes")), _integer(sizing.get("weights_bytes"))
    cache, outside = _integer(sizing.get("kv_available_bytes")), _integer(sizing.get("outside_bytes")) or 0
    name = str(service.get("name"))
    if budget is None or weights is None or cache is None:
        share = utilization_of(service)
        planned = None if share is None or total is None else round(share * total)
        return {"service": name, "bytes": planned, "weights": None, "kv": None, "rest": None}
    rest = max(0, budget - weights - cache) + outside
    return {"service": name, "bytes": weights + cache + rest, "weights": weights, "kv": cache, "rest": rest}


def utilization_of(service: Mapping) -> float | None:
    """The share of a card that the engine will take; none where it is told in bytes of cache instead."""
    flags = flags_of(service.get("arguments"))
    if CACHE_FLAG in flags:
        return None
    try:
        share = float(flags.get(UTILIZATION_FLAG, DEFAULT_UTILIZATION))
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _foreign(card: Mapping) -> list[Data]:
    """Processes on a card that are of no service of ours. Where nobody could tell whose they are, none is named."""
    return [
        {
            "pid": _integer(process.get("pid")),
            "name": str(process.get("container") or process.get("name") or "a process"),
            "user": process.get("user"),
            "bytes": _integer(process.get("memory_used_bytes")),
            "orphan": process.get("orphan") is True,
        }
        for process in _mappings(card.get("processes"))
        if "service" in process and process["service"] is None
    ]


def islands(facts: Mapping) -> list[list[int]] | None:
    """Groups of cards that NVLink joins; none where the topology is not known, or has no NVLink."""
    topology = _mapping(facts.get("nvidia")).get("topology")
    if not isinstance(topology, list):
        return None
    group: dict[int, set[int]] = {}
    for pair in _mappings(topology):
        gpus = pair.get("gpus")
        linked = str(pair.get("link") or "").lower().startswith("nv")
        if not linked or not isinstance(gpus, list) or len(gpus) != 2 or any(_integer(one) is None for one in gpus):
            continue
        joined = group.get(gpus[0], {gpus[0]}) | group.get(gpus[1], {gpus[1]})
        group.update(dict.fromkeys(joined, joined))
    return [list(island) for island in sorted({tuple(sorted(island)) for island in group.values()})] or None


# --- services, artifacts, images -------------------------------------------------------------------------------------


def _service(service: Mapping) -> Data:
    kept = ("name", "model", "revision", "url", "public_url", "port", "path", "tensor_parallel_size", "image", "wish")
    sizing = service.get("memory")
    return {
        **{key: service.get(key) for key in kept},
        "gpus": [gpu.get("index") for gpu in _mappings(service.get("gpus"))],
        "memory": dict(sizing) if isinstance(sizing, t.Mapping) else None,
        "definition": _definition(service),
    }


def _definition(service: Mapping) -> str:
    """What it will run as: its part of the Compose file, or the command as a person types it; no value of an
    environment in either."""
    container = _valueless(service).get("container")
    if isinstance(container, t.Mapping):
        return to_yaml({str(service.get("name")): container}).rstrip()
    return str(service.get("shell") or "")


def _artifact(artifact: Mapping, look: Mapping | None, facts: Mapping, models: Mapping) -> Data:
    """What is there already: as a look at it says, else as the model's own facts and the last deploy do."""
    found: Data = {
        "model": artifact.get("model"),
        "revision": artifact.get("revision"),
        "path": artifact.get("path"),
        "services": list(artifact.get("services") or []),
        "commit": None,
        "bytes_total": None,
        "bytes_to_fetch": None,
        "failure": "",
    }
    known = _mapping(models.get(f"{artifact.get('model')}@{artifact.get('revision')}"))
    if look is not None and look.get("failed"):
        found["failure"] = str(look.get("seen") or look.get("msg") or "it could not be looked at")
        found["remedy"] = str(look.get("remedy") or "")
        return found
    if look is not None:
        found.update({key: _integer(look.get(key)) for key in ("bytes_total",)}, commit=look.get("commit"))
        found["bytes_to_fetch"] = _integer(look.get("bytes_fetched"))
        return found
    there = _deployed_commit(facts, str(artifact.get("path")))
    found["commit"] = known.get("commit") or there
    found["bytes_total"] = _integer(known.get("artifact_bytes")) or _integer(known.get("bytes_total"))
    if known.get("source") == "artifact" or (there and known.get("commit") in (None, there)):
        found["bytes_to_fetch"] = 0
    elif not there and known.get("source") in ("hub", "elsewhere"):
        found["bytes_to_fetch"] = found["bytes_total"]
    return found


def _deployed_commit(facts: Mapping, path: str) -> str | None:
    applied = _mappings(_mapping(facts.get("deployed")).get("artifacts"))
    commits = [one.get("commit") for one in applied if one.get("path") == path]
    return str(commits[0]) if commits and commits[0] else None


def _image(image: Mapping, facts: Mapping) -> Data:
    container = _mapping(_mapping(facts.get("nvidia")).get("container"))
    known = _mapping(_mapping(container.get("images")).get(str(image.get("image"))))
    applied = _mappings(_mapping(facts.get("deployed")).get("images"))
    pinned = next((one.get("pinned") for one in applied if one.get("image") == image.get("image")), None)
    present = known.get("present")
    return {
        "image": image.get("image"),
        "services": list(image.get("services") or []),
        "present": present if isinstance(present, bool) else True if pinned else None,
        "pinned": pinned,
        "size_bytes": _integer(known.get("size_bytes")),
    }


# --- the plan as data ------------------------------------------------------------------------------------------------


def without_values(plan: Mapping) -> Data:
    """A plan for a file: the names of each environment, and none of their values."""
    return {**plan, "services": [_valueless(service) for service in _mappings(plan.get("services"))]}


def _valueless(service: Mapping) -> Data:
    hidden = {**service, "environment": dict.fromkeys(_mapping(service.get("environment")), HIDDEN)}
    container = service.get("container")
    if isinstance(container, t.Mapping):
        hidden["container"] = {**container, "environment": hidden["environment"]}
    return hidden


def _mapping(value: t.Any) -> Mapping:
    return value if isinstance(value, t.Mapping) else {}


def _mappings(value: t.Any) -> list[Mapping]:
    return [item for item in value if isinstance(item, t.Mapping)] if isinstance(value, (list, tuple)) else []


def _integer(value: t.Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
