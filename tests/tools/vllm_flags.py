# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rewrite plugins/module_utils/_vllm_flags_table.py, what each release of vLLM takes on its command line.

    vllm_flags.py 0.34.0 [0.33.1 ...]   read these releases and put them beside those that the table has
    vllm_flags.py --all                 read every release of the table again (26 wheels of 300 to 500 MB)
    vllm_flags.py --verify PYTHON       compare the table with the parser of the vLLM that PYTHON has installed

A release is read from its wheel, which pip fetches and which is deleted again; vllm_parser.py builds the parser from
the Python files in it, in a process of its own. One release stands for its series (0.33): the one named last.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tree import ROOT

TOOLS = Path(__file__).resolve().parent
TARGET = ROOT / "plugins" / "module_utils" / "_vllm_flags_table.py"
# The wheel for GPUs on x86-64, whatever this machine is; its Python files are the same everywhere.
PLATFORMS = ("manylinux_2_35_x86_64", "manylinux_2_31_x86_64", "manylinux_2_28_x86_64", "manylinux1_x86_64")
# A plugin registers further values of these, or the platform does: their values are not held against a list.
OPEN = ("device", "load-format", "mm-processor-device", "quantization", "reasoning-parser")
# Where one of these could not be executed to its end, the parser is not vLLM's.
NEEDED = re.compile(
    r"vllm\.(config|envs|engine\.arg_utils|entrypoints\.cli\.serve|utils\.argparse_utils)\b|.*\.cli_args$"
)
WIDTH = 118


class Refused(Exception):
    """The table would say what vLLM does not."""


@dataclass(frozen=True)
class Release:
    """What the table keeps of one release."""

    version: str
    flags: Mapping[str, str]
    deprecated: Mapping[str, str]
    environment: frozenset[str]

    @property
    def series(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.series.split("."))


# ---- read a wheel


def fetch(version: str, scratch: Path) -> Path:
    """The Python files of the release's wheel, unpacked."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    argv = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    argv += ["--only-binary", ":all:", "--python-version", "3.12", *platforms, "-d", str(scratch), f"vllm=={version}"]
    subprocess.run(argv, check=True)
    [wheel] = scratch.glob("*.whl")
    sources = scratch / "sources"
    with zipfile.ZipFile(wheel) as archive:
        skipped = ("vllm/third_party/", "vllm/model_executor/models/")
        names = [name for name in archive.namelist() if name.endswith(".py") and not name.startswith(skipped)]
        archive.extractall(sources, names)
    wheel.unlink()
    return sources


def describe(python: str, *sources: str) -> dict[str, Any]:
    argv = [python, "-W", "ignore", str(TOOLS / "vllm_parser.py"), *sources]
    done = subprocess.run(argv, check=False, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Refused(f"{' '.join(argv)} failed:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    if not isinstance(answer, dict):
        raise Refused("vllm_parser.py answered without a mapping")
    return answer


def condense(version: str, description: Mapping[str, Any]) -> Release:
    """What the table keeps of what vllm_parser.py said."""
    missing = sorted(name for name in description["failed"] if NEEDED.match(name))
    if missing:
        raise Refused(f"{version}: could not execute {', '.join(missing)}: {description['failed'][missing[0]]}")
    flags = {name: specification(name, entry) for name, entry in description["flags"].items()}
    deprecated = {}
    for name, entry in description["flags"].items():
        message = deprecation(name, entry, description["messages"])
        if message:
            deprecated[name] = message
    variables = frozenset(name for name in description["environment"] if name.startswith("VLLM_"))
    return Release(version, flags, deprecated, variables)


def specification(name: str, entry: Mapping[str, Any]) -> str:
    """``"int? + -x : 1 2"``: kind (``?`` takes None), number of values, other spellings, choices."""
    kind = entry["kind"]
    if kind.startswith("?"):
        raise Refused(f"--{name} is read by {kind[1:]}, which vllm_parser.py does not know: add it to KINDS")
    choices = [] if name in OPEN else entry.get("choices", [])
    kind = "text" if kind == "lower" and not choices else kind
    words = [kind + ("?" if entry.get("none") else ""), *([entry["nargs"]] if "nargs" in entry else [])]
    implied = f"--no-{name}" if kind == "bool" else ""
    if implied and implied not in entry["options"]:
        raise Refused(f"--{name} has no {implied}")
    words += [option for option in entry["options"] if option != implied]
    return " ".join([*words, *([":", *choices] if choices else [])])


def deprecation(name: str, entry: Mapping[str, Any], messages: Iterable[str]) -> str:
    """What vLLM says of a flag that it will remove, in one line; empty where the flag has a future."""
    help_text = " ".join(entry["help"].split())
    start = re.match(r"[\[(]?deprecated[\])]?[:.]?\s|this (parameter|option) is deprecated", help_text, re.IGNORECASE)
    inside = re.search(r"(?:^|\. )Deprecated: [^.]+(?:\.\d[^.]*)*\.", help_text)
    own = re.compile(rf"--{name}\b(?![-.])`?\)? (is deprecated|will be removed)")
    said = next((message for message in [*messages, help_text] if own.search(message)), "")
    if not (entry.get("deprecated") or start or inside or said):
        return ""
    text = said or (inside.group(0).lstrip(". ") if inside else help_text)
    text = re.sub(r"^[\[(]?deprecated[\])]?:?\s+", "", text, flags=re.IGNORECASE).replace("`", "")
    if not re.search(r"deprecated|removed|no effect|instead", text, re.IGNORECASE):
        text = "it is marked as deprecated"
    return textwrap.shorten(text, 240, placeholder=" ...")


# ---- the table as text


def _history(releases: list[Release], values: Iterable[Mapping[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """``{name: [(series, value from then on), ...]}``; "-" where a series does not have it."""
    history: dict[str, list[tuple[str, str]]] = {}
    for position, (release, known) in enumerate(zip(releases, values, strict=True)):
        for name in {*known, *history}:
            value = known.get(name, "-")
            changes = history.setdefault(name, [])
            if (changes[-1][1] if changes else "-") != value or (not changes and position == 0):
                changes.append((release.series, value))
    return history


def render(releases: Iterable[Release]) -> str:
    ordered = sorted(releases, key=lambda release: release.order)
    flags = _history(ordered, [release.flags for release in ordered])
    deprecated = _history(ordered, [release.deprecated for release in ordered])
    variables = _history(ordered, [dict.fromkeys(release.environment, "+") for release in ordered])
    words = [f"{name}:{','.join(mark + series for series, mark in changes)}" for name, changes in variables.items()]
    versions = _wrap(" ".join(release.version for release in ordered))
    return HEADER.format(
        releases=versions,
        flags="\n".join(map(_line, sorted(flags.items()))),
        deprecated="\n".join(map(_line, sorted(deprecated.items()))),
        environment=_wrap(" ".join(sorted(words))),
    )


def _line(item: tuple[str, list[tuple[str, str]]]) -> str:
    name, changes = item
    return _wrap("; ".join([name, *(f"{series} {value}" for series, value in changes)]), indent="  ")


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


HEADER = '''\
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What ``vllm serve`` takes, release by release. Written by ``make flags``; ``_vllm_flags.py`` reads it."""

from __future__ import annotations

# Each stands for its series.
RELEASES = """\\
{releases}
"""

# NAME; SERIES SPECIFICATION; ...: from that series on, "-" where it is gone. A specification is the kind of the value
# (with ? where None is one), how many values, other spellings, and after a colon the choices.
FLAGS = """\\
{flags}
"""

# What vLLM itself says of them.
DEPRECATED = """\\
{deprecated}
"""

# NAME:+SERIES,-SERIES: read from that series on, and no longer from the other.
ENVIRONMENT = """\\
{environment}
"""
'''


def parse(source: str) -> list[Release]:
    """The releases of a table that ``render`` wrote."""
    spaces: dict[str, Any] = {}
    exec(compile(source, "table", "exec"), spaces)  # noqa: S102  # the repository's own file
    versions = spaces["RELEASES"].split()
    series = [".".join(version.split(".")[:2]) for version in versions]
    flags = _at(_lines(spaces["FLAGS"]), series)
    deprecated = _at(_lines(spaces["DEPRECATED"]), series)
    changes = {}
    for word in spaces["ENVIRONMENT"].split():
        name, _colon, marks = word.partition(":")
        changes[name] = [(mark[1:], mark[0]) for mark in marks.split(",")]
    variables = _at(changes, series)
    return [
        Release(version, flags[position], deprecated[position], frozenset(variables[position]))
        for position, version in enumerate(versions)
    ]


def _lines(text: str) -> dict[str, list[tuple[str, str]]]:
    found = {}
    for line in re.sub(r"\n +", " ", text).splitlines():
        name, *changes = line.split("; ")
        found[name] = [(change.partition(" ")[0], change.partition(" ")[2]) for change in changes]
    return found


def _at(history: Mapping[str, list[tuple[str, str]]], series: list[str]) -> list[dict[str, str]]:
    known: list[dict[str, str]] = []
    for one in series:
        current = dict(known[-1]) if known else {}
        for name, changes in history.items():
            for since, value in changes:
                if since == one and value == "-":
                    current.pop(name, None)
                elif since == one:
                    current[name] = value
        known.append(current)
    return known


# ---- the commands


def update(versions: Iterable[str], known: Iterable[Release]) -> str:
    releases = {release.series: release for release in known}
    for version in versions:
        with tempfile.TemporaryDirectory() as scratch:
            release = condense(version, describe(sys.executable, str(fetch(version, Path(scratch)))))
        counts = f"{len(release.flags)} flags, {len(release.deprecated)} of them deprecated"
        print(f"    vLLM {version}: {counts}, {len(release.environment)} variables", flush=True)
        releases[release.series] = release
    return render(releases.values())


def verify(python: str, known: Iterable[Release]) -> list[str]:
    """Where the table and the parser of an installed vLLM differ."""
    description = describe(python)
    version = str(description["version"]).partition("+")[0]
    real = condense(version, description)
    table = next((release for release in known if release.series == real.series), None)
    if table is None:
        return [f"the table has no release of series {real.series}"]
    print(f"    vLLM {version} ({python}) has {len(real.flags)} flags, the table of {table.version} {len(table.flags)}")
    found = []
    for kind, ours, theirs in (
        ("flag", table.flags, real.flags),
        ("deprecation", table.deprecated, real.deprecated),
        ("variable", dict.fromkeys(table.environment, ""), dict.fromkeys(real.environment, "")),
    ):
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                found.append(f"{kind} {name}: table {ours.get(name)!r}, vLLM {theirs.get(name)!r}")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--verify", metavar="PYTHON")
    options = parser.parse_args(arguments)
    known = parse(TARGET.read_text("utf-8")) if TARGET.exists() else []
    try:
        if options.verify:
            differences = verify(options.verify, known)
            print("\n".join(differences) or "    no difference")
            return 1 if differences else 0
        versions = [release.version for release in known] if options.all else options.versions
        if not versions:
            parser.error('name a release of vLLM: make flags VLLM="0.34.0"')
        TARGET.write_text(update(versions, known), "utf-8")
    except (Refused, subprocess.CalledProcessError) as exc:
        print(f"ERROR: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
