# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules modelscope_model and modelscope_model_info as processes of their own, against the embedded hub.

What goes wrong, and what the official client does then, is in test_protocol_rows.py, kills are in test_kill.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model_hub import Fault, Hub
from model_hub.server import Access
from module_host import (
    MODEL,
    TOKEN,
    WEIGHTS,
    Host,
    everything,
    moved,
    new_revision,
    nothing_but_the_model,
    official,
    pythons,
    small_disk,
    total,
    tree,
    wait_for,
)

# --- the straight way ---


@pytest.mark.parametrize("python", pythons(), ids=lambda name: Path(name).name)
def test_fresh_again_and_absent(host: Host, repo: Hub, source: Path, path: Path, tmp_path: Path, python: str) -> None:
    host.python = python
    before = everything(tmp_path)
    check = host.run(path=str(path), _ansible_check_mode=True, _ansible_diff=True)
    assert everything(tmp_path) == before, "check mode writes nothing"
    real = host.run(path=str(path), _ansible_diff=True)
    # Ansible adds mode, owner and so on of a path that exists; the mark of what is put in place is not there before.
    keys = set(check) - {"invocation", "published"}
    assert check["published"] is None
    assert real["published"]
    assert keys > {"changed", "commit", "path", "bytes_fetched", "bytes_total", "files", "manifest_digest", "diff"}
    assert {key: check[key] for key in keys} == {key: real[key] for key in keys}
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)
    assert (real["changed"], real["bytes_fetched"]) == (True, total(source))
    assert real["bytes_total"] == total(source) + 2
    assert host.rss < 48, f"{host.rss} MiB"
    repo.requests.clear()
    again = host.run(path=str(path))
    assert (again["changed"], again["bytes_fetched"], again["manifest_digest"]) == (False, 0, real["manifest_digest"])
    assert repo.requests.counts() == {f"revisions/{MODEL}": 1}
    repo.requests.clear()
    host.run(path=str(path), revision=real["commit"])
    assert not host.run(path=str(path), revision=real["commit"])["changed"]
    assert len(repo.requests) == 0, "a commit is known without asking"
    assert host.run(path=str(path), state="absent")["changed"]
    assert os.listdir(path.parent) == []


def test_the_default_path_is_the_official_clients(host: Host, source: Path) -> None:
    result = host.run()
    assert result["path"] == str(host.home / ".cache/modelscope/models/acme--tiny/snapshots/master")
    assert tree(Path(result["path"])) == tree(source)


def test_info_lists_what_the_module_fetches(host: Host, source: Path, path: Path) -> None:
    info = host.run("modelscope_model_info", include=["*.json"], exclude=["sub/*"])
    assert [item["path"] for item in info["files"]] == ["config.json"]
    real = host.run(path=str(path), include=["*.json"], exclude=["sub/*"])
    keys = ("commit", "files", "bytes_total", "manifest_digest")
    assert {key: info[key] for key in keys} == {key: real[key] for key in keys}
    assert set(tree(path)) == {"config.json"}


def test_a_new_revision_serves_when_it_is_complete(
    host: Host, repo: Hub, root: Path, source: Path, path: Path, tmp_path: Path
) -> None:
    host.run(path=str(path))
    (path / "notes.txt").write_text("mine")
    old, following = tree(path), new_revision(root, source, tmp_path)
    check = host.run(path=str(path), _ansible_check_mode=True)
    fault = repo.faults.add(Fault(match="lfs/*", drop_after=2_000_000, times=1))
    repo.faults.add(Fault(match="lfs/*", rate=4_000_000))
    process = host.start(path=str(path))
    wait_for(lambda: moved(repo) > 1_000_000, "progress")
    assert tree(path) == old
    real = host.result(process)
    assert fault.hits == 1
    assert real["bytes_fetched"] == check["bytes_fetched"] == WEIGHTS + 3, "a broken connection costs nothing twice"
    assert tree(path) == {**following, "notes.txt": b"mine"}
    assert nothing_but_the_model(path)
    assert host.run(path=str(path), revision="v1")["changed"]
    assert tree(path) == {**tree(source), "notes.txt": b"mine"}


# --- a hub that is out of order ---


@pytest.mark.parametrize(
    "fault",
    [
        Fault(match="lfs/*", truncate=3_000_000, times=2),
        Fault(match="lfs/*", status=403, times=1),
        Fault(match="file/*", direct=True),
    ],
    ids=["truncated", "refused", "direct"],
)
def test_faults_that_pass(host: Host, repo: Hub, source: Path, path: Path, fault: Fault) -> None:
    repo.faults.add(fault)
    host.run(path=str(path))
    assert fault.hits
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


def test_a_hub_without_commits_is_pinned_by_name(host: Host, repo: Hub, source: Path, path: Path) -> None:
    named = {"Code": 200, "Success": True, "Data": {"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": []}}}
    repo.faults.add(Fault(match="revisions/*", body=named))
    assert host.run(path=str(path))["commit"] is not None, "from the newest commit"
    repo.faults.add(Fault(match="commits/*", body={"Code": 200, "Success": True, "Data": {"Commit": None}}))
    unpinned = host.run(path=str(path))
    assert unpinned["commit"] is None
    assert "pinned by name only" in json.dumps(unpinned["warnings"])
    assert not host.run(path=str(path))["changed"]


def test_without_the_hub(root: Path, path: Path, tmp_path: Path) -> None:
    with Hub(root) as repo:
        host = Host(tmp_path, repo.endpoint)
        commit = host.run(path=str(path))["commit"]
    began = time.monotonic()
    kept = host.run(path=str(path))
    assert time.monotonic() - began < 5
    assert (kept["changed"], kept["commit"], kept["bytes_fetched"]) == (False, commit, 0)
    assert commit in json.dumps(kept["warnings"])
    assert not host.run(path=str(path), state="verified")["changed"]
    host.fail("hub.unreachable", path=str(path.with_name("other")))
    (path / "config.json").write_text("damaged")
    host.fail("hub.unreachable", path=str(path))
    assert os.listdir(path.parent) == [path.name]


# --- the disk ---


def test_a_mount_point(host: Host, root: Path, source: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32_000_000) as disk:
        host.run(path=str(disk))
        assert tree(disk) == tree(source)
        following = new_revision(root, source, tmp_path)
        assert host.run(path=str(disk))["bytes_fetched"] == WEIGHTS + 3
        assert tree(disk) == following
        assert os.listdir(disk / ".gpufleet") == ["manifest.json"]
        assert host.run(path=str(disk), state="absent")["changed"]
        assert everything(disk) == []


# --- beside the official client ---


def test_a_directory_of_the_official_client_is_adopted(host: Host, repo: Hub, source: Path, path: Path) -> None:
    official(host, repo, path)
    (path / "sub/twin.json").unlink()
    (path / "model.safetensors.incomplete").write_text("stale")
    repo.requests.clear()
    real = host.run(path=str(path))
    assert (real["adopted"], real["bytes_fetched"]) == (4, 2)
    assert repo.requests.count("lfs/*") == 0
    assert real["foreign"] == ["model.safetensors.incomplete"]
    (path / "model.safetensors.incomplete").unlink()
    assert tree(path) == tree(source)
    repo.requests.clear()
    official(host, repo, path)
    assert repo.requests.counts() == {f"list/{MODEL}": 1}, "the official client finds nothing to fetch"
    assert not host.run(path=str(path))["changed"]


# --- through Ansible ---


def test_through_ansible_the_token_is_never_shown(root: Path, source: Path, path: Path, tmp_path: Path) -> None:
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    variables = tmp_path / "vars.json"
    variables.write_text(json.dumps({"token": TOKEN}))
    command = [str(Path(sys.executable).with_name("ansible")), "-i", "localhost,", "-c", "local", "localhost", "-vvv"]
    command += ["-e", f"@{variables}", "-e", f"ansible_python_interpreter={sys.executable}"]
    command += ["-m", "gpufleet.vllm.modelscope_model"]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "library"),
        "HOME": str(tmp_path),
    }
    with Hub(root, access=Access(tokens=[TOKEN], private=[MODEL])) as repo:
        Host(tmp_path, repo.endpoint)
        arguments = f"model={MODEL} path={path} endpoint={repo.endpoint} token={{{{ token }}}}"
        for options, fault, status in (
            (["--check", "--diff"], None, 0),
            (["--diff"], None, 0),
            ([], Fault(match="revisions/*", status=400, body={"Message": f"{TOKEN} https://x.y/z?auth_key=k"}), 2),
        ):
            if fault is not None:
                repo.faults.add(fault)
            done = subprocess.run(
                [*command, *options, "-a", arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == status, done.stdout + done.stderr
            assert TOKEN not in done.stdout + done.stderr
            assert "auth_key" not in done.stdout + done.stderr
    assert tree(path) == tree(source)


def test_a_bandwidth_is_kept_over_all_connections(host: Host, source: Path, path: Path) -> None:
    started = time.monotonic()
    host.run(path=str(path), bandwidth="3MB")
    assert time.monotonic() - started > 0.8 * WEIGHTS / 3_000_000
    assert tree(path) == tree(source)


def test_a_hub_that_asks_for_patience_gets_it(host: Host, repo: Hub, source: Path, path: Path) -> None:
    busy = repo.faults.add(Fault(match="file/*", status=429, headers={"Retry-After": "1"}, times=3))
    started = time.monotonic()
    host.run(path=str(path))
    assert busy.hits == 3
    assert time.monotonic() - started > 1
    assert tree(path) == tree(source)
