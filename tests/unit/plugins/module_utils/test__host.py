# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host

DEBIAN = """\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
HOME_URL="https://www.debian.org/"
"""
UBUNTU = """\
PRETTY_NAME="Ubuntu 24.04.1 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.1 LTS (Noble Numbat)"
ID=ubuntu
ID_LIKE=debian
"""
ROCKY = """\
NAME="Rocky Linux"
VERSION="9.4 (Blue Onyx)"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="9.4"
PLATFORM_ID="platform:el9"
PRETTY_NAME="Rocky Linux 9.4 (Blue Onyx)"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEBIAN, ("debian", "12", "", "Debian GNU/Linux 12 (bookworm)")),
        (UBUNTU, ("ubuntu", "24.04", "debian", "Ubuntu 24.04.1 LTS")),
        (ROCKY, ("rocky", "9.4", "rhel centos fedora", "Rocky Linux 9.4 (Blue Onyx)")),
        ("# nothing\n\nID='arch'\nbroken line\n", ("arch", "", "", "")),
        ("", ("", "", "", "")),
    ],
    ids=["debian", "ubuntu", "rocky", "odd", "empty"],
)
def test_os_release(text: str, expected: tuple[str, ...]) -> None:
    assert tuple(_host.parse_os_release(text).values()) == expected


XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480C
flags\t\t: fpu vme sse4_2 avx avx2 avx512f avx512bw avx512_bf16 amx_bf16 amx_tile
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480C
flags\t\t: fpu vme sse4_2 avx avx2 avx512f avx512bw avx512_bf16 amx_bf16 amx_tile

"""
GRACE = """\
processor\t: 0
BogoMIPS\t: 2000.00
Features\t: fp asimd evtstrm aes atomics sve sve2 i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


def test_cpuinfo() -> None:
    assert _host.parse_cpuinfo(XEON) == {
        "count": 2,
        "model": "Intel(R) Xeon(R) Platinum 8480C",
        "flags": ["avx2", "avx512f", "avx512_bf16", "amx_bf16"],
    }
    assert _host.parse_cpuinfo(GRACE) == {"count": 1, "model": "", "flags": ["asimd", "bf16"]}
    assert _host.parse_cpuinfo("") == {"count": 0, "model": "", "flags": []}


def test_meminfo() -> None:
    text = "MemTotal:       1056612345 kB\nMemFree:   912 kB\nMemAvailable:   987654321 kB\nHugePages_Total:    0\n"
    assert _host.parse_meminfo(text) == {"total_bytes": 1056612345 * 1024, "available_bytes": 987654321 * 1024}
    assert _host.parse_meminfo("") == {"total_bytes": 0, "available_bytes": 0}


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 48211 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20133 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F40 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000  1000        0 48300 1 0000000000000000 20 4 30 10 -1
   3: 0A00000A:1F91 00000000:0000 0A
"""  # noqa: E501
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 30001 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000001000000:1F40 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 30002 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 30003 1 0000000000000000 100 0 0 10 0
   3: B80D01200000000000000000EFBE0000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 30004 1 0000000000000000 100 0 0 10 0
"""  # noqa: E501


@pytest.mark.skipif(sys.byteorder == "big", reason="recorded on little-endian hosts")
def test_listeners_of_the_kernels_tables() -> None:
    assert _host.parse_listeners(TCP) == [("127.0.0.1", 8000, 48211), ("0.0.0.0", 22, 20133)]
    assert _host.parse_listeners(TCP6) == [
        ("::", 8080, 30001),
        ("::1", 8000, 30002),
        ("127.0.0.1", 80, 30003),
        ("2001:db8::beef", 443, 30004),
    ]
    assert _host.parse_listeners("") == []


def test_our_own_listener_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        (found,) = _host.listeners({port}, {"mine": os.getpid(), "other": 2**22 + 1}, {})
        assert (found["address"], found["port"], found["pid"]) == ("127.0.0.1", port, os.getpid())
        assert found["service"] == "mine"
        assert found["process"]
        assert port in {entry["port"] for entry in _host.listeners(set(), {}, {})}
    assert _host.listeners({port}, {}, {}) == []


@pytest.mark.parametrize("listener", ["docker-proxy", "dockerd", None])
def test_who_listens_on_a_published_port_is_the_service(monkeypatch: pytest.MonkeyPatch, listener: str | None) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(_host, "_process_name", lambda _pid: listener)
        (ours,) = _host.listeners({port}, {}, {port: "qwen-vl"})
        (other,) = _host.listeners({port}, {}, {port + 1: "qwen-vl"})
    assert (ours["service"], other["service"]) == ("qwen-vl", None)


def test_a_process_we_may_not_look_into_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str) -> list[str]:
        raise PermissionError

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(_host, "_open_files", lambda _pid: [])
        (found,) = _host.listeners({port}, {"mine": os.getpid()}, {})
    assert (found["pid"], found["process"], found["service"]) == (None, None, None)
    monkeypatch.undo()
    monkeypatch.setattr(os, "listdir", refuse)
    assert _host._open_files("1") == []


def test_a_descriptor_that_closes_meanwhile_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def readlink(path: str) -> str:
        if path.endswith("/3"):
            raise FileNotFoundError(path)
        return "socket:[77]"

    monkeypatch.setattr(os, "listdir", lambda _path: ["3", "4"])
    monkeypatch.setattr(os, "readlink", readlink)
    assert _host._open_files("12") == ["socket:[77]"]


def test_names_with_brackets_have_parents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"/proc/9/stat": "9 (a) b (c) S 7 9 9 0", "/proc/7/stat": "7 (vllm) S 1 7 7 0", "/proc/5/stat": ""}
    monkeypatch.setattr(_host, "read", lambda path: stats.get(path, ""))
    assert _host.parent_pid(9) == 7
    assert _host.is_descendant(9, 7)
    assert _host.is_descendant(9, 9)
    assert not _host.is_descendant(9, 8)
    assert not _host.is_descendant(5, 7)
    assert _host.parent_pid(4) == 0


def test_the_parent_of_what_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert _host.existing_parent(str(tmp_path / "a/b/c")) == str(tmp_path)
    assert _host.existing_parent(str(tmp_path / "file/below")) == str(tmp_path)
    assert _host.existing_parent("/") == "/"


def test_what_can_not_be_read_is_empty(tmp_path: Path) -> None:
    assert _host.read(str(tmp_path / "nothing")) == ""
    assert _host.read(str(tmp_path)) == ""
    (tmp_path / "bytes").write_bytes(b"a\xffb")
    assert _host.read(str(tmp_path / "bytes")) == "a\ufffdb"


def test_system_of_this_host() -> None:
    facts = _host.system()
    assert facts["cpu"]["count"] >= 1
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert facts["service_manager"] in ("systemd", "none")
    assert facts["selinux"] in ("enforcing", "permissive", "disabled")
