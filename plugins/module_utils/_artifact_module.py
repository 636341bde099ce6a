# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From module options to an artifact and back to module results: modelscope_model and modelscope_model_info."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import check_model, check_revision, parse_endpoint
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import hub_argument_spec, hub_client
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import CONNECTIONS, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible.module_utils.basic import AnsibleModule

_FOREIGN_SHOWN = 100
_UNITS = {"": 1, "b": 1}
_UNITS.update({f"{prefix}b": 1000**power for power, prefix in enumerate("kmg", 1)})
_UNITS.update({f"{prefix}ib": 1024**power for power, prefix in enumerate("kmg", 1)})
_UNITS.update({f"{prefix}bit": 1000**power // 8 for power, prefix in enumerate("kmg", 1)})
_AMOUNT = re.compile(rf"([0-9]+(?:\.[0-9]+)?)\s*({'|'.join(sorted(_UNITS, key=len, reverse=True))})", re.IGNORECASE)


def transfer_argument_spec() -> dict[str, Any]:
    """How a model is brought to a host: the options of the fragment ``_transfer``."""
    return {
        "connections": {"type": "int", "default": CONNECTIONS},
        "bandwidth": {"type": "str", "default": ""},
        "retries": {"type": "int", "default": 8},
        "allow_pickle": {"type": "bool", "default": False},
        "engine": {"type": "str", "choices": ["native", "modelscope"], "default": "native"},
        "client": {"type": "str", "default": "modelscope"},
    }


def argument_spec() -> dict[str, Any]:
    """The argument spec of modelscope_model."""
    return {
        **hub_argument_spec(),
        "path": {"type": "path", "aliases": ["local_dir"]},
        "state": {"type": "str", "choices": ["present", "absent", "verified"], "default": "present"},
        **transfer_argument_spec(),
        "lock_timeout": {"type": "float", "default": 60.0},
    }


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what the options of modelscope_model say. Raises FleetError."""
    params: dict[str, Any] = module.params
    request = _request(params, module.check_mode)
    if params["state"] == "absent":
        outcome = _artifact.absent(request)
    else:
        outcome = _artifact.present(request, hub_client(params), verify=params["state"] == "verified")
    result = as_result(outcome)
    if module._diff:
        result["diff"] = as_diff(outcome, request.model)
    return result


def as_result(outcome: _artifact.Outcome) -> dict[str, Any]:
    """What modelscope_model returns about an artifact, the warnings included."""
    return {
        "changed": outcome.changed,
        "commit": outcome.commit,
        "path": outcome.path,
        "bytes_fetched": outcome.bytes_fetched,
        "adopted": outcome.adopted,
        "published": outcome.published,
        "foreign": list(outcome.foreign[:_FOREIGN_SHOWN]),
        "left_out": list(outcome.left_out),
        "warnings": outcome.warnings,
        **_described(outcome.entries),
    }


def as_diff(outcome: _artifact.Outcome, model: str) -> dict[str, Any]:
    """Before and after, as Ansible shows them."""
    header = f"{outcome.path} ({model})"
    return {
        "before_header": header,
        "after_header": header,
        "before": outcome.before,
        "after": outcome.after,
    }


def run_info(module: AnsibleModule) -> dict[str, Any]:
    """Do what the options of modelscope_model_info say. Raises FleetError."""
    params: dict[str, Any] = module.params
    client = hub_client(params)
    resolution = client.resolve(params["model"], params["revision"])
    rows = client.list_rows(params["model"], resolution)
    entries = _manifest.entries_from_rows(rows, params["include"], params["exclude"])
    warnings = list(resolution.warnings)
    return {"changed": False, "commit": resolution.commit, "warnings": warnings, **_described(entries)}


def _request(params: dict[str, Any], check_mode: bool) -> _artifact.Request:
    model, revision = check_model(params["model"]), check_revision(params["revision"])
    return request_of(params, model, revision, params["path"] or _artifact.default_path(model, revision), check_mode)


def request_of(params: dict[str, Any], model: str, revision: str, path: str, check_mode: bool) -> _artifact.Request:
    """The request that the options describe, for one model. Raises FleetError for options that cannot be."""
    if params["connections"] < 1 or params["lock_timeout"] < 0 or params["retries"] < 0:
        raise FleetError(
            "artifact.bad_option",
            f"connections is {params['connections']}, retries {params['retries']} and lock_timeout "
            f"{params['lock_timeout']}",
            "at least one connection, and retries and a lock_timeout (seconds) of 0 or more",
            "Correct the options",
        )
    return _artifact.Request(
        model=model,
        revision=revision,
        path=path,
        endpoint=parse_endpoint(params["endpoint"]).url,
        include=tuple(params["include"]),
        exclude=tuple(params["exclude"]),
        connections=params["connections"],
        bandwidth=parse_bandwidth(params["bandwidth"]),
        allow_pickle=params["allow_pickle"],
        engine=params["engine"],
        client=params["client"],
        lock_timeout=params["lock_timeout"],
        check_mode=check_mode,
        policy=RetryPolicy(attempts=params["retries"] + 1),
    )


def parse_bandwidth(text: str) -> int:
    """Bytes per second of ``200MB``, ``1.5 GiB``, ``800Mbit`` or a number; 0 for an empty text. Raises FleetError."""
    if not text.strip():
        return 0
    match = _AMOUNT.fullmatch(text.strip())
    rate = int(float(match.group(1)) * _UNITS[match.group(2).lower()]) if match is not None else 0
    if rate < 1024:
        raise FleetError(
            "artifact.bad_bandwidth",
            f"bandwidth is {text!a}",
            "bytes per second such as 200MB, 1.5GiB or 800Mbit, at least 1 KiB; empty for no limit",
            "Correct bandwidth",
        )
    return rate


def _described(entries: Sequence[_manifest.Entry]) -> dict[str, Any]:
    return {
        "bytes_total": sum(entry.size for entry in entries),
        "files": [entry.as_dict() for entry in entries],
        "manifest_digest": _manifest.digest_of(entries),
    }
