# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a plan would change on its host: which services start, restart, stop or go on, and because of what. Pure.

It follows what ``vllm_stack`` does: a service is restarted when the digest of its definition changes, and the same
digest is computed here. Where it differs, the two definitions are compared part by part for the reasons. What only the
host or the hub can tell (the value of a secret, a tag that moved) is left to ``deploy.yml --check``.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._host_deployed import container_choices
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack_apply import Options, desired_services

START = "start"
RESTART = "restart"
STOP = "stop"
KEEP = "keep"
UNKNOWN = "unknown"
CHANGES = (START, RESTART, STOP, KEEP, UNKNOWN)
ALIVE = ("running", "starting", "restarting")
VALUE_CHANGED = "the value of an environment variable"
LONGEST_VALUE = 60
Plan = t.Mapping[str, t.Any]
Service = t.Mapping[str, t.Any]
Change = dict[str, t.Any]


def plan_changes(
    plan: Plan, facts: t.Mapping[str, t.Any], models: t.Mapping[str, t.Any] | None = None, user: str = "vllm"
) -> list[Change]:
    """One entry for each service of the plan and of the host: ``service``, ``change`` and ``reasons``.

    ``facts`` is what ``vllm_host_info`` returned, ``models`` what ``vllm_model_info`` did, and ``user`` the user of
    services under systemd.
    """
    wanted = {str(service["name"]): service for service in plan.get("services") or []}
    problem = str(facts.get("services_problem") or "")
    running = _mapping(facts.get("services"))
    applied = applied_of(facts)
    if problem:
        names = sorted({*wanted, *_mapping(applied.get("services"))})
        return [_change(name, UNKNOWN, [problem]) for name in names]
    moved = _moved_runtime(plan, applied)
    known = _mapping(applied.get("services"))
    changes = []
    for name, service in wanted.items():
        if moved and name in known:
            reasons = [moved, *_reasons(plan, service, _mapping(known[name]), facts, models)]
            changes.append(_change(name, RESTART, reasons))
        elif name not in running:
            changes.append(_change(name, START, ["it is not there yet"]))
        elif name not in known:
            changes.append(_change(name, UNKNOWN, ["what it was started with is not known"]))
        else:
            changes.append(_installed(plan, service, running[name], facts, models, user))
    leaving = {*running, *(known if moved else ())} - set(wanted)
    changes += [_change(name, STOP, ["it is not in vllm_services"]) for name in sorted(leaving)]
    return changes


def applied_of(facts: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    """What runs: the plan that was applied last, or the record where that is the same."""
    applied = _mapping(facts.get("deployed"))
    record = _mapping(facts.get("record"))
    if not applied and record.get("digest") and record.get("digest") == facts.get("plan_digest"):
        return record
    return applied


def counts(changes: t.Iterable[Change]) -> dict[str, int]:
    found = dict.fromkeys(CHANGES, 0)
    for change in changes:
        found[change["change"]] += 1
    return found


def _change(name: str, change: str, reasons: t.Sequence[str] = ()) -> Change:
    return {"service": name, "change": change, "reasons": list(reasons)}


def _moved_runtime(plan: Plan, applied: t.Mapping[str, t.Any]) -> str:
    before, after = applied.get("runtime"), plan.get("runtime")
    return f"process manager {before} -> {after}" if before and after and before != after else ""


def _installed(
    plan: Plan,
    service: Service,
    state: t.Any,
    facts: t.Mapping[str, t.Any],
    models: t.Mapping[str, t.Any] | None,
    user: str,
) -> Change:
    """A service that is installed: the same as ``Stack._action``, as far as a plan can know."""
    name, applied = str(service["name"]), applied_of(facts)
    before = _mapping(_mapping(applied.get("services"))[name])
    reasons = [*_reasons(plan, service, before, facts, models), *_digest_reasons(service, applied, facts)]
    # A plan with errors may lack the containers that a digest covers, and nothing of it is applied anyway.
    if not reasons and not plan.get("errors"):
        digest = _mapping(applied.get("installed")).get(name) or before.get("digest")
        if digest and digest != expected_digest(plan, service, applied, user):
            reasons = [VALUE_CHANGED if before.get("environment") else "its definition"]
    if reasons:
        return _change(name, RESTART, reasons)
    said = _mapping(state)
    if said.get("state") in ALIVE:
        return _change(name, KEEP)
    detail = f": {said['detail']}" if said.get("detail") and said.get("detail") != said.get("state") else ""
    return _change(name, START, [f"it is {said.get('state') or 'not running'}{detail}"])


def expected_digest(plan: Plan, service: Service, applied: t.Mapping[str, t.Any], user: str) -> str:
    """The digest that ``vllm_stack`` will compute if artifact, engine and image stay what they are on the host."""
    options = Options(
        root=str(plan.get("root") or ""),
        runtime=str(plan.get("runtime") or ""),
        services=[service],
        artifacts=_mappings(applied.get("artifacts")),
        engine={**_mapping(plan.get("engine")), "digest": _mapping(applied.get("engine")).get("digest")},
        images=_mappings(applied.get("images")),
        user=user,
        group=user,
    )
    return desired_services(options)[0].digest


def _artifact(applied: t.Mapping[str, t.Any], path: str) -> t.Mapping[str, t.Any]:
    return next((one for one in _mappings(applied.get("artifacts")) if one.get("path") == path), {})


# --- the reasons -----------------------------------------------------------------------------------------------------


def _reasons(
    plan: Plan, service: Service, before: Service, facts: t.Mapping[str, t.Any], models: t.Mapping[str, t.Any] | None
) -> list[str]:
    """Part by part, the most telling first. A part that is not known on the host is no reason."""
    applied = applied_of(facts)
    return [
        *_gpu_reasons(service, before, facts),
        *_artifact_reasons(service, before, applied, models),
        *_engine_reasons(plan, service, before, applied),
        *_plain_reasons(service, before),
        *_flag_reasons(service, before),
        *_name_reasons("environment", sorted(service.get("environment") or {}), before.get("environment")),
        *_name_reasons("secrets", service.get("secrets") or [], before.get("secrets")),
        *_container_reasons(service, before),
    ]


def _gpu_reasons(service: Service, before: Service, facts: t.Mapping[str, t.Any]) -> list[str]:
    """By UUID, which is all that is kept of a card; shown by today's index."""
    if not isinstance(before.get("gpus"), list):
        return []
    old = [str(card.get("uuid")) for card in _mappings(before["gpus"])]
    new = [str(card.get("uuid")) for card in _mappings(service.get("gpus"))]
    if old == new:
        return []
    indices = {str(card.get("uuid")): str(card.get("index")) for card in _mappings(facts.get("gpus"))}
    gone = [_short(uuid) for uuid in old if uuid not in indices]
    reasons = [f"GPUs {_cards(old, indices)} -> {_cards(new, indices)}"]
    return reasons + ([f"not on this host any more: {', '.join(gone)}"] if gone else [])


def _cards(uuids: t.Sequence[str], indices: t.Mapping[str, str]) -> str:
    return ",".join(indices.get(uuid) or _short(uuid) for uuid in uuids) or "none"


def _short(identifier: t.Any) -> str:
    """The beginning of a digest, commit or UUID: enough to tell two apart."""
    text = str(identifier or "unknown")
    prefix, _colon, digest = text.rpartition(":")
    return f"{prefix}:{digest[:12]}" if prefix else text[:12]


def _artifact_reasons(
    service: Service, before: Service, applied: t.Mapping[str, t.Any], models: t.Mapping[str, t.Any] | None
) -> list[str]:
    reasons = [
        f"{key} {before[key]} -> {service[key]}"
        for key in ("model", "path", "revision")
        if before.get(key) is not None and before[key] != service.get(key)
    ]
    if reasons:
        return reasons
    known = _mapping(_mapping(models).get(f"{service.get('model')}@{service.get('revision')}"))
    old, new = _artifact(applied, str(service["path"])).get("commit"), known.get("commit")
    if old and new and old != new:
        return [f"revision {service['revision']} moved ({_short(old)} -> {_short(new)})"]
    return []


def _engine_reasons(plan: Plan, service: Service, before: Service, applied: t.Mapping[str, t.Any]) -> list[str]:
    if service.get("image") or before.get("image"):
        if before.get("image") != service.get("image"):
            return [f"image {before.get('image') or 'none'} -> {service.get('image') or 'none'}"]
        return []
    old, new = _mapping(applied.get("engine")), _mapping(plan.get("engine"))
    if old.get("version") and new.get("version") and old["version"] != new["version"]:
        return [f"vLLM {old['version']} -> {new['version']}"]
    if old.get("path") and old["path"] != new.get("path"):
        return [f"engine {old['path']} -> {new.get('path')}"]
    return []


def _digest_reasons(service: Service, applied: t.Mapping[str, t.Any], facts: t.Mapping[str, t.Any]) -> list[str]:
    """The same tag, and another image behind it on the host."""
    wanted = str(service.get("image") or "")
    container = _mapping(_mapping(facts.get("nvidia")).get("container"))
    known = _mapping(_mapping(container.get("images")).get(wanted)).get("digests")
    used = next((one.get("pinned") for one in _mappings(applied.get("images")) if one.get("image") == wanted), None)
    old = str(used or "").partition("@")[2]
    new = [str(one).partition("@")[2] for one in known] if isinstance(known, list) else []
    return [f"image {wanted}: {_short(old)} -> {_short(new[0])}"] if old and new and old not in new else []


def _plain_reasons(service: Service, before: Service) -> list[str]:
    return [
        f"{label} {before.get(key) or 'all'} -> {service.get(key) or 'all'}"
        for key, label in (("port", "port"), ("bind_address", "address"))
        if before.get(key) is not None and before[key] != service.get(key)
    ]


def flags_of(arguments: t.Any) -> dict[str, str]:
    """The words after the model by flag; a flag without a value is there with none."""
    flags: dict[str, str] = {}
    current = ""
    for word in arguments if isinstance(arguments, (list, tuple)) else ():
        text = str(word)
        if text.startswith("--"):
            current = text
            flags[current] = ""
        elif current:
            flags[current] = f"{flags[current]} {text}".strip()
    return flags


# Told by the port and the address of the service, which mean the same whatever runs it.
TOLD_ELSEWHERE = ("--port", "--host")


def _flag_reasons(service: Service, before: Service) -> list[str]:
    if not isinstance(before.get("arguments"), list):
        return []
    old, new = flags_of(before["arguments"]), flags_of(service.get("arguments"))
    reasons = []
    for flag in [*new, *(flag for flag in old if flag not in new)]:
        if flag in TOLD_ELSEWHERE or old.get(flag) == new.get(flag):
            continue
        if flag not in old:
            reasons.append(f"{flag} {_value(new[flag])}".rstrip() + " is new")
        elif flag not in new:
            reasons.append(f"{flag} goes" + (f" (was {_value(old[flag])})" if old[flag] else ""))
        else:
            reasons.append(f"{flag} {_value(old[flag]) or 'set'} -> {_value(new[flag]) or 'set'}")
    return reasons


def _value(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _name_reasons(label: str, new: t.Sequence[str], old: t.Any) -> list[str]:
    """Names that came and went; their values are never shown."""
    if not isinstance(old, (list, tuple)):
        return []
    signs = [f"+{name}" for name in new if name not in old] + [f"-{name}" for name in old if name not in new]
    return [f"{label} {' '.join(signs)}"] if signs else []


def _container_reasons(service: Service, before: Service) -> list[str]:
    old = before.get("container")
    if not isinstance(old, t.Mapping) or not isinstance(service.get("container"), t.Mapping):
        return []
    new = container_choices(service["container"])
    # The time to stop is told by the flag that asks the engine to drain.
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name) and name != "stop_grace_period"]
    return [f"container: {name} {_value(str(old.get(name)))} -> {_value(str(new.get(name)))}" for name in names]


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}


def _mappings(value: t.Any) -> list[t.Mapping[str, t.Any]]:
    return [item for item in value if isinstance(item, t.Mapping)] if isinstance(value, (list, tuple)) else []
