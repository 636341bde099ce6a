# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.modules import nvidia_cdi


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        nvidia_cdi.main()
    return json.loads(capsys.readouterr().out)


def test_arguments_and_result(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[t.Any] = []

    def refresh(check_mode: bool, run: t.Any, timeout: float) -> dict[str, t.Any]:
        seen.append((check_mode, timeout))
        return {"changed": True, "reasons": ["none was there"], "devices": [], "skipped_because": ""}

    monkeypatch.setattr(nvidia_cdi, "refresh", refresh)
    assert call(capsys, timeout=300, _ansible_check_mode=True)["reasons"] == ["none was there"]
    assert seen == [(True, 300)]


def test_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refresh(*_args: t.Any, **_more: t.Any) -> t.NoReturn:
        raise FleetError("cdi.generate", "it failed", "a specification", "look")

    monkeypatch.setattr(nvidia_cdi, "refresh", refresh)
    result = call(capsys)
    assert (result["failed"], result["code"], result["remedy"]) == (True, "cdi.generate", "look")
