# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The summary at the end of a run: text for a tired person, and the same as data. Pure, no I/O."""

from __future__ import annotations

import typing as t
import unicodedata

from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import told
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_maps import API_KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary_artifacts import (
    artifact_headline,
    artifact_lines,
    artifact_part,
    artifact_rows,
    fetched_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import human_bytes, human_seconds, plural

INDENT = "  "
BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
# The number of the report's shape: raised when a key changes its meaning or goes, not when one is added.
SCHEMA = 1
# More hosts than these are a table; fewer are shown with their questions and answers.
BLOCK_HOSTS = 5
NAMED_HOSTS = 5
# With more problems than these, each is cut to so many lines.
WHOLE_PROBLEMS = 3
PROBLEM_LINES = 12
NOT_THERE = "-"
# The columns of the probes, in the order of the questions.
HEADS = {
    "models": "models",
    "key": "key",
    "routes": "routes",
    "chat": "chat",
    "stream": "stream",
    "completion": "text",
    "vision": "vision",
    "transcription": "audio",
    "embedding": "embed",
}
LOST = (
    "the connection to the host was lost on the way\n"
    "  seen:     UNREACHABLE in the output above\n"
    "  expected: an answer over its connection to the end\n"
    "  remedy:   check that it is up, then run again: what was done is kept, and the rest is done"
)
Host = t.Mapping[str, t.Any]
Row = dict[str, str]
Part = tuple[str, t.Optional[str]]
BLANK: Part = ("", None)


def printable(text: t.Any) -> str:
    """Without control characters: what a model or a log says must not move a terminal's cursor."""
    return "".join("\ufffd" if _moves(char) else char for char in str(text))


def _moves(char: str) -> bool:
    # Bidirectional marks reorder what follows them; the other format characters join emoji and words.
    kind = unicodedata.category(char)
    return (kind in ("Cc", "Cs", "Zl", "Zp") and char != "\t") or unicodedata.bidirectional(char) in BIDI_CONTROLS


def _named(names: t.Iterable[str]) -> str:
    """The names, or the first of many."""
    ordered = sorted(names)
    rest = len(ordered) - NAMED_HOSTS
    return ", ".join(ordered[:NAMED_HOSTS]) + (f" and {rest} more" if rest > 0 else "")


def headline(hosts: t.Mapping[str, Host]) -> str:
    """One line that says whether all is well."""
    services = [service for host in hosts.values() for service in host.get("services") or []]
    lost = [name for name, host in hosts.items() if host.get("unreachable")]
    failed = [name for name, host in hosts.items() if host.get("failure") and name not in lost]
    artifacts = [artifact for host in hosts.values() for artifact in host.get("artifacts") or []]
    answering = sum(1 for service in services if service.get("ok"))
    counted = f"{plural(len(hosts), 'host')}, {plural(len(services), 'service')}"
    if artifacts and not services:
        counted = f"{plural(len(hosts), 'host')}, {plural(len(artifacts), 'artifact')}"
    if failed or lost:
        parts = [f"{answering} of {len(services)} answer"] if services else []
        parts += [artifact_headline(artifacts)] if artifacts and not services else []
        parts += [f"FAILED on {_named(failed)}"] if failed else []
        parts += [f"UNREACHABLE: {_named(lost)}"] if lost else []
        return f"{counted}: {'; '.join(parts)}"
    if not services:
        return f"{counted}: {artifact_headline(artifacts) if artifacts else 'nothing to run'}"
    if answering == len(services):
        return f"{counted}: all answer" if answering > 1 else f"{counted}: it answers"
    if not any(service.get("results") or service.get("state") for service in services):
        return f"{counted}: none was asked"
    return f"{counted}: {answering} of {len(services)} answer"


def service_lines(service: t.Mapping[str, t.Any]) -> list[str]:
    """One service: where, what, and each question with its answer."""
    mark = "ok" if service.get("ok") else service.get("state_text") or "NOT OK"
    mark += "" if service.get("keyed", True) or not service.get("ok") else ", no key"
    lines = [f"{service['name']}  {service['url']}  {mark}"]
    artifact = service.get("artifact") or {}
    commit = str(artifact.get("commit") or "")[:12] or service.get("revision") or ""
    size = f", {human_bytes(artifact['bytes_total'])}" if artifact.get("bytes_total") else ""
    fetched = f", {fetched_text(artifact)}" if artifact.get("bytes_fetched") else ""
    lines.append(f"{INDENT}model     {service['model']} @ {commit}{size}{fetched}")
    if service.get("gpus"):
        cards = ", ".join(f"{gpu['index']} ({gpu['uuid']})" for gpu in service["gpus"])
        lines.append(f"{INDENT}GPUs      {cards}")
    lines += [f"{INDENT}memory    {text}" for text in _memory_texts(service.get("memory") or [])]
    results = service.get("results") or []
    for result in results:
        lines += [INDENT + line for line in _result_lines(result, results)]
    return lines


def _memory_texts(drifts: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """The room for the cache as the plan reckoned it, and as the engine has it."""
    return [
        f"{drift['seen']:g} GiB of KV cache, reckoned were {drift['estimated']:g} GiB ({drift['percent']:+g} %)"
        for drift in drifts
        if (drift.get("what"), drift.get("unit")) == ("KV cache", "GiB")
    ]


def _one_line(text: t.Any) -> str:
    return " ".join(str(text).split())


def _first_good(results: t.Iterable[t.Mapping[str, t.Any]], kind: str, asked: str) -> t.Mapping[str, t.Any] | None:
    return next((one for one in results if one["ok"] and one["kind"] == kind and one.get("asked") == asked), None)


def _result_lines(result: t.Mapping[str, t.Any], results: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    if not result["ok"]:
        return [f"FAILED    {result['kind']}: {_one_line(result['asked'])}", f"          {_one_line(result['reason'])}"]
    if result["kind"] in ("models", "key"):
        return []
    # The same question was asked in one piece and as a stream: both times stand beside the streamed answer.
    if result["kind"] == "chat" and _first_good(results, "stream", result["asked"]):
        return []
    plain = _first_good(results, "chat", result["asked"]) if result["kind"] == "stream" else None
    lines = [f"asked     {_one_line(result['asked'])}", f"answered  {_one_line(result['answered'])}"]
    first = result.get("first_token_seconds")
    timing = f"first token {human_seconds(first)}, " if first is not None else ""
    timing += f"whole answer {human_seconds(result['seconds'])}"
    return [*lines, f"timing    {timing}" + (f", unstreamed {human_seconds(plain['seconds'])}" if plain else "")]


def host_lines(name: str, host: Host, width: int = 120) -> list[str]:
    engine = host.get("engine") or {}
    what = [f"vLLM {engine['version']} ({engine['flavor']})"] if engine.get("version") else []
    if host.get("runtime"):
        what.append(f"under {host['runtime']}")
    lines = [f"{name}  {' '.join(what)}".rstrip()]
    for service in host.get("services") or []:
        lines += [INDENT + line for line in service_lines(service)]
    if not host.get("services"):
        lines += [INDENT + line for line in artifact_lines(host.get("artifacts") or [])]
    if host.get("failure"):
        mark = "UNREACHABLE" if host.get("unreachable") else "FAILED"
        lines += [INDENT + line for line in told(str(host["failure"]), width - len(INDENT), f"{mark}: ")]
    return lines


# The table


def rows(hosts: t.Mapping[str, Host]) -> list[Row]:
    """One row for each service, and one for each host that has none."""
    return [
        _row(name, hosts[name], service)
        for name in sorted(hosts)
        for service in hosts[name].get("services") or [{"name": NOT_THERE}]
    ]


def _row(name: str, host: Host, service: t.Mapping[str, t.Any]) -> Row:
    results = service.get("results") or []
    row = {
        "host": name,
        "service": str(service["name"]),
        "state": _row_state(host, service),
        "model": str(service.get("model") or NOT_THERE),
        "url": str(service.get("url") or NOT_THERE),
    }
    for kind in HEADS:
        found = [result for result in results if result["kind"] == kind]
        row[kind] = NOT_THERE if not found else "ok" if all(result["ok"] for result in found) else "FAIL"
    if results and not service.get("keyed", True):
        row["key"] = "none"
    firsts = [result["first_token_seconds"] for result in results if result.get("first_token_seconds") is not None]
    row["first token"] = human_seconds(firsts[0]) if firsts else NOT_THERE
    row["total"] = human_seconds(sum(result.get("seconds") or 0.0 for result in results)) if results else NOT_THERE
    return {key: _one_line(printable(text)) for key, text in row.items()}


def _row_state(host: Host, service: t.Mapping[str, t.Any]) -> str:
    if service.get("ok"):
        return "ok"
    if host.get("unreachable"):
        return "UNREACHABLE"
    if service.get("results"):
        return "WRONG"
    if "state_text" in service:
        return str(service["state_text"])
    return "FAILED" if host.get("failure") else NOT_THERE


def _merged(row: Row) -> str:
    """All probes of a row in one cell."""
    failed = [HEADS[kind] for kind in HEADS if row[kind] == "FAIL"]
    good = sum(1 for kind in HEADS if row[kind] == "ok")
    if failed or not good:
        return f"FAIL {' '.join(failed)}" if failed else NOT_THERE
    return f"{good} ok, no key" if row["key"] == "none" else f"{good} ok"


def table(every: t.Sequence[Row], width: int) -> list[str]:
    """The widest of several layouts that fits; the header first."""
    lines: list[str] = []
    for narrow, (shown, columns) in enumerate(_layouts(every)):
        used = [
            one for one in columns if one in ("host", "service", "state") or any(r[one] != NOT_THERE for r in shown)
        ]
        names = {**HEADS, "first token": "first"} if narrow else HEADS
        heads = {column: names.get(column, column) for column in used}
        widths = {column: max(cells(text) for text in [heads[column], *(r[column] for r in shown)]) for column in used}
        lines = [joined(row, widths) for row in [heads, *shown]]
        if max(map(cells, lines)) <= width:
            break
    return lines


def _layouts(every: t.Sequence[Row]) -> t.Iterator[tuple[list[Row], list[str]]]:
    front, times = ["host", "service", "state"], ["first token", "total"]
    yield list(every), [*front, "model", "url", *HEADS, *times]
    short = [{**row, "url": row["url"].replace("http://", "", 1)} for row in every]
    yield short, [*front, "model", "url", *HEADS, *times]
    short = [{**row, "model": row["model"].rpartition("/")[2], "probes": _merged(row)} for row in short]
    yield short, [*front, "model", "url", *HEADS, *times]
    yield short, [*front, "url", *HEADS, *times]
    yield short, [*front, "url", "probes", *times]
    yield short, [*front, "probes", *times]
    clipped = [{key: _clipped(text, 20) for key, text in row.items()} for row in short]
    yield clipped, [*front, "probes"]


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def cells(text: str) -> int:
    """Columns on a terminal: East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def joined(row: t.Mapping[str, str], widths: t.Mapping[str, int]) -> str:
    return "  ".join(row[column] + " " * (width - cells(row[column])) for column, width in widths.items()).rstrip()


def problems(hosts: t.Mapping[str, Host], width: int = 120) -> list[str]:
    """What failed, once for all hosts where it is the same."""
    groups: dict[str, list[str]] = {}
    for name in sorted(hosts):
        if hosts[name].get("failure"):
            groups.setdefault(str(hosts[name]["failure"]), []).append(name)
    lines = []
    for text, names in groups.items():
        said = told(text, width - len(INDENT))
        if len(groups) > WHOLE_PROBLEMS and len(said) > PROBLEM_LINES:
            more = len(said) - PROBLEM_LINES
            said = [*said[:PROBLEM_LINES], f"  ... {more} more lines in the output above and in the report's file"]
        lines += ["", f"{', '.join(names)}:", *(INDENT + line for line in said)]
    return lines


def as_parts(
    title: str,
    hosts: t.Mapping[str, Host],
    following: t.Mapping[str, str],
    layout: str = "auto",
    width: int = 120,
    notes: t.Sequence[str] = (),
) -> list[Part]:
    """The whole summary, in pieces of one colour; ``following`` names the commands a user wants next."""
    hosts = {name: normal(host) for name, host in hosts.items()}
    parts: list[Part] = [(f"{title}: {headline(hosts)}", "green" if all_well(hosts) else "red"), BLANK]
    if layout == "table" or (layout == "auto" and len(hosts) > BLOCK_HOSTS):
        parts += _table_parts(hosts, width)
    else:
        for name in sorted(hosts):
            text = "\n".join(map(printable, host_lines(name, hosts[name], width)))
            parts += [(text, "red" if hosts[name]["failure"] else None), BLANK]
    return [*parts, *_note_parts(notes), *_next_parts(following)]


def _table_parts(hosts: t.Mapping[str, Host], width: int) -> list[Part]:
    if any(host["artifacts"] for host in hosts.values()) and not any(host["services"] for host in hosts.values()):
        every = [{key: printable(text) for key, text in row.items()} for row in artifact_rows(hosts)]
        heads = {column: column for column in every[0]}
        widths = {column: max(cells(row[column]) for row in [heads, *every]) for column in heads}
        head, *lines = [joined(row, widths) for row in [heads, *every]]
    else:
        every = rows(hosts)
        head, *lines = table(every, width) if every else [""]
    parts: list[Part] = [(head, None)]
    parts += [(line, "red" if hosts[row["host"]]["failure"] else None) for row, line in zip(every, lines)]
    failed = problems(hosts, width)
    return [*parts, *([("\n".join(map(printable, failed)), "red")] if failed else []), BLANK]


def _note_parts(notes: t.Sequence[str]) -> list[Part]:
    lines = [INDENT + _one_line(printable(note)) for note in notes]
    return [("\n".join(["Warnings of the preflight", *lines]), "yellow"), BLANK] if lines else []


def _next_parts(following: t.Mapping[str, str]) -> list[Part]:
    if not following:
        return []
    lines = ["Next"]
    width = max(len(label) for label in following)
    for label, command in following.items():
        first, *rest = str(command).splitlines() or [""]
        lines.append(f"{INDENT}{label:<{width}}  {first}")
        lines += [f"{INDENT}{'':<{width}}  {line}" for line in rest]
    return [("\n".join(lines), None), BLANK]


def as_text(title: str, hosts: t.Mapping[str, Host], following: t.Mapping[str, str], **shape: t.Any) -> str:
    """The same without colours."""
    return "\n".join(text for text, _colour in as_parts(title, hosts, following, **shape))


def document(title: str, hosts: t.Mapping[str, Host], finished: str, notes: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """The report as data; its shape is documented with the module ``vllm_report``."""
    every = {name: normal(host) for name, host in hosts.items()}
    services = [service for host in every.values() for service in host["services"]]
    lost = sum(1 for host in every.values() if host["unreachable"])
    return {
        "schema": SCHEMA,
        "title": title,
        "finished": finished,
        "ok": all_well(every),
        "notes": list(notes),
        "counts": {
            "hosts": len(every),
            "hosts_failed": sum(1 for host in every.values() if host["failure"]) - lost,
            "hosts_unreachable": lost,
            "services": len(services),
            "services_ok": sum(1 for service in services if service.get("ok")),
        },
        "hosts": every,
    }


def normal(host: Host) -> dict[str, t.Any]:
    """A host's part with every key; one that was lost on the way left none."""
    unreachable = bool(host.get("unreachable"))
    return {
        "engine": host.get("engine"),
        "runtime": host.get("runtime"),
        "services": list(host.get("services") or []),
        "artifacts": list(host.get("artifacts") or []),
        "failure": str(host.get("failure") or (LOST if unreachable else "")),
        "unreachable": unreachable,
    }


def all_well(hosts: t.Mapping[str, Host]) -> bool:
    services = [service for host in hosts.values() for service in host.get("services") or []]
    return all(service.get("ok") for service in services) and not any(
        host.get("failure") or host.get("unreachable") for host in hosts.values()
    )


def host_report(
    plan: t.Mapping[str, t.Any],
    artifacts: t.Sequence[t.Mapping[str, t.Any]] = (),
    reports: t.Sequence[t.Mapping[str, t.Any]] = (),
    states: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
    failure: str = "",
    steps: t.Sequence[t.Any] = (),
) -> dict[str, t.Any]:
    """One host's part of the report, from what the steps of a run left behind; any of them may be missing.

    ``steps`` are the results of the tasks that need the host: where one did not reach it, all that failed after it is
    only a consequence.
    """
    lost = [text for text in map(lost_connection, steps) if text]
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
                "memory": report.get("memory") or [],
            }
        )
    return {
        "engine": plan.get("engine"),
        "runtime": plan.get("runtime"),
        "services": services,
        "artifacts": [artifact_part(artifact) for artifact in artifacts],
        "failure": unreachable_text(lost[0]) if lost else failure,
        "unreachable": bool(lost),
    }


def lost_connection(result: t.Any) -> str:
    """What Ansible said when this task did not reach the host; empty where it did."""
    if not isinstance(result, dict) or not (result.get("unreachable") or result.get("connection_lost")):
        return ""
    if result.get("connection_lost"):
        return str(result["connection_lost"])
    inner = [text for text in map(lost_connection, result.get("results") or []) if text]
    said = inner[0] if inner else _one_line(result.get("msg") or "no answer")
    return said.removeprefix("Task failed: ")


def unreachable_text(seen: str) -> str:
    return (
        f"the host cannot be reached\n"
        f"  seen:     {seen}\n"
        f"  expected: an answer over its connection\n"
        f"  remedy:   check that it is up, and its address, user and key in the inventory; then run again"
    )


def _artifact(artifact: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    keys = ("path", "commit", "bytes_total", "bytes_fetched", "seconds")
    return {key: artifact.get(key) for key in keys if key in artifact}


def _state_text(report: t.Mapping[str, t.Any], state: t.Mapping[str, t.Any]) -> str:
    if report:
        return "WRONG ANSWER"
    return str(state.get("state") or "not probed")
