# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""HTTP/1.1 connections that are kept and used again, one set a thread. GET only, no redirects, no cookies.

Whatever goes wrong on the way is an OSError, the oddities of HTTP included.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import socket
import threading
import typing as t
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils._addresses import is_loopback

if t.TYPE_CHECKING:
    import ssl

_PIECE = 64 * 1024


class Proxies:
    """The proxies that the environment names (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), read once."""

    def __init__(self) -> None:
        self._known = urllib.request.getproxies_environment()

    def find(self, scheme: str, host: str, port: int) -> str | None:
        """The URL of the proxy for an address; None for a direct connection.

        What is on this machine is never behind a proxy, whatever the environment says: a token may be in clear.
        """
        url = self._known.get(scheme) or self._known.get("all")
        if not url or is_loopback(host) or urllib.request.proxy_bypass_environment(f"{host}:{port}", self._known):  # type: ignore[attr-defined]
            return None
        return url if "://" in url else f"http://{url}"


class _Response(http.client.HTTPResponse):
    """A response that is read into a buffer of the caller as soon as some bytes are there."""

    def readinto1(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.fp is None or self.chunked or self.length is None:  # type: ignore[redundant-expr]
            data = self.read1(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        count = self.fp.readinto1(buffer[: self.length])
        self.length -= count
        return count


class Answer:
    """An HTTP answer whose body was not read yet. Close it: a connection whose answer was read whole is kept."""

    def __init__(self, wire: Wire, key: _Key, connection: http.client.HTTPConnection, url: str) -> None:
        self._wire, self._key, self._connection = wire, key, connection
        self._response = t.cast(_Response, connection.getresponse())
        self.status, self.headers, self.url = self._response.status, self._response.headers, url
        self.redirected = False

    def readinto1(self, buffer: memoryview) -> int:
        """Fill the buffer with what is there, waiting for the first byte; 0 at the end, or where it was cut."""
        try:
            return self._response.readinto1(buffer)
        except Exception:
            with _as_os_error():
                raise

    def read_all(self, limit: int) -> bytes:
        """The whole body. Raises OSError for one that is cut, or longer than ``limit``."""
        # Piece by piece: old Pythons allocate what is asked for, not what comes.
        pieces, size = [], 0
        with _as_os_error():
            while piece := self._response.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise OSError(errno.EMSGSIZE, f"an answer of more than {limit} bytes")
            if self._response.length:
                raise OSError(errno.EPROTO, "the connection ended in the middle of an answer")
        return b"".join(pieces)

    def close(self) -> None:
        whole = self._response.isclosed() or self._response.length == 0
        self._response.close()
        if whole and not self._response.will_close:
            self._wire.keep(self._key, self._connection)
        else:
            self._connection.close()


_Key = tuple[str, str, int, t.Optional[str]]


class Wire:
    """Connections by scheme, host, port and proxy. Safe to use from several threads: each has its own."""

    def __init__(self, user_agent: str) -> None:
        self._user_agent, self._proxies = user_agent, Proxies()
        self._local = threading.local()
        self._all: set[http.client.HTTPConnection] = set()
        self._tls: ssl.SSLContext | None = None
        self._tls_lock = threading.Lock()

    def get(self, url: str, headers: Mapping[str, str], timeout: float) -> Answer:
        """Send a GET; ``timeout`` in seconds without a byte, connecting included. Raises OSError."""
        with _as_os_error():
            parts = urlsplit(url)
            host = parts.hostname or ""
            port = parts.port or (443 if parts.scheme == "https" else 80)
        key = (parts.scheme, host, port, self._proxies.find(parts.scheme, host, port))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        kept = self._kept().pop(key, None)
        with _as_os_error():
            if kept is not None:
                try:
                    return self._send(kept, key, url, target, headers, timeout)
                except (TimeoutError, socket.timeout):  # two classes before Python 3.10
                    kept.close()
                    raise
                except (OSError, http.client.HTTPException):
                    kept.close()  # the other side may close a connection at any time between two requests
            return self._send(self._connect(key, timeout), key, url, target, headers, timeout)

    def keep(self, key: _Key, connection: http.client.HTTPConnection) -> None:
        """Use the connection for this thread's next request to the same place."""
        if self._kept().setdefault(key, connection) is not connection:
            connection.close()

    def __del__(self) -> None:
        for connection in self._all:
            connection.close()

    def _kept(self) -> dict[_Key, http.client.HTTPConnection]:
        if not hasattr(self._local, "kept"):
            self._local.kept = {}
        kept: dict[_Key, http.client.HTTPConnection] = self._local.kept
        return kept

    def _send(
        self,
        connection: http.client.HTTPConnection,
        key: _Key,
        url: str,
        target: str,
        headers: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        scheme, _host, _port, proxy = key
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        extra: dict[str, str] = {}
        if proxy is not None and scheme == "http":
            target = f"http://{urlsplit(url).netloc.rpartition('@')[2]}{target}"
            extra = _proxy_headers(proxy)
        try:
            connection.putrequest("GET", target, skip_accept_encoding=True, skip_host=bool(extra) or proxy is not None)
            if proxy is not None:
                connection.putheader("Host", urlsplit(url).netloc.rpartition("@")[2])
            for name, value in {
                "User-Agent": self._user_agent,
                "Accept-Encoding": "identity",
                **extra,
                **headers,
            }.items():
                connection.putheader(name, value)
            connection.endheaders()
            return Answer(self, key, connection, url)
        except BaseException:
            connection.close()
            raise

    def _connect(self, key: _Key, timeout: float) -> http.client.HTTPConnection:
        scheme, host, port, proxy = key
        address, at = (host, port) if proxy is None else _proxy_address(proxy)
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(address, at, timeout=timeout, context=self._context())
            if proxy is not None:
                connection.set_tunnel(host, port, _proxy_headers(proxy))
        else:
            connection = http.client.HTTPConnection(address, at, timeout=timeout)
        connection.response_class = _Response
        self._all.add(connection)
        connection.connect()
        return connection

    def _context(self) -> ssl.SSLContext:
        import ssl

        with self._tls_lock:  # reading the authorities' certificates takes a while: once, and only where needed
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls


def _proxy_address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise OSError(errno.EINVAL, "the proxy variables name no http:// proxy, and no other kind is supported")
    return parts.hostname, parts.port or 80


def _proxy_headers(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(secret).decode()}


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except http.client.RemoteDisconnected as exc:
        raise OSError(errno.ECONNRESET, "the connection was closed without an answer") from exc
    except OSError:  # a certificate that is not trusted is a ValueError, too
        raise
    except http.client.IncompleteRead as exc:
        raise OSError(errno.EPROTO, "the connection ended in the middle of an answer") from exc
    except (http.client.HTTPException, UnicodeError, ValueError) as exc:
        # ValueError: a port that is no number, a host name that IDNA refuses, a header with a line end.
        raise OSError(errno.EPROTO, f"{type(exc).__name__}: {exc}") from exc
