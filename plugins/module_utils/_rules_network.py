# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about addresses, and about the way to the model hub. Pure, no I/O."""

from __future__ import annotations

import ipaddress

from ansible_collections.gpufleet.vllm.plugins.module_utils._addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_hub import REMEDIES
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_disk import to_fetch
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    Map,
    contained,
    dig,
    docker,
    listed,
    mapping,
    number,
    service_name,
    services,
    setting,
    short_image,
    text,
    texts,
    whole,
)

RULES: list[Rule] = []
rule = rules_into(RULES)

SLOW_SECONDS = 5


def address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # An IPv6 address of one link may name its interface.
        return ipaddress.ip_address(value.partition("%")[0].strip("[]"))
    except ValueError:
        return None


@rule(
    "network.bind_address", ERROR, "The host has each address that a service listens on",
    "A service or a published port on an address of another host ends with cannot assign requested address (bind(2)).",
)  # fmt: skip
def bind_address(context: Context) -> Verdict:
    told = mapping(context.facts).get("addresses")
    found, silent = [], []
    have = {found for found in (address(one) for one in texts(told)) if found}
    for service in services(context):
        wanted = address(text(service.get("bind_address")))
        # A name is resolved on the host; a wildcard and a loopback address are everybody's.
        if wanted is None or wanted.is_unspecified or wanted.is_loopback:
            continue
        if not isinstance(told, list):
            silent.append(service_name(service))
        elif wanted not in have:
            theirs = listed(sorted(str(one) for one in have if not one.is_loopback and not one.is_link_local), 6)
            remedy = "set bind_address: (or vllm_bind_address) to an address of the host ('ip -brief address'), or to "
            remedy += "127.0.0.1 where only the host itself asks it"
            seen = f"it would listen on {wanted}, and the host has {theirs or 'no other address than loopback'}"
            found.append(Failure(seen, "an address of this host", remedy, service_name(service)))
    return Unknown("the addresses of the host are not told") if silent and not found else found


@rule(
    "network.docker_proxy", WARNING, "Docker has the proxy that the host goes through",
    "Docker's daemon does not read the environment of a shell: without a proxy of its own it pulls no image (Docker: "
    "Daemon proxy configuration).",
)  # fmt: skip
def docker_proxy(context: Context) -> Verdict:
    hub = mapping(mapping(context.facts).get("hub"))
    proxy = text(hub.get("proxy"))
    if not contained(context) or not proxy or setting(context, "vllm_image_pull") == "never":
        return None
    images = mapping(dig(context.facts, "nvidia", "container", "images"))
    absent = [
        short_image(service)
        for service in services(context)
        if mapping(images.get(text(service.get("image")))).get("present") is not True
    ]
    if not absent or text(docker(context).get("http_proxy")):
        return None
    if "http_proxy" not in docker(context):
        return Unknown("whether Docker has a proxy is not told")
    proxies = f'"proxies": {{"http-proxy": "{proxy}", "https-proxy": "{proxy}"}}'
    remedy = f"set {proxies} in /etc/docker/daemon.json, then 'systemctl restart docker'"
    seen = f"the host goes through {proxy}, Docker through none, and {listed(sorted(set(absent)))} is to be pulled"
    return [Failure(seen, "a proxy for Docker, or the image on the host", remedy)]


# ---- the hub


def _hub(context: Context) -> Map:
    return mapping(mapping(context.facts).get("hub"))


def _asked(context: Context) -> bool:
    """Whether the host was to ask a hub at all."""
    return bool(_hub(context)) and bool(text(_hub(context).get("endpoint")))


def _grade(context: Context) -> str:
    """A hub that cannot be reached stops a host that has to fetch from it, and only warns one that need not."""
    # In a swarm, or from a seed, other hosts have the files too.
    direct = setting(context, "vllm_artifact_distribution") in (None, "", "direct")
    return ERROR if direct and to_fetch(context) else WARNING


def _place(context: Context) -> str:
    return text(_hub(context).get("endpoint"))


def _never_asked(hub: Map) -> bool:
    """Whether no request could be made at all of what was set."""
    return "host" in hub and hub["host"] is None and bool(text(hub.get("error")))


def _usable(error: str) -> str:
    if "plain http" in error:
        return REMEDIES["hub.token_over_http"]
    if error.startswith("the token"):
        return REMEDIES["hub.bad_token"]
    return "write vllm_hub_endpoint as https://HOST or http://HOST:PORT"


@rule(
    "hub.name", ERROR, "The hub's name resolves on the host",
    "Models are fetched on the hosts, so that each of them needs DNS for the hub, or a proxy that resolves it.",
)  # fmt: skip
def name(context: Context) -> Verdict:
    hub = _hub(context)
    # Through a proxy the host resolves nothing itself.
    if not _asked(context) or text(hub.get("proxy")) or _never_asked(hub):
        return None
    if not isinstance(hub.get("addresses"), list):
        return Unknown(f"whether {_place(context)} resolves is not told")
    if texts(hub.get("addresses")):
        return None
    where = text(hub.get("host")) or _place(context)
    remedy = f"look with 'getent hosts {where}' and 'resolvectl status', or set vllm_hub_endpoint to a mirror"
    return [Failure(f"{where} does not resolve", "an address", remedy, severity=_grade(context))]


@rule(
    "hub.unreachable", ERROR, "The host reaches the hub",
    "A firewall, a proxy or a certificate in between shows here in a second, and in a deploy after its retries.",
)  # fmt: skip
def unreachable(context: Context) -> Verdict:
    hub = _hub(context)
    if not _asked(context):
        return None
    if _never_asked(hub):
        seen = text(hub.get("error")).replace("endpoint ", "vllm_hub_endpoint ", 1)
        return [Failure(seen, "a hub that can be asked", _usable(seen), severity=_grade(context))]
    if isinstance(hub.get("addresses"), list) and not hub["addresses"] and not text(hub.get("proxy")):
        return None
    error, status = text(hub.get("error")), whole(hub.get("status"))
    if not error and status is None:
        return Unknown(f"what {_place(context)} answered is not told")
    if status is not None and status < 500 and status != 407:
        return None
    way = f" through {text(hub.get('proxy'))}" if text(hub.get("proxy")) else ""
    seen = f"{_place(context)}{way}: {error.rstrip('.') or f'HTTP status {status}'}"
    remedy = (
        f"'curl -sSI {_place(context)}' on the host says more; allow it in the firewall, set https_proxy for the host, "
        "or vllm_hub_endpoint to a mirror"
    )
    if "WRONG_VERSION_NUMBER" in error and not way and _place(context).startswith("https://"):
        plain = _place(context).replace("https://", "http://", 1)
        remedy = (
            f"write {plain} in vllm_hub_endpoint, if what listens there has no TLS: without a scheme, https is meant"
        )
    if status == 407:
        remedy = "put the user and password of the proxy into https_proxy of the host's environment (/etc/environment)"
    return [Failure(seen, "an answer", remedy, severity=_grade(context))]


@rule(
    "hub.slow", WARNING, "The hub answers fast",
    "Each file costs at least a request: a hub that is seconds away makes a model of many files take long.",
)  # fmt: skip
def slow(context: Context) -> Verdict:
    hub = _hub(context)
    if not _asked(context) or text(hub.get("error")):
        return None
    seconds = number(hub.get("seconds"))
    if seconds is None:
        return Unknown(f"how fast {_place(context)} answers is not told")
    if seconds <= SLOW_SECONDS:
        return None
    remedy = (
        "set vllm_hub_endpoint to a mirror near the hosts (playbooks/mirror.yml), or vllm_artifact_distribution: swarm"
    )
    return [Failure(f"{_place(context)} took {seconds:.1f} s for one answer", f"{SLOW_SECONDS} s or less", remedy)]


@rule(
    "hub.token", ERROR, "The hub accepts the token, or asks for none",
    "A refused token stops the download of private and gated models, and with some hubs of public ones.",
)  # fmt: skip
def token(context: Context) -> Verdict:
    hub = _hub(context)
    if not _asked(context):
        return None
    state, status = text(hub.get("token")), whole(hub.get("status"))
    if text(hub.get("error")) and status is None:
        return None
    if state == "refused":
        remedy = "set vllm_hub_token to a token that is valid (the hub's page of access tokens), or delete it"
        return [
            Failure(
                f"{_place(context)} refused the token", "a token that is accepted", remedy, severity=_grade(context)
            )
        ]
    if state == "none" and status in (401, 403):
        seen = f"{_place(context)} answers {status}, and no token is set"
        return [Failure(seen, "a token", "set vllm_hub_token, best from a vault", severity=_grade(context))]
    if state not in ("accepted", "none"):
        return Unknown("whether the hub accepts the token is not told")
    return None


@rule(
    "hub.plain_token", WARNING, "The token goes over TLS",
    "Over plain HTTP everyone on the way reads the token.",
)  # fmt: skip
def plain_token(context: Context) -> Verdict:
    hub = _hub(context)
    if not _asked(context) or not _place(context).lower().startswith("http://"):
        return None
    if not text(hub.get("token")):
        return Unknown("whether a token is sent is not told")
    if hub.get("token") == "none" or is_loopback(text(hub.get("host"))):
        return None
    remedy = "set vllm_hub_endpoint to https://, or leave vllm_hub_token empty where the mirror asks for none"
    return [Failure(f"the token goes to {_place(context)}", "https://", remedy)]


@rule(
    "hub.proxy_to_private", WARNING, "A mirror in the own network is asked without the proxy",
    "A proxy for the way out often refuses addresses inside, and is a detour for hundreds of GiB.",
)  # fmt: skip
def proxy_to_private(context: Context) -> Verdict:
    hub = _hub(context)
    proxy = text(hub.get("proxy"))
    if not _asked(context) or not proxy:
        return None
    if not isinstance(hub.get("addresses"), list):
        return Unknown("the hub's addresses are not told")
    inside = [one for one in (address(item) for item in texts(hub.get("addresses"))) if one and one.is_private]
    if not inside:
        return None
    where = text(hub.get("host")) or _place(context)
    remedy = f"add {where} to no_proxy in the environment of the host (/etc/environment)"
    return [Failure(f"{where} ({inside[0]}) is asked through {proxy}", "a direct way", remedy)]
