# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that runs inside an image, run here against decoders that work, are missing or are broken."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._audio_check import SOURCE

SOUNDFILE = """
import wave
class SoundFile:
    def __init__(self, stream): self.stream = wave.open(stream)
    def __enter__(self): return self
    def __exit__(self, *_): self.stream.close()
    def read(self, dtype, always_2d): return list(range(self.stream.getnframes()))
"""
AV = """
class Frame:
    samples = 16000
class AudioResampler:
    def __init__(self, **_): pass
    def resample(self, frame): return [frame]
class Container:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def decode(self, audio): return [Frame()]
def open(_stream): return Container()
"""


def ask(directory: Path, **modules: str) -> dict[str, t.Any]:
    for name, text in modules.items():
        (directory / f"{name}.py").write_text(text)
    # Isolated from what the tests' own environment has installed: -S leaves site-packages out.
    code = f"import sys; sys.path.insert(0, {str(directory)!r})\n{SOURCE}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    answer: dict[str, t.Any] = json.loads(done.stdout)
    return answer


def test_an_image_without_decoders(tmp_path: Path) -> None:
    answer = ask(tmp_path)
    assert (answer["audio"], answer["missing"]) == (False, ["av", "soundfile", "torchcodec"])
    assert "No module named 'av'" in answer["detail"]


def test_soundfile_alone_can_not_resample(tmp_path: Path) -> None:
    answer = ask(tmp_path, soundfile=SOUNDFILE)
    assert (answer["audio"], answer["missing"]) == (False, ["av", "torchcodec"])


def test_pyav_is_enough(tmp_path: Path) -> None:
    answer = ask(tmp_path, soundfile=SOUNDFILE, av=AV)
    assert (answer["audio"], answer["missing"]) == (True, [])
    assert answer["detail"] == "decoded by soundfile, av"


@pytest.mark.parametrize("broken", ["raise OSError('libavcodec.so.59: cannot open')", "def open(_stream): return 1"])
def test_a_library_that_does_not_load_is_no_decoder(tmp_path: Path, broken: str) -> None:
    assert ask(tmp_path, av=broken)["audio"] is False
