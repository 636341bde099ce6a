# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What goes wrong around a Compose stack, on emulated GPU hosts: each fault is named, and the next run repairs.

Needs root; the lab installs what it lacks and says what it can not install.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import typing as t
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from lab_box import KEY, ROOT, Applied, LabBox, faults, image, lab_of, seed, until

pytestmark = pytest.mark.lab

QWEN, WHISPER = "vllm-qwen-vl-service", "vllm-whisper-service"
ONE, TWO, THREE = "gpu-1", "gpu-2", "gpu-3"
UNCHANGED = {"qwen-vl-service": "unchanged", "whisper-service": "unchanged"}
NOBODY = "10.213.255.1:5999"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabBox]:
    families = {ONE: "debian13", TWO: "debian13", THREE: "debian12"}
    with lab_of("faults", families, tmp_path_factory.mktemp("faults")) as box:
        yield box


@dataclass(frozen=True)
class Failed:
    """A deploy that failed on every host, and the containers that were there after it, by host."""

    output: str
    containers: dict[str, dict[str, str]]

    def of(self, host: str) -> str:
        """What the summary says of one host, in one line: where it breaks depends on how long words are."""
        summary = self.output.rsplit("Show the summary]", 1)[1].split("TASK [", 1)[0]
        blocks = [block for block in summary.split("\n\n") if block.startswith(host)]
        assert blocks, summary
        return " ".join(blocks[0].split())


def services(**changes: t.Any) -> list[dict[str, t.Any]]:
    """The seed with other values of its first service."""
    qwen, whisper = seed()
    return [{**qwen, **changes}, whisper]


@pytest.fixture(scope="module")
def first(fresh: LabBox) -> Failed:
    """The first deploy of three hosts, each with a fault of its own."""
    fresh.sh("systemctl stop docker.socket docker.service", ONE)
    wanted = {
        ONE: seed(),
        TWO: [seed()[0], {**seed()[1], "image": image("noaudio")}],
        THREE: services(environment=faults(start_seconds=60, die_after=0.2, die_message="CUDA error: bad access")),
    }
    run = fresh.deploy(wanted)
    assert run.rc == 2, run.output
    assert "FAILED on gpu-1, gpu-2, gpu-3" in run.output
    assert {name: run.recap[name]["failed"] for name in wanted} == {ONE: 1, TWO: 1, THREE: 1}
    return Failed(run.output, {TWO: fresh.containers(TWO), THREE: fresh.containers(THREE)})


@pytest.fixture(scope="module")
def deployed(fresh: LabBox, first: Failed) -> LabBox:
    """The same hosts after what was wrong was put right, and the deploy run again."""
    fresh.sh("systemctl start docker", ONE)
    run = fresh.deploy(seed())
    assert run.rc == 0, run.output
    assert "3 hosts, 6 services: all answer" in run.output
    return fresh


@pytest.fixture
def box(deployed: LabBox) -> LabBox:
    """The first host as the seed wants it, whatever the test before did."""
    deployed.settle()
    return deployed


def test_docker_that_is_stopped(first: Failed) -> None:
    said = first.of(ONE)
    assert "plan.docker_down" in said
    assert "systemctl start docker" in said


def test_an_image_that_can_not_decode_audio_is_found_before_anything_starts(first: Failed) -> None:
    said = first.of(TWO)
    assert f"{image('noaudio')} can not decode audio" in said
    assert "which whisper-service needs" in said
    assert "playbooks/audio_image.yml" in said
    assert first.containers[TWO] == {}


def test_a_container_that_exits_in_a_loop_is_shown_with_its_log(first: Failed) -> None:
    said = first.of(THREE)
    assert "qwen-vl-service did not start: its process ended" in said
    assert "CUDA error: bad access" in said
    assert "correct what its log says" in said
    assert set(first.containers[THREE]) == {QWEN, WHISPER}


def test_the_next_run_repairs_all_of_it(deployed: LabBox) -> None:
    for host in (ONE, TWO, THREE):
        assert deployed.gpus(host) == {QWEN: [0, 1], WHISPER: [2]}
        assert deployed.inspect(QWEN, host)["RestartCount"] == 0


# Images and the registry


def test_an_image_that_the_registry_does_not_have(box: LabBox) -> None:
    before = box.containers()
    applied = box.apply(seed(), image=image("3"))
    assert applied.errors == ["image.not_found"]
    assert "engine-sim:3" in applied.text
    assert box.containers() == before


def test_a_registry_that_is_down(box: LabBox) -> None:
    before = box.containers()
    elsewhere = f"{NOBODY}/engine-sim:1"
    applied = box.apply(seed(), image=elsewhere)
    assert applied.errors == ["image.registry_unreachable"]
    assert box.containers() == before
    # What is on the host needs no registry.
    box.docker("tag", image("1"), elsewhere)
    try:
        applied = box.apply(seed(), image=elsewhere)
        assert set(applied.exact().values()) == {"updated"}
        assert box.answers(8000)
    finally:
        box.apply(seed())
        box.docker("rmi", elsewhere)


# Docker


@contextlib.contextmanager
def in_background(work: t.Callable[[], Applied]) -> Iterator[Future[Applied]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


@contextlib.contextmanager
def busy(box: LabBox, seconds: int) -> Iterator[None]:
    """The first service drains for some seconds when it is stopped, since a request of it is not answered."""
    slow = services(drain_seconds=seconds, environment=faults(slow=600))
    assert box.apply(slow).exact()["qwen-vl-service"] == "updated"
    assert box.answers(8000)
    body = json.dumps({"model": "qwen2.5-vl", "messages": [{"role": "user", "content": "Hi"}]})
    asked = f"curl -s -m 60 http://{box.address()}:8000/v1/chat/completions -H 'Authorization: Bearer {KEY}' "
    box.sh(f"nohup {asked} -H 'Content-Type: application/json' -d '{body}' >/dev/null 2>&1 &")
    running = "vllm:num_requests_running"
    assert until(lambda: f"{running}{{" in box.sh(f"curl -s http://{box.address()}:8000/metrics") and any(
        line.startswith(running) and float(line.split()[-1]) > 0
        for line in box.sh(f"curl -s http://{box.address()}:8000/metrics").splitlines()
    ))  # fmt: skip
    yield


def test_docker_that_is_killed_while_a_service_stops(box: LabBox) -> None:
    with busy(box, 10), in_background(lambda: box.apply(seed())) as applying:
        assert until(lambda: box.sh("pgrep -f '[d]ocker stop' || true") != "")
        box.sh("kill -KILL $(pidof dockerd)")
        applied = applying.result()
    assert applied.errors == ["docker.not_running"], applied.text
    assert "systemctl start docker" in applied.text
    assert until(lambda: box.sh("docker version >/dev/null 2>&1 && echo up || true") == "up", 30)
    assert set(box.apply(seed()).exact()) == set(UNCHANGED)
    assert box.answers(8000)
    assert box.gpus() == {QWEN: [0, 1], WHISPER: [2]}


def test_docker_that_is_killed_while_containers_are_made(box: LabBox) -> None:
    before = box.sh("pidof dockerd")
    box.sh("for i in $(seq 3000); do if pgrep -f '[d]ocker.compose.*up' >/dev/null; then kill -KILL $(pidof dockerd); "
           "exit; fi; sleep 0.01; done >/dev/null 2>&1 &")  # fmt: skip
    applied = box.apply(services(max_model_len=4096))
    # Where systemd has Docker back before the second try, that one succeeds.
    assert applied.errors in ([], ["docker.not_running"]), applied.text
    assert box.sh("pidof dockerd || true") != before
    assert until(lambda: box.sh("docker version >/dev/null 2>&1 && echo up || true") == "up", 30)
    repaired = box.apply(services(max_model_len=4096))
    assert repaired.exact()["qwen-vl-service"] in ("created", "updated", "started", "unchanged")
    assert box.answers(8000)
    assert box.answers(8081)
    assert "4096" in box.inspect(QWEN)["Config"]["Cmd"]


# The host


def test_a_port_that_something_else_has(box: LabBox) -> None:
    box.sh("nohup python3 -m http.server 8000 --bind 127.0.0.2 >/dev/null 2>&1 &")
    box.docker("run", "--detach", "--name", "foreign", "--publish", f"{box.address()}:8090:1", "--entrypoint", "sleep",
               image("1"), "600")  # fmt: skip
    try:
        assert until(lambda: box.sh("ss -ltn | grep -c 127.0.0.2:8000 || true") == "1")
        before = box.containers()
        assert box.apply(seed()).exact() == UNCHANGED, "another address is no clash"
        applied = box.apply(services(port=8090))
        assert applied.errors == ["plan.port_taken"]
        assert "port 8090 is in use by docker-proxy" in applied.text
        applied = box.apply(services(bind_address="127.0.0.2"))
        assert applied.errors == ["plan.port_taken"]
        assert "port 8000 is in use by python3" in applied.text
        assert box.containers() == before
    finally:
        box.sh("kill $(pgrep -f '[h]ttp.server 8000')")
        box.docker("rm", "--force", "foreign")


def test_a_container_of_someone_else_with_our_name(box: LabBox) -> None:
    box.docker("create", "--name", "vllm-vision", "--entrypoint", "sleep", image("1"), "600")
    try:
        before = box.containers()
        applied = box.apply(services(name="vision"))
        assert applied.errors == ["stack.foreign_container"]
        assert "docker rm -f vllm-vision" in applied.text
        assert box.containers() == before
    finally:
        box.docker("rm", "--force", "vllm-vision")


def test_a_disk_that_is_full(box: LabBox) -> None:
    box.sh("mkdir -p /srv/small && mount -t tmpfs -o size=256k tmpfs /srv/small && mkdir /srv/small/root")
    try:
        box.sh("dd if=/dev/zero of=/srv/small/filler bs=4k 2>/dev/null || true")
        applied = box.apply([{**seed()[1], "name": "third", "port": 8099}], root="/srv/small/root")
        assert applied.errors == ["host.disk_full"], applied.text
        assert "/srv/small/root" in applied.text
        assert set(box.containers()) == {QWEN, WHISPER}
    finally:
        box.sh("umount /srv/small")


def test_the_second_of_two_deploys_is_told_who_holds_the_lock(box: LabBox) -> None:
    with busy(box, 10), in_background(lambda: box.apply(seed())) as applying:
        assert until(lambda: box.sh("pgrep -f '[d]ocker stop' || true") != "")
        second = box.apply(services(max_model_len=2048))
        assert second.errors == ["stack.locked"]
        assert f"another deploy is changing {ROOT} (pid " in second.text
        assert applying.result().actions == {"qwen-vl-service": "updated", "whisper-service": "unchanged"}
    assert box.apply(seed()).exact() == UNCHANGED


# GPUs


@pytest.fixture
def well(box: LabBox) -> Iterator[LabBox]:
    yield box
    box.simulate()


def test_a_driver_that_does_not_match_its_library(well: LabBox) -> None:
    before = well.containers()
    well.simulate(driver_library_mismatch=True)
    applied = well.apply(services(max_model_len=2048))
    assert applied.errors, "a deploy must not go on"
    assert "mismatch" in applied.text.lower()
    assert well.containers() == before


def test_a_gpu_that_fell_off_the_bus(well: LabBox) -> None:
    before = well.containers()
    well.simulate(fallen_off_bus=1)
    applied = well.apply(services(max_model_len=2048))
    assert applied.errors, "a deploy must not go on"
    assert well.containers() == before


def test_a_toolkit_that_is_missing(well: LabBox) -> None:
    before = well.containers()
    well.sh("mv /usr/bin/nvidia-container-runtime-hook /usr/bin/.hook")
    try:
        applied = well.apply(services(max_model_len=2048))
        assert applied.errors == ["plan.no_toolkit"]
        assert "playbooks/prerequisites.yml" in applied.text
        assert well.containers() == before
    finally:
        well.sh("mv /usr/bin/.hook /usr/bin/nvidia-container-runtime-hook")


def test_a_cdi_specification_without_the_gpus(well: LabBox) -> None:
    before = well.containers()
    where = well.sh("grep -ls nvidia.com/gpu /etc/cdi/* /var/run/cdi/* || true").split()
    assert where
    saved = [f"mv {path} /root/" for path in where]
    well.sh(" && ".join(saved))
    try:
        applied = well.apply(seed(), container_gpu_driver="cdi")
        assert set(applied.errors) == {"plan.cdi_stale"}
        assert "nvidia-ctk cdi generate" in applied.text
        assert well.containers() == before
    finally:
        well.sh(" && ".join(f"mv /root/{os.path.basename(path)} {path}" for path in where))


# Connections


def cut(box: LabBox, host: str) -> None:
    """Nobody comes in, and whoever is connected is cut off."""
    box.sh("iptables -I INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset", host)
    box.sh("pkill -f '[s]shd: .*@|[s]shd-session: ' || true", host)


def mend(box: LabBox, host: str) -> None:
    box.sh("iptables -D INPUT 1", host)


def test_ssh_that_is_cut_during_the_wait(box: LabBox) -> None:
    wanted = services(environment=faults(start_seconds=12))
    with box.deploying(wanted, "--limit", ONE) as running:
        assert until(lambda: "Wait for the services" in box.output and "starting, " in box.output, 90)
        cut(box, ONE)
        time.sleep(6)
        mend(box, ONE)
        rc = running.wait(120)
    assert rc == 0, box.output
    assert "no connection, trying again" in box.output
    assert "1 host, 2 services: all answer" in box.output


def test_a_host_that_is_lost_and_a_deploy_that_is_killed(box: LabBox) -> None:
    """Two of three go on; then the controller is killed in the middle; then a run repairs all of it."""
    wanted = services(max_model_len=16000)
    with box.deploying(wanted) as running:
        assert until(lambda: "Gather the facts of the host]" in box.output and f"ok: [{THREE}]" in box.output, 90)
        cut(box, THREE)
        running.wait(180)
    assert running.returncode == 2, box.output
    assert f"UNREACHABLE: {THREE}" in box.output
    for host in (ONE, TWO):
        assert "16000" in box.inspect(QWEN, host)["Config"]["Cmd"]
    assert "16000" not in box.inspect(QWEN, THREE)["Config"]["Cmd"]
    mend(box, THREE)

    with box.deploying(services(max_model_len=8000)) as running:
        assert until(lambda: "Run the services]" in box.output.rsplit("PLAY [", 1)[-1], 90)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    run = box.deploy(services(max_model_len=8000))
    assert run.rc == 0, run.output
    assert "3 hosts, 6 services: all answer" in run.output
    for host in (ONE, TWO, THREE):
        assert "8000" in box.inspect(QWEN, host)["Config"]["Cmd"]
        assert set(box.containers(host)) == {QWEN, WHISPER}
