# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host on which a plan was applied, as its facts tell it: for tests of what the next plan would change there."""

from __future__ import annotations

import json
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._host_deployed import deployed_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack_apply import Options, desired_services, plan_document
from plan_case import facts

RUNNING = {"state": "running", "pid": 4711, "restarts": 0, "since": 1.0, "detail": "running"}
COMMIT = "2e50b77b0eee3083842019e257b74854323d880a"
IMAGE = "vllm/vllm-openai:v0.33.0"


def deploy(planned: dict[str, t.Any], on: t.Any = None, user: str = "vllm", **state: t.Any) -> dict[str, t.Any]:
    """The facts of a host on which this plan was applied."""
    paths = sorted({entry["path"] for entry in planned["services"]})
    options = Options(
        root="/var/lib/gpufleet-vllm",
        runtime=planned["runtime"],
        services=planned["services"],
        artifacts=[{"path": path, "commit": COMMIT, "manifest_digest": "m", "published": "p"} for path in paths],
        engine={**planned["engine"], "digest": "e"},
        images=[{"image": IMAGE, "pinned": f"{IMAGE}@sha256:{'a' * 64}", "id": "sha256:i"}],
        user=user,
        group=user,
    )
    desired = desired_services(options)
    document = json.loads(json.dumps(plan_document(options, desired)))
    return {
        **(facts() if on is None else on),
        "services": {entry["name"]: {**RUNNING, **state} for entry in planned["services"]},
        "plan_digest": document["digest"],
        "deployed": deployed_plan(document, {item.name: item.digest for item in desired}),
    }
