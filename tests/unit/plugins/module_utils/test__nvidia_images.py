# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from collections.abc import Sequence

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_images as images
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

REQUIRE = "cuda>=13.0 brand=unknown,driver>=535,driver<536 brand=tesla,driver>=550,driver<551"
# As docker image inspect gives it, cut to what is read and one label that misleads.
VLLM: dict[str, t.Any] = {
    "Id": "sha256:8d1f",
    "RepoTags": ["vllm/vllm-openai:v0.33.0"],
    "RepoDigests": ["vllm/vllm-openai@sha256:3f1a"],
    "Architecture": "amd64",
    "Size": 21868126208,
    "Config": {
        "Env": [
            "PATH=/usr/local/nvidia/bin:/usr/bin",
            f"NVIDIA_REQUIRE_CUDA={REQUIRE}",
            "CUDA_VERSION=13.0.2",
            "VLLM_IMAGE_TAG=vllm/vllm-openai:v0.33.0",
        ],
        "Labels": {"org.opencontainers.image.version": "22.04"},
    },
}
NONE = "Error: No such image: {}\n"


def test_what_an_official_image_says_of_itself() -> None:
    assert images.describe("vllm/vllm-openai:latest", VLLM) == {
        "present": True,
        "id": "sha256:8d1f",
        "digests": ["vllm/vllm-openai@sha256:3f1a"],
        "cuda_version": "13.0",
        "require_cuda": REQUIRE,
        "vllm_version": "0.33.0",
        "architecture": "amd64",
        "size_bytes": 21868126208,
    }


@pytest.mark.parametrize(
    ("config", "cuda"),
    [
        ({"Env": ["NVIDIA_REQUIRE_CUDA=cuda>=12.9 brand=tesla,driver>=535"]}, "12.9"),
        ({"Env": ["CUDA_VERSION=nonsense"], "Labels": {"com.nvidia.cuda.version": "9.2.148"}}, "9.2"),
        ({"Env": ["CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.0"]}, "12.4"),
        ({"Env": None, "Labels": None}, None),
        (None, None),
        ({"Env": [7, "CUDA_VERSION"], "Labels": {"com.nvidia.cuda.version": 9}}, None),
    ],
)
def test_cuda(config: object, cuda: str | None) -> None:
    assert images.describe("a:1", {"Config": config})["cuda_version"] == cuda


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("vllm/vllm-openai:v0.33.0@sha256:abc", "0.33.0"),
        ("registry.example.com:5000/mirror/vllm-openai:v0.33.0-cu129", "0.33.0"),
        ("registry.example.com:5000/vllm-openai-audio:0.32.0", "0.32.0"),
        ("vllm/vllm-openai:v0.34.0rc1", "0.34.0rc1"),
        ("vllm/vllm-openai:nightly-0123456789", None),
        ("vllm/vllm-openai:latest", None),
        ("registry.example.com:5000/vllm-openai", None),
        ("vllm/vllm-openai@sha256:abc", None),
        ("ubuntu:22.04.1", None),
        ("", None),
    ],
)
def test_version_of_a_tag(reference: str, version: str | None) -> None:
    assert images.vllm_version(reference) == version


class Run:
    def __init__(self, answer: CommandResult) -> None:
        self.answer, self.calls = answer, list[list[str]]()

    def __call__(self, argv: Sequence[str], timeout: float) -> CommandResult:
        del timeout
        self.calls.append(list(argv))
        return self.answer


def test_all_are_asked_for_at_once() -> None:
    run = Run(CommandResult(1, json.dumps([VLLM, {"Id": "sha256:2"}]), NONE.format("gone:1")))
    found = images.read_images(run, "docker", ["a:1", "gone:1", "b:1", "a:1", "", "--format"], 9)
    assert run.calls == [["docker", "image", "inspect", "a:1", "gone:1", "b:1"]]
    assert found is not None
    assert {name: (image["present"], image["id"]) for name, image in found.items()} == {
        "a:1": (True, "sha256:8d1f"),
        "gone:1": (False, None),
        "b:1": (True, "sha256:2"),
    }


def test_none_is_asked_for() -> None:
    run = Run(CommandResult(0, "", ""))
    assert images.read_images(run, "docker", [], 9) == {}
    assert run.calls == []


@pytest.mark.parametrize(
    "message",
    [
        "Error response from daemon: No such image: gone:1\n",
        "Error: No such object: gone:1\n",
        "Error: gone:1: image not known\n",
    ],
)
def test_only_absent_ones(message: str) -> None:
    assert images.parse_images(["gone:1"], "[]\n", message, 1) == {"gone:1": images.absent()}


@pytest.mark.parametrize(
    "reference",
    [
        "docker.io/vllm/vllm-openai:v0.33.0",
        "vllm/vllm-openai:v0.33.0@sha256:3f1a",
        "vllm/vllm-openai@sha256:3f1a",
        "sha256:8d1f",
    ],
)
def test_an_absent_one_that_docker_words_in_its_own_way(reference: str) -> None:
    message = NONE.format("docker.io/library/gone:1")
    found = images.parse_images(["gone:1", reference], json.dumps([VLLM]), message, 1)
    assert found is not None
    assert {name: image["present"] for name, image in found.items()} == {"gone:1": False, reference: True}


def test_an_image_without_a_tag_is_the_latest() -> None:
    latest = {"RepoTags": ["localhost:5000/a/b:latest"]}
    message = NONE.format("docker.io/library/gone:1")
    found = images.parse_images(["gone", "localhost:5000/a/b"], json.dumps([latest]), message, 1)
    assert found is not None
    assert [image["present"] for image in found.values()] == [False, True]


@pytest.mark.parametrize(
    ("out", "err", "rc"),
    [
        ("", "Cannot connect to the Docker daemon", 1),
        ("<html>", "", 0),
        ("[]", "", 0),
        (json.dumps([VLLM, VLLM]), "", 0),
        ('{"Id": 1}', "", 0),
    ],
)
def test_an_answer_that_tells_nothing(out: str, err: str, rc: int) -> None:
    assert images.parse_images(["a:1"], out, err, rc) is None


def test_a_server_that_hangs() -> None:
    assert images.read_images(Run(CommandResult(124, "", "", timed_out=True)), "docker", ["a:1"], 9) is None


def test_values_of_other_types_are_none() -> None:
    odd = {"Id": 3, "RepoDigests": "x", "Architecture": [], "Size": True, "RepoTags": None, "Config": {"Env": {}}}
    assert images.describe("a:1", odd) == {**images.absent(), "present": True}
