# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_kernel as kernel
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import Host
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

TRACKING = "A29FC87B,162.159.200.123,4,1764057600.1,0.000012,-0.00001,0.00002,-5.1,0.002,0.03,0.01,0.001,64.2,{}\n"
LIMITS = (
    "Max locked memory         8388608              {memlock}            bytes\nMax open files {soft} 524288 files\n"
)


def host(root: Path, *tools: str, **files: str) -> Host:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Host(root=str(root), find={tool: tool for tool in tools}.get, load_nvml=lambda: None)


def answering(result: CommandResult) -> t.Callable[[Sequence[str], float], CommandResult]:
    return lambda _argv, _timeout: result


def refuse(argv: Sequence[str], _timeout: float) -> t.NoReturn:
    raise AssertionError(f"{argv} is not to be run")


# -- boot and reboot


def test_boot(tmp_path: Path) -> None:
    files = {"proc__uptime": "86340.52 100.1\n", "proc__sys__kernel__random__boot_id": "6a1f\n"}
    found = kernel.boot(host(tmp_path, proc__stat="cpu  1\nbtime 1763971260\n", **files))
    assert found == {"id": "6a1f", "time": 1763971260.0, "uptime_s": 86340.52}


def test_a_boot_that_says_nothing(tmp_path: Path) -> None:
    assert kernel.boot(host(tmp_path, proc__uptime="soon\n")) == {"id": None, "time": None, "uptime_s": None}


def test_packages_that_want_a_reboot(tmp_path: Path) -> None:
    files = {"run__reboot-required": "***\n", "run__reboot-required.pkgs": "linux-base\nlinux-image\nlinux-base\n"}
    assert kernel.reboot(refuse, host(tmp_path, **files), dict[str, str]().get, "6.8.0-87-generic") == {
        "required": True,
        "why": "/run/reboot-required is there, for linux-base, linux-image",
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            CommandResult(1, "Core libraries have been updated:\nReboot is required to fully use\n", ""),
            True,
        ),
        (CommandResult(0, "No core libraries or services have been updated.\n", ""), False),
        (CommandResult(1, "", "Failed to read the package database"), None),
        (CommandResult(124, "", "", timed_out=True), None),
    ],
)
def test_needs_restarting(tmp_path: Path, answer: CommandResult, expected: bool | None) -> None:
    machine = host(tmp_path, "needs-restarting")
    found = kernel.reboot(answering(answer), machine, machine.find, "5.14.0-503.el9.x86_64")
    assert found["required"] is expected
    assert bool(found["why"]) is bool(expected)


def test_a_newer_kernel_is_a_hint(tmp_path: Path) -> None:
    releases = ("6.8.0-87-generic", "6.8.0-9-generic", "6.8.0-100-generic", "6.11.0-1-aws", "6.99.0-1-generic")
    for release in releases[:4]:
        (tmp_path / "lib/modules" / release / "kernel/drivers").mkdir(parents=True)
    # What a removed kernel leaves behind.
    (tmp_path / "lib/modules" / releases[4] / "updates/dkms").mkdir(parents=True)
    machine = host(tmp_path)
    assert kernel.reboot(refuse, machine, machine.find, "6.8.0-87-generic") == {
        "required": True,
        "why": "the kernel 6.8.0-100-generic is installed and 6.8.0-87-generic runs",
    }
    assert kernel.reboot(refuse, machine, machine.find, "6.11.0-1-aws") == {"required": False, "why": ""}
    assert kernel.reboot(refuse, machine, machine.find, "7.0.0-own")["required"] is None


@pytest.mark.parametrize(
    ("running", "installed", "newer"),
    [
        ("5.14.0-503.el9.x86_64", ["5.14.0-503.el9.x86_64", "5.14.0-570.el9.x86_64"], "5.14.0-570.el9.x86_64"),
        ("5.14.0-503.el9.x86_64", ["5.14.0-503.el9.x86_64", "5.14.0-70.el9.x86_64"], None),
        ("6.1.0-40-amd64", ["6.1.0-41-cloud-amd64", "6.1.0-41-rt-amd64"], None),
        ("6.1.0-40-amd64", ["garbage", "", "6"], None),
        ("garbage", ["6.1.0-40-amd64"], None),
    ],
)
def test_newer_kernels(running: str, installed: list[str], newer: str | None) -> None:
    assert kernel.newer_kernel(running, installed) == newer


# -- clock


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (TRACKING.format("Normal"), True),
        (TRACKING.format("Not synchronised"), False),
        (TRACKING.format("Insert second"), None),
        ("506 Cannot talk to daemon\n", None),
        ("", None),
    ],
)
def test_chrony(text: str, held: bool | None) -> None:
    assert kernel.parse_chrony(text) is held


@pytest.mark.parametrize(
    ("by_kernel", "tools", "answer", "expected"),
    [
        (True, ("chronyc",), "", (True, "adjtimex")),
        (False, ("chronyc",), TRACKING.format("Normal"), (True, "chronyc")),
        (False, (), "", (False, "adjtimex")),
        (None, ("chronyc",), "506 Cannot talk to daemon", (None, "")),
    ],
)
def test_clock(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_kernel: bool | None,
    tools: tuple[str, ...],
    answer: str,
    expected: tuple[bool | None, str],
) -> None:
    monkeypatch.setattr(kernel, "kernel_synchronized", lambda: by_kernel)
    found = kernel.clock(answering(CommandResult(0, answer, "")), host(tmp_path, *tools).find)
    assert (found["synchronized"], found["source"]) == expected
    assert found["epoch"] > 1.7e9


def test_this_kernel_answers() -> None:
    assert kernel.kernel_synchronized() in (True, False)


# -- limits


def test_limits_of_containers_and_units(tmp_path: Path) -> None:
    machine = host(
        tmp_path,
        proc__1__comm="systemd\n",
        proc__1__limits=LIMITS.format(memlock="8388608", soft=1073741816),
        proc__40__comm="containerd\n",
        proc__40__limits=LIMITS.format(memlock="unlimited", soft=1024),
    )
    assert kernel.limits(machine, "compose") == {"memlock_bytes": -1, "nofile_soft": 1024, "nofile_hard": 524288}
    assert kernel.limits(machine, "systemd")["memlock_bytes"] == 8388608


@pytest.mark.parametrize("runtime", ["compose", "systemd", "supervisor"])
def test_else_limits_are_those_of_the_session(tmp_path: Path, runtime: str) -> None:
    own = kernel.own_limits()
    assert kernel.limits(host(tmp_path), runtime) == {
        "memlock_bytes": own.memlock_hard,
        "nofile_soft": own.nofile_soft,
        "nofile_hard": own.nofile_hard,
    }
    assert isinstance(own.nofile_soft, int)


# -- IOMMU and ACS

GPU = "0000:19:00.0"


def group(kind: str) -> dict[str, str]:
    return {"sys__class__iommu__dmar0__name": "", f"sys__bus__pci__devices__{GPU}__iommu_group__type": kind}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (None, None)),
        ({"sys__class__net__lo": ""}, (False, None)),
        (group("identity\n"), (True, True)),
        (group("DMA-FQ\n"), (True, False)),
        ({"sys__class__iommu__ivhd0__name": "", "proc__cmdline": "ro quiet iommu=pt\n"}, (True, True)),
        ({"sys__class__iommu__ivhd0__name": "", "proc__cmdline": "ro quiet\n"}, (True, False)),
    ],
)
def test_iommu(tmp_path: Path, files: dict[str, str], expected: tuple[bool | None, bool | None]) -> None:
    assert tuple(kernel.iommu(host(tmp_path, **files), [GPU]).values()) == expected


def config(*capabilities: tuple[int, int], control: int = 0) -> bytes:
    """A configuration space: (identity, next) of extended capabilities, from 0x100 on."""
    space = bytearray(4096)
    position = 0x100
    for identity, following in capabilities:
        space[position : position + 4] = (following << 20 | 1 << 16 | identity).to_bytes(4, "little")
        if identity == 0x0D:
            space[position + 6 : position + 8] = control.to_bytes(2, "little")
        position = following
    return bytes(space)


@pytest.mark.parametrize(
    ("space", "redirects"),
    [
        (config((0x01, 0x148), (0x0D, 0), control=0x1D), True),
        (config((0x0D, 0), control=0x04), True),
        (config((0x0D, 0), control=0x11), False),
        (config((0x01, 0x148), (0x03, 0)), False),
        (config(), False),
        (b"\xff" * 4096, False),
        (config((0x01, 0x148), (0x02, 0x100)), False),
        (config((0x01, 0xFFC)), False),
        (bytes(256), False),
        (bytes(64), None),
        (b"", None),
    ],
)
def test_acs_of_a_bridge(space: bytes, redirects: bool | None) -> None:
    assert kernel.acs_redirects(space) is redirects


def add_device(root: Path, address: str, kind: str, space: bytes) -> None:
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "class").write_text(f"{kind}\n")
    (device / "config").write_bytes(space)


def test_bridges_that_redirect(tmp_path: Path) -> None:
    on = config((0x0D, 0), control=0x1D)
    add_device(tmp_path, "0000:16:01.0", "0x060400", on)
    add_device(tmp_path, "0000:16:02.0", "0x060400", config())
    add_device(tmp_path, "0000:19:00.0", "0x030200", on)
    assert kernel.acs(host(tmp_path)) == {"enabled": ["0000:16:01.0"]}


def test_bridges_that_can_not_be_read(tmp_path: Path) -> None:
    assert kernel.acs(host(tmp_path)) is None
    add_device(tmp_path, "0000:16:01.0", "0x060400", bytes(64))
    assert kernel.acs(host(tmp_path)) is None


# -- security modules


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"sys__module__ext4__x": ""}, "disabled"),
        ({"sys__module__apparmor__parameters__enabled": "Y\n"}, "enabled"),
        ({"sys__module__apparmor__parameters__enabled": "N\n"}, "disabled"),
    ],
)
def test_apparmor(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    assert kernel.apparmor(host(tmp_path, **files)) == expected


def test_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {str(tmp_path): b"system_u:object_r:container_file_t:s0\0", str(tmp_path / "odd"): b"\xff"}
    (tmp_path / "odd").mkdir()

    def getxattr(path: str, name: str) -> bytes:
        assert name == "security.selinux"
        return labels[path]

    monkeypatch.setattr(kernel.os, "getxattr", getxattr)
    assert kernel.label(str(tmp_path / "not/there")) == "container_file_t"
    assert kernel.label(str(tmp_path / "odd")) is None


def test_a_path_without_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_label(_path: str, _name: str) -> t.NoReturn:
        raise OSError(61, "No data available")

    monkeypatch.setattr(kernel.os, "getxattr", refuse_label)
    assert kernel.label("/") is None
