# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: bundle_content
short_description: The models and images that the services of a fleet need
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Collects from the services of all hosts what a bundle for them must hold, each thing once. Nothing else of a
    service, no key above all, is in the result.
  - Services that want the same model with different patterns get all of it.
positional: _input
options:
  _input:
    description: For each host a list of its C(vllm_services) and its C(vllm_image).
    type: list
    elements: list
    required: true
"""

EXAMPLES = r"""
- name: Say what the fleet needs
  ansible.builtin.debug:
    msg: "{{ services | zip(images) | gpufleet.vllm.bundle_content }}"
  vars:
    hosts: "{{ groups['gpu_hosts'] | map('extract', hostvars) }}"
    services: "{{ hosts | map(attribute='vllm_services', default=[]) }}"
    images: "{{ hosts | map(attribute='vllm_image', default='') }}"
"""

RETURN = r"""
_value:
  description: >-
    C(models), each with C(model), C(revision), C(include) and C(exclude), and C(images), a list of names; both sorted.
  type: dict
"""

import typing as t

Patterns = tuple[tuple[str, ...], tuple[str, ...]]


def bundle_content(hosts: t.Iterable[t.Sequence[t.Any]]) -> dict[str, t.Any]:
    models: dict[tuple[str, str], Patterns] = {}
    images: set[str] = set()
    for services, image in hosts:
        for service in services or []:
            images.add(str(service.get("image") or image or ""))
            if service.get("model"):
                key = (str(service["model"]), str(service.get("revision") or "master"))
                patterns = (_texts(service.get("include")), _texts(service.get("exclude")))
                models[key] = patterns if models.get(key, patterns) == patterns else ((), ())
    return {
        "models": [
            {"model": model, "revision": revision, "include": list(include), "exclude": list(exclude)}
            for (model, revision), (include, exclude) in sorted(models.items())
        ],
        "images": sorted(images - {""}),
    }


def _texts(value: t.Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value or ())


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"bundle_content": bundle_content}
