# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.filter import plan_view as documented
from ansible_collections.gpufleet.vllm.plugins.filter.plan_view import FilterModule, plan_view
from plan_case import facts, plan, service


@pytest.mark.parametrize("given", [{}, None])
def test_without_a_plan(given: None) -> None:
    found = plan_view(given, failure="no facts")
    assert (found["failure"], found["device"], found["cards"], found["changes"]) == ("no facts", None, [], [])


def test_with_one() -> None:
    found = plan_view(plan(service()), facts(services={}))
    assert [one["change"] for one in found["changes"]] == ["start"]
    assert [card["index"] for card in found["cards"]] == [0, 1, 2]


def test_the_filter_has_its_documented_name_and_options() -> None:
    assert FilterModule().filters() == {"plan_view": plan_view}
    documentation = yaml.safe_load(documented.DOCUMENTATION)
    assert documentation["name"] == "plan_view"
    names = plan_view.__code__.co_varnames[1 : plan_view.__code__.co_argcount]
    assert set(documentation["options"]) == {"_input", *names}
