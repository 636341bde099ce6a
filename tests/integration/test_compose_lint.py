# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rendered Compose file before a linter that knows OWASP's and the CIS benchmark's rules."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose, _nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan

LINT = Path(sys.executable).with_name("compose-lint")
SMI = Path(__file__).parents[1] / "unit/plugins/module_utils/fixtures/nvidia/h200-580.xml"
# docs/compose.md says why: no memory limit unless one is asked for, and /tmp may hold what a compiler made.
ARGUED = {"CL-0026", "CL-0022"}
SEED = [
    {"name": "qwen-vl-service", "model": "Qwen/Qwen2.5-VL-7B-Instruct", "served_model_name": "qwen2.5-vl",
     "gpus": [0, 1], "port": 8000, "max_model_len": 32000, "api_key": "sk-lint-0123456789"},
    {"name": "whisper-service", "model": "openai-mirror/whisper-large-v3-turbo", "gpus": [2], "port": 8081},
]  # fmt: skip


def findings(directory: Path, **settings: t.Any) -> set[str]:
    """The rules that the stack of the seed breaks, pinned as a deploy pins it."""
    image = "vllm/vllm-openai:v0.33.0@sha256:" + "a" * 64
    facts = {
        "gpus": _nvidia.parse_smi_xml(SMI.read_text(encoding="utf-8"))["gpus"],
        "nvidia": {"container": {
            "docker": {"installed": True, "running": True}, "compose": {"installed": True, "plugin": True},
        }},
    }  # fmt: skip
    root = "/var/lib/gpufleet-vllm"
    plan = make_plan(SEED, Settings(root=root, model_root="/data/models", image=image, **settings), facts)
    assert plan["errors"] == 0, plan["findings"]
    containers = {
        service["name"]: _compose.labelled(service["container"], service["name"], root, "0" * 64)
        for service in plan["services"]
    }
    file = directory / "compose.yaml"
    file.write_text(_compose.document(root, containers), encoding="utf-8")
    done = subprocess.run(
        [LINT, "check", "--format", "json", "--fail-on", "low", file], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return {row["rule_id"] for row in json.loads(done.stdout)["findings"]}


def test_nothing_but_what_the_docs_argue_for(tmp_path: Path) -> None:
    assert findings(tmp_path) == ARGUED


def test_a_memory_limit_is_one_variable_away(tmp_path: Path) -> None:
    assert findings(tmp_path, container_limits={"memory": "200g", "cpus": "32"}) == {"CL-0022"}


@pytest.mark.parametrize("broken", ["privileged", "socket"])
def test_the_linter_does_look(tmp_path: Path, broken: str) -> None:
    text = "services:\n  a:\n    image: x:1\n" + {
        "privileged": "    privileged: true\n", "socket": "    volumes: [/var/run/docker.sock:/var/run/docker.sock]\n",
    }[broken]  # fmt: skip
    (tmp_path / "compose.yaml").write_text(text)
    done = subprocess.run([LINT, "check", tmp_path / "compose.yaml"], capture_output=True, check=False)
    assert done.returncode == 1
