# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _prune_report


def artifact(name: str, action: str = "kept", **changes: t.Any) -> dict[str, t.Any]:
    return {
        "path": f"/models/{name}", "kind": "artifact", "model": f"acme/{name}", "revision": "master",
        "commit": "0123456789abcdef", "bytes": 2_000_000, "bytes_freed": 2_000_000 if action == "removed" else 0,
        "foreign": [], "last_use": "2026-03-01T12:00:00Z", "action": action,
        "reason": "recorded" if action == "kept" else "unused", "why": "because", **changes,
    }  # fmt: skip


HOSTS = {
    "gpu-02": {"artifacts": [artifact("needed"), artifact("old", "removed", foreign=["x"])]},
    "gpu-01": {"artifacts": [artifact(".part", "kept", kind="leftover", model=None, reason="unreadable")]},
}


def text(hosts: t.Mapping[str, t.Any], done: bool = False, **following: str) -> str:
    return "\n".join(part for part, _colour in _prune_report.as_parts("Would prune", hosts, done, following))


def test_what_goes_stands_first_and_says_why() -> None:
    assert text(HOSTS, **{"remove it": "again"}) == (
        "Would prune: 2 hosts: 2.0 MB would be freed by removing 1 of 3\n"
        "\n"
        "host            size    frees   last use    model                       path\n"
        "gpu-01  keep    2.0 MB  -       2026-03-01  leftover                    /models/.part\n"
        "        because\n"
        "gpu-02  REMOVE  2.0 MB  2.0 MB  2026-03-01  acme/old @ 0123456789ab     /models/old\n"
        "        because; 1 of its files are not of the model, and stay\n"
        "gpu-02  keep    2.0 MB  -       2026-03-01  acme/needed @ 0123456789ab  /models/needed\n"
        "        because\n"
        "\n"
        "Next\n"
        "  remove it  again\n"
    )


def test_what_is_done_says_so() -> None:
    shown = text(HOSTS, done=True)
    assert "2.0 MB freed by removing 1 of 3" in shown
    assert "gpu-02  removed" in shown


def test_nothing_to_do() -> None:
    assert text({"gpu-01": {"artifacts": [artifact("needed")]}}).startswith(
        "Would prune: 1 host: nothing to remove, 1 kept\n"
    )
    assert text({"gpu-01": {}}) == "Would prune: 1 host: nothing to remove, 0 kept\n"


def test_hosts_that_failed_or_were_lost() -> None:
    hosts = {**HOSTS, "gpu-03": {"failure": "no record\nat all"}, "gpu-04": {"unreachable": True}}
    shown = text(hosts)
    assert "; FAILED on gpu-03; UNREACHABLE: gpu-04\n" in shown
    assert "gpu-03:\n  no record\n  at all\n" in shown
    assert "gpu-04:\n  the connection to the host was lost" in shown
    assert (_prune_report.all_well(HOSTS), _prune_report.all_well(hosts)) == (True, False)


def test_colours_and_what_a_name_may_not_do() -> None:
    hosts = {"gpu-01": {"artifacts": [artifact("a\x1b[31m", "removed"), artifact("模型")]}}
    parts = _prune_report.as_parts("Would prune", hosts, False, {})
    assert [colour for line, colour in parts if line] == ["green", None, "yellow", None]
    assert not any("\x1b" in line for line, _colour in parts)
    assert [line for line, _colour in _prune_report.as_parts("", {"h": {"failure": "x"}}, False, {})][2] == "h:\n  x"
