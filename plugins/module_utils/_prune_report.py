# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What pruning a fleet came to, as text for a tired person. Pure, no I/O."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import told
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import (
    LOST,
    Part,
    cells,
    joined,
    printable,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import human_bytes

COLUMNS = ("host", "", "size", "frees", "last use", "model", "path")
MARKS = {"removed": "REMOVE", "kept": "keep"}
INDENT = "  "
WIDTH = 120
# Why a removal did not happen that the operator may have hoped for; the others are as they should be.
ASKS = ("failed", "unreadable", "interrupted")
BLANK: Part = ("", None)
Host = t.Mapping[str, t.Any]


def all_well(hosts: t.Mapping[str, Host]) -> bool:
    return not any(host.get("failure") or host.get("unreachable") for host in hosts.values())


def headline(hosts: t.Mapping[str, Host], done: bool) -> str:
    """One line: how much, from how many, and what went wrong."""
    every = [artifact for host in hosts.values() for artifact in host.get("artifacts") or []]
    gone = [artifact for artifact in every if artifact["action"] == "removed"]
    freed = human_bytes(sum(artifact["bytes_freed"] for artifact in gone))
    verb = "freed by removing" if done else "would be freed by removing"
    text = f"{freed} {verb} {len(gone)} of {len(every)}" if gone else f"nothing to remove, {len(every)} kept"
    lost = sorted(name for name, host in hosts.items() if host.get("unreachable"))
    failed = sorted(name for name, host in hosts.items() if host.get("failure") and name not in lost)
    text += f"; FAILED on {', '.join(failed)}" if failed else ""
    text += f"; UNREACHABLE: {', '.join(lost)}" if lost else ""
    return f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}: {text}"


def rows(hosts: t.Mapping[str, Host], done: bool) -> list[tuple[dict[str, str], str, str | None]]:
    """Each artifact's cells, why, and its colour; on each host what goes comes first, the largest on top."""
    found = []
    for name in sorted(hosts):
        artifacts = hosts[name].get("artifacts") or []
        for one in sorted(artifacts, key=lambda item: (item["action"] != "removed", -item["bytes"], item["path"])):
            gone = one["action"] == "removed"
            mark = "removed" if gone and done else MARKS[one["action"]]
            commit = str(one.get("commit") or one.get("revision") or "")[:12]
            row = {
                "host": name,
                "": mark,
                "size": human_bytes(one["bytes"]),
                "frees": human_bytes(one["bytes_freed"]) if gone else "-",
                "last use": str(one.get("last_use") or "-")[:10],
                "model": f"{one['model']} @ {commit}" if one.get("model") else one["kind"],
                "path": one["path"],
            }
            colour = "yellow" if gone else "red" if one["reason"] in ASKS else None
            foreign = len(one.get("foreign") or [])
            why = str(one["why"])
            why += f"; {foreign} of its files are not of the model, and stay" if gone and foreign else ""
            found.append(({key: printable(text) for key, text in row.items()}, printable(why), colour))
    return found


def as_parts(title: str, hosts: t.Mapping[str, Host], done: bool, following: t.Mapping[str, str]) -> list[Part]:
    """The whole, in pieces of one colour. ``done``: it was not only looked at."""
    parts: list[Part] = [(f"{title}: {headline(hosts, done)}", "green" if all_well(hosts) else "red"), BLANK]
    every = rows(hosts, done)
    if every:
        heads = {column: column for column in COLUMNS}
        widths = {column: max(cells(row[column]) for row in [heads, *(item[0] for item in every)]) for column in heads}
        parts.append((joined(heads, widths), None))
        indent = " " * (widths["host"] + 2)
        for row, why, colour in every:
            parts.append((f"{joined(row, widths)}\n{indent}{why}", colour))
        parts.append(BLANK)
    for name in sorted(hosts):
        failure = hosts[name].get("failure") or (LOST if hosts[name].get("unreachable") else "")
        if failure:
            text = "\n".join(INDENT + printable(line) for line in told(str(failure), WIDTH - len(INDENT)))
            parts += [(f"{name}:\n{text}", "red"), BLANK]
    if following:
        width = max(map(len, following))
        lines = [f"{INDENT}{label:<{width}}  {command}" for label, command in following.items()]
        parts += [("\n".join(["Next", *lines]), None), BLANK]
    return parts
