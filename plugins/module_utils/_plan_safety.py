# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a plan needs an explicit yes for: code of a model's author, pickles, and ports that are open to everyone.

Pure functions, no I/O. A yes stands in the inventory, where a colleague can read it: for the fleet as a variable, or on
the one service that needs it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import is_pickle
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_ports import bind_address
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_maps import API_KEY_VARIABLE

REMOTE_CODE = "trust-remote-code"
# argparse takes the beginning of a flag for the flag: "tr" was enough before there were others that begin so.
SHORTEST_REMOTE_CODE = "tr"
# These formats read pickles, whatever else lies beside them.
PICKLE_FORMATS = ("pt", "npcache")
WEIGHTS = (".safetensors", ".gguf")
# What inet_aton(3) reads as a number, and so does the bind of a server: 0, 0x0, 10.1, 127.1.
NUMERIC = re.compile(r"[0-9][0-9a-fx.]*", re.IGNORECASE)
Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Models = t.Mapping[str, t.Mapping[str, t.Any]]


def check_safety(
    services: t.Sequence[Service], settings: Settings, device: str = "cuda", models: Models | None = None
) -> list[Finding]:
    """Whatever of these services needs a yes that the inventory does not say.

    ``models`` is what ``vllm_model_info`` returned, by ``OWNER/NAME@REVISION``; what is not known is held against none.
    """
    findings: list[Finding] = []
    for service in services:
        findings += _remote_code(service, settings, device)
        findings += _pickle(service, settings, device, models or {})
        findings += _public_bind(service, settings)
        findings += _no_api_key(service, settings)
    return findings


# --- code of the model's author --------------------------------------------------------------------------------------


def _remote_code(service: Service, settings: Settings, device: str) -> list[Finding]:
    flag, where = _remote_code_flag(service, settings, device)
    if not flag or _allowed(service.allow_remote_code, settings.allow_remote_code):
        return []
    return [
        Finding(
            "plan.remote_code",
            ERROR,
            f"{flag} is set {where}: the engine would run the Python code that {service.model} brings along",
            "a yes from somebody who read that code, or a model that vLLM knows by itself",
            f"delete {flag}; or pin revision: to the commit that was read, and set allow_remote_code: true on the "
            "service (vllm_allow_remote_code: true for all)",
            service.name,
        )
    ]


def _remote_code_flag(service: Service, settings: Settings, device: str) -> tuple[str, str]:
    """The flag as it is spelled, and where; empty where it is not set, or a nearer place says no."""
    for arguments, where in _places(service, settings, device):
        for flag, value in arguments.items():
            bare = flag.removeprefix("no-")
            if REMOTE_CODE.startswith(bare) and bare.startswith(SHORTEST_REMOTE_CODE):
                on = value is not False and bare == flag
                return (flag, where) if on else ("", "")
    return "", ""


def _places(service: Service, settings: Settings, device: str) -> t.Iterator[tuple[t.Mapping[str, t.Any], str]]:
    """Where flags stand, the one that decides first."""
    yield service.args, "under args"
    if device == "cpu":
        yield settings.cpu_args, "in vllm_cpu_args"
    yield settings.default_args, "in vllm_default_args"


def _allowed(own: bool | None, fleet: bool) -> bool:
    """The word of the service counts for more, either way."""
    return fleet if own is None else own


# --- pickles ---------------------------------------------------------------------------------------------------------


def _pickle(service: Service, settings: Settings, device: str, models: Models) -> list[Finding]:
    if settings.allow_pickle:
        return []
    expected = "safetensors (or GGUF), which hold numbers and nothing to run"
    trusted = "set vllm_artifact_allow_pickle: true if you trust who made the files"
    remedy = f"take a repository or revision that has them; or {trusted}"
    for arguments, where in _places(service, settings, device):
        chosen = str(arguments.get("load-format") or "")
        if chosen in PICKLE_FORMATS:
            seen = f"load-format is {chosen} {where}: it loads Python pickles, and loading one can run code"
            return [Finding("plan.pickle", ERROR, seen, expected, f"delete load-format; or {trusted}", service.name)]
        if chosen:
            break
    pickles = only_pickles(models.get(f"{service.model}@{service.revision}") or {})
    if not pickles:
        return []
    named = ", ".join(pickles[:2]) + (f" and {len(pickles) - 2} more" if len(pickles) > 2 else "")
    seen = f"the weights of {service.model} are Python pickles only ({named}), and loading one can run code"
    return [Finding("plan.pickle", ERROR, seen, expected, remedy, service.name)]


def only_pickles(model: t.Mapping[str, t.Any]) -> list[str]:
    """The pickles of a model that has no other weights; none where its files are not known."""
    files = _files(model)
    return [] if any(name.lower().endswith(WEIGHTS) for name in files) else [name for name in files if is_pickle(name)]


def _files(model: t.Mapping[str, t.Any]) -> list[str]:
    """Paths of a model's files, from whichever listing is there; they come from a hub, so any type is possible."""
    weights = model.get("weights")
    listings = [model.get("files"), weights.get("files") if isinstance(weights, t.Mapping) else None]
    listing = next((one for one in listings if isinstance(one, (list, tuple))), ())
    names = [entry.get("path") if isinstance(entry, t.Mapping) else entry for entry in listing]
    return sorted(name for name in names if isinstance(name, str))


# --- ports -----------------------------------------------------------------------------------------------------------


def _public_bind(service: Service, settings: Settings) -> list[Finding]:
    address = bind_address(service, settings)
    what = _publicness(address)
    if not what or _allowed(service.allow_public_bind, settings.allow_public_bind):
        return []
    where = "bind_address: of the service" if service.bind_address else "vllm_bind_address"
    return [
        Finding(
            "plan.public_bind",
            ERROR,
            f"it would listen on {address or 'all addresses'} ({what})",
            "an address of a network of your own, or a yes to being open to everyone who reaches the host",
            f"set {where} to such an address ({{{{ ansible_host }}}} is often one); or set allow_public_bind: true "
            "on the service (vllm_allow_public_bind: true for all)",
            service.name,
        )
    ]


def _publicness(address: str) -> str:
    """Why an address is open to more than one's own network; empty where it is not, or a name does not tell."""
    number = numeric_address(address)
    if not address or (number is not None and number.is_unspecified):
        return "every network of the host"
    if number is not None and number.is_global and not number.is_multicast:
        return "an address of the public internet"
    return ""


def numeric_address(address: str) -> Address | None:
    """The address behind a text, also one in the short forms that a bind takes (``0`` is all); none for names."""
    try:
        number: Address = ipaddress.ip_address(address)
    except ValueError:
        return _short_form(address)
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return mapped or number


def _short_form(address: str) -> Address | None:
    if not NUMERIC.fullmatch(address):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(address))
    except (OSError, ValueError):
        return None


def beyond_loopback(address: str) -> bool:
    """Whether others than the host itself reach it; a name other than localhost is taken to be one that they can."""
    number = numeric_address(address)
    return not number.is_loopback if number is not None else address.lower() != "localhost"


def _no_api_key(service: Service, settings: Settings) -> list[Finding]:
    address = bind_address(service, settings)
    if API_KEY_VARIABLE in service.secret_names or not beyond_loopback(address):
        return []
    return [
        Finding(
            "plan.no_api_key",
            WARNING,
            f"it listens on {address or 'all addresses'} and asks its clients for no key",
            "an API key wherever more than the host itself can send requests",
            f"set api_key: on {service.name} to a variable from ansible-vault (openssl rand -hex 24 makes a key)",
            service.name,
        )
    ]
