# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""playbooks/fetch.yml over hosts that get a model from each other: each in a network namespace, over shaped links."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, Run, controller_environment
from model_hub import add_model
from swarm_net import HUB, SwarmNet, call

MODEL = "acme/large"
BYTES = 12_000_000
PORT = 8791


class Fleet:
    """Hosts that are this machine but for their network, their jobs and their models."""

    def __init__(self, net: SwarmNet, base: Path, hub: Path) -> None:
        self.net, self.base, self.hub = net, base, hub
        self.log = base / "hub.jsonl"
        self.endpoint = net.serve_hub(hub, self.log)
        hosts = {name: self._host(name) for name in net.hosts}
        self.inventory = base / "hosts.json"
        variables = {
            "ansible_connection": "local",
            "vllm_hub_endpoint": self.endpoint,
            "vllm_services": [{"name": "large", "model": MODEL, "port": 8000}],
            "vllm_model_root": f"{base}/{{{{ inventory_hostname }}}}/models",
            "vllm_artifacts_timeout": 5,
        }
        self.inventory.write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": variables}}))

    def _host(self, name: str) -> dict[str, str]:
        home = self.base / name
        home.mkdir()
        python = home / "python"
        python.write_text(
            "#!/bin/sh\n"
            f'XDG_STATE_HOME={home}/state exec ip netns exec {self.net.namespace(name)} {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        return {"ansible_python_interpreter": str(python), "vllm_address": self.net.address(name)}

    def command(self, *arguments: str, hosts: Sequence[str] = (), **variables: object) -> list[str]:
        limit = ["-e", f"vllm_hosts={','.join(hosts)}"] if hosts else []
        told = {"vllm_artifact_distribution": "swarm", **variables}
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        return [playbook, "-i", str(self.inventory), "gpufleet.vllm.fetch", "-e", json.dumps(told), *limit, *arguments]

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in controller_environment().items() if not key.lower().endswith("_proxy")}
        return {**kept, "XDG_STATE_HOME": str(self.base / "nobody")}

    def play(self, *arguments: str, hosts: Sequence[str] = (), **variables: object) -> Run:
        ran = subprocess.run(
            self.command(*arguments, hosts=hosts, **variables), cwd=REPOSITORY, env=self.environment(),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return Run(ran.returncode, ran.stdout + ran.stderr)

    def model(self, name: str) -> Path:
        return self.base / name / "models" / "large"

    def has_it(self, name: str) -> bool:
        source = self.hub.parent / "source"
        return all((self.model(name) / one.name).read_bytes() == one.read_bytes() for one in source.iterdir())

    def nothing_left(self, name: str) -> bool:
        """No job, no directory of one, nothing at the port."""
        listening = call("ip", "netns", "exec", self.net.namespace(name), "cat", "/proc/net/tcp")
        return f":{PORT:04X} 00000000:0000 0A" not in listening and not (self.base / name / "state").exists()

    def jobs(self) -> list[int]:
        found = []
        for record in self.base.glob("*/state/gpufleet-vllm/jobs/*/job.json"):
            pid = int(json.loads(record.read_text())["pid"])
            if Path(f"/proc/{pid}").exists():
                found.append(pid)
        return found


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (source / "model.safetensors").write_bytes(random.Random(4).randbytes(BYTES))
    hub = tmp_path / "hub"
    hub.mkdir()
    add_model(hub, MODEL, source)
    with SwarmNet(4, 100) as net:
        made = Fleet(net, tmp_path, hub)
        yield made
        for pid in made.jobs():
            os.kill(pid, signal.SIGKILL)


def calls(run: Run) -> int:
    """How many calls of the module a run with -vvv made."""
    return sum("Using module file" in line and "vllm_artifacts.py" in line for line in run.output.splitlines())


def wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_whole_fleet_has_it_and_the_hub_gave_it_once(fleet: Fleet) -> None:
    hosts = fleet.net.hosts
    foretold = fleet.play("--check")
    assert (foretold.rc, foretold.changed) == (0, 4), foretold.output
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4
    assert not any(fleet.model(name).exists() for name in hosts)

    before = {name: fleet.net.sent(name) for name in [HUB, *hosts]}
    real = fleet.play("-vvv")
    sent = {name: (fleet.net.sent(name) - before[name]) / BYTES for name in [HUB, *hosts]}
    assert (real.rc, real.changed) == (0, 4), real.output
    print(sent)
    assert sent[HUB] < 1.15
    assert all(sent[name] < 1.2 for name in hosts)
    assert [fleet.has_it(name) for name in hosts] == [True] * 4
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4
    assert f"[{hosts[0]}] gives {MODEL} to 3 other hosts (swarm)" in real.output
    assert "WARNING" not in real.output.replace("[WARNING]: Platform", ""), real.output

    again = fleet.play("-vvv")
    assert (again.rc, again.changed, calls(again)) == (0, 0, 4), again.output
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4


def test_new_host_gets_it_from_the_others_while_the_hub_is_out_of_reach(fleet: Fleet) -> None:
    hosts = fleet.net.hosts
    first = fleet.play(hosts=hosts[:2], vllm_artifact_distribution="seed")
    assert (first.rc, first.changed) == (0, 2), first.output
    fleet.net.cut(HUB)
    later = fleet.play()
    assert (later.rc, later.changed) == (0, 2), later.output
    assert [later.recap[name]["changed"] for name in hosts] == [0, 0, 1, 1]
    assert [fleet.has_it(name) for name in hosts] == [True] * 4
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4
    assert "is kept; whether the revision moved since is not known" in later.output


def test_named_seed_asks_the_hub(fleet: Fleet) -> None:
    hosts = fleet.net.hosts
    before = {name: fleet.net.sent(name) for name in hosts}
    run = fleet.play(vllm_artifact_distribution="seed", vllm_artifact_seed=hosts[2])
    sent = {name: (fleet.net.sent(name) - before[name]) / BYTES for name in hosts}
    assert (run.rc, run.changed) == (0, 4), run.output
    assert f"[{hosts[2]}] gives {MODEL} to 3 other hosts (seed)" in run.output
    assert sent[hosts[2]] > 3.0
    assert all(sent[name] < 0.2 for name in hosts if name != hosts[2])


def test_host_that_cannot_have_it_does_not_stop_the_others(fleet: Fleet) -> None:
    hosts = fleet.net.hosts
    fleet.model(hosts[1]).parent.mkdir()
    fleet.model(hosts[1]).write_text("a file in the way")
    run = fleet.play()
    assert run.rc != 0
    assert "is not a directory" in run.output
    others = [name for name in hosts if name != hosts[1]]
    assert [fleet.has_it(name) for name in others] == [True] * 3, run.output
    assert [run.recap[name]["failed"] for name in others] == [0] * 3
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4


def lies(fleet: Fleet, name: str, **words: str) -> None:
    """Let a host say something else than it saw, in whatever a module answers there."""
    python = fleet.base / name / "python"
    edits = "; ".join(f"s/{word[1:]}/{other}/g" for word, other in words.items())
    script = python.read_text().replace(" exec ", " ", 1).rstrip()
    python.write_text(f"{script} | sed '{edits}'\n")


def test_host_that_lies_about_the_listing_poisons_nobody(fleet: Fleet) -> None:
    hosts = fleet.net.hosts
    digest = hashlib.sha256((fleet.hub.parent / "source" / "config.json").read_bytes()).hexdigest()
    lies(fleet, hosts[0], **{f"_{digest}": "0" * 64})
    run = fleet.play()
    assert (run.rc, run.changed) == (0, 4), run.output
    assert "say different things of the files of one commit" in plain(run)
    assert f"{hosts[0]} and {', '.join(hosts[1:])} say" in plain(run)
    assert "gives" not in run.output
    assert [fleet.has_it(name) for name in hosts] == [True] * 4
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4


def test_seed_that_invents_a_commit_is_not_believed(fleet: Fleet) -> None:
    hosts = fleet.net.hosts
    digest = hashlib.sha256((fleet.hub.parent / "source" / "config.json").read_bytes()).hexdigest()
    (commit,) = {one.name for one in fleet.hub.glob("**/commits/*") if one.is_dir()}
    lies(fleet, hosts[0], **{f"_{digest}": "0" * 64, f"_{commit}": "f" * 40})
    run = fleet.play(vllm_artifact_seed=hosts[0], hosts=hosts[1:] + hosts[:1])
    assert "does not believe the others, and asks the hub itself" in plain(run), run.output
    assert [fleet.has_it(name) for name in hosts[1:]] == [True] * 3, run.output
    assert [run.recap[name]["failed"] for name in hosts[1:]] == [0] * 3, run.output


def plain(run: Run) -> str:
    """What it said, without the breaks of its lines."""
    return " ".join(run.output.split())


def test_verification_repairs_from_the_hub_and_starts_no_swarm(fleet: Fleet) -> None:
    hosts = fleet.net.hosts[:2]
    fleet.play(hosts=hosts)
    (fleet.model(hosts[1]) / "model.safetensors").write_bytes(b"x" * BYTES)
    run = fleet.play("-e", "vllm_artifacts_state=verified", hosts=hosts)
    assert (run.rc, [run.recap[name]["changed"] for name in hosts]) == (0, [0, 1]), run.output
    assert fleet.has_it(hosts[1])
    assert "gives" not in run.output
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 2


def test_official_client_does_not_go_along(fleet: Fleet) -> None:
    run = fleet.play(vllm_artifact_engine="modelscope")
    assert run.rc != 0
    assert "engine is modelscope and distribution swarm" in run.output


def test_interrupted_run_is_taken_up_by_the_next_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    hosts = fleet.net.hosts
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen(
            fleet.command("-vvv"), cwd=REPOSITORY, env=fleet.environment(), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        wait_for(lambda: len(fleet.jobs()) == 4)
        wait_for(lambda: fleet.net.received(hosts[3]) > BYTES // 20)
        os.killpg(running.pid, signal.SIGINT)
        running.wait(60)
    goes_on = fleet.jobs()
    assert goes_on, "the jobs do not mind"
    again = fleet.play("-vvv")
    assert again.rc == 0, again.output
    assert [fleet.has_it(name) for name in hosts] == [True] * 4
    assert [fleet.nothing_left(name) for name in hosts] == [True] * 4, again.output
    assert fleet.jobs() == []


def test_secret_is_nowhere_to_be_seen(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known from the beginning, so that it can be looked for."""
    seen = "5ec2e7" * 10 + "abcd"
    plant = tmp_path / "sitecustomize.py"
    plant.write_text(
        "import secrets\n"
        "original = secrets.token_hex\n"
        f"secrets.token_hex = lambda count=None: '{seen}' if count == 32 else original(count)\n"
    )
    hosts = fleet.net.hosts[:2]
    environment = {
        **fleet.environment(),
        "PYTHONPATH": str(tmp_path),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_LOG_PATH": str(tmp_path / "ansible.log"),
    }
    argv = fleet.command("-vvvv", "--diff", hosts=hosts)
    told = tmp_path / "output"
    with told.open("w") as stream:
        running = subprocess.Popen(
            argv, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
    lines, files, kept = set[str](), set[str](), set[tuple[str, int]]()
    while running.poll() is None:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.add(process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue
        for path in fleet.base.glob("*/state/gpufleet-vllm/jobs/*/*"):
            try:
                files.add(path.read_text("utf-8", "replace"))
            except OSError:
                continue
        for path in (tmp_path / "local").glob("*/vllm_artifacts_secret"):
            kept.add((path.read_text(), path.stat().st_mode & 0o777))
        time.sleep(0.02)
    output = told.read_text()
    assert running.returncode == 0, output
    assert [fleet.has_it(name) for name in hosts] == [True] * 2
    assert kept == {(seen, 0o600)}, "this is the secret, and only for the user who runs Ansible"
    assert files, "the jobs' files were looked at"
    assert not list((tmp_path / "local").iterdir())
    for text in [output, (tmp_path / "ansible.log").read_text(), *lines, *files]:
        assert seen not in text


def test_taken_port_is_a_warning(fleet: Fleet) -> None:
    hosts = fleet.net.hosts[:3]
    occupier = (
        "import json, socket, sys\n"
        f"sock = socket.create_server(('{fleet.net.address(hosts[1])}', {PORT}))\n"
        "print(json.dumps({'event': 'taken'}), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    fleet.net.start(hosts[1], [sys.executable, "-c", occupier]).wait("taken")
    run = fleet.play(hosts=hosts)
    assert run.rc == 0, run.output
    assert [fleet.has_it(name) for name in hosts] == [True] * 3
    assert f"port {PORT} of {fleet.net.address(hosts[1])} is taken by another program" in " ".join(run.output.split())
