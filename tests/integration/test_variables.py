# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Variables that are misspelt or wrong, in the playbooks: a few lines, beside all else, before anything is changed."""

from __future__ import annotations

import json
import typing as t

import pytest
from fleet_box import Box

WRONG = {
    "vllm_runtime": "sytemd",
    "vllm_device": "gpu",
    "vllm_fleet_missing": "fre",
    "vllm_image_pull": "alway",
    "vllm_preflight_fail_on": "warn",
    "vllm_drain_seconds": "soon",
    "vllm_preflight_skip": {"gpu.ecc": True},
    "vllm_following": "curl",
    "vllm_container_gpu_driver": None,
}
REMEDIES = ("systemd", "cuda", "free", "always", "warning")


def test_the_preflight_says_all_of_them_at_once(fresh_box: Box) -> None:
    path = fresh_box.directory / "preflight.json"
    run = fresh_box.play("preflight", [fresh_box.service("chat")], vllm_preflight_path=str(path), **WRONG)
    assert run.rc == 2, run.output
    assert "argument_spec_data" not in run.output, "Ansible's validation shows all of the specification"
    host = json.loads(path.read_text())["hosts"]["box"]
    found = [one for one in host["findings"] if one["code"] == "plan.bad_setting"]
    assert sorted(one["seen"].split()[0] for one in found) == sorted(WRONG)
    assert {f"write {word}" for word in REMEDIES} <= {one["remedy"] for one in found}
    assert not host["failure"], "all other rules were asked too"
    assert host["counts"]["passed"] > 40
    assert f"{len(WRONG)} errors" in run.output


@pytest.mark.parametrize("enabled", [True, False])
def test_a_deploy_stops_before_anything_is_changed(fresh_box: Box, enabled: bool) -> None:
    services = [fresh_box.service("chat")]
    run = fresh_box.play("deploy", services, vllm_preflight_enabled=enabled, **WRONG)
    assert (run.rc, run.changed) == (2, 0), run.output
    assert "argument_spec_data" not in run.output
    summary = run.output[run.output.index("Deployed: 1 host") :]
    assert "plan.bad_setting: vllm_runtime is 'sytemd'" in summary
    assert not fresh_box.root.exists()


def test_misspelt_services_are_not_taken_for_none(fresh_box: Box) -> None:
    """Nor is anything that runs stopped, or any model removed."""
    own = {"vllm_sevices": [fresh_box.service("chat")]}
    for playbook in ("plan", "preflight", "deploy", "prune"):
        run = fresh_box.play(playbook, [], **own)
        assert (run.rc, run.changed) == (2, 0), run.output
        assert "vllm_sevices is set, which nothing reads" in " ".join(run.output.split()), playbook
    for playbook in ("status", "teardown"):
        assert "vllm_sevices is set" in fresh_box.play(playbook, [], **own).output
    off = {"vllm_preflight_skip": ["plan.unknown_variable"]}
    run = fresh_box.play("preflight", [], **own, **off)
    assert "vllm_sevices" not in run.output, run.output


def test_a_name_that_is_nearly_one_stops_nobody(fresh_box: Box) -> None:
    own = {"vllm_hub_endpont": "x", "vllm_port": 1, "vllm_images": {"a": "b"}, "mine": "{{ vllm_images.a }}"}
    run = fresh_box.play("preflight", [fresh_box.service("chat")], **own)
    assert run.rc == 0, run.output
    assert "vllm_hub_endpont is set, which nothing reads" in " ".join(run.output.split())
    assert run.output.count("plan.unknown_variable") == 1


def test_a_teardown_does_not_guess_who_runs_the_services(fresh_box: Box) -> None:
    run = fresh_box.play("teardown", [], vllm_runtime="docker")
    assert (run.rc, run.changed) == (2, 0), run.output
    assert "FAILED: vllm_runtime is 'docker'" in run.output
    # What it does not need, it does not mind.
    assert fresh_box.play("teardown", [], vllm_image_pull="alway").rc == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vllm_services", "chat"),
        ("vllm_services", {"chat": {"model": "acme/tiny"}}),
        ("vllm_services", None),
        ("vllm_fleet_services", "chat"),
        ("vllm_fleet_services", 7),
    ],
)
def test_services_that_are_no_list(fresh_box: Box, name: str, value: t.Any) -> None:
    given = {"vllm_services": [], name: value}
    run = fresh_box.play("plan", given.pop("vllm_services"), **given)
    assert run.rc == 2, run.output
    assert f"{name} is a" in run.output or f"{name} is null" in run.output
    assert "start each with '- name:'" in " ".join(run.output.split())
