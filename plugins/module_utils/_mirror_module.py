# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From module options to a mirror and back to module results: vllm_mirror_model and vllm_mirror_prune."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import _mirror, _mirror_prune, _mirror_publish
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import DEFAULT_REVISION
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror_home import described, opened

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_COMMON: dict[str, Any] = {
    "root": {"type": "path", "required": True},
    "lock_timeout": {"type": "float", "default": 60.0},
}


def model_argument_spec() -> dict[str, Any]:
    """The argument spec of vllm_mirror_model."""
    return {
        **_COMMON,
        "model": {"type": "str", "required": True},
        "revision": {"type": "str"},
        "commit": {"type": "str"},
        "path": {"type": "path"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }


def prune_argument_spec() -> dict[str, Any]:
    """The argument spec of vllm_mirror_prune."""
    item = {
        "model": {"type": "str", "required": True},
        "revision": {"type": "str", "default": DEFAULT_REVISION},
        "commit": {"type": "str"},
        "path": {"type": "path"},
    }
    return {
        **_COMMON,
        "keep": {"type": "list", "elements": "dict", "required": True, "options": item},
        "work": {"type": "path"},
    }


def run_model(module: AnsibleModule) -> dict[str, Any]:
    """Do what the options of vllm_mirror_model say. Raises FleetError."""
    params: dict[str, Any] = module.params
    _mirror.check_model(params["model"])
    if params["revision"] is not None:
        _mirror.check_revision(params["revision"])
    if params["state"] == "absent":
        removal = _mirror_prune.absent(
            params["root"], params["model"], params["revision"], params["lock_timeout"], module.check_mode
        )
        return _removed(module, removal)
    return _present(module)


def run_prune(module: AnsibleModule) -> dict[str, Any]:
    """Do what the options of vllm_mirror_prune say. Raises FleetError."""
    params: dict[str, Any] = module.params
    keep = [_mirror_prune.as_kept(item) for item in params["keep"]]
    work = None
    if params["work"]:
        work = _mirror_prune.Work(params["work"], [item["path"] for item in params["keep"] if item["path"]])
    removal = _mirror_prune.prune(params["root"], keep, work, params["lock_timeout"], module.check_mode)
    result = {**_removed(module, removal), "artifacts_removed": removal.artifacts}
    return {**result, "left": removal.left, "warnings": [f"Not removed: {text}" for text in removal.left]}


def _present(module: AnsibleModule) -> dict[str, Any]:
    params: dict[str, Any] = module.params
    with _mirror_publish.artifact(params["path"]) as source:
        commit = None if source is None else source.manifest.commit
        expected = params["commit"]
        if source is None or (expected is not None and commit != expected):
            if module.check_mode and expected is not None:
                return _predicted(module)
            raise FleetError(
                "mirror.no_artifact",
                f"{params['path']} holds " + ("no artifact" if source is None else f"commit {commit}"),
                f"an artifact of {params['model']}" + ("" if expected is None else f" at commit {expected}"),
                "Fetch it with gpufleet.vllm.modelscope_model first",
            )
        if source.manifest.model != params["model"]:
            raise FleetError(
                "mirror.other_model",
                f"{params['path']} holds {source.manifest.model}",
                f"an artifact of {params['model']}",
                "Correct path or model",
            )
        outcome = _mirror_publish.publish(
            params["root"], source, params["revision"], params["lock_timeout"], module.check_mode
        )
    return {
        "changed": outcome.changed,
        "commit": outcome.commit,
        "files": len(outcome.entries),
        "bytes_total": sum(entry.size for entry in outcome.entries),
        "bytes_copied": outcome.bytes_copied,
        "repaired": outcome.repaired,
        **_diff(module, outcome.before, outcome.after),
    }


def _predicted(module: AnsibleModule) -> dict[str, Any]:
    """The answer of check mode where the artifact itself would be fetched by a task before this one."""
    params: dict[str, Any] = module.params
    model, commit = params["model"], params["commit"]
    name = params["revision"] or commit
    with opened(params["root"], model) as home:
        refs = dict(home.refs) if home is not None else {}
        commits: dict[str, Any] = dict(home.listed()) if home is not None else {}
    before = described(refs, commits)
    if not _mirror.is_commit(name):
        refs[name] = _mirror.Ref(name, commit)
    lines = described(refs, commits) + ("" if commit in commits else f"{commit}: to be fetched\n")
    return {
        "changed": before != lines,
        "commit": commit,
        "files": None,
        "bytes_total": None,
        "bytes_copied": None,
        "repaired": [],
        **_diff(module, before, lines),
    }


def _removed(module: AnsibleModule, removal: _mirror_prune.Removal) -> dict[str, Any]:
    return {
        "changed": removal.changed,
        "models_removed": removal.models,
        "revisions_removed": removal.refs,
        "commits_removed": removal.commits,
        "bytes_freed": removal.bytes_freed,
        **_diff(module, removal.before, removal.after),
    }


def _diff(module: AnsibleModule, before: str, after: str) -> dict[str, Any]:
    if not module._diff:
        return {}
    header = os.path.join(module.params["root"], _mirror.MODELS, module.params.get("model") or "")
    return {"diff": {"before_header": header, "after_header": header, "before": before, "after": after}}
