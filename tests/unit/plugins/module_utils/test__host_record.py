# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_record import applied_facts, record_facts
from hypothesis import given
from hypothesis import strategies as st

SECRET = "sk-hunter2-0123456789"
CARD = {
    "uuid": "GPU-a0000009-0000-4000-8000-000000000001",
    "name": "NVIDIA H200",
    "pci_bus_id": "00000000:1B:00.0",
    "memory_total_bytes": 150754820096,
}
ENTRY: dict[str, t.Any] = {
    "name": "chat", "model": "acme/chat", "revision": "master", "path": "/data/models/chat", "port": 8000,
    "bind_address": "127.0.0.1", "image": "vllm/vllm-openai:v0.33.0", "tensor_parallel_size": 1, "wish": 1,
    "arguments": ["/model", "--served-model-name", "chat"], "environment": {"B": SECRET, "A": "1"}, "gpus": [CARD],
    "secrets": ["VLLM_API_KEY"], "command": ["vllm"],
}  # fmt: skip
RECORD = {"digest": "d", "recorded_at": "2026-01-01T00:00:00Z", "services": [ENTRY]}


def test_a_record() -> None:
    facts = record_facts(RECORD)
    assert facts == {
        "digest": "d",
        "recorded_at": "2026-01-01T00:00:00Z",
        "services": {
            "chat": {
                "gpus": [{"index": None, **CARD}], "wish": 1, "model": "acme/chat", "revision": "master",
                "path": "/data/models/chat", "port": 8000, "bind_address": "127.0.0.1", "tensor_parallel_size": 1,
                "image": "vllm/vllm-openai:v0.33.0", "arguments": ["/model", "--served-model-name", "chat"],
                "environment": ["A", "B"],
            }
        },
    }  # fmt: skip
    assert SECRET not in json.dumps(facts)


def test_what_was_applied() -> None:
    assert applied_facts(RECORD) == {
        "digest": "d",
        "services": {"chat": {"gpus": [{"index": None, **CARD}], "wish": 1}},
    }


@pytest.mark.parametrize("document", [None, {}])
def test_nothing_was(document: t.Any) -> None:
    assert record_facts(document) is None
    assert applied_facts(document) is None


def test_a_record_of_an_older_release() -> None:
    """It has the index, no wish, no slot and no memory."""
    old = {**ENTRY, "gpus": [{"index": 2, "uuid": CARD["uuid"], "name": "NVIDIA H200"}]}
    del old["wish"], old["image"]
    facts = record_facts({**RECORD, "services": [old]})
    assert facts is not None
    service = facts["services"]["chat"]
    assert "wish" not in service
    assert service["image"] is None
    assert service["gpus"] == [{**dict.fromkeys(CARD), "index": 2, "uuid": CARD["uuid"], "name": "NVIDIA H200"}]


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ({"chat": ENTRY}, {}),
        (["chat", None, 7, {"name": 7}, {}], {}),
        ([{"name": "a", "gpus": {"uuid": "GPU-1"}}], {"a": []}),
        ([{"name": "a", "gpus": ["GPU-1", {"uuid": None}, {"uuid": 7}]}], {"a": []}),
        ([{"name": "a", "gpus": [{"uuid": "GPU-1", "index": True, "name": [], "memory_total_bytes": "x"}]}],
         {"a": [{**dict.fromkeys(CARD), "index": None, "uuid": "GPU-1"}]}),
    ],
)  # fmt: skip
def test_a_file_that_somebody_edited(services: t.Any, expected: dict[str, t.Any]) -> None:
    facts = applied_facts({"digest": "d", "services": services})
    assert facts is not None
    assert {name: service["gpus"] for name, service in facts["services"].items()} == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ENTRY, "uuid"]), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON)
def test_any_file_is_read(services: t.Any, entry: t.Any) -> None:
    for document in ({"services": services}, {"services": [entry, {**ENTRY, "gpus": entry, "environment": services}]}):
        assert json.dumps([record_facts(document), applied_facts(document)])
