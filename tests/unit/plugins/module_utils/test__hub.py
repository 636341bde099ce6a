# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import http.server
import json
import socket
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _hub
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import (
    RangeRefusedError,
    RetryPolicy,
    TransientError,
)

COMMIT, OTHER = "2e50b77b0eee3083842019e257b74854323d880a", "c0" * 20
TOKEN = "ms-0123456789abcdef"
MODEL = "acme/tiny"
API = f"/api/v1/models/{MODEL}"


class Server:
    """Answers from ``routes``: path to (status, headers, body), or a list of them of which the last one stays."""

    def __init__(self):
        self.routes, self.seen = {}, []
        self.connections, self.http11, self.hang_up = 0, False, False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def setup(self):
                super().setup()
                outer.connections += 1
                self.protocol_version = "HTTP/1.1" if outer.http11 else "HTTP/1.0"

            def do_GET(self):
                outer.seen.append((self.path, dict(self.headers)))
                answer = outer.routes.get(urlsplit(self.path).path, (404, {}, {"Code": 10010205001}))
                if callable(answer):
                    answer = answer({key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()})
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                status, headers, body = answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                if outer.hang_up:  # without a word in the answer's headers
                    self.close_connection = True

            def log_message(self, format, *args):
                pass

        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self.port = self._httpd.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


@pytest.fixture
def server():
    with Server() as one:
        yield one


def client(server, token=None, url=None, **policy):
    waits = []
    one = _hub.HubClient(
        _hub.parse_endpoint(url or server.url), token, timeout=5, policy=RetryPolicy(sleep=waits.append, **policy)
    )
    one.waits = waits
    return one


def ok(data):
    return 200, {"Content-Type": "application/json"}, {"Code": 200, "Data": data, "Message": "success", "Success": True}


def refused(code, message="", status=404):
    return status, {}, {"Code": code, "Message": message, "RequestId": "8c2a", "Success": False}


def revisions(branches=(), tags=()):
    def rows(items):
        return [{"Revision": name, "CreatedAt": 1726665606, "CommitId": commit} for name, commit in items]

    return ok({"RevisionMap": {"Branches": rows(branches), "Tags": rows(tags)}})


# --- arguments ---


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://modelscope.cn/", "https://modelscope.cn"),
        ("modelscope.cn", "https://modelscope.cn"),
        (" http://localhost:8080/mirror ", "http://localhost:8080/mirror"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_endpoints(text, url):
    assert _hub.parse_endpoint(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "https://",
        "https://u:secret@x",
        "https://x?a=secret",
        "https://x#f",
        "https://x:port",
        "http://[",
    ],
)
def test_endpoints_that_are_refused_without_telling_secrets(text):
    with pytest.raises(FleetError) as caught:
        _hub.parse_endpoint(text)
    assert caught.value.code == "hub.bad_endpoint"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-7B-Instruct", "openai-mirror/whisper-large-v3-turbo", "_a/b_c"])
def test_models(model):
    assert _hub.check_model(model) == model


@pytest.mark.parametrize("model", ["", "x", "a/b/c", "../x", "a/..", "a b/c", "a/b?x", "a/b\n", "/a", "a/", "模/型"])
def test_models_that_are_refused(model):
    with pytest.raises(FleetError, match="not a model id"):
        _hub.check_model(model)


@pytest.mark.parametrize("revision", ["", "a b", "-x", "a..b", "../x", "a\n", "/x", "x/", ".git", "x" * 256])
def test_revisions_that_are_refused(revision):
    with pytest.raises(FleetError, match="is not a revision"):
        _hub.check_revision(revision)


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://hub.example.com", True),
        ("http://127.0.0.1:1", True),
        ("http://127.8.9.1", True),
        ("http://localhost", True),
        ("http://[::1]", True),
        ("http://hub.example.com", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
    ],
)
def test_a_token_goes_over_plain_http_to_loopback_only(url, fine):
    endpoint = _hub.parse_endpoint(url)
    assert _hub.HubClient(endpoint).token is None
    assert _hub.HubClient(endpoint, "").token is None
    if fine:
        assert TOKEN not in repr(_hub.HubClient(endpoint, TOKEN))
        return
    with pytest.raises(FleetError) as caught:
        _hub.HubClient(endpoint, TOKEN)
    assert caught.value.code == "hub.token_over_http"
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("token", ["a\nb", "a b", "a;b", "ü"])
def test_a_token_cannot_smuggle_headers(token):
    with pytest.raises(FleetError, match="no token has"):
        _hub.HubClient(_hub.parse_endpoint("https://x"), token)


def test_urls_in_messages_lose_what_may_be_secret():
    assert _hub.safe_url("https://u:p@cdn.example.com:8/a/b?auth_key=1#f") == "https://cdn.example.com:8/a/b"
    assert _hub.safe_url("http://[") == "(an unreadable URL)"


def test_text_from_outside_is_scrubbed(server):
    text = f"see\nhttps://cdn.example.com/a?auth_key=secret1&x=1 {TOKEN}\x1b[2J " + "x" * 400
    scrubbed = client(server, TOKEN).scrub(text)
    assert "secret1" not in scrubbed
    assert TOKEN not in scrubbed
    assert scrubbed.isprintable()
    assert len(scrubbed) == 300


# --- revision to commit ---


def test_a_commit_needs_no_request(server):
    assert client(server).resolve(MODEL, COMMIT.upper()).commit == COMMIT
    assert server.seen == []


def test_a_branch_wins_over_a_tag(server):
    server.routes[f"{API}/revisions"] = revisions([("master", COMMIT), ("v1", COMMIT)], [("v1", OTHER), ("v2", OTHER)])
    one = client(server)
    assert [one.resolve(MODEL, name).commit for name in ("master", "v1", "v2")] == [COMMIT, COMMIT, OTHER]
    assert one.resolve(MODEL, "v2").ref == OTHER
    assert one.requests == 4


@pytest.mark.parametrize("commit", [None, "", 5, "abc"])
def test_without_commits_in_revisions_the_newest_one_is_asked_for(server, commit):
    server.routes[f"{API}/revisions"] = revisions([("master", commit)])
    server.routes[f"{API}/commits"] = ok({"Commit": [{"Id": COMMIT.upper(), "ShortId": "2e50"}], "TotalCount": 1})
    assert client(server).resolve(MODEL, "master").commit == COMMIT
    assert server.seen[-1][0] == f"{API}/commits?Ref=master&PageSize=1"


@pytest.mark.parametrize("answer", [ok({"Commit": None}), ok({"Commit": []}), ok(None), refused(404)])
def test_a_hub_that_tells_no_commit_is_pinned_by_name(server, answer):
    server.routes[f"{API}/revisions"] = revisions([("master", None)])
    server.routes[f"{API}/commits"] = answer
    resolution = client(server).resolve(MODEL, "master")
    assert (resolution.commit, resolution.ref) == (None, "master")
    assert "pinned by name only" in resolution.warnings[0]


def test_an_unknown_revision_lists_the_known_ones(server):
    server.routes[f"{API}/revisions"] = revisions([("master", COMMIT), ("evil\x1b", None)], [("v1", OTHER)])
    with pytest.raises(FleetError) as caught:
        client(server).resolve(MODEL, "v2")
    assert caught.value.code == "hub.unknown_revision"
    assert "branches (master, evil\\x1b) or tags (v1)" in caught.value.expected
    server.routes[f"{API}/revisions"] = ok(None)
    with pytest.raises(FleetError, match=r"branches \(none\) or tags \(none\)"):
        client(server).resolve(MODEL, "v2")


# --- refusals ---


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refused(10010205001, "获取模型信息失败，信息：record not found"), "hub.not_found"),
        (refused(10010200001, "no access"), "hub.no_access"),
        (refused(10990101004, "no file tree"), "hub.unknown_revision"),
        (refused(10010200001, status=200), "hub.no_access"),
        ((404, {}, b"<html>nginx</html>"), "hub.not_found"),
        ((401, {}, {}), "hub.no_access"),
        ((403, {}, {}), "hub.no_access"),
        ((400, {}, {"Message": "bad parameter"}), "hub.refused"),
        ((200, {}, {"Success": False, "Message": "no"}), "hub.refused"),
        ((200, {}, {"Code": 500, "Message": "no"}), "hub.refused"),
        ((200, {"Content-Type": "text/html"}, b"<html>log in</html>"), "hub.odd_answer"),
        ((200, {}, b"<!DOCTYPE html>"), "hub.odd_answer"),
        ((200, {}, b'"text"'), "hub.odd_answer"),
        ((200, {}, b"[]"), "hub.odd_answer"),
        ((200, {}, b"\xff\xfe"), "hub.odd_answer"),
        (ok({"Files": "x"}), "hub.odd_answer"),
        (ok({"Files": ["x"]}), "hub.odd_answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_told_apart_and_not_retried(server, answer, code):
    server.routes[f"{API}/repo/files"] = answer
    one = client(server)
    with pytest.raises(FleetError) as caught:
        one.list_rows(MODEL, _hub.Resolution("master", COMMIT))
    assert caught.value.code == code
    assert one.requests == 1
    assert MODEL in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "wait"),
    [
        (refused(0, status=503), 0.1),
        (refused(0, status=500), 0.1),
        ((429, {"Retry-After": "7"}, {}), 7.0),
        ((503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""), 0.0),
        ((503, {"Retry-After": "Wed, 21 Oct 2199 07:28:00 GMT"}, b""), 60.0),
        ((503, {"Retry-After": "soon"}, b""), 0.1),
        (refused(10010205001, "Error 1461: Can't create more than max_prepared_stmt_count statements"), 0.1),
        ((200, {"Content-Length": "100"}, b"{"), 0.1),
    ],
    ids=["503", "500", "429", "past date", "far date", "no date", "overload as 404", "cut short"],
)
def test_what_may_pass_is_retried(server, answer, wait):
    server.routes[f"{API}/repo/files"] = [answer, ok({"Files": [{"Path": "x"}]})]
    one = client(server)
    assert one.list_rows(MODEL, _hub.Resolution("master", COMMIT)) == [{"Path": "x"}]
    assert one.waits == [wait]


def test_the_budget_ends_and_the_error_says_why(server):
    server.routes[f"{API}/revisions"] = refused(0, f"down {TOKEN} https://x/y?auth_key=k", status=502)
    one = client(server, TOKEN)
    with pytest.raises(TransientError, match="HTTP 502") as caught:
        one.resolve(MODEL, "master")
    assert caught.value.code == "hub.unavailable"
    assert one.waits == [0.1, 1, 2, 4]
    assert TOKEN not in str(caught.value)
    assert "auth_key" not in str(caught.value)


def test_nobody_there():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    one = client(None, url=f"http://127.0.0.1:{port}")
    with pytest.raises(FleetError, match="Connection refused") as caught:
        one.resolve(MODEL, "master", patient=False)
    assert caught.value.code == "hub.unreachable"
    assert one.requests == 2, "an impatient caller waits for two tries only"
    with pytest.raises(FleetError, match="Connection refused"):
        one.resolve(MODEL, "master")
    assert one.requests == 5


# --- headers, redirects, proxies ---


def test_headers(server):
    server.routes[f"{API}/revisions"] = revisions([("master", COMMIT)])
    client(server, TOKEN).resolve(MODEL, "master")
    headers = {name.lower(): value for name, value in server.seen[0][1].items()}
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["cookie"] == f"m_session_id={TOKEN}"
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == _hub.USER_AGENT
    assert set(headers) == {"authorization", "cookie", "accept-encoding", "user-agent", "host"}


def test_the_token_does_not_leave_the_host(server):
    with Server() as cdn:
        cdn.routes["/blob"] = (200, {}, b"1234567")
        server.routes[f"{API}/repo"] = (302, {"Location": f"{cdn.url}/blob?auth_key=secret"}, b"")
        stream = client(server, TOKEN).source(MODEL, _hub.Resolution("master", COMMIT)).open(Entry("x", 7, ""), 0, 7)
        assert stream.read(100) == b"1234567"
        stream.close()
        assert "secret" not in stream.described
        sent = {name.lower() for name in cdn.seen[0][1]}
        assert not sent & {"authorization", "cookie"}
        assert "Authorization" in server.seen[0][1]


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "http://[", None, "javascript:x"],
)
def test_redirects_that_are_not_followed(server, location):
    server.routes[f"{API}/revisions"] = (302, {} if location is None else {"Location": location}, b"")
    with pytest.raises(FleetError) as caught:
        client(server).resolve(MODEL, "master")
    assert caught.value.code == "hub.bad_redirect"


def test_no_redirect_from_https_to_http():
    one = _hub.HubClient(_hub.parse_endpoint("https://hub.example.com"))
    with pytest.raises(FleetError, match=r"redirects to http://hub\.example\.com/x"):
        one._next_url("https://hub.example.com/a", "http://hub.example.com/x?auth_key=secret")
    assert one._next_url("https://hub.example.com/a/b", "../c d?é") == "https://hub.example.com/c%20d?%C3%A9"


def test_redirects_in_circles_end(server):
    server.routes[f"{API}/revisions"] = (302, {"Location": f"{API}/revisions"}, b"")
    one = client(server)
    with pytest.raises(FleetError, match="more than 5 times"):
        one.resolve(MODEL, "master")
    assert one.requests == 6


def test_loopback_goes_past_every_proxy(server, monkeypatch):
    server.routes[f"{API}/revisions"] = revisions([("master", COMMIT)])
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert client(server, TOKEN).resolve(MODEL, "master").commit == COMMIT


def test_other_hosts_go_through_the_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(FleetError, match="HTTP 404"):
        client(server, url="http://hub.invalid").resolve(MODEL, "master")
    assert server.seen[0][0] == f"http://hub.invalid{API}/revisions"


def test_a_mirror_below_a_path(server):
    server.routes[f"/mirror{API}/revisions"] = revisions([("master", COMMIT)])
    assert client(server, url=f"{server.url}/mirror/").resolve(MODEL, "master").commit == COMMIT


# --- listing ---


def tree(paths):
    """A hub's listing of ``paths`` that is cut off at five rows, as the real one is at 3000."""

    def answer(query):
        root = query.get("Root")
        rows = {}
        for path in paths:
            if root is not None and not path.startswith(root + "/"):
                continue
            rest = path[len(root) + 1 :] if root else path
            parts = rest.split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(([root] if root else []) + parts[:depth])
                rows[directory] = {"Path": directory, "Type": "tree"}
            rows[path] = {"Path": path, "Type": "blob"}
        if query["Recursive"] != "True":
            prefix = f"{root}/" if root else ""
            rows = {path: row for path, row in rows.items() if "/" not in path[len(prefix) :]}
        return ok({"Files": list(rows.values())[:5]})

    return answer


def test_a_listing_that_is_cut_off_is_walked(server, monkeypatch):
    monkeypatch.setattr(_hub, "LISTING_CAP", 5)
    paths = [f"{a}/{b}/{c}" for a in "xyz" for b in "ab" for c in "12"] + ["top", "x/leaf"]
    server.routes[f"{API}/repo/files"] = tree(paths)
    rows = client(server).list_rows(MODEL, _hub.Resolution("master", COMMIT))
    assert sorted(row["Path"] for row in rows if row["Type"] == "blob") == sorted(paths)
    assert all(f"Revision={COMMIT}" in path for path, _headers in server.seen)


@pytest.mark.parametrize(
    "paths", [[f"f{number}" for number in range(5)], ["top", *(f"d/f{number}" for number in range(9))]]
)
def test_a_flat_directory_at_the_cap_is_an_error(server, monkeypatch, paths):
    monkeypatch.setattr(_hub, "LISTING_CAP", 5)
    server.routes[f"{API}/repo/files"] = tree(paths)
    with pytest.raises(FleetError) as caught:
        client(server).list_rows(MODEL, _hub.Resolution("master", COMMIT))
    assert caught.value.code == "hub.listing_incomplete"


def test_a_listing_that_leads_in_circles_or_out_ends(server, monkeypatch):
    monkeypatch.setattr(_hub, "LISTING_CAP", 2)
    monkeypatch.setattr(_hub, "_LISTINGS_MAX", 20)
    deep = iter(range(1000))

    def down(query):
        if query["Recursive"] == "True":
            return ok({"Files": [{"Path": "a"}, {"Path": "b"}]})
        root = query.get("Root")
        return ok({"Files": [{"Path": f"{root}/{next(deep)}" if root else "d", "Type": "tree"}]})

    server.routes[f"{API}/repo/files"] = down
    with pytest.raises(FleetError, match="one by one"):
        client(server).list_rows(MODEL, _hub.Resolution("master", COMMIT))
    server.routes[f"{API}/repo/files"] = lambda query: ok({"Files": [{"Path": "../x", "Type": "tree"}] * 2})
    monkeypatch.setattr(_hub, "LISTING_CAP", 3)
    assert client(server).list_rows(MODEL, _hub.Resolution("master", COMMIT))
    monkeypatch.setattr(_hub, "LISTING_CAP", 2)
    with pytest.raises(FleetError, match="more"):
        client(server).list_rows(MODEL, _hub.Resolution("master", COMMIT))


# --- files ---


@pytest.mark.parametrize(
    ("status", "headers", "offset", "expected"),
    [
        (200, {}, 0, (0, 7, True)),
        (200, {}, 3, (0, 7, True)),  # range ignored
        (206, {"Content-Range": "bytes 3-6/7"}, 3, (3, 7, False)),
        (200, {"Content-Range": "bytes 3-6/7"}, 3, (3, 7, False)),  # a gateway that says 200 and means 206
        (206, {"Content-Range": "bytes 3-6/*"}, 3, (3, None, False)),
        (206, {}, 3, (None, None, False)),
        (206, {}, 0, (0, 7, True)),
        (206, {"Content-Range": "nonsense"}, 3, (None, None, False)),
        (200, {"Content-Range": "bytes 3-6/9"}, 3, (3, 9, False)),
    ],
)
def test_where_an_answer_starts(server, status, headers, offset, expected):
    server.routes[f"{API}/repo"] = (status, headers, b"1234567")
    source = client(server).source(MODEL, _hub.Resolution("master", COMMIT))
    stream = source.open(Entry("sub dir/x.bin", 7, ""), offset, 7)
    stream.close()
    assert (stream.offset, stream.total, stream.whole) == expected
    path, sent = server.seen[0]
    assert path == f"{API}/repo?Revision={COMMIT}&FilePath=sub%20dir%2Fx.bin"
    assert sent.get("Range") == (f"bytes={offset}-6" if offset else None)


def test_files_that_are_refused(server):
    source = client(server).source(MODEL, _hub.Resolution("master", COMMIT))
    item = Entry("x", 7, "")
    server.routes[f"{API}/repo"] = (416, {"Content-Range": "bytes */5"}, b"")
    with pytest.raises(RangeRefusedError):
        source.open(item, 6, 7)
    server.routes[f"{API}/repo"] = refused(10010200001)
    with pytest.raises(FleetError, match="x of acme/tiny"):
        source.open(item, 0, 7)
    server.routes[f"{API}/repo"] = (200, {"Content-Encoding": "gzip"}, b"1234567")
    with pytest.raises(TransientError, match="encoded"):
        source.open(item, 0, 7)


def test_where_the_hub_sent_us_is_asked_first_until_it_is_not_good_any_more(server):
    with Server() as cdn:
        answer = (206, {"Content-Range": "bytes 0-2/7"}, b"123")
        cdn.routes["/blob"] = [answer, answer, (403, {}, b"<Error>expired</Error>"), answer]
        server.routes[f"{API}/repo"] = (302, {"Location": f"{cdn.url}/blob?auth_key=secret"}, b"")
        source = client(server).source(MODEL, _hub.Resolution("master", COMMIT))
        for _unused in range(3):
            stream = source.open(Entry("x", 7, ""), 0, 3)
            assert (stream.offset, stream.read(10)) == (0, b"123")
            stream.close()
    assert len(server.seen) == 2, "once at first, and once when the signed URL had expired"
    assert len(cdn.seen) == 4
    assert [headers["Range"] for _path, headers in cdn.seen] == ["bytes=0-2"] * 4


def test_a_connection_is_used_again(server):
    server.http11 = True
    server.routes[f"{API}/repo"] = (200, {}, b"1234567")
    source = client(server).source(MODEL, _hub.Resolution("master", COMMIT))
    for _unused in range(3):
        stream = source.open(Entry("x", 7, ""), 0, 7)
        assert stream.read(100) == b"1234567"
        stream.close()
    assert server.connections == 1
    source.open(Entry("x", 7, ""), 0, 7).close()  # not read to its end
    source.open(Entry("x", 7, ""), 0, 7).close()
    assert server.connections == 2


def test_a_kept_connection_that_was_closed_meanwhile_is_made_anew(server):
    server.http11, server.hang_up = True, True
    server.routes[f"{API}/revisions"] = revisions([("master", COMMIT)])
    one = client(server)
    for _unused in range(3):
        assert one.resolve(MODEL, "master").commit == COMMIT
    assert server.connections == 3
    assert one.waits == []


def test_an_expired_signed_url_is_worth_another_try(server):
    with Server() as cdn:
        cdn.routes["/blob"] = (403, {}, b"<Error>expired auth_key</Error>")
        server.routes[f"{API}/repo"] = (302, {"Location": f"{cdn.url}/blob?auth_key=secret"}, b"")
        with pytest.raises(TransientError, match="HTTP 403") as caught:
            client(server).source(MODEL, _hub.Resolution("master", COMMIT)).open(Entry("x", 7, ""), 0, 7)
    assert "secret" not in str(caught.value)
