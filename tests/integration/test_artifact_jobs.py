# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Artifacts fetched in the background: seen on the way, killed, found again, stopped, and on many hosts at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fleet_box import MODEL, REPOSITORY, Box, Run, controller_environment, cut_connection, play
from model_hub import Fault, Hub, add_model
from model_hub.server import Access

BIG = "acme/big"
BIG_BYTES = 12_000_000
TOKEN = "ms-0123456789abcdef-secret"
PATIENCE = 300.0


@pytest.fixture(autouse=True)
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the jobs of the hosts lie, which are all this machine; whatever still runs at the end is ended."""
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    home = state / "gpufleet-vllm" / "jobs"
    yield home
    while STARTED:
        STARTED.pop().kill()
    for pid in running(home):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def big(tmp_path: Path, hub: Hub) -> Hub:
    """The hub with a model that takes a while."""
    source = tmp_path / "big"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (source / "model.safetensors").write_bytes(random.Random(9).randbytes(BIG_BYTES))
    add_model(hub.root, BIG, source)
    return hub


class Tap:
    """The link to the hub: a trickle that nothing big comes through while a test looks, until it is opened."""

    def __init__(self, hub: Hub) -> None:
        self._fault = hub.faults.add(Fault(match=f"lfs/{BIG}*", total_rate=200_000))

    def open(self) -> None:
        """Also for the answers that are on their way."""
        assert self._fault._bucket is not None
        self._fault._bucket.rate = 1e9


def running(home: Path) -> list[int]:
    """The processes of the jobs that live."""
    found = []
    for record in home.glob("*/job.json"):
        pid = int(json.loads(record.read_text())["pid"])
        comm = Path(f"/proc/{pid}/comm")
        if comm.exists() and comm.read_text().strip() == "gpufleet-job":
            found.append(pid)
    return found


def received(home: Path) -> int:
    return sum(json.loads(path.read_text()).get("received", 0) for path in home.glob("*/status.json"))


def wait_for(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class Background:
    """A playbook that runs while the test goes on."""

    def __init__(self, playbook: str, inventory: Path, *arguments: str) -> None:
        self._log = Path(f"{inventory}.{time.monotonic_ns()}.log")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, f"gpufleet.vllm.{playbook}",
                 *arguments],
                cwd=REPOSITORY, env=controller_environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        STARTED.append(self)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def said(self, text: str) -> None:
        """Wait until it has said this."""
        wait_for(lambda: text in self.output or self._process.poll() is not None)
        assert text in self.output, self.output

    def interrupt(self) -> Run:
        """Ctrl-C."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self.end()

    def end(self) -> Run:
        self._process.wait(PATIENCE)
        return Run(self._process.returncode, self.output)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


STARTED: list[Background] = []


def calls(run: Run) -> int:
    """How many calls of the module a run with -vvv made."""
    return sum("Using module file" in line and "vllm_artifacts.py" in line for line in run.output.splitlines())


def test_progress_is_seen_and_then_there_is_nothing_to_do(box: Box, big: Hub, jobs: Path) -> None:
    services = [box.service("chat"), box.service("large", model=BIG)]
    tap = Tap(big)
    foretold = box.play("fetch", services, "--check", "--diff")
    assert (foretold.rc, foretold.changed) == (0, 1), foretold.output
    assert "Would fetch: 1 host, 2 artifacts: 14.0 MB to fetch" in foretold.output
    assert not (box.root / "models").exists()
    assert not jobs.parent.parent.exists()

    watched = Background("fetch", box.inventory(services), "--diff")
    watched.said(f"[box] {BIG} (2 of 2): ")
    tap.open()
    real = watched.end()
    assert (real.rc, real.changed) == (0, 1), real.output
    assert real.output.count("The models are fetched in the background") == 1
    progress = [line for line in real.output.splitlines() if line.startswith(f"[box] {BIG} (")]
    assert progress
    assert any(" of 12.0 MB (" in line and " kB/s, " in line for line in progress), progress
    assert f"{BIG} @ " in real.output
    assert "12.0 MB fetched in " in real.output
    assert [line for line in foretold.output.splitlines() if " sha256 " in line] == [
        line for line in real.output.splitlines() if " sha256 " in line
    ]
    report = box.report()["hosts"]["box"]["artifacts"]
    assert [(one["model"], one["ok"], one["bytes_fetched"]) for one in report] == [
        (MODEL, True, 2_000_000 + report[0]["bytes_total"] % 1000),
        (BIG, True, report[1]["bytes_total"]),
    ]
    assert not jobs.parent.parent.exists(), "nothing is left of the job"

    big.requests.clear()
    again = box.play("fetch", services, "-vvv")
    assert (again.rc, again.changed, calls(again)) == (0, 0, 1), again.output
    assert big.requests.count("lfs/*") == big.requests.count("list/*") == 0
    assert "all complete, nothing fetched" in again.output
    assert not jobs.parent.parent.exists()

    (box.root / "models" / "big" / "model.safetensors").write_bytes(b"x" * BIG_BYTES)
    verified = box.play("fetch", services, "-e", "vllm_artifacts_state=verified")
    assert (verified.rc, verified.changed) == (0, 1), verified.output
    assert "Verified: 1 host, 2 artifacts: all complete, 12.0 MB fetched" in verified.output
    deployed = box.deploy(services, "--check", "-vvv")
    assert deployed.rc == 0, deployed.output
    assert calls(deployed) == 1


def test_a_killed_job_is_told_of_and_mended(box: Box, big: Hub, jobs: Path) -> None:
    services = [box.service("large", model=BIG)]
    tap = Tap(big)
    first = Background("fetch", box.inventory(services))
    wait_for(lambda: received(jobs) > 1_000_000)
    os.kill(running(jobs)[0], signal.SIGKILL)
    killed = first.end()
    assert killed.rc == 2, killed.output
    assert "ended without a result" in killed.output
    assert "the end of its log: " in killed.output
    assert f"fetching {BIG}" in killed.output
    assert "FAILED on box" in killed.output
    assert not jobs.parent.parent.exists()

    second = Background("fetch", box.inventory(services))
    wait_for(lambda: received(jobs) > 1_000_000)
    second.interrupt()
    os.kill(running(jobs)[0], signal.SIGKILL)
    tap.open()
    big.requests.clear()
    mended = box.play("fetch", services)
    assert (mended.rc, mended.changed) == (0, 1), mended.output
    assert "An earlier job (process " in mended.output
    big.requests.settle()
    assert big.requests.sent("lfs/*") < BIG_BYTES - 1_500_000, "what both received was kept"
    assert box.play("fetch", services).changed == 0


def test_after_ctrl_c_the_same_command_finds_the_job(box: Box, big: Hub, jobs: Path) -> None:
    services = [box.service("large", model=BIG)]
    tap = Tap(big)
    first = Background("deploy", box.inventory(services))
    wait_for(lambda: received(jobs) > 100_000)
    first.interrupt()
    assert len(running(jobs)) == 1, "the fetch goes on"
    process = running(jobs)[0]
    second = Background("fetch", box.inventory(services))
    second.said(f"[box] a job that an earlier run started goes on (process {process})")
    assert running(jobs) == [process]
    tap.open()
    attached = second.end()
    assert (attached.rc, attached.changed) == (0, 1), attached.output
    big.requests.settle()
    assert big.requests.sent("lfs/*") < BIG_BYTES + 1_000_000, "fetched once"
    assert not jobs.parent.parent.exists()


def test_what_a_job_did_is_told_of_by_the_next_run(box: Box, big: Hub, jobs: Path) -> None:
    services = [box.service("large", model=BIG)]
    tap = Tap(big)
    first = Background("fetch", box.inventory(services))
    wait_for(lambda: running(jobs))
    first.interrupt()
    tap.open()
    wait_for(lambda: not running(jobs))
    told = box.play("fetch", services)
    assert (told.rc, told.changed) == (0, 1), told.output
    assert "complete, 12.0 MB fetched" in told.output
    assert box.play("fetch", services).changed == 0
    assert not jobs.parent.parent.exists()


def test_a_fetch_is_stopped_and_taken_up_again(box: Box, big: Hub, jobs: Path) -> None:
    services = [box.service("large", model=BIG)]
    tap = Tap(big)
    first = Background("fetch", box.inventory(services))
    wait_for(lambda: received(jobs) > 1_500_000)
    foretold = box.play("fetch", services, "--check", "-e", "vllm_artifacts_state=stopped")
    assert foretold.changed == 1, foretold.output
    assert running(jobs)
    stopped = box.play("fetch", services, "-e", "vllm_artifacts_state=stopped")
    assert (stopped.rc, stopped.changed) == (0, 1), stopped.output
    assert not running(jobs)
    waited = first.end()
    assert waited.rc == 2, waited.output
    assert "The job was stopped before the artifact was complete" in waited.output
    assert box.play("fetch", services, "-e", "vllm_artifacts_state=stopped").changed == 0
    refused = box.deploy(services, "-e", "vllm_artifacts_state=stopped")
    assert refused.rc == 2
    assert "services need their models" in refused.output
    tap.open()
    big.requests.clear()
    again = box.play("fetch", services)
    assert again.rc == 0, again.output
    big.requests.settle()
    assert big.requests.sent("lfs/*") < BIG_BYTES - 1_000_000


def test_one_that_fails_does_not_stop_the_others(box: Box, big: Hub, jobs: Path) -> None:
    services = [box.service("gone", model="acme/gone"), box.service("large", model=BIG), box.service("chat")]
    # Else the preflight stops the host before the fetch.
    run = box.deploy(services, vllm_preflight_skip=["plan.model_not_found"])
    assert run.rc == 2, run.output
    assert f"acme/gone at {box.root}/models/gone: " in run.output
    assert "1 of 3 artifacts failed" in run.output
    assert "FAILED on box" in run.output
    for name in ("big", "tiny"):
        assert (box.root / "models" / name / ".gpufleet" / "manifest.json").exists()
    assert not (box.root / "plan.json").exists()
    artifacts = {one["model"]: one for one in box.report()["hosts"]["box"]["artifacts"]}
    assert {model: one["ok"] for model, one in artifacts.items()} == {"acme/gone": False, BIG: True, MODEL: True}
    assert not jobs.parent.parent.exists()


def test_six_hosts_fetch_at_once_with_two_forks(big: Hub, jobs: Path, tmp_path: Path) -> None:
    tap = Tap(big)
    with ExitStack() as stack:
        boxes = [stack.enter_context(Box(big.endpoint, f"gpu-{n:02}")) for n in range(1, 7)]
        hosts: dict[str, object] = {}
        for box in boxes:
            hosts |= json.loads(box.inventory([box.service("large", model=BIG)]).read_text())["gpu_hosts"]["hosts"]
        inventory = tmp_path / "hosts.json"
        inventory.write_text(json.dumps({"gpu_hosts": {"hosts": hosts}}))
        fleet = Background("fetch", inventory, "--forks", "2")
        wait_for(lambda: len(running(jobs)) == 6)
        tap.open()
        run = fleet.end()
        assert run.rc == 0, run.output
        assert "Fetched: 6 hosts, 6 artifacts: all complete, 72.0 MB fetched" in run.output
        assert {name: host["changed"] for name, host in run.recap.items() if name != "localhost"} == {
            box.name: 1 for box in boxes
        }
        assert run.output.count("The models are fetched in the background") <= 1
    assert not jobs.parent.parent.exists()


def test_a_connection_that_breaks_while_it_is_waited(big: Hub, jobs: Path, tmp_path: Path) -> None:
    tap = Tap(big)
    with Box(big.endpoint, "gpu-01") as box:
        box.variables = cut_connection(tmp_path, "vllm_artifacts", 0)
        waits = Background("fetch", box.inventory([box.service("large", model=BIG)]))
        wait_for(lambda: received(jobs) > 100_000)
        (tmp_path / "cuts").write_text("once\nonce\n")
        waits.said("[gpu-01] no connection, trying again for 60 s: ")
        tap.open()
        run = waits.end()
        assert (run.rc, run.changed) == (0, 1), run.output
        assert "complete, 12.0 MB fetched" in run.output


def test_a_host_that_is_off_is_in_the_summary(tmp_path: Path) -> None:
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"gpu_hosts": {"hosts": {"gpu-01": {**gone, "vllm_services": []}}}}))
    run = play("fetch", inventory)
    assert run.rc == 2, run.output
    assert "UNREACHABLE: gpu-01" in run.output
    assert "Connection refused" in run.output


def test_a_token_is_nowhere_to_be_seen(tmp_path: Path, big: Hub, jobs: Path) -> None:
    private = Access(tokens=[TOKEN], private=[BIG])
    with Hub(big.root, access=private) as hub, Box(hub.endpoint) as box:
        tap = Tap(hub)
        services = [box.service("large", model=BIG)]
        inventory = box.inventory(services, vllm_hub_token=TOKEN)
        run = Background("fetch", inventory, "-vvv", "--diff")
        wait_for(lambda: received(jobs) > 100_000)
        process = running(jobs)[0]
        assert TOKEN.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
        assert TOKEN.encode() not in Path(f"/proc/{process}/environ").read_bytes()
        listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert TOKEN not in listed
        seen = [*jobs.parent.rglob("*"), *(box.root / "models").rglob("*")]
        assert {"job.json", "status.json", "log"} <= {path.name for path in seen}
        for path in seen:
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
        tap.open()
        ended = run.end()
        assert ended.rc == 0, ended.output
        assert TOKEN not in ended.output
        assert "auth_key=" not in ended.output
        assert TOKEN not in box.report_file.read_text()
        refused = box.play("fetch", [box.service("large", model=BIG, path=str(box.root / "again"))], "-vvv")
        assert refused.rc == 2
        assert TOKEN not in refused.output


def test_models_ahead_of_their_services(box: Box, big: Hub) -> None:
    more = {"vllm_fetch_models": [{"model": BIG}, {"model": "acme/embed", "path": f"{box.root}/ahead"}]}
    run = box.play("fetch", [box.service("chat")], "-e", json.dumps(more))
    assert (run.rc, run.changed) == (0, 1), run.output
    assert sorted(path.name for path in (box.root / "models").iterdir()) == ["big", "tiny"]
    assert (box.root / "ahead" / "config.json").exists()
    assert not (box.root / "plan.json").exists()
    wrong = box.play("fetch", [{**box.service("chat"), "gpu": 1}])
    assert wrong.rc == 2
    assert "service.unknown_key" in wrong.output
