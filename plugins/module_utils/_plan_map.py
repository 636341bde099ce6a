# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The GPUs of a host drawn in text, a bar for each, and the sums of memory as a small table. Pure, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import cells, printable

GIB = 1 << 30
BAR_CELLS = 30
MAP_INDENT = "  "
# What a bar is made of, in the order of the legend.
WEIGHTS, CACHE, REST, UNSIZED, FOREIGN, FREE = "weights", "kv", "rest", "unsized", "foreign", "free"
LEGEND = {
    WEIGHTS: "weights",
    CACHE: "KV cache",
    REST: "activations, graphs",
    UNSIZED: "taken, not sized",
    FOREIGN: "held by others",
    FREE: "free",
}
CACHE_ROWS = ("KV cache of one request", "KV cache beyond it")
Card = t.Mapping[str, t.Any]
View = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Charset:
    """The characters of a map; ``ends`` are those before the first, a middle and the last card of an island."""

    blocks: t.Mapping[str, str]
    ends: str
    dots: str

    def block(self, kind: str) -> str:
        return self.blocks[kind]


UTF8 = Charset({WEIGHTS: "█", CACHE: "▓", REST: "▒", UNSIZED: "▞", FOREIGN: "x", FREE: "·"}, "┌│└", "…")
ASCII = Charset({WEIGHTS: "#", CACHE: "=", REST: "+", UNSIZED: "?", FOREIGN: "x", FREE: "."}, "/|\\", "...")


def gib(count: float) -> str:
    """As nvidia-smi and vLLM count memory: ``129.2``."""
    return f"{count / GIB:.1f}"


def clip(text: t.Any, width: int, charset: Charset = UTF8) -> str:
    """At most so many columns of a terminal, on one line; what is cut off is seen to be."""
    whole = printable(re.sub(r"[\t\r\n]+", " ", str(text)))
    if cells(whole) <= width:
        return whole
    kept, used = "", 0
    for char in whole:
        used += cells(char)
        if used > width - len(charset.dots):
            break
        kept += char
    return kept + charset.dots


def clip_start(text: t.Any, width: int, charset: Charset = UTF8) -> str:
    """The same from the other side: the end of a path tells more than its beginning."""
    whole = clip(text, 10**6, charset)
    if cells(whole) <= width:
        return whole
    kept, used = "", len(charset.dots)
    for char in reversed(whole):
        used += cells(char)
        if used > width:
            break
        kept = char + kept
    return charset.dots + kept


# --- one bar ---------------------------------------------------------------------------------------------------------


def shares(card: Card) -> list[tuple[str, int]]:
    """What lies on a card, in bytes, from the left: others first, then each service's weights, cache and rest."""
    found = [(FOREIGN, sum(one.get("bytes") or 0 for one in card.get("foreign") or []))]
    for holder in card.get("holders") or []:
        if holder.get("weights") is not None:
            found += [(WEIGHTS, holder["weights"]), (CACHE, holder["kv"]), (REST, holder["rest"])]
        elif holder.get("bytes"):
            found.append((UNSIZED, holder["bytes"]))
    return [(kind, count) for kind, count in found if count > 0]


def filled(card: Card, charset: Charset) -> str:
    """In proportion to the card's memory; whatever is there at all has a cell, and what does not fit is cut off."""
    total = card.get("memory_total_bytes")
    if not total:
        return charset.block(UNSIZED) * BAR_CELLS if card.get("holders") else charset.block(FREE) * BAR_CELLS
    text, reached = "", 0
    for kind, count in shares(card):
        reached += count
        wanted = round(reached * BAR_CELLS / total)
        text += charset.block(kind) * max(1, wanted - len(text))
    if not text and card.get("holders"):
        text = charset.block(UNSIZED)
    return text[:BAR_CELLS].ljust(BAR_CELLS, charset.block(FREE))


def kinds_of(card: Card) -> set[str]:
    drawn = {kind for kind, _count in shares(card)}
    if card.get("holders") and not drawn - {FOREIGN}:
        drawn.add(UNSIZED)
    return drawn | {FREE}


def legend(cards: t.Iterable[Card], charset: Charset) -> str:
    """One line for what the bars show."""
    seen = set().union(*(kinds_of(card) for card in cards if not card.get("mig_devices")))
    return "  ".join(f"{charset.block(kind)} {words}" for kind, words in LEGEND.items() if kind in seen)


# --- all of a host's cards -------------------------------------------------------------------------------------------


def map_lines(view: View, charset: Charset, width: int) -> list[tuple[str, str | None]]:
    """A line for each card, with its colour."""
    cards = view.get("cards") or []
    ends = island_ends(cards, view.get("islands") or [], charset)
    digits = max([len(str(card.get("index"))) for card in cards], default=1)
    amounts = [amount(card) for card in cards]
    columns = max(map(len, amounts), default=0)
    same = len({card.get("name") for card in cards}) == 1
    lines: list[tuple[str, str | None]] = []
    for card, taken in zip(cards, amounts):
        front = f"{MAP_INDENT}{ends.get(card.get('index'), ' ')} GPU {card.get('index')!s:>{digits}}  "
        drawn = f"{filled(card, charset)}  {taken:>{columns}}  "
        if card.get("mig_devices") is not None:
            drawn = f"{'split by MIG':<{BAR_CELLS}}  {taken:>{columns}}  "
        kind = "" if same else f"  {card.get('name')}"
        text = front + drawn
        first, *more = _whole(tenants(card), kind, max(12, width - cells(text)), charset)
        lines.append((text + first, colour(card)))
        lines += [(" " * cells(text) + line, colour(card)) for line in more]
    return lines


def _whole(names: t.Sequence[str], kind: str, width: int, charset: Charset) -> list[str]:
    """Everyone who is on a card, as many on a line as fit; no name is left out, and only long ones are cut."""
    lines = [""]
    for position, name in enumerate(names):
        text = f"{name}{', ' if position + 1 < len(names) else kind}"
        if lines[-1] and cells(lines[-1] + text.rstrip()) > width:
            lines.append("")
        lines[-1] += text
    return [clip(line.rstrip(), width, charset) for line in lines]


def colour(card: Card) -> str | None:
    return "yellow" if card.get("foreign") else None


def amount(card: Card) -> str:
    total = card.get("memory_total_bytes")
    if not total:
        return "size unknown"
    taken = sum(count for _kind, count in shares(card))
    return f"{gib(taken)} of {gib(total)} GiB"


def tenants(card: Card) -> list[str]:
    """Who is on a card."""
    if card.get("mig_devices") is not None:
        return [f"{card['mig_devices']} MIG devices"]
    named = [str(holder["service"]) for holder in card.get("holders") or []]
    named += [stranger(one) for one in card.get("foreign") or []]
    return named or ["free"]


def stranger(process: t.Mapping[str, t.Any]) -> str:
    what = "orphaned engine" if process.get("orphan") else str(process.get("name"))
    whose = [f"pid {process['pid']}"] if process.get("pid") else []
    whose += [f"of {process['user']}"] if process.get("user") else []
    size = f" {gib(process['bytes'])} GiB" if process.get("bytes") else ""
    return f"{what} ({' '.join(whose)}){size}" if whose else f"{what}{size}"


def island_ends(cards: t.Sequence[Card], islands: t.Sequence[t.Sequence[int]], charset: Charset) -> dict[t.Any, str]:
    """The character before each card that NVLink joins with its neighbours in the list; islands that are not in one
    piece are told in words alone."""
    order = [card.get("index") for card in cards]
    found: dict[t.Any, str] = {}
    for island in islands:
        places = sorted(order.index(index) for index in island if index in order)
        if len(places) < 2 or places[-1] - places[0] != len(places) - 1:
            continue
        for place in places:
            end = charset.ends[0] if place == places[0] else charset.ends[2] if place == places[-1] else charset.ends[1]
            found[order[place]] = end
    return found


def numbers(indices: t.Iterable[int]) -> str:
    """``0-3, 6``."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def islands_text(view: View) -> str:
    """``NVLink joins 0-3 and 4-7``; empty where it is not known or there is none."""
    islands = view.get("islands") or []
    if not islands:
        return ""
    if len(islands) == 1 and len(islands[0]) == len(view.get("cards") or []):
        return "NVLink joins all of them"
    return f"NVLink joins {' and '.join(numbers(island) for island in islands)}"


# --- the sums --------------------------------------------------------------------------------------------------------


def memory_lines(view: View, charset: Charset, width: int) -> list[str]:
    """The sums of all services that are sized, side by side; more of them than fit stand below."""
    sized = [service for service in view.get("services") or [] if service.get("memory")]
    if not sized:
        return []
    names = {str(service["name"]): clip(service["name"], 20, charset) for service in sized}
    table = [_sum_rows(service["memory"]) for service in sized]
    labels = list(dict.fromkeys(label for rows in table for label in rows if label not in CLOSING))
    labels += [label for label in CLOSING if any(label in rows for rows in table)]
    first = max(map(len, [*labels, MEMORY_HEAD]))
    columns = [max(9, cells(name)) for name in names.values()]
    lines: list[str] = []
    for chunk in _chunks(columns, width - first - 4):
        heads = [list(names.values())[position] for position in chunk]
        lines.append(_table_line(MEMORY_HEAD, heads, first, [columns[position] for position in chunk], 2))
        for label in labels:
            shown = [table[position].get(label, "-") for position in chunk]
            lines.append(_table_line(label, shown, first, [columns[position] for position in chunk], 4))
    if any("~" in text for rows in table for text in rows.values()):
        lines.append("    ~ is an estimate")
    return lines


MEMORY_HEAD = "memory of each GPU, in GiB"
BUDGET = "budget of the engine"
LONGEST = "longest context, in tokens"
AT_ONCE = "requests of full length at once"
OUTSIDE = "beside the budget"
ENOUGH = "enough: gpu_memory_utilization"
ENOUGH_CACHE = "enough: kv-cache-memory-bytes"
CLOSING = (BUDGET, OUTSIDE, LONGEST, AT_ONCE, ENOUGH, ENOUGH_CACHE)


def _sum_rows(memory: t.Mapping[str, t.Any]) -> dict[str, str]:
    """A sizing as cells by their label."""
    rows: dict[str, str] = {}
    for row in memory.get("rows") or []:
        label, count = (row.get("label"), row.get("bytes")) if isinstance(row, dict) else row
        mark = "~" if isinstance(row, dict) and row.get("estimate") else ""
        rows[str(label)] = f"{mark}{(count or 0) / GIB:.2f}"
    budget, total = memory.get("budget_bytes"), memory.get("memory_total_bytes")
    if budget and total:
        rows[BUDGET] = f"{budget / GIB:.2f}"
    if memory.get("outside_bytes"):
        rows[OUTSIDE] = f"~{memory['outside_bytes'] / GIB:.2f}"
    if memory.get("max_len_fitting") is not None:
        rows[LONGEST] = f"{memory['max_len_fitting']:,}"
    if memory.get("concurrency") is not None:
        rows[AT_ONCE] = f"{memory['concurrency']:,.1f}"
    enough = memory.get("enough")
    if isinstance(enough, t.Mapping) and enough.get("kv_cache_memory_bytes"):
        rows[ENOUGH] = f"{enough.get('gpu_memory_utilization')}"
        rows[ENOUGH_CACHE] = f"{enough['kv_cache_memory_bytes']}"
    return rows


def _chunks(columns: t.Sequence[int], room: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    left = 0
    for position, column in enumerate(columns):
        if not chunks or left < column + 2:
            chunks.append([])
            left = room
        chunks[-1].append(position)
        left -= column + 2
    return chunks


def _table_line(label: str, texts: t.Sequence[str], first: int, columns: t.Sequence[int], indent: int) -> str:
    line = f"{' ' * indent}{label:<{first + 4 - indent}}"
    for text, column in zip(texts, columns):
        line += "  " + " " * (column - cells(text)) + text
    return line.rstrip()
