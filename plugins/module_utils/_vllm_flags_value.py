# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""One flag of vLLM, and whether it would take a value. Pure, no I/O."""

from __future__ import annotations

import difflib
import json
import re
import typing as t
from dataclasses import dataclass

# Of a flag with one of these words in its name no value is shown.
SECRET = re.compile(r"api-?key|hf-token|password|secret|credential")
SIZE = re.compile(r"\d+(?:\.\d+)?[kmgt]|\d+[KMGT]")
JSON_TEXT = re.compile(r'("(?:[^"\\]|\\.)*")')
JSON_SIZE = re.compile(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b")
NUMBER = re.compile(r"-(?:\d+(?:\.\d*)?|\.\d+)")
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "size": "a whole number, or one such as 8k, 2M or 4G",
    "size-auto": "a whole number, one such as 32k, or auto",
    "json": "JSON, or a mapping",
}


@dataclass(frozen=True)
class Flag:
    """``kind``: bool (has a --no- form), flag (has none), int, float, size, size-auto, json, text, lower (text in any
    case). ``values``: how many, as argparse writes it. ``options``: every spelling, dashes included."""

    name: str
    kind: str
    none: bool = False
    values: str = ""
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, text: str) -> Flag:
        """``int? + -x : 1 2``, as the table has it."""
        before, _colon, after = text.partition(" : ")
        kind, *words = before.split()
        aliases = [word for word in words if word.startswith("-")]
        values = "".join(word for word in words if not word.startswith("-"))
        negated = [f"--no-{name}"] if kind == "bool" else []
        options = (f"--{name}", *negated, *aliases)
        return cls(name, kind.rstrip("?"), kind.endswith("?"), values, options, tuple(after.split()))


def nearest(word: str, known: t.Iterable[str]) -> str:
    """The known spelling that is so close that it must have been meant, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return matches[0] if matches else ""


Wrong = t.Optional[tuple[str, str]]


def shown(flag: Flag, value: t.Any) -> str:
    """The value as a finding may show it. A text may be a secret that stands on the wrong line, unless it is like one
    of the choices."""
    if SECRET.search(flag.name):
        return "a value that is not shown"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (dict, list, tuple)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = str(value)
    if _close(flag, text):
        return f"'{text}'"
    return "an empty text" if not text else f"a text of {len(text)} characters"


def _close(flag: Flag, text: str) -> str:
    """The choice that was meant, or an empty string."""
    begun = [choice for choice in flag.choices if len(text) > 1 and choice.startswith(text.lower())]
    return begun[0] if begun else nearest(text.lower(), flag.choices)


def problem(flag: Flag, written: str, value: t.Any, dotted: bool = False) -> Wrong:
    """What was expected and what to do (may be empty), or ``None`` where vLLM's parser takes it.

    ``written`` is the name as the user wrote it, without dashes; ``dotted`` is one key of a JSON flag.
    """
    if flag.kind in ("bool", "flag"):
        return _without_value(flag, written, value)
    if dotted:
        takes = flag.kind in ("json", "text") and not flag.choices
        return None if takes else (f"{_wanted(flag)}, and no key behind a dot", "")
    if value is True:
        return None if flag.values in ("?", "*") else (f"{_wanted(flag)}; the flag needs a value", "")
    if value is False:
        return f"{_wanted(flag)}; there is no --no-{written}", f"delete {written} under {{where}}, or give it a value"
    if isinstance(value, (list, tuple)):
        return _several(flag, value)
    return _one(flag, _text(value))


def _wanted(flag: Flag) -> str:
    if flag.choices:
        return f"one of {', '.join(flag.choices)}"
    return WANTED.get(flag.kind, "a text")


def _without_value(flag: Flag, written: str, value: t.Any) -> Wrong:
    if value is True or (isinstance(value, (list, tuple)) and not value):
        return None
    if value is not False:
        return "true or false: the flag takes no value", ""
    if f"--no-{written}" in flag.options:
        return None
    return f"true: there is no --no-{written}", f"delete {written} under {{where}} to leave it off"


def _several(flag: Flag, values: t.Sequence[t.Any]) -> Wrong:
    least, most = {"": (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}.get(
        flag.values, (int(flag.values), int(flag.values)) if flag.values.isdigit() else (1, 1)
    )
    if len(values) < least or (most is not None and len(values) > most):
        amount = "at least one value" if most is None else f"{most} value{'' if most == 1 else 's'}"
        hint = "write a mapping or JSON, not a list" if flag.kind == "json" else ""
        return f"{amount}, each {_wanted(flag)}", f"{hint} under {{where}}" if hint else ""
    wrong = next((wrong for wrong in (_one(flag, _text(value)) for value in values) if wrong), None)
    if wrong and flag.kind == "json":
        # A list becomes words of the command line, and this flag wants JSON in one of them.
        return wrong[0], f"write the list as JSON in quotes, {flag.name}: '[...]', under {{where}}"
    return wrong


def _text(value: t.Any) -> str:
    """As it stands on the command line."""
    if not isinstance(value, dict):
        return str(value)
    try:
        return json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)
    except (TypeError, ValueError):
        # Keys of several types, or a mapping that holds itself: not JSON, and then not a value of any kind but text.
        return "{...}"


def _one(flag: Flag, text: str) -> Wrong:
    if text.startswith("-") and text != "-" and " " not in text and not NUMBER.fullmatch(text):
        return f"{_wanted(flag)} that does not begin with '-': vLLM would take it for a flag", ""
    if flag.none and text in ("", "None"):
        return None
    reads = _READERS.get(flag.kind)
    if reads and not reads(text):
        return _wanted(flag), ""
    if not flag.choices or _plain(flag, text) in {_plain(flag, choice) for choice in flag.choices}:
        return None
    close = _close(flag, text)
    return _wanted(flag), f"write {flag.name}: {close} under {{where}}" if close else ""


def _plain(flag: Flag, text: str) -> str:
    if flag.kind == "int":
        return str(int(text))
    if flag.kind == "float":
        return str(float(text))
    return text.lower().replace("-", "_") if flag.kind == "lower" else text


def _reads(reader: t.Callable[[str], t.Any]) -> t.Callable[[str], bool]:
    def reads(text: str) -> bool:
        try:
            reader(text)
        except ValueError:
            return False
        return True

    return reads


def _size(text: str) -> int:
    return 0 if SIZE.fullmatch(text.strip()) else int(text)


def _size_or_auto(text: str) -> int:
    return -1 if text.strip().lower() == "auto" else _size(text)


def _json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        # In JSON too vLLM reads 80G as a number.
        parts = JSON_TEXT.split(text)
        json.loads("".join(part if position % 2 else JSON_SIZE.sub("0", part) for position, part in enumerate(parts)))


_READERS: dict[str, t.Callable[[str], bool]] = {
    "int": _reads(int),
    "float": _reads(float),
    "size": _reads(_size),
    "size-auto": _reads(_size_or_auto),
    "json": _reads(_json),
}
