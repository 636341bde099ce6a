# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What Docker knows of the images that services are to run from, in one question: CUDA, vLLM, digests, size."""

from __future__ import annotations

import json
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner


class Image(t.TypedDict):
    """One reference. All but ``present`` is empty where Docker does not have the image."""

    present: bool
    id: str | None
    digests: list[str]
    cuda_version: str | None
    require_cuda: str | None
    vllm_version: str | None
    architecture: str | None
    size_bytes: int | None


_ABSENT = re.compile(r"No such (?:image|object):?\s*(\S+)|(\S+): image not known", re.IGNORECASE)
_CUDA = re.compile(r"^v?(\d+\.\d+)")
_REQUIRED = re.compile(r"\bcuda>=(\d+\.\d+)")
_VERSION = re.compile(r"(?:^|[-_])v?(\d+\.\d+\.\d+(?:\.?(?:rc|post|dev)\d+)?)(?:$|[-_+])")
_CUDA_LABELS = ("com.nvidia.cuda.version",)


def absent() -> Image:
    return {
        "present": False,
        "id": None,
        "digests": [],
        "cuda_version": None,
        "require_cuda": None,
        "vllm_version": None,
        "architecture": None,
        "size_bytes": None,
    }


def read_images(run: Runner, docker: str, references: t.Sequence[str], timeout: float) -> dict[str, Image] | None:
    """What Docker has of ``references``; None where it does not tell."""
    wanted = list(dict.fromkeys(reference for reference in references if reference and not reference.startswith("-")))
    if not wanted:
        return {}
    end = run([docker, "image", "inspect", *wanted], timeout)
    return None if end.timed_out else parse_images(wanted, end.out, end.err, end.rc)


def parse_images(wanted: t.Sequence[str], out: str, err: str, rc: int) -> dict[str, Image] | None:
    """The answer of ``docker image inspect``: what is there, in the order of the question; the others are on stderr."""
    try:
        value = json.loads(out or "[]")
    except ValueError:
        return None
    found = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    missing = {name.strip("\"'") for pair in _ABSENT.findall(err) for name in pair if name}
    if rc != 0 and not missing:
        return None
    present = [reference for reference in wanted if reference not in missing]
    if len(present) != len(found):
        # Docker named an absent one in other words than it was asked for: go by the names of those that are there.
        present = [next((name for name in wanted if _is_called(item, name)), "") for item in found]
        if rc == 0 or not all(present):
            return None
    images = {reference: absent() for reference in wanted}
    images.update({reference: describe(reference, item) for reference, item in zip(present, found)})
    return images


def _is_called(item: t.Mapping[str, t.Any], reference: str) -> bool:
    name, _at, digest = _short(reference).partition("@")
    if digest:
        # Docker takes a tag beside a digest and looks at the digest alone.
        repository = name if "/" in name.rpartition(":")[2] else name.rpartition(":")[0] or name
        return f"{repository}@{digest}" in map(_short, _texts(item.get("RepoDigests")))
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return tagged in map(_short, _texts(item.get("RepoTags"))) or item.get("Id") == reference


def _short(reference: str) -> str:
    """Without what Docker adds and leaves out as it likes."""
    for prefix in ("docker.io/", "index.docker.io/", "library/"):
        reference = reference.removeprefix(prefix)
    return reference


def describe(reference: str, item: t.Mapping[str, t.Any]) -> Image:
    """One object of ``docker image inspect``."""
    config = _mapping(item.get("Config"))
    environment = _environment(config.get("Env"))
    labels = {str(name): value for name, value in _mapping(config.get("Labels")).items() if isinstance(value, str)}
    required = environment.get("NVIDIA_REQUIRE_CUDA") or None
    size = item.get("Size")
    names = [environment.get("VLLM_IMAGE_TAG", ""), reference, *_texts(item.get("RepoTags"))]
    return {
        "present": True,
        "id": item["Id"] if isinstance(item.get("Id"), str) else None,
        "digests": _texts(item.get("RepoDigests")),
        "cuda_version": _cuda(environment, labels, required),
        "require_cuda": required,
        "vllm_version": next((version for version in map(vllm_version, names) if version), None),
        "architecture": item["Architecture"] if isinstance(item.get("Architecture"), str) else None,
        "size_bytes": size if isinstance(size, int) and not isinstance(size, bool) else None,
    }


def vllm_version(reference: str) -> str | None:
    """The version in the tag of an image that calls itself vLLM's; no label is reliable, as they come from the base."""
    name, _colon, tag = reference.partition("@")[0].rpartition(":")
    if "/" in tag or "vllm" not in name.rpartition("/")[2].lower() + name.lower():
        return None
    match = _VERSION.search(tag)
    return match.group(1) if match else None


def _cuda(environment: t.Mapping[str, str], labels: t.Mapping[str, str], required: str | None) -> str | None:
    """Major and minor: the driver's own number has no more."""
    for text in (environment.get("CUDA_VERSION"), *(labels.get(name) for name in _CUDA_LABELS)):
        match = _CUDA.match(text or "")
        if match:
            return match.group(1)
    needed = _REQUIRED.search(required or "")
    return needed.group(1) if needed else None


def _environment(value: object) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in _texts(value))
    return {name: text for name, separator, text in pairs if separator}


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _mapping(value: object) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, dict) else {}
