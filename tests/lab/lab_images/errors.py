# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception of the image builder."""

from __future__ import annotations


class ImageError(Exception):
    """An image cannot be built; the text says what was seen, what was expected and what to do."""

    def __init__(self, seen: str, expected: str, remedy: str) -> None:
        super().__init__(f"{seen}\n  expected: {expected}\n  do this:  {remedy}")
