# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Container images on a host: there, known by their digest, and able to do what the models need of them."""

from __future__ import annotations

import json
import os
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._audio_check import SOURCE as AUDIO_CHECK
from ansible_collections.gpufleet.vllm.plugins.module_utils._docker import KNOWN_PULL, Docker, failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._host import read
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner, run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import absolute_root
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import make_directory, read_json, write_file

UNCHANGED = "unchanged"
PULLED = "pulled"
CHECK_SECONDS = 300.0
# vLLM serves these for nothing but speech. Others take audio beside text and images, and are of use without.
SPEECH = ("WhisperForConditionalGeneration", "VoxtralForConditionalGeneration")


@dataclass(frozen=True)
class Options:
    """The options of the module ``vllm_image``; ``images`` is ``images`` of the plan."""

    root: str
    images: t.Sequence[t.Mapping[str, t.Any]]
    pull: str = "missing"
    timeout: int = 3600
    check_audio: bool = True


@dataclass
class Result:
    """What was done about one image. ``pinned`` is empty while it is not known, before the first pull."""

    image: str
    action: str = UNCHANGED
    pinned: str = ""
    id: str = ""
    created: str = ""
    size_bytes: int = 0
    cuda_version: str = ""
    audio: bool | None = None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        return {key: value for key, value in vars(self).items() if key != "warnings"}


def split_reference(image: str) -> tuple[str, str, str]:
    """Name, tag and digest; the last two may be empty. A colon before a slash is a registry's port."""
    name, _at, digest = image.partition("@")
    head, slash, last = name.rpartition("/")
    last, _colon, tag = last.partition(":")
    return f"{head}{slash}{last}", tag, digest


def familiar(name: str) -> str:
    """A name as Docker shortens it: docker.io/library/x is x."""
    for prefix in ("docker.io/", "index.docker.io/"):
        name = name.removeprefix(prefix)
    return name.removeprefix("library/")


def pinned(image: str, inspected: t.Mapping[str, t.Any]) -> str:
    """``name:tag@sha256:...`` as the registry has it.

    An image that was built or loaded on the host is in no registry, and its own id is what stays the same.
    """
    name, tag, digest = split_reference(image)
    if digest:
        return image
    for entry in inspected.get("RepoDigests") or []:
        known, _at, found = str(entry).partition("@")
        if familiar(known) == familiar(name) and found:
            return f"{name}:{tag or 'latest'}@{found}"
    return str(inspected.get("Id") or "")


def needs_audio(path: str) -> bool:
    """Whether the model at a path turns speech into text."""
    try:
        config = json.loads(read(f"{path}/config.json") or "{}")
    except ValueError:
        return False
    architectures = config.get("architectures") if isinstance(config, dict) else None
    return any(name in SPEECH for name in architectures or [])


def describe(result: Result, inspected: t.Mapping[str, t.Any]) -> Result:
    environment = dict(
        str(entry).split("=", 1) for entry in (inspected.get("Config") or {}).get("Env") or [] if "=" in str(entry)
    )
    result.pinned = pinned(result.image, inspected)
    result.id = str(inspected.get("Id") or "")
    result.created = str(inspected.get("Created") or "")
    result.size_bytes = int(inspected.get("Size") or 0)
    result.cuda_version = environment.get("CUDA_VERSION", "")
    return result


def ask_audio(docker: Docker, identifier: str, name: str) -> dict[str, t.Any]:
    """What the image itself says: ``audio``, ``missing`` and ``detail``. Starts a container of it for a moment."""
    arguments = ["--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--entrypoint", "python3"]  # noqa: S108
    done = docker.call("run", *arguments, identifier, "-c", AUDIO_CHECK, timeout=CHECK_SECONDS, check=False)
    for line in reversed(done.out.splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict):
            return answer
    raise failure(done, f"looking for audio decoders in {name}")


class Images:
    """The images of one host."""

    def __init__(self, options: Options, check_mode: bool, run: Runner = run_command) -> None:
        self.options = options
        self.check_mode = check_mode
        self.docker = Docker(run)
        self.root = absolute_root(options.root)

    def run(self) -> dict[str, t.Any]:
        results = [self._ensure(entry) for entry in self.options.images]
        before = "".join(f"{r.image} {r.pinned}\n" for r in results if r.action == UNCHANGED)
        after = "".join(f"{r.image} {r.pinned or '(its digest is known once it is pulled)'}\n" for r in results)
        return {
            "changed": any(result.action != UNCHANGED for result in results),
            "images": [result.as_dict() for result in results],
            "warnings": [warning for result in results for warning in result.warnings],
            "diff": {"before": before, "after": after},
        }

    def _ensure(self, entry: t.Mapping[str, t.Any]) -> Result:
        result = Result(str(entry["image"]))
        found = self._inspect(result.image)
        if self.options.pull == "always" or found is None:
            found = self._pull(result, found)
        if found is None:
            return result
        describe(result, found)
        if self.options.check_audio and any(needs_audio(str(path)) for path in entry.get("paths") or []):
            self._check_audio(result, entry)
        return result

    def _inspect(self, image: str) -> dict[str, t.Any] | None:
        found = self.docker.inspect("image", [image])
        return found[0] if found else None

    def _pull(self, result: Result, found: dict[str, t.Any] | None) -> dict[str, t.Any] | None:
        if self.options.pull == "never":
            raise FleetError(
                "image.missing",
                f"{result.image} is not on this host, and vllm_image_pull is never",
                "an image that was loaded before",
                f"load it (docker load --input FILE), or set vllm_image_pull: missing to pull {result.image}",
            )
        if self.check_mode:
            # What is not there yet would be pulled; whether a registry has something newer is not known without it.
            result.action = PULLED if found is None else UNCHANGED
            return found
        done = self.docker.call("pull", "--quiet", result.image, timeout=float(self.options.timeout), check=False)
        if done.rc != 0:
            problem = failure(done, f"pulling {result.image}", KNOWN_PULL)
            if found is None:
                raise problem
            result.warnings.append(f"{problem.seen}: the image that is here is used")
            return found
        pulled = self._inspect(result.image)
        if pulled is None or found is None or pulled.get("Id") != found.get("Id"):
            result.action = PULLED
        return pulled

    def _check_audio(self, result: Result, entry: t.Mapping[str, t.Any]) -> None:
        """A clip is decoded in the image with what vLLM itself uses: the first upload would fail otherwise."""
        known = read_json(self._checked) or {}
        answer = known.get(result.id)
        if not isinstance(answer, dict):
            answer = ask_audio(self.docker, result.id, result.image)
            if not self.check_mode:
                make_directory(self.root, 0o755)
                text = json.dumps({**known, result.id: answer}, indent=2, sort_keys=True) + "\n"
                write_file(self._checked, text, 0o644)
        result.audio = bool(answer.get("audio"))
        if not result.audio:
            missing = ", ".join(answer.get("missing") or []) or answer.get("detail") or "its decoders"
            raise FleetError(
                "image.no_audio",
                f"{result.image} can not decode audio ({missing}), which {', '.join(entry['services'])} needs",
                "an image with FFmpeg and vLLM's audio extra",
                "build one with playbooks/audio_image.yml and set image: on the service to it",
            )

    @property
    def _checked(self) -> str:
        return os.path.join(self.root, "images.json")
