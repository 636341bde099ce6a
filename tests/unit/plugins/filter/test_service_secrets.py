# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.filter.service_secrets import FilterModule, service_secrets


@pytest.mark.parametrize(
    ("services", "secrets"),
    [
        (None, {}),
        ([], {}),
        ([{"name": "a"}], {}),
        ([{"name": "a", "api_key": "k"}, {"name": "b"}], {"a": {"VLLM_API_KEY": "k"}}),
        ([{"name": "a", "secret_environment": {"HF_TOKEN": "t"}, "api_key": "k"}],
         {"a": {"HF_TOKEN": "t", "VLLM_API_KEY": "k"}}),
        # What the plan reports must not stop a status or a teardown.
        (["text", None, {"api_key": "k"}, {"name": "", "api_key": "k"}], {}),
        ([{"name": "a", "secret_environment": ["A=1"]}], {}),
        ("text", {}),
        ({"name": "a", "api_key": "k"}, {}),
        (7, {}),
    ],
)  # fmt: skip
def test_service_secrets(services: t.Any, secrets: dict[str, dict[str, str]]) -> None:
    assert service_secrets(services) == secrets


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"service_secrets": service_secrets}
