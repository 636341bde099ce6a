# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the table of rules in docs/preflight.md anew from the code: ``preflight_docs.py``; a unit test compares."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(sys.prefix) / "collections"))

from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_skip import SKIPPABLE  # noqa: E402
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import AnyRule, anchor_of  # noqa: E402
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import (  # noqa: E402
    SKIP_UNKNOWN,
    fleet_rules,
    host_rules,
)

PAGE = ROOT / "docs" / "preflight.md"
BEGIN, END = "<!-- rules: written by tests/tools/preflight_docs.py -->", "<!-- end of rules -->"
FAMILIES = {
    "gpu": "GPUs",
    "driver": "Driver",
    "docker": "Docker and the container toolkit",
    "host": "Host",
    "disk": "Disks",
    "network": "Network",
    "hub": "Model hub",
    "fleet": "Across hosts",
}
PLANNED = """\
### The plan

Findings of the plan (`plan.*`, `service.*`) say what cannot be carried out. Those that are estimates, or rest on what others publish, can be turned off by
the same variable: {codes}.
"""  # noqa: E501
OWN = f"""\
### The preflight itself

| code | severity | what holds | why |
|---|---|---|---|
| <a id="{anchor_of(SKIP_UNKNOWN)}"></a>`{SKIP_UNKNOWN}` | warning | What is turned off is a rule | A typo in `vllm_preflight_skip` leaves the rule on. |
"""  # noqa: E501


def row(one: AnyRule) -> str:
    why = one.why.replace("|", "\\|")
    return f'| <a id="{anchor_of(one.code)}"></a>`{one.code}` | {one.severity} | {one.title} | {why} |'


def tables(rules: Sequence[AnyRule]) -> str:
    """A table for each family of codes, in the order of `FAMILIES`."""
    parts = []
    for family, title in FAMILIES.items():
        rows = [row(one) for one in rules if one.code.partition(".")[0] == family]
        head = [f"### {title}", "", "| code | severity | what holds | why |", "|---|---|---|---|"]
        parts.append("\n".join([*head, *rows, ""]))
    planned = PLANNED.format(codes=", ".join(f"`{code}`" for code in sorted(SKIPPABLE)))
    return "\n".join([*parts, planned, OWN])


def page(text: str, rules: Sequence[AnyRule]) -> str:
    """The page with its tables as the code has them; everything around the marks stays."""
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE}: expected the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{len(rules)} rules.\n\n{tables(rules)}\n{end}{after}"


def all_rules() -> list[AnyRule]:
    return [*host_rules(), *fleet_rules()]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), all_rules()), encoding="utf-8")
