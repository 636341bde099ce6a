# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The plan of a fleet as text for a tired person, and the same as data. Pure, no I/O.

Hosts whose plans look alike are shown once. What matters most, what would happen to the fleet, is the last line.
"""

from __future__ import annotations

import json
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    SEVERITIES,
    WARNING,
    Finding,
    as_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import folded, in_brief, told
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import FAILED
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_changes import KEEP, RESTART, START, STOP, UNKNOWN
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_map import (
    UTF8,
    Charset,
    clip,
    clip_start,
    gib,
    islands_text,
    legend,
    map_lines,
    memory_lines,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import BLANK, LOST, Part, cells, printable
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import human_bytes, plural

SCHEMA = 1
WIDTH = 100
# With more groups of hosts than these, only those with errors are shown in full.
WHOLE_GROUPS = 12
NAMED_RUNS = 5
MANY = "Hosts without errors are shown in brief, since there are many. --limit HOST shows one in full."
MARKS = {START: "+", RESTART: "~", STOP: "-", KEEP: " ", UNKNOWN: "?"}
COLOURS = {START: "green", RESTART: "yellow", STOP: "red", KEEP: None, UNKNOWN: "yellow"}
SEVERITY_COLOURS = {"error": "red", "warning": "yellow", "info": None}
View = t.Mapping[str, t.Any]
Views = t.Mapping[str, View]
Placement = t.Sequence[t.Mapping[str, t.Any]]
"""What placing the services of the fleet came upon, which is about no host."""


def normal(view: View | None) -> View:
    """A host's view; one that was lost on the way left none."""
    return view or {"unreachable": True, "failure": LOST}


def failed(view: View) -> bool:
    return bool(
        view.get("errors") or view.get("failure") or any(one.get("failure") for one in view.get("artifacts") or [])
    )


def stopped(views: Views) -> dict[str, str]:
    """Why each host that ends with a failure does, in a few words."""
    return {name: _ended(normal(view)) for name, view in views.items() if failed(normal(view))}


def _ended(view: View) -> str:
    codes = [str(one.get("code")) for one in view.get("findings") or [] if one.get("severity") == "error"]
    failures = [view.get("failure"), *(one.get("failure") for one in view.get("artifacts") or [])]
    return in_brief(codes, next((str(text) for text in failures if text), ""))


def all_well(views: Views, placement: Placement = ()) -> bool:
    return not (any(failed(normal(view)) for view in views.values()) or _count(placement, ERROR))


def _count(findings: t.Iterable[t.Mapping[str, t.Any]], severity: str) -> int:
    return sum(1 for one in findings if one.get("severity") == severity)


def _without_pointers(view: View) -> View:
    """A host without the error that only points to those of the placement."""
    return {**view, "findings": [one for one in view.get("findings") or [] if one.get("code") != FAILED]}


# --- names -----------------------------------------------------------------------------------------------------------


def _parts(name: str) -> tuple[str, int, int, str]:
    """A name around the last number of its first label (``gpu-01.dc1.example``), or of all of an address or of a label
    without one: what stands before it, the number, its digits, what follows."""
    label, dot, domain = name.partition(".")
    match = re.fullmatch(r"(.*?)(\d{1,9})(\D*)", label)
    if match is None or not match[1]:
        label, dot, domain = name, "", ""
        match = re.fullmatch(r"(.*?)(\d{1,9})(\D*)", name)
    return (match[1], int(match[2]), len(match[2]), match[3] + dot + domain) if match else (name, -1, 0, "")


def folded_names(names: t.Iterable[str]) -> str:
    """``gpu-01 .. gpu-14 (14 hosts)``; names that do not count on stand one after the other."""
    runs: list[tuple[str, str, tuple[str, int, int, str]]] = []
    every = sorted(names, key=_parts)
    for name in every:
        prefix, number, digits, suffix = _parts(name)
        if runs and number >= 0 and runs[-1][2] == (prefix, number - 1, digits, suffix):
            runs[-1] = (runs[-1][0], name, (prefix, number, digits, suffix))
        else:
            runs.append((name, name, (prefix, number, digits, suffix)))
    shown = [first if first == last else f"{first} .. {last}" for first, last, _key in runs[:NAMED_RUNS]]
    more = f" and {len(runs) - NAMED_RUNS} more" if len(runs) > NAMED_RUNS else ""
    return ", ".join(shown) + more + (f" ({len(every)} hosts)" if len(every) > 1 else "")


def groups(views: Views) -> list[tuple[list[str], View]]:
    """Hosts that look alike, those with errors last: nearest to where the eye is when it is done."""
    found: dict[str, list[str]] = {}
    for name in sorted(views, key=_parts):
        found.setdefault(_likeness(normal(views[name])), []).append(name)
    every = [(names, normal(views[names[0]])) for names in found.values()]
    return sorted(every, key=lambda group: failed(group[1]))


def _likeness(view: View) -> str:
    """What a person sees of a host, but for what is each host's own: UUIDs, addresses, process ids."""
    own = {"uuid", "url", "public_url", "definition", "pinned", "pid"}
    return json.dumps(_without(view, own), sort_keys=True, default=str)


def _without(value: t.Any, keys: set[str]) -> t.Any:
    if isinstance(value, t.Mapping):
        return {str(key): _without(item, keys) for key, item in value.items() if key not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, (list, tuple)) else value


# --- one host --------------------------------------------------------------------------------------------------------


def host_parts(
    title: str, view: View, charset: Charset = UTF8, width: int = WIDTH, definitions: bool = False
) -> list[Part]:
    """A host (or several that look alike), in pieces of one colour."""
    if not view.get("device"):
        text = _told(str(view.get("failure") or "there is no plan"), width)
        mark = "UNREACHABLE" if view.get("unreachable") else "NO PLAN"
        return [(clip(f"{title}: {mark}", width, charset), "red"), (text, "red"), BLANK]
    parts: list[Part] = [(line, None) for line in _host_lines(title, view, charset, width)]
    parts += map_lines(view, charset, width)
    parts += [(line, None) for line in memory_lines(view, charset, width)]
    parts += _artifact_parts(view, charset, width)
    parts += _image_parts(view, width)
    parts += _change_parts(view, charset, width)
    parts += _finding_parts(view, width)
    if view.get("failure"):
        parts.append((_told(str(view["failure"]), width), "red"))
    if definitions:
        for service in view.get("services") or []:
            body = "\n".join(f"    {line}" for line in str(service.get("definition") or "").splitlines())
            parts.append((printable_lines(f"  {service['name']} would run as\n{body}"), None))
    return [*parts, BLANK]


def _told(failure: str, width: int, indent: int = 2) -> str:
    return printable_lines("\n".join(" " * indent + line for line in told(failure, width - indent)))


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _host_lines(title: str, view: View, charset: Charset, width: int) -> list[str]:
    """The name, what runs there and on what; in more lines where one cannot hold it."""
    what = " ".join(filter(None, [view.get("engine"), f"under {view['runtime']}" if view.get("runtime") else ""]))
    text = f"{what}, {_hardware(view)}"
    if cells(f"{title}: {text}") <= width:
        return [clip(f"{title}: {text}", width, charset)]
    return [clip(f"{title}:", width, charset), *folded(f"  {printable(text)}", width)]


def _hardware(view: View) -> str:
    cards = view.get("cards") or []
    if view.get("device") == "cpu" or not cards:
        return "on the CPU" if view.get("device") == "cpu" else "no GPU is known"
    kinds: dict[str, int] = {}
    for card in cards:
        total = card.get("memory_total_bytes")
        size = f", {gib(total)} GiB" if total else ""
        kinds[f"{card['name']}{size}"] = kinds.get(f"{card['name']}{size}", 0) + 1
    text = " and ".join(f"{count} x {kind}" for kind, count in kinds.items())
    joined = islands_text(view)
    return f"{text}; {joined}" if joined else text


def _artifact_parts(view: View, charset: Charset, width: int) -> list[Part]:
    artifacts = view.get("artifacts") or []
    if not artifacts:
        return []
    rows = [(artifact_state(one), _model(one), str(one.get("path") or "")) for one in artifacts]
    state, model = (max(cells(row[column]) for row in rows) for column in (0, 1))
    model = min(model, width - state - 24)
    parts: list[Part] = [("  artifacts", None)]
    for one, (what, name, path) in zip(artifacts, rows):
        front = f"    {_padded(what, state)}  {_padded(clip(name, model, charset), model)}  "
        line = front + clip_start(path, max(12, width - cells(front)), charset)
        parts.append((line.rstrip(), "red" if one.get("failure") else "green" if one.get("bytes_to_fetch") else None))
        if one.get("failure"):
            parts.append((_told(str(one["failure"]), width, 6), "red"))
            if one.get("remedy"):
                parts.append(("\n".join(folded(printable(f"      remedy: {one['remedy']}"), width)), "red"))
    return parts


def _model(artifact: t.Mapping[str, t.Any]) -> str:
    version = str(artifact.get("commit") or "")[:12] or str(artifact.get("revision") or "")
    return f"{artifact.get('model')} @ {version[:40]}"


def artifact_state(artifact: t.Mapping[str, t.Any]) -> str:
    """``to fetch 16.6 GB``, ``there, 16.6 GB``, ``to fetch 2.0 of 16.6 GB``, or what is not known of it."""
    if artifact.get("failure"):
        return "FAILED"
    total, left = artifact.get("bytes_total"), artifact.get("bytes_to_fetch")
    if left is None:
        return f"{human_bytes(total)}, not looked for" if total else "size not known"
    if left == 0:
        return f"there, {human_bytes(total)}" if total else "there"
    return f"fetch {human_bytes(left)}" + (f" of {human_bytes(total)}" if total and total != left else "")


def _image_parts(view: View, width: int) -> list[Part]:
    images = view.get("images") or []
    parts: list[Part] = [("  images", None)] if images else []
    for one in images:
        size = f", {human_bytes(one['size_bytes'])}" if one.get("size_bytes") else ""
        state = {True: f"there{size}", False: "to pull"}.get(one.get("present"), "pulled if it is not there")
        digest = str(one.get("pinned") or "").partition("@")[2][:19]
        text = f"    {state}  {one['image']}" + (f" ({digest})" if digest else "")
        parts.append(("\n".join(folded(printable(text), width)), "green" if one.get("present") is False else None))
    return parts


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _change_parts(view: View, charset: Charset, width: int) -> list[Part]:
    changes = view.get("changes") or []
    if not changes:
        return [(f"  changes: none, and {_unread(view) or 'nothing to run'}", None)]
    if all(change["change"] == KEEP for change in changes):
        names = ", ".join(change["service"] for change in changes)
        verb = "goes" if len(changes) == 1 else "go"
        return [("\n".join(folded(printable(f"  changes: none, {names} {verb} on"), width)), None)]
    name = min(24, max(cells(str(change["service"])) for change in changes))
    heading = "  changes, once there are no errors" if view.get("errors") else "  changes"
    parts: list[Part] = [(heading, None)]
    for change in changes:
        kind = change["change"]
        word = {KEEP: "goes on", START: "starts", STOP: "stops", RESTART: "restarts"}.get(kind, "unknown")
        front = f"    {MARKS[kind]} {_padded(clip(change['service'], name, charset), name)}  {word:<8}"
        lines = _wrapped([str(reason) for reason in change.get("reasons") or []], width - cells(front) - 2)
        indent = " " * (cells(front) + 2)
        text = f"{front}  {lines[0]}" if lines else front.rstrip()
        parts.append(("\n".join([text, *(indent + line for line in lines[1:])]), COLOURS[kind]))
    return parts


def _unread(*views: View) -> str:
    """How many services were refused for what is written of them, and so stand in no plan."""
    count = 0
    for view in views:
        there = {service.get("name") for service in view.get("services") or []}
        wrong = [one for one in view.get("findings") or [] if one.get("severity") == "error"]
        count += len({one.get("service") for one in wrong if str(one.get("code")).startswith("service.")} - there)
    return f"{plural(count, 'service')} could not be read" if count else ""


def _joined(pieces: t.Sequence[str], width: int) -> list[str]:
    """Pieces with semicolons between them, each whole on its line."""
    lines: list[str] = []
    for piece in pieces:
        if lines and cells(lines[-1]) + 2 + cells(piece) <= width:
            lines[-1] += f"; {piece}"
        else:
            lines.append(f"  {piece}" if lines else piece)
    return lines


def _wrapped(reasons: t.Sequence[str], width: int) -> list[str]:
    """The reasons, as many on a line as fit, and one that fits on none on several."""
    lines = _joined([printable(reason) for reason in reasons], width)
    return [part for line in lines for part in folded(line.strip(), width)]


def _finding_parts(view: View, width: int) -> list[Part]:
    known = {"code", "severity", "seen", "expected", "remedy", "service"}
    findings = [
        Finding(**{key: str(one.get(key, "")) for key in known})
        for one in view.get("findings") or []
        if one.get("severity") in SEVERITIES
    ]
    parts: list[Part] = []
    for severity in SEVERITIES:
        chosen = [finding for finding in findings if finding.severity == severity]
        if chosen:
            lines = [part for line in as_text(chosen).splitlines() for part in folded(f"  {printable(line)}", width)]
            parts.append(("\n".join(lines), SEVERITY_COLOURS[severity]))
    return parts


# --- the fleet -------------------------------------------------------------------------------------------------------


def totals(views: Views, placement: Placement = ()) -> dict[str, int]:
    """The fleet in numbers. What the placement found is counted once, whatever host points to it."""
    every = [normal(view) for view in views.values()]
    found = [one for view in every for one in view.get("findings") or []]
    pointers = sum(1 for one in found if one.get("code") == FAILED) if _count(placement, ERROR) else 0
    cards = [card for view in every for card in view.get("cards") or []]
    changes = [change["change"] for view in every for change in view.get("changes") or []]
    artifacts = [one for view in every for one in view.get("artifacts") or []]
    return {
        "hosts": len(every),
        "hosts_failed": sum(1 for view in every if failed(view)),
        "hosts_unreachable": sum(1 for view in every if view.get("unreachable")),
        "cards": len(cards),
        "cards_used": sum(1 for card in cards if card.get("holders")),
        "cards_foreign": sum(1 for card in cards if card.get("foreign") and not card.get("holders")),
        "bytes_to_fetch": sum(one.get("bytes_to_fetch") or 0 for one in artifacts),
        "artifacts_unknown": sum(1 for one in artifacts if one.get("bytes_to_fetch") is None),
        "errors": sum(int(view.get("errors") or 0) for view in every) - pointers + _count(placement, ERROR),
        "warnings": _count(found, WARNING) + _count(placement, WARNING),
        **{kind: changes.count(kind) for kind in (START, RESTART, STOP, KEEP, UNKNOWN)},
    }


def bottom_line(title: str, views: Views, width: int = WIDTH, placement: Placement = ()) -> tuple[str, str]:
    """What would happen, in a line or two, and the colour."""
    sums = totals(views, placement)
    said = [plural(sums["hosts"], "host")]
    if sums["cards"]:
        free = sums["cards"] - sums["cards_used"] - sums["cards_foreign"]
        others = f", {sums['cards_foreign']} held by others" if sums["cards_foreign"] else ""
        said.append(f"{plural(sums['cards'], 'GPU')} ({sums['cards_used']} used, {free} free{others})")
    fetch = f"{human_bytes(sums['bytes_to_fetch'])} to fetch" if sums["bytes_to_fetch"] else "nothing to fetch"
    if sums["artifacts_unknown"]:
        unknown = f"{plural(sums['artifacts_unknown'], 'artifact')} of unknown size"
        fetch = f"{fetch} and {unknown}" if sums["bytes_to_fetch"] else unknown
    moves = {START: "to start", RESTART: "to restart", STOP: "to stop", UNKNOWN: "unknown"}
    named = [f"{sums[kind]} {words}" for kind, words in moves.items() if sums[kind]]
    named += [f"{sums[KEEP]} {'goes' if sums[KEEP] == 1 else 'go'} on"] if sums[KEEP] else []
    services = sum(sums[kind] for kind in MARKS)
    unread = _unread(*map(normal, views.values()))
    said += [fetch, f"{plural(services, 'service')}: {', '.join(named)}" if named else unread or "nothing to run"]
    said += [unread] if named and unread else []
    bad = [name for name, view in views.items() if failed(normal(view)) and not normal(view).get("unreachable")]
    lost = [name for name, view in views.items() if normal(view).get("unreachable")]
    lines = _joined([f"{title}: {said[0]}", *said[1:]], width)
    counted = f"{plural(sums['errors'], 'error')}: " if sums["errors"] else ""
    lines += [f"{counted}nothing can be deployed on {folded_names(bad)}"] if bad else []
    lines += [f"UNREACHABLE: {folded_names(lost)}"] if lost else []
    text = printable_lines("\n".join(lines))
    idle = not any(sums[kind] for kind in moves) and not sums["bytes_to_fetch"]
    return text, "red" if bad or lost else "green" if idle else "yellow"


def as_parts(
    title: str,
    views: Views,
    charset: Charset = UTF8,
    width: int = WIDTH,
    definitions: bool = False,
    placement: Placement = (),
) -> list[Part]:
    """The whole, in pieces of one colour."""
    parts: list[Part] = []
    every = groups(views)
    if _count(placement, ERROR):
        every = [(names, _without_pointers(view)) for names, view in every]
    many = len(every) > WHOLE_GROUPS
    whole = [group for group in every if not many or failed(group[1])]
    for names, view in every:
        if (names, view) in whole:
            parts += host_parts(folded_names(names), view, charset, width, definitions)
        else:
            parts += brief_parts(folded_names(names), view, charset, width)
    cards = [card for _names, view in whole for card in view.get("cards") or []]
    explained = legend(cards, charset) if cards else ""
    parts += [(explained, None), BLANK] if explained else []
    if many:
        parts += [(MANY, None), BLANK]
    if placement:
        parts += [("the fleet", None), *_finding_parts({"findings": placement}, width), BLANK]
    return [*parts, bottom_line(title, views, width, placement)]


def brief_parts(title: str, view: View, charset: Charset = UTF8, width: int = WIDTH) -> list[Part]:
    """A host among many: how many of its GPUs are used, what it fetches, and what moves."""
    cards = view.get("cards") or []
    used = f"{sum(1 for card in cards if card.get('holders'))} of {plural(len(cards), 'GPU')} used" if cards else ""
    left = sum(one.get("bytes_to_fetch") or 0 for one in view.get("artifacts") or [])
    moving = [change for change in view.get("changes") or [] if change["change"] != KEEP]
    warned = sum(1 for one in view.get("findings") or [] if one.get("severity") == "warning")
    told = [used, f"fetch {human_bytes(left)}" if left else "", f"{plural(warned, 'warning')}" if warned else ""]
    told += [] if moving or left else ["nothing to do"]
    parts: list[Part] = [(clip(f"{title}: {', '.join(filter(None, told))}", width, charset), None)]
    return parts + (_change_parts({**view, "changes": moving}, charset, width)[1:] if moving else [])


def as_page(title: str, views: Views, **shape: t.Any) -> str:
    """The same without colours."""
    return "\n".join(text for text, _colour in as_parts(title, views, **shape)) + "\n"


def document(
    title: str, views: Views, plans: t.Mapping[str, t.Any], finished: str, placement: Placement = ()
) -> dict[str, t.Any]:
    """The plan as data; its shape is documented with the module ``vllm_plan_report``."""
    hosts = {}
    for name, given in views.items():
        view = dict(normal(given))
        view["services"] = [
            {key: value for key, value in service.items() if key != "definition"}
            for service in view.get("services") or []
        ]
        hosts[name] = {**view, "plan": plans.get(name)}
    return {
        "schema": SCHEMA,
        "title": title,
        "finished": finished,
        "ok": all_well(views, placement),
        "totals": totals(views, placement),
        "fleet": {"findings": [dict(one) for one in placement]},
        "hosts": hosts,
    }
