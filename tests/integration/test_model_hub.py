# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The model hub of tests/lab: the official client downloads from it, and each fault does what it says."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from model_hub import Fault, FaultError, Hub, StoreError, add_model, hostile_rows
from model_hub.server import Access

LAB = Path(__file__).resolve().parents[1] / "lab"
MODEL = "acme/tiny"
API = f"/api/v1/models/{MODEL}"
WEIGHTS = "weights/model.safetensors"
WEIGHTS_SIZE = 5 * (1 << 20) + 123
TOKEN = "ms-0123456789"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: names that need quoting, an empty file, and one file big enough for LFS."""
    directory = tmp_path_factory.mktemp("source")
    files = {
        "config.json": b'{"model_type": "llama"}\n',
        "README.md": b"# tiny\n",
        ".gitattributes": b"",
        "sub/deep/a b #1?%20&c.txt": b"quoted\n",
        "sub/说明.md": "你好\n".encode(),
        WEIGHTS: random.Random(7).randbytes(WEIGHTS_SIZE),
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def root(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    add_model(directory, MODEL, source, tag="v1")
    return directory


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as running:
        yield running


class Answer:
    """One answer, read to its end; ``error`` is what broke it, with the bytes that came before in ``body``."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        answer = connection.getresponse()
        self.status, self.headers = answer.status, {key.lower(): value for key, value in answer.getheaders()}
        self.error: Exception | None = None
        body = bytearray()
        try:
            while piece := answer.read1(1 << 16):
                body += piece
            if answer.length:
                self.error = http.client.IncompleteRead(bytes(body), answer.length)
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        answer.close()
        self.body = bytes(body)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def get(
    hub: Hub, path: str, headers: dict[str, str] | None = None, *, method: str = "GET", timeout: float = 10
) -> Answer:
    """Ask the hub, without following redirects."""
    url = urlsplit(path)
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=timeout)
    try:
        connection.request(method, url._replace(scheme="", netloc="").geturl(), headers=headers or {})
        return Answer(connection)
    finally:
        connection.close()


def listing(hub: Hub, query: str = "Revision=master&Recursive=True") -> list[dict[str, Any]]:
    answer = get(hub, f"{API}/repo/files?{query}")
    assert answer.status == 200
    assert answer.json["Success"] is True
    return answer.json["Data"]["Files"]  # type: ignore[no-any-return]


def file_url(path: str, revision: str = "master") -> str:
    return f"{API}/repo?Revision={revision}&FilePath={quote(path, safe='')}"


def signed_url(hub: Hub, path: str = WEIGHTS) -> str:
    answer = get(hub, file_url(path))
    assert answer.status == 302
    return answer.headers["location"]


def tree(directory: Path) -> dict[str, str]:
    """Path and SHA-256 of every file."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


# --- the store -------------------------------------------------------------------------------------------------------


def test_import_depends_on_the_content_alone(source: Path, root: Path, tmp_path: Path) -> None:
    first = add_model(tmp_path, MODEL, source, tag="v1", copy=True)
    again = add_model(tmp_path, MODEL, source, tag="v1")
    assert (first.changed, again.changed) == (True, False)
    assert first.commit == again.commit
    home = tmp_path / "models" / MODEL
    assert tree(home) == tree(root / "models" / MODEL)
    assert os.readlink(home / "refs" / "master") == f"../commits/{first.commit}"
    assert tree(home / "refs" / "v1" / "tree") == tree(source)
    assert not list((home / "commits").glob(".*"))


def test_listing_rows_have_the_api_shape(root: Path, source: Path) -> None:
    home = root / "models" / MODEL
    answer = json.loads((home / "refs" / "master" / "files.json").read_text(encoding="utf-8"))
    rows = {row["Path"]: row for row in answer["Data"]["Files"]}
    assert list(rows) == sorted(rows)
    assert {path for path, row in rows.items() if row["Type"] == "tree"} == {"sub", "sub/deep", "weights"}
    assert {path: row["Sha256"] for path, row in rows.items() if row["Type"] == "blob"} == tree(source)
    assert {path for path, row in rows.items() if row["IsLFS"]} == {WEIGHTS}
    assert rows[WEIGHTS]["Size"] == WEIGHTS_SIZE


def test_a_new_commit_moves_the_branch_and_keeps_the_tag(source: Path, tmp_path: Path) -> None:
    old = add_model(tmp_path / "root", MODEL, source, tag="v1").commit
    changed = tmp_path / "changed"
    subprocess.run(["cp", "-r", str(source), str(changed)], check=True)
    (changed / "README.md").write_text("# tiny, again\n", encoding="utf-8")
    new = add_model(tmp_path / "root", MODEL, changed).commit
    with Hub(tmp_path / "root") as hub:
        data = get(hub, f"{API}/revisions").json["Data"]["RevisionMap"]
        assert {row["Revision"]: row["CommitId"] for row in data["Branches"] + data["Tags"]} == {
            "master": new,
            "v1": old,
        }
        touched = {row["Path"]: row["CommitId"] for row in listing(hub) if row["Type"] == "blob"}
        assert touched.pop("README.md") == new
        assert set(touched.values()) == {old}
        found = get(hub, f"{API}/commits?Ref=master&PageSize=5").json["Data"]
        assert [row["Id"] for row in found["Commit"]] == [new, old]
        assert found["TotalCount"] == 2
        assert get(hub, file_url("README.md", old)).body == b"# tiny\n"
        assert get(hub, file_url("README.md", "v1")).body == b"# tiny\n"
    with pytest.raises(StoreError, match="A tag does not move"):
        add_model(tmp_path / "root", MODEL, changed, tag="v1")


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        ("../evil", {}, "no model id"),
        ("acme/tiny/x", {}, "no model id"),
        ("acme/tiny", {"branch": "a/b"}, "no branch or tag name"),
        ("acme/tiny", {"tag": "0" * 40}, "no branch or tag name"),
        ("acme/tiny", {"tag": "master"}, "two different names"),
    ],
)
def test_bad_names_are_refused(source: Path, tmp_path: Path, model: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(StoreError, match=text):
        add_model(tmp_path, model, source, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_sources_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a directory"):
        add_model(tmp_path / "root", MODEL, tmp_path / "missing")
    (tmp_path / "source").mkdir()
    with pytest.raises(StoreError, match="holds no file"):
        add_model(tmp_path / "root", MODEL, tmp_path / "source")
    (tmp_path / "source" / "link").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="link or a special file"):
        add_model(tmp_path / "root", MODEL, tmp_path / "source")


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_listing_queries(hub: Hub) -> None:
    assert {row["Path"] for row in listing(hub, "Revision=master&Recursive=true&Root=sub")} == {
        "sub/deep",
        "sub/deep/a b #1?%20&c.txt",
        "sub/说明.md",
    }
    assert {row["Path"] for row in listing(hub, "Revision=master&Root=sub/")} == {"sub/deep", "sub/说明.md"}
    # A key in another case is ignored without an error, and no revision means master.
    shallow = {row["Path"] for row in listing(hub, "recursive=true")}
    assert shallow == {".gitattributes", "README.md", "config.json", "sub", "weights"}


def test_listing_is_cut_at_3000_rows(tmp_path: Path) -> None:
    (tmp_path / "many" / "flat").mkdir(parents=True)
    for index in range(3005):
        (tmp_path / "many" / "flat" / f"{index:04}").touch()
    add_model(tmp_path / "root", MODEL, tmp_path / "many")
    with Hub(tmp_path / "root") as hub:
        assert len(listing(hub)) == 3000
        assert len(listing(hub, "Recursive=False")) == 1


def test_small_files_come_whole_and_plain(hub: Hub, source: Path) -> None:
    for name in (".gitattributes", "config.json", "sub/deep/a b #1?%20&c.txt", "sub/说明.md"):
        answer = get(hub, file_url(name), {"Range": "bytes=2-3"})
        assert (answer.status, answer.body) == (200, (source / name).read_bytes())
        assert "content-range" not in answer.headers


def test_lfs_files_come_through_a_signed_url_that_honours_ranges(hub: Hub, source: Path) -> None:
    content, url = (source / WEIGHTS).read_bytes(), signed_url(hub)
    whole = get(hub, url)
    assert (whole.status, whole.body) == (200, content)
    assert whole.headers["x-linked-etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert whole.headers["accept-ranges"] == "bytes"
    for header, expected in (
        ("bytes=100-199", slice(100, 200)),
        (f"bytes={WEIGHTS_SIZE - 5}-", slice(WEIGHTS_SIZE - 5, None)),
        (f"bytes=0-{WEIGHTS_SIZE + 99}", slice(0, None)),
        ("bytes=-7", slice(-7, None)),
    ):
        part = get(hub, url, {"Range": header})
        begin, end, _unused = expected.indices(WEIGHTS_SIZE)
        assert (part.status, part.body) == (206, content[expected])
        assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{WEIGHTS_SIZE}"
    past = get(hub, url, {"Range": f"bytes={WEIGHTS_SIZE}-"})
    assert (past.status, past.body, past.headers["content-range"]) == (416, b"", f"bytes */{WEIGHTS_SIZE}")
    assert get(hub, url, {"Range": "bytes=0-1", "If-Range": '"other"'}).status == 200


def test_signed_urls_open_nothing_else(hub: Hub) -> None:
    url = signed_url(hub)
    assert get(hub, url.split("?")[0]).status == 403
    assert get(hub, url.replace("weights/model.safetensors", "config.json")).status == 403
    forged = get(hub, url[:-1] + ("0" if url[-1] != "0" else "1"))
    assert forged.status == 403
    assert "invalid md5hash" in forged.headers["x-tengine-error"]


def test_head_answers_without_a_redirect(hub: Hub) -> None:
    answer = get(hub, file_url(WEIGHTS), method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(WEIGHTS_SIZE)


def test_resolve_form(hub: Hub, source: Path) -> None:
    assert get(hub, f"/models/{MODEL}/resolve/v1/config.json").body == (source / "config.json").read_bytes()
    assert get(hub, f"/models/{MODEL}/resolve/master/{WEIGHTS}").status == 302


def test_side_endpoints(hub: Hub) -> None:
    assert get(hub, "/api/v1/repos/internalAccelerationInfo").json["Data"] == {"InternalRegionQueryAddress": ""}
    info = get(hub, f"/openapi/v1/models/{MODEL}").json
    assert (info["success"], info["data"]["id"], info["data"]["private"]) == (True, MODEL, False)
    assert get(hub, API).json["Data"]["Name"] == "tiny"
    assert get(hub, "/openapi/v1/models/acme/none").status == 404
    assert get(hub, f"{API}/commits?Ref=nothing").json["Data"]["Commit"] is None
    assert get(hub, f"{API}/commits?Revision=nothing").json["Data"]["TotalCount"] == 1  # misspelt: master
    assert get(hub, "/anything/else").status == 404
    assert get(hub, f"{API}/repo/files", method="POST").status == 405


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/v1/models/acme/none/repo/files", 10010205001),
        ("/api/v1/models/acme/none/revisions", 10010205001),
        ("/api/v1/models/acme/none/repo?FilePath=x", 10010205001),
        (f"{API}/repo/files?Revision=nothing", 10990101004),
        (f"{API}/repo/files?Revision=..", 10990101004),
        (f"{API}/repo/files?Revision={'0' * 40}", 10990101004),
        (f"{API}/repo?FilePath=missing.txt", 10010205001),
        (f"{API}/repo?FilePath=..%2F..%2Ffiles.json", 10010205001),
        (f"{API}/repo?FilePath=sub", 10010205001),
    ],
)
def test_failures_are_404_with_a_code(hub: Hub, path: str, code: int) -> None:
    answer = get(hub, path)
    assert answer.status == 404
    assert (answer.json["Success"], answer.json["Code"]) == (False, code)


def test_connections_are_kept(hub: Hub) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    for path in (f"{API}/revisions", file_url("config.json"), signed_url(hub), f"{API}/repo?FilePath=none"):
        url = urlsplit(path)
        connection.request("GET", f"{url.path}?{url.query}")
        port = connection.sock.getsockname()[1]
        assert Answer(connection).error is None
        assert connection.sock is not None
        assert connection.sock.getsockname()[1] == port
    connection.close()


def test_git_reads_the_refs(hub: Hub, root: Path) -> None:
    commit = os.path.basename(os.readlink(root / "models" / MODEL / "refs" / "master"))
    command = ["git", "ls-remote", f"{hub.endpoint}/{MODEL}.git"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert output.splitlines() == [f"{commit}\t{ref}" for ref in ("HEAD", "refs/heads/master", "refs/tags/v1")]
    assert get(hub, f"/{MODEL}.git/info/refs?service=git-upload-pack").status == 421


def test_requests_are_counted_with_their_headers(hub: Hub) -> None:
    get(hub, signed_url(hub), {"Range": "bytes=0-9", "Authorization": "Bearer x"})
    assert hub.requests.sent("lfs/*") == 10
    assert hub.requests.counts() == {f"file/{MODEL}/{WEIGHTS}": 1, f"lfs/{MODEL}/{WEIGHTS}": 1}
    request = hub.requests.select("lfs/*")[0]
    assert (request.headers["range"], request.headers["authorization"]) == ("bytes=0-9", "Bearer x")
    assert (request.status, request.sent, request.done) == (206, 10, True)
    hub.requests.clear()
    assert len(hub.requests) == 0


def test_requests_at_the_same_time_are_told_from_those_after_each_other(hub: Hub) -> None:
    for _unused in range(2):
        assert get(hub, signed_url(hub)).error is None
        hub.requests.settle()
    assert (hub.requests.at_once("lfs/*"), hub.requests.connections("lfs/*"), hub.requests.at_once("none")) == (1, 2, 0)
    hub.faults.add(Fault(match="lfs/*", stall_after=1))
    threads = [threading.Thread(target=get, args=(hub, signed_url(hub)), daemon=True) for _unused in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while hub.requests.count("lfs/*") < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (hub.requests.at_once("lfs/*"), hub.requests.connections("lfs/*")) == (3, 5)


@pytest.mark.parametrize("offer", [{"Authorization": f"Bearer {TOKEN}"}, {"Cookie": f"m_session_id={TOKEN}"}])
def test_private_and_gated_models(root: Path, source: Path, tmp_path: Path, offer: dict[str, str]) -> None:
    with Hub(root, access=Access(tokens=[TOKEN], private=[MODEL])) as hub:
        for path in (f"{API}/repo/files", f"{API}/revisions", file_url("config.json"), API):
            assert get(hub, path).json["Code"] == 10010200001
            assert get(hub, path, {"Authorization": "Bearer wrong"}).status == 404
            assert get(hub, path, offer).status == 200
        assert get(hub, "/openapi/v1/users/me").status == 401
        assert get(hub, "/openapi/v1/users/me", offer).status == 200
        assert get(hub, file_url(WEIGHTS), offer).status == 302
        # The signed URL is the permission: it needs no token of its own.
        assert get(hub, get(hub, file_url(WEIGHTS), offer).headers["location"]).status == 200
    with Hub(root, access=Access(tokens=[TOKEN], gated=[MODEL], approved=["approved"])) as hub:
        assert get(hub, f"{API}/revisions", offer).json["Code"] == 10010200001
        assert get(hub, f"{API}/revisions", {"Authorization": "Bearer approved"}).status == 200


def test_a_wrong_token_is_ignored_on_a_public_model(hub: Hub) -> None:
    assert get(hub, f"{API}/revisions", {"Authorization": "Bearer wrong"}).status == 200


def test_a_changed_copy_is_an_error_and_not_served(source: Path, tmp_path: Path) -> None:
    add_model(tmp_path, MODEL, source, copy=True)
    (tmp_path / "models" / MODEL / "refs" / "master" / "tree" / "config.json").write_text("x", encoding="utf-8")
    with Hub(tmp_path) as hub:
        answer = get(hub, file_url("config.json"))
        assert answer.status == 500
        assert "add the model again" in answer.json["Message"]


# --- the official client ---------------------------------------------------------------------------------------------


class Client:
    """The official ``modelscope`` command and SDK, with a home, a cache and an endpoint of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def environment(self, hub: Hub, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MODELSCOPE_", "PYTHON"))}
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        return {
            **kept,
            "HOME": str(home),
            "MODELSCOPE_CACHE": str(self.directory / "cache"),
            "MODELSCOPE_ENDPOINT": hub.endpoint,
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    def download(self, hub: Hub, model: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [self.command(), "download", "--model", model, *options]
        return self._run(command, hub, **more)

    def python(self, hub: Hub, code: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, "-c", code], hub, **more)

    def command(self) -> str:
        path = Path(sys.executable).with_name("modelscope")
        if not path.is_file():
            pytest.fail(f"{path} does not exist. Install the pinned official client: modelscope==1.40.2")
        return str(path)

    def _run(self, command: Sequence[str], hub: Hub, **more: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(hub, **more)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, cwd=self.directory, check=False
        )


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def test_cli_downloads_an_identical_tree(hub: Hub, client: Client, source: Path, tmp_path: Path) -> None:
    result = client.download(hub, MODEL, "--local_dir", "out")
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "out") == tree(source)
    assert hub.requests.count("list/*") == 1
    assert hub.requests.count("lfs/*") == 1
    hub.requests.clear()
    assert client.download(hub, MODEL, "--local_dir", "out").returncode == 0
    assert hub.requests.counts() == {f"list/{MODEL}": 1}


def test_cli_downloads_in_parallel(hub: Hub, client: Client, source: Path, tmp_path: Path) -> None:
    result = client.download(
        hub,
        MODEL,
        "--local_dir",
        "out",
        "--max-workers",
        "8",
        MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS="4",
        MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB="1",
        MODELSCOPE_DOWNLOAD_PART_SIZE_MB="1",
    )
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "out") == tree(source)
    assert len({request.headers["range"] for request in hub.requests.select("lfs/*")}) == 6


@pytest.mark.parametrize("mode", ["206", "200"])
def test_cli_resumes(hub: Hub, client: Client, source: Path, tmp_path: Path, mode: Any) -> None:
    hub.faults.add(Fault(match="lfs/*", drop_after=3 << 20, times=1))
    hub.faults.add(Fault(match="lfs/*", range=mode))
    broken = client.download(hub, MODEL, "--local_dir", "out", MODELSCOPE_DOWNLOAD_MAX_RETRIES="0")
    assert broken.returncode == 1
    hub.requests.clear()
    result = client.download(hub, MODEL, "--local_dir", "out")
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "out") == tree(source)
    hub.requests.settle()
    request = hub.requests.select("lfs/*")[0]
    start = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert start > 0
    assert (request.status, request.sent) == (int(mode), WEIGHTS_SIZE - start)


def test_sdk_snapshot_download(hub: Hub, client: Client, source: Path, root: Path, tmp_path: Path) -> None:
    commit = os.path.basename(os.readlink(root / "models" / MODEL / "refs" / "master"))
    for revision in ("v1", commit):
        code = f"from modelscope import snapshot_download; print(snapshot_download({MODEL!r}, revision={revision!r}))"
        result = client.python(hub, code)
        assert result.returncode == 0, result.stderr
        assert tree(Path(result.stdout.splitlines()[-1])) == tree(source)
    code = "from modelscope.hub.file_download import model_file_download as get;"
    result = client.python(hub, code + f"print(get({MODEL!r}, 'sub/说明.md', revision='v1', cache_dir='one'))")
    assert result.returncode == 0, result.stderr
    assert Path(tmp_path, result.stdout.splitlines()[-1]).read_bytes() == (source / "sub/说明.md").read_bytes()


def test_cli_and_a_private_model(root: Path, client: Client, source: Path, tmp_path: Path) -> None:
    with Hub(root, access=Access(tokens=[TOKEN], private=[MODEL])) as hub:
        refused = client.download(hub, MODEL, "--local_dir", "out")
        assert refused.returncode == 1
        assert tree(tmp_path / "out") == {}
        result = client.download(hub, MODEL, "--local_dir", "out", MODELSCOPE_API_TOKEN=TOKEN)
        assert result.returncode == 0, result.stderr
        assert tree(tmp_path / "out") == tree(source)
        request = hub.requests.select("list/*")[-1]
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert TOKEN in request.headers["cookie"]


def test_cli_drops_the_token_on_another_host(root: Path, client: Client, source: Path, tmp_path: Path) -> None:
    access = Access(tokens=[TOKEN], private=[MODEL])
    with Hub(root, access=access, lfs_base="http://localhost:{port}") as hub:
        result = client.download(
            hub, MODEL, "--local_dir", "out", MODELSCOPE_API_TOKEN=TOKEN, NO_PROXY="127.0.0.1,localhost"
        )
        assert result.returncode == 0, result.stderr
        assert tree(tmp_path / "out") == tree(source)
        headers = hub.requests.select("lfs/*")[0].headers
        assert headers["host"] == f"localhost:{hub.port}"
        assert "authorization" not in headers


def test_cli_and_an_unknown_model(hub: Hub, client: Client) -> None:
    result = client.download(hub, "acme/none", "--local_dir", "out")
    assert result.returncode == 1
    assert "record not found" in result.stderr + result.stdout


def test_cli_heals_one_corrupt_byte(hub: Hub, client: Client, source: Path, tmp_path: Path) -> None:
    fault = hub.faults.add(Fault(match="lfs/*", corrupt_at=-1, times=1))
    result = client.download(hub, MODEL, "--local_dir", "out")
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "out") == tree(source)
    assert (fault.hits, hub.requests.count("lfs/*")) == (1, 2)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_status_headers_and_body(hub: Hub) -> None:
    hub.faults.add(Fault(match="list/*", status=429, headers={"Retry-After": "7"}, times=1))
    hub.faults.add(Fault(match="list/*", status=503, body="<html>down for lunch</html>", times=2))
    first, second, third = (get(hub, f"{API}/repo/files") for _unused in range(3))
    assert (first.status, first.headers["retry-after"]) == (429, "7")
    assert first.body == b"<html>down for lunch</html>"  # of each field, the first fault that sets it counts
    assert (second.status, second.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert third.status == 200
    hub.faults.add(Fault(match="revisions/*", body={"Code": 10010205001, "Message": "Error 1461", "Success": False}))
    assert get(hub, f"{API}/revisions").json["Message"] == "Error 1461"
    hub.faults.clear()
    assert get(hub, f"{API}/revisions").json["Success"] is True


def test_times_and_after(hub: Hub) -> None:
    fault = hub.faults.add(Fault(match="*/config.json", status=500, after=1, times=2))
    assert [get(hub, file_url("config.json")).status for _unused in range(5)] == [200, 500, 500, 200, 200]
    assert fault.hits == 2
    hub.faults.remove(fault)
    assert get(hub, file_url("README.md")).status == 200


@pytest.mark.parametrize(("how", "kind"), [("rst", ConnectionResetError), ("fin", http.client.IncompleteRead)])
def test_connection_breaks_after_n_bytes(hub: Hub, source: Path, how: Any, kind: type[Exception]) -> None:
    hub.faults.add(Fault(match="lfs/*", drop_after=1_000_003, drop=how))
    answer = get(hub, signed_url(hub))
    assert isinstance(answer.error, kind)
    assert answer.headers["content-length"] == str(WEIGHTS_SIZE)
    assert answer.body == (source / WEIGHTS).read_bytes()[:1_000_003]
    hub.faults.clear()
    hub.faults.add(Fault(match="list/*", drop_after=0, drop=how))
    assert isinstance(get(hub, f"{API}/repo/files").error, kind)


def test_stall_and_delay(hub: Hub, source: Path) -> None:
    url = signed_url(hub)
    fault = hub.faults.add(Fault(match="lfs/*", stall_after=1 << 20))
    answer = get(hub, url, timeout=1)
    assert isinstance(answer.error, TimeoutError)
    assert len(answer.body) == 1 << 20
    hub.faults.remove(fault)
    fault = hub.faults.add(Fault(match="lfs/*", stall_after=100, stall=0.2))
    began = time.monotonic()
    assert get(hub, url).body == (source / WEIGHTS).read_bytes()
    assert time.monotonic() - began >= 0.2
    hub.faults.remove(fault)
    hub.faults.add(Fault(match="lfs/*", delay=0.2))
    began = time.monotonic()
    assert get(hub, url, {"Range": "bytes=0-0"}).status == 206
    assert time.monotonic() - began >= 0.2


def test_a_stalled_hub_stops_at_once(root: Path) -> None:
    hub = Hub(root)
    hub.faults.add(Fault(match="list/*", delay=3600))
    with hub, socket.create_connection(("127.0.0.1", hub.port), timeout=20) as waiting:
        waiting.sendall(f"GET {API}/repo/files HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        while not hub.requests.count("list/*"):
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_corrupt_byte_and_truncated_body(hub: Hub, source: Path) -> None:
    content, url = (source / WEIGHTS).read_bytes(), signed_url(hub)
    fault = hub.faults.add(Fault(match="lfs/*", corrupt_at=1_000_000))
    body = get(hub, url).body
    assert [index for index in range(len(content)) if body[index] != content[index]] == [1_000_000]
    assert get(hub, url, {"Range": "bytes=999990-1000009"}).body == body[999_990:1_000_010]
    assert get(hub, url, {"Range": "bytes=0-9"}).body == content[:10]
    hub.faults.remove(fault)
    hub.faults.add(Fault(match="*", truncate=10))
    short = get(hub, url)
    assert (short.headers["content-length"], short.body, short.error) == ("10", content[:10], None)
    part = get(hub, url, {"Range": "bytes=50-149"})
    assert (part.body, part.headers["content-range"]) == (content[50:60], f"bytes 50-149/{WEIGHTS_SIZE}")
    assert len(get(hub, f"{API}/repo/files").body) == 10


@pytest.mark.parametrize(
    ("mode", "status", "content_range", "begin", "end"),
    [
        ("206", 206, f"bytes 1000-1999/{WEIGHTS_SIZE}", 1000, 2000),
        ("200", 200, f"bytes 1000-1999/{WEIGHTS_SIZE}", 1000, 2000),
        ("ignore", 200, None, 0, WEIGHTS_SIZE),
        ("lie", 206, f"bytes 1000-1999/{WEIGHTS_SIZE}", 0, 1000),
        ("shift", 206, f"bytes 0-999/{WEIGHTS_SIZE}", 0, 1000),
        ("total", 206, f"bytes 1000-1999/{WEIGHTS_SIZE + 1}", 1000, 2000),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_ranges(
    hub: Hub,
    source: Path,
    direct: bool,
    mode: Any,
    status: int,
    content_range: str | None,
    begin: int,
    end: int,
) -> None:
    url = file_url(WEIGHTS) if direct else signed_url(hub)
    hub.faults.add(Fault(match="*/model.safetensors", direct=direct, range=mode))
    answer = get(hub, url, {"Range": "bytes=1000-1999"})
    assert (answer.status, answer.headers.get("content-range")) == (status, content_range)
    assert answer.body == (source / WEIGHTS).read_bytes()[begin:end]


def test_small_files_honour_ranges_when_told_to(hub: Hub) -> None:
    hub.faults.add(Fault(match="file/*", range="206"))
    assert get(hub, file_url("README.md"), {"Range": "bytes=2-5"}).body == b"tiny"


def test_throttles(hub: Hub) -> None:
    url, size, megabyte = signed_url(hub), 200_000, 1_000_000

    def seconds(connections: int) -> float:
        def fetch() -> None:
            assert len(get(hub, url, {"Range": f"bytes=0-{size - 1}"}).body) == size

        threads = [threading.Thread(target=fetch) for _unused in range(connections)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began

    # Wide bounds, for a machine that is busy: alone 0.2 s, eight after another 1.6 s.
    fault = hub.faults.add(Fault(match="lfs/*", rate=megabyte))
    assert 0.15 < seconds(8) < 1.1
    hub.faults.remove(fault)
    hub.faults.add(Fault(match="lfs/*", total_rate=megabyte))
    assert seconds(8) > 1.3


def test_an_answer_on_its_way_can_be_let_go(hub: Hub, source: Path) -> None:
    slow = hub.faults.add(Fault(match="lfs/*", total_rate=100_000))
    answers: list[Answer] = []
    client = threading.Thread(target=lambda: answers.append(get(hub, signed_url(hub))), daemon=True)
    client.start()
    deadline = time.monotonic() + 20
    while not any(request.sent for request in hub.requests.select("lfs/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.hurry(1e9)
    client.join(20)
    assert answers[0].body == (source / WEIGHTS).read_bytes()
    with pytest.raises(FaultError, match="no total_rate"):
        Fault(match="lfs/*", rate=1.0).hurry(2.0)


def test_signed_urls_expire(hub: Hub) -> None:
    hub.faults.add(Fault(match="file/*", url_ttl=1.0, times=1))
    url, lasting = signed_url(hub), signed_url(hub)
    assert get(hub, url, {"Range": "bytes=0-0"}).status == 206
    time.sleep(1.05)
    late = get(hub, url)
    assert (late.status, late.headers["x-tengine-error"]) == (403, "denied by req auth: expired timestamp")
    assert get(hub, lasting, {"Range": "bytes=0-0"}).status == 206


@pytest.mark.parametrize(
    ("wanted", "prefix"),
    [
        ("http://localhost:{port}", "http://localhost:{}/lfs/acme/tiny/"),
        ("https://localhost:{port}", "https://localhost:{}/lfs/acme/tiny/"),
        ("ftp://127.0.0.1:{port}", "ftp://127.0.0.1:{}/lfs/acme/tiny/"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("http://169.254.169.254/latest/meta-data/", "http://169.254.169.254/latest/meta-data/"),
    ],
)
def test_redirects_to_elsewhere(hub: Hub, source: Path, wanted: str, prefix: str) -> None:
    hub.faults.add(Fault(match="file/*", redirect=wanted))
    location = signed_url(hub)
    assert location.startswith(prefix.format(hub.port))
    if "/lfs/" in location:
        assert get(hub, location).body == (source / WEIGHTS).read_bytes()
    hub.faults.clear()
    hub.faults.add(Fault(match="list/*", redirect="http://localhost:{port}"))
    answer = get(hub, f"{API}/repo/files?Recursive=True")
    assert answer.status == 302
    assert answer.headers["location"] == f"http://localhost:{hub.port}{API}/repo/files?Recursive=True"


def test_redirects_can_go_on_and_on(hub: Hub) -> None:
    hub.faults.add(Fault(match="lfs/*", redirect="http://127.0.0.1:{port}"))
    first = signed_url(hub)
    second = get(hub, first)
    assert second.status == 302
    third = get(hub, second.headers["location"])
    assert third.status == 302
    assert third.headers["location"].split("?")[0] == first.split("?")[0]


def test_listing_faults(hub: Hub) -> None:
    fault = hub.faults.add(Fault(match="list/*", empty=True))
    assert listing(hub) == []
    hub.faults.remove(fault)
    fault = hub.faults.add(Fault(match="list/*", success=False))
    failed = get(hub, f"{API}/repo/files")
    assert (failed.status, failed.json["Success"], "Data" in failed.json) == (200, False, False)
    hub.faults.remove(fault)
    fault = hub.faults.add(Fault(match="list/*", cap=3))
    assert len(listing(hub)) == 3
    hub.faults.remove(fault)
    hub.faults.add(Fault(match="list/*", bad_revision="empty"))
    assert listing(hub, "Revision=nothing&Recursive=True") == []
    assert len(listing(hub)) == 9


@pytest.mark.parametrize("change", ["missing", "empty", "upper", "wrong"])
def test_digest_faults(hub: Hub, source: Path, change: Any) -> None:
    hub.faults.add(Fault(match="list/*", sha256=change, rows="*.json"))
    rows = {row["Path"]: row for row in listing(hub) if row["Type"] == "blob"}
    right = tree(source)
    assert {path for path, row in rows.items() if row.get("Sha256") != right[path]} == {"config.json"}
    seen = rows["config.json"].get("Sha256")
    assert {
        "missing": seen is None,
        "empty": seen == "",
        "upper": seen == right["config.json"].upper(),
        "wrong": seen is not None and len(seen) == 64,
    }[change]
    hub.faults.clear()
    assert {row["Path"]: row["Sha256"] for row in listing(hub) if row["Type"] == "blob"} == right


def test_rows_can_be_patched(hub: Hub) -> None:
    hub.faults.add(Fault(match="list/*", rows="config.json", patch={"Size": 10**15, "Sha256": None, "Type": "weird"}))
    row = next(row for row in listing(hub) if row["Path"] == "config.json")
    assert (row["Size"], row["Type"], "Sha256" in row) == (10**15, "weird", False)


@pytest.mark.parametrize("name", sorted(hostile_rows("/x")))
def test_hostile_rows_are_listed_and_served(hub: Hub, tmp_path: Path, name: str) -> None:
    extra = hostile_rows(str(tmp_path))[name]
    hub.faults.add(Fault(match="list/*", extra_rows=extra))
    rows = listing(hub)[-len(extra) :]
    assert [row.get("Path") for row in rows] == [row.get("Path") for row in extra]
    path = extra[0].get("Path")
    if isinstance(path, str) and name != "surrogate":  # no URL can carry a lone surrogate
        answer = get(hub, file_url(path))
        assert (answer.status, answer.body.decode()) == (200, extra[0]["content"])
        assert rows[0]["Sha256"] == hashlib.sha256(answer.body).hexdigest()


def test_the_official_client_follows_a_hostile_row(hub: Hub, client: Client, tmp_path: Path) -> None:
    # The reason these rows exist: the hub tempts a real client out of its directory.
    outside = tmp_path / "outside"
    hub.faults.add(Fault(match="list/*", extra_rows=hostile_rows(str(outside))["absolute"]))
    assert client.download(hub, MODEL, "--local_dir", "out").returncode == 0
    assert (outside / "evil-abs.txt").read_text(encoding="utf-8") == "evil absolute\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no list of faults"),
        ('{"faults": [{"stauts": 500}]}', "unknown fault field stauts"),
        ('{"faults": [{"rate": 0}]}', "more than 0"),
    ],
)
def test_a_bad_fault_file_is_an_error_not_an_absence(root: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "faults.json").write_text(text, encoding="utf-8")
    with Hub(root, faults_file=tmp_path / "faults.json") as hub:
        answer = get(hub, f"{API}/revisions")
        assert answer.status == 500
        assert message in answer.json["Message"]


def test_the_fault_file_is_read_again_when_it_changes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    with Hub(root, faults_file=path) as hub:
        assert get(hub, f"{API}/revisions").status == 200
        path.write_text('{"faults": [{"match": "revisions/*", "status": 502, "times": 1}]}', encoding="utf-8")
        assert [get(hub, f"{API}/revisions").status for _unused in range(2)] == [502, 200]
        path.unlink()
        assert get(hub, f"{API}/revisions").status == 200


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(FaultError, match="unknown fault field colour"):
        Fault.from_json({"colour": "red"})


# --- the command line and the background process ---------------------------------------------------------------------


def model_hub(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(LAB), **more}
    command = [sys.executable, "-m", "model_hub", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    yield directory
    assert model_hub("stop", "--state", directory).returncode == 0


def test_add_from_the_command_line(source: Path, tmp_path: Path) -> None:
    arguments = ("add", "--root", tmp_path, "--model", MODEL, "--from", source, "--branch", "main", "--tag", "v2")
    first, second = (json.loads(model_hub(*arguments).stdout) for _unused in range(2))
    assert (first["changed"], second["changed"], first["files"]) == (True, False, 6)
    bad = model_hub("add", "--root", tmp_path, "--model", "tiny", "--from", source)
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)
    assert "Expected: owner/name" in bad.stderr


def test_start_stop_and_status_can_be_repeated(root: Path, state: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    options = ("--root", root, "--port", "0", "--state", state, "--private", MODEL, "--log", log)
    first = model_hub("start", *options, MODEL_HUB_TOKEN=TOKEN)
    assert first.returncode == 0, first.stderr
    again = model_hub("start", *options, MODEL_HUB_TOKEN=TOKEN)
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert (one["changed"], two["changed"], one["pid"]) == (True, False, two["pid"])
    assert (state / "hub.pid").read_text(encoding="utf-8") == f"{one['pid']}\n"
    assert TOKEN not in Path(f"/proc/{one['pid']}/cmdline").read_text(encoding="utf-8")
    url = urlsplit(one["endpoint"])
    connection = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=10)
    connection.request("GET", f"{API}/revisions", headers={"Authorization": f"Bearer {TOKEN}"})
    assert Answer(connection).status == 200
    connection.close()
    entry = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    assert (entry["target"], entry["status"], entry["token"]) == (f"revisions/{MODEL}", 200, True)
    assert TOKEN not in log.read_text(encoding="utf-8")
    status = model_hub("status", "--state", state)
    assert (status.returncode, json.loads(status.stdout)["healthy"]) == (0, True)
    stopped = [json.loads(model_hub("stop", "--state", state).stdout)["changed"] for _unused in range(2)]
    assert stopped == [True, False]
    status = model_hub("status", "--state", state)
    assert (status.returncode, json.loads(status.stdout)["running"]) == (3, False)


def test_start_accepts_a_hub_that_is_there_and_nothing_else(root: Path, state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Hub(root) as hub:
        same = model_hub("start", "--root", root, "--port", str(hub.port), "--state", state)
        assert json.loads(same.stdout)["changed"] is False
        wrong = model_hub("start", "--root", other, "--port", str(hub.port), "--state", state)
        assert wrong.returncode == 1
        assert f"is a model hub over {root}, not over {other}" in wrong.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        threading.Thread(target=_hang_up, args=(listener,), daemon=True).start()
        taken = model_hub("start", "--root", root, "--port", str(port), "--state", state)
        assert taken.returncode == 1
        assert "choose another --port" in taken.stderr.lower()
    missing = model_hub("start", "--root", tmp_path / "none", "--state", state)
    assert (missing.returncode, "model_hub add" in missing.stderr) == (1, True)


def _hang_up(listener: socket.socket) -> None:
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


def test_start_refuses_a_state_directory_in_use(root: Path, state: Path, tmp_path: Path) -> None:
    assert model_hub("start", "--root", root, "--port", str(free_port()), "--state", state).returncode == 0
    other = model_hub("start", "--root", tmp_path, "--port", "0", "--state", state)
    assert other.returncode == 1
    assert "Stop it first" in other.stderr


def test_stop_spares_a_process_that_is_not_ours(state: Path) -> None:
    state.mkdir()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        stale = {"pid": bystander.pid, "instance": "0" * 16, "endpoint": "http://127.0.0.1:1", "root": "/"}
        (state / "hub.json").write_text(json.dumps(stale), encoding="utf-8")
        assert json.loads(model_hub("stop", "--state", state).stdout)["changed"] is False
        assert bystander.poll() is None
        assert not (state / "hub.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_start_after_a_crash(root: Path, state: Path) -> None:
    port = str(free_port())
    options = ("--root", root, "--port", port, "--state", state)
    first = json.loads(model_hub("start", *options).stdout)
    os.kill(first["pid"], signal.SIGKILL)
    second = json.loads(model_hub("start", *options).stdout)
    assert (second["changed"], second["endpoint"]) == (True, first["endpoint"])
