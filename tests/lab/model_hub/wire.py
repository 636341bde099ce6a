# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How bytes leave the hub: ranges, and bodies that are throttled, stalled, corrupted or cut on the way."""

from __future__ import annotations

import array
import fcntl
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .faults import Bucket, Effect

_CHUNK = 1 << 16
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


class Unsatisfiable(Exception):
    """The range asked for begins past the end."""


class Cut(Exception):
    """The connection is to be broken here."""


class Stopping(Exception):
    """The hub is being stopped."""


@dataclass(frozen=True)
class Body:
    """``length`` bytes beginning at ``start`` of a file, or of ``data`` when there is no file; ``total`` is the size
    of the whole."""

    path: Path | None
    data: bytes
    start: int
    length: int
    total: int

    @classmethod
    def of_bytes(cls, data: bytes) -> Body:
        """All of ``data``."""
        return cls(None, data, 0, len(data), len(data))

    @classmethod
    def of_file(cls, path: Path, size: int) -> Body:
        """All of a file of ``size`` bytes."""
        return cls(path, b"", 0, size, size)

    def slice(self, start: int, length: int) -> Body:
        """A part of the same whole."""
        return Body(self.path, self.data, start, length, self.total)


def parse_range(header: str | None, total: int) -> tuple[int, int] | None:
    """``(start, length)`` of a single byte range, or None where the header asks for nothing we honour.

    Raises Unsatisfiable.
    """
    match = _RANGE.match((header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, total - int(last)), total - 1
    else:
        start, end = int(first), min(int(last) if last else total - 1, total - 1)
        if last and int(last) < start:
            return None
    if start >= total or end < start:
        raise Unsatisfiable
    return start, end - start + 1


class Sender:
    """Sends bodies over one connection; keeps that connection's throttles from one request to the next."""

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self._connection = connection
        self._stopping = stopping
        self._buckets: dict[int, Bucket] = {}

    def pause(self, seconds: float) -> None:
        """Wait; raises Stopping as soon as the hub is stopped."""
        if seconds > 0 and self._stopping.wait(seconds):
            raise Stopping

    def send(self, body: Body, effect: Effect, sent: Callable[[int], None]) -> None:
        """Send ``body`` the way ``effect`` wants, telling ``sent`` the bytes as they go.

        Raises Cut, Stopping and OSError.
        """
        if body.path is None:
            self._send_from(None, body, effect, sent)
        else:
            with open(body.path, "rb") as stream:
                self._send_from(stream, body, effect, sent)

    def _send_from(self, stream: BinaryIO | None, body: Body, effect: Effect, sent: Callable[[int], None]) -> None:
        if not effect.shaped:
            if stream is None:
                self._connection.sendall(body.data[body.start : body.start + body.length])
                sent(body.length)
            elif body.length:
                try:
                    self._connection.sendfile(stream, body.start, body.length)
                finally:
                    sent(stream.tell() - body.start)  # right also for a client that left in the middle
            return
        self._send_shaped(stream, body, effect, sent)

    def _send_shaped(self, stream: BinaryIO | None, body: Body, effect: Effect, sent: Callable[[int], None]) -> None:
        buckets = effect.buckets + self._own_buckets(effect)
        slowest = min((bucket.rate for bucket in buckets), default=float("inf"))
        chunk = max(512, min(_CHUNK, int(min(slowest / 20, _CHUNK))))
        done, stall_at = 0, effect.stall_after
        while True:
            if stall_at is not None and done >= stall_at:
                stall_at = None
                self.pause(3600.0 if effect.stall is None else effect.stall)
            if effect.drop_after is not None and done >= effect.drop_after:
                raise Cut
            if done >= body.length:
                return
            marks = [mark - done for mark in (stall_at, effect.drop_after) if mark is not None]
            count = min([chunk, body.length - done, *marks])
            piece = _corrupted(_piece(stream, body, done, count), body.start + done, body.total, effect.corrupt_at)
            self.pause(max((bucket.draw(count) for bucket in buckets), default=0.0))
            self._connection.sendall(piece)
            done += count
            sent(count)

    def _own_buckets(self, effect: Effect) -> list[Bucket]:
        if effect.rate is None or effect.rate_owner is None:
            return []
        return [self._buckets.setdefault(id(effect.rate_owner), Bucket(effect.rate))]


def _piece(stream: BinaryIO | None, body: Body, done: int, count: int) -> bytes:
    start = body.start + done
    if stream is None:
        return body.data[start : start + count]
    stream.seek(start)
    return stream.read(count)


def _corrupted(piece: bytes, offset: int, total: int, corrupt_at: int | None) -> bytes:
    if corrupt_at is None:
        return piece
    position = (corrupt_at if corrupt_at >= 0 else total + corrupt_at) - offset
    if not 0 <= position < len(piece):
        return piece
    return piece[:position] + bytes([piece[position] ^ 0xFF]) + piece[position + 1 :]


def prepare_reset(connection: socket.socket, patience: float = 2.0) -> None:
    """Make the coming close send RST instead of FIN, once the peer's side has taken what was sent so far."""
    pending = array.array("i", [0])
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        fcntl.ioctl(connection, termios.TIOCOUTQ, pending)
        if pending[0] == 0:
            break
        time.sleep(0.005)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
