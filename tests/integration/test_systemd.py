# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks on a host with a real systemd (tests/lab/systemd_box.py), and the simulator as engine."""

from __future__ import annotations

import re
import stat
import time
import typing as t
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_box import MODEL, Run
from systemd_box import SystemdBox

KEY = "sk-systemd-0123456789"
DRAIN_SECONDS = 12
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
CHAT = "/v1/chat/completions"
# What systemd or a shell would read as something else.
ODD = """it's "100%" of %n; $HOME ${HOME} `id` \\n # \\"""


@dataclass
class Fleet:
    """One host with two services, deployed by the module's first run; a test leaves it running as it found it."""

    box: SystemdBox
    services: list[dict[str, t.Any]]
    predicted: Run
    first: Run
    wrote_in_check_mode: bool

    @property
    def chat(self) -> dict[str, t.Any]:
        return self.services[0]

    def pids(self) -> list[int | None]:
        return [self.box.pid(service["name"]) for service in self.services]

    def ask(self, timeout: float = 10) -> tuple[int, str]:
        return self.box.request(self.chat["port"], CHAT, QUESTION, self.chat["api_key"], timeout)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with SystemdBox() as box:
        services = [
            box.service("chat", served_model_name="tiny", api_key=KEY, drain_seconds=DRAIN_SECONDS),
            box.service(
                "other",
                secret_environment={"HF_TOKEN": "hf_systemd_0123456789"},
                environment={"ODD": ODD},
                args={"odd-flag": ODD},
            ),
        ]
        predicted = box.deploy(services, "--check", "--diff")
        wrote = box.root.exists() or bool(box.units()) or "vllm" in box.run("getent", "passwd")
        yield Fleet(box, services, predicted, box.deploy(services, "--diff"), wrote)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def asked(fleet: Fleet, pool: ThreadPoolExecutor, name: str, slow: float) -> Future[tuple[int, str]]:
    """A question that the engine has begun to answer, and that takes ``slow`` seconds; later ones are fast."""
    box, service = fleet.box, next(service for service in fleet.services if service["name"] == name)
    body = {**QUESTION, "model": service.get("served_model_name", MODEL)}
    box.break_engine(slow=slow)
    answer = pool.submit(box.request, service["port"], CHAT, body, service.get("api_key", ""), 90)
    running = re.compile(r"num_requests_running\S* 1\.0")
    assert within(10, lambda: bool(running.search(box.request(service["port"], "/metrics")[1])))
    box.break_engine()
    return answer


def as_service(box: SystemdBox, name: str, script: str) -> str:
    """What a shell says that sees the service's files and is its user, without capabilities, as the unit has it."""
    user = ["--reuid", "vllm", "--regid", "vllm", "--clear-groups"]
    drop = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    enter = ["nsenter", "--target", box.pid(name), "--mount", "setpriv", *user, *drop]
    return box.run(*enter, "sh", "-c", script, check=False)


def test_check_mode_tells_what_deploy_does(fleet: Fleet) -> None:
    assert fleet.predicted.rc == 0, fleet.predicted.output
    assert not fleet.wrote_in_check_mode
    assert fleet.first.rc == 0, fleet.first.output
    # The record comes after the proof, so check mode cannot know of it.
    assert fleet.predicted.changed == fleet.first.changed - 1
    assert "2 services: all answer" in fleet.first.output
    assert KEY not in fleet.predicted.output + fleet.first.output


def test_services_run_as_their_user_and_answer(fleet: Fleet) -> None:
    box = fleet.box
    assert box.units() == ["vllm-chat.service", "vllm-other.service"]
    _name, _password, uid, _gid, _comment, home, shell = box.run("getent", "passwd", "vllm").strip().split(":")
    assert (home, shell) == (box.vllm_root, "/usr/sbin/nologin")
    assert int(uid) < 1000, "not a system user"
    for service in fleet.services:
        environment = (box.root / "services" / service["name"] / "environment").stat()
        assert (stat.S_IMODE(environment.st_mode), environment.st_uid) == (0o600, 0)
        state = (box.root / "services" / service["name"] / "state").stat()
        assert (stat.S_IMODE(state.st_mode), state.st_uid) == (0o700, int(uid))
        process = box.run("cat", f"/proc/{box.pid(service['name'])}/status")
        assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", process, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", process, re.MULTILINE)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert re.search(rf"^{kind}:\t0+$", process, re.MULTILINE), kind
    status, text = fleet.ask()
    assert (status, "Paris" in text) == (200, True), text
    assert box.request(fleet.chat["port"], "/v1/models", key="wrong")[0] == 401


def test_odd_values_arrive_as_they_are(fleet: Fleet) -> None:
    process = Path(f"/proc/{fleet.box.init}/root/proc/{fleet.box.pid('other')}")
    assert f"ODD={ODD}" in (process / "environ").read_text().split("\0")
    command = (process / "cmdline").read_text().split("\0")
    assert command[command.index("--odd-flag") + 1] == ODD


def test_the_unit_as_systemd_has_it(fleet: Fleet) -> None:
    shown = fleet.box.show("chat")
    expected = {
        "UnitFileState": "enabled",
        "User": "vllm",
        "Group": "vllm",
        "UMask": "0077",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
        "RestrictNamespaces": "yes",
        "LimitNOFILE": "1048576",
        "LimitMEMLOCK": "infinity",
        "KillMode": "mixed",
        "KillSignal": "15",
        "Restart": "always",
        "TimeoutStopUSec": f"{DRAIN_SECONDS + 30}s",
        "ReadWritePaths": f"{fleet.box.vllm_root}/services/chat/state",
        "PrivateDevices": "no",
        "NeedDaemonReload": "no",
    }
    # systemd leaves out what is empty.
    assert {name: shown.get(name, "") for name in expected} == expected


def test_systemd_has_no_complaint_about_the_unit(fleet: Fleet) -> None:
    box = fleet.box
    for unit in box.units():
        assert box.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}") == ""
    security = box.run("systemd-analyze", "security", "--no-pager", "vllm-chat.service")
    level = re.search(r"exposure level for vllm-chat.service: ([0-9.]+)", security)
    # 3.5 with systemd 252. What remains is what an engine needs: the network, devices, code made at run time.
    assert level, security
    assert float(level[1]) <= 4.0, security


def test_a_service_writes_in_its_state_alone_and_reads_no_secret(fleet: Fleet) -> None:
    box = fleet.box
    root = Path(box.vllm_root)
    state, model = root / "services/chat/state", root / "models/tiny"
    assert as_service(box, "chat", f"touch {state}/mine && rm {state}/mine && id -un") == "vllm\n"
    assert as_service(box, "chat", f"cat {model}/config.json") == (box.root / "models/tiny/config.json").read_text()
    elsewhere = [root, root / "services/chat", root / "services/other/state", model, "/etc", "/var/tmp/..", "/run/lock"]
    for path in elsewhere:
        said = as_service(box, "chat", f"touch {path}/mine")
        assert "Read-only file system" in said or "Permission denied" in said, f"{path}: {said}"
        # Not even root, were it to become that, could write there.
        said = box.run("nsenter", "--target", box.pid("chat"), "--mount", "touch", f"{path}/mine", check=False)
        assert "Read-only file system" in said, f"{path}: {said}"
    for secret in ("services/chat/environment", "services/other/environment", "plan.json"):
        assert "Permission denied" in as_service(box, "chat", f"cat {root}/{secret}")
    box.run("touch", "/tmp/of-the-host")
    assert "of-the-host" not in as_service(box, "chat", "ls -a /tmp")


def test_secrets_are_seen_nowhere(fleet: Fleet) -> None:
    box = fleet.box
    pid = box.pid("chat")
    nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    seen = {
        "show": box.systemctl("show", "vllm-chat.service"),
        "cat": box.systemctl("cat", "vllm-chat.service", "vllm-other.service"),
        "status": box.systemctl("status", "--full", "vllm-chat.service"),
        "ps": box.run(*nobody, "ps", "-eo", "args"),
        "cmdline": box.run(*nobody, "cat", f"/proc/{pid}/cmdline"),
        # Ansible's modules log what they were called with.
        "journal": box.run("journalctl", "--no-pager", "--all", "--output", "export"),
    }
    assert "Invoked with" in seen["journal"]
    for place, text in seen.items():
        assert text.strip(), place
        for secret in (KEY, "hf_systemd_0123456789"):
            assert secret not in text, place
    assert "Permission denied" in box.run(*nobody, "cat", f"/proc/{pid}/environ", check=False)


def test_second_run_with_auto_finds_systemd_and_nothing_to_do(fleet: Fleet) -> None:
    before = fleet.pids()
    run = fleet.box.deploy(fleet.services, vllm_runtime="auto")
    assert (run.rc, run.changed) == (0, 0), run.output
    assert "under systemd" in run.output
    assert fleet.pids() == before


def test_a_unit_that_is_not_ours_is_refused_before_anything_is_touched(fleet: Fleet) -> None:
    box = fleet.box
    foreign = "[Service]\nExecStart=/bin/sleep infinity\n"
    box.run("sh", "-c", f"printf '{foreign}' > /etc/systemd/system/vllm-mine.service; systemctl daemon-reload")
    before = fleet.pids()
    changed = [{**fleet.chat, "max_model_len": 1024}, *fleet.services[1:], box.service("mine")]
    try:
        for arguments in (["--check"], []):
            run = box.deploy(changed, *arguments)
            assert run.rc == 2
            assert "/etc/systemd/system/vllm-mine.service exists and is not ours" in run.output
            assert "rename the service, or remove that unit" in run.output
            assert fleet.pids() == before
            assert not (box.root / "services/mine").exists()
        assert box.run("cat", "/etc/systemd/system/vllm-mine.service") == foreign
    finally:
        box.run("rm", "/etc/systemd/system/vllm-mine.service")


def test_what_somebody_did_to_a_unit_is_undone_without_losing_a_request(fleet: Fleet) -> None:
    """Disabled: enabled again, and left running. Edited: as planned again, restarted once it has answered."""
    box, before = fleet.box, fleet.pids()
    box.systemctl("disable", "vllm-other.service", check=True)
    box.run("sed", "-i", "s/^User=.*/User=root/", "/etc/systemd/system/vllm-chat.service")
    with ThreadPoolExecutor() as pool:
        answer = asked(fleet, pool, "chat", slow=DRAIN_SECONDS - 2)
        run = box.deploy(fleet.services)
        assert answer.done(), "the deploy ended before the request did"
        assert answer.result()[0] == 200, answer.result()
    assert (run.rc, run.changed) == (0, 1), run.output
    assert (box.show("chat")["User"], box.show("other")["UnitFileState"]) == ("vllm", "enabled")
    after = fleet.pids()
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert fleet.ask()[0] == 200


def test_a_request_that_takes_longer_than_the_drain_is_cut(fleet: Fleet) -> None:
    with ThreadPoolExecutor() as pool:
        answer = asked(fleet, pool, "other", slow=60)
        started = time.monotonic()
        fleet.box.systemctl("restart", "vllm-other.service", check=True)
        took = time.monotonic() - started
        assert answer.result()[0] == 0
    assert 1 <= took < 5, "its drain is 1 s"
    assert fleet.box.show("other")["Result"] == "success"


def test_a_killed_service_is_restarted(fleet: Fleet) -> None:
    box, before = fleet.box, fleet.box.pid("chat")
    box.run("kill", "-KILL", before)
    assert within(20, lambda: box.pid("chat") not in (None, before) and box.answers(fleet.chat["port"]))
    assert box.show("chat")["NRestarts"] == "1"


def test_services_are_there_again_after_a_reboot(fleet: Fleet) -> None:
    fleet.box.reboot()
    ports = [service["port"] for service in fleet.services]
    assert within(10, lambda: all(fleet.box.answers(port) for port in ports))
    assert fleet.ask()[0] == 200


def test_an_engine_that_dies_is_told_repaired_and_removed() -> None:
    with SystemdBox() as box:
        bad = box.directory / "bad.json"
        dying = '{"start_seconds": 60, "die_after": 0.5, "die_message": "torch.OutOfMemoryError: CUDA out of memory."}'
        good = box.service("good")
        doomed = box.service("doomed", environment={"ENGINE_SIM_FAULTS": str(bad)})
        bad.write_text(dying)

        started = time.monotonic()
        run = box.deploy([good, doomed], vllm_ready_timeout=300)
        assert time.monotonic() - started < 60, "it waited for the deadline instead of the death"
        assert run.rc == 2
        assert "doomed did not start" in run.output
        assert "torch.OutOfMemoryError: CUDA out of memory." in run.output, "the end of its journal is not told"
        assert not (box.root / "record.json").exists()
        pid = box.pid("good")
        assert pid

        bad.unlink()
        repaired = box.deploy([good, doomed])
        assert repaired.rc == 0, repaired.output
        assert box.pid("good") == pid
        assert (box.root / "record.json").exists()

        # Removed while it is down and failed: nothing of it stays, not even the memory of its failure.
        bad.write_text(dying)
        box.systemctl("kill", "--signal", "KILL", "vllm-doomed.service", check=True)
        box.systemctl("stop", "vllm-doomed.service")
        removed = box.deploy([good])
        assert removed.rc == 0, removed.output
        assert box.units() == ["vllm-good.service"]
        assert box.pid("good") == pid
        assert sorted(path.name for path in (box.root / "services").iterdir()) == ["good"]
        assert box.systemctl("list-units", "--all", "--plain", "--no-legend", "vllm-*").count("vllm-") == 1

        # An engine that cannot even be executed.
        (box.engine / "bin/vllm").rename(box.engine / "bin/away")
        run = box.deploy([good, doomed])
        assert run.rc == 2
        assert "systemd could not start doomed" in run.output
        assert "Failed to locate executable" in run.output, "the end of its journal is not told"
        assert box.pid("good") == pid

        down = box.play("teardown", [good], "-e", "vllm_teardown_artifacts=true")
        assert down.rc == 0, down.output
        assert box.units() == []
        assert not box.root.exists()
        assert box.systemctl("list-units", "--all", "--plain", "--no-legend", "vllm-*").strip() == ""
        assert box.systemctl("is-system-running").strip() == "running"
        links = box.run("find", "/etc/systemd/system", "-name", "vllm-*").strip()
        assert links == ""
        processes = box.run("ps", "-eo", "user,args")
        assert "vllm" not in processes, processes
