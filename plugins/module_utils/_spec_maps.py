# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What may stand under ``args``, ``environment`` and ``secret_environment``. Their values are never shown."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import Refused, refuse_all, type_name

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A dot leads into the JSON of a flag, as in compilation-config.cudagraph_mode.
FLAG = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9-]*(?:\.[A-Za-z0-9_]+)*")

# Flags that a key of the service (or the plan itself) decides: set twice, the last one would win in silence.
RESERVED_FLAGS = {
    "model": "model",
    "port": "port",
    "host": "bind_address",
    "served-model-name": "served_model_name",
    "tensor-parallel-size": "tensor_parallel_size",
    "max-model-len": "max_model_len",
    "shutdown-timeout": "drain_seconds",
    "api-key": "api_key",
}
# vLLM ignores `--config=FILE` in silence and drops `key: false` inside one, so flags are always spelled out.
REFUSED_FLAGS = {
    "config": "write each flag under args:",
    # On a command line every user of the host can read it.
    "hf-token": "set HF_TOKEN under secret_environment:",
}
# vLLM's one-dash spellings of flags that the plan reads; with two dashes the engine would not know them.
SHORT_FLAGS = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
}
API_KEY_VARIABLE = "VLLM_API_KEY"
SHORTEST_SECRET = 8
# The devices are the plan's to choose, and CUDA's order must be nvidia-smi's for an index to mean the same card.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def has_control(text: str) -> bool:
    """Anything but printable text and tabs; lone surrogates too, which no file in UTF-8 can hold."""
    return any((char < " " and char != "\t") or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in text)


def _decided_elsewhere(bare: str) -> str:
    """The remedy for a flag that may not stand under args, or an empty string.

    argparse takes the beginning of a flag for the flag, so a beginning is refused like the whole.
    """
    for flag, key in RESERVED_FLAGS.items():
        if flag.startswith(bare):
            return f"set {key}: on the service instead"
    return next((remedy for flag, remedy in REFUSED_FLAGS.items() if flag.startswith(bare)), "")


def arguments_of(value: t.Any) -> dict[str, t.Any]:
    if not isinstance(value, dict):
        raise Refused("a mapping of vLLM flags to values, such as {gpu-memory-utilization: 0.85}")
    arguments: dict[str, t.Any] = {}
    refusals: list[Refused] = []
    for position, (flag, setting) in enumerate(value.items(), 1):
        try:
            spelled, setting = _argument(flag, setting, position)
            if spelled in arguments:
                raise Refused(f"'{spelled}' once", "delete one of the two spellings", f"has '{spelled}' twice")
            arguments[spelled] = setting
        except Refused as exc:
            refusals.append(exc)
    refuse_all(refusals)
    return arguments


def _argument(flag: t.Any, setting: t.Any, position: int) -> tuple[str, t.Any]:
    """One flag in its only spelling. Its value may be a secret, and its name too where it is none (`flag=value`)."""
    head, dot, within = str(flag).partition(".")
    spelled = head.replace("_", "-").lstrip("-") + dot + within
    if not FLAG.fullmatch(spelled):
        raise Refused(
            f"names of vLLM flags with their values after a colon (number {position} is none)",
            seen=f"has a name that is no flag (number {position})",
        )
    spelled = SHORT_FLAGS.get(spelled, spelled)
    bare = spelled.removeprefix("no-")
    remedy = _decided_elsewhere(bare)
    if remedy:
        raise Refused(f"no '{spelled}' under args", remedy, f"has '{spelled}'")
    if setting is None:
        remedy = "write true for a flag without a value, or delete the line"
        raise Refused(f"a value for '{spelled}'", remedy, f"has '{spelled}' without a value")
    if "\0" in str(setting):
        raise Refused(f"no NUL character in '{spelled}'", seen=f"has '{spelled}' with a NUL character")
    if isinstance(setting, str) and setting.lower() in ("true", "false"):
        raise Refused(
            f"true or false for '{spelled}', and not the text '{setting}'",
            "write it without quotes; a templated value needs the filter bool",
            f"has '{spelled}' with the text '{setting}'",
        )
    return (bare, not setting) if bare != spelled and isinstance(setting, bool) else (spelled, setting)


def environment_of(value: t.Any) -> dict[str, str]:
    return _variables(value, lambda name, setting: environment_text(setting))


def secret_environment_of(value: t.Any) -> dict[str, str]:
    return _variables(value, lambda name, setting: long_enough(name, environment_text(setting)))


def _variables(value: t.Any, convert: t.Callable[[str, t.Any], str]) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Refused("a mapping of environment variables to values")
    environment: dict[str, str] = {}
    refusals: list[Refused] = []
    for position, (name, setting) in enumerate(value.items(), 1):
        try:
            _check_variable(name, setting, position)
            environment[name] = convert(name, setting)
        except Refused as exc:
            refusals.append(exc)
    refuse_all(refusals)
    return environment


def _check_variable(name: t.Any, setting: t.Any, position: int) -> None:
    if not isinstance(name, str) or not ENVIRONMENT_NAME.fullmatch(name):
        # It may be `NAME=value`, and the value a secret.
        raise Refused(
            f"variable names of letters, digits and '_' (number {position} is none)",
            seen=f"has a name that is none of a variable (number {position})",
        )
    if name == API_KEY_VARIABLE:
        raise Refused(f"no {name} here", "set api_key: on the service", f"has {name}")
    if name in DEVICE_VARIABLES:
        remedy = "set gpus: on the service: the plan decides the devices"
        raise Refused(f"no {name} under environment", remedy, f"has {name}")
    if not isinstance(setting, (str, int, float)):
        raise Refused(f"one line of text for {name}", seen=f"has {name}, which is {type_name(setting)}")
    if has_control(str(setting)):
        raise Refused(f"one line of text for {name}", seen=f"has {name} with a line break or a control character")


def long_enough(name: str, value: str) -> str:
    # Ansible hides a secret by replacing its text wherever it stands: a short one would tear numbers and paths apart.
    if len(value) < SHORTEST_SECRET:
        remedy = "choose a longer one: openssl rand -hex 24"
        seen = "is too short" if name == "api_key" else f"has {name}, which is too short"
        raise Refused(f"at least {SHORTEST_SECRET} characters for {name}", remedy, seen)
    return value


def environment_text(setting: t.Any) -> str:
    if isinstance(setting, bool):
        return "1" if setting else "0"
    return str(setting)
