# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import typing as t
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_health as health
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import Host
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

KERNEL = (Path(__file__).parent / "fixtures" / "nvidia" / "kernel-xids.txt").read_text(encoding="utf-8")
BOOT = 1795600000.0
FALLEN = "pid=1122, GPU has fallen off the bus."
DMESG = f"[    1.000000] NVRM: loading\n[  100.500000] NVRM: Xid (PCI:0000:01:00): 79, {FALLEN}\n"
FABRIC = "\n\n\tFabric Manager version is : 535.161.08\n\n"


def host(root: Path, *tools: str, **files: str) -> Host:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Host(root=str(root), find={tool: tool for tool in tools}.get, load_nvml=lambda: None)


class Run:
    def __init__(self, **answers: CommandResult) -> None:
        self.answers, self.calls = answers, list[list[str]]()

    def __call__(self, argv: Sequence[str], timeout: float) -> CommandResult:
        assert timeout <= 10
        self.calls.append(list(argv))
        return self.answers[argv[0].replace("-", "_")]


def ok(text: str, rc: int = 0, err: str = "") -> CommandResult:
    return CommandResult(rc, text, err)


# -- Xids


def test_xids_of_three_generations() -> None:
    found = health.parse_xids(KERNEL)
    assert [(item["xid"], item["pci_bus_id"], item["time"]) for item in found] == [
        (79, "00000000:01:00.0", 1795600100.5),
        (31, "00000000:00:06.0", 1795600200.000001),
        (62, "00000000:03:00.0", 1795600300.0),
    ]
    assert found[0]["message"] == FALLEN
    assert found[1]["message"].startswith("pid=79749, name=exe, Ch 0000000a")


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("[  100.500000] NVRM: Xid (PCI:0000:01:00): 79, x", 1795600100.5),
        ("<3>[  100.500000] NVRM: Xid (PCI:0000:01:00): 79, x", 1795600100.5),
        ("3,1234,100500000,-;NVRM: Xid (PCI:0000:01:00): 79, x", 1795600100.5),
        ("[Wed Nov 25 13:45:36 2026] NVRM: Xid (PCI:0000:01:00): 79, x", None),
        ("kernel: NVRM: Xid (PCI:0000:01:00 GPU-I:05): 79, x", None),
    ],
)
def test_each_log_has_its_own_clock(line: str, time: float | None) -> None:
    (found,) = health.parse_xids(line, BOOT)
    assert found == {"xid": 79, "pci_bus_id": "00000000:01:00.0", "time": time, "message": "x"}


@pytest.mark.parametrize("text", ["", "\x00\xff", "NVRM: Xid (PCI:0000:01:00):", "NVRM: Xid (PCI:zz): 79, x", "Xid 79"])
def test_lines_that_are_none(text: str) -> None:
    assert health.parse_xids(text) == []


def test_a_flood_keeps_the_latest_and_long_messages_are_cut() -> None:
    text = "".join(f"{number}.0 NVRM: Xid (PCI:0000:01:00): 13, {'x' * 5000}\n" for number in range(1000))
    found = health.parse_xids(text)
    assert (len(found), found[-1]["time"], len(found[0]["message"])) == (200, 999.0, 300)


def test_two_logs_of_the_same_are_one(tmp_path: Path) -> None:
    machine = host(tmp_path, "journalctl", "dmesg", proc__stat="cpu 1\nbtime 1795600000\n")
    run = Run(journalctl=ok(KERNEL), dmesg=ok(DMESG + "[ 400.0] NVRM: Xid (PCI:0000:02:00): 48, DBE\n"))
    found = health.read_xids(run, machine, machine.find)
    assert found is not None
    assert [(item["xid"], item["time"]) for item in found] == [
        (79, 1795600100.5),
        (31, 1795600200.000001),
        (62, 1795600300.0),
        (48, 1795600400.0),
    ]
    assert "--grep" in run.calls[0]


@pytest.mark.parametrize(
    "journal",
    [
        ok("", 1, "Compiled without pattern matching support"),
        ok("", 1, "journalctl: unrecognized option '--grep'"),
        ok("", 0, "Hint: You are currently not seeing messages from other users and the system."),
        ok("-- No entries --", 1, "No journal files were opened due to insufficient permissions."),
        ok("", 1, "Hint: You are currently not seeing messages from other users and the system."),
        CommandResult(124, "", "", timed_out=True),
    ],
)
def test_a_journal_that_can_not_be_read_leaves_dmesg(tmp_path: Path, journal: CommandResult) -> None:
    machine = host(tmp_path, "journalctl", "dmesg", proc__stat="btime 1795600000\n")
    found = health.read_xids(Run(journalctl=journal, dmesg=ok(DMESG)), machine, machine.find)
    assert found is not None
    assert [item["xid"] for item in found] == [79]
    refused = ok("", 1, "dmesg: read kernel buffer failed: Operation not permitted")
    assert health.read_xids(Run(journalctl=journal, dmesg=refused), machine, machine.find) is None


def test_a_quiet_host_has_none(tmp_path: Path) -> None:
    machine = host(tmp_path, "journalctl")
    assert health.read_xids(Run(journalctl=ok("-- No entries --\n", 1)), machine, machine.find) == []
    assert health.read_xids(Run(), host(tmp_path), lambda _name: None) is None


def test_without_programs_the_kernel_is_read_itself(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text("6,1,100500000,-;NVRM: Xid (PCI:0000:01:00): 79, gone\n")
    machine = host(tmp_path, proc__stat="btime 1795600000\n")
    found = health.read_xids(Run(), machine, machine.find)
    assert found is not None
    assert [item["time"] for item in found] == [1795600100.5]


# -- throttling


def test_throttle_bits_and_elements_are_the_same_words() -> None:
    assert health.throttle_of_mask(0) == []
    assert health.throttle_of_mask(0x40 | 0x8 | 1 << 40) == ["hw_slowdown", "hw_thermal_slowdown"]
    assert health.throttle_of_mask(None) is None
    elements = [
        ("clocks_event_reason_hw_thermal_slowdown", "Active"),
        ("clocks_throttle_reason_hw_slowdown", "Active"),
        ("clocks_event_reason_gpu_idle", "Not Active"),
        ("clocks_event_reasons_counters", "12"),
    ]
    assert health.throttle_of_elements(elements) == ["hw_slowdown", "hw_thermal_slowdown"]
    assert health.throttle_of_elements([("clocks_event_reason_gpu_idle", "N/A"), ("x", None)]) is None


# -- daemons


@pytest.mark.parametrize(
    ("text", "count", "states"),
    [
        ("active\ninactive\n", 2, [True, False]),
        ("failed\nactivating\n", 2, [False, False]),
        ("unknown\nactive\n", 2, [None, True]),
        ("active\n", 2, [None, None]),
        ("", 1, [None]),
    ],
)
def test_units(text: str, count: int, states: list[bool | None]) -> None:
    assert health.parse_active(text, count) == states


def test_fabric_manager_that_runs(tmp_path: Path) -> None:
    machine = host(tmp_path, "systemctl", "nv-fabricmanager", "nvidia-persistenced")
    run = Run(systemctl=ok("active\nactive\n"), nv_fabricmanager=ok(FABRIC))
    assert health.daemons(run, machine, machine.find) == (
        {"installed": True, "active": True, "version": "535.161.08"},
        True,
    )


def test_fabric_manager_that_was_stopped(tmp_path: Path) -> None:
    machine = host(tmp_path, "systemctl", "nv-fabricmanager", proc__7__comm="bash\n")
    run = Run(systemctl=ok("failed\ninactive\n", 3), nv_fabricmanager=ok("", 1, "cannot open"))
    assert health.daemons(run, machine, machine.find) == ({"installed": True, "active": False, "version": None}, False)


def test_daemons_in_containers_are_seen_by_their_processes(tmp_path: Path) -> None:
    machine = host(tmp_path, proc__41__comm="nv-fabricmanage\n", proc__42__comm="nvidia-persiste\n")
    run = Run()
    assert health.daemons(run, machine, machine.find) == ({"installed": True, "active": True, "version": None}, True)
    assert run.calls == []


def test_daemons_of_a_host_that_shows_nothing(tmp_path: Path) -> None:
    machine = host(tmp_path)
    assert health.daemons(Run(), machine, machine.find) == ({"installed": False, "active": None, "version": None}, None)


# -- files


def test_when_the_driver_was_installed(tmp_path: Path) -> None:
    machine = host(
        tmp_path,
        **{
            "lib/modules/6.8.0/updates/dkms/nvidia.ko.zst": "x",
            "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05": "x",
            "lib/modules/6.9.0/updates/dkms/nvidia.ko": "of another kernel",
        },
    )
    os.utime(tmp_path / "lib/modules/6.8.0/updates/dkms/nvidia.ko.zst", (1000, 1000))
    os.utime(tmp_path / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05", (2000, 2000))
    assert health.driver_installed_at(machine, "580.95.05", "6.8.0") == 2000
    assert health.driver_installed_at(machine, "570.1", "6.8.0") == 1000
    assert health.driver_installed_at(machine, None, "5.0") is None


def test_boot_time(tmp_path: Path) -> None:
    machines: list[tuple[str, t.Any]] = [("btime 12\n", 12.0), ("btime soon\n", None), ("", None)]
    for text, expected in machines:
        assert health.boot_time(host(tmp_path, proc__stat=text)) == expected
