# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

from ansible_collections.gpufleet.vllm.plugins.filter.bundle_content import FilterModule, bundle_content


def test_each_thing_once_and_no_secret() -> None:
    first = [
        {"name": "a", "model": "x/llm", "api_key": "sk-secret"},
        {"name": "b", "model": "x/asr", "revision": "v1", "image": "audio:1", "secret_environment": {"T": "sk-secret"}},
    ]
    second = [{"name": "a", "model": "x/llm", "revision": "master"}]
    found = bundle_content([(first, "engine:1"), (second, "engine:2"), ([], "unused:1"), (None, None)])
    assert found == {
        "models": [
            {"model": "x/asr", "revision": "v1", "include": [], "exclude": []},
            {"model": "x/llm", "revision": "master", "include": [], "exclude": []},
        ],
        "images": ["audio:1", "engine:1", "engine:2"],
    }
    assert "sk-secret" not in json.dumps(found)


def test_patterns_are_kept_where_all_agree() -> None:
    one = {"model": "x/llm", "include": ["*.json"], "exclude": "*.bin"}
    assert bundle_content([([one, one], "")])["models"] == [
        {"model": "x/llm", "revision": "master", "include": ["*.json"], "exclude": ["*.bin"]}
    ]
    assert bundle_content([([one, {"model": "x/llm"}, one], "")])["models"] == [
        {"model": "x/llm", "revision": "master", "include": [], "exclude": []}
    ]


def test_the_bare_engine_needs_no_image() -> None:
    assert bundle_content([([{"model": "x/llm"}], "")])["images"] == []


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"bundle_content": bundle_content}
