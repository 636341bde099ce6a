# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.doc_fragments._hub import ModuleDocFragment
from ansible_collections.gpufleet.vllm.plugins.module_utils import _hub_options
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

PARAMS = {
    "model": "acme/tiny",
    "revision": "master",
    "endpoint": "hub.example.com",
    "token": "ms-0123456789abcdef",
    "timeout": 5.0,
}


def test_the_fragment_documents_the_spec():
    sections = (ModuleDocFragment.DOCUMENTATION, ModuleDocFragment.CONNECTION)
    documented = {name: option for text in sections for name, option in yaml.safe_load(text)["options"].items()}
    spec = _hub_options.hub_argument_spec()
    assert set(documented) == set(spec)
    for name, option in spec.items():
        assert documented[name]["type"] == option["type"]
        assert documented[name].get("default") == option.get("default")
        assert documented[name].get("required", False) == option.get("required", False)
    assert spec["token"]["no_log"] is True


def test_a_client_of_the_options():
    client = _hub_options.hub_client(PARAMS)
    assert (client.endpoint.url, client.token, client.timeout) == (
        "https://hub.example.com",
        "ms-0123456789abcdef",
        5.0,
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "tiny"}, "hub.bad_model"),
        ({"revision": ""}, "hub.bad_revision"),
        ({"endpoint": ""}, "hub.bad_endpoint"),
        ({"timeout": -1.0}, "hub.bad_timeout"),
        ({"timeout": float("nan")}, "hub.bad_timeout"),
        ({"token": "a b"}, "hub.bad_token"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_that_cannot_be(change, code):
    with pytest.raises(FleetError) as caught:
        _hub_options.hub_client({**PARAMS, **change})
    assert caught.value.code == code


class Module:
    """Keeps what an AnsibleModule would print."""

    def __init__(self):
        self.warnings, self.result = [], None

    def warn(self, text):
        self.warnings.append(text)

    def exit_json(self, **result):
        self.result = result

    def fail_json(self, **result):
        self.result = {"failed": True, **result}


def test_warnings_are_given_one_by_one():
    module = Module()
    _hub_options.run_module(module, lambda _module: {"changed": True, "warnings": ["one", "two"]})
    assert (module.result, module.warnings) == ({"changed": True}, ["one", "two"])


def test_a_failure_keeps_its_fields():
    module = Module()

    def work(_module):
        raise FleetError("x.y", "seen", "expected", "remedy")

    _hub_options.run_module(module, work)
    assert module.result == {
        "failed": True,
        "msg": "seen. Expected: expected. Remedy: remedy.",
        "code": "x.y",
        "seen": "seen",
        "expected": "expected",
        "remedy": "remedy",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_unwind(number):
    module, unwound = Module(), []

    def work(_module):
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)
        finally:
            unwound.append(True)

    before = signal.getsignal(number)
    _hub_options.run_module(module, work)
    assert (module.result["code"], unwound) == ("interrupted", [True])
    assert signal.getsignal(number) is before
