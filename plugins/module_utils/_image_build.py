# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Images built on a host from an image of vLLM and what it lacks.

An image carries what it was made from in its labels, so that nothing but Docker itself has to remember it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._docker import KNOWN_PULL, Docker, Known, failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._image import ask_audio, pinned, split_reference
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import absolute_root
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import make_directory

LABEL = "gpufleet.vllm.build"
INPUTS = "gpufleet.vllm.inputs"
UNCHANGED = "unchanged"
BUILT = "built"
PUSHED = "pushed"
PACKAGE_FILES = (".whl", ".deb")
# Docker takes these without a declaration in the Dockerfile, and leaves them out of the history.
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
CREDENTIALS = re.compile(r"(://)[^/\s@]+@")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*:\w[\w.-]{{0,127}}")
KNOWN_PUSH = (
    Known(
        re.compile(r"unauthorized|authentication required|access denied|denied:|no basic auth", re.IGNORECASE),
        "image.push_refused",
        "the right to push it",
        "set vllm_audio_image_name to a name in your own registry, and docker login on the host as who builds",
    ),
    *KNOWN_PULL,
)
# What KNOWN_PULL says is for images of services.
PULL_REMEDIES = {
    "image.not_found": "correct vllm_audio_image_base",
    "image.registry_unreachable": "look at the network, DNS and proxy of the Docker daemon; where there is no way out,"
    " load the base (docker load), or set vllm_audio_image_base to one in your own registry",
}
PUSH_REMEDIES = {
    "image.not_found": "see whether the registry of vllm_audio_image_name takes images under that name",
    "image.registry_unreachable": "see whether this host reaches the registry of vllm_audio_image_name, and correct it",
}


class EnvironmentRunner(t.Protocol):
    """As run_command: a runner that can be given another environment."""

    def __call__(
        self, argv: t.Sequence[str], timeout: float, environment: t.Mapping[str, str] | None = None
    ) -> CommandResult: ...


@dataclass(frozen=True)
class Options:
    """The options of the module ``vllm_image_build``."""

    root: str
    base: str
    context: t.Mapping[str, str]
    name: str = ""
    packages: t.Sequence[str] = ()
    requirements: t.Sequence[str] = ()
    index_url: str = ""
    pip_args: t.Sequence[str] = ()
    apt_source: str = ""
    files: str = ""
    digests: t.Mapping[str, str] | None = None
    network: str = "default"
    proxy: t.Mapping[str, str] | None = None
    pull: str = "missing"
    push: bool = False
    rebuild: bool = False
    check_audio: bool = True
    timeout: int = 3600


@dataclass
class Result:
    """What was done. ``id`` and ``pinned`` are empty where check mode can not know them."""

    image: str
    action: str = UNCHANGED
    pushed: bool = False
    id: str = ""
    pinned: str = ""
    base_id: str = ""
    build: str = ""
    builder: str = ""
    audio: str = ""
    size_bytes: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.action != UNCHANGED or self.pushed


def derived_name(base: str) -> str:
    """``vllm/vllm-openai:v1`` as ``vllm/vllm-openai-audio:v1``."""
    name, tag, digest = split_reference(base)
    return f"{name}-audio:{tag or digest.rpartition(':')[2][:12] or 'latest'}"


def scrub(text: str) -> str:
    return CREDENTIALS.sub(r"\1****@", text)


def file_digests(directory: str) -> dict[str, str]:
    """The SHA-256 of each package in a directory."""
    found = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(PACKAGE_FILES):
            value = hashlib.sha256()
            with open(os.path.join(directory, name), "rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    value.update(block)
            found[name] = value.hexdigest()
    return found


def labels_of(inspected: t.Mapping[str, t.Any] | None) -> dict[str, str]:
    return ((inspected or {}).get("Config") or {}).get("Labels") or {}


def recorded_inputs(inspected: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """What an image of ours says that it was made from."""
    try:
        value = json.loads(labels_of(inspected).get(INPUTS) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def digest_of(inputs: t.Mapping[str, t.Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def described(inputs: t.Mapping[str, t.Any], pushed: bool) -> str:
    """For a diff."""
    if not inputs:
        return ""
    return json.dumps({**inputs, "pushed": pushed}, indent=2, sort_keys=True) + "\n"


def with_remedy(problem: FleetError, remedies: t.Mapping[str, str]) -> FleetError:
    remedy = remedies.get(problem.code, problem.remedy)
    return FleetError(problem.code, problem.seen, problem.expected, remedy)


class Builder:
    """One derived image on one host."""

    def __init__(self, options: Options, check_mode: bool, run: EnvironmentRunner = run_command) -> None:
        self.options = options
        self.check_mode = check_mode
        self.run_program = run
        self.docker = Docker(run)
        self.root = absolute_root(options.root)
        self.name = self._named()
        self.result = Result(self.name)

    def run(self) -> dict[str, t.Any]:
        self._refuse()
        found = self._inspect(self.name)
        before = recorded_inputs(found)
        was_pushed = "@" in pinned(self.name, found or {})
        base = self._base(before)
        inputs = self._inputs(base, before)
        self.result.build = digest_of(inputs)
        if self._differs(found):
            self._refuse_foreign(found)
            found = self._build(base or {}, inputs)
        if found is not None:
            self._describe(found)
            if self.options.check_audio:
                self._check_audio()
            if self.options.push:
                self._push(was_pushed and self.result.action == UNCHANGED)
        elif self.options.push:
            self.result.pushed = True
        return self._answer(before, inputs, was_pushed)

    def _answer(
        self, before: t.Mapping[str, t.Any], inputs: t.Mapping[str, t.Any], was_pushed: bool
    ) -> dict[str, t.Any]:
        result = self.result
        stays = was_pushed and result.action == UNCHANGED
        said = result.said or [f"nothing to do: {self.name} was made from the same base and inputs"]
        return {
            **{key: value for key, value in vars(result).items() if key != "said"},
            "changed": result.changed,
            "base": self.options.base,
            "msg": "; ".join(said),
            "diff": {
                "before_header": self.name,
                "after_header": self.name,
                "before": described(before, was_pushed),
                "after": described(inputs, stays or result.pushed),
            },
        }

    # What is wanted

    def _named(self) -> str:
        name, tag, digest = split_reference(self.options.name or derived_name(self.options.base))
        full = f"{name}:{tag or 'latest'}"
        if digest or not NAME.fullmatch(full):
            raise FleetError(
                "image.bad_name",
                f"the name of the image is {self.options.name or full}",
                "a name such as registry.example.com/vllm-openai-audio:v0.33.0, in lower case and without a digest",
                "correct vllm_audio_image_name (or vllm_audio_image_base, which it follows where it is not set)",
            )
        return full

    def _refuse(self) -> None:
        options = self.options
        base, tag, _digest = split_reference(options.base)
        if self.name == f"{base}:{tag or 'latest'}":
            raise FleetError(
                "image.bad_name",
                f"the image would replace its own base {options.base}",
                "two names",
                "set vllm_audio_image_name to another one",
            )
        places = {"index_url": [options.index_url], "apt_source": [options.apt_source], "pip_args": options.pip_args}
        for name, values in places.items():
            if any(CREDENTIALS.search(value) for value in values):
                raise FleetError(
                    "image.credentials",
                    f"vllm_audio_image_{name} holds an address with credentials",
                    "one without: what a build is given stays readable in the image",
                    "name a mirror that needs none, or bring the packages as vllm_audio_image_files",
                )
        unknown = sorted(set(options.proxy or {}) - set(PROXIES))
        if unknown:
            raise FleetError(
                "image.bad_proxy",
                f"vllm_audio_image_proxy has {', '.join(unknown)}",
                f"only {', '.join(PROXIES)}",
                "correct its keys",
            )

    def _refuse_foreign(self, found: t.Mapping[str, t.Any] | None) -> None:
        if found is not None and LABEL not in labels_of(found):
            raise FleetError(
                "image.foreign",
                f"{self.name} is on this host, and is no image that was built here",
                "a name that nothing else has",
                f"set vllm_audio_image_name to another one, or remove it (docker image rm {self.name})",
            )

    def _inputs(self, base: t.Mapping[str, t.Any] | None, before: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """All that decides what is in the image. From where packages come, and over which proxy, does not."""
        options = self.options
        kept = before.get("base_id", "") if base is None and before.get("base") == options.base else ""
        self.result.base_id = str((base or {}).get("Id") or kept)
        return {
            "base": options.base,
            "base_id": self.result.base_id,
            "packages": sorted(options.packages),
            "requirements": sorted(options.requirements),
            "pip_args": list(options.pip_args),
            "files": self._digests(),
            "context": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in options.context.items()},
        }

    def _digests(self) -> dict[str, str]:
        if not self.options.files:
            return {}
        if self.check_mode and self.options.digests is not None:
            return dict(self.options.digests)
        try:
            found = file_digests(self.options.files)
        except OSError as exc:
            found = {}
            reason = exc.strerror
        else:
            reason = "it holds neither .whl nor .deb files"
        if not found:
            raise FleetError(
                "image.no_files",
                f"{self.options.files}: {reason}",
                "a directory with wheels and Debian packages",
                "correct vllm_audio_image_files",
            )
        return found

    def _differs(self, found: t.Mapping[str, t.Any] | None) -> bool:
        return self.options.rebuild or labels_of(found).get(LABEL) != self.result.build

    # What is there

    def _inspect(self, image: str) -> dict[str, t.Any] | None:
        found = self.docker.inspect("image", [image])
        return found[0] if found else None

    def _base(self, before: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
        """The base on this host. None where check mode would pull it, or where the image that is here was made of it
        and nobody asked for news: many gigabytes are not fetched again to find that nothing is to be done."""
        options = self.options
        found = self._inspect(options.base)
        if found is not None and options.pull != "always":
            return found
        known = options.pull != "always" and not options.rebuild and before.get("base") == options.base
        if known and digest_of(self._inputs(None, before)) == digest_of(before):
            return None
        if options.pull == "never":
            raise FleetError(
                "image.missing",
                f"{options.base} is not on this host, and vllm_audio_image_pull is never",
                "a base that was loaded before",
                f"load it (docker load --input FILE), or set vllm_audio_image_pull: missing to pull {options.base}",
            )
        return found if self.check_mode else self._pull()

    def _pull(self) -> dict[str, t.Any] | None:
        base = self.options.base
        done = self.docker.call("pull", "--quiet", base, timeout=float(self.options.timeout), check=False)
        if done.rc != 0:
            raise with_remedy(failure(done, f"pulling {base}", KNOWN_PULL), PULL_REMEDIES)
        return self._inspect(base)

    def _describe(self, found: t.Mapping[str, t.Any]) -> None:
        self.result.id = str(found.get("Id") or "")
        self.result.pinned = pinned(self.name, found)
        self.result.size_bytes = int(found.get("Size") or 0)

    # Building

    def _build(self, base: t.Mapping[str, t.Any], inputs: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
        self.result.action = BUILT
        self.result.said.append(
            f"{self.name} {'would be' if self.check_mode else 'was'} built from {self.options.base}"
        )
        if self.check_mode:
            return None
        make_directory(self.root, 0o755)
        with self._alone(), tempfile.TemporaryDirectory(dir=self.root, prefix=".image-build-") as directory:
            self._fill(directory, inputs["files"])
            user = (base.get("Config") or {}).get("User") or "root"
            arguments = [
                *("--build-arg", f"BASE={self.options.base}", "--build-arg", f"BASE_USER={user}"),
                *("--label", f"{LABEL}={self.result.build}"),
                *("--label", f"{INPUTS}={json.dumps(inputs, sort_keys=True)}"),
                *("--network", self.options.network, "--tag", self.name),
                *(["--no-cache"] if self.options.rebuild else []),
            ]
            self._run_build(arguments, directory)
        built = self._inspect(self.name)
        if built is None:
            raise FleetError(
                "image.build_failed",
                f"docker build ended well, and {self.name} is not on this host",
                "a builder that keeps what it builds in the Docker daemon",
                "see what 'docker buildx ls' says of the builder default",
            )
        return built

    @contextlib.contextmanager
    def _alone(self) -> t.Iterator[None]:
        """One build at a time; what a killed one left is removed."""
        with open(os.path.join(self.root, "image-build.lock"), "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FleetError(
                    "image.build_running",
                    f"another build of an image runs on this host ({lock.name} is locked)",
                    "one at a time",
                    "wait until it has ended, then run again",
                ) from None
            for name in os.listdir(self.root):
                if name.startswith(".image-build-"):
                    shutil.rmtree(os.path.join(self.root, name))
            yield

    def _fill(self, directory: str, files: t.Mapping[str, str]) -> None:
        options = self.options
        request = {
            "packages": list(options.packages),
            "requirements": list(options.requirements),
            "index_url": options.index_url,
            "pip_args": list(options.pip_args),
            "apt_source": options.apt_source,
            "offline": options.network == "none",
        }
        for name, text in {**options.context, "request.json": json.dumps(request, indent=2)}.items():
            path = os.path.join(directory, name)
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(path, 0o644)
        target = os.path.join(directory, "files")
        os.mkdir(target, 0o755)
        for name in files:
            shutil.copyfile(os.path.join(options.files, name), os.path.join(target, name))
            os.chmod(os.path.join(target, name), 0o644)

    def _run_build(self, arguments: t.Sequence[str], directory: str) -> None:
        buildkit = self.docker.call("buildx", "version", check=False).rc == 0
        self.result.builder = "buildkit" if buildkit else "classic"
        proxies = {
            name: str(value)
            for key, value in (self.options.proxy or {}).items()
            if value
            for name in (key, key.upper())
        }
        environment = {
            **os.environ,
            **proxies,
            "LC_ALL": "C",
            "LANGUAGE": "C",
            "DOCKER_BUILDKIT": "1" if buildkit else "0",
            "BUILDKIT_PROGRESS": "plain",
            "BUILDX_BUILDER": "default",
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        }
        # Without a value, docker takes it from the environment: a command line can be read by everybody.
        passed = [word for name in proxies for word in ("--build-arg", name)]
        # The classic builder keeps the container of a step that failed, unless it is told not to.
        tidy = [] if buildkit else ["--force-rm"]
        argv = ["docker", "build", *tidy, *arguments, *passed, directory]
        done = self.run_program(argv, float(self.options.timeout), environment)
        if done.rc != 0:
            raise self._build_failure(done)

    def _build_failure(self, done: CommandResult) -> FleetError:
        text = scrub(f"{done.out}\n{done.err}")
        told = re.search(r"AUDIO-IMAGE-ERROR (\{.*\})", text)
        if told:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(told[1])
                return FleetError(
                    said["code"], f"building {self.name}: {said['seen']}", said["expected"], said["remedy"]
                )
        if done.timed_out:
            return FleetError(
                "image.build_timeout",
                f"building {self.name} did not end within {self.options.timeout} s",
                "it ends in time",
                "raise vllm_audio_image_timeout, or look at the network of the build",
            )
        # BuildKit numbers its lines, and its last ones repeat the Dockerfile.
        lines = [re.sub(r"^#\d+ (?:[\d.]+ )?", "", line).strip() for line in text.splitlines()]
        end = " | ".join([line for line in lines if line and not re.match(r"-+$|>+ |\d+ \|", line)][-3:])
        return failure(CommandResult(done.rc, "", end), f"building {self.name}", KNOWN_PULL)

    # After it

    def _check_audio(self) -> None:
        """As vllm_image will do it before a service starts. An image that fails it stays, for a person to look into."""
        answer = ask_audio(self.docker, self.result.id, self.name)
        self.result.audio = str(answer.get("detail") or "")
        if not answer.get("audio"):
            raise FleetError(
                "image.no_audio",
                f"{self.name} is built and can not decode audio ({self.result.audio})",
                "FFmpeg's libraries for torchcodec, or PyAV",
                "name what is missing in vllm_audio_image_packages or vllm_audio_image_requirements, then run again",
            )

    def _push(self, was_pushed: bool) -> None:
        if self.check_mode:
            self.result.pushed = not was_pushed
            return
        done = self.docker.call("push", self.name, timeout=float(self.options.timeout), check=False)
        if done.rc != 0:
            raise with_remedy(failure(done, f"pushing {self.name}", KNOWN_PUSH), PUSH_REMEDIES)
        # A registry that lost it gets it again; one that has it says so of every layer.
        self.result.pushed = not was_pushed or bool(re.search(r": (?:Pushed|Mounted from)", done.out))
        if self.result.pushed:
            self.result.said.append(f"{self.name} was pushed")
        self._describe(self._inspect(self.name) or {})
