# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""All facts of one host in one call."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _host, _host_deployed, _host_models, _nvidia_probe
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_facts import HostFacts
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_record import applied_facts, record_facts
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import (
    absolute_root,
    make_backend,
    previous_runtime,
    resolve_runtime,
    user_exists,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Backend, Layout, Status, read_json


def gather(
    root: str,
    runtime: str,
    ports: t.Sequence[int],
    paths: t.Sequence[str],
    user: str,
    images: t.Sequence[str] = (),
    hub_endpoint: str | None = None,
    hub_token: str | None = None,
    models: t.Sequence[t.Any] = (),
    model_root: str | None = None,
) -> dict[str, t.Any]:
    """What the module ``vllm_host_info`` returns."""
    layout = Layout(absolute_root(root))
    wanted = _host_models.wanted_models(models, model_root or "")
    more = HostFacts(resolve_runtime(runtime), paths, hub_endpoint or "", hub_token or "", wanted)
    backend = make_backend(runtime, layout, user=user)
    services, published, problem = _running(backend)
    pids = {name: status.pid for name, status in services.items() if status.pid}
    before = previous_runtime(layout, runtime)
    if before:
        # What another process manager runs for us moves over, so its ports are ours.
        leaving, ports_left, _ignored = _running(make_backend(before, layout, user=user))
        pids = {**{name: status.pid for name, status in leaving.items() if status.pid}, **pids}
        published = {**ports_left, **published}
    listening = _host.listeners(set(ports), pids, published)
    if any(entry["process"] in _host.PUBLISHERS and not entry["service"] for entry in listening):
        # A deploy whose controller was killed may still start or stop containers here: what was not there a moment ago,
        # or is not any more, was ours as well.
        listening = _host.listeners(set(ports), pids, {**published, **_running(backend)[1]})
    applied = read_json(layout.plan) or {}
    nvidia = _nvidia_probe.gather(images=images)
    facts = {
        **_host.system(),
        "runtime": resolve_runtime(runtime),
        "listening": listening,
        "services": {name: status.as_dict() for name, status in services.items()},
        "services_problem": problem,
        "user_exists": user_exists(user),
        "plan_digest": applied.get("digest"),
        "deployed": _host_deployed.deployed_plan(applied, {} if problem else _installed(backend)),
        "applied": applied_facts(applied),
        "record": record_facts(read_json(layout.record)),
        "gpus": nvidia.pop("gpus"),
        "gpu_reason": str(nvidia.get("reason") or ""),
        "nvidia": nvidia,
    }
    return more.complete(facts, pids, str(layout.root))


def _running(backend: Backend) -> tuple[dict[str, Status], dict[int, str], str]:
    """The services, their published ports, and why they can not be told; the plan says what that means."""
    try:
        return backend.status(sorted(backend.installed())), backend.published(), ""
    except FleetError as exc:
        return {}, {}, str(exc)


def _installed(backend: Backend) -> dict[str, str]:
    try:
        return backend.installed()
    except FleetError:
        return {}
