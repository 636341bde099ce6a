# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turns under a real systemd: services that share a card start together, after a reboot too, and load in turn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from fleet_box import REPOSITORY
from lab_box import until
from systemd_box import PYTHON, SystemdBox

# The plan of two services that run, with one card for both: what the runtime is given on a host with GPUs.
JOB = """
import json, sys
from ansible_collections.gpufleet.vllm.plugins.module_utils import _stack_apply
plan = json.load(open("/var/lib/gpufleet-vllm/plan.json"))
for service in plan["services"]:
    service["gpus"] = [{"index": 0, "uuid": "GPU-aa", "shared": True}]
options = _stack_apply.Options(
    root="/var/lib/gpufleet-vllm", runtime="systemd", services=plan["services"], artifacts=plan["artifacts"],
    engine=plan["engine"],
)
print(json.dumps([_stack_apply.present(options, check)["changed"] for check in (True, False, True)]))
"""


@pytest.fixture(scope="module")
def box() -> Iterator[SystemdBox]:
    with SystemdBox() as made:
        python = made.engine / "bin/python"
        if not os.path.lexists(python):
            python.symlink_to(PYTHON)
        yield made


def waited(box: SystemdBox) -> int:
    said = box.run("journalctl", "--boot", "--no-pager", "--output=cat", "--unit=vllm-one", "--unit=vllm-two")
    return said.count("waits for its turn")


def test_units_that_share_a_card_load_one_after_the_other(box: SystemdBox) -> None:
    services = [box.service("one"), box.service("two")]
    run = box.deploy(services)
    assert run.rc == 0, run.output[-4000:]
    box.break_engine(start_seconds=3)
    roots = str(REPOSITORY / ".venv/collections")
    said = box.run("env", f"PYTHONPATH={roots}", PYTHON, "-c", JOB)
    assert json.loads(said.splitlines()[-1]) == [True, True, False], said
    ports = [service["port"] for service in services]
    assert until(lambda: all(box.answers(port) for port in ports), 60)
    assert waited(box) == 1
    assert "start.py" in box.show("one")["ExecStart"]
    assert box.run("ps", "-o", "args=", "-p", box.pid("one")).count("start.py") == 0, "it became the engine"
    box.reboot()
    assert until(lambda: any(box.answers(port) for port in ports), 60)
    assert not all(box.answers(port) for port in ports), "the other one has not begun yet"
    assert until(lambda: all(box.answers(port) for port in ports), 60)
    box.systemctl("stop", "vllm-one.service", "vllm-two.service", check=True)
    assert not box.run("pgrep", "-f", "start.py", check=False).strip()
