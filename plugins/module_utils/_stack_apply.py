# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From module options to a stack that matches them: what ``vllm_stack`` and ``vllm_record`` do."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import (
    absolute_root,
    make_backend,
    previous_runtime,
    resolve_runtime,
    service_owner,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import (
    STARTED,
    UNCHANGED,
    Backend,
    Change,
    Desired,
    Layout,
    Stack,
    exclusive,
    make_directory,
    read_json,
    read_text,
    service_digest,
    write_file,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._turns import in_turn
from ansible_collections.gpufleet.vllm.plugins.module_utils._usage import note_replaced

# A stop waits for the longest drain among what it stops, and for this much more.
STOP_SLACK_SECONDS = 15


@dataclass(frozen=True)
class Options:
    """The options of the module ``vllm_stack``."""

    root: str
    runtime: str
    services: t.Sequence[t.Mapping[str, t.Any]] = ()
    secrets: t.Mapping[str, t.Mapping[str, str]] = field(default_factory=dict)
    artifacts: t.Sequence[t.Mapping[str, t.Any]] = ()
    engine: t.Mapping[str, t.Any] = field(default_factory=dict)
    images: t.Sequence[t.Mapping[str, t.Any]] = ()
    user: str = "vllm"
    group: str = "vllm"
    allow_daemon_reload: bool = False
    requirements: str = ""
    pip_args: t.Sequence[str] = ()


def desired_services(options: Options) -> list[Desired]:
    """Each service with the digest of what it needs a restart for, its artifact's commit and its engine included."""
    artifacts = {str(artifact["path"]): artifact for artifact in options.artifacts}
    images = {str(image["image"]): image for image in options.images}
    result = []
    for service in options.services:
        service = in_turn(pinned(service, images), options.root.rstrip("/"))
        artifact = artifacts.get(str(service["path"]), {})
        extra = {
            "artifact": [artifact.get("manifest_digest") or artifact.get("commit"), artifact.get("published")],
            "engine": options.engine.get("digest") or options.engine.get("version"),
            "runtime": resolve_runtime(options.runtime),
        }
        if "container" not in service:
            extra["user"] = f"{options.user}:{options.group}"
        result.append(Desired(service, dict(options.secrets.get(service["name"], {})), service_digest(service, extra)))
    return result


def pinned(service: t.Mapping[str, t.Any], images: t.Mapping[str, t.Mapping[str, t.Any]]) -> t.Mapping[str, t.Any]:
    """A container's image by its digest, where the image is known; other services as they are."""
    container = service.get("container")
    if not container:
        return service
    image = images.get(str(container["image"]), {}).get("pinned") or container["image"]
    return {**service, "container": {**container, "image": image}}


def plan_document(options: Options, desired: t.Sequence[Desired]) -> dict[str, t.Any]:
    """What plan.json holds: the applied plan without secrets, and its digest."""
    plan = {
        "runtime": resolve_runtime(options.runtime),
        "engine": dict(options.engine),
        # Not what was done about them: a pull is no other plan.
        "images": [{key: image.get(key) for key in ("image", "pinned", "id")} for image in options.images],
        "artifacts": [dict(artifact) for artifact in options.artifacts],
        "services": [{**kept(item.service), "digest": item.digest} for item in desired],
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return {"digest": digest, **plan}


def kept(service: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A service as plan.json keeps it: a card is its UUID, and the index it has today may be another's tomorrow.

    Neither the sum of its memory, an estimate of the day, is part of what runs, nor what a person would type today.
    """
    service = {key: value for key, value in service.items() if key not in ("memory", "shell")}
    cards = [{key: value for key, value in card.items() if key != "index"} for card in service.get("gpus") or []]
    return {**service, "gpus": cards} if cards else service


def as_text(document: t.Mapping[str, t.Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def diff_of(changes: t.Sequence[Change]) -> list[dict[str, str]]:
    return [
        {
            "before_header": f"{change.name} (installed)",
            "after_header": f"{change.name} (planned)",
            "before": change.before,
            "after": change.after,
        }
        for change in changes
        if change.action not in (UNCHANGED, STARTED)
    ]


def present(options: Options, check_mode: bool) -> dict[str, t.Any]:
    """Bring the stack to the plan."""
    layout = Layout(absolute_root(options.root))
    backend = _backend(options.runtime, options, layout)
    previous = previous_backend(options, layout)
    desired = desired_services(options)
    plan = plan_document(options, desired)
    owner = None if check_mode else service_owner(options.runtime, options.user, options.group)
    stack = Stack(layout, backend, owner)
    changes = stack.changes(desired)
    moved = sorted(previous.installed()) if previous else []
    # A move that was ended half-way may have left nothing but a definition.
    handing_over = previous is not None and (bool(moved) or previous.pending([]))
    changed = handing_over or any(change.action != UNCHANGED for change in changes) or backend.pending(desired)
    if changed:
        backend.judge(desired)
    if previous and moved:
        previous.check(moved)
    backend.check([change.name for change in changes if change.action != UNCHANGED], moved)
    plan_changed = read_text(layout.plan) != as_text(plan)
    if not check_mode and (changed or plan_changed):
        make_directory(layout.root, 0o755)
        with exclusive(layout):
            changes = stack.changes(desired)
            if previous and handing_over:
                _remove_all(previous, moved, _stop_timeout(options, layout))
                previous.define([])
            if changed:
                stack.apply(desired, changes, _stop_timeout(options, layout))
            note_replaced(layout, read_json(layout.plan), plan)
            write_file(layout.plan, as_text(plan), 0o600)
    return {
        "changed": changed or plan_changed,
        "services": [change.as_dict() for change in changes],
        "plan_digest": plan["digest"],
        "runtime": resolve_runtime(options.runtime),
        "diff": diff_of(changes),
    }


def _backend(runtime: str, options: Options, layout: Layout) -> Backend:
    return make_backend(
        runtime,
        layout,
        user=options.user,
        group=options.group,
        allow_daemon_reload=options.allow_daemon_reload,
        requirements=options.requirements,
        pip_args=options.pip_args,
    )


def previous_backend(options: Options, layout: Layout) -> Backend | None:
    """The process manager of the last deploy, where it is not the one of now: what it runs has to move over."""
    applied = previous_runtime(layout, options.runtime)
    return _backend(applied, options, layout) if applied else None


def _stop_timeout(options: Options, layout: Layout) -> float:
    """From the old plan as well: what is stopped was started with its own drain time."""
    applied = (read_json(layout.plan) or {}).get("services")
    services = [*(applied if isinstance(applied, list) else []), *options.services]
    timeouts = [service.get("stop_timeout") for service in services if isinstance(service, dict)]
    return max([60, *(timeout for timeout in timeouts if isinstance(timeout, int))]) + STOP_SLACK_SECONDS


def absent(options: Options, check_mode: bool) -> dict[str, t.Any]:
    """Stop and remove every service of the root, and all state of ours in it; nothing else in it is touched."""
    layout = Layout(absolute_root(options.root))
    backend = _backend(options.runtime, options, layout)
    changes = Stack(layout, backend).changes([])
    previous = previous_backend(options, layout)
    moved = sorted(previous.installed()) if previous else []
    leftovers = [path for path in _state_paths(layout) if os.path.lexists(path)]
    changed = bool(changes or leftovers or moved)
    if previous and moved:
        previous.check(moved)
    backend.check([change.name for change in changes], moved)
    if changed and not check_mode:
        timeout = _stop_timeout(options, layout)
        # Units may be there without their root, which then is made for the lock alone.
        make_directory(layout.root, 0o755)
        with exclusive(layout):
            if previous:
                _remove_all(previous, moved, timeout)
            _remove_all(backend, [change.name for change in changes], timeout)
            for path in [*_state_paths(layout), layout.lock]:
                _remove(path)
        _remove_empty(layout.root)
    return {
        "changed": changed,
        "services": [change.as_dict() for change in changes],
        "plan_digest": None,
        "runtime": resolve_runtime(options.runtime),
        "diff": diff_of(changes),
    }


def _remove_all(backend: Backend, names: t.Sequence[str], timeout: float) -> None:
    if names:
        backend.stop(names, timeout)
        for name in names:
            backend.remove(name)
    backend.shutdown(timeout)


def _state_paths(layout: Layout) -> list[str]:
    names = ["compose.yaml", "images.json", "plan.json", "record.json", "artifacts.json"]
    names += ["services", "logs", "supervisor", "turns", "audio-image-files", "image-build.lock"]
    return [*(f"{layout.root}/{name}" for name in names), *glob.glob(f"{glob.escape(layout.root)}/.image-build-*")]


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _remove_empty(path: str) -> None:
    if os.path.isdir(path) and not os.listdir(path):
        os.rmdir(path)


def record(root: str, check_mode: bool) -> dict[str, t.Any]:
    """Make the applied plan the record: what the host is known to have run successfully."""
    layout = Layout(absolute_root(root))
    plan = read_json(layout.plan)
    if plan is None and os.path.lexists(layout.plan):
        raise FleetError(
            "stack.plan_unreadable",
            f"{layout.plan} can not be read as a plan",
            "the plan that the last deploy applied",
            "run as root or as its owner; if it is damaged, deploy again, which writes it anew",
        )
    before = read_json(layout.record) or {}
    digest = plan.get("digest") if plan else None
    changed = plan is not None and before.get("digest") != digest
    if changed and plan and not check_mode:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        note_replaced(layout, before, plan)
        write_file(layout.record, as_text({**plan, "recorded_at": stamp}), 0o600)
    return {
        "changed": changed,
        "digest": digest,
        "diff": {"before": f"record {before.get('digest')}\n", "after": f"record {digest}\n"},
    }
