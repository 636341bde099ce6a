# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""As much of PyAV as says that this image decodes audio: PCM WAV files, with the standard library."""

from __future__ import annotations

import typing as t
import wave
from dataclasses import dataclass


@dataclass(frozen=True)
class AudioFrame:
    samples: int
    sample_rate: int


class AudioResampler:
    def __init__(self, format: str, layout: str, rate: int) -> None:
        self.rate = rate

    def resample(self, frame: AudioFrame) -> list[AudioFrame]:
        return [AudioFrame(frame.samples * self.rate // frame.sample_rate, self.rate)]


class Container:
    def __init__(self, file: t.IO[bytes]) -> None:
        self._reader = wave.open(file)  # noqa: SIM115  # closed when left

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._reader.close()

    def decode(self, audio: int = 0) -> t.Iterator[AudioFrame]:
        width = self._reader.getsampwidth() * self._reader.getnchannels()
        while data := self._reader.readframes(1024):
            yield AudioFrame(len(data) // width, self._reader.getframerate())


def open(file: t.IO[bytes]) -> Container:  # PyAV's own name
    return Container(file)
