# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules modelscope_model and modelscope_model_info as processes of their own, against the embedded hub."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient, parse_endpoint
from model_hub import Fault, Hub, hostile_rows
from model_hub.server import Access
from module_host import (
    MODEL,
    TOKEN,
    WEIGHTS,
    Host,
    everything,
    new_revision,
    nothing_but_the_model,
    official,
    pythons,
    small_disk,
    total,
    tree,
    wait_for,
)


def parts(path: Path) -> int:
    """Bytes in the parts of an unfinished run."""
    with contextlib.suppress(FileNotFoundError):
        return sum(item.stat().st_size for item in (path.parent / f".{path.name}.gpufleet/parts").iterdir())
    return 0


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


def test_a_second_run_reads_no_file(host: Host, source: Path, path: Path) -> None:
    host.run(path=str(path))
    manifest = path / ".gpufleet/manifest.json"
    # Other bytes under the recorded size and time: only a run that reads them can notice.
    weights, times = path / "model.safetensors", (path / "model.safetensors").stat()
    weights.write_bytes(bytes(WEIGHTS))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    recorded = manifest.read_text()
    assert not host.run(path=str(path))["changed"]
    assert manifest.read_text() == recorded
    repaired = host.run(path=str(path), state="verified", _ansible_diff=True)
    assert (repaired["changed"], repaired["bytes_fetched"]) == (True, WEIGHTS)
    assert repaired["diff"]["before"]["files"] != repaired["diff"]["after"]["files"]
    assert tree(path) == tree(source)


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
    wait_for(lambda: parts(path) > 1_000_000, "progress")
    assert tree(path) == old
    real = host.result(process)
    assert fault.hits == 1
    assert real["bytes_fetched"] == check["bytes_fetched"] == WEIGHTS + 3, "a broken connection costs nothing twice"
    assert tree(path) == {**following, "notes.txt": b"mine"}
    assert nothing_but_the_model(path)
    assert host.run(path=str(path), revision="v1")["changed"]
    assert tree(path) == {**tree(source), "notes.txt": b"mine"}


# --- interruption ---


def noted(path: Path) -> int:
    """Bytes that the next run counts on."""
    return sum(_staging.parts_on_disk(_staging.locate(str(path))).values())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_run_is_resumed(host: Host, repo: Hub, source: Path, path: Path, number: signal.Signals) -> None:
    slow = repo.faults.add(Fault(match="lfs/*", rate=4_000_000))
    process = host.start(path=str(path))
    wait_for(lambda: noted(path) > 1_500_000, "progress")
    process.send_signal(number)
    if number is signal.SIGKILL:
        process.communicate(timeout=30)
    else:
        assert host.result(process)["code"] == "interrupted"
        assert not (path.parent / ".tiny.gpufleet/lock").exists()
    assert not path.exists(), "nothing half-done is published"
    repo.faults.remove(slow)
    repo.requests.clear()
    kept = noted(path)
    assert kept > 1_000_000
    check = host.run(path=str(path), _ansible_check_mode=True)
    real = host.run(path=str(path))
    assert check["bytes_fetched"] == real["bytes_fetched"] == total(source) - kept
    assert repo.requests.select("lfs/*")[0].headers["range"].startswith("bytes=")
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


def test_a_kill_at_any_moment_of_an_update_leaves_one_whole_version(
    host: Host, repo: Hub, root: Path, source: Path, path: Path, tmp_path: Path
) -> None:
    host.run(path=str(path))
    old, following = tree(path), new_revision(root, source, tmp_path)
    moments = random.Random(3)
    for _round in range(6):
        process = host.start(path=str(path))
        time.sleep(moments.uniform(0.1, 0.6))
        process.kill()
        process.communicate()
        assert tree(path) in (old, following)
    host.run(path=str(path))
    assert tree(path) == following
    assert nothing_but_the_model(path)


def test_two_at_once(host: Host, repo: Hub, source: Path, path: Path) -> None:
    repo.faults.add(Fault(match="lfs/*", rate=4_000_000))
    first = host.start(path=str(path))
    wait_for(lambda: parts(path) > 0, "progress")
    second = host.start(path=str(path), lock_timeout=30)
    message = host.fail("artifact.locked", path=str(path), lock_timeout=0)
    assert f"process {first.pid} of user 'root' on host {socket.gethostname()!a} since" in message
    assert host.result(first)["bytes_fetched"] == total(source)
    waited = host.result(second)
    assert (waited["changed"], waited["bytes_fetched"]) == (False, 0)
    assert repo.requests.count("lfs/*") == 1
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


# --- a hub, or a way to it, that is out of order ---


@pytest.mark.parametrize(
    "fault",
    [
        Fault(match="lfs/*", drop_after=1_000_000, times=5),
        Fault(match="lfs/*", drop_after=1_000_000, drop="fin", times=5, range="200"),
        Fault(match="lfs/*", corrupt_at=3_000_000, times=2),
        Fault(match="lfs/*", truncate=3_000_000, times=2),
        Fault(match="lfs/*", status=403, times=1),
        Fault(match="file/*", direct=True),
        Fault(match="list/*", sha256="upper"),
        Fault(match="list/*", status=503, headers={"Retry-After": "0"}, times=2),
        Fault(match="revisions/*", status=429, headers={"Retry-After": "0"}, times=2),
        Fault(match="file/*/config.json", body={"Code": 404, "Message": "x"}, times=2),
    ],
    ids=["resets", "early ends", "corrupt", "truncated", "expired", "direct", "upper case", "503", "429", "json body"],
)
def test_faults_that_pass(host: Host, repo: Hub, source: Path, path: Path, fault: Fault) -> None:
    repo.faults.add(fault)
    host.run(path=str(path))
    assert fault.hits
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


@pytest.mark.parametrize("mode", ["ignore", "lie", "shift", "total"])
def test_ranges_that_are_not_honoured(host: Host, repo: Hub, source: Path, path: Path, mode: Any) -> None:
    repo.faults.add(Fault(match="lfs/*", drop_after=2_000_000, times=1))
    repo.faults.add(Fault(match="lfs/*", range=mode))
    host.run(path=str(path))
    assert tree(path) == tree(source)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(match="lfs/*", corrupt_at=-1), "transfer.wrong_content"),
        (Fault(match="lfs/*", truncate=1000), "transfer.wrong_content"),
        (Fault(match="list/*", empty=True), "manifest.empty_listing"),
        (Fault(match="list/*", success=False), "hub.refused"),
        (Fault(match="list/*", sha256="missing"), "manifest.unverifiable"),
        (Fault(match="list/*", sha256="wrong", rows="config.json"), "transfer.wrong_content"),
        (Fault(match="list/*", body="<html>Log in</html>"), "hub.odd_answer"),
        (Fault(match="revisions/*", body=["x"]), "hub.odd_answer"),
        (Fault(match="file/*", redirect="file:///etc/passwd"), "hub.bad_redirect"),
        (Fault(match="list/*", cap=0), "manifest.empty_listing"),
    ],
    ids=[
        "corrupt",
        "truncated",
        "empty",
        "refused",
        "no digest",
        "wrong digest",
        "html",
        "list",
        "redirect",
        "nothing",
    ],
)
def test_faults_that_stay(host: Host, repo: Hub, path: Path, fault: Fault, code: str) -> None:
    host.run(path=str(path), include=["sub/*"])
    before = tree(path)
    repo.faults.add(fault)
    host.fail(code, path=str(path))
    assert tree(path) == before, "what served still does"


def test_a_stalled_connection_is_given_up_and_resumed(host: Host, repo: Hub, source: Path, path: Path) -> None:
    repo.faults.add(Fault(match="lfs/*", stall_after=2_000_000, times=1))
    began = time.monotonic()
    assert host.run(path=str(path), timeout=1)["bytes_fetched"] == total(source)
    assert time.monotonic() - began < 10
    assert tree(path) == tree(source)


def test_a_hub_without_commits_is_pinned_by_name(host: Host, repo: Hub, source: Path, path: Path) -> None:
    named = {"Code": 200, "Success": True, "Data": {"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": []}}}
    repo.faults.add(Fault(match="revisions/*", body=named))
    assert host.run(path=str(path))["commit"] is not None, "from the newest commit"
    repo.faults.add(Fault(match="commits/*", body={"Code": 200, "Success": True, "Data": {"Commit": None}}))
    unpinned = host.run(path=str(path))
    assert unpinned["commit"] is None
    assert "pinned by name only" in json.dumps(unpinned["warnings"])
    assert not host.run(path=str(path))["changed"]


HARMLESS = ("symlink",)  # hostile only where the directory holds a link of that name


@pytest.mark.parametrize("name", [name for name in hostile_rows("/nowhere") if name not in HARMLESS])
def test_hostile_rows_write_nothing(repo: Hub, path: Path, tmp_path: Path, name: str) -> None:
    repo.faults.add(Fault(match="list/*", extra_rows=hostile_rows(str(tmp_path / "outside"))[name]))
    before = everything(tmp_path)
    request = _artifact.Request(MODEL, "master", str(path), repo.endpoint)
    with pytest.raises(FleetError) as caught:  # in this process: two dozen of them take too long otherwise
        _artifact.present(request, HubClient(parse_endpoint(repo.endpoint)))
    assert caught.value.code in ("manifest.unsafe_listing", "manifest.unverifiable")
    assert everything(tmp_path) == before


def test_links_that_were_planted_lead_nowhere(host: Host, repo: Hub, path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    path.mkdir(parents=True)
    (path / "link").symlink_to(outside)
    (path / "config.json").symlink_to(outside / "victim")
    repo.faults.add(Fault(match="list/*", extra_rows=hostile_rows(str(outside))["symlink"], times=1))
    assert "'link'" in host.fail("path.in_the_way", path=str(path))
    host.run(path=str(path))
    assert everything(outside) == ["victim"]
    assert (outside / "victim").read_text() == "precious"
    assert not (path / "config.json").is_symlink()
    (path.parent / ".tiny.gpufleet").symlink_to(outside)
    (path / "config.json").unlink()
    host.fail("path.failed", path=str(path))
    assert everything(outside) == ["victim"]


def test_unknown_things_are_told_apart(host: Host, path: Path) -> None:
    message = host.fail("hub.unknown_revision", path=str(path), revision="v9")
    assert "branches (master) or tags (v1)" in message
    host.fail("hub.unknown_revision", path=str(path), revision="0" * 40)
    host.fail("hub.not_found", path=str(path), model="acme/unknown")
    host.fail("manifest.nothing_selected", path=str(path), include=["*.gguf"])
    assert not path.parent.exists()


def test_a_private_model(root: Path, source: Path, path: Path, tmp_path: Path) -> None:
    with Hub(root, access=Access(tokens=[TOKEN], private=[MODEL]), lfs_base="http://localhost:{port}") as repo:
        host = Host(tmp_path, repo.endpoint)
        assert "no token was given" in host.fail("hub.no_access", path=str(path))
        assert "has no access" in host.fail("hub.no_access", path=str(path), token="another")
        assert not path.parent.exists()
        host.run(path=str(path), token=TOKEN)
        assert tree(path) == tree(source)
        for request in repo.requests.select("lfs/*"):
            assert not {"authorization", "cookie"} & set(request.headers), "the token stays with the hub"


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


def test_a_disk_that_is_too_small(host: Host, repo: Hub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4_000_000) as disk:
        for check_mode in (True, False):
            message = host.fail("disk.no_space", path=str(disk / "deep/tiny"), _ansible_check_mode=check_mode)
            assert str(disk) in message
            assert "MiB free" in message
        assert everything(disk) == []
        assert repo.requests.count("file/*") == 0


def test_a_disk_that_fills_up_meanwhile(host: Host, repo: Hub, source: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16_000_000) as disk:
        path = disk / "tiny"
        slow = repo.faults.add(Fault(match="lfs/*", rate=4_000_000))
        process = host.start(path=str(path))
        wait_for(lambda: parts(path) > 500_000, "progress")
        with contextlib.suppress(OSError), (disk / "other").open("wb") as other:
            other.write(bytes(16_000_000))
        assert host.result(process)["code"] == "disk.full"
        (disk / "other").unlink()
        repo.faults.remove(slow)
        assert host.run(path=str(path))["bytes_fetched"] < total(source)
        assert tree(path) == tree(source)


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
