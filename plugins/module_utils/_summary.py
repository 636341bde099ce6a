# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The summary at the end of a run: text for a tired person, and the same as data. Pure, no I/O."""

from __future__ import annotations

import typing as t
import unicodedata

from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import API_KEY_VARIABLE

INDENT = "  "
BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
Host = t.Mapping[str, t.Any]


def human_bytes(count: float) -> str:
    """Decimal units, as disks and networks are sold: 269.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        digits = 0 if unit == "B" else 1
        if round(count, digits) < 1000:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if round(seconds, 3) < 1 else f"{seconds:.1f} s"


def printable(text: t.Any) -> str:
    """Without control characters: what a model or a log says must not move a terminal's cursor."""
    return "".join("\ufffd" if _moves(char) else char for char in str(text))


def _moves(char: str) -> bool:
    # Bidirectional marks reorder what follows them; the other format characters join emoji and words.
    kind = unicodedata.category(char)
    return (kind in ("Cc", "Cs", "Zl", "Zp") and char != "\t") or unicodedata.bidirectional(char) in BIDI_CONTROLS


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def headline(hosts: t.Mapping[str, Host]) -> str:
    """One line that says whether all is well."""
    services = [service for host in hosts.values() for service in host.get("services") or []]
    bad_hosts = [name for name, host in hosts.items() if host.get("failure")]
    answering = sum(1 for service in services if service.get("ok"))
    counted = f"{_plural(len(hosts), 'host')}, {_plural(len(services), 'service')}"
    if bad_hosts:
        return f"{counted}: FAILED on {', '.join(sorted(bad_hosts))}"
    if not services:
        return f"{counted}: nothing to run"
    if answering == len(services):
        return f"{counted}: all answer" if answering > 1 else f"{counted}: it answers"
    if not any(service.get("results") or service.get("state") for service in services):
        return f"{counted}: none was asked"
    return f"{counted}: {answering} of {len(services)} answer"


def service_lines(service: t.Mapping[str, t.Any]) -> list[str]:
    """One service: where, what, and each question with its answer."""
    mark = "ok" if service.get("ok") else service.get("state_text") or "NOT OK"
    lines = [f"{service['name']}  {service['url']}  {mark}"]
    artifact = service.get("artifact") or {}
    commit = str(artifact.get("commit") or "")[:12] or service.get("revision") or ""
    size = f", {human_bytes(artifact['bytes_total'])}" if artifact.get("bytes_total") else ""
    fetched = f", {human_bytes(artifact['bytes_fetched'])} fetched" if artifact.get("bytes_fetched") else ""
    lines.append(f"{INDENT}model     {service['model']} @ {commit}{size}{fetched}")
    if service.get("gpus"):
        cards = ", ".join(f"{gpu['index']} ({gpu['uuid']})" for gpu in service["gpus"])
        lines.append(f"{INDENT}GPUs      {cards}")
    for result in service.get("results") or []:
        lines += [INDENT + line for line in _result_lines(result)]
    return lines


def _one_line(text: t.Any) -> str:
    return " ".join(str(text).split())


def _result_lines(result: t.Mapping[str, t.Any]) -> list[str]:
    if not result["ok"]:
        return [f"FAILED    {result['kind']}: {_one_line(result['asked'])}", f"          {_one_line(result['reason'])}"]
    if result["kind"] in ("models", "key"):
        return []
    lines = [f"asked     {_one_line(result['asked'])}", f"answered  {_one_line(result['answered'])}"]
    first = result.get("first_token_seconds")
    timing = f"first token {human_seconds(first)}, " if first is not None else ""
    return [*lines, f"timing    {timing}whole answer {human_seconds(result['seconds'])}"]


def host_lines(name: str, host: Host) -> list[str]:
    engine = host.get("engine") or {}
    what = [f"vLLM {engine['version']} ({engine['flavor']})"] if engine.get("version") else []
    if host.get("runtime"):
        what.append(f"under {host['runtime']}")
    lines = [f"{name}  {' '.join(what)}".rstrip()]
    for service in host.get("services") or []:
        lines += [INDENT + line for line in service_lines(service)]
    if host.get("failure"):
        lines += [INDENT + line for line in f"FAILED: {host['failure']}".splitlines()]
    return lines


def as_text(title: str, hosts: t.Mapping[str, Host], following: t.Mapping[str, str]) -> str:
    """The whole summary; ``following`` names the commands a user wants next."""
    lines = [f"{title}: {headline(hosts)}", ""]
    for name in sorted(hosts):
        lines += [*map(printable, host_lines(name, hosts[name])), ""]
    if following:
        lines.append("Next")
        width = max(len(label) for label in following)
        for label, command in following.items():
            first, *rest = str(command).splitlines() or [""]
            lines.append(f"{INDENT}{label:<{width}}  {first}")
            lines += [f"{INDENT}{'':<{width}}  {line}" for line in rest]
        lines.append("")
    return "\n".join(lines)


def all_well(hosts: t.Mapping[str, Host]) -> bool:
    services = [service for host in hosts.values() for service in host.get("services") or []]
    return all(service.get("ok") for service in services) and not any(host.get("failure") for host in hosts.values())


def host_report(
    plan: t.Mapping[str, t.Any],
    artifacts: t.Sequence[t.Mapping[str, t.Any]] = (),
    reports: t.Sequence[t.Mapping[str, t.Any]] = (),
    states: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
    failure: str = "",
) -> dict[str, t.Any]:
    """One host's part of the report, from what the steps of a run left behind; any of them may be missing."""
    by_path = {str(artifact.get("path")): artifact for artifact in artifacts}
    by_name = {str(report.get("name")): report for report in reports}
    services = []
    for service in plan.get("services") or []:
        report = by_name.get(service["name"], {})
        state = (states or {}).get(service["name"], {})
        services.append(
            {
                "name": service["name"],
                "model": service["model"],
                "revision": service["revision"],
                "served_model_name": service["served_model_name"],
                "url": service["public_url"],
                "keyed": API_KEY_VARIABLE in (service.get("secrets") or []),
                "gpus": service["gpus"],
                "artifact": _artifact(by_path.get(service["path"], {})),
                "ok": bool(report.get("ok")),
                "state": state.get("state"),
                "state_text": _state_text(report, state),
                "version": report.get("version"),
                "results": report.get("results") or [],
            }
        )
    return {"engine": plan.get("engine"), "runtime": plan.get("runtime"), "services": services, "failure": failure}


def _artifact(artifact: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {key: artifact.get(key) for key in ("path", "commit", "bytes_total", "bytes_fetched") if key in artifact}


def _state_text(report: t.Mapping[str, t.Any], state: t.Mapping[str, t.Any]) -> str:
    if report:
        return "WRONG ANSWER"
    return str(state.get("state") or "not probed")
