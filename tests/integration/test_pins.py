# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pins on an emulated GPU host: indices that change, cards that are replaced, services that share one.

Needs root; the lab installs what it lacks and says what it can not install.
"""

from __future__ import annotations

import json
import typing as t
from collections.abc import Iterator, Sequence

import pytest
from lab_box import ROOT, LabBox, faults, lab_of, seed, until

pytestmark = pytest.mark.lab

QWEN, WHISPER = "vllm-qwen-vl-service", "vllm-whisper-service"
NEW_CARD = "GPU-0e77ca9d-0000-4000-8000-000000000001"


class Cards:
    """The GPUs of the host, by the index that each had at first."""

    def __init__(self, box: LabBox) -> None:
        self.box = box
        asked = "nvidia-smi --query-gpu=uuid,pci.bus_id --format=csv,noheader"
        rows = [line.split(", ") for line in box.sh(asked).splitlines()]
        self.cards = [{"uuid": uuid, "pci_bus_id": slot} for uuid, slot in rows]
        self.data = dict(box.lab.host(box.names[0]).spec.gpus)

    def write(self, cards: Sequence[dict[str, str]]) -> None:
        data = json.dumps({**self.data, "count": len(cards), "gpus": list(cards)})
        self.box.lab.run(self.box.names[0], ["sh", "-c", "cat >/etc/gpusim/gpus.json"], input_bytes=data.encode())

    def in_order(self, *order: int) -> None:
        self.write([self.cards[index] for index in order])

    def given(self) -> dict[str, list[int]]:
        """The cards that each running container really got, by their first index."""
        first = {card["uuid"]: index for index, card in enumerate(self.cards)}
        running = {identity: name for name, identity in self.box.containers().items()}
        lines = [json.loads(line) for line in self.box.sh("cat /var/lib/gpusim/hook.jsonl").splitlines()]
        return {running[line["id"]]: [first.get(uuid, -1) for uuid in line["uuids"]] for line in lines
                if line["id"] in running}  # fmt: skip


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabBox]:
    with lab_of("pins", {"gpu-01": "debian13"}, tmp_path_factory.mktemp("pins")) as made:
        yield made


@pytest.fixture(scope="module")
def cards(box: LabBox) -> Cards:
    return Cards(box)


def services(**whisper: t.Any) -> list[dict[str, t.Any]]:
    """The seed; its second service asks for a number of cards."""
    first, second = seed()
    return [first, {**second, "gpus": 1, **whisper}]


def kept(box: LabBox) -> dict[str, t.Any]:
    record = json.loads(box.sh(f"cat {ROOT}/record.json"))
    return {service["name"]: service for service in record["services"]}


def test_the_pin_is_in_the_record(box: LabBox, cards: Cards) -> None:
    run = box.deploy(services())
    assert run.rc == 0, run.output[-6000:]
    assert cards.given() == {QWEN: [0, 1], WHISPER: [2]}
    record = kept(box)
    assert {name: service["wish"] for name, service in record.items()} == {
        "qwen-vl-service": [0, 1],
        "whisper-service": 1,
    }
    card = record["whisper-service"]["gpus"][0]
    assert (card["uuid"], "index" in card) == (cards.cards[2]["uuid"], False)
    assert card["pci_bus_id"].lower() == cards.cards[2]["pci_bus_id"].lower()
    assert card["memory_total_bytes"] > 2**36


def test_other_indices_change_nothing(box: LabBox, cards: Cards) -> None:
    """Index 0 is another card now. Docker is asked by UUID, so a restart finds the same ones."""
    before = box.containers()
    cards.in_order(2, 0, 1)
    run = box.deploy(services())
    assert (run.rc, run.changed) == (0, 0), run.output[-6000:]
    assert box.containers() == before
    assert f"0 is {cards.cards[0]['uuid']}, whose index is 1 now" in " ".join(run.output.split())
    box.docker("restart", "--time", "1", QWEN, WHISPER)
    assert cards.given() == {QWEN: [0, 1], WHISPER: [2]}


def test_the_same_cards_in_other_slots_restart_nothing(box: LabBox, cards: Cards) -> None:
    before = box.containers()
    slots = [card["pci_bus_id"] for card in cards.cards]
    cards.write([{**card, "pci_bus_id": slot} for card, slot in zip(cards.cards, reversed(slots), strict=True)])
    run = box.deploy(services())
    assert run.rc == 0, run.output[-6000:]
    assert box.containers() == before
    cards.in_order(0, 1, 2)
    assert box.deploy(services()).rc == 0
    assert box.containers() == before


def test_a_card_that_was_replaced_is_refused_until_it_is_accepted(box: LabBox, cards: Cards) -> None:
    before = box.containers()
    old = cards.cards[0]
    cards.write([{**old, "uuid": NEW_CARD}, *cards.cards[1:]])
    refused = box.deploy(services(), "--check")
    assert refused.rc != 0
    refused = box.deploy(services())
    assert refused.rc != 0
    assert box.containers() == before
    said = " ".join(refused.output.split())
    assert "plan.gpu_changed (qwen-vl-service)" in said
    assert f"slot {old['pci_bus_id']} held {old['uuid']} (NVIDIA H100 80GB HBM3), and holds {NEW_CARD}" in said
    assert "vllm_repin: [qwen-vl-service]" in said
    accepted = box.deploy(services(), vllm_repin=["qwen-vl-service"])
    assert accepted.rc == 0, accepted.output[-6000:]
    after = box.containers()
    assert (after[QWEN] != before[QWEN], after[WHISPER]) == (True, before[WHISPER])
    assert cards.given() == {QWEN: [-1, 1], WHISPER: [2]}
    assert kept(box)["qwen-vl-service"]["gpus"][0]["uuid"] == NEW_CARD
    again = box.deploy(services())
    assert (again.rc, again.changed) == (0, 0), again.output[-6000:]


def test_services_on_one_card_need_shares_and_load_one_after_the_other(box: LabBox, cards: Cards) -> None:
    cards.in_order(0, 1, 2)
    slow = {"environment": faults(start_seconds=3), "port": 8000}
    one, two = ({**seed()[1], "gpus": [0], "name": name, **slow} for name in ("one", "two"))
    two["port"] = 8001
    refused = box.apply([one, two])
    assert refused.errors == ["plan.gpu_shared"], refused.text
    assert box.apply(
        [{**one, "gpu_memory_utilization": 0.6}, {**two, "args": {"gpu-memory-utilization": 0.4}}]
    ).errors == ["plan.gpu_overcommitted"]
    shared = [{**one, "gpu_memory_utilization": 0.45}, {**two, "gpu_memory_utilization": 0.45}]
    assert {action for name, action in box.apply(shared).exact().items() if name in ("one", "two")} == {"created"}
    assert box.answers(8000, seconds=60)
    assert box.answers(8001, seconds=60)
    assert cards.given() == {"vllm-one": [0], "vllm-two": [0]}
    assert one_waited(box)
    # Without us: after a reboot, or when a person starts them, Docker starts both at once.
    for action in ("kill", "start"):
        box.docker(action, "vllm-one", "vllm-two")
    assert until(lambda: box.health(8000) == 200 or box.health(8001) == 200, 60)
    assert min(box.health(8000), box.health(8001)) != 200, "the other one has not begun yet"
    assert box.answers(8000, seconds=60)
    assert box.answers(8001, seconds=60)
    assert set(box.apply(shared).exact().values()) == {"unchanged"}


def one_waited(box: LabBox) -> bool:
    logs = [box.sh(f"docker logs {name} 2>&1") for name in ("vllm-one", "vllm-two")]
    return sum("waits for its turn" in log for log in logs) == 1
