# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A host's addresses, and whether it reaches the model hub: name, proxy, one small request, token."""

from __future__ import annotations

import contextlib
import re
import socket
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._host import read
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import USER_AGENT, HubClient, parse_endpoint, safe_url
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import describe
from ansible_collections.gpufleet.vllm.plugins.module_utils._wire import Proxies, Wire

HUB_SECONDS = 5.0

# --------------------------------------------------------------------------------------------------------------------
# Addresses
# --------------------------------------------------------------------------------------------------------------------

_LEAF = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)$")


def parse_fib_trie(text: str) -> list[str]:
    """The IPv4 addresses of this host, of /proc/net/fib_trie."""
    found: dict[str, None] = {}
    leaf = ""
    for line in text.splitlines():
        match = _LEAF.search(line)
        if match:
            leaf = match.group(1)
        elif leaf and "/32 host LOCAL" in line:
            found[leaf] = None
    return list(found)


def parse_if_inet6(text: str) -> list[str]:
    """The IPv6 addresses of this host, of /proc/net/if_inet6."""
    found = []
    for line in text.splitlines():
        word = line.split(" ", 1)[0]
        with contextlib.suppress(ValueError, OSError):
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(word)))
    return found


def addresses() -> list[str]:
    return [*parse_fib_trie(read("/proc/net/fib_trie")), *parse_if_inet6(read("/proc/net/if_inet6"))]


# --------------------------------------------------------------------------------------------------------------------
# The hub
# --------------------------------------------------------------------------------------------------------------------

# The cheapest that a hub answers to anyone, and to the owner of a token only.
_ANYONE, _OWNER = "/api/v1/repos/internalAccelerationInfo", "/openapi/v1/users/me"
_TOKEN = {200: "accepted", 401: "refused", 403: "refused"}


def hub(endpoint: str, token: str) -> dict[str, t.Any]:
    """One request to the hub, with the token where there is one. Raises nothing: ``error`` says what went wrong."""
    facts: dict[str, t.Any] = {
        "endpoint": safe_url(endpoint),
        "host": None,
        "addresses": [],
        "seconds": None,
        "status": None,
        "proxy": None,
        "error": None,
        "token": None if token else "none",
    }
    try:
        # The client refuses a token that it would have to send in clear.
        client = HubClient(parse_endpoint(endpoint), token or None, HUB_SECONDS)
    except FleetError as error:
        facts["error"] = error.seen
        return facts
    scheme, host, port = client.endpoint.origin
    proxy = Proxies().find(scheme, host, port)
    facts["endpoint"], facts["host"] = client.endpoint.url, host
    facts["proxy"] = safe_url(proxy) if proxy else None
    try:
        facts["addresses"] = resolve(host, port)
    except OSError as error:
        # Behind a proxy it is the proxy that has to know the name.
        if proxy is None:
            facts["error"] = f"the name {host} can not be resolved: {describe(error)}"
            return facts
    start = time.monotonic()
    try:
        status = _ask(client.endpoint.url + (_OWNER if token else _ANYONE), token)
    except OSError as error:
        facts["error"] = describe(error)
        return facts
    facts["seconds"], facts["status"] = round(time.monotonic() - start, 3), status
    if token:
        facts["token"] = _TOKEN.get(status)
    return facts


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, at most eight. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(0, f"{host} is no host name") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:8]


def _ask(url: str, token: str) -> int:
    wire = Wire(USER_AGENT)
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    answer = wire.get(url, headers, HUB_SECONDS)
    try:
        return answer.status
    finally:
        answer.close()
