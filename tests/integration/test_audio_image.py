# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image for speech models: built offline on one emulated host, pushed, and run on another that pulls it.

The wheels are pip itself and a stand-in for PyAV. Needs root; the lab installs what it lacks and says what it can not
install.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
import typing as t
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, Run
from gpu_lab import registry_address
from lab_box import ROOT, LabBox, image, lab_of

pytestmark = pytest.mark.lab

BUILDER, OTHER = "gpu-12", "gpu-13"
BASE = image("noaudio")
NAME = f"{registry_address()}/engine-sim-audio:test"
SITE = "/usr/local/lib/python3.11/dist-packages"
WHISPER = {"name": "whisper", "model": "openai-mirror/whisper-large-v3-turbo", "gpus": [0], "port": 8081}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabBox]:
    with lab_of("audio-image", {BUILDER: "debian12", OTHER: "debian13"}, tmp_path_factory.mktemp("audio")) as box:
        yield box


@pytest.fixture(scope="module")
def packages(lab: LabBox) -> Path:
    directory = lab.directory / "packages"
    directory.mkdir()
    bundled = Path(str(importlib.resources.files("ensurepip"))) / "_bundled"
    wheels = sorted(bundled.glob("pip-*.whl"))
    assert wheels, f"{bundled} has no wheel of pip: this Python has no ensurepip (Debian: apt-get install python3-venv)"
    shutil.copy(wheels[-1], directory)
    make_wheel(directory, "av", "1.0", REPOSITORY / "tests/lab/lab_images/overlay/av.py")
    return directory


def make_wheel(directory: Path, name: str, version: str, source: Path) -> Path:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source.read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def build(lab: LabBox, packages: Path, *arguments: str, **variables: t.Any) -> Run:
    wanted = {
        "vllm_audio_image_hosts": BUILDER,
        "vllm_audio_image_base": BASE,
        "vllm_audio_image_name": NAME,
        "vllm_audio_image_packages": [],
        "vllm_audio_image_requirements": ["av"],
        "vllm_audio_image_files": str(packages),
        "vllm_audio_image_network": "none",
        **variables,
    }
    return lab.play("audio_image", [], *arguments, "-e", json.dumps(wanted))


def config(lab: LabBox, name: str, host: str = BUILDER) -> dict[str, t.Any]:
    found: dict[str, t.Any] = json.loads(
        lab.docker("image", "inspect", name, "--format", "{{json .Config}}", host=host)
    )
    return found


def diff_of(run: Run) -> list[str]:
    """What the diff of the build showed."""
    task = run.output.split("vllm_audio_image : Build the image]", 1)[1].split("\nTASK [", 1)[0]
    return [line for line in task.splitlines() if line.startswith(("+", "-", "@"))]


@pytest.fixture(scope="module")
def pushed(lab: LabBox, packages: Path) -> str:
    """The image, built and in the registry: what the playbook says to write in the inventory."""
    run = build(lab, packages, vllm_audio_image_push=True)
    assert run.rc == 0, run.output
    written = [
        line.partition("image: ")[2].strip(" '") for line in run.output.splitlines() if "speech model: image:" in line
    ]
    assert [line.partition("@sha256:")[0] for line in written] == [NAME]
    return written[0]


def test_the_check_sends_one_here(lab: LabBox) -> None:
    run = lab.deploy([{**WHISPER, "image": BASE}], "--limit", OTHER)
    assert run.rc != 0
    assert "can not decode audio" in run.output
    assert "playbooks/audio_image.yml" in run.output
    assert lab.containers(OTHER) == {}


def test_check_mode_foretells_the_build(lab: LabBox, packages: Path) -> None:
    own = {"vllm_audio_image_name": "engine-sim-audio:foretold"}
    lab.docker("pull", "--quiet", BASE, host=BUILDER)
    foretold = build(lab, packages, "--check", "--diff", **own)
    assert foretold.rc == 0, foretold.output
    assert foretold.changed > 0
    assert "would be built" in foretold.output
    assert lab.sh(f"ls -A {ROOT} 2>/dev/null", BUILDER, check=False) == ""
    run = build(lab, packages, "--diff", **own)
    assert run.rc == 0, run.output
    assert run.changed == foretold.changed
    assert diff_of(run) == diff_of(foretold)
    again = build(lab, packages, **own)
    assert (again.rc, again.changed) == (0, 0), again.output
    assert "nothing to do: engine-sim-audio:foretold was made from the same base and inputs" in again.output


def test_the_result_is_the_base_and_what_decodes_audio(lab: LabBox, pushed: str) -> None:
    base, built = config(lab, BASE), config(lab, NAME)
    assert base["User"] == "2000:0"
    for key in ("User", "Entrypoint", "Cmd", "Env", "WorkingDir"):
        assert built[key] == base[key], key
    inside = f"cat {SITE}/av-1.0.dist-info/METADATA; ls -d /tmp/*; ls {SITE}/__pycache__"
    ran = lab.docker(
        "run", "--rm", "--network", "none", "--entrypoint", "sh", NAME, "-c", f"{inside} 2>&1 || :", host=BUILDER
    )
    assert "Name: av" in ran
    assert "/tmp/gpufleet-audio" not in ran
    assert "av.cpython-311.pyc" in ran


def test_whisper_runs_on_a_host_that_pulls_it(lab: LabBox, packages: Path, pushed: str) -> None:
    run = lab.deploy([{**WHISPER, "image": pushed}], "--limit", OTHER)
    assert run.rc == 0, run.output
    assert lab.answers(8081, OTHER)
    assert lab.inspect("vllm-whisper", OTHER)["Config"]["Image"] == pushed
    again = build(lab, packages, vllm_audio_image_push=True)
    assert (again.rc, again.changed) == (0, 0), again.output


def test_other_inputs_are_another_image(lab: LabBox, packages: Path, pushed: str, tmp_path: Path) -> None:
    before = lab.docker("image", "inspect", "--format", "{{.Id}}", NAME, host=BUILDER)
    newer = tmp_path / "packages"
    shutil.copytree(packages, newer)
    (newer / "av-1.0-py3-none-any.whl").unlink()
    make_wheel(newer, "av", "2.0", REPOSITORY / "tests/lab/lab_images/overlay/av.py")
    foretold = build(lab, newer, "--check", "--diff")
    run = build(lab, newer, "--diff")
    assert (foretold.rc, run.rc) == (0, 0), run.output
    assert diff_of(foretold) == diff_of(run)
    assert any("av-1.0-py3-none-any.whl" in line for line in diff_of(run) if line.startswith("-"))
    assert any("av-2.0-py3-none-any.whl" in line for line in diff_of(run) if line.startswith("+"))
    assert run.changed == foretold.changed == 3, "a wheel came, a wheel went, the image was built"
    assert lab.docker("image", "inspect", "--format", "{{.Id}}", NAME, host=BUILDER) != before
    assert lab.sh(f"ls {ROOT}/audio-image-files/av-*", BUILDER).endswith("av-2.0-py3-none-any.whl")


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"vllm_audio_image_base": f"{BASE}-none"}, "image.not_found", "correct vllm_audio_image_base"),
        ({"vllm_audio_image_requirements": ["soundfile"]}, "image.no_package", "soundfile"),
        ({"vllm_audio_image_requirements": []}, "image.no_audio", "No module named 'av'"),
    ],
)
def test_what_fails_says_why(lab: LabBox, packages: Path, variables: dict[str, t.Any], code: str, said: str) -> None:
    own = {"vllm_audio_image_name": "engine-sim-audio:failing", **variables}
    run = build(lab, packages, **own)
    assert run.rc != 0
    assert f"code: {code}\n" in run.output, run.output
    assert said in " ".join(run.output.split())
    assert lab.containers(BUILDER) == {}
    assert lab.sh(f"ls -A {ROOT}", BUILDER).split() == ["audio-image-files", "image-build.lock"]


def test_two_hosts_do_not_push_under_one_name(lab: LabBox, packages: Path) -> None:
    run = build(lab, packages, vllm_audio_image_hosts="gpu_hosts", vllm_audio_image_push=True)
    assert run.rc != 0
    assert f"vllm_audio_image_hosts={BUILDER}" in run.output
