# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Addresses and ports of services: who would listen where, and who does already. Pure, no I/O."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_settings import Facts, Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service

WILDCARDS = ("", "0.0.0.0", "::")


LOOPBACK = "127.0.0.1"


def bind_address(service: Service, settings: Settings) -> str:
    return service.bind_address or settings.bind_address


def clash(first: str, second: str) -> bool:
    """Whether two listeners on one port meet. ``::`` takes IPv4 too (Linux's default), ``0.0.0.0`` takes no IPv6."""
    pair = {LOOPBACK if address == "localhost" else _canonical(address) for address in (first, second)}
    if len(pair) == 1 or pair & {"", "::"}:
        return True
    return "0.0.0.0" in pair and not any(is_ipv6(address) for address in pair)


def _canonical(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    # ::ffff:10.0.0.1 is how a socket of both kinds names the IPv4 address.
    return str(getattr(found, "ipv4_mapped", None) or found)


def check_ports(services: t.Sequence[Service], settings: Settings, facts: Facts) -> list[Finding]:
    """One service per address and port, and no port that something else on the host already listens on."""
    findings: list[Finding] = []
    for position, service in enumerate(services):
        address = bind_address(service, settings)
        for other in services[:position]:
            if other.port == service.port and clash(address, bind_address(other, settings)):
                seen = f"port {service.port} is already the port of {other.name}"
                remedy = f"set another port: for {service.name}"
                findings.append(
                    Finding(
                        "plan.port_shared",
                        ERROR,
                        seen,
                        "one service per port and address",
                        remedy,
                        service.name,
                    )
                )
        findings += _foreign_listeners(service, address, facts)
    return findings


def listeners(facts: Facts) -> list[t.Mapping[str, t.Any]]:
    """What listens on the host, each with an address and a port."""
    listed = facts.get("listening")
    return [
        item
        for item in (listed if isinstance(listed, (list, tuple)) else [])
        if isinstance(item, t.Mapping) and isinstance(item.get("address"), str) and isinstance(item.get("port"), int)
    ]


def _foreign_listeners(service: Service, address: str, facts: Facts) -> list[Finding]:
    for listener in listeners(facts):
        # A service of ours holds its own port, and a port that services swap is free once they have been stopped.
        if listener["port"] != service.port or listener.get("service") or not clash(address, listener["address"]):
            continue
        who = f"{listener.get('process') or 'a process of another user'}"
        pid = f" (pid {listener['pid']})" if listener.get("pid") else ""
        seen = f"port {service.port} is in use by {who}{pid} on {listener['address']}"
        remedy = f"stop it, or set another port: for {service.name}"
        return [
            Finding(
                "plan.port_taken",
                ERROR,
                seen,
                f"port {service.port} free on {address or 'all'}",
                remedy,
                service.name,
            )
        ]
    return []


def probe_host(address: str) -> str:
    """Where the host itself reaches a service that listens on ``address``."""
    if address in WILDCARDS:
        return "[::1]" if address == "::" else LOOPBACK
    return f"[{address}]" if is_ipv6(address) else address


def public_host(address: str, settings: Settings) -> str:
    if address in WILDCARDS and settings.address:
        return f"[{settings.address}]" if is_ipv6(settings.address) else settings.address
    return probe_host(address)


def is_ipv6(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 6
    except ValueError:
        return False
