# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _prune_use
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_use import Mount, Watched

HOST = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 8:17 / /data rw,relatime shared:2 - xfs /dev/sdb1 rw
31 21 0:50 / /mnt/nas rw - nfs4 nas:/export rw
32 21 8:33 / /data/models/own rw - ext4 /dev/sdc1 rw
33 21 0:61 /sub\\040vol /srv/with\\040space rw - fuse.juicefs JuiceFS rw
34 21 8:49 / /mnt/ntfs rw - fuseblk /dev/sdd1 rw
"""
# As Docker makes them: the model of one service, one file of another model, and the container's own root.
CONTAINER = """\
500 400 0:70 / / rw - overlay overlay rw
501 500 8:17 /models/bound /models ro - xfs /dev/sdb1 rw
502 500 8:17 /models/file/config.json /etc/config.json ro - xfs /dev/sdb1 rw
503 500 8:33 / /own ro - ext4 /dev/sdc1 rw
"""


class Proc:
    """A /proc of a test's own, in which links and tables are plain files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "self").mkdir(parents=True)
        (path / "self" / "mountinfo").write_text(HOST)

    def add(self, pid: int, mounts: str = HOST, namespace: str = "mnt:[1]", cwd: str = "/", **descriptors: str) -> None:
        home = self.path / str(pid)
        (home / "ns").mkdir(parents=True)
        (home / "fd").mkdir()
        (home / "ns" / "mnt").symlink_to(namespace)
        (home / "cwd").symlink_to(cwd)
        (home / "root").symlink_to("/")
        (home / "comm").write_text("vllm\n")
        (home / "mountinfo").write_text(mounts)
        (home / "maps").write_text("")
        for name, target in descriptors.items():
            (home / "fd" / name.lstrip("f")).symlink_to(target)

    def uses(self, *paths: str) -> dict[str, str]:
        return _prune_use.uses_of([Watched(path) for path in paths], str(self.path)).found


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


def test_mount_table() -> None:
    mounts = _prune_use.parse_mounts(HOST + "not a line\n\n")
    assert len(mounts) == 6
    assert mounts[1] == Mount("8:17", "/", "/data", "xfs")
    assert mounts[4] == Mount("0:61", "/sub vol", "/srv/with space", "fuse.juicefs")


@pytest.mark.parametrize(
    ("path", "point", "inner", "shared"),
    [
        ("/data/models/x", "/data", "/models/x", False),
        ("/database/x", "/", "/database/x", False),
        ("/data/models/own", "/data/models/own", "/", False),
        ("/mnt/nas/x", "/mnt/nas", "/x", True),
        ("/srv/with space/x", "/srv/with space", "/sub vol/x", True),
        ("/mnt/ntfs/x", "/mnt/ntfs", "/x", False),
    ],
)
def test_where_a_path_lies(path: str, point: str, inner: str, shared: bool) -> None:
    mount = _prune_use.covering(_prune_use.parse_mounts(HOST), path)
    assert mount is not None
    assert (mount.point, _prune_use.inner_path(mount, path), _prune_use.is_shared(mount)) == (point, inner, shared)


@pytest.mark.parametrize("kind", ["fuse", "fuse.blobfuse2", "panfs", "fhgfs", "quobyte", "coda", "nfs4", "lustre"])
def test_what_other_hosts_may_write_to(kind: str) -> None:
    assert _prune_use.is_shared(Mount("0:1", "/", "/mnt", kind))


@pytest.mark.parametrize("kind", ["fuseblk", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs"])
def test_what_is_of_one_host(kind: str) -> None:
    assert not _prune_use.is_shared(Mount("8:1", "/", "/data", kind))


def test_no_mount_at_all() -> None:
    assert _prune_use.covering([], "/x") is None
    assert not _prune_use.is_shared(None)


def test_what_a_container_has_mounted(proc: Proc) -> None:
    proc.add(7, CONTAINER, "mnt:[2]")
    paths = [f"/data/models/{name}" for name in ("bound", "file", "own", "other", "bound-2")]
    assert proc.uses(*paths) == {
        "/data/models/bound": "process 7 (vllm) has it mounted at /models",
        "/data/models/file": "process 7 (vllm) has it mounted at /etc/config.json",
        "/data/models/own": "process 7 (vllm) has it mounted at /own",
    }


def test_the_mount_that_a_model_lies_on_is_no_use(proc: Proc) -> None:
    proc.add(7)
    proc.add(8, namespace="mnt:[2]")
    assert proc.uses("/data/models/own", "/data/models/x") == {}


def test_a_mount_of_all_models_is_no_use_of_each(proc: Proc) -> None:
    proc.add(7, "501 500 8:17 /models /models ro - xfs /dev/sdb1 rw\n", "mnt:[2]")
    assert proc.uses("/data/models/x") == {}


def test_open_files_and_directories(proc: Proc) -> None:
    proc.add(7, f3="/data/models/x/weights", f4="socket:[5]", f5="/dev/null")
    proc.add(8, cwd="/data/models/y/sub")
    assert proc.uses("/data/models/x", "/data/models/y", "/data/models/z") == {
        "/data/models/x": "process 7 (vllm) has weights open",
        "/data/models/y": "process 8 (vllm) works in it",
    }


def test_a_file_under_another_path_is_known_by_its_inode(proc: Proc, tmp_path: Path) -> None:
    """In a container that has all models mounted, paths are others."""
    real = tmp_path / "weights"
    real.write_text("x")
    state = real.stat()
    proc.add(7, f3=str(real))
    watched = Watched("/data/models/x", frozenset({"weights"}), frozenset({(state.st_dev, state.st_ino)}))
    other = Watched("/data/models/y", frozenset({"weights"}), frozenset({(state.st_dev, state.st_ino + 1)}))
    found = _prune_use.uses_of([watched, other], str(proc.path)).found
    assert found == {"/data/models/x": "process 7 (vllm) has weights open"}


def test_mapped_files(proc: Proc) -> None:
    proc.add(7)
    (proc.path / "7" / "maps").write_text(
        "7f0-7f1 r--p 00000000 00:2a 77 /in/a/container/weights file\n"
        "7f1-7f2 r--p 00000000 00:2a 78 /in/a/container/other\n"
        "7f2-7f3 rw-p 00000000 00:00 0 \n7f3-7f4 rw-p 00000000 00:00 0 [heap]\n"
        "7f4-7f5 r--p 00000000 08:11 9 /data/models/z/weights\n"
    )
    one = Watched("/data/models/x", frozenset({"weights file"}), frozenset({(1, 77)}))
    two = Watched("/data/models/y", frozenset({"config.json"}), frozenset({(1, 78)}))
    found = _prune_use.uses_of([one, two, Watched("/data/models/z")], str(proc.path)).found
    assert found == {
        "/data/models/x": "process 7 (vllm) has weights file mapped",
        "/data/models/z": "process 7 (vllm) has weights mapped",
    }


def test_a_process_that_ends_meanwhile(proc: Proc) -> None:
    (proc.path / "9").mkdir()
    proc.add(10, f3="/data/models/x/weights")
    assert list(proc.uses("/data/models/x")) == ["/data/models/x"]


def test_processes_that_we_may_not_look_into_are_counted(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what of them is open to us still counts."""
    proc.add(7, CONTAINER)
    link = os.readlink

    def refused(path: str) -> str:
        if "/7/" in path:
            raise PermissionError(13, "Permission denied", path)
        return link(path)

    monkeypatch.setattr(_prune_use.os, "readlink", refused)
    uses = _prune_use.uses_of([Watched("/data/models/bound")], str(proc.path))
    assert uses.hidden == 1
    assert uses.found == {"/data/models/bound": "process 7 (vllm) has it mounted at /models"}
    assert _prune_use.uses_of([], str(proc.path)).hidden == 0
