# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's image archives: the simulator's, run as a container would run it. Needs root, mmdebstrap and unshare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._audio_check import SOURCE as AUDIO_CHECK
from lab_images import IMAGES, Image, ImageError, build_all, store
from lab_images.__main__ import main

PORT = 18731
# The image's root, read-only, with a home and a /tmp of its own; as user 2000 of group 0, which has no capabilities.
CONTAINER = """
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o uid=2000,gid=0,mode=2775 tmpfs "$root/home/vllm"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec setpriv --no-new-privs env -i "$@"
"""


class Root:
    """An image's files, unpacked, and a way to run its programs."""

    def __init__(self, image: Image, directory: Path) -> None:
        self.image = image
        self.directory = directory
        directory.chmod(0o755)
        for layer in image.layers:
            subprocess.run(["tar", "-C", directory, "-xpf", layer, "--numeric-owner"], check=True)

    def argv(self, *words: str) -> list[str]:
        space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", CONTAINER, "sh"]
        user = ["/usr/sbin/chroot", f"--userspec={self.image.config['User']}", "--groups="]
        return [*space, str(self.directory), *self.image.config["Env"], *user, str(self.directory), *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.argv(*words), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def python(self, source: str) -> str:
        return self.run("python3", "-c", source)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Root]:
    images = build_all(["engine-sim:1", "engine-sim:noaudio"])
    return {image.ref: Root(image, tmp_path_factory.mktemp("root")) for image in images}


@pytest.fixture(scope="module")
def root(roots: dict[str, Root]) -> Root:
    return roots["engine-sim:1"]


def test_the_entry_point_is_the_official_images(root: Root) -> None:
    assert root.image.config["Entrypoint"] == ["vllm", "serve"]
    version = root.run("vllm", "--version")
    assert version.endswith("+sim")
    seen = root.python("import vllm, importlib.metadata as m; print(vllm.__version__, m.version('vllm'))")
    assert seen == f"{version} {version}"


def test_it_runs_without_privileges_on_a_read_only_root(root: Root) -> None:
    source = """
import os, pathlib
pathlib.Path(os.environ["HOME"], "file").touch()
try:
    pathlib.Path("/usr/file").touch()
except OSError as error:
    print(os.getuid(), os.getgid(), error.strerror)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs"))])
"""
    assert root.python(source).splitlines() == ["2000 0 Read-only file system", "['0000000000000000', '1']"]


def test_the_home_is_writable_for_group_0(root: Root) -> None:
    status = (root.directory / "home" / "vllm").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o775) == (2000, 0, 0o775)


@pytest.mark.parametrize(("name", "audio"), [("engine-sim:1", True), ("engine-sim:noaudio", False)])
def test_the_audio_check_tells_the_images_apart(roots: dict[str, Root], name: str, audio: bool) -> None:
    said = json.loads(roots[name].python(AUDIO_CHECK))
    assert said["vllm"].endswith("+sim")
    assert said["audio"] is audio
    assert ("av" in said["missing"]) is not audio


def test_nothing_is_compiled_at_a_start(root: Root) -> None:
    for library in ("usr/lib/python3.11/http", "usr/local/lib/python3.11/dist-packages/engine_sim"):
        sources = {file.stem for file in (root.directory / library).glob("*.py")}
        compiled = {file.name.split(".")[0] for file in (root.directory / library / "__pycache__").iterdir()}
        assert sources
        assert sources <= compiled


@pytest.fixture
def served(root: Root) -> Iterator[str]:
    argv = root.argv(*root.image.config["Entrypoint"], "/model", "--served-model-name", "tiny", "--port", str(PORT))
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        said: list[str] = []
        assert process.stderr is not None
        reader = threading.Thread(target=said.extend, args=(process.stderr,))
        reader.start()
        try:
            deadline = time.monotonic() + 30
            while not any("startup complete" in line for line in said):
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.05)
            yield f"http://127.0.0.1:{PORT}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()


def test_it_serves(served: str) -> None:
    question = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    request = urllib.request.Request(
        f"{served}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert "Paris" in json.load(answer)["choices"][0]["message"]["content"]


def test_two_builds_of_the_simulator_differ_in_a_label_alone(root: Root) -> None:
    first, second = build_all(["engine-sim:1", "engine-sim:2"])
    assert first.layers == second.layers
    assert first.config["Labels"] != second.config["Labels"]
    assert {**first.config, "Labels": {}} == {**second.config, "Labels": {}}


def test_the_real_images_are_the_official_ones_shape() -> None:
    assert [name for name in IMAGES if name.startswith("vllm-openai")] == [
        "vllm-openai:0.32.0",
        "vllm-openai-audio:0.32.0",
    ]


def test_the_command_says_where_an_image_is(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "engine-sim:1"]) == 0
    (image,) = json.loads(capsys.readouterr().out)
    assert image["ref"] == "engine-sim:1"
    assert [Path(layer) for layer in image["layers"]] == list(root.image.layers)
    assert image["bytes"] < 100_000_000
    assert main(["build", "engine-sim:3"]) == 1
    assert "no image engine-sim:3" in capsys.readouterr().err


# The cache of archives


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUFLEET_CACHE", str(tmp_path))
    return tmp_path / "lab" / "images"


def write(text: str) -> Any:
    def builder(_scratch: Path, target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    return builder


def test_an_archive_is_built_once_and_replaced_when_its_input_changes(cache: Path) -> None:
    first = store.archive("a", {"x": 1}, write("one"))
    assert store.archive("a", {"x": 1}, write("never")) == first
    assert first.read_text(encoding="utf-8") == "one"
    other = store.archive("a-b", {"x": 1}, write("other"))
    second = store.archive("a", {"x": 2}, write("two"))
    assert sorted(cache.glob("*.tar")) == sorted([second, other])


def test_a_failed_build_leaves_nothing(cache: Path) -> None:
    def fail(scratch: Path, _target: Path) -> None:
        (scratch / "half").touch()
        store.run("sh", "-c", "echo no such mirror >&2; exit 3")

    with pytest.raises(ImageError, match="ended with 3: no such mirror"):
        store.archive("a", {}, fail)
    assert [entry.name for entry in cache.iterdir()] == [".a.lock"]


def test_two_at_once_build_once(cache: Path) -> None:
    built: list[int] = []

    def slow(_scratch: Path, target: Path) -> None:
        built.append(1)
        time.sleep(0.2)
        target.touch()

    threads = [threading.Thread(target=store.archive, args=("a", {}, slow)) for _index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_what_is_missing_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PROGRAMS", {"no-such-program": "some-package"})
    with pytest.raises(ImageError, match="install --no-install-recommends some-package"):
        store.archive("a", {}, write("never"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="uid 1000"):
        store.archive("a", {}, write("never"))
