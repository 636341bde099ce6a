# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""playbooks/prune.yml on one host after real deploys: what a running service needs is never touched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_box import Box, Run, play
from model_hub import Hub, add_model

MONTH = 40 * 86400
CONFIRM = ("-e", "vllm_prune_confirm=true")


def age(*paths: Path, seconds: float = MONTH) -> None:
    """Make all of it so old that its age does not protect it."""
    moment = time.time() - seconds
    for path in paths:
        for item in [path, *path.rglob("*")]:
            os.utime(item, (moment, moment), follow_symlinks=False)


def forget_when_they_were_needed(box: Box) -> None:
    """As if the last deploy that named them was long ago."""
    (box.root / "artifacts.json").unlink(missing_ok=True)


def state(*paths: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in paths:
        for item in [path, *path.rglob("*")]:
            found[str(item)] = (item.lstat().st_ino, item.lstat().st_mtime_ns)
    return found


def answers(service: dict[str, object]) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{service['port']}/health", timeout=10) as answer:
        return bool(answer.status == 200)


def lines(run: Run, mark: str) -> list[str]:
    """The rows of the table with this mark, each with the line below it that says why."""
    shown = run.output.splitlines()
    return [
        f"{line} {shown[number + 1].strip()}"
        for number, line in enumerate(shown)
        if line.startswith("box") and line.split()[1:2] == [mark]
    ]


@pytest.fixture
def moved(box: Box) -> tuple[Box, dict[str, object], Path]:
    """A host whose service went from one model to another, and both models on its disk."""
    service = box.service("chat", model="acme/vision")
    assert box.deploy([service]).rc == 0
    service = {**service, "model": "acme/tiny"}
    run = box.deploy([service])
    assert run.rc == 0, run.output
    return box, service, box.root / "models"


def test_the_model_before_goes_and_the_service_does_not_notice(
    moved: tuple[Box, dict[str, object], Path],
) -> None:
    box, service, models = moved
    old, new = models / "vision", models / "tiny"
    age(models)
    run = box.play("prune", [service])
    assert (run.rc, run.changed) == (0, 0), run.output
    assert "deployed less than a minute ago; 30 days have to pass" in run.output, run.output
    forget_when_they_were_needed(box)

    before, pid = state(models), box.pid("chat")
    look = box.play("prune", [service])
    assert (look.rc, look.changed) == (0, 0), look.output
    assert "1 host: 2.0 MB would be freed by removing 1 of 2" in look.output
    (gone,) = lines(look, "REMOVE")
    assert f"{old} published 40 days ago" in gone
    assert "acme/vision @ " in gone
    (kept,) = lines(look, "keep")
    assert f"{new} the inventory wants it" in kept
    assert "the same command with -e vllm_prune_confirm=true" in look.output

    foretold = box.play("prune", [service], *CONFIRM, "--check", "--diff")
    assert (foretold.rc, foretold.changed) == (0, 1), foretold.output
    assert f"-{old}  acme/vision @ " in foretold.output
    assert box.play("prune", [service], "--check").changed == 0, "without the confirmation nothing would be done"
    unclear = box.play("prune", [{**service, "prot": 1}], *CONFIRM)
    assert unclear.rc == 2
    assert "It is not clear which models the inventory wants of this host, so none is removed" in unclear.output
    assert state(models) == before, "only looked at so far"

    available = os.statvfs(models).f_bavail
    done = box.play("prune", [service], *CONFIRM)
    assert (done.rc, done.changed) == (0, 1), done.output
    assert "1 host: 2.0 MB freed by removing 1 of 2" in done.output
    assert not old.exists()
    assert os.statvfs(models).f_bavail != available
    assert {path: value for path, value in before.items() if Path(path).is_relative_to(new)} == state(new)
    assert box.pid("chat") == pid
    assert answers(service)
    again = box.play("prune", [{**service, "gpus": 1}], *CONFIRM)
    assert (again.rc, again.changed) == (0, 0), "a plan that cannot run still says which models it wants"
    assert "plan.no_gpu" in again.output
    assert "nothing to remove, 1 kept" in again.output
    deployed = box.deploy([service])
    assert (deployed.rc, deployed.changed) == (0, 0), deployed.output


def test_the_record_protects_what_a_rollback_needs(box: Box) -> None:
    """The new model does not answer, so the record still names the old one."""
    service = box.service("chat", model="acme/vision")
    assert box.deploy([service]).rc == 0
    box.break_engine(answer="Blue.")
    service = {**service, "model": "acme/tiny"}
    assert box.deploy([service]).rc == 2
    age(box.root / "models")
    forget_when_they_were_needed(box)
    run = box.play("prune", [service], *CONFIRM)
    assert (run.rc, run.changed) == (0, 0), run.output
    assert [line for line in lines(run, "keep") if "vision" in line and "the record of the host names it" in line]
    assert (box.root / "models/vision/model.safetensors").exists()


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def busy(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready when it says so, and ends when its input does."""
    with subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


def test_what_is_in_use_and_what_is_not_ours(moved: tuple[Box, dict[str, object], Path], tmp_path: Path) -> None:
    """Needs root, for the bind mount that a container would have."""
    box, service, models = moved
    old = models / "vision"
    staging = models / ".vision.gpufleet"
    (staging / "parts").mkdir(parents=True)
    staging.chmod(0o700)
    (staging / "parts" / ("a" * 64)).write_bytes(b"x" * 5000)
    (staging / "lock").touch()
    (old / "notes.txt").write_text("mine")
    age(models)
    forget_when_they_were_needed(box)
    before = state(models)

    with held(staging / "lock"):
        run = box.play("prune", [service], *CONFIRM)
        assert (run.rc, run.changed) == (0, 0), run.output
        assert len([line for line in lines(run, "keep") if "another run works on it" in line]) == 2
    with held(box.root / "lock"):
        run = box.play("prune", [service], *CONFIRM)
        assert run.rc == 2
        assert "another deploy is changing" in run.output
        assert "FAILED on box" in run.output
    assert state(models) == before

    with busy("sh", "-c", 'exec 3< "$0"; echo ready; cat', old / "model.safetensors") as reader:
        run = box.play("prune", [service], *CONFIRM)
        assert f"process {reader.pid} (sh) has model.safetensors open" in run.output
    (tmp_path / "inside").mkdir()
    script = 'mount --bind -o ro "$0" "$1" && echo ready && exec cat'
    container = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, old, tmp_path / "inside")
    with busy(*container):
        run = box.play("prune", [service], *CONFIRM)
        assert f"has it mounted at {tmp_path}/inside" in run.output
    assert not staging.exists(), "it had nothing to do with either"
    assert (old / "model.safetensors").exists()

    run = box.play("prune", [service], *CONFIRM)
    assert (run.rc, run.changed) == (0, 1), run.output
    assert "1 of its files are not of the model, and stay" in run.output
    assert [path.name for path in old.iterdir()] == ["notes.txt"]
    assert box.play("prune", [service], *CONFIRM).changed == 0
    assert answers(service)


def test_another_revision_and_what_a_killed_download_left(hub: Hub, box: Box, tmp_path: Path) -> None:
    """A revision goes to the same path, so there is nothing to prune but what a killed run left of it."""
    service = box.service("chat")
    assert box.deploy([service]).rc == 0
    source = tmp_path / "next"
    source.mkdir()
    (source / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (source / "model.safetensors").write_bytes(b"2" * 3_000_000)
    add_model(hub.root, "acme/tiny", source, tag="v2")
    assert box.deploy([{**service, "revision": "v2"}]).rc == 0
    models = box.root / "models"
    lost = models / ".lost.gpufleet"
    (lost / "parts").mkdir(parents=True)
    lost.chmod(0o700)
    (lost / "parts" / ("b" * 64)).write_bytes(b"x" * 100_000)
    age(models)
    forget_when_they_were_needed(box)
    run = box.play("prune", [{**service, "revision": "v2"}], *CONFIRM)
    assert (run.rc, run.changed) == (0, 1), run.output
    (gone,) = lines(run, "removed")
    assert f"{lost} left by an interrupted run; written 40 days ago" in gone
    assert [path.name for path in models.iterdir()] == ["tiny"]
    assert answers(service)


def test_a_host_that_was_never_deployed_to(fresh_box: Box) -> None:
    run = fresh_box.play("prune", [fresh_box.service("chat")])
    assert run.rc == 2
    assert "FAILED on box" in run.output
    assert "holds no record and no plan" in run.output
    assert "vllm_prune_without_record: true" in run.output
    run = fresh_box.play("prune", [fresh_box.service("chat")], "-e", "vllm_prune_without_record=true")
    assert (run.rc, run.changed) == (0, 0), run.output
    assert "nothing to remove, 0 kept" in run.output
    assert not fresh_box.root.exists()


def test_an_inventory_without_services_is_not_believed(moved: tuple[Box, dict[str, object], Path]) -> None:
    box, _service, models = moved
    assert box.deploy([]).rc == 0
    age(models)
    forget_when_they_were_needed(box)
    run = box.play("prune", [], *CONFIRM)
    assert run.rc == 2
    assert "name any model" in run.output
    assert (models / "tiny/model.safetensors").exists()
    run = box.play(
        "prune", [], *CONFIRM, "-e", "vllm_prune_without_record=true", "-e", "vllm_prune_keep=other/*,*/tiny"
    )
    assert (run.rc, run.changed) == (0, 1), run.output
    assert [path.name for path in models.iterdir()] == ["tiny"]


def test_hosts_that_see_one_disk(hub: Hub, tmp_path: Path) -> None:
    """With vllm_prune_shared, what one of them needs stays on all; while one is not asked, nothing of it is sure."""
    models = tmp_path / "models"
    with Box(hub.endpoint, "gpu-01") as one, Box(hub.endpoint, "gpu-02") as two:
        for box in (one, two):
            box.give_supervisor()
        services = [(one, one.service("chat")), (two, two.service("vision", model="acme/vision"))]
        hosts: dict[str, object] = {}
        for box, wanted in services:
            inventory = box.inventory([wanted], vllm_model_root=str(models))
            hosts.update(json.loads(inventory.read_text())["gpu_hosts"]["hosts"])
        inventory = tmp_path / "hosts.json"
        inventory.write_text(json.dumps({"gpu_hosts": {"hosts": hosts}}))
        run = play("deploy", inventory)
        assert run.rc == 0, run.output
        shutil.copytree(models / "tiny", models / "gone")
        age(models)
        run = play("prune", inventory, "-e", "vllm_prune_shared=true", *CONFIRM)
        assert run.rc == 0, run.output
        assert sorted(path.name for path in models.iterdir()) == ["tiny", "vision"]
        assert f"vllm_prune_keep has {models}/vision" in run.output
        before = state(models)
        run = play("prune", inventory, "-e", "vllm_prune_shared=true", *CONFIRM)
        assert (run.rc, run.changed, state(models)) == (0, 0, before), run.output
