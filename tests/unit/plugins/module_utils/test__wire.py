# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import datetime
import http.server
import select
import socket
import ssl
import threading

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._wire import Wire
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "hub.example.com"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for HOST that vouches for itself; returns its file, with the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "hub.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Serving:
    """A server in a thread, for one test."""

    def __init__(self, handler, certificate=None):
        self.seen = []
        handler = type("Handler", (handler,), {"seen": self.seen, "log_message": lambda *args: None})
        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._httpd.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
        self.port = self._httpd.server_address[1]
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.seen.append((self.path, self.headers["Host"], self.headers.get("Proxy-Authorization")))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Connects every name to the hub on this machine."""

    target = 0

    def do_CONNECT(self):
        self.seen.append((self.path, self.headers.get("Proxy-Authorization")))
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", self.target)) as hub:
            pairs = {hub: self.connection, self.connection: hub}
            while True:
                for ready in select.select(list(pairs), [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    pairs[ready].sendall(data)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_https_through_a_proxy_with_a_password(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Serving(Hub, certificate) as hub:
        proxying = type("ToHub", (Proxy,), {"target": hub.port})
        with Serving(proxying) as proxy:
            monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
            wire = Wire("test")
            for _unused in range(2):
                answer = wire.get(f"https://{HOST}/x?y=1", {"Range": "bytes=0-4"}, 10)
                assert answer.read_all(100) == b"hello"
                answer.close()
            del wire, answer
    assert proxy.seen == [(f"{HOST}:443", "Basic dXNlcjpwQHNz")], "one tunnel, used twice"
    assert hub.seen == [("/x?y=1", HOST, None)] * 2, "the hub never sees the proxy's password"


def test_a_certificate_that_nobody_trusts(certificate, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with Serving(Hub, certificate) as hub:
        proxying = type("ToHub", (Proxy,), {"target": hub.port})
        with Serving(proxying) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            with pytest.raises(ssl.SSLCertVerificationError):
                Wire("test").get(f"https://{HOST}/", {}, 10)
    assert hub.seen == []


def test_no_proxy_is_honoured(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", ".example.com")
    with pytest.raises(OSError, match=r"(?i)name|address|resol"):
        Wire("test").get("http://nowhere.example.com/", {}, 10)


def test_an_answer_that_is_too_long_or_cut():
    class Odd(Hub):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "50")
            self.end_headers()
            self.wfile.write(b"x" * (50 if self.path == "/long" else 10))
            self.close_connection = True

    with Serving(Odd) as server:
        wire = Wire("test")
        for path, words in (("/long", "more than 20 bytes"), ("/cut", "in the middle of an answer")):
            answer = wire.get(f"http://127.0.0.1:{server.port}{path}", {}, 10)
            with pytest.raises(OSError, match=words):
                answer.read_all(20)
            answer.close()
        del wire, answer


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://a..b/", "http://127.0.0.1:1/\r\nX: y"])
def test_odd_urls_are_os_errors(url):
    with pytest.raises(OSError, match=r".+"):
        Wire("test").get(url, {}, 5)
