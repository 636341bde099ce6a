# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host, services and settings for the tests of the plan, and short ways to ask what came of them."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan

FIXTURES = Path(__file__).parents[1] / "unit/plugins/module_utils/fixtures/nvidia"
SECRET = "sk-hunter2-0123456789"
SETTINGS = Settings(
    root="/var/lib/gpufleet-vllm",
    model_root="/data/models",
    engine_versions={"cuda": "0.33.0", "cpu": "0.32.0"},
)
UUID = "GPU-a0000009-0000-4000-8000-00000000000{}"


def recorded(name: str) -> list[dict[str, t.Any]]:
    """The GPUs of a recorded ``nvidia-smi -q -x``."""
    return _nvidia.parse_smi_xml((FIXTURES / f"{name}.xml").read_text(encoding="utf-8"))["gpus"]  # type: ignore[return-value]


def facts(gpus: t.Any = None, **changed: t.Any) -> dict[str, t.Any]:
    """A host with the three recorded H200."""
    return {
        "gpus": recorded("h200-580") if gpus is None else gpus,
        "gpu_reason": "",
        "machine": "x86_64",
        "cpu": {"model": "AMD EPYC 9554", "flags": ["avx2", "avx512f"]},
        "service_manager": "systemd",
        "listening": [],
        **changed,
    }


def without_gpus(**changed: t.Any) -> dict[str, t.Any]:
    return facts([], **{"gpu_reason": "nvidia-smi is not installed", **changed})


def service(name: str = "chat", **keys: t.Any) -> dict[str, t.Any]:
    return {"name": name, "model": f"acme/{name}", **keys}


def plan(*services: t.Any, on: t.Any = None, **settings: t.Any) -> dict[str, t.Any]:
    """The plan of a host; who may reach a service is the matter of tests of their own."""
    open_to_all: dict[str, t.Any] = {"allow_public_bind": True, "skip": ["plan.no_api_key"]}
    chosen = dataclasses.replace(SETTINGS, **{**open_to_all, **settings})
    return make_plan(list(services), chosen, facts() if on is None else on)


def codes(planned: dict[str, t.Any]) -> list[tuple[str, str]]:
    return [(finding["code"], finding["service"]) for finding in planned["findings"]]


def only(planned: dict[str, t.Any]) -> dict[str, str]:
    assert len(planned["findings"]) == 1, planned["findings"]
    return planned["findings"][0]  # type: ignore[no-any-return]


def indices(planned: dict[str, t.Any]) -> dict[str, list[int]]:
    return {entry["name"]: [gpu["index"] for gpu in entry["gpus"]] for entry in planned["services"]}
