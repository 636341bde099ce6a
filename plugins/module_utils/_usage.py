# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which model artifacts a host's plan and record name, and when one of them was last named.

A container reads its model over a read-only mount, which leaves no access time. So a deploy that stops naming an
artifact writes down when, in ``artifacts.json`` below the root: its age counts from then.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Layout, read_json, write_file

Document = t.Optional[t.Mapping[str, t.Any]]

_STAMP = "%Y-%m-%dT%H:%M:%SZ"


def artifact_paths(document: Document) -> set[str]:
    """The model directories that a plan or record names."""
    entries = [entry for key in ("artifacts", "services") for entry in _dicts((document or {}).get(key))]
    return {str(entry["path"]) for entry in entries if entry.get("path")}


def _dicts(value: t.Any) -> list[dict[str, t.Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def stamp(moment: float) -> str:
    """A moment as people and JSON write it, in UTC."""
    return time.strftime(_STAMP, time.gmtime(moment))


def note_replaced(layout: Layout, before: Document, after: Document) -> None:
    """Write down the artifacts that ``before`` names and ``after`` does not. Call it before ``after`` is in force."""
    left = artifact_paths(before) - artifact_paths(after)
    if not left:
        return
    known = {path: moment for path, moment in _load(layout).items() if os.path.lexists(path)}
    now = stamp(time.time())
    text = json.dumps({"left": {**known, **dict.fromkeys(left, now)}}, indent=2, sort_keys=True) + "\n"
    write_file(layout.artifacts, text, 0o600)


def last_named(layout: Layout) -> tuple[dict[str, float], float]:
    """When each artifact was last named, and the same for those that are not told (0.0, unless the file is damaged)."""
    found = {}
    for path, text in _load(layout).items():
        with contextlib.suppress(ValueError, TypeError):
            found[path] = float(_epoch(text))
    if found or read_json(layout.artifacts) is not None:
        return found, 0.0
    try:
        # What it said is lost, so any artifact may have been in use until then.
        return {}, os.stat(layout.artifacts).st_mtime
    except OSError:
        return {}, 0.0


def _load(layout: Layout) -> dict[str, str]:
    left = (read_json(layout.artifacts) or {}).get("left")
    return left if isinstance(left, dict) else {}


def _epoch(text: str) -> int:
    return calendar.timegm(time.strptime(text, _STAMP))
