# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_safety import (
    beyond_loopback,
    check_safety,
    numeric_address,
    only_pickles,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import parse_service
from plan_case import SECRET, SETTINGS, service


def check(device: str = "cuda", models: t.Any = None, settings: t.Any = None, **keys: t.Any) -> list[Finding]:
    parsed, findings = parse_service(service(**{"api_key": SECRET, **keys}))
    assert parsed is not None, findings
    return check_safety([parsed], dataclasses.replace(SETTINGS, **(settings or {})), device, models)


def codes(found: list[Finding]) -> list[str]:
    return [finding.code for finding in found]


def test_a_plain_service_needs_no_yes() -> None:
    assert check() == []
    assert check(api_key=None, bind_address="127.0.0.1") == []


# --- code of the model's author


@pytest.mark.parametrize(
    "flag", ["trust-remote-code", "trust_remote_code", "--trust-remote-code", "trust-remote", "trust"]
)
def test_remote_code_needs_a_yes(flag: str) -> None:
    (found,) = check(args={flag: True})
    assert (found.code, found.severity, found.service) == ("plan.remote_code", "error", "chat")
    assert "under args" in found.seen
    assert "acme/chat" in found.seen
    assert "allow_remote_code: true" in found.remedy


@pytest.mark.parametrize("args", [{"trust-remote-code": False}, {"no-trust-remote-code": True}])
def test_a_flag_that_is_off_needs_none(args: dict[str, bool]) -> None:
    assert check(args=args) == []
    # The service's own word decides over the fleet's default.
    assert check(args=args, settings={"default_args": {"trust-remote-code": True}}) == []


def test_another_flag_that_begins_alike_is_not_meant() -> None:
    assert check(args={"trust-request-chat-template": True}) == []


@pytest.mark.parametrize(
    ("device", "settings", "where"),
    [
        ("cuda", {"default_args": {"trust-remote-code": True}}, "in vllm_default_args"),
        ("cpu", {"cpu_args": {"trust-remote-code": True}}, "in vllm_cpu_args"),
        ("cuda", {"cpu_args": {"trust-remote-code": True}}, ""),
        ("cpu", {"cpu_args": {"trust-remote-code": False}, "default_args": {"trust-remote-code": True}}, ""),
    ],
)
def test_remote_code_of_the_fleet(device: str, settings: dict[str, t.Any], where: str) -> None:
    found = check(device, settings=settings)
    assert codes(found) == (["plan.remote_code"] if where else [])
    assert not where or where in found[0].seen


@pytest.mark.parametrize(
    ("fleet", "own", "refused"),
    [(True, None, False), (False, True, False), (False, "true", False), (True, False, True), (False, None, True)],
)
def test_who_says_yes(fleet: bool, own: t.Any, refused: bool) -> None:
    """The service's word counts for more than the fleet's, either way."""
    found = check(args={"trust-remote-code": True}, settings={"allow_remote_code": fleet}, allow_remote_code=own)
    assert codes(found) == (["plan.remote_code"] if refused else [])
    found = check(bind_address="0.0.0.0", settings={"allow_public_bind": fleet}, allow_public_bind=own)
    assert codes(found) == (["plan.public_bind"] if refused else [])


@pytest.mark.parametrize("value", ["yes", 1, "", [], "ja"])
@pytest.mark.parametrize("key", ["allow_remote_code", "allow_public_bind"])
def test_only_a_clear_yes_is_one(key: str, value: t.Any) -> None:
    parsed, findings = parse_service(service(**{key: value}))
    if value == "":  # a templated "not set"
        assert parsed is not None
        assert getattr(parsed, key) is None
        return
    assert [(finding.code, finding.expected) for finding in findings] == [("service.bad_value", "true or false")]


# --- pickles

LISTED = {
    "acme/chat@master": {"weights": {"files": ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]}}
}


def test_pickles_need_a_yes() -> None:
    (found,) = check(models=LISTED)
    assert (found.code, found.severity, found.service) == ("plan.pickle", "error", "chat")
    assert "pytorch_model-00001-of-00002.bin" in found.seen
    assert "vllm_artifact_allow_pickle: true" in found.remedy
    assert check(models=LISTED, settings={"allow_pickle": True}) == []
    assert check(models=LISTED, revision="v2") == [], "another revision, of which nothing is known"


@pytest.mark.parametrize("chosen", ["pt", "npcache"])
def test_a_format_that_reads_pickles(chosen: str) -> None:
    (found,) = check(args={"load-format": chosen})
    assert (found.code, chosen in found.seen) == ("plan.pickle", True)
    assert check(args={"load-format": "safetensors"}, settings={"default_args": {"load-format": "pt"}}) == []
    assert codes(check(settings={"default_args": {"load-format": "pt"}})) == ["plan.pickle"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, []),
        ({"files": ["model.safetensors", "pytorch_model.bin"]}, []),
        ({"files": ["chat.gguf", "x.bin"]}, []),
        ({"files": [{"path": "b.pt"}, {"path": "a.BIN"}, {"size": 1}, None, 7]}, ["a.BIN", "b.pt"]),
        ({"weights": "?", "files": 3}, []),
        ({"weights": {"files": {"a.bin": 1}}}, []),
        ({"files": ["config.json"]}, []),
    ],
)
def test_listings_of_any_type(model: dict[str, t.Any], expected: list[str]) -> None:
    assert only_pickles(model) == expected


# --- ports


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "every network"),
        ("::", "every network"),
        ("0", "every network"),
        ("0x0", "every network"),
        ("::ffff:0.0.0.0", "every network"),
        ("8.8.8.8", "public internet"),
        ("::ffff:8.8.8.8", "public internet"),
        ("2a00:1450:4001:830::200e", "public internet"),
        ("10.0.0.11", ""),
        ("192.168.1.4", ""),
        ("172.16.3.1", ""),
        ("100.64.0.9", ""),
        ("fd00::11", ""),
        ("fe80::1", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("localhost", ""),
        ("gpu-01.example.com", ""),
    ],
)
def test_public_addresses(address: str, why: str) -> None:
    found = check(bind_address=address)
    assert codes(found) == (["plan.public_bind"] if why else [])
    if why:
        assert why in found[0].seen
        assert "bind_address: of the service" in found[0].remedy
        assert codes(check(settings={"bind_address": address})) == ["plan.public_bind"]


def test_no_address_at_all_is_every_address() -> None:
    (found,) = check(settings={"bind_address": ""})
    assert "all addresses" in found.seen
    assert "set vllm_bind_address to such an address ({{ ansible_host }} is often one)" in found.remedy


@pytest.mark.parametrize("address", ["10.0.0.11", "fd00::11", "gpu-01", "0.0.0.0"])
def test_a_service_that_others_reach_wants_a_key(address: str) -> None:
    (found,) = check(api_key=None, bind_address=address, allow_public_bind=True)
    assert (found.code, found.severity) == ("plan.no_api_key", "warning")
    assert address in found.seen
    assert check(bind_address=address, allow_public_bind=True) == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.3.2.1", "127.1", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"]
)
def test_loopback_in_every_spelling(address: str) -> None:
    assert not beyond_loopback(address)


def test_names_are_no_numbers() -> None:
    assert numeric_address("0abc.example") is None
    assert numeric_address("1.2.3.4.5") is None
    assert str(numeric_address("10.1")) == "10.0.0.1"
