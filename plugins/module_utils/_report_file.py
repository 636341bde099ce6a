# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The JSON file of a report on the controller."""

from __future__ import annotations

import json
import os
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import write_file


def written(
    wanted: str, document: t.Mapping[str, t.Any], kind: str, what: str = "report", mode: int = 0o644
) -> dict[str, t.Any]:
    """Write ``document`` to ``wanted``, which the variable ``vllm_<kind>_path`` names.

    Nothing, or where that failed what the action's result gets: ``<kind>.not_written``.
    """
    path = os.path.abspath(wanted)
    try:
        write_file(path, json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", mode)
    except OSError as exc:
        error = FleetError(
            f"{kind}.not_written",
            f"the {what} could not be written to {path}: {exc.strerror}",
            "a file that the controller's user may write, in a directory that is there",
            f"mkdir -p {os.path.dirname(path)}, set vllm_{kind}_path to another file, or leave it empty",
        )
        return {"failed": True, "msg": str(error), **error.as_result()}
    return {}
