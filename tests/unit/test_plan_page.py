# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/plan.md shows the plan of the example fleet, byte for byte."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import cells
from plan_page import KEY, PAGE, PICTURE, PICTURES, host_facts, host_options, planned, with_pictures


def test_the_page_shows_what_the_example_fleet_comes_to() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [match[2] for match in PICTURE.finditer(page)] == list(PICTURES)
    assert with_pictures(page) == page, "python tests/lab/plan_page.py writes it anew"


@pytest.mark.parametrize("host", ["gpu-01", "gpu-02"])
def test_the_example_fleet_has_nothing_to_put_right(host: str) -> None:
    facts = host_facts(host)
    plan = planned(host_options(host), facts)
    assert [one for one in plan["findings"] if one["severity"] != "info"] == []
    assert KEY not in json.dumps(plan)
    for service in plan["services"]:
        assert service["memory"]["fits"], service["name"]


@pytest.mark.parametrize("name", list(PICTURES))
def test_every_picture_is_as_wide_as_a_page(name: str) -> None:
    assert max(map(cells, PICTURES[name]().splitlines())) <= 100


def test_the_later_picture_tells_what_moves() -> None:
    text = PICTURES["later"]()
    assert "~ qwen-vl  restarts  --max-model-len 32000 -> 16000\n" in text
    assert "- whisper  stops     it is not in vllm_services\n" in text
    assert "changes: none, qwen-vl-3b, whisper-turbo go on\n" in text
