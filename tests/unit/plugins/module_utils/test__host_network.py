# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import http.server
import socket
import threading
import typing as t
from collections.abc import Iterator

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_network as network

TOKEN = "ms-0123456789"
# /proc/net/fib_trie of a host with Docker, cut; its local table comes second.
TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.11
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 172.17.0.1
        /32 host LOCAL
"""
INET6 = """00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000216eafffe3d7c31 02 40 20 80     eth0
garbage
"""


def test_addresses() -> None:
    assert network.parse_fib_trie(TRIE + TRIE) == ["10.0.0.11", "127.0.0.1", "172.17.0.1"]
    assert network.parse_if_inet6(INET6) == ["::1", "fe80::216:eaff:fe3d:7c31"]
    assert network.parse_fib_trie("") == network.parse_fib_trie("/32 host LOCAL\n|-- x\n") == []
    assert network.parse_if_inet6("\n") == []


def test_this_host_has_its_loopback() -> None:
    assert "127.0.0.1" in network.addresses()


class Hub:
    """A hub, or a proxy before one, that answers all alike."""

    def __init__(self, status: int) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        seen = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.send_header("Location", "https://login.example.com/")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_arguments: t.Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[t.Callable[[int], Hub]]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    hubs: list[Hub] = []

    def start(status: int) -> Hub:
        hubs.append(Hub(status))
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.close()


@pytest.mark.parametrize(
    ("status", "token"), [(200, "accepted"), (401, "refused"), (403, "refused"), (404, None), (302, None), (500, None)]
)
def test_a_token(serve: t.Callable[[int], Hub], status: int, token: str | None) -> None:
    hub = serve(status)
    facts = network.hub(hub.url + "/", TOKEN)
    assert (facts["status"], facts["token"], facts["error"]) == (status, token, None)
    assert (facts["endpoint"], facts["host"], facts["addresses"]) == (hub.url, "127.0.0.1", ["127.0.0.1"])
    assert facts["seconds"] >= 0
    ((path, headers),) = hub.requests
    assert path == "/openapi/v1/users/me"
    assert (headers["authorization"], headers["cookie"]) == (f"Bearer {TOKEN}", f"m_session_id={TOKEN}")
    assert TOKEN not in str(facts)


def test_without_a_token(serve: t.Callable[[int], Hub]) -> None:
    hub = serve(200)
    facts = network.hub(hub.url, "")
    assert (facts["status"], facts["token"], facts["error"]) == (200, "none", None)
    ((path, headers),) = hub.requests
    assert path == "/api/v1/repos/internalAccelerationInfo"
    assert not {"authorization", "cookie"} & set(headers)


def test_nobody_listens(serve: t.Callable[[int], Hub]) -> None:
    del serve
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        facts = network.hub(f"http://127.0.0.1:{free.getsockname()[1]}", TOKEN)
    assert (facts["status"], facts["token"], facts["error"]) == (None, None, "Connection refused")


def test_who_answers_nothing(serve: t.Callable[[int], Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    del serve
    monkeypatch.setattr(network, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        facts = network.hub(f"http://127.0.0.1:{silent.getsockname()[1]}", "")
    assert facts["error"] == "no byte arrived before the timeout"


def test_a_name_that_is_not_known(serve: t.Callable[[int], Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    del serve

    def refuse(*_arguments: t.Any, **_options: t.Any) -> t.NoReturn:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", refuse)
    facts = network.hub("https://hub.example.com", TOKEN)
    assert facts["error"] == "the name hub.example.com can not be resolved: Name or service not known"
    assert facts["addresses"] == []


def test_a_proxy_is_asked_and_its_password_stays_here(
    serve: t.Callable[[int], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(200)
    monkeypatch.setenv("http_proxy", f"http://user:secret@{proxy.url[7:]}")
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: t.Any, **options: t.Any) -> t.Any:
        if host == "hub.invalid":
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    facts = network.hub("http://hub.invalid", "")
    assert (facts["proxy"], facts["status"], facts["error"]) == (proxy.url, 200, None)
    assert "secret" not in str(facts)
    assert proxy.requests[0][0] == "http://hub.invalid/api/v1/repos/internalAccelerationInfo"


@pytest.mark.parametrize(
    ("endpoint", "token", "said"),
    [
        ("http://hub.example.com", TOKEN, "a token is set and the endpoint http://hub.example.com is plain http"),
        ("ftp://hub.example.com", "", "is not usable"),
        ("https://user:pw@hub.example.com", "", "is not usable"),
        ("https://[", "", "is not usable"),
        ("https://hub.example.com", "a b", "characters that no token has"),
    ],
)
def test_what_is_not_even_tried(endpoint: str, token: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_ask", lambda *_arguments: pytest.fail("a request was sent"))
    facts = network.hub(endpoint, token)
    assert said in facts["error"]
    assert facts["status"] is None
    assert "pw" not in str(facts)
