# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.vllm.plugins.filter.service_artifacts import FilterModule, service_artifacts

CHAT = {"name": "chat", "model": "acme/tiny", "revision": "v1"}


def test_the_artifacts_of_services_and_more() -> None:
    made = service_artifacts(
        [CHAT, {**CHAT, "name": "again"}, {"name": "speech", "model": "acme/whisper", "path": "/data/w", "gpus": [9]}],
        "/data/models/",
        more=[{"model": "acme/next", "include": ["*.json"]}, {"model": "acme/tiny", "revision": "v1"}],
    )
    assert [(one["model"], one["path"], one["services"]) for one in made] == [
        ("acme/tiny", "/data/models/tiny", ["chat", "again"]),
        ("acme/whisper", "/data/w", ["speech"]),
        ("acme/next", "/data/models/next", []),
    ]
    assert [one["revision"] for one in made] == ["v1", "master", "master"]
    assert made[2]["include"] == ["*.json"]


@pytest.mark.parametrize("services", [[], (), None, ""])
def test_nothing(services: object) -> None:
    assert service_artifacts(services, "/data") == []


@pytest.mark.parametrize(
    ("services", "more", "said"),
    [
        ([{**CHAT, "modle": "x"}], [], "service.unknown_key"),
        ("chat", [], "vllm_services is a text"),
        ([CHAT, {**CHAT, "name": "b", "revision": "v2"}], [], "plan.path_shared"),
        ([CHAT], [{"model": "acme/tiny"}], "set path: for vllm-fetch-models-1"),
        ([], [{"name": "x", "model": "acme/tiny"}], "is no artifact"),
        ([], ["acme/tiny"], "is no artifact"),
        ([], [{}], "vllm-fetch-models-1"),
    ],
)
def test_what_cannot_be(services: object, more: list[object], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        service_artifacts(services, "/data", more)  # type: ignore[arg-type]


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"service_artifacts": service_artifacts}
