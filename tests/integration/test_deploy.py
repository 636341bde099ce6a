# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks on one host with real supervisor, the real module code and protocol, and the simulator as engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fleet_box import MODEL, REPOSITORY, Box, controller_environment, free_port, listening, play
from model_hub import Fault, Hub, add_model
from openai import AuthenticationError, OpenAI

KEY = "sk-integration-0123456789"


def get(port: int, path: str = "/health") -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return int(answer.status)


def answers(port: int) -> bool:
    try:
        return get(port) == 200
    except OSError:
        return False


def snapshot(root: Path) -> dict[str, float]:
    """Every file that a no-op run must leave alone, with its modification time."""
    skipped = ("supervisor/supervisor.sock", "logs/", "state/")
    return {
        str(path.relative_to(root)): path.stat().st_mtime
        for path in root.rglob("*")
        if path.is_file() and not any(part in str(path.relative_to(root)) for part in skipped)
    }


def test_deploy_then_nothing_to_do_then_teardown(fresh_box: Box) -> None:
    services = [
        fresh_box.service("chat", served_model_name="tiny", api_key=KEY),
        fresh_box.service("whisper", model="acme/whisper"),
        fresh_box.service("vision", model="acme/vision"),
        fresh_box.service("embed", model="acme/embed"),
    ]

    predicted = fresh_box.deploy(services, "--check", "--diff")
    assert predicted.rc == 0, predicted.output
    assert not fresh_box.root.exists(), "check mode wrote to the host"

    first = fresh_box.deploy(services, "--diff")
    assert first.rc == 0, first.output
    assert KEY not in first.output + predicted.output
    assert "4 services: all answer" in first.output
    assert '-H "Authorization: Bearer $VLLM_API_KEY" \\' in first.output
    report = fresh_box.report()
    assert report["ok"]
    results = {service["name"]: service["results"] for service in report["hosts"]["box"]["services"]}
    kinds = {name: [result["kind"] for result in result_list] for name, result_list in results.items()}
    assert kinds == {
        "chat": ["models", "key", "chat", "stream"],
        "whisper": ["models", "transcription"],
        "vision": ["models", "chat", "stream", "vision"],
        "embed": ["models", "embedding"],
    }
    assert json.loads((fresh_box.root / "record.json").read_text())["digest"] == fresh_box.plan()["digest"]
    # The record comes after the proof, so check mode cannot know of it: everything before it was foretold.
    assert predicted.changed == first.changed - 1

    before, pids = snapshot(fresh_box.root), {service["name"]: fresh_box.pid(service["name"]) for service in services}
    second = fresh_box.deploy(services)
    assert (second.rc, second.changed) == (0, 0), second.output
    assert snapshot(fresh_box.root) == before
    assert {name: fresh_box.pid(name) for name in pids} == pids
    check_again = fresh_box.deploy(services, "--check")
    assert (check_again.rc, check_again.changed) == (0, 0), check_again.output

    assert fresh_box.play("validate", services).rc == 0
    wrong = fresh_box.play("validate", [{**services[0], "gpus": 1}, *services[1:]])
    assert wrong.rc == 2
    assert "plan.no_gpu" in wrong.output
    assert [service["ok"] for service in fresh_box.report()["hosts"]["box"]["services"]] == [True] * len(services)
    status = fresh_box.play("status", services)
    assert (status.rc, status.changed) == (0, 0), status.output

    assert fresh_box.play("teardown", services, "--check").changed == 1
    assert answers(services[0]["port"])
    down = fresh_box.play("teardown", services, "-e", "vllm_teardown_artifacts=true")
    assert down.rc == 0, down.output
    assert not fresh_box.root.exists()
    assert not any(answers(service["port"]) for service in services)
    assert fresh_box.play("teardown", services, "-e", "vllm_teardown_artifacts=true").changed == 0


def test_openai_client_talks_to_it(box: Box) -> None:
    service = box.service("chat", served_model_name="tiny", api_key=KEY)
    assert box.deploy([service]).rc == 0
    client = OpenAI(base_url=f"http://127.0.0.1:{service['port']}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="tiny", messages=question)  # type: ignore[call-overload]
    assert "Paris" in answer.choices[0].message.content
    with pytest.raises(AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_secrets_stay_in_one_file(box: Box) -> None:
    service = box.service("chat", api_key=KEY, secret_environment={"HF_TOKEN": "hf_0123456789"})
    run = box.deploy([service], "-vvv", "--diff")
    assert run.rc == 0, run.output
    holders = []
    for path in box.root.rglob("*"):
        if path.is_file() and (KEY.encode() in path.read_bytes() or b"hf_0123456789" in path.read_bytes()):
            holders.append(path)
    assert holders == [box.root / "services/chat/environment"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert KEY not in commands
    # -vvv shows the inventory variable where a task names it; the collection's own modules never do.
    for line in run.output.splitlines():
        assert not (KEY in line and "EXEC" in line), line


def test_one_change_restarts_one_service(box: Box) -> None:
    one, two = box.service("one"), box.service("two")
    assert box.deploy([one, two]).rc == 0
    pids = box.pid("one"), box.pid("two")

    changed = {**one, "max_model_len": 1024}
    check = box.deploy([changed, two], "--check", "--diff")
    assert "+    --max-model-len 1024" in check.output
    assert (box.pid("one"), box.pid("two")) == pids
    assert box.deploy([changed, two]).rc == 0
    assert box.pid("one") != pids[0]
    assert box.pid("two") == pids[1]

    keyed = {**changed, "api_key": KEY}
    assert box.deploy([keyed, two]).rc == 0
    again = box.pid("one")
    assert box.deploy([{**keyed, "api_key": KEY + "-rotated"}, two]).rc == 0
    assert box.pid("one") != again, "a rotated key needs a restart"
    assert box.pid("two") == pids[1]


def test_removed_renamed_and_swapped(box: Box) -> None:
    one, two, three = box.service("one"), box.service("two"), box.service("three")
    assert box.deploy([one, two, three]).rc == 0
    third = box.pid("three")
    swapped = [{**one, "port": two["port"]}, {**two, "port": one["port"]}, three]
    run = box.deploy(swapped)
    assert run.rc == 0, run.output
    assert box.pid("three") == third

    renamed = [{**swapped[0], "name": "uno"}, three]
    run = box.deploy(renamed)
    assert run.rc == 0, run.output
    assert box.pid("three") == third
    assert sorted(path.name for path in (box.root / "services").iterdir()) == ["three", "uno"]
    assert not answers(one["port"])


def test_new_model_revision_restarts(box: Box, hub: Hub, tmp_path: Path) -> None:
    service = box.service("chat")
    assert box.deploy([service]).rc == 0
    pid = box.pid("chat")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "v": 2}')
    (newer / "model.safetensors").write_bytes(b"x" * 1000)
    add_model(hub.root, MODEL, newer)
    run = box.deploy([service])
    assert run.rc == 0, run.output
    assert box.pid("chat") != pid
    pinned = box.deploy([{**service, "revision": "v1"}])
    assert pinned.rc == 0, pinned.output


def test_a_repaired_model_is_loaded_again(box: Box) -> None:
    service = box.service("chat")
    assert box.deploy([service]).rc == 0
    pid = box.pid("chat")
    weights = box.root / "models/tiny/model.safetensors"
    state = weights.stat()
    with weights.open("r+b") as stream:
        stream.write(b"damaged!")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert box.deploy([service]).changed == 0, "the damage is hidden from a plain look"
    foretold = box.deploy([service], "--check", "-e", "vllm_artifacts_state=verified")
    repaired = box.deploy([service], "-e", "vllm_artifacts_state=verified")
    assert repaired.rc == 0, repaired.output
    assert box.pid("chat") != pid, "the engine still has the damaged weights in memory"
    assert repaired.changed == foretold.changed + 1  # the record
    assert box.deploy([service], "-e", "vllm_artifacts_state=verified").changed == 0


def test_the_callers_environment_reaches_no_service(box: Box) -> None:
    keyed, open_ = box.service("keyed", api_key=KEY), box.service("open")
    inventory = box.inventory([keyed, open_])
    run = play("deploy", inventory, VLLM_API_KEY="sk-of-the-operator", CUDA_VISIBLE_DEVICES="9")
    assert run.rc == 0, run.output
    assert get(open_["port"], "/v1/models") == 200
    supervisord = int((box.root / "supervisor/supervisord.pid").read_text())
    for pid in (supervisord, box.pid("open"), box.pid("keyed")):
        assert b"sk-of-the-operator" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_service_that_dies_is_restarted(box: Box) -> None:
    service = box.service("chat")
    assert box.deploy([service]).rc == 0
    pid = box.pid("chat")
    assert pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (answers(service["port"]) and box.pid("chat") not in (None, pid)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert box.deploy([service]).changed == 0


def test_a_dead_supervisor_is_started_again(box: Box) -> None:
    service = box.service("chat")
    assert box.deploy([service]).rc == 0
    os.kill(int((box.root / "supervisor/supervisord.pid").read_text()), signal.SIGKILL)
    pid = subprocess.run(
        ["pgrep", "-f", f"{box.engine}|engine_sim.*{service['port']}"], capture_output=True, text=True, check=False
    )
    for line in pid.stdout.split():
        os.kill(int(line), signal.SIGKILL)
    run = box.deploy([service])
    assert run.rc == 0, run.output
    assert answers(service["port"])


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ({"name": "a", "model": MODEL, "prot": 8000}, "service.unknown_key", "write port:"),
        ({"name": "a"}, "service.missing_key", "model is missing"),
        ({"name": "a", "model": MODEL, "gpus": [0]}, "plan.no_gpu", "asks for GPUs"),
        ({"name": "a", "model": MODEL, "args": {"port": 1}}, "service.bad_value", "set port: on the service instead"),
    ],
    ids=["typo", "missing", "no-gpu", "reserved-flag"],
)
def test_bad_input_changes_nothing(fresh_box: Box, entry: dict[str, object], code: str, words: str) -> None:
    run = fresh_box.deploy([entry])
    assert run.rc == 2
    assert code in run.output
    assert words in run.output
    assert "nothing was changed" in run.output
    assert not fresh_box.root.exists()


def test_two_services_on_one_port(fresh_box: Box) -> None:
    one = fresh_box.service("one")
    run = fresh_box.deploy([one, fresh_box.service("two", port=one["port"])])
    assert run.rc == 2
    assert f"port {one['port']} is already the port of one" in run.output
    assert not fresh_box.root.exists()


def test_port_in_use(fresh_box: Box) -> None:
    service = fresh_box.service("chat")
    with listening(service["port"]):
        run = fresh_box.deploy([service])
        assert run.rc == 2
        assert f"port {service['port']} is in use by" in run.output
        assert f"(pid {os.getpid()})" in run.output
        assert not fresh_box.root.exists()
    assert fresh_box.deploy([service]).rc == 0


def test_an_empty_group_is_no_success(box: Box) -> None:
    inventory = box.directory / "empty.json"
    inventory.write_text(json.dumps({"gpu_hosts": {"hosts": {}}}))
    run = play("deploy", inventory)
    assert run.rc == 2
    assert "No host matches 'gpu_hosts'" in run.output


def test_engine_that_dies_while_it_starts(box: Box) -> None:
    box.break_engine(start_seconds=60, die_after=0.5, die_message="torch.OutOfMemoryError: CUDA out of memory. 40 GiB")
    service = box.service("chat")
    started = time.monotonic()
    run = box.deploy([service])
    assert run.rc == 2
    assert time.monotonic() - started < 45, "it waited for the deadline instead of the death"
    assert "chat did not start" in run.output
    assert "torch.OutOfMemoryError: CUDA out of memory. 40 GiB" in run.output
    assert not (box.root / "record.json").exists()
    box.break_engine()
    repaired = box.deploy([service])
    assert repaired.rc == 0, repaired.output
    assert (box.root / "record.json").exists()


def test_engine_that_is_never_ready(box: Box) -> None:
    box.break_engine(start_seconds=600)
    run = box.deploy([box.service("chat", ready_timeout=15)])
    assert run.rc == 2
    assert "chat is not ready after" in run.output
    assert "raise ready_timeout" in run.output
    assert "[box] chat: " in run.output, "no progress was shown"


def test_engine_that_is_healthy_but_does_not_answer(box: Box) -> None:
    box.break_engine(hang=True)
    service = box.service("chat")
    run = box.deploy([service], "-e", "vllm_probe_request_timeout=3")
    assert run.rc == 2
    assert "/health is good, but a chat request failed" in run.output
    assert "within 3 s" in run.output
    box.break_engine()
    assert box.deploy([service]).rc == 0


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"answer": "I like trains."}, "answered 'I like trains.', expected an answer that matches"),
        ({"status": 500}, "HTTP 500: made to fail"),
        ({"served": "someone-else"}, "the engine serves someone-else"),
    ],
    ids=["wrong-answer", "error", "wrong-model"],
)
def test_wrong_answers_fail(box: Box, faults: dict[str, object], words: str) -> None:
    box.break_engine(**faults)
    run = box.deploy([box.service("chat")])
    assert run.rc == 2
    assert words in run.output
    assert not box.report()["ok"]
    assert not (box.root / "record.json").exists()


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ({"model": "acme/unknown"}, "acme/unknown"),
        ({"revision": "v9"}, "v9"),
    ],
    ids=["model", "revision"],
)
def test_unknown_model_or_revision(box: Box, service: dict[str, str], words: str) -> None:
    run = box.deploy([box.service("chat", **service)])
    assert run.rc == 2
    assert "error plan.model_not_found (chat): " in run.output
    assert words in run.output
    assert "correct " in run.output
    assert not (box.root / "services").exists()
    assert not (box.root / "models").exists(), "it stopped before the fetch"
    # Where the operator knows better, the fetch says it again.
    forced = box.deploy([box.service("chat", **service)], vllm_preflight_skip=["plan.model_not_found"])
    assert forced.rc == 2
    assert words in forced.output
    assert "Remedy" in forced.output


def test_a_model_that_the_hub_lost_is_held_against_no_host_that_has_it(box: Box, hub: Hub, tmp_path: Path) -> None:
    service = box.service("chat")
    deployed = box.deploy([service])
    assert deployed.rc == 0, deployed.output
    shutil.rmtree(tmp_path / "hub" / "models" / MODEL)
    looked = box.play("preflight", [service])
    assert looked.rc == 0, looked.output
    assert "plan.model" not in looked.output
    elsewhere = box.play("preflight", [service, box.service("other", revision="v1", path=str(tmp_path / "other"))])
    assert elsewhere.rc == 2
    assert "error plan.model_not_found (other): " in elsewhere.output


def test_hub_unreachable(box: Box, hub: Hub) -> None:
    service = box.service("chat")
    run = box.deploy([service], vllm_hub_endpoint=f"http://127.0.0.1:{free_port()}")
    assert run.rc == 2
    assert "error hub.unreachable: " in run.output
    assert "remedy:" in run.output
    assert not (box.root / "services").exists()
    assert box.deploy([service]).rc == 0
    # What was fetched once keeps being deployed while the hub is away.
    away = box.deploy([service], vllm_hub_endpoint=f"http://127.0.0.1:{free_port()}")
    assert (away.rc, away.changed) == (0, 0), away.output


def test_a_corrupt_download_is_never_served(box: Box, hub: Hub) -> None:
    fault = hub.faults.add(Fault(match="*model.safetensors", corrupt_at=1000))
    service = box.service("chat")
    run = box.deploy([service])
    assert run.rc == 2
    assert "model.safetensors" in run.output
    assert not (box.root / "services").exists()
    hub.faults.remove(fault)
    assert box.deploy([service]).rc == 0


def test_ctrl_c_while_waiting_then_repair(box: Box) -> None:
    box.break_engine(start_seconds=12)
    service = box.service("chat")
    command = [
        # A test run in the background ignores SIGINT, and a child would inherit that.
        "env",
        "--default-signal=INT",
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        box.inventory([service]),
        "gpufleet.vllm.deploy",
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=controller_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (box.root / "plan.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Once is not always enough for Ansible, and a person presses Ctrl-C again.
    for _press in range(10):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=3)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode != 0
    assert not (box.root / "record.json").exists()
    run = box.deploy([service])
    assert run.rc == 0, run.output
    assert box.deploy([service]).changed == 0


def test_second_deploy_at_once_is_told_who_holds_the_lock(box: Box) -> None:
    import fcntl

    service = box.service("chat")
    with (box.root / "lock").open("w") as holder:
        holder.write("pid 4711 since 2026-01-01T00:00:00Z\n")
        holder.flush()
        fcntl.flock(holder, fcntl.LOCK_EX)
        run = box.deploy([service])
    assert run.rc == 2
    assert "another deploy is changing" in run.output
    assert "pid 4711" in run.output
    assert box.deploy([service]).rc == 0


def test_paths_that_are_too_long_are_refused_before_anything(box: Box) -> None:
    long = box.directory / ("x" * 90)
    for arguments in (["--check"], []):
        run = box.deploy(
            [box.service("chat")], *arguments, vllm_root=str(long), vllm_model_root=str(box.directory / "m")
        )
        assert run.rc == 2
        assert "set vllm_root to a shorter path" in run.output
        assert not (long / "services").exists()
