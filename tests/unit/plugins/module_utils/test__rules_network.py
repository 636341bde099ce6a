# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_network import RULES
from rules_case import DROP, IMAGE, PLAN, Case, ask, fails, holds, host, incomplete, passes, unknown

BARE = {"plan>runtime": "systemd"}
BIND = "plan>services>0>bind_address"
PROXY = {"hub>proxy": "http://proxy.example:3128"}
RAN = {
    "record>services": {
        artifact["services"][0]: {key: artifact[key] for key in ("model", "revision", "path")}
        for artifact in PLAN["artifacts"]
    }
}
ABSENT = {f"nvidia>container>images>{IMAGE}>present": False}
REFUSED = {"hub>status": None, "hub>error": "Connection refused."}
DOCKER = "nvidia>container>docker"
# No request can be made of it: nothing was resolved either.
UNUSABLE = {"hub>endpoint": "ftp://x", "hub>host": None, "hub>addresses": [], "hub>seconds": None, "hub>status": None,
            "hub>error": "endpoint ftp://x is not usable"}  # fmt: skip

CASES = [
    passes("network.bind_address"),
    passes("network.bind_address", {BIND: "0.0.0.0"}),
    passes("network.bind_address", {BIND: "10.0.0.11"}),
    passes("network.bind_address", {BIND: "fe80:0::a8bb:ccff:fe01:1"}),
    passes("network.bind_address", {BIND: "gpu-01.example", **BARE}),
    fails("network.bind_address", "error", "would listen on 10.0.0.12, and the host has 10.0.0.11, 172.17.0.1",
          {BIND: "10.0.0.12"}),
    unknown("network.bind_address", {BIND: "10.0.0.12", "addresses": None}),
    passes("network.docker_proxy"),
    passes("network.docker_proxy", PROXY),
    passes("network.docker_proxy", {**PROXY, **ABSENT, **BARE}),
    passes("network.docker_proxy", {**PROXY, **ABSENT, f"{DOCKER}>http_proxy": "http://proxy.example:3128"}),
    fails("network.docker_proxy", "warning", "goes through http://proxy.example:3128, Docker through none",
          {**PROXY, **ABSENT}),
    unknown("network.docker_proxy", {**PROXY, **ABSENT, f"{DOCKER}>http_proxy": DROP}),
    passes("hub.name"),
    passes("hub.name", {"hub": None}),
    passes("hub.name", {"hub>addresses": [], **PROXY}),
    fails("hub.name", "error", "modelscope.cn does not resolve", {"hub>addresses": []}),
    fails("hub.name", "warning", "modelscope.cn does not resolve", {"hub>addresses": [], **RAN}),
    fails("hub.name", "warning", "does not resolve",
          {"hub>addresses": [], "settings>vllm_artifact_distribution": "swarm"}),
    unknown("hub.name", {"hub>addresses": None}),
    passes("hub.unreachable"),
    passes("hub.unreachable", {"hub": None}),
    passes("hub.unreachable", {"hub>status": 404}),
    passes("hub.unreachable", {"hub>addresses": [], **REFUSED}),
    fails("hub.unreachable", "error", "https://modelscope.cn: Connection refused", REFUSED),
    fails("hub.unreachable", "warning", "Connection refused", {**REFUSED, **RAN}),
    fails("hub.unreachable", "error", "HTTP status 503", {"hub>status": 503}),
    fails("hub.unreachable", "error", "through http://proxy.example:3128: HTTP status 407",
          {"hub>status": 407, **PROXY}),
    unknown("hub.unreachable", {"hub>status": None}),
    passes("hub.name", UNUSABLE),
    fails("hub.unreachable", "error", "vllm_hub_endpoint ftp://x is not usable", UNUSABLE),
    fails("hub.unreachable", "error", "the token holds characters",
          {**UNUSABLE, "hub>endpoint": "https://modelscope.cn", "hub>error": "the token holds characters"}),
    passes("hub.slow"),
    passes("hub.slow", {"hub>seconds": None, "hub>error": "timed out"}),
    fails("hub.slow", "warning", "took 12.0 s", {"hub>seconds": 12.0}),
    unknown("hub.slow", {"hub>seconds": None}),
    passes("hub.token"),
    passes("hub.token", {"hub>token": "accepted"}),
    passes("hub.token", {"hub>token": None, **REFUSED}),
    fails("hub.token", "error", "refused the token", {"hub>token": "refused"}),
    fails("hub.token", "warning", "refused the token", {"hub>token": "refused", **RAN}),
    fails("hub.token", "error", "answers 401, and no token is set", {"hub>status": 401}),
    unknown("hub.token", {"hub>token": None}),
    passes("hub.plain_token"),
    passes("hub.plain_token", {"hub>endpoint": "http://mirror.example"}),
    passes("hub.plain_token",
           {"hub>endpoint": "http://127.0.0.1:8790", "hub>host": "127.0.0.1", "hub>token": "accepted"}),
    fails("hub.plain_token", "warning", "goes to http://mirror.example",
          {"hub>endpoint": "http://mirror.example", "hub>host": "mirror.example", "hub>token": "accepted"}),
    unknown("hub.plain_token", {"hub>endpoint": "http://mirror.example", "hub>token": None}),
    passes("hub.proxy_to_private"),
    passes("hub.proxy_to_private", PROXY),
    fails("hub.proxy_to_private", "warning", "modelscope.cn (10.0.0.5) is asked through",
          {"hub>addresses": ["10.0.0.5"], **PROXY}),
    unknown("hub.proxy_to_private", {"hub>addresses": None, **PROXY}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.code.startswith("hub.")], ids=lambda rule: rule.code)
def test_a_host_that_was_not_to_ask_a_hub_hears_nothing_of_it(rule: t.Any) -> None:
    for hub in (None, {"endpoint": None}):
        assert rule.check(host({"hub": hub})) is None


def test_a_proxy_for_docker_is_something_to_paste() -> None:
    _rule, verdict = ask(RULES, fails("network.docker_proxy", "warning", "", {**PROXY, **ABSENT}))
    assert '"proxies": {"http-proxy": "http://proxy.example:3128"' in verdict[0].remedy


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        (UNUSABLE, "write vllm_hub_endpoint as https://HOST or http://HOST"),
        ({**UNUSABLE, "hub>error": "the token holds characters that no token has"}, "correct vllm_hub_token"),
        (
            {**UNUSABLE, "hub>error": "a token is set and the endpoint http://x is plain http"},
            "write https:// in vllm_hub_endpoint",
        ),
        (
            {**REFUSED, "hub>endpoint": "https://127.0.0.1:8790",
             "hub>error": "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"},
            "write http://127.0.0.1:8790 in vllm_hub_endpoint, if what listens there has no TLS",
        ),
        ({**REFUSED, "hub>error": "[SSL: WRONG_VERSION_NUMBER] wrong version", **PROXY}, "'curl -sSI"),
        (REFUSED, "'curl -sSI https://modelscope.cn'"),
    ],
)  # fmt: skip
def test_what_helps_where_the_endpoint_is_wrong(facts: dict[str, t.Any], remedy: str) -> None:
    _rule, verdict = ask(RULES, fails("hub.unreachable", "error", "", facts))
    assert verdict[0].remedy.startswith(remedy)


def test_an_address_that_the_plan_would_refuse_is_not_recommended() -> None:
    _rule, verdict = ask(RULES, fails("network.bind_address", "error", "", {BIND: "10.0.0.12"}))
    assert "0.0.0.0" not in verdict[0].remedy
    assert "127.0.0.1" in verdict[0].remedy
