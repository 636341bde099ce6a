# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from plan_case import SECRET, only, plan, service


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"engine_managed": False}, "vllm_engine_managed is false, and vllm_engine_path is empty"),
        ({"engine_versions": {"cpu": "1"}}, "vllm_engine_versions has no cuda"),
        ({"root": "~/vllm"}, "vllm_root is '~/vllm'"),
        ({"model_root": "models"}, "vllm_model_root is 'models'"),
        ({"bind_address": "[::1]"}, "vllm_bind_address is '[::1]'"),
        ({"default_args": {"max-model-len": 1}}, "vllm_default_args has 'max-model-len'"),
        ({"default_args": {"api-key": SECRET}}, "vllm_default_args has 'api-key'"),
        ({"cpu_args": {"port": 1}}, "vllm_cpu_args has 'port'"),
        ({"default_environment": {"VLLM_API_KEY": SECRET}}, "vllm_default_environment has VLLM_API_KEY"),
        ({"cpu_environment": {"A": "1\n2"}}, "vllm_cpu_environment has A with a line break or a control character"),
    ],
)
def test_bad_settings(settings: dict[str, t.Any], seen: str) -> None:
    planned = plan(service(), **settings)
    finding = only(planned)
    assert (finding["code"], finding["severity"], finding["seen"]) == ("plan.bad_setting", "error", seen)
    assert SECRET not in json.dumps(planned)
