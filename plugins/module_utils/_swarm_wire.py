# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the hosts of a run say to each other: HTTP/1.1, GET only, signed both ways. No I/O.

``/piece/SHA256/START-END`` is one piece of a content, ``/digests/SHA256/FIRST`` the SHA-256 of the pieces from the
index FIRST on that the host vouches for. The run's secret never travels: a request carries a nonce and a MAC over it
and what is asked, an answer a MAC over the same nonce and what it claims. So nobody who listens can ask, and nobody
who is not of the run can answer.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

PIECE, DIGESTS = "piece", "digests"

WAIT_MAX = 5.0
"""Seconds for which a host may keep a request for a piece that it does not have yet."""

DIGESTS_MAX = 2048
"""Digests in one answer."""

HEAD_MAX = 4096
"""Bytes of a request's or answer's head; ours take a few hundred."""

OK, DENIED, UNKNOWN, GONE, WAITING, TOO_MANY = 200, 403, 404, 410, 503, 429
REASONS = {
    OK: "OK",
    400: "Bad Request",
    DENIED: "Forbidden",
    UNKNOWN: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    GONE: "Gone",
    416: "Range Not Satisfiable",
    TOO_MANY: "Too Many Requests",
    431: "Request Header Fields Too Large",
    WAITING: "Service Unavailable",
}

_PATH = re.compile(r"/(?:piece/([0-9a-f]{64})/(\d{1,16})-(\d{1,16})|digests/([0-9a-f]{64})/(\d{1,12}))")
_CREDENTIALS = re.compile(r"Swarm ([0-9a-f]{32}):([0-9a-f]{64})")
_WAIT = re.compile(r"\d{1,5}")
_FACT = re.compile(r"[a-z]+=[0-9a-f]*")


@dataclass(frozen=True)
class Question:
    """What is asked: a piece by its bytes ``[start, end)``, or digests from the index ``start`` on. ``wait`` in
    seconds."""

    kind: str
    sha256: str
    start: int
    end: int = 0
    wait: float = 0.0
    nonce: str = ""

    @property
    def path(self) -> str:
        if self.kind == PIECE:
            return f"/{PIECE}/{self.sha256}/{self.start}-{self.end}"
        return f"/{DIGESTS}/{self.sha256}/{self.start}"


@dataclass(frozen=True)
class Facts:
    """What an answer claims, signed.

    ``generation`` counts how often the host had to drop the content, ``verified`` says that it has all of it and found
    it right, ``progress`` grows as long as the host gets anywhere with anything, ``digest`` is the SHA-256 of the
    piece, or of the body of digests.
    """

    generation: int = 0
    verified: bool = False
    progress: int = 0
    digest: str = ""

    def text(self) -> str:
        return (
            f"generation={self.generation:x} verified={int(self.verified)} progress={self.progress:x} "
            f"digest={self.digest}"
        )


class NotOurs(Exception):
    """A request or an answer that no host of this run wrote."""


def new_secret() -> str:
    return secrets.token_hex(32)


def ask(secret: str, host: str, question: Question) -> tuple[bytes, str]:
    """The bytes of a request, and its nonce."""
    nonce, wait = secrets.token_hex(16), str(int(question.wait * 1000))
    proof = _mac(secret, "ask", nonce, question.path, wait)
    head = (
        f"GET {question.path} HTTP/1.1\r\nHost: {host}\r\nSwarm-Wait: {wait}\r\n"
        f"Authorization: Swarm {nonce}:{proof}\r\n\r\n"
    )
    return head.encode("ascii"), nonce


def read_question(secret: str, path: str, headers: Mapping[str, str]) -> Question:
    """The question of an authentic request; ``headers`` has lower-case names. Raises NotOurs."""
    known = _CREDENTIALS.fullmatch(headers.get("authorization", ""))
    wait = headers.get("swarm-wait", "")
    if known is None or not _WAIT.fullmatch(wait) or not path.isascii():
        raise NotOurs
    nonce, proof = known.groups()
    if not hmac.compare_digest(proof, _mac(secret, "ask", nonce, path, wait)):
        raise NotOurs
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError(path)
    patience = min(int(wait) / 1000, WAIT_MAX)
    if match.group(1):
        return Question(PIECE, match.group(1), int(match.group(2)), int(match.group(3)), patience, nonce)
    return Question(DIGESTS, match.group(4), int(match.group(5)), 0, patience, nonce)


def answer_head(secret: str, nonce: str, status: int, facts: Facts, length: int) -> bytes:
    """The head of a signed answer with a body of ``length`` bytes."""
    claims = facts.text()
    seal = _mac(secret, "answer", nonce, str(status), claims, str(length))
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {length}\r\nSwarm-Facts: {claims}\r\n"
        f"Swarm-Seal: {seal}\r\n\r\n"
    ).encode("ascii")


def refusal_head(status: int) -> bytes:
    """The head of an answer to somebody who is not of the run, or does not speak like it: it says nothing."""
    return f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("ascii")


def read_facts(secret: str, nonce: str, status: int, length: int, headers: Mapping[str, str]) -> Facts:
    """What an authentic answer claims. Raises NotOurs."""
    claims, seal = headers.get("swarm-facts", ""), headers.get("swarm-seal", "")
    if not claims.isascii() or not seal.isascii():
        raise NotOurs
    if not hmac.compare_digest(seal, _mac(secret, "answer", nonce, str(status), claims, str(length))):
        raise NotOurs
    values: dict[str, str] = {}
    for item in claims.split(" "):
        if not _FACT.fullmatch(item):
            raise NotOurs
        name, _equals, value = item.partition("=")
        values[name] = value
    try:
        return Facts(
            generation=int(values["generation"], 16),
            verified=values["verified"] == "1",
            progress=int(values["progress"], 16),
            digest=values["digest"],
        )
    except (KeyError, ValueError) as exc:
        raise NotOurs from exc


def read_head(raw: bytes) -> tuple[str, dict[str, str]]:
    """The first line and the headers (lower-case names) of a head without its blank line. Raises ValueError."""
    lines = raw.decode("ascii").split("\r\n")
    if not all(line.isprintable() for line in lines):
        raise ValueError("a control character")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not name or name in headers:
            raise ValueError("a header that is none, or comes twice")
        headers[name] = value.strip()
    return lines[0], headers


def _mac(secret: str, *fields: str) -> str:
    # No field may hold a line end: two different lists never give one text.
    text = "\n".join(fields)
    if text.count("\n") != len(fields) - 1:
        raise AssertionError("a field holds a line end")
    return hmac.digest(bytes.fromhex(secret), text.encode("ascii"), "sha256").hex()
