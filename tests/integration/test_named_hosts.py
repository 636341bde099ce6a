# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that would touch no host is no success, whatever the playbook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, play

PLAYBOOKS = sorted(path.stem for path in (REPOSITORY / "playbooks").glob("*.yml") if path.stem != "bundle")
# What names other hosts, and the group where nothing does. A bundle is written on the controller then.
VARIABLES = {
    "audio_image": ("vllm_audio_image_hosts", "gpu_hosts"),
    "mirror": ("mirror_hosts", "mirrors"),
    "unbundle": ("mirror_hosts", "mirrors"),
}


def inventory_of(path: Path, group: str, *hosts: str) -> Path:
    named = {name: {"ansible_connection": "local"} for name in hosts}
    path.write_text(json.dumps({group: {"hosts": named}}))
    return path


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_no_host_is_no_success(playbook: str, tmp_path: Path) -> None:
    variable, group = VARIABLES.get(playbook, ("vllm_hosts", "gpu_hosts"))
    run = play(playbook, inventory_of(tmp_path / "hosts.json", "others", "other"))
    assert run.rc == 2, run.output
    assert f"No host matches '{group}' in the inventory." in run.output
    assert f"-e {variable}=PATTERN" in run.output


@pytest.mark.parametrize(("playbook", "variable"), [("plan", "vllm_hosts"), ("bundle", "bundle_hosts")])
def test_a_pattern_without_a_host_is_no_success(playbook: str, variable: str, tmp_path: Path) -> None:
    run = play(playbook, inventory_of(tmp_path / "hosts.json", "gpu_hosts", "gpu-01"), "-e", f"{variable}=nosuch")
    assert run.rc == 2, run.output
    assert "No host matches 'nosuch' in the inventory." in run.output


def test_a_limit_takes_hosts_of_the_group_as_ever(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path / "hosts.json", "gpu_hosts", "gpu-01", "gpu-02")
    run = play("preflight", inventory, "--limit", "gpu-02")
    assert set(run.recap) == {"gpu-02"}, run.output
    assert "No host matches" not in run.output
