# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""One slice of probing on a host: the state of the processes, their readiness, and then the questions.

The action plugin ``vllm_probe`` strings slices together, so that a long wait shows its progress on the controller and
survives a connection that is cut between two of them.
"""

from __future__ import annotations

import re
import typing as t
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.gpufleet.vllm.plugins.module_utils import _boot_log
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._probe import Endpoint, interrogate, wait_for_health
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import RUNTIMES, absolute_root, make_backend
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import PROBE_KINDS
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_maps import API_KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Backend, Layout, Status

NO_RUNTIME = "none"


def argument_spec() -> dict[str, t.Any]:
    """The options of the module ``vllm_probe``."""
    return {
        "endpoints": {"type": "list", "elements": "dict", "required": True},
        "secrets": {"type": "dict", "default": {}, "no_log": True},
        "root": {"type": "path", "default": "/var/lib/gpufleet-vllm"},
        "runtime": {"type": "str", "choices": [*RUNTIMES, NO_RUNTIME], "default": "auto"},
        "timeout": {"type": "int", "default": 1800},
        "request_timeout": {"type": "int", "default": 120},
        "max_restarts": {"type": "int", "default": 1},
        "log_lines": {"type": "int", "default": 25},
        "slice": {"type": "int", "default": 5},
        "phase": {"type": "str", "choices": ["wait", "ask"], "default": "ask"},
    }


def _refuse(index: int, seen: str, expected: str) -> t.NoReturn:
    raise FleetError("probe.bad_endpoint", f"endpoints[{index}] {seen}", expected, "correct it, then run again")


def _check_endpoint(index: int, entry: t.Mapping[str, t.Any]) -> None:
    for key in ("name", "url", "served_model_name"):
        if not entry.get(key):
            _refuse(index, f"has no {key}", "name, url and served_model_name")
    try:
        parts = urllib.parse.urlsplit(str(entry["url"]))
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        _refuse(index, f"has the url {entry['url']}", "a url like http://127.0.0.1:8000")
    probes = entry.get("probes")
    if probes is not None and not (isinstance(probes, list) and all(isinstance(probe, dict) for probe in probes)):
        _refuse(index, "has probes that are no list of mappings", "a list of mappings with kind")
    for probe in probes or []:
        if probe.get("kind") not in PROBE_KINDS:
            _refuse(index, f"has a probe of the kind {probe.get('kind')}", f"one of {', '.join(PROBE_KINDS)}")
        try:
            re.compile(str(probe.get("expect") or ""))
            int(probe.get("max_tokens") or 0)
        except (re.error, ValueError, TypeError) as exc:
            _refuse(index, f"has a {probe['kind']} probe with a bad value: {exc}", "expect: a regular expression")


def endpoints_of(options: t.Mapping[str, t.Any]) -> list[Endpoint]:
    """The endpoints, checked: a playbook may list its own."""
    for index, entry in enumerate(options["endpoints"]):
        _check_endpoint(index, entry)
    names = [str(entry["name"]) for entry in options["endpoints"]]
    for index, name in enumerate(names):
        if name in names[:index]:
            _refuse(index, f"is the second one named {name}", "a name of its own for each")
    return [
        Endpoint(
            name=str(entry["name"]),
            url=str(entry["url"]),
            served_model_name=str(entry["served_model_name"]),
            path=str(entry.get("path") or ""),
            probes=entry.get("probes"),
            api_key=str((options["secrets"].get(entry["name"]) or {}).get(API_KEY_VARIABLE, "")),
            request_timeout=float(options["request_timeout"]),
        )
        for entry in options["endpoints"]
    ]


def backend_of(options: t.Mapping[str, t.Any]) -> Backend | None:
    if options["runtime"] == NO_RUNTIME:
        return None
    return make_backend(options["runtime"], Layout(absolute_root(options["root"])))


def _statuses(backend: Backend | None, names: t.Sequence[str]) -> dict[str, Status]:
    return backend.status(names) if backend else {}


def wait_slice(options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Poll for at most ``slice`` seconds; what each service looks like at its end, with the tail of its log."""
    endpoints = endpoints_of(options)
    backend = backend_of(options)
    names = [endpoint.name for endpoint in endpoints]

    def alive() -> bool:
        statuses = _statuses(backend, names)
        return all(status.alive for status in statuses.values())

    seen = wait_for_health(endpoints, options["slice"], alive)
    statuses = _statuses(backend, names)
    services = {}
    for name in names:
        status = statuses.get(name)
        services[name] = {
            "ready": seen[name].ready,
            "seen": seen[name].seen,
            "log": [] if seen[name].ready or not backend else backend.tail(name, options["log_lines"]),
            "managed": backend is not None,
            **(status.as_dict() if status else {"state": None, "pid": None, "restarts": None}),
        }
    return {"ready": all(service["ready"] for service in services.values()), "services": services}


def ask(options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """All endpoints side by side; the tail of the log comes with those that did not answer right."""
    endpoints = endpoints_of(options)
    backend = backend_of(options)
    with ThreadPoolExecutor(max(1, len(endpoints))) as pool:
        reports = [report.as_dict() for report in pool.map(interrogate, endpoints)]
    reckoned = {entry["name"]: entry.get("memory") for entry in options["endpoints"]}
    for report in reports:
        report["log"] = [] if report["ok"] or not backend else backend.tail(report["name"], options["log_lines"])
        report["memory"] = _drift(backend, report["name"], reckoned.get(report["name"])) if report["ok"] else []
    return {"ok": all(report["ok"] for report in reports), "reports": reports}


def _drift(backend: Backend | None, name: str, memory: t.Any) -> list[dict[str, t.Any]]:
    """How far the plan's sum is from what the engine said when it started; nothing where its log tells no more."""
    if backend is None or not isinstance(memory, dict):
        return []
    boot = _boot_log.parse("\n".join(backend.tail(name, _boot_log.LINES)))
    return [drift.as_dict() for drift in _boot_log.compare(boot, memory)]
