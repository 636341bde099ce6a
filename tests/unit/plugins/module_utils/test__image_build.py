# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._image_build import (
    INPUTS,
    LABEL,
    Builder,
    Options,
    derived_name,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

BASE = "10.0.0.1:5000/engine:1"
NAME = "10.0.0.1:5000/engine-audio:1"
CONTEXT = {"Dockerfile": "ARG BASE\nFROM ${BASE}\n", "install.py": "print()\n"}


class Engine:
    """A docker command with images by name. ``fails`` are answers of a subcommand instead of its work."""

    def __init__(self, buildx: bool = False) -> None:
        self.images: dict[str, dict[str, t.Any]] = {}
        self.there = {BASE: {"Id": "sha256:base", "Config": {"User": "2000:0"}}}
        self.fails: dict[str, CommandResult] = {}
        self.answer = '{"audio": true, "missing": [], "detail": "decoded by av"}'
        self.pushed = "abc: Pushed\n"
        self.buildx = buildx
        self.calls: list[list[str]] = []
        self.environment: dict[str, str] = {}
        self.context: dict[str, str] = {}
        self.built = 0

    def __call__(
        self, argv: t.Sequence[str], timeout: float, environment: t.Mapping[str, str] | None = None
    ) -> CommandResult:
        self.calls.append(list(argv))
        if argv[1] in self.fails:
            return self.fails[argv[1]]
        answer: CommandResult = getattr(self, f"_{argv[1]}")(list(argv), dict(environment or {}))
        return answer

    def _image(self, argv: list[str], _environment: dict[str, str]) -> CommandResult:
        found = self.images.get(argv[3])
        return CommandResult(0, json.dumps([found]), "") if found else CommandResult(1, "[]", "Error: No such image: x")

    def _pull(self, argv: list[str], _environment: dict[str, str]) -> CommandResult:
        if argv[-1] not in self.there:
            return CommandResult(1, "", "manifest unknown: manifest unknown")
        self.images[argv[-1]] = self.there[argv[-1]]
        return CommandResult(0, "", "")

    def _buildx(self, _argv: list[str], _environment: dict[str, str]) -> CommandResult:
        return CommandResult(0 if self.buildx else 1, "", "docker: 'buildx' is not a docker command.")

    def _build(self, argv: list[str], environment: dict[str, str]) -> CommandResult:
        self.environment = environment
        directory = Path(argv[-1])
        self.context = {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*.*")}
        labels = dict(argv[at + 1].split("=", 1) for at, word in enumerate(argv) if word == "--label")
        self.built += 1
        name = argv[argv.index("--tag") + 1]
        self.images[name] = {"Id": f"sha256:{self.built}", "Config": {"Labels": labels}, "Size": 7}
        return CommandResult(0, "", "")

    def _run(self, argv: list[str], _environment: dict[str, str]) -> CommandResult:
        return CommandResult(0, f"a warning\n{self.answer}\n", "")

    def _push(self, argv: list[str], _environment: dict[str, str]) -> CommandResult:
        self.images[argv[2]]["RepoDigests"] = [f"{argv[2].rpartition(':')[0]}@sha256:{self.built:064}"]
        return CommandResult(0, self.pushed, "")

    def count(self, command: str) -> int:
        return len([call for call in self.calls if call[1] == command])


@pytest.fixture
def engine() -> Engine:
    return Engine()


def run(root: Path, engine: Engine, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    given = {"base": BASE, "context": CONTEXT, "requirements": ["av"], **options}
    return Builder(Options(root=str(root / "root"), **given), check, engine).run()


def refused(root: Path, engine: Engine, **options: t.Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        run(root, engine, **options)
    assert caught.value.remedy
    return caught.value


def packages(root: Path, **texts: str) -> str:
    directory = root / "packages"
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        (directory / f"{name}.whl").write_text(text)
    (directory / "README").touch()
    return str(directory)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("vllm/vllm-openai:v0.33.0", "vllm/vllm-openai-audio:v0.33.0"),
        ("localhost:5000/engine", "localhost:5000/engine-audio:latest"),
        ("engine@sha256:" + "4" * 64, "engine-audio:444444444444"),
    ],
)
def test_a_name_follows_its_base(base: str, name: str) -> None:
    assert derived_name(base) == name


def test_it_is_built_once(tmp_path: Path, engine: Engine) -> None:
    foretold = run(tmp_path, engine, check=True)
    assert (foretold["changed"], foretold["id"], engine.count("build")) == (True, "", 0)
    assert foretold["msg"] == f"{NAME} would be built from {BASE}"
    first = run(tmp_path, engine)
    assert (first["changed"], first["action"], first["audio"]) == (True, "built", "decoded by av")
    assert (first["pinned"], first["size_bytes"], first["builder"]) == ("sha256:1", 7, "classic")
    for check in (True, False):
        again = run(tmp_path, engine, check=check)
        assert (again["changed"], again["action"], again["id"]) == (False, "unchanged", "sha256:1")
        assert again["msg"].startswith("nothing to do")
        assert again["diff"]["before"] == again["diff"]["after"]
    assert engine.count("build") == 1
    assert os.listdir(tmp_path / "root") == ["image-build.lock"]


def test_check_mode_shows_the_diff_of_the_build(tmp_path: Path, engine: Engine) -> None:
    engine.images.update(engine.there)
    run(tmp_path, engine)
    wanted: dict[str, t.Any] = {"requirements": ["av", "soundfile"], "push": True}
    foretold = run(tmp_path, engine, check=True, **wanted)
    done = run(tmp_path, engine, **wanted)
    assert foretold["diff"] == done["diff"]
    assert (foretold["changed"], foretold["pushed"], foretold["build"]) == (True, True, done["build"])
    assert '"soundfile"' not in done["diff"]["before"]
    assert '"soundfile"' in done["diff"]["after"]


@pytest.mark.parametrize(
    "change",
    [
        {"requirements": ["av", "scipy"]},
        {"packages": ["ffmpeg"]},
        {"pip_args": ["--pre"]},
        {"context": {**CONTEXT, "install.py": "pass\n"}},
        {"rebuild": True},
    ],
)
def test_what_is_built_anew(tmp_path: Path, engine: Engine, change: dict[str, t.Any]) -> None:
    run(tmp_path, engine)
    assert run(tmp_path, engine, **change)["id"] == "sha256:2"
    assert ("--no-cache" in next(call for call in reversed(engine.calls) if call[1] == "build")) == (
        "rebuild" in change
    )


def test_where_packages_come_from_is_no_input(tmp_path: Path, engine: Engine) -> None:
    run(tmp_path, engine)
    other: dict[str, t.Any] = {
        "index_url": "https://mirror.example.com/simple",
        "network": "host",
        "proxy": {"http_proxy": "http://p:1"},
    }
    assert not run(tmp_path, engine, **other)["changed"]


def test_a_newer_base_is_another_image(tmp_path: Path, engine: Engine) -> None:
    run(tmp_path, engine)
    engine.there[BASE] = {**engine.there[BASE], "Id": "sha256:newer"}
    assert not run(tmp_path, engine)["changed"]
    assert run(tmp_path, engine, pull="always")["base_id"] == "sha256:newer"
    assert engine.count("build") == 2


def test_a_base_that_is_gone_is_not_pulled_for_nothing(tmp_path: Path, engine: Engine) -> None:
    run(tmp_path, engine)
    del engine.images[BASE]
    for pull in ("missing", "never"):
        again = run(tmp_path, engine, pull=pull)
        assert (again["changed"], again["base_id"]) == (False, "sha256:base")
    assert engine.count("pull") == 1
    assert refused(tmp_path, engine, pull="never", packages=["ffmpeg"]).code == "image.missing"
    assert run(tmp_path, engine, packages=["ffmpeg"])["changed"]
    assert engine.count("pull") == 2


def test_the_files_are_brought_and_known_by_their_content(tmp_path: Path, engine: Engine) -> None:
    directory = packages(tmp_path, av="one")
    run(tmp_path, engine, files=directory, network="none")
    assert engine.context["files/av.whl"] == "one"
    assert json.loads(engine.context["request.json"])["offline"] is True
    assert "files/README" not in engine.context
    assert not run(tmp_path, engine, files=directory, network="none")["changed"]
    packages(tmp_path, av="two")
    assert run(tmp_path, engine, files=directory)["changed"]
    # Check mode trusts what it is told: the files may not be there yet.
    told = {"av.whl": "0" * 64}
    foretold = run(tmp_path, engine, check=True, files=str(tmp_path / "nowhere"), digests=told)
    assert foretold["changed"]
    assert "0" * 64 in foretold["diff"]["after"]


def test_a_directory_without_packages(tmp_path: Path, engine: Engine) -> None:
    assert refused(tmp_path, engine, files=packages(tmp_path)).code == "image.no_files"
    assert "No such file" in refused(tmp_path, engine, files=str(tmp_path / "nowhere")).seen


@pytest.mark.parametrize("buildx", [True, False])
def test_both_builders_get_what_they_need(tmp_path: Path, buildx: bool) -> None:
    engine = Engine(buildx)
    proxy = {"https_proxy": "http://me:secret@proxy:3128", "no_proxy": ""}
    result = run(tmp_path, engine, proxy=proxy)
    assert result["builder"] == ("buildkit" if buildx else "classic")
    (argv,) = (call for call in engine.calls if call[1] == "build")
    assert ("--force-rm" in argv) is not buildx
    assert f"BASE={BASE}" in argv
    assert "BASE_USER=2000:0" in argv
    assert engine.environment["DOCKER_BUILDKIT"] == ("1" if buildx else "0")
    assert engine.environment["https_proxy"] == engine.environment["HTTPS_PROXY"] == proxy["https_proxy"]
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--build-arg"][2:] == ["https_proxy", "HTTPS_PROXY"]
    assert "secret" not in json.dumps([engine.calls, engine.context, result])


def test_a_push_is_done_once_and_repaired(tmp_path: Path, engine: Engine) -> None:
    run(tmp_path, engine)
    assert run(tmp_path, engine, check=True, push=True)["pushed"]
    first = run(tmp_path, engine, push=True)
    assert (first["changed"], first["action"], first["pushed"]) == (True, "unchanged", True)
    assert first["pinned"].startswith(f"{NAME}@sha256:")
    engine.pushed = "abc: Layer already exists\n"
    for check in (True, False):
        assert not run(tmp_path, engine, check=check, push=True)["changed"]
    engine.pushed = "abc: Pushed\n"
    assert run(tmp_path, engine, push=True)["changed"]


def test_a_push_that_is_refused(tmp_path: Path, engine: Engine) -> None:
    engine.fails["push"] = CommandResult(1, "", "denied: requested access to the resource is denied")
    assert refused(tmp_path, engine, push=True).code == "image.push_refused"
    engine.fails["push"] = CommandResult(1, "", "dial tcp 10.0.0.1:5000: connect: connection refused")
    problem = refused(tmp_path, engine, push=True)
    assert problem.code == "image.registry_unreachable"
    assert "vllm_audio_image_name" in problem.remedy


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"index_url": "https://me:secret@mirror/simple"}, "image.credentials"),
        ({"pip_args": ["--find-links=https://secret@mirror"]}, "image.credentials"),
        ({"apt_source": "deb http://me:secret@mirror suite main"}, "image.credentials"),
        ({"proxy": {"PROXY": "secret"}}, "image.bad_proxy"),
        ({"name": BASE}, "image.bad_name"),
        ({"name": "Engine"}, "image.bad_name"),
        ({"name": "engine@sha256:" + "4" * 64}, "image.bad_name"),
    ],
)
def test_what_is_refused_before_anything_runs(
    tmp_path: Path, engine: Engine, options: dict[str, t.Any], code: str
) -> None:
    problem = refused(tmp_path, engine, **options)
    assert problem.code == code
    assert "secret" not in str(problem)
    assert engine.calls == []


def test_an_image_of_somebody_else_is_not_replaced(tmp_path: Path, engine: Engine) -> None:
    engine.images[NAME] = {"Id": "sha256:theirs", "Config": {"Labels": None}}
    assert refused(tmp_path, engine, rebuild=True).code == "image.foreign"
    assert engine.images[NAME]["Id"] == "sha256:theirs"


def test_labels_that_nobody_can_read_are_built_over(tmp_path: Path, engine: Engine) -> None:
    engine.images[NAME] = {"Id": "sha256:old", "Config": {"Labels": {LABEL: "x", INPUTS: "{"}}}
    assert run(tmp_path, engine)["id"] == "sha256:1"


def test_a_base_that_no_registry_has(tmp_path: Path, engine: Engine) -> None:
    engine.there.clear()
    problem = refused(tmp_path, engine)
    assert (problem.code, problem.remedy) == ("image.not_found", "correct vllm_audio_image_base")


@pytest.mark.parametrize(
    ("done", "code", "seen"),
    [
        (
            '#9 1.2 AUDIO-IMAGE-ERROR {"code": "image.no_apt", "seen": "no apt", "expected": "it", "remedy": "do"}',
            "image.no_apt",
            f"building {NAME}: no apt",
        ),
        ("AUDIO-IMAGE-ERROR {}\nwrite /x: no space left on device", "host.disk_full", "no space left"),
        (
            "#7 0.1 first\n#7 0.2 http://me:secret@x broke\n 4 | RUN x\n-----\nERROR: it",
            "docker.failed",
            "http://****@x",
        ),
    ],
)
def test_a_build_that_fails_says_why(tmp_path: Path, engine: Engine, done: str, code: str, seen: str) -> None:
    engine.fails["build"] = CommandResult(1, "", done)
    problem = refused(tmp_path, engine)
    assert problem.code == code
    assert seen in problem.seen
    assert "RUN x" not in problem.seen
    assert os.listdir(tmp_path / "root") == ["image-build.lock"]


def test_a_build_that_takes_too_long(tmp_path: Path, engine: Engine) -> None:
    engine.fails["build"] = CommandResult(124, "Step 5/7", "docker did not end within 9 s", timed_out=True)
    problem = refused(tmp_path, engine, timeout=9)
    assert (problem.code, "9 s" in problem.seen) == ("image.build_timeout", True)


def test_a_builder_that_keeps_the_image_elsewhere(tmp_path: Path, engine: Engine) -> None:
    engine.fails["build"] = CommandResult(0, "", "")
    assert refused(tmp_path, engine).code == "image.build_failed"


def test_an_image_without_audio_stays_and_is_not_pushed(tmp_path: Path, engine: Engine) -> None:
    engine.answer = '{"audio": false, "missing": ["av"], "detail": "av: No module named av"}'
    for _attempt in range(2):
        problem = refused(tmp_path, engine, push=True)
        assert problem.code == "image.no_audio"
        assert "No module named av" in problem.seen
    assert (engine.count("build"), engine.count("push")) == (1, 0)
    assert NAME in engine.images
    engine.answer = ""
    assert refused(tmp_path, engine).code == "docker.failed"
    assert not run(tmp_path, engine, check_audio=False)["changed"]


def test_one_build_at_a_time(tmp_path: Path, engine: Engine) -> None:
    root = tmp_path / "root"
    (root / ".image-build-left").mkdir(parents=True)
    with open(root / "image-build.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refused(tmp_path, engine).code == "image.build_running"
    assert run(tmp_path, engine)["changed"]
    assert os.listdir(root) == ["image-build.lock"]
