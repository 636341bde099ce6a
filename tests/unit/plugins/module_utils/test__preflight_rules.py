# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import anchor_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import (
    check_skip,
    codes,
    fleet_rules,
    host_rules,
)

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

import preflight_docs  # noqa: E402

RULES = [*host_rules(), *fleet_rules()]


def test_every_file_of_rules_is_asked() -> None:
    files = {path.stem for path in (ROOT / "plugins" / "module_utils").glob("_rules_*.py")}
    asked = {Path(sys.modules[one.check.__module__].__file__ or "").stem for one in RULES}
    with_rules = {
        name
        for name in files
        if re.search(r"^(FLEET_)?RULES\b", (ROOT / f"plugins/module_utils/{name}.py").read_text(), re.MULTILINE)
    }
    assert asked >= with_rules


def test_there_are_rules_of_every_family() -> None:
    families = Counter(code.partition(".")[0] for code in codes())
    assert set(families) == set(preflight_docs.FAMILIES)
    assert sum(families.values()) >= 40


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.code)
def test_a_rule_says_what_and_why(one: object) -> None:
    code, title, why = one.code, one.title, one.why  # type: ignore[attr-defined]
    assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", code)
    assert title
    assert not title.endswith(".")
    assert len(why) > 20
    assert "\n" not in title + why


def test_codes_and_anchors_are_unique() -> None:
    assert [code for code, count in Counter(codes()).items() if count > 1] == []
    assert len({anchor_of(code) for code in codes()}) == len(codes())


def test_the_page_has_the_rules_of_the_code() -> None:
    text = preflight_docs.PAGE.read_text(encoding="utf-8")
    assert preflight_docs.page(text, RULES) == text, "run .venv/bin/python tests/tools/preflight_docs.py"
    assert [code for code in codes() if text.count(f'id="{anchor_of(code)}"') != 1] == []


def test_a_page_that_lost_its_marks_is_not_overwritten() -> None:
    with pytest.raises(SystemExit, match="expected the lines <!-- rules"):
        preflight_docs.page("# Preflight\n", RULES)


def test_codes_that_turn_off_a_rule_are_right() -> None:
    assert check_skip(codes()) == []


@pytest.mark.parametrize("pattern", ["host.*", "host.", "host", "HOST.*", "host.?ernel_old", "host.[a-z]*"])
def test_a_pattern_is_no_typo_of_its_neighbour(pattern: str) -> None:
    (finding,) = check_skip([pattern])
    assert finding.code == "preflight.skip_unknown"
    assert finding.expected == "codes that are written out; there are no patterns"
    assert finding.remedy.startswith("write each of them: host.")


def test_a_pattern_of_what_is_not_there() -> None:
    (finding,) = check_skip(["zzz.*"])
    assert finding.remedy == "take the codes from the table in docs/preflight.md"


def test_a_name_that_turns_nothing_off_is_said_once() -> None:
    code = codes()[0]
    typo, planned, open_bind, nonsense = check_skip(
        [code + "s", code + "s", code, "plan.no_gpu", "plan.public_bind", "zzz"]
    )
    assert (typo.code, typo.severity) == ("preflight.skip_unknown", "warning")
    assert f"names {code}s" in typo.seen
    assert typo.remedy == f"write {code}"
    assert "cannot be turned off" in planned.seen
    assert "vllm_allow_public_bind: true" in open_bind.remedy
    assert "docs/preflight.md" in nonsense.remedy
