# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``engine: modelscope``: the real official client fetches, inside our checks and our publication."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_hub import Fault, Hub, add_model, hostile_rows
from model_hub.server import Access
from module_host import (
    MODEL,
    TOKEN,
    WEIGHTS,
    Host,
    everything,
    make_source,
    new_revision,
    nothing_but_the_model,
    total,
    tree,
    wait_for,
)

CLIENT = str(Path(sys.executable).with_name("modelscope"))
OFFICIAL = {"engine": "modelscope", "client": CLIENT}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path, source: Path) -> Path:
    directory = tmp_path / "hub"
    directory.mkdir()
    add_model(directory, MODEL, source, tag="v1", copy=True)
    return directory


@pytest.fixture
def repo(root: Path) -> Iterator[Hub]:
    with Hub(root, lfs_base="http://localhost:{port}") as running:
        yield running


@pytest.fixture
def host(tmp_path: Path, repo: Hub) -> Host:
    return Host(tmp_path, repo.endpoint)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models/tiny"


def test_it_fetches_what_is_missing_and_no_more(
    host: Host, repo: Hub, root: Path, source: Path, path: Path, tmp_path: Path
) -> None:
    check = host.run(path=str(path), _ansible_check_mode=True, **OFFICIAL)
    assert not path.exists()
    real = host.run(path=str(path), **OFFICIAL)
    assert (real["changed"], real["bytes_fetched"]) == (True, check["bytes_fetched"])
    assert real["bytes_fetched"] == total(source)
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)
    assert not (host.home / ".cache").exists()
    assert not (host.home / ".modelscope").exists(), "the client's own state is in our directory, and gone"
    agents = {str(request.headers.get("user-agent", "")).partition("/")[0] for request in repo.requests.select("lfs/*")}
    assert agents == {"modelscope_hub"}
    assert not host.run(path=str(path), **OFFICIAL)["changed"]
    following = new_revision(root, source, tmp_path)
    repo.requests.clear()
    updated = host.run(path=str(path), **OFFICIAL)
    assert updated["bytes_fetched"] == WEIGHTS + 3
    assert tree(path) == following
    fetched = {request.path for request in repo.requests if request.op == "lfs"}
    assert len(fetched) == 1, "what did not change is not fetched"


@pytest.mark.parametrize("name", ["parent", "absolute", "middle"])
def test_hostile_rows_reach_no_client(repo: Hub, host: Host, path: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    repo.faults.add(Fault(match="list/*", extra_rows=hostile_rows(str(outside))[name]))
    before = everything(tmp_path)
    answer = host.result(host.start(path=str(path), **OFFICIAL))
    assert answer["code"] == "manifest.unsafe_listing"
    assert everything(tmp_path) == before
    assert repo.requests.count("lfs/*") == 0


def test_what_it_brings_is_verified(
    host: Host, repo: Hub, root: Path, source: Path, path: Path, tmp_path: Path
) -> None:
    host.run(path=str(path), **OFFICIAL)
    served = tree(path)
    new_revision(root, source, tmp_path)
    # In the mode with file names the client takes any bytes of a small file, and ends with status 0.
    bad = repo.faults.add(Fault(match="file/*/new.txt", corrupt_at=0))
    message = host.fail("official.wrong_content", path=str(path), **OFFICIAL)
    assert "new.txt" in message
    assert tree(path) == served
    repo.faults.remove(bad)
    assert host.run(path=str(path), **OFFICIAL)["bytes_fetched"] < WEIGHTS, "what was right is kept"
    assert tree(path)["new.txt"] == b"new"
    assert nothing_but_the_model(path)


def test_a_client_that_is_not_there_or_fails(host: Host, repo: Hub, path: Path) -> None:
    message = host.fail("official.no_client", path=str(path), engine="modelscope", client="/nowhere/modelscope")
    assert "gpufleet.vllm.modelscope_client" in message
    repo.faults.add(Fault(match="file/*", status=404))
    host.fail("official.failed", path=str(path), **OFFICIAL)
    assert not path.exists()


def test_the_token_is_in_no_command_line(root: Path, tmp_path: Path, path: Path, source: Path) -> None:
    with Hub(root, access=Access(tokens=[TOKEN], private=[MODEL])) as repo:
        host = Host(tmp_path, repo.endpoint)
        slow = repo.faults.add(Fault(match="lfs/*", rate=2_000_000))
        process = host.start(path=str(path), token=TOKEN, **OFFICIAL)
        wait_for(lambda: repo.requests.count("lfs/*") > 0, "download")
        lines = [item.read_bytes() for item in Path("/proc").glob("[0-9]*/cmdline")]
        assert any(CLIENT.encode() in line for line in lines)
        assert not any(TOKEN.encode() in line for line in lines)
        repo.faults.remove(slow)
        host.result(process)
        assert tree(path) == tree(source)


def test_an_interrupted_client_ends_and_its_work_is_kept(host: Host, repo: Hub, source: Path, path: Path) -> None:
    slow = repo.faults.add(Fault(match="lfs/*", rate=2_000_000))
    process = host.start(path=str(path), **OFFICIAL)
    wait_for(lambda: sum(request.sent for request in repo.requests.select("lfs/*")) > 2_000_000, "progress")
    process.send_signal(signal.SIGTERM)
    assert host.result(process)["code"] == "interrupted"
    assert not any(CLIENT.encode() in item.read_bytes() for item in Path("/proc").glob("[0-9]*/cmdline"))
    repo.faults.remove(slow)
    assert host.run(path=str(path), **OFFICIAL)["bytes_fetched"] < total(source), "the client resumed"
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)
