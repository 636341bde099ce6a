# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from plan_case import codes, plan, service


def test_a_judgement_can_be_turned_off_and_the_plan_says_so() -> None:
    chat = service(args={"no-such-flag": 1})
    assert codes(plan(chat)) == [("plan.flag_unknown", "chat")]
    planned = plan(chat, skip=["plan.flag_unknown", "gpu.ecc"])
    assert (planned["findings"], planned["errors"], planned["skipped"]) == ([], 0, ["plan.flag_unknown"])


@pytest.mark.parametrize("code", ["plan.gpu_missing", "service.bad_value", "plan.public_bind"])
def test_what_is_no_judgement_stays(code: str) -> None:
    planned = plan(
        service(gpus=[7]),
        service("b", port=0),
        service("c", bind_address="0.0.0.0"),
        skip=[code],
        allow_public_bind=False,
    )
    assert code in [found for found, _service in codes(planned)]
    assert planned["skipped"] == []
