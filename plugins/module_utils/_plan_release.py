# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The flags and variables of services, held against the release of vLLM that will read them. Pure, no I/O."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_settings import Facts, Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service
from ansible_collections.gpufleet.vllm.plugins.module_utils._vllm_flags import (
    check_environment,
    check_flags,
    version_of_image,
)

UNCHECKED = "plan.flags_unchecked"


def release_of(
    service: Service, settings: Settings, engine: t.Mapping[str, t.Any], contained: bool, facts: Facts
) -> str:
    """The release that a service runs on; empty where neither an image's tag nor the image itself tells it.

    Of an engine of one's own it is not known.
    """
    if contained:
        reference = service.image or settings.image
        return version_of_image(reference) or _said_by_image(reference, facts)
    return str(engine.get("version") or "") if engine.get("managed") else ""


def _said_by_image(reference: str, facts: Facts) -> str:
    found: t.Any = facts
    for key in ("nvidia", "container", "images", reference, "vllm_version"):
        found = found.get(key) if isinstance(found, t.Mapping) else None
    return found if isinstance(found, str) else ""


def check_release(
    services: t.Sequence[Service],
    settings: Settings,
    engine: t.Mapping[str, t.Any],
    device: str,
    contained: bool,
    facts: Facts,
) -> list[Finding]:
    """What is wrong with flags and variables: those of a service in its name, the fleet's once for each release."""
    findings: list[Finding] = []
    releases: dict[str, list[Service]] = {}
    for service in services:
        releases.setdefault(release_of(service, settings, engine, contained, facts), []).append(service)
    for release, users in releases.items():
        for service in users:
            findings += check_flags(service.args, release, service.name)
            findings += check_environment(service.environment, release, service.name)
        findings += _check_defaults(users, settings, release, device)
    return [finding for finding in findings if contained or engine.get("managed") or finding.code != UNCHECKED]


def _check_defaults(users: t.Sequence[Service], settings: Settings, release: str, device: str) -> list[Finding]:
    """The fleet's flags that at least one of these services does not decide itself."""
    places = {"vllm_default_args": settings.default_args}
    variables = {"vllm_default_environment": settings.default_environment}
    if device == "cpu":
        places["vllm_cpu_args"] = settings.cpu_args
        variables["vllm_cpu_environment"] = settings.cpu_environment
    decided = [{name.removeprefix("no-") for name in service.args} for service in users]
    findings: list[Finding] = []
    for where, flags in places.items():
        read = {
            name: value
            for name, value in flags.items()
            if any(name.removeprefix("no-") not in names for names in decided)
        }
        findings += [item for item in check_flags(read, release, "", where) if item.code != UNCHECKED]
    for where, named in variables.items():
        findings += check_environment(named, release, "", where)
    return findings
