# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_storage as storage

MOUNTS = r"""21 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
22 21 0:20 / /proc rw,nosuid shared:12 - proc proc rw
96 21 253:0 / /data rw,noatime shared:50 - xfs /dev/mapper/vg-data rw,attr2,inode64
97 96 0:60 / /data/my\040models ro,relatime shared:51 - nfs4 nas:/models rw,vers=4.2,addr=10.0.0.9
98 21 0:61 / /database rw - tmpfs tmpfs rw
99 96 0:62 / /data rw,nodev - overlay overlay rw,lowerdir=/a
"""


def test_mounts() -> None:
    mounts = storage.parse_mounts(MOUNTS)
    assert mounts[0] == ("/", "ext4", ["rw", "relatime", "errors=remount-ro"])
    assert (mounts[3].place, mounts[3].kind) == ("/data/my models", "nfs4")
    assert mounts[3].options[:3] == ["ro", "relatime", "rw"]


@pytest.mark.parametrize(
    ("path", "place", "kind"),
    [
        ("/data/my models/a", "/data/my models", "nfs4"),
        ("/data/other", "/data", "overlay"),
        ("/database/x", "/database", "tmpfs"),
        ("/datas", "/", "ext4"),
        ("/", "/", "ext4"),
    ],
)
def test_the_mount_of_a_path_is_the_deepest_and_the_last(path: str, place: str, kind: str) -> None:
    mount = storage.mount_of(path, storage.parse_mounts(MOUNTS))
    assert mount is not None
    assert (mount.place, mount.kind) == (place, kind)


@pytest.mark.parametrize("text", ["", "garbage\n", "1 2 3 - ext4\n", "21 1 259:2 / / rw - ext4\n", "\x00 - \x00 - "])
def test_mounts_that_are_none(text: str) -> None:
    assert storage.parse_mounts(text) == []
    assert storage.mount_of("/a", []) is None


def test_paths_that_are_not_there_yet(tmp_path: Path) -> None:
    wanted = str(tmp_path / "a/b/c")
    (state,) = storage.filesystems([wanted, wanted])
    assert state["path"] == wanted
    assert state["device"] == tmp_path.stat().st_dev
    assert 0 < state["free_bytes"] <= state["total_bytes"]
    assert state["free_inodes"] <= state["total_inodes"] or state["total_inodes"] == 0
    assert state["read_only"] is False
    assert state["type"]
    assert str(tmp_path).startswith(state["mount"])
    assert "rw" in state["options"]


def test_a_link_counts_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/proc")
    (state,) = storage.filesystems([str(tmp_path / "models")])
    assert (state["mount"], state["type"]) == ("/proc", "proc")


def test_shared_memory() -> None:
    size = storage.shm()["size_bytes"]
    assert size is None or size > 0
