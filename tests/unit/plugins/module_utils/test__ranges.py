# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Range arithmetic against its model: a set of ints."""

from __future__ import annotations

from random import Random

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges
from hypothesis import example, given
from hypothesis import strategies as st

LIMIT = 24
"""Few enough offsets that ranges meet, overlap, nest and touch all the time."""

offsets = st.integers(0, LIMIT)
pairs = st.tuples(offsets, offsets)
ordered = pairs.map(sorted)
calls = st.lists(st.tuples(st.booleans(), pairs), max_size=30)


def model_of(ranges: Ranges) -> set[int]:
    return {offset for start, end in ranges for offset in range(start, end)}


def check_form(ranges: Ranges) -> None:
    """Sorted, none of them empty, and a gap between any two."""
    flat = [bound for piece in ranges for bound in piece]
    assert flat == sorted(set(flat)), ranges


@given(calls)
@example([(True, (2, 4)), (True, (4, 6)), (True, (8, 9)), (False, (3, 8))])
def test_add_and_remove_do_what_a_set_does(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    ranges, model = Ranges(), set[int]()
    for adds, (start, end) in steps:
        if adds:
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
        check_form(ranges)
        assert model_of(ranges) == model
    assert ranges.size == len(model)
    assert bool(ranges) == bool(model)


@given(st.lists(pairs, max_size=12), ordered)
def test_questions_are_answered_as_by_a_set(pieces: list[tuple[int, int]], asked: list[int]) -> None:
    ranges, (start, end) = Ranges(pieces), asked
    model = {offset for piece in pieces for offset in range(*piece)}
    before = list(ranges)
    wanted = set(range(start, end))
    assert ranges.covers(start, end) == (wanted <= model)
    missing = ranges.missing(start, end)
    check_form(missing)
    assert model_of(missing) == wanted - model
    reach = start
    while reach in model:
        reach += 1
    assert ranges.reach(start) == reach
    assert list(ranges) == before, "a question changes nothing"


@given(st.lists(pairs, max_size=12), st.randoms())
def test_the_order_in_which_ranges_come_does_not_matter(pieces: list[tuple[int, int]], chance: Random) -> None:
    shuffled = list(pieces)
    chance.shuffle(shuffled)
    assert Ranges(pieces) == Ranges(shuffled) == Ranges(Ranges(pieces))


@given(st.lists(pairs, max_size=12))
def test_filling_what_is_missing_makes_it_whole(pieces: list[tuple[int, int]]) -> None:
    ranges = Ranges(pieces)
    for start, end in ranges.missing(0, LIMIT):
        ranges.add(start, end)
    assert list(ranges) == [(0, LIMIT)]
    assert not ranges.missing(0, LIMIT)


def test_what_a_range_set_is_not() -> None:
    ranges = Ranges([(1, 2)])
    assert ranges != [(1, 2)]
    assert repr(ranges) == "Ranges([(1, 2)])"
    with pytest.raises(TypeError, match="unhashable"):
        hash(ranges)
