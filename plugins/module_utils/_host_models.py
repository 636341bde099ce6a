# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What decides the memory of the models of a host, as facts of it: from what is there, else from the hub."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import (
    HubClient,
    check_model,
    check_revision,
    parse_endpoint,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_files import artifact_files
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_info import describe, empty_entry, placed_entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RetryPolicy

HUB_SECONDS = 5.0
"""For one request: a deploy that cannot reach the hub shall say so soon."""

Wanted = t.Mapping[str, t.Any]


def wanted_models(models: t.Iterable[t.Any], model_root: str) -> dict[str, dict[str, t.Any]]:
    """The models to look at, by ``OWNER/NAME@REVISION``; what no model can be called is left for the plan to refuse."""
    wanted: dict[str, dict[str, t.Any]] = {}
    for item in models:
        if not isinstance(item, t.Mapping):
            continue
        model, revision = str(item.get("model") or ""), str(item.get("revision") or "master")
        try:
            name = f"{check_model(model)}@{check_revision(revision)}"
        except FleetError:
            continue
        path = item.get("path") or (os.path.join(model_root, model.split("/")[1]) if model_root else None)
        patterns = {key: _patterns(item.get(key)) for key in ("include", "exclude")}
        wanted.setdefault(name, {"model": model, "revision": revision, "path": path, **patterns})
    return wanted


def _patterns(value: t.Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


def describe_model(item: Wanted, endpoint: str, token: str) -> dict[str, t.Any]:
    """One model; the hub is asked only where there is an ``endpoint`` and the artifact is not on the host."""
    if not endpoint:
        files = artifact_files(item["path"], item["model"], item["revision"]) if item["path"] else None
        if files is None:
            return {**empty_entry(), "path": item["path"], "error": _not_here(item)}
        return placed_entry(files, item["path"])
    try:
        parsed = parse_endpoint(endpoint)
    except FleetError as exc:
        return {**empty_entry(), "error": exc.as_result()}
    client = HubClient(parsed, token or None, HUB_SECONDS, RetryPolicy(attempts=2, longest_wait=2.0))
    return describe(client, item)


def _not_here(item: Wanted) -> dict[str, t.Any]:
    return FleetError(
        "model.not_here",
        f"{item['path'] or item['model']} does not hold {item['model']} at {item['revision']}, and no hub was asked",
        "the model on the host, or a hub",
        "deploy it first, or run playbooks/plan.yml, which asks the hub",
    ).as_result()
