# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""No variable that the collection reads, or that its examples, documents and tests set, is called a typo."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from ansible_collections.gpufleet.vllm.plugins.action.vllm_plan import SETTINGS  # noqa: E402
from ansible_collections.gpufleet.vllm.plugins.module_utils._settings_check import (  # noqa: E402
    GIVEN,
    OF_PLAYBOOKS,
    RESULTS,
    unknown_variables,
)
from tree import source_files  # noqa: E402

SOURCES = source_files(ROOT)
KNOWN = {*SETTINGS, *OF_PLAYBOOKS, *RESULTS}
# Modules, actions, filters and roles are no variables, and neither is the key of a record.
OTHERS = {
    *(path.stem for path in (ROOT / "plugins").rglob("*.py")),
    *(path.name for path in (ROOT / "roles").iterdir()),
    "vllm_version",
}
MISSPELT = "tests/integration/test_variables.py"
PARTS = ("defaults", "tasks", "vars", "handlers", "templates")
PLACES = ("inventory/", "playbooks/", "docs/", "README.md", "extensions/", "roles/")


def words(*places: str) -> set[str]:
    """Everything that looks like a variable of the collection in the files below ``places``."""
    found: set[str] = set()
    for name in SOURCES:
        if name.startswith(places) and name != MISSPELT and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
            found.update(re.findall(r"(?<![A-Za-z0-9_.])vllm_[a-z0-9_]*[a-z0-9]\b(?![.]py|[(])", text))
    return found - OTHERS


def given(tasks: Any) -> Iterator[str]:
    for task in tasks:
        for key in ("block", "rescue", "always"):
            yield from given(task.get(key) or [])
        if "ansible.builtin.import_role" in task:
            yield from task.get("vars") or {}


def test_what_only_playbooks_read_and_what_roles_leave_behind_is_all_named() -> None:
    code = ("playbooks/", *(f"roles/{role.name}/{part}/" for role in (ROOT / "roles").iterdir() for part in PARTS))
    assert words(*code) - set(SETTINGS) == {*OF_PLAYBOOKS, *RESULTS} - OTHERS


def test_what_a_deploy_gives_its_roles_is_not_looked_at() -> None:
    plays = yaml.safe_load((ROOT / "playbooks" / "deploy.yml").read_text(encoding="utf-8"))
    names = {name for play in plays for name in given(play["tasks"]) if not name.startswith("__")}
    assert names == set(GIVEN)
    assert names <= set(SETTINGS)


@pytest.mark.parametrize("place", [*PLACES, "tests/lab/", "tests/integration/"])
def test_no_variable_of_the_repository_is_called_a_typo(place: str) -> None:
    found = words(place)
    assert found & KNOWN
    service = [{"name": "a", "model": "x/a"}]
    variables = {**dict.fromkeys(found, "x"), "vllm_services": service, "vllm_fleet_services": service}
    assert [finding.seen for finding in unknown_variables(variables, SETTINGS)] == []


def test_examples_set_what_there_is() -> None:
    """In the inventories and the documents, a name that is nobody's would be a typo of ours."""
    own = {"vllm_api_key", "vllm_speech_image"}
    assert words(*PLACES) - KNOWN - own == set()
