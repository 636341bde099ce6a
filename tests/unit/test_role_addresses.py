# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The addresses that the roles mirror and unbundle report are those by which other hosts reach what they run."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[2] / "roles"


def value(role: str, name: str, **given: t.Any) -> str:
    """A variable of a role where a host has these variables."""
    loader = DataLoader()
    variables: dict[str, t.Any] = {"inventory_hostname": "depot"}
    for part in ("defaults", "vars"):
        variables.update(loader.load_from_file(str(ROLES / role / part / "main.yml"), trusted_as_template=True))
    templar = Templar(loader, variables={**variables, **given})
    return str(templar.template(trust_as_template(f"{{{{ {name} }}}}")))


@pytest.mark.parametrize(
    ("given", "url", "local"),
    [
        ({}, "http://127.0.0.1:8790", "http://127.0.0.1:8790"),
        ({"mirror_bind_address": "10.20.0.5"}, "http://10.20.0.5:8790", "http://10.20.0.5:8790"),
        ({"mirror_bind_address": "fd00::5"}, "http://[fd00::5]:8790", "http://[fd00::5]:8790"),
        ({"mirror_bind_address": "0.0.0.0"}, "http://depot:8790", "http://127.0.0.1:8790"),
        (
            {"mirror_bind_address": "0.0.0.0", "ansible_host": "10.20.0.5"},
            "http://10.20.0.5:8790",
            "http://127.0.0.1:8790",
        ),
        ({"mirror_bind_address": "::", "ansible_host": "fd00::5"}, "http://[fd00::5]:8790", "http://[::1]:8790"),
        (
            {"mirror_bind_address": "::", "ansible_host": "fd00::5", "mirror_address": "models.example.com"},
            "http://models.example.com:8790",
            "http://[::1]:8790",
        ),
        (
            {
                "mirror_bind_address": "10.20.0.5",
                "mirror_address": "fd00::7",
                "mirror_tls_certificate": "/x",
                "mirror_port": 1,
            },
            "https://[fd00::7]:1",
            "https://10.20.0.5:1",
        ),
    ],
)
def test_the_mirror(given: dict[str, t.Any], url: str, local: str) -> None:
    assert value("mirror", "__mirror_url", **given) == url
    assert value("mirror", "__mirror_local_url", **given) == local


@pytest.mark.parametrize(
    ("given", "name", "local"),
    [
        ({"mirror_bind_address": "10.20.0.5"}, "10.20.0.5:5000", "10.20.0.5:5000"),
        ({"mirror_bind_address": "fd00::5"}, "[fd00::5]:5000", "[fd00::5]:5000"),
        ({"mirror_bind_address": "0.0.0.0", "ansible_host": "10.20.0.5"}, "10.20.0.5:5000", "127.0.0.1:5000"),
        ({"mirror_bind_address": "::"}, "depot:5000", "[::1]:5000"),
        (
            {"mirror_bind_address": "::", "mirror_address": "models.example.com"},
            "models.example.com:5000",
            "[::1]:5000",
        ),
        (
            {"mirror_address": "models.example.com", "unbundle_registry_address": "fd00::9"},
            "[fd00::9]:5000",
            "127.0.0.1:5000",
        ),
        (
            {"mirror_bind_address": "0.0.0.0", "unbundle_registry": "r.example.com/x"},
            "r.example.com/x",
            "r.example.com/x",
        ),
    ],
)
def test_the_registry(given: dict[str, t.Any], name: str, local: str) -> None:
    assert value("unbundle", "__unbundle_registry", **given) == name
    assert value("unbundle", "__unbundle_push_to", **given) == local


@pytest.mark.parametrize(
    ("check_mode", "skopeo", "service", "own", "expected"),
    [
        (False, False, False, True, False),
        (True, True, True, True, False),
        (True, False, True, False, True),
        (True, True, False, True, True),
        (True, True, False, False, False),
    ],
)
def test_check_mode_asks_no_registry_that_it_cannot_reach(
    check_mode: bool, skopeo: bool, service: bool, own: bool, expected: bool
) -> None:
    found = {
        "ansible_check_mode": check_mode,
        "__unbundle_skopeo": {"stat": {"exists": skopeo}},
        "unbundle_registry": "" if own else "registry.example.com:5000",
    }
    if own:  # else nobody looked
        found["__unbundle_service"] = {"stat": {"exists": service}}
    assert value("unbundle", "__unbundle_nothing_there", **found) == str(expected)
