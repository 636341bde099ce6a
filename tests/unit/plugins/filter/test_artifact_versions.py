# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.filter.artifact_versions import FilterModule, artifact_versions


def test_only_what_tells_states_apart() -> None:
    result = {
        "path": "/data/tiny",
        "commit": "0123",
        "manifest_digest": "abcd",
        "published": "p1",
        "bytes_fetched": 7,
        "changed": True,
        "item": {"model": "acme/tiny", "path": "/data/tiny"},
    }
    expected = {
        "path": "/data/tiny",
        "commit": "0123",
        "manifest_digest": "abcd",
        "published": "p1",
        "model": "acme/tiny",
    }
    assert artifact_versions([result]) == [expected]
    assert artifact_versions([{**result, "bytes_fetched": 0, "changed": False}]) == [expected]


def test_what_is_missing_is_none() -> None:
    nothing = {"path": None, "commit": None, "manifest_digest": None, "published": None, "model": None}
    assert artifact_versions([{}, {"item": None}]) == [nothing, nothing]
    assert artifact_versions([]) == []


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"artifact_versions": artifact_versions}
