# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_xid import (
    IGNORED,
    UNLISTED,
    XIDS,
    Xid,
    explain,
    recovery_advice,
)
from rules_case import COMMAND

# NVIDIA's catalogue, column "Immediate Action": what asks for a reset, a reboot, a repair or the NVLink workflow.
RESET = {46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}
NVLINK = {74, 144, 145, 146, 147, 148, 149, 150}
REPAIR = {54, 78, 79, 151}
# Without an action in the catalogue, by what they say: a fatal time-out, a halt, and the details of Xid 48.
BY_MEANING = {167, 169, 171, 172}
RESTART_APPLICATION = {8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 80, 82, 86, 94, 105, 135, 139}
IGNORE = {37, 38, 43, 44, 63, 66, 67, 92, 93, 121, 137, 141, 157, 160, 161}


def test_what_is_fatal_follows_the_catalogue() -> None:
    assert {number for number, xid in XIDS.items() if xid.fatal} == RESET | NVLINK | REPAIR | BY_MEANING
    assert not {number for number in RESTART_APPLICATION | IGNORE if explain(number).fatal}
    assert set(XIDS) >= RESTART_APPLICATION | IGNORE
    assert not set(XIDS) & IGNORED


@pytest.mark.parametrize(("number", "xid"), [*sorted(XIDS.items()), (0, UNLISTED)], ids=str)
def test_each_says_what_it_means_and_what_to_do(number: int, xid: Xid) -> None:
    assert xid.meaning
    assert COMMAND.search(xid.remedy) or "nothing now" in xid.remedy
    assert "{" not in xid.remedy.format(index=3)


def test_an_unlisted_number_is_no_reason_to_stop() -> None:
    assert explain(14) == explain(9999) == UNLISTED
    assert not UNLISTED.fatal


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", "Node Reboot Required"),
        ("GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", "None"),
        ("GPU has fallen off the bus.", ""),
        ("", ""),
    ],
)
def test_advice_of_the_driver(message: str, advice: str) -> None:
    assert recovery_advice(message) == advice
