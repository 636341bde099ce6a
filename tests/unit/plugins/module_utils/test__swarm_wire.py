# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests and answers of a run: only what a host of the run signed is believed."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import (
    DIGESTS,
    PIECE,
    WAIT_MAX,
    Facts,
    NotOurs,
    Question,
    read_facts,
    read_head,
    read_question,
)
from hypothesis import given
from hypothesis import strategies as st

SECRET, OTHER = "1" * 64, "2" * 64
SHA = "ab" * 32


def received(request: bytes) -> tuple[str, dict[str, str]]:
    line, headers = read_head(request.removesuffix(b"\r\n\r\n"))
    return line.split(" ")[1], headers


@given(st.sampled_from([PIECE, DIGESTS]), st.integers(0, 2**40), st.integers(0, 2**24), st.floats(0, 20))
def test_question_arrives_as_asked(kind: str, start: int, length: int, wait: float) -> None:
    start = start if kind == PIECE else start % 10**12
    asked = Question(kind, SHA, start, start + length if kind == PIECE else 0, wait)
    request, nonce = _swarm_wire.ask(SECRET, "gpu-1", asked)
    read = read_question(SECRET, *received(request))
    assert (read.kind, read.sha256, read.start, read.end, read.nonce) == (kind, SHA, start, asked.end, nonce)
    assert read.wait == min(int(wait * 1000) / 1000, WAIT_MAX), "nobody is kept longer than the most"
    assert SECRET.encode() not in request


def test_no_two_requests_are_alike() -> None:
    question = Question(DIGESTS, SHA, 0)
    assert len({_swarm_wire.ask(SECRET, "gpu-1", question)[0] for _unused in range(50)}) == 50


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace("/0 ", "/1 "), id="another question"),
        pytest.param(lambda text: text.replace("Swarm-Wait: 1000", "Swarm-Wait: 5000"), id="another wait"),
        pytest.param(lambda text: text.replace("Swarm-Wait: 1000", "Swarm-Wait: x"), id="no wait"),
        pytest.param(lambda text: text.replace("Swarm ", "Bearer "), id="another scheme"),
        pytest.param(lambda text: text[: text.index("Authorization")] + "\r\n", id="no credentials"),
    ],
)
def test_changed_request_is_not_ours(change: object) -> None:
    request, _nonce = _swarm_wire.ask(SECRET, "gpu-1", Question(DIGESTS, SHA, 0, 0, 1.0))
    text: str = change(request.decode())  # type: ignore[operator]
    with pytest.raises(NotOurs):
        read_question(SECRET, *received(text.encode()))


def test_request_of_another_run_is_not_ours() -> None:
    request, _nonce = _swarm_wire.ask(OTHER, "gpu-1", Question(DIGESTS, SHA, 0))
    with pytest.raises(NotOurs):
        read_question(SECRET, *received(request))


def test_signed_request_for_something_else_is_no_question() -> None:
    class Odd(Question):
        path = "/etc/passwd"

    request, _nonce = _swarm_wire.ask(SECRET, "gpu-1", Odd(DIGESTS, SHA, 0))
    with pytest.raises(ValueError, match="/etc/passwd"):
        read_question(SECRET, *received(request))


@given(st.integers(0, 2**60), st.booleans(), st.integers(0, 2**60), st.binary(max_size=32))
def test_facts_arrive_as_claimed(generation: int, verified: bool, progress: int, digest: bytes) -> None:
    facts = Facts(generation, verified, progress, digest.hex())
    head = _swarm_wire.answer_head(SECRET, "0" * 32, 200, facts, 77)
    _line, headers = read_head(head.removesuffix(b"\r\n\r\n"))
    assert read_facts(SECRET, "0" * 32, 200, 77, headers) == facts


@pytest.mark.parametrize(
    ("secret", "nonce", "status", "length"),
    [
        pytest.param(OTHER, "0" * 32, 200, 77, id="another run"),
        pytest.param(SECRET, "f" * 32, 200, 77, id="the answer to another question"),
        pytest.param(SECRET, "0" * 32, 503, 77, id="another status"),
        pytest.param(SECRET, "0" * 32, 200, 78, id="another length"),
    ],
)
def test_changed_answer_is_not_ours(secret: str, nonce: str, status: int, length: int) -> None:
    head = _swarm_wire.answer_head(SECRET, "0" * 32, 200, Facts(digest=SHA), 77)
    _line, headers = read_head(head.removesuffix(b"\r\n\r\n"))
    with pytest.raises(NotOurs):
        read_facts(secret, nonce, status, length, headers)


@pytest.mark.parametrize(
    "headers", [{}, {"swarm-facts": "é", "swarm-seal": "é"}, {"swarm-facts": "x", "swarm-seal": "y"}]
)
def test_answer_of_somebody_else_is_not_ours(headers: dict[str, str]) -> None:
    with pytest.raises(NotOurs):
        read_facts(SECRET, "0" * 32, 200, 0, headers)


@pytest.mark.parametrize("status", sorted(_swarm_wire.REASONS))
def test_refusal_says_nothing(status: int) -> None:
    line, headers = read_head(_swarm_wire.refusal_head(status).removesuffix(b"\r\n\r\n"))
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert headers == {"content-length": "0", "connection": "close"}


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\n: x",
        b"GET / HTTP/1.1\r\nA: 1\r\na: 2",
        b"G\nET",
        b"\xff",
        b"a\0b",
    ],
)
def test_head_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_head(raw)


def test_secrets_are_long_and_different() -> None:
    found = {_swarm_wire.new_secret() for _unused in range(20)}
    assert len(found) == 20
    assert {len(secret) for secret in found} == {64}
