# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _official
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient, Resolution, parse_endpoint
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult


def entries(*paths):
    return [Entry(path, 1, "a" * 64) for path in paths]


def test_batches_fit_on_a_command_line():
    items = entries("a" * 40, "模" * 20, "b", "c" * 200)
    groups = _official.batches(items, 110)
    assert [item for group in groups for item in group] == items
    assert all(len(group) == 1 or sum(len(item.path.encode()) + 1 for item in group) <= 110 for group in groups)
    assert _official.batches([]) == []


@pytest.fixture
def client():
    hub = HubClient(parse_endpoint("https://hub.example.com"), "ms-0123456789abcdef")
    return _official.Client("modelscope", "acme/tiny", Resolution("master", "c" * 40), hub)


def test_the_environment_is_its_own_and_holds_the_token(client, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "https://elsewhere.example.com")
    monkeypatch.setenv("MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS", "4")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com")
    found = client._environment("/x")
    assert (found["HOME"], found["MODELSCOPE_CACHE"]) == ("/x", "/x/cache")
    assert (found["MODELSCOPE_ENDPOINT"], found["MODELSCOPE_API_TOKEN"]) == (
        "https://hub.example.com",
        "ms-0123456789abcdef",
    )
    assert "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS" not in found
    assert found["HTTPS_PROXY"] == "http://proxy.example.com"


def test_its_last_words_are_shown_without_secrets(client):
    said = "E1: https://cdn.example.com/x?auth_key=123 refused ms-0123456789abcdef"
    error = client._failure(CommandResult(1, "", f"progress\n{said}\n"))
    assert error.code == "official.failed"
    assert "https://cdn.example.com/x refused ***" in error.seen


def test_it_needs_a_hub(tmp_path):
    hub = types.SimpleNamespace(
        resolve=lambda model, revision, patient=True: Resolution(revision, "c" * 40),
        list_rows=lambda model, resolution: [{"Path": "a", "Size": 1, "Sha256": "a" * 64}],
    )
    request = _artifact.Request("acme/tiny", "master", str(tmp_path / "m"), "https://h", engine="modelscope")
    with pytest.raises(FleetError) as caught:
        _artifact.present(request, hub)
    assert caught.value.code == "artifact.engine"
