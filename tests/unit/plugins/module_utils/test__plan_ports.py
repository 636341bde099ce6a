# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from plan_case import codes, facts, only, plan, service


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("", "", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "10.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::", "0.0.0.0", True),
        ("0.0.0.0", "::1", False),
        ("::1", "127.0.0.1", False),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("localhost", "127.0.0.1", True),
        ("gpu-01", "gpu-01", True),
    ],
)
def test_two_services_on_one_port(first: str, second: str, clash: bool) -> None:
    planned = plan(service("a", bind_address=first), service("b", bind_address=second))
    assert codes(planned) == ([("plan.port_shared", "b")] if clash else [])
    assert codes(plan(service("a", bind_address=first), service("b", bind_address=second, port=8001))) == []


@pytest.mark.parametrize(
    ("bind", "listener", "taken"),
    [
        ("127.0.0.1", {"address": "127.0.0.1"}, True),
        ("127.0.0.1", {"address": "0.0.0.0"}, True),
        ("127.0.0.1", {"address": "::"}, True),
        ("127.0.0.1", {"address": "::ffff:127.0.0.1"}, True),
        ("127.0.0.1", {"address": "::1"}, False),
        ("0.0.0.0", {"address": "::1"}, False),
        ("10.0.0.1", {"address": "127.0.0.1"}, False),
        ("127.0.0.1", {"address": "127.0.0.1", "port": 9000}, False),
        ("127.0.0.1", {"address": "127.0.0.1", "service": "chat"}, False),
        ("127.0.0.1", {"address": "127.0.0.1", "service": "an-older-one"}, False),
    ],
)
def test_ports_of_others(bind: str, listener: dict[str, t.Any], taken: bool) -> None:
    entry = {"port": 8000, "pid": 4242, "process": "nginx", "service": None, **listener}
    planned = plan(service(bind_address=bind), on=facts(listening=[entry]))
    assert codes(planned) == ([("plan.port_taken", "chat")] if taken else [])


@pytest.mark.parametrize(
    ("listener", "seen"),
    [
        ({"process": "nginx", "pid": 7}, "port 8000 is in use by nginx (pid 7) on 0.0.0.0"),
        ({"process": None, "pid": None}, "port 8000 is in use by a process of another user on 0.0.0.0"),
    ],
)
def test_who_holds_a_port(listener: dict[str, t.Any], seen: str) -> None:
    entry = {"address": "0.0.0.0", "port": 8000, "service": None, **listener}
    # Two sockets of one program are one finding.
    finding = only(plan(service(), on=facts(listening=[entry, {**entry, "address": "127.0.0.1"}])))
    assert (finding["seen"], finding["remedy"]) == (seen, "stop it, or set another port: for chat")
