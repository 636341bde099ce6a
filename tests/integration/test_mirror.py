# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The mirror: real nginx with the role's configuration, filled by the module, read by our client and the official."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from mirror_box import Mirror
from model_hub import Hub, add_model
from module_host import (
    MODEL,
    WEIGHTS,
    Host,
    everything,
    new_revision,
    official,
    pythons,
    small_disk,
    total,
    tree,
    wait_for,
)

API = f"/api/v1/models/{MODEL}"
NO_COMMIT = "0" * 40
HARD_NAMES = {
    "a b/c d.txt": b"spaces",
    "plus+plus/1+1=2.txt": b"plus signs",
    "per%cent/100%25.txt": b"percent signs",
    "question?/what?.txt": b"question marks",
    "hash#/amp&.txt": b"others",
    "说明/你好.md": "你好".encode(),
    "many of them in one name, and more, and more, and more of them.txt": b"many spaces",
    "semi;colon'quote\"$uri.txt": b"what a configuration could take for its own",
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    """One nginx for all tests of this file; each test fills the root anew."""
    directory = tmp_path_factory.mktemp("mirror")
    with Mirror(directory, directory / "root") as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(mirror: Mirror) -> None:
    shutil.rmtree(mirror.root, ignore_errors=True)
    mirror.forget()


def publish(host: Host, mirror: Mirror, path: Path, **more: Any) -> dict[str, Any]:
    return host.run("vllm_mirror_model", endpoint=None, root=str(mirror.root), path=str(path), **more)


@pytest.fixture
def filled(host: Host, mirror: Mirror, path: Path) -> dict[str, Any]:
    """The model, fetched from the hub to ``path`` and put on the mirror. Returns what the first of the two said."""
    fetched = host.run(path=str(path))
    publish(host, mirror, path)
    return fetched


def commits(mirror: Mirror) -> Path:
    return mirror.root / "models" / MODEL / "commits"


# --- clients ---


def test_our_client_fetches_the_same_artifact(
    host: Host, mirror: Mirror, filled: dict[str, Any], source: Path, path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy/tiny"
    for revision in ("master", filled["commit"]):
        real = host.run(path=str(copy), endpoint=mirror.endpoint, revision=revision)
        assert {key: real[key] for key in ("commit", "files", "manifest_digest")} == {
            key: filled[key] for key in ("commit", "files", "manifest_digest")
        }
    assert tree(copy) == tree(source)
    assert sum(request.sent for request in mirror.requests() if "FilePath" in request.path) == total(source)
    assert not host.run(path=str(copy), endpoint=mirror.endpoint, revision=filled["commit"])["changed"]


def test_our_client_resumes_after_a_kill(
    host: Host, mirror: Mirror, filled: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy/tiny"
    process = host.start(path=str(copy), endpoint=mirror.endpoint, bandwidth="2MB")
    parts = copy.parent / ".tiny.gpufleet/parts"
    wait_for(lambda: any(item.stat().st_blocks > 4000 for item in parts.glob("*")), "progress")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    mirror.forget()
    real = host.run(path=str(copy), endpoint=mirror.endpoint)
    assert all(request.status == 206 for request in mirror.requests() if "model.safetensors" in request.path)
    assert 0 < real["bytes_fetched"] < WEIGHTS
    assert tree(copy) == tree(source)


def test_the_official_client_downloads_and_finds_nothing_to_do(
    host: Host, mirror: Mirror, filled: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    official(host, mirror, tmp_path / "cli")
    assert tree(tmp_path / "cli") == tree(source)
    host.run(path=str(tmp_path / "copy/tiny"), endpoint=mirror.endpoint)
    mirror.forget()
    official(host, mirror, tmp_path / "copy/tiny")
    assert [request.path.partition("?")[0] for request in mirror.requests()] == [f"{API}/repo/files"]


def test_the_official_client_resumes(
    host: Host, mirror: Mirror, filled: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    part = tmp_path / "cli/model.safetensors.incomplete"
    part.parent.mkdir()
    part.write_bytes((source / "model.safetensors").read_bytes()[:4_000_000])
    official(host, mirror, tmp_path / "cli")
    assert tree(tmp_path / "cli") == tree(source)
    (weights,) = (request for request in mirror.requests() if request.path.endswith("model.safetensors"))
    assert (weights.range, weights.status, weights.sent) == ("bytes=4000000-", 206, WEIGHTS - 4_000_000)


def test_names_that_have_to_be_quoted(host: Host, repo: Hub, root: Path, mirror: Mirror, tmp_path: Path) -> None:
    source = tmp_path / "names"
    for name, content in HARD_NAMES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    add_model(root, "acme/names", source)
    host.run(path=str(tmp_path / "work/names"), model="acme/names")
    publish(host, mirror, tmp_path / "work/names", model="acme/names")
    host.run(path=str(tmp_path / "copy/names"), model="acme/names", endpoint=mirror.endpoint)
    assert tree(tmp_path / "copy/names") == HARD_NAMES
    for name, content in HARD_NAMES.items():
        for quoted in (quote(name, safe=""), quote(name), quote_plus(name)):
            answer = mirror.get(f"/api/v1/models/acme/names/repo?Revision=master&FilePath={quoted}")
            assert (answer.status, answer.body) == (200, content), quoted
        assert mirror.get(f"/models/acme/names/resolve/master/{quote(name)}").body == content
        folder = name.rpartition("/")[0]
        for quoted in (quote(folder, safe=""), quote_plus(folder)) if folder else ():
            answer = mirror.get(f"/api/v1/models/acme/names/repo/files?Revision=master&Recursive=True&Root={quoted}")
            assert [row["Path"] for row in answer.json["Data"]["Files"]] == [name]


def test_more_files_than_one_listing_may_have(
    host: Host, repo: Hub, root: Path, mirror: Mirror, tmp_path: Path
) -> None:
    source = tmp_path / "many"
    for number in range(3100):
        file = source / f"part-{number % 4}/sub-{number % 3}/{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(number))
    (source / "config.json").write_text("{}")
    add_model(root, "acme/many", source)
    host.run(path=str(tmp_path / "work/many"), model="acme/many")
    publish(host, mirror, tmp_path / "work/many", model="acme/many")
    whole = mirror.get("/api/v1/models/acme/many/repo/files?Revision=master&Recursive=True").json["Data"]["Files"]
    assert len([row for row in whole if row["Type"] == "blob"]) == 3101
    host.run(path=str(tmp_path / "copy/many"), model="acme/many", endpoint=mirror.endpoint)
    assert tree(tmp_path / "copy/many") == tree(source)
    roots = {request.path.partition("Root=")[2] for request in mirror.requests() if "/repo/files" in request.path}
    assert {"part-0", "part-1", "part-2", "part-3"} <= roots, "our client lists the directories one by one"
    mirror.forget()
    official(host, mirror, tmp_path / "copy/many", "acme/many")
    paths = [request.path for request in mirror.requests()]
    assert [path for path in paths if "FilePath" in path] == [], "the official client finds every file"
    assert len(paths) > 1, "and lists the directories, too"


# --- refusals ---


def test_what_is_not_there_is_said_as_the_hub_says_it(
    host: Host, mirror: Mirror, filled: dict[str, Any], tmp_path: Path
) -> None:
    copy = str(tmp_path / "copy")
    assert "record not found" in host.fail("hub.not_found", path=copy, endpoint=mirror.endpoint, model="acme/none")
    assert "master" in host.fail("hub.unknown_revision", path=copy, endpoint=mirror.endpoint, revision="v9")
    host.fail("hub.unknown_revision", path=copy, endpoint=mirror.endpoint, revision=NO_COMMIT)
    for path, status, code in (
        ("/api/v1/models/acme/none/revisions", 404, 10010205001),
        ("/api/v1/models/acme/none/repo/files?Revision=master", 404, 10010205001),
        ("/api/v1/models/acme/none/repo?Revision=master&FilePath=x", 404, 10010205001),
        ("/models/acme/none/resolve/master/x", 404, 10010205001),
        (f"{API}/repo/files?Revision=v9&Recursive=True", 404, 10990101004),
        (f"{API}/repo?Revision={NO_COMMIT}&FilePath=config.json", 404, 10990101004),
        (f"{API}/repo?Revision=..%2F..&FilePath=config.json", 404, 10990101004),
        (f"{API}/repo?Revision=master&FilePath=none.json", 404, 10010205001),
        (f"{API}/repo?Revision=master&FilePath=sub", 404, 10010205001),
        (f"{API}/repo?Revision=master", 404, 10010205001),
        ("/no/such/thing", 404, 404),
    ):
        answer = mirror.get(path)
        assert (answer.status, answer.json["Code"], answer.json["Success"]) == (status, code, False), path
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert mirror.get(f"{API}/commits?Ref=v9&PageSize=1").json["Data"]["Commit"] is None
    assert mirror.get(f"{API}/repo/files?Revision=master&Recursive=True&Root=none").json["Data"]["Files"] == []
    assert mirror.get("/openapi/v1/models/acme/none").status == 404
    assert mirror.get("/openapi/v1/users/me").status == 401
    for method in ("POST", "PUT", "DELETE", "PROPFIND"):
        assert mirror.get(f"{API}/revisions", method=method).status == 405


TOP = ("%", "%2F", ".", "sub%2F")
"""Which of these may list something: the top directory, or a directory of the model, spelt oddly."""

HOSTILE = [
    "..%2F..%2F..%2F..%2F..%2F..%2Fsecret.txt",
    "../../../../../../secret.txt",
    "%2E%2E%2F%2E%2E%2F%2E%2E%2Fsecret.txt",
    "..%252f..%252f..%252fsecret.txt",
    "..%5C..%5Csecret.txt",
    "sub%2F..%2F..%2Ffiles.json",
    "sub/../../stats.json",
    "..%2Fstats.json",
    "%2Fetc%2Fpasswd",
    "/etc/passwd",
    "%2F%2Fetc%2Fpasswd",
    "config.json%00",
    "%00",
    "..",
    "%2E%2E",
    ".",
    "%2F",
    "sub%2F",
    "config.json%2F",
    "%0d%0aX-Accel-Redirect:%20/etc/passwd",
    "x%0a",
    "link.txt",
    "linked/secret.txt",
    "up/up/up/secret.txt",
    "$document_root",
    "%ff%fe",
    "%",
    "%zz",
    "a" * 5000,
    "/=tree/acme/tiny/refs/master/config.json",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_no_query_reaches_what_is_not_a_file_of_the_model(mirror: Mirror, filled: dict[str, Any], hostile: str) -> None:
    secret = "the secret itself"
    for place in (mirror.root, mirror.root.parent, mirror.root / "models", commits(mirror).parent):
        (place / "secret.txt").write_text(secret)
    below = commits(mirror) / filled["commit"] / "tree"
    (below / "link.txt").symlink_to(mirror.root / "secret.txt")
    (below / "linked").symlink_to(mirror.root)
    (below / "up").symlink_to("..")
    for revision in ("master", filled["commit"], hostile):
        for url in (
            f"{API}/repo?Revision={revision}&FilePath={hostile}",
            f"{API}/repo/files?Revision={revision}&Root={hostile}",
            f"{API}/repo/files?Revision={revision}&Recursive=True&Root={hostile}",
            f"/models/{MODEL}/resolve/{revision}/{hostile}",
            f"/api/v1/models/{hostile}/repo?Revision={revision}&FilePath=config.json",
            f"/api/v1/models/acme/{hostile}/revisions",
            f"{API}/commits?Ref={hostile}",
            f"/{hostile}",
        ):
            answer = mirror.get(url)
            assert secret.encode() not in answer.body, url
            assert b"root:" not in answer.body, url
            assert b"mtime" not in answer.body, url
            assert "x-accel-redirect" not in answer.headers
            if "FilePath" in url or "resolve" in url:
                assert answer.status in (400, 404, 414), url
            else:  # a directory that is not there lists nothing, as the hub has it
                assert (
                    answer.status in (400, 404, 414)
                    or not (answer.json["Data"].get("Files") or answer.json["Data"].get("Commit"))
                    or hostile in TOP
                ), url
    (commits(mirror).parent / "secret.txt").unlink()


def test_nothing_of_the_layout_itself_is_served(mirror: Mirror, filled: dict[str, Any]) -> None:
    commit = filled["commit"]
    for path in (
        "/",
        "/models/",
        f"/models/{MODEL}",
        f"/models/{MODEL}/revisions.json",
        f"/models/{MODEL}/commits/{commit}/tree/config.json",
        f"/models/{MODEL}/refs/master/stats.json",
        f"/=tree/{MODEL}/refs/master/config.json",
        f"/=list/{MODEL}/refs/master/files.json",
        f"/models/{MODEL}/.lock",
    ):
        assert mirror.get(path).status == 404, path


def test_a_header_of_a_client_is_not_taken_for_ours(mirror: Mirror, filled: dict[str, Any]) -> None:
    hostile = {"X-Target": f"/=list/{MODEL}/refs/master/files.json", "X-Accel-Redirect": "/etc/passwd"}
    answer = mirror.get(f"{API}/repo?Revision=master&FilePath=config.json", hostile)
    assert (answer.status, answer.body) == (200, b'{"architectures": []}')


def test_ranges(mirror: Mirror, filled: dict[str, Any], source: Path) -> None:
    data = (source / "model.safetensors").read_bytes()
    for path in (
        f"{API}/repo?Revision=master&FilePath=model.safetensors",
        f"/models/{MODEL}/resolve/{filled['commit']}/model.safetensors",
    ):
        whole = mirror.get(path)
        assert (whole.status, whole.headers["accept-ranges"], whole.body) == (200, "bytes", data)
        assert whole.headers["content-type"] == "application/octet-stream"
        for asked, start, end in (("5-9", 5, 10), ("5999990-", 5_999_990, WEIGHTS), ("-10", WEIGHTS - 10, WEIGHTS)):
            part = mirror.get(path, {"Range": f"bytes={asked}"})
            assert (part.status, part.body) == (206, data[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{WEIGHTS}"
        past = mirror.get(path, {"Range": f"bytes={WEIGHTS}-"})
        assert (past.status, past.headers["content-range"]) == (416, f"bytes */{WEIGHTS}")
        changed = mirror.get(path, {"Range": "bytes=5-9", "If-Range": '"another"'})
        assert (changed.status, len(changed.body)) == (200, WEIGHTS)
        head = mirror.get(path, method="HEAD")
        assert (head.status, head.headers["content-length"], head.body) == (200, str(WEIGHTS), b"")


def test_only_the_allowed_networks_may_read(
    host: Host, repo: Hub, mirror: Mirror, filled: dict[str, Any], tmp_path: Path
) -> None:
    with Mirror(tmp_path / "closed", mirror.root, mirror_allow=["192.0.2.0/24"]) as closed:
        for path in ("revisions", "repo/files?Revision=master", "repo?Revision=master&FilePath=config.json", "commits"):
            answer = closed.get(f"{API}/{path}")
            assert (answer.status, answer.json["Code"]) == (403, 10010200001), path
        assert closed.get(f"/models/{MODEL}/resolve/master/config.json").status == 403
        host.fail("hub.no_access", path=str(tmp_path / "copy"), endpoint=closed.endpoint)


def test_over_https(mirror: Mirror, filled: dict[str, Any], host: Host, source: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=mirror", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    variables = {"mirror_tls_certificate": str(certificate), "mirror_tls_key": str(key)}
    secure = Mirror(tmp_path / "secure", mirror.root, **variables)
    secure.wait = lambda: wait_for(lambda: _listens(secure.port), "an open port")  # type: ignore[method-assign]
    with secure:
        endpoint = f"https://127.0.0.1:{secure.port}"
        host.fail("hub.tls", path=str(tmp_path / "copy/tiny"), endpoint=endpoint)
        host.environment["SSL_CERT_FILE"] = str(certificate)
        host.run(path=str(tmp_path / "copy/tiny"), endpoint=endpoint, token="ms-0123456789abcdef-secret")
    assert tree(tmp_path / "copy/tiny") == tree(source)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_broken_configuration_leaves_what_runs(mirror: Mirror, filled: dict[str, Any]) -> None:
    good = mirror.config.read_text(encoding="utf-8")
    file = f"{API}/repo?Revision=master&FilePath=config.json"
    try:
        # The first half of a reload: it must not take the socket of the one that runs.
        assert subprocess.run(mirror.command("-t", "-q"), cwd=mirror.run, check=False).returncode == 0
        assert mirror.get(file).status == 200
        mirror.config.write_text(good.replace("sendfile on;", "sendfile maybe;"), encoding="utf-8")
        tested = subprocess.run(mirror.command("-t", "-q"), cwd=mirror.run, capture_output=True, check=False)
        assert tested.returncode != 0
        mirror.reload()
        assert mirror.get(file).status == 200
    finally:
        mirror.config.write_text(good.replace('"config":"test"', '"config":"again"'), encoding="utf-8")
    mirror.reload()
    wait_for(lambda: mirror.get("/__mirror/health").json["config"] == "again", "the new configuration")
    assert mirror.get(file).status == 200


# --- what the module does ---


@pytest.mark.parametrize("python", pythons(), ids=lambda name: Path(name).name)
def test_check_mode_tells_what_is_done(
    host: Host, mirror: Mirror, source: Path, path: Path, tmp_path: Path, python: str
) -> None:
    host.python = python
    first = {"_ansible_check_mode": True, "_ansible_diff": True}
    unfetched = publish(
        host, mirror, path, commit=host.run(path=str(path), _ansible_check_mode=True)["commit"], **first
    )
    assert (unfetched["changed"], unfetched["files"]) == (True, None)
    fetched = host.run(path=str(path))
    before = everything(tmp_path)
    check = publish(host, mirror, path, **first)
    assert everything(tmp_path) == before
    assert not mirror.root.exists()
    real = publish(host, mirror, path, commit=fetched["commit"], _ansible_diff=True)
    keys = set(check) - {"invocation"}
    assert {key: check[key] for key in keys} == {key: real[key] for key in keys}
    assert (real["changed"], real["files"], real["bytes_copied"]) == (True, 5, 0)
    assert real["diff"]["before"] == ""
    assert f"master -> {fetched['commit']}" in real["diff"]["after"]
    assert tree(commits(mirror) / fetched["commit"] / "tree") == tree(source)
    for options in (first, {}):
        again = publish(host, mirror, path, **options)
        assert (again["changed"], again["repaired"]) == (False, [])


def test_revisions_share_what_did_not_change_and_the_name_moves(
    host: Host, repo: Hub, root: Path, mirror: Mirror, filled: dict[str, Any], source: Path, path: Path, tmp_path: Path
) -> None:
    old = filled["commit"]
    following = new_revision(root, source, tmp_path)
    new = host.run(path=str(path))["commit"]
    # What serves goes on while the name moves: a listing is the one or the other, whole.
    seen, wrong, stop = set(), [], threading.Event()
    wanted = {old: set(tree(source)), new: set(following)}

    def read() -> None:
        while not stop.is_set():
            answer = mirror.get(f"{API}/repo/files?Revision=master&Recursive=True")
            rows = answer.json["Data"]["Files"] if answer.status == 200 else []
            names = {row["Path"] for row in rows if row["Type"] == "blob"}
            commit = next((commit for commit, files in wanted.items() if files == names), None)
            (wrong.append(answer) if commit is None else seen.add(commit))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: old in seen, "an old listing")
        assert publish(host, mirror, path)["changed"]
        wait_for(lambda: new in seen, "a new listing")
    finally:
        stop.set()
        reader.join()
    assert wrong == []
    one, two = (commits(mirror) / commit / "tree/config.json" for commit in (old, new))
    assert one.stat().st_ino == two.stat().st_ino == (path / "config.json").stat().st_ino
    refs = json.loads((commits(mirror).parent / "revisions.json").read_text())["Data"]["RevisionMap"]
    assert [(row["Revision"], row["CommitId"]) for row in refs["Branches"]] == [("master", new)]
    host.run(path=str(tmp_path / "copy/tiny"), endpoint=mirror.endpoint, revision=old)
    assert tree(tmp_path / "copy/tiny") == tree(source), "a host that pinned the old commit still gets it"
    # Another directory of another revision of the same model stores nothing twice either.
    host.run(path=str(path.with_name("v1")), revision="v1")
    shutil.rmtree(commits(mirror) / old)
    assert publish(host, mirror, path.with_name("v1"))["commit"] == old
    assert one.stat().st_ino == two.stat().st_ino


def test_on_another_file_system_the_files_are_copied(
    host: Host, mirror: Mirror, source: Path, path: Path, tmp_path: Path
) -> None:
    host.run(path=str(path))
    with small_disk(tmp_path / "small", 3_000_000) as small:
        text = host.fail("mirror.no_space", module="vllm_mirror_model", endpoint=None, root=str(small), path=str(path))
        assert str(total(source) + 2) in text
        assert everything(small) == []
    with small_disk(tmp_path / "disk", 20_000_000) as disk:
        check = host.run("vllm_mirror_model", endpoint=None, root=str(disk), path=str(path), _ansible_check_mode=True)
        real = host.run("vllm_mirror_model", endpoint=None, root=str(disk), path=str(path))
        assert check["bytes_copied"] == real["bytes_copied"] == sum(map(len, tree(source).values()))
        assert tree(disk / "models" / MODEL / "refs/master/tree") == tree(source)
        assert not host.run("vllm_mirror_model", endpoint=None, root=str(disk), path=str(path))["changed"]
        # What was changed without a trace in the artifact is found while it is copied.
        damaged = path / "sub/tokenizer.json"
        when = damaged.stat()
        damaged.write_text("[]")
        os.utime(damaged, ns=(when.st_atime_ns, when.st_mtime_ns))
        host.run("vllm_mirror_model", endpoint=None, path=None, root=str(disk), state="absent")
        fault = {"module": "vllm_mirror_model", "endpoint": None, "root": str(disk), "path": str(path)}
        assert "sub/t" in host.fail("mirror.artifact_changed", **fault)
        assert tree(disk / "models" / MODEL / "commits") == {}


def test_damage_is_found_and_repaired(
    host: Host, mirror: Mirror, filled: dict[str, Any], source: Path, path: Path
) -> None:
    below = commits(mirror) / filled["commit"]
    for name, text in (("config.json", "damaged"), ("sub/twin.json", "xx")):
        (below / "tree" / name).unlink()
        (below / "tree" / name).write_text(text)
    (below / "files.json").write_text("{}")
    (commits(mirror).parent / "revisions.json").write_text("not json")
    (commits(mirror) / ".new-0123").mkdir()
    check = publish(host, mirror, path, _ansible_check_mode=True)
    real = publish(host, mirror, path)
    assert check["changed"]
    assert real["changed"]
    assert tree(below / "tree") == tree(source)
    assert mirror.get(f"{API}/revisions").json["Data"]["RevisionMap"]["Branches"][0]["CommitId"] == filled["commit"]
    assert not list(commits(mirror).glob(".*"))
    (below / "tree/config.json").unlink()
    (below / "tree/config.json").write_text('{"architectures":  }')
    assert publish(host, mirror, path)["repaired"] == ["config.json"]
    assert not publish(host, mirror, path)["changed"]


def test_selections_of_one_commit_are_united(
    host: Host, mirror: Mirror, filled: dict[str, Any], source: Path, path: Path
) -> None:
    part = path.with_name("part")
    host.run(path=str(part), include=["*.json"])
    publish(host, mirror, part, revision="only-json")
    assert tree(commits(mirror) / filled["commit"] / "tree") == tree(source)
    for revision in ("master", "only-json"):
        rows = mirror.get(f"{API}/repo/files?Revision={revision}&Recursive=True").json["Data"]["Files"]
        assert {row["Path"] for row in rows if row["Type"] == "blob"} == set(tree(source))


def test_what_is_no_artifact_of_the_model_is_refused(
    host: Host, mirror: Mirror, filled: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    fault: dict[str, Any] = {"module": "vllm_mirror_model", "endpoint": None, "root": str(mirror.root)}
    host.fail("mirror.no_artifact", path=str(tmp_path / "none"), **fault)
    host.fail("mirror.no_artifact", path=str(path), commit=NO_COMMIT, **fault)
    host.fail("mirror.other_model", path=str(path), model="acme/other", **fault)
    host.fail("mirror.bad_model", path=str(path), model="../x", **fault)
    host.fail("mirror.bad_revision", path=str(path), revision="a/b", **fault)
    (path / "config.json").write_text("changed")
    host.fail("mirror.artifact_changed", path=str(path), **fault)
    (path / ".gpufleet/manifest.json").write_text("{}")
    host.fail("mirror.bad_artifact", path=str(path), **fault)


def test_two_runs_wait_for_each_other(host: Host, mirror: Mirror, filled: dict[str, Any], path: Path) -> None:
    with open(commits(mirror).parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host.fail(
            "mirror.locked",
            module="vllm_mirror_model",
            endpoint=None,
            root=str(mirror.root),
            path=str(path),
            lock_timeout=0,
        )
        process = host.start("vllm_mirror_model", endpoint=None, root=str(mirror.root), path=str(path))
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert not host.result(process)["changed"]


def test_absent_and_prune(
    host: Host, repo: Hub, root: Path, mirror: Mirror, filled: dict[str, Any], source: Path, path: Path, tmp_path: Path
) -> None:
    new_revision(root, source, tmp_path)
    new = host.run(path=str(path))["commit"]
    publish(host, mirror, path)
    publish(host, mirror, path, revision="v2")
    remove = {"module": "vllm_mirror_model", "endpoint": None, "root": str(mirror.root), "state": "absent"}
    prune = {"module": "vllm_mirror_prune", "endpoint": None, "model": None, "root": str(mirror.root)}
    (path.parent / "notes").mkdir()
    (path.parent / ".gone.gpufleet").mkdir()
    keep = [{"model": MODEL, "revision": "master", "path": str(path)}]
    check = host.run(**prune, keep=keep, work=str(path.parent), _ansible_check_mode=True, _ansible_diff=True)
    real = host.run(**prune, keep=keep, work=str(path.parent), _ansible_diff=True)
    assert {**check, "invocation": 0} == {**real, "invocation": 0}
    assert (real["models_removed"], real["revisions_removed"]) == ([], [f"{MODEL}@v2"])
    assert real["commits_removed"] == [f"{MODEL}@{filled['commit']}"]
    assert real["artifacts_removed"] == [str(path.parent / ".gone.gpufleet")]
    assert real["bytes_freed"] == WEIGHTS, "what the new commit and the artifact share stays"
    assert sorted(item.name for item in path.parent.iterdir()) == ["notes", "tiny"]
    assert not host.run(**prune, keep=keep, work=str(path.parent))["changed"]
    assert mirror.get(f"{API}/repo?Revision=v2&FilePath=config.json").json["Code"] == 10990101004
    assert mirror.get(f"{API}/repo?Revision={new}&FilePath=config.json").status == 200
    check = host.run(**remove, revision=new, _ansible_check_mode=True)
    real = host.run(**remove, revision=new)
    assert {**check, "invocation": 0} == {**real, "invocation": 0}
    assert (real["models_removed"], real["revisions_removed"]) == ([MODEL], [f"{MODEL}@master"])
    assert everything(mirror.root) == []
    assert mirror.get(f"{API}/revisions").json["Code"] == 10010205001
    assert not host.run(**remove)["changed"]
    assert tree(path), "the artifact itself is not touched"


# --- one layout ---


def test_hub_and_mirror_serve_each_others_directories(
    host: Host, repo: Hub, root: Path, mirror: Mirror, filled: dict[str, Any], source: Path, path: Path, tmp_path: Path
) -> None:
    commit = filled["commit"]
    queries = [
        "", "/revisions", "/commits?Ref=master&PageSize=1", "/repo/files?Revision=master&Recursive=True",
        "/repo/files?Revision=master", "/repo/files?Revision=master&Recursive=False&Root=sub",
        f"/repo/files?Revision={commit}&Recursive=True&Root=sub",
        "/repo/files?Revision=master&Recursive=True&Root=none",
    ]  # fmt: skip
    with Mirror(tmp_path / "of-hub", root) as nginx, Hub(mirror.root) as hub:
        official(host, nginx, tmp_path / "one")
        official(host, hub, tmp_path / "two")
        assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(source)
        for served, other in ((nginx, repo), (mirror, hub)):
            host.run(path=str(tmp_path / f"copy-{served.port}"), endpoint=other.endpoint)
            for query in queries:
                there = Mirror.get(_At(other.port), f"{API}{query}")  # type: ignore[arg-type]
                assert served.get(f"{API}{query}").json["Data"] == there.json["Data"], query
        rows = [_rows(served) for served in (nginx, mirror)]
        assert rows[0] == rows[1]
        size = nginx.get(f"/openapi/v1/models/{MODEL}").json["data"]["file_size"]
        assert size == mirror.get(f"/openapi/v1/models/{MODEL}").json["data"]["file_size"] > WEIGHTS
    digest = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
    assert {row["Path"]: row["Sha256"] for row in rows[0]}["config.json"] == digest


class _At:
    def __init__(self, port: int) -> None:
        self.port = port


def _rows(mirror: Mirror) -> Any:
    return mirror.get(f"{API}/repo/files?Revision=master&Recursive=True").json["Data"]["Files"]
