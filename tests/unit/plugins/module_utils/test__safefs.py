# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _safefs


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text("precious")
    handle = _safefs.open_directory(str(tmp_path / "root"))
    yield handle
    os.close(handle)


@pytest.mark.parametrize(
    "operation",
    [
        lambda root: _safefs.open_regular(root, "link/precious"),
        lambda root: _safefs.open_regular(root, "file-link"),
        lambda root: _safefs.link(root, "mine", root, "link/new"),
        lambda root: _safefs.unlink(root, "link/precious"),
        lambda root: _safefs.open_directory("link", root),
    ],
    ids=["read through", "read link", "link into", "unlink through", "open"],
)
def test_links_are_not_followed(root, tmp_path, operation):
    os.symlink(tmp_path / "outside", tmp_path / "root/link")
    os.symlink(tmp_path / "outside/precious", tmp_path / "root/file-link")
    (tmp_path / "root/mine").write_text("x")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the kernel chooses one of two codes
        operation(root)
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert os.listdir(tmp_path / "outside") == ["precious"]
    assert _safefs.lstat(root, "link/precious") is None
    assert _safefs.lstat(root, "file-link") is not None
    assert _safefs.lstat(root, "gone") is None


def test_removing_a_tree_spares_what_links_lead_to(root, tmp_path):
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/b/file").write_text("x")
    os.symlink(tmp_path / "outside", tmp_path / "root/a/link")
    os.symlink(tmp_path / "outside", tmp_path / "root/link")
    assert _safefs.remove_tree(root, "a")
    assert _safefs.remove_tree(root, "link")
    assert not _safefs.remove_tree(root, "a")
    assert os.listdir(tmp_path / "root") == []
    assert (tmp_path / "outside/precious").read_text() == "precious"


def test_a_fifo_does_not_hang(root, tmp_path):
    os.mkfifo(tmp_path / "root/pipe")
    with pytest.raises(OSError, match="not a regular file"):
        _safefs.open_regular(root, "pipe")


def test_modes_do_not_depend_on_the_umask(root, tmp_path):
    previous = os.umask(0o077)
    try:
        with _safefs.directory(root, "a/b", create=True) as handle:
            _safefs.write_file(handle, "file", b"text")
    finally:
        os.umask(previous)
    assert [(tmp_path / "root" / path).stat().st_mode & 0o777 for path in ("a", "a/b", "a/b/file")] == [
        0o755,
        0o755,
        0o644,
    ]
    assert os.listdir(tmp_path / "root/a/b") == ["file"]


def test_a_write_that_fails_leaves_the_old_file(root, tmp_path, monkeypatch):
    _safefs.write_file(root, "file", b"old")
    monkeypatch.setattr(os, "rename", lambda *args, **more: (none for none in ()).throw(OSError(errno.EIO, "bad disk")))
    with pytest.raises(OSError, match="bad disk"):
        _safefs.write_file(root, "file", b"new")
    assert os.listdir(tmp_path / "root") == ["file"]
    assert (tmp_path / "root/file").read_text() == "old"


def test_walk(root, tmp_path):
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/file").write_text("x")
    (tmp_path / "root/skipped").mkdir()
    (tmp_path / "root/skipped/x").write_text("x")
    os.symlink(tmp_path / "outside", tmp_path / "root/link")
    os.mkfifo(tmp_path / "root/pipe")
    kinds = {path: item.kind for path, item in _safefs.walk(root, skip="skipped").items()}
    assert kinds == {"a": "directory", "a/b": "directory", "a/file": "file", "link": "symlink", "pipe": "other"}


def test_empty_directories_go_others_stay(root, tmp_path):
    (tmp_path / "root/a/b/c").mkdir(parents=True)
    (tmp_path / "root/a/mine").write_text("x")
    _safefs.remove_empty_directories(root, {"a/b/c/file", "gone/x"})
    assert os.listdir(tmp_path / "root/a") == ["mine"]


def test_exchange(root, tmp_path):
    (tmp_path / "root/one").mkdir()
    (tmp_path / "root/two").write_text("2")
    try:
        _safefs.exchange(root, "one", root, "two")
    except _safefs.ExchangeUnsupported:
        pytest.fail("this file system cannot swap names; choose another TMPDIR for the tests")
    assert (tmp_path / "root/one").read_text() == "2"
    assert (tmp_path / "root/two").is_dir()
    with pytest.raises(FileNotFoundError):
        _safefs.exchange(root, "one", root, "gone")
