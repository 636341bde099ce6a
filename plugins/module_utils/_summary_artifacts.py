# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The part of a summary that is about model artifacts: what was fetched, how long it took. Pure, no I/O."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._units import human_bytes, human_duration, human_rate

Artifact = t.Mapping[str, t.Any]
LONG_SECONDS = 5.0
"""A fetch that took less is not worth a rate."""

_KEYS = ("path", "commit", "bytes_total", "bytes_fetched", "seconds", "changed")
_NOT_THERE = "-"


def artifact_part(result: Artifact) -> dict[str, t.Any]:
    """What a report keeps of one result of vllm_artifacts."""
    item = result.get("item") or {}
    kept = {key: result.get(key) for key in _KEYS if key in result}
    return {"model": item.get("model"), **kept, "ok": not result.get("failed")}


def foreseen(hosts: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The same hosts, of a run in check mode: what it calls fetched is to be fetched."""

    def marked(part: t.Any) -> t.Any:
        return {**part, "foreseen": True} if isinstance(part, dict) and part else part

    return {
        name: {
            **host,
            "artifacts": [marked(artifact) for artifact in host.get("artifacts") or []],
            "services": [
                {**service, "artifact": marked(service.get("artifact"))} for service in host.get("services") or []
            ],
        }
        for name, host in hosts.items()
    }


def fetched_text(artifact: Artifact) -> str:
    """``16.6 GB fetched in 41 s, 405 MB/s``; without the time if it was short. In check mode ``16.6 GB to fetch``."""
    count, seconds = int(artifact.get("bytes_fetched") or 0), float(artifact.get("seconds") or 0.0)
    if artifact.get("foreseen"):
        return f"{human_bytes(count)} to fetch"
    text = f"{human_bytes(count)} fetched"
    return f"{text} in {human_duration(seconds)}, {human_rate(count / seconds)}" if seconds >= LONG_SECONDS else text


def artifact_headline(artifacts: t.Sequence[Artifact]) -> str:
    """Whether all are there, and what came over the network."""
    good, every = sum(1 for artifact in artifacts if artifact.get("ok")), len(artifacts)
    count = sum(int(artifact.get("bytes_fetched") or 0) for artifact in artifacts)
    if any(artifact.get("foreseen") for artifact in artifacts):
        wrong = [f"{every - good} of {every} cannot be had"] if good < every else []
        return ", ".join([*wrong, f"{human_bytes(count) if count else 'nothing'} to fetch"])
    there = f"{good} of {every} complete" if good < every else "all complete" if every > 1 else "complete"
    return f"{there}, {human_bytes(count) if count else 'nothing'} fetched"


def artifact_lines(artifacts: t.Iterable[Artifact]) -> list[str]:
    """Two lines for each: what it is, and where."""
    lines = []
    for artifact in artifacts:
        version = f" @ {str(artifact['commit'])[:12]}" if artifact.get("commit") else ""
        size = f"  {human_bytes(artifact['bytes_total'])}" if artifact.get("bytes_total") else ""
        fetched = f", {fetched_text(artifact)}" if artifact.get("bytes_fetched") else ""
        lines.append(f"{artifact.get('model')}{version}{size}{fetched}" + ("" if artifact.get("ok") else "  FAILED"))
        lines.append(f"  {artifact.get('path')}")
    return lines


def artifact_rows(hosts: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[dict[str, str]]:
    """A row for each artifact of each host, and one for each host that came to none."""
    rows = []
    every = [artifact for host in hosts.values() for artifact in host.get("artifacts") or []]
    told = "to fetch" if any(artifact.get("foreseen") for artifact in every) else "fetched"
    for name in sorted(hosts):
        host = hosts[name]
        lost = "UNREACHABLE" if host.get("unreachable") else "FAILED" if host.get("failure") else _NOT_THERE
        for artifact in host.get("artifacts") or [{}]:
            count, seconds = int(artifact.get("bytes_fetched") or 0), float(artifact.get("seconds") or 0.0)
            rows.append(
                {
                    "host": name,
                    "state": "ok" if artifact.get("ok") else "FAILED" if artifact else lost,
                    "model": str(artifact.get("model") or _NOT_THERE),
                    "size": human_bytes(artifact["bytes_total"]) if artifact.get("bytes_total") else _NOT_THERE,
                    told: human_bytes(count) if count else _NOT_THERE,
                    "took": human_duration(seconds) if count and seconds >= LONG_SECONDS else _NOT_THERE,
                    "rate": human_rate(count / seconds) if count and seconds >= LONG_SECONDS else _NOT_THERE,
                }
            )
    return rows
