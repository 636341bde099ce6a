# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the plan makes of the memory that models need: how many GPUs, and whether they hold it. Pure, no I/O."""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_cards
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_pins import Pin
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import AUTO, GpuWish
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import gpus_of_flags
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_hub import check_answer, with_deployed
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import model_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_plan import assess, demand_of, propose

Models = t.Mapping[str, t.Any]
Arguments = t.Mapping[str, t.Any]
Card = t.Mapping[str, t.Any]

ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


def models_of(facts: t.Mapping[str, t.Any]) -> Models:
    """The ``models`` among the facts of a host; they came from a host, so any type is possible."""
    models = facts.get("models")
    if not isinstance(models, t.Mapping):
        return {}
    return with_deployed({name: entry for name, entry in models.items() if isinstance(entry, t.Mapping)}, facts)


def known_models(services: t.Sequence[Service], models: Models) -> dict[str, dict[str, t.Any]]:
    """What a plan says of its models: where they come from and how large they are."""
    names = sorted({f"{service.model}@{service.revision}" for service in services})
    keys = ("commit", "source", "bytes_total", "artifact_bytes", "error")
    return {name: {key: models[name].get(key) for key in keys} for name in names if name in models}


def model_entry(service: Service, models: Models) -> t.Any:
    """What is known of a service's model; None where nothing is."""
    return models.get(f"{service.model}@{service.revision}")


def with_counts(
    services: t.Sequence[Service],
    arguments: t.Mapping[str, Arguments],
    models: Models,
    cards: t.Sequence[t.Any],
    pins: t.Mapping[str, Pin],
) -> list[Service]:
    """The services, with a number of GPUs for those that leave it open.

    It follows from the parallelism that they set, else from the memory that the model needs, else it is one. What was
    left open before keeps the cards that it has: a better estimate moves no service that runs.
    """
    usable = [card for card in _gpu_cards.usable_cards(cards) if not _gpu_cards.broken(card)]
    memory = [size for card in usable for size in [card.get("memory_total_bytes")] if isinstance(size, int)]
    counted = []
    for service in services:
        if service.gpus is None:
            count = gpus_of_flags(service, arguments[service.name])
            pin = pins.get(service.name)
            if count > 1:
                service = replace(service, gpus=count)
            elif pin is None or pin.wish != AUTO:
                count = _proposed(service, arguments[service.name], models, memory)
                service = replace(service, gpus=GpuWish(count=count)) if count > 1 else service
        counted.append(service)
    return counted


def _proposed(service: Service, arguments: Arguments, models: Models, memory: t.Sequence[int]) -> int:
    """The GPUs that the model's memory asks for; 1 where that is not known, or no number of them is enough."""
    if service.tensor_parallel_size is not None:
        return 1
    try:
        model = model_of(model_entry(service, models))
    except FleetError:
        return 1
    demand = demand_of(arguments, max_model_len=service.max_model_len)
    proposal = propose(model, memory, demand)
    return proposal.tensor_parallel_size if proposal and proposal.sizing.fits else 1


def reckon(
    service: Service,
    arguments: Arguments,
    models: Models,
    cards: t.Sequence[Card],
    tensor_parallel: int,
    environment: t.Mapping[str, str],
) -> tuple[dict[str, t.Any] | None, list[Finding]]:
    """The sum of a service's memory on its cards as plain data, and what is wrong with it."""
    entry = model_entry(service, models)
    answer = check_answer(service.name, entry)
    if answer is not None:
        return None, [answer]
    if not cards or entry is None:
        return None, []
    sizing, findings = assess(
        service.name,
        entry,
        arguments,
        tensor_parallel=tensor_parallel,
        cards_memory=[card.get("memory_total_bytes") for card in cards],
        gpu_name=str(cards[0].get("name") or ""),
        max_model_len=service.max_model_len,
        allow_long=environment.get(ALLOW_LONG, "").strip().lower() in ("1", "true"),
    )
    return (sizing.as_dict() if sizing else None), findings


def doubt_count(
    findings: t.Sequence[Finding], service: Service, arguments: Arguments, pins: t.Mapping[str, Pin]
) -> list[Finding]:
    """A model of which nothing is known is more than a remark where it should have told the number of GPUs."""
    if service.gpus is not None or service.tensor_parallel_size is not None or service.name in pins:
        return list(findings)
    if gpus_of_flags(service, arguments) > 1:
        return list(findings)
    return [
        replace(
            finding,
            severity=WARNING,
            seen=f"one GPU is taken, since gpus: is not set and the model's size is not known: {finding.seen}",
            remedy=f"set gpus: of {service.name}; or {finding.remedy}",
        )
        if finding.code == "plan.model_unknown"
        else finding
        for finding in findings
    ]
