# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What two hosts read of the models of a fleet, as the role puts it together."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_hub import ANSWERS

ROOT = Path(__file__).parents[2]
VARIABLES = yaml.safe_load((ROOT / "roles/vllm/vars/main.yml").read_text(encoding="utf-8"))
NAME = "acme/tiny@master"


def entry(what: str) -> dict[str, t.Any]:
    return {"error": None if what.startswith("read") else {"code": what}, "commit": what}


def together(first: dict[str, t.Any], again: dict[str, t.Any] | None) -> t.Any:
    given: dict[str, t.Any] = {"__vllm_sized_models": {"models": first}}
    given["__vllm_sized_again"] = {"skipped": True} if again is None else {"models": again}
    keys = ("__vllm_answers", "__vllm_read", "__vllm_read_again", "__vllm_fleet_models")
    ours = {key: trust_as_template(value) if isinstance(value, str) else value for key, value in VARIABLES.items()}
    variables = {**{key: ours[key] for key in keys}, **given}
    return Templar(DataLoader(), variables=variables).template(trust_as_template("{{ __vllm_fleet_models }}"))


@pytest.mark.parametrize(
    ("first", "again", "expected"),
    [
        ("read", None, "read"),
        ("read", "read again", "read"),
        ("hub.unreachable", "read again", "read again"),
        ("read", "hub.not_found", "read"),
        ("hub.not_found", "read again", "read again"),
        ("hub.not_found", "hub.unreachable", "hub.not_found"),
        ("hub.unreachable", "hub.not_found", "hub.not_found"),
        ("hub.unreachable", "hub.tls", "hub.tls"),
        ("hub.not_found", None, "hub.not_found"),
    ],
)
def test_the_best_answer_of_two_hosts(first: str, again: str | None, expected: str) -> None:
    found = together({NAME: entry(first)}, None if again is None else {NAME: entry(again)})
    assert found[NAME]["commit"] == expected


def test_each_model_has_its_own() -> None:
    found = together({"a": entry("read"), "b": entry("hub.tls")}, {"a": entry("hub.tls"), "b": entry("read again")})
    assert {name: one["commit"] for name, one in found.items()} == {"a": "read", "b": "read again"}
    assert together({}, None) == {}


def test_definite_answers_are_those_of_the_plan() -> None:
    assert sorted(VARIABLES["__vllm_answers"]) == sorted(ANSWERS)
