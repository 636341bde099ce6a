# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was measured of the official client (modelscope 1.40.2), row by row, and what ours does in its place.

A row is a letter of the behaviour table that was made with that client against a hub that misbehaves; each test here
switches the same fault on and runs our module as a process of its own. The weaknesses that the table led to, and what
shows that they are not ours:

====  ===================================================  ============================================================
W1    writes outside its directory                         row f; unit test__manifest, test__manifest_properties
W2    exit status 0 while files are missing                rows k and s
W3    another site, with the token                         row t; unit test__hub (a token over plain http)
W4    destroys good files first, mixes revisions           rows m and c; test_kill
W5    no check mode, no result, floods stderr              rows a and c (``Host.result`` allows the result alone)
W6    a no-op reads everything                             rows b and j
W7    one connection for one file                          row g
W8    two processes corrupt each other                     row i
W9    a fixed budget of tries and of time                  rows e and n
W10   fills the disk                                       row h
W11   a single file is not verified                        rows d and j (``include``)
W12   one error for everything, letter case of digests     row k
W13   leaves parts, locks and a tracking id                rows a, c and f (``nothing_but_the_model``, an empty home)
W14   packages on every host, signed URLs in errors        ``Host`` (the standard library alone), ``Host.result``, row e
====  ===================================================  ============================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient, parse_endpoint
from model_hub import Fault, Hub, add_model, hostile_rows
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
    pythons,
    small_disk,
    total,
    tree,
    wait_for,
)

BIG = "acme/big"
BIG_SIZE = 18 * 1024 * 1024
"""Enough for ranges over several connections."""

SLOW = 100_000
"""Bytes per second at which the small model takes a minute."""

AT_ONCE = {"Retry-After": "0"}


@pytest.fixture
def big(root: Path, tmp_path: Path) -> Path:
    """The files of a second model on the hub, with one large file."""
    directory = tmp_path / "big"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(random.Random(5).randbytes(BIG_SIZE))
    add_model(root, BIG, directory)
    return directory


def put(repo: Hub, path: Path, include: tuple[str, ...] = ()) -> None:
    """Have the model at ``path`` without a process: for what is not the matter of a test, and takes too long else."""
    request = _artifact.Request(MODEL, "master", str(path), repo.endpoint, include)
    _artifact.present(request, HubClient(parse_endpoint(repo.endpoint)))


def kept(path: Path) -> int:
    """Bytes that a run which ends now leaves for the next one."""
    return sum(_staging.parts_on_disk(_staging.locate(str(path))).values())


def drip(repo: Hub, model: str) -> None:
    """Give most of a model at once and the rest too slowly to wait for, so that a run can be met in its middle."""
    if model == MODEL:
        repo.faults.add(Fault(match="lfs/*", drop_after=int(WEIGHTS * 0.8), drop="fin", times=1))
    repo.faults.add(Fault(match="lfs/*", after=1 if model == MODEL else 4, rate=20_000))


# --- a: a fresh download ---


def test_row_a_a_fresh_download_asks_for_each_content_once(host: Host, repo: Hub, source: Path, path: Path) -> None:
    """Official: 52 to 68 MiB, an id of the installation in the home directory, a request for an empty file too.

    Ours: one question for the commit, one for the list, one for each content, nothing in the home directory.
    """
    real = host.run(path=str(path))
    assert tree(path) == tree(source)
    assert real["bytes_fetched"] == total(source)
    operations = [request.op for request in repo.requests]
    assert {name: operations.count(name) for name in set(operations)} == {
        "revisions": 1,
        "list": 1,
        "file": 3,
        "lfs": 1,
    }
    assert repo.requests.sent("lfs/*") == WEIGHTS
    assert everything(host.home) == []
    assert host.rss < 64, f"{host.rss} MiB"


def test_row_a_many_small_files_share_their_connections(host: Host, root: Path, repo: Hub, tmp_path: Path) -> None:
    """Official, at 50 ms an answer: four files at once. Ours: connections are kept, and taken in parallel."""
    files = tmp_path / "files"
    files.mkdir()
    for number in range(200):
        (files / f"{number}.json").write_text(f"{number}")
    add_model(root, "acme/many", files)
    repo.faults.add(Fault(match="file/*", delay=0.05))
    host.run(model="acme/many", path=str(tmp_path / "many"))
    assert tree(tmp_path / "many") == tree(files)
    assert repo.requests.count("file/*") == 200
    assert 4 <= repo.requests.at_once("file/*") <= 32
    assert repo.requests.connections() <= 33, "one more for the list"


# --- b: nothing to do ---


def test_row_b_a_second_run_reads_no_file(host: Host, repo: Hub, source: Path, path: Path) -> None:
    """Official: hashes every byte again, 1.7 s for 2 GB. Ours: one request, and the recorded sizes and times."""
    host.run(path=str(path))
    manifest = path / ".gpufleet/manifest.json"
    # Other bytes under the recorded size and time: only a run that reads them can notice.
    weights, times = path / "model.safetensors", (path / "model.safetensors").stat()
    weights.write_bytes(bytes(WEIGHTS))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    recorded = manifest.read_text()
    repo.requests.clear()
    assert not host.run(path=str(path))["changed"]
    assert repo.requests.counts() == {f"revisions/{MODEL}": 1}
    assert manifest.read_text() == recorded
    repaired = host.run(path=str(path), state="verified", _ansible_diff=True)
    assert (repaired["changed"], repaired["bytes_fetched"]) == (True, WEIGHTS)
    assert repaired["diff"]["before"]["files"] != repaired["diff"]["after"]["files"]
    assert tree(path) == tree(source)


# --- c: a run that is killed ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("model", [MODEL, BIG])
def test_row_c_an_interrupted_run_is_resumed(
    host: Host, repo: Hub, source: Path, big: Path, path: Path, model: str, number: signal.Signals
) -> None:
    """Official: resumes. Ours too, in ranges as well, and check mode tells beforehand how much is left."""
    files = source if model == MODEL else big
    size = (files / "model.safetensors").stat().st_size
    drip(repo, model)
    process = host.start(model=model, path=str(path))
    wait_for(lambda: kept(path) > size * 0.6, "progress")
    process.send_signal(number)
    if number is signal.SIGKILL:
        process.communicate(timeout=30)
    else:
        assert host.result(process)["code"] == "interrupted"
        assert not (path.parent / ".tiny.gpufleet/lock").exists()
    assert not path.exists(), "nothing half-done is published"
    repo.faults.clear()
    repo.requests.clear()
    check = host.run(model=model, path=str(path), _ansible_check_mode=True)
    assert repo.requests.count("file/*") == 0
    real = host.run(model=model, path=str(path))
    assert check["bytes_fetched"] == real["bytes_fetched"] <= total(files) - size * 0.6
    assert repo.requests.sent("lfs/*") <= real["bytes_fetched"]
    assert all(request.headers["range"].startswith("bytes=") for request in repo.requests.select("lfs/*"))
    assert tree(path) == tree(files)
    assert nothing_but_the_model(path)


def test_row_c_parts_of_another_revision_or_mode_are_of_no_harm(
    host: Host, root: Path, repo: Hub, big: Path, path: Path, tmp_path: Path
) -> None:
    """Official: parts of another mode lie in the model's directory for ever, those of another revision are resumed.

    Ours: a part belongs to its content; however many connections the next run has it is used, or removed.
    """
    drip(repo, BIG)
    before = 0
    for connections in (8, 1):
        process = host.start(model=BIG, path=str(path), connections=connections)
        wait_for(lambda: kept(path) > max(before, BIG_SIZE // 2), "progress")  # noqa: B023 - waited for here
        process.send_signal(signal.SIGTERM)
        assert host.result(process)["code"] == "interrupted"
        before = kept(path)
    repo.faults.clear()
    following = tmp_path / "following"
    following.mkdir()
    (following / "config.json").write_text("{}")
    (following / "model.safetensors").write_bytes(random.Random(6).randbytes(BIG_SIZE))
    add_model(root, BIG, following)
    assert host.run(model=BIG, path=str(path))["bytes_fetched"] == BIG_SIZE, "the small file is still of use"
    assert tree(path) == tree(following)
    assert nothing_but_the_model(path)


# --- d: a wrong byte ---


@pytest.mark.parametrize("only", [[], ["config.json"]], ids=["all", "one file"])
def test_row_d_wrong_bytes_are_never_published(
    host: Host, repo: Hub, source: Path, path: Path, only: list[str]
) -> None:
    """Official: noticed for a whole model; accepted with exit status 0 for a small file asked for by name.

    Ours: noticed, however many files are asked for, and healed when it passes.
    """
    always = repo.faults.add(Fault(match="file/*/config.json", corrupt_at=-1))
    message = host.fail("transfer.wrong_content", path=str(path), include=only)
    assert "config.json" in message
    assert not path.exists()
    repo.faults.remove(always)
    once = [repo.faults.add(Fault(match=match, corrupt_at=5, times=1)) for match in ("file/*/config.json", "lfs/*")]
    host.run(path=str(path), include=only)
    assert [fault.hits for fault in once] == ([1, 0] if only else [1, 1])
    assert tree(path) == {name: data for name, data in tree(source).items() if not only or name in only}
    assert nothing_but_the_model(path)


@pytest.mark.parametrize("range_mode", ["206", "lie"], ids=["a range is corrupt", "ranges lie"])
def test_row_d_wrong_ranges_are_never_published(host: Host, repo: Hub, big: Path, path: Path, range_mode: Any) -> None:
    """Official: three tries of the whole file. Ours: one wrong range is found in the whole, and healed."""
    if range_mode == "lie":
        fault = repo.faults.add(Fault(match="lfs/*", range="lie"))
    else:
        fault = repo.faults.add(Fault(match="lfs/*", corrupt_at=BIG_SIZE // 2, times=5))
    host.run(model=BIG, path=str(path))
    assert fault.hits
    assert tree(path) == tree(big)


@pytest.mark.parametrize(
    ("change", "code"),
    [("missing", "manifest.unverifiable"), ("empty", "manifest.unverifiable"), ("wrong", "transfer.wrong_content")],
)
def test_row_d_a_file_without_a_right_digest_is_refused(
    host: Host, repo: Hub, path: Path, change: Any, code: str
) -> None:
    """Official: with an empty Sha256, a corrupt small file is accepted. Ours: what cannot be verified is refused."""
    repo.faults.add(Fault(match="list/*", sha256=change, rows="config.json"))
    host.fail(code, path=str(path))
    assert not path.exists()


# --- e: connections that break ---


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_row_e_tries_are_given_back_by_progress(host: Host, repo: Hub, source: Path, path: Path, how: Any) -> None:
    """Official: exit status 1 after six connections, although each of them brought something.

    Ours: goes on as long as bytes come, and asks for none of them twice.
    """
    repo.faults.add(Fault(match="lfs/*", drop_after=WEIGHTS // 6, drop=how))
    assert host.run(path=str(path), retries=2)["bytes_fetched"] == total(source)
    assert repo.requests.count("lfs/*") == 6
    assert repo.requests.sent("lfs/*") == WEIGHTS
    assert tree(path) == tree(source)


def test_row_e_broken_ranges_are_resumed(host: Host, repo: Hub, big: Path, path: Path) -> None:
    """Official: as above. Ours: several connections that break at the same time are one failure."""
    repo.faults.add(Fault(match="lfs/*", drop_after=1_500_000))
    host.run(model=BIG, path=str(path), retries=2)
    assert repo.requests.sent("lfs/*") == BIG_SIZE
    assert tree(path) == tree(big)


def test_row_e_a_server_that_never_gives_anything_is_given_up(host: Host, repo: Hub, path: Path) -> None:
    """Official: gives up too, and prints the signed URL. Ours: says which file, and no secret (``Host.result``)."""
    repo.faults.add(Fault(match="lfs/*", status=500))
    message = host.fail("transfer.no_progress", path=str(path), retries=1)
    assert "model.safetensors" in message
    assert "HTTP 500" in message
    assert repo.requests.count("lfs/*") == 2
    assert not path.exists()


@pytest.mark.parametrize("match", ["list/*", "revisions/*", "lfs/*"])
@pytest.mark.parametrize("status", [429, 503])
def test_row_e_a_busy_server_is_asked_again(
    host: Host, repo: Hub, source: Path, path: Path, match: str, status: int
) -> None:
    """Official: passes. Ours too, wherever it is met."""
    fault = repo.faults.add(Fault(match=match, status=status, headers=AT_ONCE, times=2))
    host.run(path=str(path))
    assert fault.hits == 2
    assert tree(path) == tree(source)


def test_row_e_a_stalled_connection_is_given_up_and_resumed(host: Host, repo: Hub, source: Path, path: Path) -> None:
    """Official: aborted after 60 s without a byte, resumed. Ours: after ``timeout``, and nothing comes twice."""
    repo.faults.add(Fault(match="lfs/*", stall_after=2_000_000, times=1))
    assert host.run(path=str(path), timeout=1)["bytes_fetched"] == total(source)
    assert tree(path) == tree(source)


# --- f: hostile paths ---

MEASURED = ("parent", "absolute", "middle")
HARMLESS = ("symlink",)  # hostile only where the directory holds a link of that name: the next test


@pytest.mark.parametrize("name", [name for name in hostile_rows("/nowhere") if name not in HARMLESS])
def test_row_f_hostile_rows_write_nothing(host: Host, repo: Hub, path: Path, tmp_path: Path, name: str) -> None:
    """Official: exit status 0, files outside the directory. Ours: refused before the first byte."""
    repo.faults.add(Fault(match="list/*", extra_rows=hostile_rows(str(tmp_path / "outside"))[name]))
    before = everything(tmp_path)
    if name in MEASURED:
        host.fail("manifest.unsafe_listing", path=str(path))
    else:
        with pytest.raises(FleetError) as caught:
            put(repo, path)
        assert caught.value.code in ("manifest.unsafe_listing", "manifest.unverifiable")
    assert everything(tmp_path) == before
    assert repo.requests.count("file/*") == 0


def test_row_f_links_that_were_planted_lead_nowhere(host: Host, repo: Hub, path: Path, tmp_path: Path) -> None:
    """Official: writes through links in the directory and under its partial file. Ours: follows none."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    path.mkdir(parents=True)
    (path / "link").symlink_to(outside)
    (path / "config.json").symlink_to(outside / "victim")
    (path / "config.json.incomplete").symlink_to(outside / "victim")
    repo.faults.add(Fault(match="list/*", extra_rows=hostile_rows(str(outside))["symlink"], times=1))
    assert "'link'" in host.fail("path.in_the_way", path=str(path))
    assert host.run(path=str(path))["foreign"] == ["config.json.incomplete", "link"]
    assert everything(outside) == ["victim"]
    assert (outside / "victim").read_text() == "precious"
    assert not (path / "config.json").is_symlink()
    (path.parent / ".tiny.gpufleet").symlink_to(outside)
    (path / "config.json").unlink()
    host.fail("path.failed", path=str(path))
    assert everything(outside) == ["victim"]


# --- g: a limit for each connection ---


def test_row_g_one_large_file_uses_many_connections(host: Host, repo: Hub, big: Path, path: Path) -> None:
    """Official: one connection, 108 s where 8 s are possible. Ours: ranges, in place, and no byte twice."""
    repo.faults.add(Fault(match="lfs/*", rate=3_000_000))
    assert host.run(model=BIG, path=str(path))["bytes_fetched"] == total(big)
    assert repo.requests.at_once("lfs/*") >= 4
    assert repo.requests.sent("lfs/*") == BIG_SIZE
    spans = [request.headers["range"].removeprefix("bytes=").split("-") for request in repo.requests.select("lfs/*")]
    assert len({start for start, _end in spans}) == len(spans)
    assert all(int(start) <= int(end) < BIG_SIZE for start, end in spans)
    assert repo.requests.count("file/*/model.safetensors") <= repo.requests.connections("lfs/*"), "the URL is kept"
    assert tree(path) == tree(big)
    assert nothing_but_the_model(path)


def test_row_g_the_number_of_connections_can_be_limited(host: Host, repo: Hub, big: Path, path: Path) -> None:
    """Official: ``--max-workers`` counts files. Ours: ``connections`` counts what the hub sees."""
    repo.faults.add(Fault(match="lfs/*", rate=24_000_000))
    host.run(model=BIG, path=str(path), connections=2)
    # The hub may still be busy with the end of an answer that the client has whole.
    assert repo.requests.connections("lfs/*") == 2
    assert tree(path) == tree(big)


@pytest.mark.parametrize("mode", ["200", "ignore", "lie", "shift", "total"])
@pytest.mark.parametrize("model", [MODEL, BIG])
def test_row_g_ranges_that_are_not_honoured(
    host: Host, repo: Hub, source: Path, big: Path, path: Path, model: str, mode: Any
) -> None:
    """Official: judges by Content-Range. Ours too; where the answer is of no use, one stream does it."""
    repo.faults.add(Fault(match="lfs/*", drop_after=2_000_000, times=1))
    repo.faults.add(Fault(match="lfs/*", range=mode))
    host.run(model=model, path=str(path))
    assert tree(path) == tree(source if model == MODEL else big)
    assert nothing_but_the_model(path)


def test_row_g_signed_urls_that_expire_are_asked_for_anew(host: Host, repo: Hub, big: Path, path: Path) -> None:
    """Official: each part has a redirect of its own. Ours: keeps the URL, and gets another one when it is refused."""
    repo.faults.add(Fault(match="file/*", url_ttl=0.5))
    repo.faults.add(Fault(match="lfs/*", rate=5_000_000))
    host.run(model=BIG, path=str(path), connections=2)
    repo.requests.settle()
    assert 403 in {request.status for request in repo.requests.select("lfs/*")}
    assert repo.requests.sent("lfs/*") - BIG_SIZE < 100_000, "pages that say 403, and no byte twice"
    assert tree(path) == tree(big)


# --- h: a full disk ---


def test_row_h_a_disk_that_is_too_small(host: Host, repo: Hub, tmp_path: Path) -> None:
    """Official: no check, fills it to the last byte. Ours: refused before the first byte, in check mode too."""
    with small_disk(tmp_path / "disk", 4_000_000) as disk:
        for check_mode in (True, False):
            message = host.fail("disk.no_space", path=str(disk / "deep/tiny"), _ansible_check_mode=check_mode)
            assert str(disk) in message
            assert "MiB free" in message
        assert everything(disk) == []
        assert repo.requests.count("file/*") == 0


def test_row_h_a_disk_that_fills_up_meanwhile(host: Host, repo: Hub, source: Path, tmp_path: Path) -> None:
    """Official: errors, parts kept, resumed when there is room. Ours too."""
    with small_disk(tmp_path / "disk", 16_000_000) as disk:
        path = disk / "tiny"
        drip(repo, MODEL)
        process = host.start(path=str(path))
        wait_for(lambda: kept(path) > 500_000, "progress")
        with contextlib.suppress(OSError), (disk / "other").open("wb") as other:
            other.write(bytes(16_000_000))
        assert host.result(process)["code"] == "disk.full"
        assert not path.exists()
        (disk / "other").unlink()
        repo.faults.clear()
        assert host.run(path=str(path))["bytes_fetched"] < total(source)
        assert tree(path) == tree(source)


# --- i: two at once ---


def test_row_i_a_second_run_waits_and_finds_nothing_to_do(host: Host, repo: Hub, source: Path, path: Path) -> None:
    """Official: a lock in the user's cache. Ours: a lock at the target, that says who holds it."""
    slow = repo.faults.add(Fault(match="lfs/*", total_rate=SLOW))
    first = host.start(path=str(path))
    wait_for(lambda: moved(repo) > 0, "progress")
    second = host.start(path=str(path), lock_timeout=60)
    message = host.fail("artifact.locked", path=str(path), lock_timeout=0)
    assert f"process {first.pid} of user 'root' on host {socket.gethostname()!a} since" in message
    slow.hurry(1e9)
    assert host.result(first)["bytes_fetched"] == total(source)
    waited = host.result(second)
    assert (waited["changed"], waited["bytes_fetched"]) == (False, 0)
    assert repo.requests.count("lfs/*") == 1
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


def another_host(directory: Path, repo: Hub) -> Host:
    """A host of another name and home on the same file system, on which locks of the first one do not show."""
    other = Host(directory, repo.endpoint, home="other")
    other.environment["MODELSCOPE_CACHE"] = str(other.home / "cache")
    other.wrapper = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "other-host"]
    return other


@pytest.mark.parametrize("shared", [True, False], ids=["locks are shared", "locks are not"])
def test_row_i_another_home_and_another_host_corrupt_nothing(
    host: Host, repo: Hub, source: Path, path: Path, tmp_path: Path, shared: bool
) -> None:
    """Official, with two homes: both write one partial file, and the first exits with 0 over corrupt files.

    Ours: one of them waits, also on a network file system whose locks do not reach the other host: there the lock
    file's owner and age count.
    """
    other = another_host(tmp_path, repo)
    if not shared:
        other.preamble = "import fcntl; fcntl.flock = lambda *_: None"
    slow = repo.faults.add(Fault(match="lfs/*", total_rate=SLOW))
    first = host.start(path=str(path))
    wait_for(lambda: moved(repo) > 0, "progress")
    message = other.fail("artifact.locked", path=str(path), lock_timeout=0)
    assert f"process {first.pid} of user 'root' on host {socket.gethostname()!a}" in message
    second = other.start(path=str(path), lock_timeout=60)
    slow.hurry(1e9)
    assert host.result(first)["bytes_fetched"] == total(source)
    waited = other.result(second)
    assert (waited["changed"], waited["bytes_fetched"]) == (False, 0)
    assert repo.requests.sent("lfs/*") == WEIGHTS
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


def test_row_i_a_host_that_died_holds_no_lock_for_ever(
    host: Host, repo: Hub, source: Path, path: Path, tmp_path: Path
) -> None:
    """Official: the lock is in the cache of the host that died. Ours: its age tells, where nothing else can."""
    other = another_host(tmp_path, repo)
    other.preamble = "import fcntl; fcntl.flock = lambda *_: None"
    slow = repo.faults.add(Fault(match="lfs/*", total_rate=SLOW))
    first = host.start(path=str(path))
    wait_for(lambda: moved(repo) > 0, "progress")
    first.kill()
    first.communicate()
    repo.faults.remove(slow)
    other.fail("artifact.locked", path=str(path), lock_timeout=0)
    lock = path.parent / ".tiny.gpufleet/lock"
    os.utime(lock, (lock.stat().st_mtime - 120, lock.stat().st_mtime - 120))
    other.run(path=str(path), lock_timeout=0)
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


def test_row_i_processes_that_start_together_fetch_once(
    host: Host, repo: Hub, source: Path, path: Path, tmp_path: Path
) -> None:
    """Official: in 3 of 3 simultaneous starts with two homes the files were corrupt. Ours: fetched once, and right."""
    hosts = [host, *(Host(tmp_path, repo.endpoint, home=f"home{number}") for number in range(3))]
    started = [item.start(path=str(path)) for item in hosts]
    answers = [item.result(process) for item, process in zip(hosts, started, strict=True)]
    assert [answer.get("msg") for answer in answers] == [None] * 4
    assert sorted(answer["bytes_fetched"] for answer in answers) == [0, 0, 0, total(source)]
    assert repo.requests.sent("lfs/*") == WEIGHTS
    assert tree(path) == tree(source)
    assert nothing_but_the_model(path)


def test_row_i_two_directories_do_not_wait_for_each_other(host: Host, repo: Hub, source: Path, tmp_path: Path) -> None:
    """Official: the same repository into two directories goes one after the other. Ours: side by side."""
    gate = repo.faults.add(Fault(match="lfs/*", stall_after=1_000_000))
    paths = [tmp_path / "one/tiny", tmp_path / "two/tiny"]
    started = [host.start(path=str(item)) for item in paths]
    wait_for(lambda: [request.sent for request in repo.requests.select("lfs/*")] == [1_000_000] * 2, "second transfer")
    repo.faults.remove(gate)
    for process in started:
        process.kill()
        process.communicate()
    for item in paths:
        host.run(path=str(item))
        assert tree(item) == tree(source)


# --- j: damage after completion ---


@pytest.mark.parametrize("only", [[], ["config.json"]], ids=["all", "one file"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped", "linked"])
def test_row_j_local_damage_is_repaired(
    host: Host, repo: Hub, source: Path, path: Path, tmp_path: Path, damage: str, only: list[str]
) -> None:
    """Official: unnoticed where files are asked for by name. Ours: noticed, and only what is bad is fetched."""
    put(repo, path, include=tuple(only))
    whole, file = tree(path), path / "config.json"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if damage in ("deleted", "linked"):
        file.unlink()
    if damage == "linked":
        file.symlink_to(victim)
    elif damage == "truncated":
        os.truncate(file, 10)
    elif damage == "flipped":
        file.write_text(file.read_text().swapcase())
    repo.requests.clear()
    check = host.run(path=str(path), include=only, _ansible_check_mode=True)
    real = host.run(path=str(path), include=only)
    assert check["changed"]
    assert check["bytes_fetched"] == real["bytes_fetched"] == len(whole["config.json"])
    assert set(repo.requests.counts()) == {f"revisions/{MODEL}", f"file/{MODEL}/config.json"}
    assert tree(path) == whole
    assert not file.is_symlink()
    assert victim.read_text() == "precious"


def test_row_j_what_is_not_ours_is_kept(host: Host, source: Path, path: Path) -> None:
    """Official: a stale file stays, a directory in a file's place is an error. Ours: says so, and touches neither."""
    host.run(path=str(path))
    (path / "stale.txt").write_text("mine")
    real = host.run(path=str(path), state="verified")
    assert (real["changed"], real["foreign"]) == (False, ["stale.txt"])
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    (path / "config.json/mine").write_text("mine")
    assert "'config.json/mine'" in host.fail("path.in_the_way", path=str(path))
    assert (path / "config.json/mine").read_text() == "mine"
    shutil.rmtree(path / "config.json")
    host.run(path=str(path))
    assert tree(path) == {**tree(source), "stale.txt": b"mine"}


# --- k: answers ---

OVERLOAD = {
    "Code": 10010205001,
    "Message": "Error 1461: Can't create more than max_prepared_stmt_count statements",
    "Success": False,
}


@pytest.mark.parametrize(
    ("fault", "options", "code"),
    [
        (None, {"model": "acme/unknown"}, "hub.not_found"),
        (None, {"revision": "v9"}, "hub.unknown_revision"),
        (None, {"revision": "0" * 40}, "hub.unknown_revision"),
        (None, {"include": ["*.gguf"]}, "manifest.nothing_selected"),
        (Fault(match="list/*", empty=True), {}, "manifest.empty_listing"),
        (Fault(match="list/*", bad_revision="empty"), {"revision": "0" * 40}, "manifest.empty_listing"),
        (Fault(match="list/*", cap=0), {}, "manifest.empty_listing"),
        (Fault(match="list/*", success=False), {}, "hub.refused"),
        (Fault(match="list/*", body="<html>Log in</html>"), {}, "hub.odd_answer"),
        (Fault(match="list/*", body='"text"'), {}, "hub.odd_answer"),
        (Fault(match="list/*", body={"Code": 200, "Data": {"Files": "none"}}), {}, "hub.odd_answer"),
        (Fault(match="revisions/*", body=["x"]), {}, "hub.odd_answer"),
        (Fault(match="revisions/*", body="[" * 200_000), {}, "hub.odd_answer"),
        (Fault(match="file/*", redirect="file:///etc/passwd"), {}, "hub.bad_redirect"),
        (Fault(match="file/*/config.json", body={"Code": 404, "Message": "x"}), {}, "transfer.wrong_content"),
        (Fault(match="lfs/*", truncate=1000), {}, "transfer.wrong_content"),
    ],
    ids=[
        "unknown model",
        "unknown branch",
        "unknown commit",
        "no match",
        "empty",
        "unknown commit, empty",
        "nothing",
        "no success",
        "html",
        "text",
        "no list",
        "list",
        "deep",
        "redirect",
        "error in a file's place",
        "truncated",
    ],
)
def test_row_k_an_answer_that_is_none_is_an_error_of_its_own(
    host: Host, repo: Hub, path: Path, fault: Fault | None, options: dict[str, Any], code: str
) -> None:
    """Official: one error for all of it, or exit status 0 over an empty directory.

    Ours: each has its code, leaves nothing where nothing was, and what served where something did.
    """
    if fault is not None:
        repo.faults.add(fault)
    host.fail(code, path=str(path), **options)
    assert not path.exists()
    repo.faults.clear()
    put(repo, path, include=("sub/*",))
    before = tree(path)
    if fault is not None:
        repo.faults.add(fault)
    host.fail(code, path=str(path), **options)
    assert tree(path) == before


@pytest.mark.parametrize("python", pythons(), ids=lambda name: Path(name).name)
def test_row_k_a_pattern_without_a_meaning_matches_nothing(host: Host, path: Path, python: str) -> None:
    """Official: nothing matches, exit status 0. Ours: an error, and the same one under every Python."""
    host.python = python
    host.fail("manifest.nothing_selected", path=str(path), include=["[c-a]"])
    assert not path.parent.exists()


def test_row_k_known_revisions_are_named(host: Host, path: Path) -> None:
    """Official: a 404 like any other. Ours: says which branches and tags there are."""
    assert "branches (master) or tags (v1)" in host.fail("hub.unknown_revision", path=str(path), revision="v9")


def test_row_k_access_is_told_from_absence(root: Path, source: Path, path: Path, tmp_path: Path) -> None:
    """Official: gated, private and missing are one error. Ours: says whether a token was given."""
    with Hub(root, access=Access(tokens=[TOKEN], private=[MODEL]), lfs_base="http://localhost:{port}") as repo:
        host = Host(tmp_path, repo.endpoint)
        assert "no token was given" in host.fail("hub.no_access", path=str(path))
        assert "has no access" in host.fail("hub.no_access", path=str(path), token="another")
        assert not path.parent.exists()
        host.run(path=str(path), token=TOKEN)
        assert tree(path) == tree(source)
        for request in repo.requests.select("lfs/*"):
            assert not {"authorization", "cookie"} & set(request.headers), "the token stays with the hub"


@pytest.mark.parametrize(
    ("fault", "hits"),
    [
        (Fault(match="revisions/*", status=404, body=OVERLOAD, times=1), 1),
        (Fault(match="list/*", status=404, body=OVERLOAD, times=1), 1),
        (Fault(match="list/*", sha256="upper"), 1),
        (Fault(match="file/*/config.json", body={"Code": 404, "Message": "x"}, times=2), 2),
    ],
    ids=["overload", "overload while listing", "upper case", "error in a file's place"],
)
def test_row_k_what_looks_like_an_error_and_passes(
    host: Host, repo: Hub, source: Path, path: Path, fault: Fault, hits: int
) -> None:
    """Official: an overload in the clothes of a 404 is final, a digest in capitals never fits. Ours: both pass."""
    repo.faults.add(fault)
    host.run(path=str(path))
    assert fault.hits == hits
    assert tree(path) == tree(source)


def test_row_k_a_dead_server_is_told_and_nothing_is_left(host: Host, path: Path) -> None:
    """Official: 8 s, and an empty directory. Ours: the endpoint by name, and nothing."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert endpoint in host.fail("hub.unreachable", path=str(path), endpoint=endpoint, retries=1)
    assert not path.parent.exists()


# --- m: an update that fails ---


def test_row_m_what_served_is_there_until_the_new_one_is_whole(
    host: Host, repo: Hub, root: Path, source: Path, path: Path, tmp_path: Path
) -> None:
    """Official: removes the old weights first; with the content server down the model that worked is gone.

    Ours: the old tree to the last file while the new one cannot be had, the new one to the last file after that.
    """
    host.run(path=str(path))
    old, commit = tree(path), json.loads((path / ".gpufleet/manifest.json").read_text())["commit"]
    following = new_revision(root, source, tmp_path)
    for fault, code in (
        (Fault(match="lfs/*", status=500), "transfer.no_progress"),
        (Fault(match="lfs/*", drop_after=1000), "transfer.no_progress"),
        (Fault(match="lfs/*", corrupt_at=-1), "transfer.wrong_content"),
    ):
        if fault.drop_after:
            repo.faults.add(Fault(match="lfs/*", range="ignore"))  # so that it never gets further
        repo.faults.add(fault)
        host.fail(code, path=str(path), retries=1)
        assert tree(path) == old
        assert json.loads((path / ".gpufleet/manifest.json").read_text())["commit"] == commit
        complete = host.run(path=str(path), revision=commit, _ansible_check_mode=True)
        assert complete["bytes_fetched"] == 0
        repo.faults.clear()
    assert host.run(path=str(path))["changed"]
    assert tree(path) == following
    assert nothing_but_the_model(path)


# --- n: long transfers ---


def test_row_n_a_transfer_may_take_as_long_as_it_likes(host: Host, repo: Hub, source: Path, path: Path) -> None:
    """Official: a budget for each file in total, so a slow one is never fetched.

    Ours: only silence counts. The transfer takes longer than ``timeout``, and each byte comes once.
    """
    timeout = 3
    repo.faults.add(Fault(match="lfs/*", rate=WEIGHTS / (1.5 * timeout)))
    assert host.run(path=str(path), timeout=timeout, retries=0)["bytes_fetched"] == total(source)
    assert repo.requests.count("lfs/*") == 1
    request = repo.requests.select("lfs/*")[0]
    assert request.ended - request.began > timeout, "or this test shows nothing"
    assert tree(path) == tree(source)


# --- s: listings that are cut off ---


@pytest.fixture
def wide(root: Path, tmp_path: Path) -> Path:
    """The files of a model with 3100 files in one directory."""
    directory = tmp_path / "wide/flat"
    directory.mkdir(parents=True)
    for number in range(3100):
        (directory / f"{number}.json").write_text(str(number))
    (directory.parent / "config.json").write_text("{}")
    add_model(root, "acme/wide", directory.parent)
    return directory.parent


def test_row_s_a_listing_that_is_cut_off_is_an_error(host: Host, repo: Hub, wide: Path, path: Path) -> None:
    """Official: 3000 of the 3100 files, a warning, exit status 0. Ours: an error, and nothing fetched."""
    message = host.fail("hub.listing_incomplete", model="acme/wide", path=str(path))
    assert "'flat'" in message
    assert repo.requests.count("file/*") == 0
    assert not path.parent.exists()


def test_row_s_what_can_be_listed_by_directory_is_complete(host: Host, root: Path, wide: Path) -> None:
    """Official: lists directory by directory too. Ours: every file is there, once."""
    (wide / "rest").mkdir()
    for number in range(1600, 3100):
        (wide / f"flat/{number}.json").rename(wide / f"rest/{number}.json")
    add_model(root, "acme/wide", wide)
    info = host.run("modelscope_model_info", model="acme/wide")
    assert [item["path"] for item in info["files"]] == sorted(tree(wide))


# --- t: other sites ---

SITES = ("modelscope.cn", "modelscope.ai", "cdn.modelscope.cn")


class Sites:
    """The outside world behind a proxy: names under which hubs of the lab answer over TLS. ``asked`` has every name."""

    def __init__(self, directory: Path, hubs: dict[str, Hub]) -> None:
        self.hubs, self.asked, self.certificate = hubs, list[str](), directory / "sites.pem"
        key = directory / "sites.key"
        names = ",".join(f"DNS:{name}" for name in SITES)
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=lab", "-addext", f"subjectAltName={names}", "-keyout", str(key)]
        subprocess.run([*command, "-out", str(self.certificate)], capture_output=True, check=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, key)

    def serve(self, connection: socket.socket) -> None:
        """Answer one CONNECT, and pass on what comes through it."""
        with connection.makefile("rb") as stream:
            name = stream.readline().split()[1].decode().rpartition(":")[0]
            while stream.readline().strip():
                pass
        self.asked.append(name)
        if name not in self.hubs:
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with (
            self._context.wrap_socket(connection, server_side=True) as inner,
            socket.create_connection(("127.0.0.1", self.hubs[name].port)) as hub,
        ):
            back = threading.Thread(target=_pass_on, args=(hub, inner), daemon=True)
            back.start()
            _pass_on(inner, hub)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def outside(host: Host, sites: Sites) -> Iterator[None]:
    """Let a host see those sites, and nothing else."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                sites.serve(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        proxy = f"http://127.0.0.1:{server.server_address[1]}"
        host.environment = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "SSL_CERT_FILE": str(sites.certificate)}
        try:
            yield
        finally:
            host.environment = {}
            server.shutdown()


def test_row_t_no_other_site_is_asked(host: Host, root: Path, source: Path, path: Path, tmp_path: Path) -> None:
    """Official, without an endpoint: asks modelscope.ai with the same token, downloads from there, exit status 0.

    Ours: one endpoint. A model that is not there is not there, and nobody else sees the token.
    """
    (tmp_path / "empty").mkdir()
    with (
        Hub(tmp_path / "empty") as here,
        Hub(root, lfs_base="https://cdn.modelscope.cn") as there,
        outside(host, sites := Sites(tmp_path, {"modelscope.cn": here, "modelscope.ai": there})),
    ):
        host.fail("hub.not_found", path=str(path), endpoint="https://modelscope.cn", token=TOKEN)
        assert set(sites.asked) == {"modelscope.cn"}
        assert "authorization" in next(iter(here.requests)).headers
        assert not path.parent.exists()
        # The same outside world, the same token: where the model is, it is fetched, and its bytes without the token.
        sites.hubs["cdn.modelscope.cn"] = there
        host.run(path=str(path), endpoint="https://modelscope.ai", token=TOKEN)
        assert tree(path) == tree(source)
        assert set(sites.asked) == {"modelscope.cn", "modelscope.ai", "cdn.modelscope.cn"}
        for request in there.requests:
            assert ("authorization" in request.headers) == (request.op != "lfs")


def test_row_t_the_default_is_one_endpoint_too(host: Host, path: Path, tmp_path: Path) -> None:
    """Official: without an endpoint it chooses among sites. Ours: modelscope.cn, and if that is away, an error."""
    with outside(host, sites := Sites(tmp_path, {})):
        host.fail("hub.unreachable", path=str(path), endpoint=None, token=TOKEN, retries=1)
    assert set(sites.asked) == {"modelscope.cn"}
    assert not path.parent.exists()
