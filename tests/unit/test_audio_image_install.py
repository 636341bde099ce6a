# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that installs inside the image for speech models, with stand-ins for the installers."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "roles/vllm_audio_image/files/install.py"
AUDIO = [
    "torch==2.13.0",
    'av; extra == "audio"',
    "scipy>=1; python_version < '3.99' and extra == 'audio'",
    'a; extra=="b"',
]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audio_image_install", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    place = tmp_path / "place"
    (place / "files").mkdir(parents=True)
    monkeypatch.setattr(module, "HERE", place)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return module


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Make a command that writes down its arguments, then does what the script says."""

    def make(name: str, script: str) -> Path:
        log = tmp_path / f"{name}.log"
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$*" >>"{log}"\n{script}\n')
        path.chmod(0o755)
        return log

    return make


def failure(capsys: pytest.CaptureFixture[str], run: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(SystemExit):
        run()
    told: dict[str, str] = json.loads(capsys.readouterr().out.rpartition("AUDIO-IMAGE-ERROR ")[2])
    return told


def test_an_extra_is_its_packages_alone(install: ModuleType) -> None:
    assert install.of_extra(AUDIO, "audio") == ["av", "scipy>=1; python_version < '3.99'"]
    assert install.of_extra(AUDIO, "none") == []
    assert install.expand("librosa>=1") == ["librosa>=1"]


def test_a_vllm_without_the_extra(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.importlib.metadata, "requires", lambda name: ["torch==2.13.0"])
    assert failure(capsys, lambda: install.expand("vllm[audio]"))["code"] == "image.no_extra"


def test_all_that_is_there_is_pinned(install: ModuleType) -> None:
    pins = install.installed()
    assert any(pin.startswith("pytest==") for pin in pins)
    assert not install.VERSION.fullmatch("1.0-custom build")
    assert install.VERSION.fullmatch("2.13.0+cu130")


def test_uv_installs_where_it_is(install: ModuleType, program: Callable[[str, str], Path]) -> None:
    log = program("uv", 'while [ "$1" != --constraint ]; do shift; done; grep -q ^pytest== "$2"')
    request = {
        "packages": [],
        "requirements": ["av"],
        "index_url": "https://mirror.example.com/simple",
        "pip_args": ["-v"],
    }
    (install.HERE / "request.json").write_text(json.dumps(request))
    install.main()
    said = log.read_text()
    assert said.startswith(f"pip install --python {sys.executable} ")
    assert re.search(r" --index-url https://mirror.example.com/simple -v av$", said.strip())
    assert not install.HERE.exists()


def test_without_an_installer_the_wheel_of_pip_does(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    wheel = Path("/x/pip-25.0-py3-none-any.whl")
    assert install.installer([Path("/x/av-1-py3-none-any.whl"), wheel])[:2] == [sys.executable, wheel / "pip"]
    assert failure(capsys, lambda: install.installer([]))["code"] == "image.no_pip"


@pytest.mark.parametrize(
    ("said", "code", "seen"),
    [
        ("E: Write error - No space left on device", "host.disk_full", "No space left"),
        ("Could not connect to x:80\nE: Unable to locate package ffmpeg", "image.build_network", "Could not connect"),
        ("the following packages have unmet dependencies:\n x : Depends: y", "image.no_package", "Depends: y"),
        ("what is this", "image.build_failed", "what is this"),
    ],
)
def test_a_failure_is_told_in_words(
    install: ModuleType,
    program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    said: str,
    code: str,
    seen: str,
) -> None:
    program("tool", f"cat <<'END'\n{said}\nEND\nexit 100")
    told = failure(capsys, lambda: install.run("it", ["tool"]))
    assert told["code"] == code
    assert seen in told["seen"]
    assert told["remedy"]


def packages(install: ModuleType, tmp_path: Path, *files: Path, source: str = "", offline: bool = False) -> None:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    install.install_packages(["ffmpeg"], files, source, offline, work)


def test_packages_from_another_source_leave_no_index(
    install: ModuleType, program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program("dpkg-query", "exit 1")
    log = program("apt-get", "exit 0")
    packages(install, tmp_path, source="deb https://mirror.example.com/debian trixie main")
    update, added = log.read_text().splitlines()
    assert update.endswith("-q update")
    assert added.endswith("install --yes --no-install-recommends ffmpeg")
    for line in (update, added):
        assert f"-oDir::State::Lists={tmp_path}/work/lists" in line
        assert f"-oDir::Etc::SourceList={tmp_path}/work/apt.list" in line


def test_packages_that_are_there_need_no_apt(
    install: ModuleType, program: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program("dpkg-query", "printf installed")
    packages(install, tmp_path)
    program("dpkg-query", "exit 1")
    assert failure(capsys, lambda: packages(install, tmp_path))["code"] == "image.no_apt"


def test_a_source_that_does_not_answer_is_what_is_told(
    install: ModuleType, program: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program("dpkg-query", "exit 1")
    program(
        "apt-get",
        "case $* in *update) echo 'W: Could not connect to x:80';; *) echo 'E: Unable to locate'; exit 100;; esac",
    )
    assert failure(capsys, lambda: packages(install, tmp_path))["code"] == "image.build_network"


def test_offline_the_files_must_have_all(
    install: ModuleType, program: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program("dpkg-query", "exit 1")
    log = program("apt-get", "exit 0")
    told = failure(capsys, lambda: packages(install, tmp_path, Path("/x/other.deb"), offline=True))
    assert told["code"] == "image.no_package"
    assert "ffmpeg" in told["seen"]
    assert [line.split()[-1] for line in log.read_text().splitlines()] == ["/x/other.deb"]
