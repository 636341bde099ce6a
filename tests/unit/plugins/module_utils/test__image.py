# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._image import (
    Images,
    Options,
    familiar,
    needs_audio,
    pinned,
    split_reference,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

IMAGE = "10.0.0.1:5000/engine:1"
DIGEST = "sha256:" + "4" * 64
NEWER = "sha256:" + "5" * 64


class Registry:
    """A docker command with images here and there; ``down`` is what a pull says instead."""

    def __init__(self, here: dict[str, str] | None = None, there: dict[str, str] | None = None) -> None:
        self.here = dict(here or {})
        self.there = dict(there or {})
        self.down = ""
        self.answer = '{"audio": true, "missing": []}'
        self.pulls: list[str] = []
        self.runs: list[list[str]] = []

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        if argv[1] == "image":
            name = argv[3]
            if name not in self.here:
                return CommandResult(1, "[]", f"Error: No such image: {name}")
            return CommandResult(0, json.dumps([self.inspected(name)]), "")
        if argv[1] == "pull":
            self.pulls.append(argv[-1])
            if self.down or argv[-1] not in self.there:
                return CommandResult(1, "", self.down or f"manifest for {argv[-1]} not found: manifest unknown")
            self.here[argv[-1]] = self.there[argv[-1]]
            return CommandResult(0, "", "")
        assert argv[1] == "run"
        self.runs.append(list(argv))
        return CommandResult(0, f"a warning\n{self.answer}\n", "")

    def inspected(self, name: str) -> dict[str, t.Any]:
        digest = self.here[name]
        return {
            "Id": digest.replace("sha256:", "sha256:f"), "RepoDigests": [f"{split_reference(name)[0]}@{digest}"],
            "Created": "2026-10-20T08:00:00Z", "Size": 1000, "Config": {"Env": ["PATH=/bin", "CUDA_VERSION=13.0.1"]},
        }  # fmt: skip


def images(root: Path, registry: Registry, *entries: dict[str, t.Any], check: bool = False, **options: t.Any) -> Images:
    chosen = entries or ({"image": IMAGE},)
    return Images(Options(str(root / "root"), list(chosen), **options), check, registry)


def test_what_is_missing_is_pulled_and_known_by_its_digest(tmp_path: Path) -> None:
    registry = Registry(there={IMAGE: DIGEST})
    assert images(tmp_path, registry, check=True).run()["changed"]
    assert registry.pulls == []
    first = images(tmp_path, registry).run()
    assert first["changed"]
    assert first["images"][0]["pinned"] == f"{IMAGE}@{DIGEST}"
    assert first["images"][0]["cuda_version"] == "13.0.1"
    second = images(tmp_path, registry).run()
    assert not second["changed"]
    assert registry.pulls == [IMAGE]
    assert second["images"][0]["pinned"] == first["images"][0]["pinned"]


def test_a_tag_that_moved_is_followed_only_if_asked(tmp_path: Path) -> None:
    registry = Registry(here={IMAGE: DIGEST}, there={IMAGE: NEWER})
    assert not images(tmp_path, registry).run()["changed"]
    moved = images(tmp_path, registry, pull="always").run()
    assert moved["changed"]
    assert moved["images"][0]["pinned"].endswith(NEWER)
    assert not images(tmp_path, registry, pull="always").run()["changed"]


def test_a_registry_that_is_down_stops_only_who_needs_it(tmp_path: Path) -> None:
    registry = Registry(here={IMAGE: DIGEST})
    registry.down = "dial tcp 10.0.0.1:5000: connect: connection refused"
    kept = images(tmp_path, registry, pull="always").run()
    assert not kept["changed"]
    assert "connection refused" in kept["warnings"][0]
    registry.here.clear()
    with pytest.raises(FleetError) as caught:
        images(tmp_path, registry).run()
    assert caught.value.code == "image.registry_unreachable"


def test_an_image_that_no_registry_has(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        images(tmp_path, Registry()).run()
    assert caught.value.code == "image.not_found"
    assert IMAGE in caught.value.seen


def test_never_means_never(tmp_path: Path) -> None:
    for check in (True, False):
        with pytest.raises(FleetError) as caught:
            images(tmp_path, Registry(there={IMAGE: DIGEST}), pull="never", check=check).run()
        assert caught.value.code == "image.missing"
    assert not images(tmp_path, Registry(here={IMAGE: DIGEST}), pull="never").run()["changed"]


def model(root: Path, architecture: str) -> str:
    directory = root / architecture
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return str(directory)


def speech(root: Path) -> dict[str, t.Any]:
    return {"image": IMAGE, "services": ["whisper"], "paths": [model(root, "WhisperForConditionalGeneration")]}


def test_an_image_of_a_speech_model_must_decode_audio(tmp_path: Path) -> None:
    registry = Registry(here={IMAGE: DIGEST})
    registry.answer = '{"audio": false, "missing": ["av", "soundfile"]}'
    for check in (True, False):
        with pytest.raises(FleetError) as caught:
            images(tmp_path, registry, speech(tmp_path), check=check).run()
        assert caught.value.code == "image.no_audio"
        assert "av, soundfile" in caught.value.seen
        assert "whisper" in caught.value.seen
    assert images(tmp_path, registry, speech(tmp_path), check_audio=False).run()["images"][0]["audio"] is None


def test_audio_is_tried_once_an_image(tmp_path: Path) -> None:
    registry = Registry(here={IMAGE: DIGEST}, there={IMAGE: NEWER})
    assert images(tmp_path, registry, speech(tmp_path), check=True).run()["images"][0]["audio"]
    assert not (tmp_path / "root").exists()
    for _round in range(2):
        assert images(tmp_path, registry, speech(tmp_path)).run()["images"][0]["audio"]
    assert len(registry.runs) == 2
    assert "none" in registry.runs[0][registry.runs[0].index("--network") + 1]
    images(tmp_path, registry, speech(tmp_path), pull="always").run()
    assert len(registry.runs) == 3


def test_other_models_ask_nothing_of_it(tmp_path: Path) -> None:
    registry = Registry(here={IMAGE: DIGEST})
    entry = {"image": IMAGE, "services": ["qwen"], "paths": [model(tmp_path, "Qwen2_5_VLForConditionalGeneration")]}
    assert images(tmp_path, registry, entry).run()["images"][0]["audio"] is None
    assert registry.runs == []
    assert not needs_audio(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("[]")
    assert not needs_audio(str(tmp_path))


def test_an_image_that_can_not_be_asked(tmp_path: Path) -> None:
    registry = Registry(here={IMAGE: DIGEST})
    registry.answer = "not json"
    with pytest.raises(FleetError) as caught:
        images(tmp_path, registry, speech(tmp_path)).run()
    assert "audio decoders" in caught.value.seen


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("vllm/vllm-openai:v0.33.0", ("vllm/vllm-openai", "v0.33.0", "")),
        ("10.0.0.1:5000/engine", ("10.0.0.1:5000/engine", "", "")),
        (f"a:5000/b/c:1@{DIGEST}", ("a:5000/b/c", "1", DIGEST)),
        ("engine", ("engine", "", "")),
    ],
)
def test_references(image: str, parts: tuple[str, str, str]) -> None:
    assert split_reference(image) == parts


@pytest.mark.parametrize(
    ("image", "digests", "expected"),
    [
        ("vllm/vllm-openai:v1", [f"other@{NEWER}", f"vllm/vllm-openai@{DIGEST}"], f"vllm/vllm-openai:v1@{DIGEST}"),
        ("docker.io/library/engine", [f"engine@{DIGEST}"], f"docker.io/library/engine:latest@{DIGEST}"),
        (f"engine:1@{DIGEST}", [], f"engine:1@{DIGEST}"),
        ("built-here:1", [], "sha256:ab"),
    ],
)
def test_pins(image: str, digests: list[str], expected: str) -> None:
    assert pinned(image, {"Id": "sha256:ab", "RepoDigests": digests}) == expected
    assert familiar("index.docker.io/a/b") == "a/b"
