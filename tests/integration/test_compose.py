# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Compose stack on emulated GPU hosts: real SSH, Docker Engine and Compose, a simulated engine and GPUs.

Needs root; the lab installs what it lacks and says what it can not install.
"""

from __future__ import annotations

import json
import re
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_box import REPOSITORY
from lab_box import KEY, MODELS, ROOT, LabBox, image, lab_of, seed, until

pytestmark = pytest.mark.lab

QWEN, WHISPER = "vllm-qwen-vl-service", "vllm-whisper-service"
NEW, OLD = "gpu-13", "gpu-12"
UNCHANGED = {"qwen-vl-service": "unchanged", "whisper-service": "unchanged"}
COMPOSE = f"docker compose --file {ROOT}/compose.yaml"
# Where a secret could come to light: what Docker tells, what stands in files that all may read, what ps shows.
SHOWN = f"""
docker inspect $(docker ps --all --quiet)
docker compose --file {ROOT}/compose.yaml config
cat {ROOT}/compose.yaml {ROOT}/plan.json {ROOT}/record.json {ROOT}/services/*/description
ps axww -o args
cat /proc/[0-9]*/cmdline | tr '\\0' ' '
journalctl --no-pager
for name in {QWEN} {WHISPER}; do docker logs $name 2>&1; done
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabBox]:
    with lab_of("compose", {NEW: "debian13", OLD: "debian12"}, tmp_path_factory.mktemp("compose")) as box:
        run = box.deploy(seed(), "-vvv", "--diff")
        (box.directory / "first.log").write_text(run.output)
        assert run.rc == 0, run.output[-6000:]
        yield box


@pytest.fixture
def box(lab: LabBox) -> LabBox:
    """The first host as the seed wants it, whatever the test before did."""
    lab.settle()
    return lab


def changed(**changes: t.Any) -> list[dict[str, t.Any]]:
    """The seed with other values of its first service."""
    qwen, whisper = seed()
    return [{**qwen, **changes}, whisper]


@pytest.mark.parametrize("host", [NEW, OLD])
def test_both_services_of_the_seed_run_as_they_should(lab: LabBox, host: str) -> None:
    assert lab.gpus(host) == {QWEN: [0, 1], WHISPER: [2]}, "what the runtime hook gave them"
    assert KEY not in lab.sh(SHOWN, host)
    secret = f"{ROOT}/services/qwen-vl-service/environment"
    assert lab.sh(f"stat -c '%a %u' {secret}; cat {secret}", host).splitlines()[0] == "400 2000"
    assert lab.sh(f"grep -c {KEY} {secret}", host) == "1"
    inspected = lab.inspect(QWEN, host)
    assert inspected["Config"]["User"] == "2000:0"
    assert inspected["Config"]["Image"] == f"{image('1')}@{lab.lab.registry.digest('engine-sim:1')}"
    settings = inspected["HostConfig"]
    assert (settings["ReadonlyRootfs"], settings["CapDrop"], settings["Init"]) == (True, ["ALL"], True)
    assert settings["SecurityOpt"] == ["no-new-privileges:true"]
    assert settings["RestartPolicy"]["Name"] == "unless-stopped"
    assert settings["PortBindings"] == {"8000/tcp": [{"HostIp": lab.address(host), "HostPort": "8000"}]}
    mounts = {mount["Destination"]: (mount["Source"], mount["RW"]) for mount in inspected["Mounts"]}
    assert mounts["/model"] == (f"{MODELS}/Qwen2.5-VL-7B-Instruct", False)
    assert lab.answers(8000, host)
    assert lab.answers(8081, host)


@pytest.mark.parametrize("host", [NEW, OLD])
def test_a_person_can_use_the_file_by_hand(lab: LabBox, host: str) -> None:
    before = lab.containers(host)
    assert lab.sh(f"{COMPOSE} config --quiet 2>&1", host) == "", "no error and no warning"
    lab.sh(f"cd {ROOT} && docker compose up --detach 2>&1", host)
    assert lab.containers(host) == before
    shown = lab.sh(f"{COMPOSE} ps --services", host).split()
    assert sorted(shown) == ["qwen-vl-service", "whisper-service"]


def test_the_output_of_a_verbose_deploy_shows_no_secret(lab: LabBox) -> None:
    output = (lab.directory / "first.log").read_text()
    assert "# secret: VLLM_API_KEY=********" in output
    assert KEY not in output


def test_the_second_run_changes_nothing(lab: LabBox) -> None:
    before = {host: lab.containers(host) for host in (NEW, OLD)}
    run = lab.deploy(seed())
    assert (run.rc, run.changed) == (0, 0), run.output
    assert {host: lab.containers(host) for host in (NEW, OLD)} == before
    assert "2 hosts, 4 services: all answer" in run.output


def diffs(output: str) -> list[str]:
    """The lines of the diffs that a run showed for the services."""
    task = output.split("TASK [gpufleet.vllm.vllm_runtime : Run the services]", 1)[1].split("\nTASK [", 1)[0]
    return [line for line in task.splitlines() if re.match(r"[-+ ]", line)]


def test_check_mode_of_the_playbook_shows_what_the_deploy_then_does(box: LabBox) -> None:
    before = box.containers()
    services = changed(max_model_len=16000)
    foretold = box.deploy(services, "--check", "--diff", "--limit", NEW)
    assert foretold.rc == 0, foretold.output
    assert box.containers() == before
    assert "32000" in "".join(diffs(foretold.output))
    run = box.deploy(services, "--diff", "--limit", NEW)
    assert run.rc == 0, run.output
    assert diffs(foretold.output) == diffs(run.output)
    after = box.containers()
    assert after[QWEN] != before[QWEN]
    assert after[WHISPER] == before[WHISPER]
    assert "16000" in box.inspect(QWEN)["Config"]["Cmd"]


def test_a_service_is_deleted_and_nothing_else(box: LabBox) -> None:
    box.docker("run", "--detach", "--name", "foreign", "--entrypoint", "sleep", image("1"), "600")
    try:
        before = box.containers()
        applied = box.apply(seed()[:1])
        assert applied.exact() == {"qwen-vl-service": "unchanged", "whisper-service": "removed"}
        assert box.containers() == {name: before[name] for name in (QWEN, "foreign")}
        assert box.sh(f"ls {ROOT}/services") == "qwen-vl-service"
        assert box.sh(f"ls {MODELS}/whisper-large-v3-turbo") != "", "its model stays"
        assert box.apply(seed()).exact() == {"qwen-vl-service": "unchanged", "whisper-service": "created"}
    finally:
        box.docker("rm", "--force", "foreign")


def test_a_changed_service_is_recreated_alone_and_keeps_its_caches(box: LabBox) -> None:
    box.docker("exec", QWEN, "sh", "-c", "echo kept >/home/vllm/.cache-of-kernels")
    before = box.containers()
    applied = box.apply(changed(max_model_len=8000))
    assert applied.exact() == {"qwen-vl-service": "updated", "whisper-service": "unchanged"}
    after = box.containers()
    assert after[WHISPER] == before[WHISPER]
    assert after[QWEN] != before[QWEN]
    assert box.docker("exec", QWEN, "cat", "/home/vllm/.cache-of-kernels") == "kept"


def test_a_service_is_renamed(box: LabBox) -> None:
    before = box.containers()
    applied = box.apply(changed(name="vision"))
    assert applied.exact() == {"vision": "created", "whisper-service": "unchanged", "qwen-vl-service": "removed"}
    after = box.containers()
    assert set(after) == {"vllm-vision", WHISPER}
    assert after[WHISPER] == before[WHISPER]
    assert box.gpus() == {"vllm-vision": [0, 1], WHISPER: [2]}
    assert box.answers(8000)


def test_two_services_swap_their_ports_and_gpus_in_one_run(box: LabBox) -> None:
    qwen, whisper = seed()
    services = [{**qwen, "port": 8081, "gpus": [1, 2]}, {**whisper, "port": 8000, "gpus": [0]}]
    assert box.apply(services).exact() == {"qwen-vl-service": "updated", "whisper-service": "updated"}
    assert box.gpus() == {QWEN: [1, 2], WHISPER: [0]}
    assert box.inspect(WHISPER)["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostPort"] == "8000"
    assert box.answers(8000)
    assert box.answers(8081)


def test_another_image_recreates_by_digest(box: LabBox) -> None:
    box.docker("pull", "--quiet", image("2"))
    assert set(box.apply(seed(), image=image("2")).exact().values()) == {"updated"}
    digest = box.lab.registry.digest("engine-sim:2")
    assert box.inspect(QWEN)["Config"]["Image"] == f"{image('2')}@{digest}"
    assert box.inspect(QWEN)["Config"]["Labels"]["gpufleet.lab.build"] == "2"
    # Only one service has it: the other one is left alone.
    applied = box.apply([seed()[0], {**seed()[1], "image": image("1")}], image=image("2"))
    assert applied.exact() == {"qwen-vl-service": "unchanged", "whisper-service": "updated"}


def test_another_secret_alone_recreates_its_service(box: LabBox) -> None:
    before = box.containers()
    other = "sk-lab-9876543210"
    applied = box.apply(changed(api_key=other))
    assert applied.exact() == {"qwen-vl-service": "updated", "whisper-service": "unchanged"}
    assert other not in json.dumps(applied.answer)
    assert KEY not in json.dumps(applied.answer)
    assert box.containers()[WHISPER] == before[WHISPER]
    assert box.answers(8000)
    asked = f"curl -s -o /dev/null -w '%{{http_code}}' http://{box.address()}:8000/v1/models -H 'Authorization: Bearer "
    assert box.sh(f"{asked}{other}'") == "200"
    assert box.sh(f"{asked}{KEY}'") == "401"


def test_an_edited_file_is_repaired_without_recreating(box: LabBox) -> None:
    before = box.containers()
    text = box.sh(f"cat {ROOT}/compose.yaml")
    box.sh(f"sed -i 's/32000/64/; s/restart: .*/restart: always/' {ROOT}/compose.yaml")
    assert box.sh(f"cat {ROOT}/compose.yaml") != text
    applied = box.apply(seed())
    assert applied.exact() == UNCHANGED
    assert applied.answer["done"]["changed"]
    assert box.sh(f"cat {ROOT}/compose.yaml") == text
    box.sh(f"{COMPOSE} up --detach 2>&1")
    assert box.containers() == before


@pytest.mark.parametrize(
    ("harm", "action"),
    [("stop --time 1", "started"), ("kill", "started"), ("pause", "started"), ("rm --force", "created")],
)
def test_a_container_that_is_down_is_brought_back(box: LabBox, harm: str, action: str) -> None:
    before = box.containers()
    box.docker(*harm.split(), QWEN)
    applied = box.apply(seed())
    assert applied.exact() == {"qwen-vl-service": action, "whisper-service": "unchanged"}
    after = box.containers()
    assert (after[QWEN] == before[QWEN]) is (action == "started")
    assert after[WHISPER] == before[WHISPER]
    assert box.gpus()[QWEN] == [0, 1]
    assert box.answers(8000)


def test_gpus_come_through_cdi_where_that_is_chosen(box: LabBox) -> None:
    applied = box.apply(seed(), container_gpu_driver="cdi")
    assert applied.exact() == {"qwen-vl-service": "updated", "whisper-service": "updated"}
    assert box.gpus() == {QWEN: [0, 1], WHISPER: [2]}
    via = {json.loads(line)["via"] for line in box.sh("tail -n 2 /var/lib/gpusim/hook.jsonl").splitlines()}
    assert via == {"cdi"}
    assert box.answers(8000)


def test_a_reboot_brings_the_services_back(box: LabBox) -> None:
    before = box.containers()
    box.lab.stop(NEW)
    box.lab.start(NEW)
    assert until(lambda: box.health(8000) == box.health(8081) == 200, 60)
    assert box.containers() == before
    assert box.apply(seed()).exact() == UNCHANGED
    box.sh("systemctl restart docker")
    assert until(lambda: box.health(8000) == box.health(8081) == 200, 60)
    assert box.containers() == before


def test_systemd_and_compose_hand_over_to_each_other(lab: LabBox) -> None:
    lab.sh("mkdir -p /opt/engine/bin /opt/engine/lib", OLD)
    lab.lab.copy(REPOSITORY / "tests/lab/engine_sim", OLD, "/opt/engine/lib")
    start = '#!/bin/sh\nPYTHONPATH=/opt/engine/lib exec python3 -m engine_sim "$@"\n'
    lab.lab.run(OLD, ["sh", "-c", "cat >/opt/engine/bin/vllm; chmod 755 $_ /opt/engine/bin/vllm"],
                input_bytes=start.encode())  # fmt: skip
    bare = {
        "vllm_image": "",
        "vllm_runtime": "systemd",
        "vllm_engine_managed": False,
        "vllm_engine_path": "/opt/engine",
    }
    run = lab.deploy(seed(), "--limit", OLD, **bare)
    assert run.rc == 0, run.output
    assert lab.containers(OLD) == {}
    assert lab.sh(f"ls {ROOT}/compose.yaml", OLD, check=False) == ""
    assert lab.sh("docker network ls --quiet --filter label=com.docker.compose.project", OLD) == ""
    assert lab.sh("systemctl is-active vllm-qwen-vl-service vllm-whisper-service", OLD).split() == ["active"] * 2

    run = lab.deploy(seed(), "--limit", OLD)
    assert run.rc == 0, run.output
    assert set(lab.containers(OLD)) == {QWEN, WHISPER}
    assert lab.gpus(OLD) == {QWEN: [0, 1], WHISPER: [2]}
    assert lab.sh("systemctl list-unit-files 'vllm-*' --no-legend", OLD, check=False) == ""


def test_teardown_leaves_models_and_images_alone(box: LabBox, tmp_path: Path) -> None:
    box.docker("run", "--detach", "--name", "foreign", "--entrypoint", "sleep", image("1"), "600")
    run = box.play("teardown", seed(), "--limit", NEW)
    assert run.rc == 0, run.output
    assert set(box.containers()) == {"foreign"}
    assert box.sh(f"ls -A {ROOT}", check=False) == ""
    assert box.sh("docker network ls --format '{{.Name}}'").split() == ["bridge", "host", "none"]
    assert box.sh(f"ls {MODELS}/Qwen2.5-VL-7B-Instruct/config.json") != ""
    assert box.docker("image", "inspect", "--format", "{{.Id}}", image("1")) != ""
    again = box.play("teardown", seed(), "--limit", NEW)
    assert (again.rc, again.changed) == (0, 0), again.output
    box.docker("rm", "--force", "foreign")
