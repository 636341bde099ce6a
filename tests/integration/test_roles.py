# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Roles that a user runs alone, and the ways to call the playbooks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from fleet_box import MODEL, REPOSITORY, Box, Run, controller_environment
from model_hub import Hub


def run_playbook(playbook: Path, inventory: Path, *arguments: str) -> Run:
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, playbook, *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=controller_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout)


def test_the_playbook_of_the_checkout_works_typed_just_so(box: Box) -> None:
    run = run_playbook(Path("deploy.yml"), box.inventory([box.service("chat")]))
    assert run.rc == 0, run.output
    assert "1 service: it answers" in run.output


def test_official_client_in_a_venv(tmp_path: Path, hub: Hub) -> None:
    venv = tmp_path / "client"
    play = tmp_path / "client.yml"
    tasks = [{"name": "Client", "ansible.builtin.import_role": {"name": "gpufleet.vllm.modelscope_client"}}]
    play.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    inventory = tmp_path / "hosts.json"
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "modelscope_client_path": str(venv),
        "modelscope_client_command": str(tmp_path / "bin" / "modelscope"),
    }
    (tmp_path / "bin").mkdir()
    inventory.write_text(json.dumps({"all": {"hosts": {"box": host}}}))

    predicted = run_playbook(play, inventory, "--check")
    assert predicted.rc == 0, predicted.output
    assert predicted.changed > 0
    assert not venv.exists()
    first = run_playbook(play, inventory)
    assert first.rc == 0, first.output
    for arguments in (["--check"], []):
        again = run_playbook(play, inventory, *arguments)
        assert (again.rc, again.changed) == (0, 0), again.output

    environment = {"HOME": str(tmp_path), "MODELSCOPE_ENDPOINT": hub.endpoint, "PATH": "/usr/bin:/bin"}
    command = [tmp_path / "bin/modelscope", "download", "--model", MODEL, "--local_dir", tmp_path / "model"]
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)
    assert (tmp_path / "model" / "model.safetensors").stat().st_size == 2_000_000

    removed = run_playbook(play, inventory, "-e", "modelscope_client_state=absent")
    assert removed.rc == 0, removed.output
    assert not venv.exists()
    assert run_playbook(play, inventory, "-e", "modelscope_client_state=absent").changed == 0
