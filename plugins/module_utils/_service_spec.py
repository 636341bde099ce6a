# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a user may write for a service: keys, types, defaults; raw dictionaries in, typed services and findings out."""

from __future__ import annotations

import ipaddress
import posixpath
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import GpuWish, parse_gpus
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_maps import (
    API_KEY_VARIABLE,
    arguments_of,
    environment_of,
    environment_text,
    has_control,
    long_enough,
    secret_environment_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import (
    Refused,
    integer,
    nearest,
    share,
    type_name,
)

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
IMAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]|:(?=[A-Za-z0-9]))*(?:@sha256:[0-9a-f]{64})?")
SIZE = re.compile(r"[1-9][0-9]{0,5}(?:[bkm]|[kmg]b|g)", re.IGNORECASE)

SHARE_FLAG = "gpu-memory-utilization"
# What vLLM calls it as well, since it serves on other devices.
SHARE_FLAGS = (SHARE_FLAG, "device-memory-utilization")
# Keys whose values are never shown, whatever is wrong with them; a plain environment may hold a secret by mistake.
_SHAPES: dict[str, type] = {"api_key": str, "args": dict, "environment": dict, "secret_environment": dict}
HIDDEN = tuple(_SHAPES)
PROBE_KINDS = ("chat", "completion", "vision", "transcription", "embedding")


@dataclass(frozen=True)
class Probe:
    """One real request; ``expect`` is a regular expression searched in the answer."""

    kind: str
    prompt: str = ""
    expect: str = ""
    max_tokens: int = 32

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "kind": self.kind,
            "prompt": self.prompt,
            "expect": self.expect,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True)
class Service:
    """A validated service. ``gpus`` is a count, indices and UUIDs, or a wish; ``None`` leaves the choice to the plan.

    ``gpu_memory_utilization`` stands in ``args`` as well, where vLLM's command line is made from.
    """

    name: str
    model: str
    revision: str = "master"
    path: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    served_model_name: str = ""
    gpus: int | tuple[int | str, ...] | GpuWish | None = None
    gpu_memory_utilization: float | None = None
    port: int = 8000
    bind_address: str = ""
    max_model_len: int | str | None = None
    tensor_parallel_size: int | None = None
    drain_seconds: int | None = None
    ready_timeout: int | None = None
    args: t.Mapping[str, t.Any] = field(default_factory=dict)
    environment: t.Mapping[str, str] = field(default_factory=dict)
    secret_names: tuple[str, ...] = ()
    probes: tuple[Probe, ...] | None = None
    image: str = ""
    shm_size: str = ""
    allow_remote_code: bool | None = None
    allow_public_bind: bool | None = None


def _text(value: t.Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused("a non-empty text")
    if has_control(value) or "\t" in value:
        raise Refused("a text without control characters or line breaks")
    return value


def _api_key(value: t.Any) -> str:
    if value == "":
        remedy = "set the variable that it comes from, or delete api_key: to serve without a key"
        raise Refused("a key, and not an empty text", remedy)
    return long_enough("api_key", _text(value))


def _boolean(value: t.Any) -> bool:
    # Templated values arrive as text.
    text = value.strip().lower() if isinstance(value, str) else value
    if text is not True and text is not False and text not in ("true", "false"):
        raise Refused("true or false")
    return text in (True, "true")


def _matching(pattern: t.Pattern[str], expected: str) -> t.Callable[[t.Any], str]:
    def convert(value: t.Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Refused(expected)
        return value

    return convert


def _absolute_path(value: t.Any) -> str:
    text = _text(value)
    # Two slashes in front are a path of their own to POSIX, and normpath keeps them.
    path = "/" + posixpath.normpath(text).lstrip("/")
    if not text.startswith("/") or ".." in text.split("/") or path == "/":
        raise Refused("an absolute path on the host below '/', without '..'")
    return path


def _bind_address(value: t.Any) -> str:
    text = _text(value)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not HOST_NAME.fullmatch(text):
            raise Refused("an address such as 127.0.0.1, 0.0.0.0 or ::1 (without brackets), or a host name") from None
    return text


def _texts(value: t.Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise Refused("a list of patterns")
    return tuple(_text(item) for item in items)


def _model_length(value: t.Any) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return integer(1, 100_000_000)(value)
    except Refused:
        raise Refused("a number of tokens, or 'auto' to fit the memory") from None


def _probe(value: t.Any) -> Probe:
    keys = ("kind", "prompt", "expect", "max_tokens")
    if not isinstance(value, dict) or not value.get("kind") or not set(value) <= set(keys):
        raise Refused(f"probes as mappings with {', '.join(keys)}")
    if value["kind"] not in PROBE_KINDS:
        raise Refused(f"a probe kind among {', '.join(PROBE_KINDS)}")
    expect = str(value.get("expect") or "")
    try:
        re.compile(expect)
    except re.error as exc:
        raise Refused(f"a regular expression under expect ('{expect}': {exc})") from None
    return Probe(
        kind=value["kind"],
        prompt=str(value.get("prompt") or ""),
        expect=expect,
        max_tokens=32 if value.get("max_tokens") is None else integer(1, 100_000)(value["max_tokens"]),
    )


def _probes(value: t.Any) -> tuple[Probe, ...]:
    if not isinstance(value, (list, tuple)):
        raise Refused("a list of probes")
    return tuple(_probe(item) for item in value)


_KEYS: dict[str, t.Callable[[t.Any], t.Any]] = {
    "name": _matching(NAME, "lower-case letters, digits and '-', at most 63, such as qwen-vl"),
    "model": _matching(MODEL, "a ModelScope id owner/name, such as Qwen/Qwen2.5-VL-7B-Instruct"),
    "revision": _text,
    "path": _absolute_path,
    "include": _texts,
    "exclude": _texts,
    "served_model_name": _text,
    "gpus": parse_gpus,
    "gpu_memory_utilization": share,
    "port": integer(1, 65535),
    "bind_address": _bind_address,
    "max_model_len": _model_length,
    "tensor_parallel_size": integer(1, 256),
    "drain_seconds": integer(0, 86_400),
    "ready_timeout": integer(1, 86_400),
    "args": arguments_of,
    "environment": environment_of,
    "secret_environment": secret_environment_of,
    "api_key": _api_key,
    "probes": _probes,
    "image": _matching(IMAGE, "an image such as vllm/vllm-openai:v0.33.0, with or without @sha256:..."),
    "shm_size": _matching(SIZE, "a size such as 16gb"),
    "allow_remote_code": _boolean,
    "allow_public_bind": _boolean,
}
KEYS = tuple(_KEYS)
_REQUIRED = ("name", "model")
# An empty value is a templated "not set", as `omit` would be. Not so here: a key that came out empty (a variable of the
# environment that is not set) would open the service to everyone.
_NEVER_EMPTY = (*_REQUIRED, "api_key")


def _unknown_key(key: str, service: str) -> Finding:
    guess = nearest(key, KEYS)
    remedy = f"write {guess}:" if guess else "delete the key; a vLLM flag belongs under args:"
    return Finding(
        code="service.unknown_key",
        severity=ERROR,
        seen=f"unknown key '{key}'",
        expected="keys among " + ", ".join(sorted(KEYS)),
        remedy=remedy,
        service=service,
    )


def _seen(key: str, value: t.Any, refused: Refused) -> str:
    """What was written under a key, without the value where that may be a secret."""
    if refused.seen:
        return refused.seen
    if value == "":
        return "is empty"
    if key not in HIDDEN:
        return f"is {value!r}"
    return f"is {type_name(value)}" if not isinstance(value, _SHAPES[key]) else "is a value that is hidden"


def _convert(key: str, value: t.Any, service: str) -> tuple[t.Any, list[Finding]]:
    try:
        return _KEYS[key](value), []
    except Refused as exc:
        return None, [
            Finding(
                code="service.bad_value",
                severity=ERROR,
                seen=f"{key} {_seen(key, value, one)}",
                expected=one.expected,
                remedy=one.remedy or f"correct {key}: in vllm_services",
                service=service,
            )
            for one in exc.each
        ]


def parse_service(raw: t.Any, position: int = 0) -> tuple[Service | None, list[Finding]]:
    """One raw entry of ``vllm_services`` into a service, or ``None`` and the findings that say why not."""
    label = f"entry {position + 1}"
    if not isinstance(raw, dict):
        # It may hold a secret: a key written as api_key=... is text.
        seen = f"{label} of vllm_services is a {type(raw).__name__}"
        return None, [
            Finding(
                "service.bad_value",
                ERROR,
                seen,
                "a mapping with name: and model:",
                "rewrite the entry",
            )
        ]
    service = str(raw.get("name") or label)
    findings = [_unknown_key(str(key), service) for key in raw if key not in _KEYS]
    values: dict[str, t.Any] = {}
    for key, value in raw.items():
        if key not in _KEYS or value is None or (value == "" and key not in _NEVER_EMPTY):
            continue
        values[key], found = _convert(key, value, service)
        findings += found
    for key in _REQUIRED:
        if key not in values:
            seen = f"{key} is missing"
            findings.append(
                Finding(
                    "service.missing_key",
                    ERROR,
                    seen,
                    f"every service has {key}:",
                    f"add {key}:",
                    service,
                )
            )
    findings += _share_into_arguments(values, service) if not findings else []
    if findings:
        return None, findings
    values["secret_names"] = tuple(sorted(secrets_of(values)))
    values.pop("api_key", None)
    values.pop("secret_environment", None)
    return Service(**values), []


def _share_into_arguments(values: dict[str, t.Any], service: str) -> list[Finding]:
    """``gpu_memory_utilization`` is a flag like those under ``args``, so it goes there; both set is a mistake."""
    if "gpu_memory_utilization" not in values:
        return []
    arguments = values.get("args") or {}
    spelled = share_flag(arguments)
    if spelled:
        seen = f"gpu_memory_utilization is set, and {spelled} under args too"
        remedy = f"delete {spelled} under args"
        return [Finding("service.set_twice", ERROR, seen, "one of the two", remedy, service)]
    values["args"] = {SHARE_FLAG: values["gpu_memory_utilization"], **arguments}
    return []


def share_flag(arguments: t.Mapping[str, t.Any]) -> str:
    """How ``gpu-memory-utilization`` is spelled among flags, or an empty string: vLLM takes a beginning for it too."""
    known = [flag for flag in arguments if flag.startswith(("gpu-m", "device-me"))]
    return next((flag for flag in known if any(name.startswith(flag) for name in SHARE_FLAGS)), "")


def secrets_of(raw: t.Mapping[str, t.Any]) -> dict[str, str]:
    """The secret environment of one raw service, API key included. It travels beside the plan, never inside it."""
    declared = raw.get("secret_environment")
    # Whatever is wrong with it is a finding of the plan; a teardown goes on without.
    declared = declared if isinstance(declared, t.Mapping) else {}
    secrets = {str(name): environment_text(value) for name, value in declared.items() if value is not None}
    if raw.get("api_key"):
        secrets[API_KEY_VARIABLE] = str(raw["api_key"])
    return secrets


def parse_setting(key: str, variable: str, value: t.Any) -> tuple[t.Any, list[Finding]]:
    """A fleet-wide default, held to what the ``key`` of a service may be; ``None`` where it cannot be used."""
    try:
        return _KEYS[key](value), []
    except Refused as exc:
        return None, [
            Finding(
                "plan.bad_setting",
                ERROR,
                f"{variable} {_seen(key, value, one)}",
                one.expected,
                one.remedy or f"correct {variable}",
            )
            for one in exc.each
        ]


AS_A_LIST = "start each with '- name:', or write JSON on the command line: -e '{\"vllm_services\": [{\"name\": ...}]}'"


def parse_services(raw: t.Any) -> tuple[list[Service], list[Finding]]:
    """All of ``vllm_services``; a name that stands twice is a finding too."""
    if not isinstance(raw, (list, tuple)):
        seen = f"vllm_services is {type_name(raw)}"
        return [], [Finding("service.bad_value", ERROR, seen, "a list of services", AS_A_LIST)]
    services: list[Service] = []
    findings: list[Finding] = []
    for position, entry in enumerate(raw):
        service, found = parse_service(entry, position)
        findings += found
        if service is None:
            continue
        if any(other.name == service.name for other in services):
            seen = f"two services are named '{service.name}'"
            findings.append(
                Finding(
                    "service.duplicate_name",
                    ERROR,
                    seen,
                    "one name per service",
                    "rename one",
                    service.name,
                )
            )
            continue
        services.append(service)
    return services, findings
