# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.filter.placed_services import FilterModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import parse_services

placed_services = FilterModule().filters()["placed_services"]
UUID = "GPU-0f4c1d5e-0000-4000-8000-000000000001"
FLEET = [
    {
        "name": "chat",
        "model": "acme/tiny",
        "replicas": 2,
        "hosts": ["gpu-01"],
        "gpus": {"count": 1},
        "api_key": "k" * 8,
    },
    {"name": "other", "model": "acme/tiny"},
]


def test_what_was_placed_joins_the_hosts_own_with_all_that_it_is() -> None:
    own = [{"name": "own", "model": "acme/tiny"}]
    services = placed_services(own, FLEET, [{"name": "chat", "gpus": [UUID], "port": 8001}])
    assert services == [
        {"name": "own", "model": "acme/tiny"},
        {"name": "chat", "model": "acme/tiny", "gpus": [UUID], "api_key": "k" * 8, "port": 8001},
    ]
    assert parse_services(services)[1] == []
    assert own == [{"name": "own", "model": "acme/tiny"}]
    assert FLEET[0]["replicas"] == 2


def test_without_anything_placed_it_is_the_list_itself() -> None:
    own: list[object] = []
    assert placed_services(own, FLEET) is own
    assert placed_services("odd", FLEET, []) == "odd"


def test_a_host_whose_list_lacks_the_service_is_told_so_by_its_plan() -> None:
    services = placed_services([], [], [{"name": "chat", "gpus": [UUID], "port": 8001}])
    assert [finding.code for finding in parse_services(services)[1]] == ["service.missing_key"]
