# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import PLACE, VERSION, audio_layer, engine_rootfs
from .errors import ImageError
from .root import GID, HOME, UID
from .simulator import simulator_rootfs


@dataclass(frozen=True)
class Image:
    """What goes into a registry. ``layers`` are archives of files, each laid over the one before it; the first is a
    whole root file system. ``config`` is what an OCI image configuration has under ``config``."""

    ref: str
    layers: tuple[Path, ...]
    config: Mapping[str, Any]


def _config(kind: str, path: str = "", env: Sequence[str] = (), **labels: str) -> dict[str, Any]:
    return {
        "Entrypoint": ["vllm", "serve"],
        "Env": [
            f"PATH={path}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            f"HOME={HOME}",
            "LC_ALL=C.UTF-8",
            "VLLM_USAGE_SOURCE=production-docker-image",
            *env,
        ],
        "User": f"{UID}:{GID}",
        "WorkingDir": HOME,
        "Labels": {"gpufleet.lab.kind": kind, **{f"gpufleet.lab.{name}": value for name, value in labels.items()}},
    }


_ENGINE = f"/{PLACE}/bin:"
# The engine knows its platform from that; no user of the official image sets it.
_CPU = ("VLLM_TARGET_DEVICE=cpu",)
_REAL = f"vllm-openai:{VERSION}"
_REAL_AUDIO = f"vllm-openai-audio:{VERSION}"


def _real(ref: str, audio: bool) -> Callable[[], Image]:
    def image() -> Image:
        layers = (engine_rootfs(), audio_layer()) if audio else (engine_rootfs(),)
        return Image(ref, layers, _config("vllm", _ENGINE, _CPU))

    return image


def _simulator(tag: str, audio: bool = True) -> Callable[[], Image]:
    def image() -> Image:
        return Image(f"engine-sim:{tag}", (simulator_rootfs(audio),), _config("engine-sim", build=tag))

    return image


IMAGES: dict[str, Callable[[], Image]] = {
    "engine-sim:1": _simulator("1"),
    "engine-sim:2": _simulator("2"),
    "engine-sim:noaudio": _simulator("noaudio", audio=False),
    _REAL: _real(_REAL, audio=False),
    _REAL_AUDIO: _real(_REAL_AUDIO, audio=True),
}


def build_all(only: Sequence[str] | None = None) -> list[Image]:
    """The images named, or all. Built where they are not in the cache. Raises ImageError."""
    unknown = [name for name in only or () if name not in IMAGES]
    if unknown:
        raise ImageError(f"there is no image {unknown[0]}", f"one of {', '.join(IMAGES)}", "name one of these")
    return [make() for name, make in IMAGES.items() if only is None or name in only]
