# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_probe

CLOSED = {"name": "a", "url": "http://127.0.0.1:1", "served_model_name": "m"}


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_probe.main()
    return json.loads(capsys.readouterr().out)


def test_wait(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, endpoints=[CLOSED], runtime="none", phase="wait", slice=0)
    assert (result["changed"], result["ready"]) == (False, False)
    assert "Connection refused" in result["services"]["a"]["seen"]


def test_ask(capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {"a": {"VLLM_API_KEY": "sk-secret"}}
    result = call(capsys, endpoints=[CLOSED], runtime="none", secrets=secrets)
    assert result["ok"] is False
    assert "Connection refused" in result["reports"][0]["results"][0]["reason"]
    assert "sk-secret" not in json.dumps(result)


def test_failures(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, endpoints=[{"name": "a"}], runtime="none")
    assert (result["failed"], result["code"]) == (True, "probe.bad_endpoint")
    assert call(capsys, endpoints=[CLOSED], root="/", runtime="supervisor")["code"] == "stack.bad_root"
