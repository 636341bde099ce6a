# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_models import describe_model, wanted_models

GOOD = {"model": "acme/tiny", "revision": "master", "path": "/data/models/tiny", "include": [], "exclude": []}


def test_a_model_lies_under_the_root_unless_it_says_where() -> None:
    assert wanted_models([{"model": "acme/tiny"}], "/data/models") == {"acme/tiny@master": GOOD}
    there = wanted_models([{"model": "acme/tiny", "revision": "v1", "path": "/srv/tiny", "include": "*.json"}], "/data")
    assert there == {"acme/tiny@v1": {**GOOD, "revision": "v1", "path": "/srv/tiny", "include": ["*.json"]}}
    assert wanted_models([{"model": "acme/tiny"}], "")["acme/tiny@master"]["path"] is None


@pytest.mark.parametrize("item", [None, 7, {}, {"model": ""}, {"model": "../x"}, {"model": "a/b", "revision": "a b\n"}])
def test_what_no_model_can_be_called_is_left_to_the_plan(item: t.Any) -> None:
    assert wanted_models([item], "/data") == {}


def test_no_hub_is_asked_where_none_is_named(tmp_path: Path) -> None:
    entry = describe_model({**GOOD, "path": str(tmp_path / "tiny")}, "", "")
    assert entry["error"]["code"] == "model.not_here"
    assert "no hub was asked" in entry["error"]["seen"]
    assert describe_model({**GOOD, "path": None}, "", "")["error"]["code"] == "model.not_here"


@pytest.mark.parametrize(
    ("endpoint", "code"), [("ftp://x", "hub.bad_endpoint"), ("http://127.0.0.1:9", "hub.unreachable")]
)
def test_a_hub_that_gives_no_answer_is_the_entry_s_error(endpoint: str, code: str, tmp_path: Path) -> None:
    entry = describe_model({**GOOD, "path": str(tmp_path / "tiny")}, endpoint, "")
    assert (entry["error"]["code"], entry["config"]) == (code, None)
