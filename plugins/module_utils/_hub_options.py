# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The options of every module that talks to a model hub (documented in the fragment ``_hub``), and the way in."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import env_fallback
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import (
    DEFAULT_ENDPOINT,
    DEFAULT_REVISION,
    HubClient,
    check_model,
    check_revision,
    parse_endpoint,
)


def connection_argument_spec() -> dict[str, Any]:
    """How to reach the hub: the options of the fragment's section ``connection``."""
    return {
        "endpoint": {"type": "str", "default": DEFAULT_ENDPOINT, "fallback": (env_fallback, ["MODELSCOPE_ENDPOINT"])},
        "token": {"type": "str", "no_log": True, "fallback": (env_fallback, ["MODELSCOPE_API_TOKEN"])},
        "timeout": {"type": "float", "default": 60.0},
    }


def selection_argument_spec() -> dict[str, Any]:
    """What to take from the hub: the options of the fragment's own section."""
    return {
        "model": {"type": "str", "required": True},
        "revision": {"type": "str", "default": DEFAULT_REVISION},
        "include": {"type": "list", "elements": "str", "default": []},
        "exclude": {"type": "list", "elements": "str", "default": []},
    }


def hub_argument_spec() -> dict[str, Any]:
    """A new argument spec with both sections' options; add the module's own."""
    return {**selection_argument_spec(), **connection_argument_spec()}


def hub_client(params: dict[str, Any]) -> HubClient:
    """The client that the options describe. Raises FleetError for options that cannot be."""
    check_model(params["model"])
    check_revision(params["revision"])
    if not params["timeout"] > 0:
        raise FleetError("hub.bad_timeout", f"timeout is {params['timeout']}", "more than 0 seconds", "Correct timeout")
    return HubClient(parse_endpoint(params["endpoint"]), params["token"], params["timeout"])


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that locks are released and partial work is left in order."""

    def interrupt(signum: int, frame: object) -> NoReturn:
        del signum, frame
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_module(module: AnsibleModule, work: Callable[[AnsibleModule], dict[str, Any]]) -> None:
    """Exit with ``work``'s result, warnings taken out of it, or with its failure in the collection's form."""
    try:
        with _termination_as_interrupt():
            result = work(module)
    except FleetError as exc:
        module.fail_json(msg=str(exc), **exc.as_result())
    except KeyboardInterrupt:
        error = FleetError(
            "interrupted",
            "The run was interrupted",
            remedy="Run it again: what was received is kept and resumed; what served before still does",
        )
        module.fail_json(msg=str(error), **error.as_result())
    else:
        for warning in result.pop("warnings", []):
            module.warn(warning)
        module.exit_json(**result)
