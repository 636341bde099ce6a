# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_topology as topology

FIXTURES = Path(__file__).parent / "fixtures" / "nvidia"


def matrix(name: str) -> topology.Matrix:
    return topology.parse_matrix((FIXTURES / f"{name}.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["topo-h100-hgx", "topo-a100-dgx"])
def test_every_pair_of_an_nvswitch_host_is_linked(name: str) -> None:
    links = topology.combine(range(8), matrix(name), {})
    assert links is not None
    assert len(links) == 28
    assert {(link["link"], link["nvlinks"]) for link in links} == {("nv18", 18) if "h100" in name else ("nv12", 12)}


def test_peer_access_is_added() -> None:
    links = topology.combine(range(8), matrix("topo-h100-hgx"), matrix("p2p-h100-hgx"))
    assert links is not None
    assert links[0] == {"gpus": [0, 1], "link": "nv18", "nvlinks": 18, "p2p": "ok"}
    assert {link["p2p"] for link in links} == {"ok"}


def test_a_host_with_pcie_alone() -> None:
    links = topology.combine(range(4), matrix("topo-l40s-4"), {})
    assert links is not None
    assert [link["link"] for link in links] == ["node", "sys", "sys", "sys", "sys", "node"]
    assert {(link["nvlinks"], link["p2p"]) for link in links} == {(0, None)}


def test_cards_without_peer_access() -> None:
    assert topology.combine([0, 1], matrix("topo-rtx5090-2"), matrix("p2p-rtx5090-2")) == [
        {"gpus": [0, 1], "link": "phb", "nvlinks": 0, "p2p": "gns"}
    ]


def test_a_header_that_is_underlined() -> None:
    plain = (FIXTURES / "topo-l40s-4.txt").read_text(encoding="utf-8")
    head, _newline, rest = plain.partition("\n")
    assert topology.parse_matrix(f"\x1b[4m{head}\x1b[0m\n{rest}") == topology.parse_matrix(plain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "GPU0\tNV18\n",
        "\tGPU0\tGPU1\nGPU0\n",
        "GPU0 GPU1\nGPUx a b\n\x00\xff",
        "GPU99999999",
    ],
)
def test_garbage_says_nothing(text: str) -> None:
    assert topology.combine([0, 1], topology.parse_matrix(text), topology.parse_matrix(text)) is None


def test_words_that_are_not_known_are_none() -> None:
    cells = {(0, 1): "warp"}
    assert topology.combine([0, 1], {**cells, (0, 2): "pix"}, cells) is None
    links = topology.combine([0, 1, 2], {**cells, (0, 2): "pix"}, cells)
    assert links is not None
    assert [(link["link"], link["p2p"]) for link in links] == [(None, None), ("pix", None), (None, None)]


def test_one_card_has_no_links() -> None:
    assert topology.combine([0], {}, {}) == []


class Nvml:
    """The calls of a binding, by GPU: ``links`` are bus addresses, or None for a switch."""

    def __init__(self, links: t.Sequence[t.Sequence[str | None]], level: int = 10, p2p: int = 0) -> None:
        self.links, self.level, self.p2p = links, level, p2p

    def __call__(self, _what: str, name: str, *arguments: t.Any) -> t.Any:
        return getattr(self, name, lambda *_arguments: None)(*arguments)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(busId=f"00000000:{handle:02x}:00.0".encode())

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int | None:
        return int(link < len(self.links[handle])) if self.links[handle] else None

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:
        return 2 if self.links[handle][link] is None else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> SimpleNamespace:
        return SimpleNamespace(busId=self.links[handle][link])

    def nvmlDeviceGetTopologyCommonAncestor(self, _one: int, _other: int) -> int:
        return self.level

    def nvmlDeviceGetP2PStatus(self, _one: int, _other: int, _read: int) -> int:
        return self.p2p


def test_nvml_through_switches() -> None:
    assert topology.nvml_topology(Nvml([[None] * 18, [None] * 17]), 2) == [
        {"gpus": [0, 1], "link": "nv17", "nvlinks": 17, "p2p": "ok"}
    ]


def test_nvml_with_bridges_between_pairs() -> None:
    bridged = Nvml([["00000000:01:00.0"] * 4, ["00000000:00:00.0"] * 4, []], level=50, p2p=1)
    links = topology.nvml_topology(bridged, 3)
    assert links is not None
    assert [(link["link"], link["nvlinks"], link["p2p"]) for link in links] == [
        ("nv4", 4, "cns"),
        ("sys", 0, "cns"),
        ("sys", 0, "cns"),
    ]


def test_nvml_that_knows_nothing() -> None:
    assert topology.nvml_topology(lambda *_arguments: None, 2) == []
    blank = Nvml([[], []], level=99, p2p=77)
    assert topology.nvml_topology(blank, 2) is None
