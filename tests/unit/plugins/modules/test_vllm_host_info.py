# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_probe
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_host_info


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_host_info.main()
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvidia_probe, "gather", lambda **_more: {"gpus": [], "reason": "no driver"})


def test_facts_of_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = call(capsys, root=str(tmp_path / "root"), runtime="supervisor", ports=[1], paths=[str(tmp_path)])
    assert not facts["changed"]
    assert facts["hostname"]
    assert facts["services"] == {}
    assert facts["filesystems"][0]["path"] == str(tmp_path)


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(capsys, root="/var/lib")["code"] == "stack.bad_root"

    def refuse(**_options: t.Any) -> t.NoReturn:
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr(vllm_host_info, "gather", refuse)
    assert call(capsys)["code"] == "host.permission"
