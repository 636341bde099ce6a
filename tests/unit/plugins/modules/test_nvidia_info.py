# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia, _nvidia_probe
from ansible_collections.gpufleet.vllm.plugins.modules import nvidia_info

FIXTURES = Path(__file__).parents[1] / "module_utils" / "fixtures" / "nvidia"


@pytest.fixture(autouse=True)
def bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module sees an empty host, whatever the tests run on."""
    host = _nvidia_probe.Host(root=str(tmp_path), find=lambda name: None, load_nvml=lambda: None)
    monkeypatch.setattr(_nvidia_probe, "Host", lambda: host)


def run_module(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        nvidia_info.main()
    result = json.loads(capsys.readouterr().out)
    assert isinstance(result, dict)
    return result


def fake_smi(tmp_path: Path, body: str) -> str:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_host_without_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_module(capsys)
    assert result["changed"] is False
    assert result["gpus"] == []
    assert result["source"] == "none"
    assert result["reason_code"] == "nvidia.no_gpu"
    assert result["container"]["docker"]["installed"] is False
    # Names that Ansible keeps for itself.
    assert not {"warnings", "deprecations", "exception"} & set(result)


def test_a_real_command_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smi = fake_smi(
        tmp_path,
        f'case "$*" in "-q -x") cat {FIXTURES}/h100-535.xml;; --query-gpu=*) '
        'echo "0, GPU-a0000006-0000-4000-8000-000000000001, 9.0"; '
        'echo "1, GPU-a0000006-0000-4000-8000-000000000002, 9.0";; esac',
    )
    result = run_module(capsys, nvidia_smi=smi, gather=["gpus"], _ansible_check_mode=True)
    assert [gpu["compute_capability"] for gpu in result["gpus"]] == ["9.0", "9.0"]
    assert result["source"] == "nvidia-smi"
    assert result["reason"] is None
    assert result["container"] is None


def test_a_command_that_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_module(capsys, nvidia_smi=fake_smi(tmp_path, "sleep 60"), timeout=1)
    assert result["reason_code"] == "nvidia.hung"
    assert "failed" not in result


def test_containers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_module(capsys, nvidia_smi=fake_smi(tmp_path, "exit 9"), gather=["containers"])
    assert result["reason"] is None
    assert result["container"]["toolkit"]["installed"] is False


@pytest.mark.parametrize("options", [{"timeout": 0}, {"gather": ["cpus"]}])
def test_arguments_that_are_refused(capsys: pytest.CaptureFixture[str], options: dict[str, Any]) -> None:
    result = run_module(capsys, **options)
    assert result["failed"] is True
    assert result["msg"]


def test_the_documented_results_are_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    documented = yaml.safe_load(nvidia_info.RETURN)
    result = run_module(capsys)
    assert set(documented) == set(result) - {"changed", "invocation"}
    assert set(documented["container"]["contains"]) == set(result["container"])
    assert set(documented["container"]["contains"]["docker"]["contains"]) == set(result["container"]["docker"])
    assert set(documented["container"]["contains"]["cdi"]["contains"]) == set(result["container"]["cdi"])
    gpu = _nvidia.empty_gpu(0)
    assert set(documented["gpus"]["contains"]) == set(gpu)
    assert set(documented["gpus"]["contains"]["mig"]["contains"]) == set(gpu["mig"])
    assert set(documented["gpus"]["contains"]["ecc"]["contains"]) == set(gpu["ecc"])
