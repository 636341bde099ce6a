# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import re
import wave

from ansible_collections.gpufleet.vllm.plugins.module_utils._probe_clip import CLIP_EXPECT, clip


def test_the_clip_is_a_wav_that_says_five_words() -> None:
    with wave.open(io.BytesIO(clip())) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 1, 8000)
        assert 1.4 < sound.getnframes() / 8000 < 1.8
    for text in ("One, two, three, four, five.", "1, 2, 3, 4, 5", "one\ntwo three\nfour five"):
        assert re.search(CLIP_EXPECT, text)
    for text in ("", "five four three two one", "one two three four", "someone two three four five"):
        assert not re.search(CLIP_EXPECT, text)
