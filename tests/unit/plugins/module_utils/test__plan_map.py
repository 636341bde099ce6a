# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_map import (
    ASCII,
    BAR_CELLS,
    GIB,
    UTF8,
    clip,
    clip_start,
    filled,
    island_ends,
    islands_text,
    legend,
    map_lines,
    memory_lines,
    numbers,
    tenants,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import cells


def holder(service: str = "chat", weights: int = 20, kv: int = 30, rest: int = 10) -> dict[str, t.Any]:
    sizes = {"weights": weights * GIB, "kv": kv * GIB, "rest": rest * GIB}
    return {"service": service, "bytes": sum(sizes.values()), **sizes}


def unsized(service: str = "chat", size: int | None = 45) -> dict[str, t.Any]:
    return {
        "service": service,
        "bytes": None if size is None else size * GIB,
        "weights": None,
        "kv": None,
        "rest": None,
    }


def card(index: int = 0, *holders: dict[str, t.Any], total: int | None = 90, **more: t.Any) -> dict[str, t.Any]:
    size = None if total is None else total * GIB
    return {
        "index": index,
        "name": "H100",
        "memory_total_bytes": size,
        "mig_devices": None,
        "holders": list(holders),
        "foreign": [],
        **more,
    }


def foreign(size: int | None, **more: t.Any) -> dict[str, t.Any]:
    return {
        "pid": 7,
        "name": "python3",
        "user": "ann",
        "bytes": None if size is None else size * GIB,
        "orphan": False,
        **more,
    }


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (card(0), "." * 30),
        (card(0, holder()), "#######==========+++.........."),
        (card(0, unsized()), "?" * 15 + "." * 15),
        (card(0, unsized(size=None)), "?" + "." * 29),
        (card(0, unsized("a", 30), unsized("b", 30)), "?" * 20 + "." * 10),
        (card(0, foreign=[foreign(9)]), "xxx" + "." * 27),
        (card(0, holder(), foreign=[foreign(45)]), "x" * 15 + "#" * 7 + "=" * 8),
        (card(0, holder(weights=0, kv=0, rest=0)), "?" + "." * 29),
        (card(0, holder(weights=1, kv=1, rest=88)), "#=" + "+" * 28),
        (card(0, total=None), "." * 30),
        (card(0, unsized(), total=None), "?" * 30),
    ],
)  # fmt: skip
def test_bars(shown: dict[str, t.Any], expected: str) -> None:
    assert filled(shown, ASCII) == expected
    assert len(filled(shown, UTF8)) == BAR_CELLS == cells(filled(shown, UTF8))


def test_every_character_of_a_bar_differs() -> None:
    for charset in (UTF8, ASCII):
        assert len(set(charset.blocks.values())) == len(charset.blocks)
    assert all(char < "\x7f" for char in "".join(ASCII.blocks.values()) + ASCII.ends + ASCII.dots)


def test_a_map_of_two_islands_and_a_stranger() -> None:
    view = {
        "cards": [
            card(0, holder("qwen")), card(1, holder("qwen")), card(2, unsized("whisper"), foreign=[foreign(9)]),
            card(3, mig_devices=2),
        ],
        "islands": [[0, 1], [2, 3]],
    }  # fmt: skip
    lines = map_lines(view, ASCII, 100)
    assert [text for text, _colour in lines] == [
        "  / GPU 0  #######==========+++..........  60.0 of 90.0 GiB  qwen",
        "  \\ GPU 1  #######==========+++..........  60.0 of 90.0 GiB  qwen",
        "  / GPU 2  xxx???????????????............  54.0 of 90.0 GiB  whisper, python3 (pid 7 of ann) 9.0 GiB",
        "  \\ GPU 3  split by MIG                     0.0 of 90.0 GiB  2 MIG devices",
    ]
    assert [colour for _text, colour in lines] == [None, None, "yellow", None]
    assert islands_text(view) == "NVLink joins 0-1 and 2-3"
    assert legend(view["cards"], ASCII) == (
        "# weights  = KV cache  + activations, graphs  ? taken, not sized  x held by others  . free"
    )


def test_unlike_cards_carry_their_names() -> None:
    lines = map_lines({"cards": [card(9), card(10, name="L40S")]}, ASCII, 100)
    assert [text[-9:] for text, _colour in lines] == ["ree  H100", "ree  L40S"]
    assert lines[0][0].startswith("    GPU  9  ")


def test_a_host_without_cards_has_no_map() -> None:
    assert map_lines({"cards": []}, UTF8, 100) == []


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (foreign(9), "python3 (pid 7 of ann) 9.0 GiB"),
        (foreign(None, user=None), "python3 (pid 7)"),
        (foreign(9, orphan=True, user=None, pid=None), "orphaned engine 9.0 GiB"),
    ],
)
def test_strangers(process: dict[str, t.Any], said: str) -> None:
    assert tenants(card(0, foreign=[process])) == [said]
    assert tenants(card(0, holder("a"), holder("b"), foreign=[process])) == ["a", "b", said]


def test_islands_that_are_not_in_one_piece_are_told_in_words() -> None:
    cards = [card(index) for index in range(6)]
    assert island_ends(cards, [[0, 2], [3, 4, 5], [9, 10]], ASCII) == {3: "/", 4: "|", 5: "\\"}
    assert islands_text({"cards": cards, "islands": [[0, 2], [3, 4, 5]]}) == "NVLink joins 0, 2 and 3-5"
    assert islands_text({"cards": cards, "islands": [[0, 1, 2, 3, 4, 5]]}) == "NVLink joins all of them"
    assert islands_text({"cards": cards, "islands": None}) == ""


def test_numbers() -> None:
    assert numbers([7, 0, 1, 2, 5]) == "0-2, 5, 7"
    assert numbers([]) == ""


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("short", 10, "short"),
        ("a-very-long-name", 10, "a-very-lo…"),
        ("模型服务模型服务", 9, "模型服务…"),
        ("模型", 4, "模型"),
        ("a\x1b[31m b\nc", 20, "a\ufffd[31m b c"),
        ("e\u0301e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301…"),
    ],
)
def test_clipping_counts_the_columns_of_a_terminal(text: str, width: int, expected: str) -> None:
    assert clip(text, width) == expected
    assert cells(clip(text, width)) <= width


def test_a_path_keeps_its_end() -> None:
    assert clip_start("/data/models/vlm/chat", 10) == "…/vlm/chat"
    assert clip_start("/data/models/vlm/chat", 10, ASCII) == "...lm/chat"
    assert clip_start("/chat", 10) == "/chat"
    assert cells(clip_start("/data/模型模型", 6)) <= 6


# --- sums

MEMORY = {
    "rows": [
        {"label": "weights", "bytes": 15 * GIB, "estimate": False},
        {"label": "CUDA graphs", "bytes": GIB // 2, "estimate": True},
        {"label": "KV cache of one request", "bytes": 2 * GIB, "estimate": False},
    ],
    "budget_bytes": 66 * GIB,
    "memory_total_bytes": 80 * GIB,
    "outside_bytes": GIB // 2,
    "max_len_fitting": 128000,
    "concurrency": 24.26,
}  # fmt: skip


def test_sums_stand_side_by_side() -> None:
    other = {"rows": [["weights", GIB], ["encoder weights", GIB]], "budget_bytes": None}
    view = {
        "services": [
            {"name": "qwen-vl", "memory": MEMORY},
            {"name": "whisper", "memory": other},
            {"name": "x", "memory": None},
        ]
    }
    assert memory_lines(view, ASCII, 100) == [
        "  memory of each GPU, in GiB           qwen-vl    whisper",
        "    weights                              15.00       1.00",
        "    CUDA graphs                          ~0.50          -",
        "    KV cache of one request               2.00          -",
        "    encoder weights                          -       1.00",
        "    budget of the engine                 66.00          -",
        "    beside the budget                    ~0.50          -",
        "    longest context, in tokens         128,000          -",
        "    requests of full length at once       24.3          -",
        "    ~ is an estimate",
    ]
    view["services"][0]["memory"] = {**MEMORY, "concurrency": 4718.2}
    assert "    requests of full length at once    4,718.2          -" in memory_lines(view, ASCII, 100)


def test_more_services_than_fit_stand_below() -> None:
    names = [f"service-with-a-long-name-{number}" for number in range(6)]
    lines = memory_lines({"services": [{"name": name, "memory": MEMORY} for name in names]}, UTF8, 100)
    assert max(map(cells, lines)) <= 100
    assert sum(1 for line in lines if line.startswith("  memory of each GPU")) == 3


def test_without_a_sizing_there_is_no_table() -> None:
    assert memory_lines({"services": [{"name": "a", "memory": None}]}, UTF8, 100) == []


def test_nobody_on_a_card_is_left_out() -> None:
    """Three services share a card, on a terminal that has no room for their names on one line."""
    names = ["a-service-with-a-long-name", "whisper-b", "whisper-c"]
    view = {"cards": [card(0, *(holder(name) for name in names)), card(1)]}
    lines = [line for line, _colour in map_lines(view, UTF8, 80)]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(name in text for name in names[1:])
    assert "a-service-with" in text
    assert lines[-1].endswith("free")
    assert len(map_lines(view, UTF8, 200)) == 2


def test_what_would_be_enough_is_named_as_it_is_written() -> None:
    memory = {"rows": [], "enough": {"gpu_memory_utilization": 0.08, "kv_cache_memory_bytes": 639631360}}
    lines = memory_lines({"services": [{"name": "whisper", "memory": memory}]}, UTF8, 80)
    assert any(line.split() == ["enough:", "gpu_memory_utilization", "0.08"] for line in lines)
    assert any(line.split() == ["enough:", "kv-cache-memory-bytes", "639631360"] for line in lines)
    odd = {"rows": [], "enough": "much"}
    assert not any("enough" in line for line in memory_lines({"services": [{"name": "x", "memory": odd}]}, UTF8, 80))
