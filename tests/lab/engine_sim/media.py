# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What comes with a question: uploaded forms, sound and pictures, looked at as far as their containers."""

from __future__ import annotations

import base64
import binascii
import io
import re
import typing as t
import wave

PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")


class BadMedia(ValueError):
    """The text goes to the client, as HTTP 400."""


def form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart/form-data body; a file is the field that carries it."""
    match = re.search(r'multipart/form-data;.*boundary="?([^";]+)"?', content_type)
    if not match:
        raise BadMedia("the body is no multipart/form-data with a boundary")
    fields = {}
    for part in body.split(b"--" + match[1].encode())[1:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        if not separator or not name:
            raise BadMedia("a part of the form has no name")
        fields[name[1].decode("utf-8", "replace")] = content.removesuffix(b"\r\n")
    return fields


def sound(data: bytes) -> bool:
    """Whether a WAV file holds anything but silence."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError):
        raise BadMedia("Invalid or unsupported audio file.") from None
    if not samples:
        raise BadMedia("The audio file holds no audio.")
    return len(set(samples)) > 1


def pictures(messages: t.Any) -> int:
    """How many pictures the messages of a chat hold; each that is sent inline must be one."""
    count = 0
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "image_url":
                _check_picture(str((part.get("image_url") or {}).get("url", "")))
                count += 1
    return count


def _check_picture(url: str) -> None:
    if url.startswith(("http://", "https://")):
        return
    match = re.match(r"data:image/[a-z+.-]+;base64,", url)
    try:
        data = base64.b64decode(url[match.end() :], validate=True) if match else b""
    except binascii.Error:
        data = b""
    if not data.startswith(PICTURES):
        raise BadMedia("Failed to load image: cannot identify image file")


def words(messages: t.Any) -> str:
    """All text of a chat, without its pictures."""
    found = []
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        found += [
            str(part.get("text") or "") for part in parts if isinstance(part, dict) and part.get("type") == "text"
        ]
    return "\n".join(found)
