# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the cases: each client in turn, round after round, over one hub."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import machine
from .cases import Case
from .clients import OURS, Clients, Command, Spawner, Task
from .figures import BUSY, Round, Run, quiet
from .models import BenchError, Hub, Sizes, differences
from .report import Done

_LIMIT = 1200.0
"""Seconds that one run may take before something is wrong with it."""


class Bench:
    """The hub, the clients and the places to download to. ``rounds`` and ``slow_rounds`` are how often, ``spare`` how
    many more to spend where others disturbed some."""

    def __init__(
        self,
        fast: Path,
        disk: Path,
        sizes: Sizes,
        spawner: Spawner,
        *,
        rounds: int,
        slow_rounds: int,
        tuned: bool,
        patience: float,
        spare: int,
        ahead: bool,
    ) -> None:
        # A directory each, which goes with all that a client leaves beside its target.
        self._targets = {"fast": fast / "place" / "target", "disk": disk / "place" / "target"}
        self._sizes, self._spawner = sizes, spawner
        self._rounds, self._slow_rounds, self._tuned, self._patience = rounds, slow_rounds, tuned, patience
        self._spare, self._ahead = spare, ahead
        (fast / "home").mkdir()
        self._clients = Clients(fast / "home")
        self._hub = Hub(fast / "served")
        if ahead:
            for pid in (self._hub.pid, spawner.pid):
                machine.put_ahead(pid)

    def close(self) -> None:
        """Stop the hub."""
        self._hub.close()

    def run(self, wanted: Sequence[Case]) -> list[Done]:
        """Every case, the models made before their first case and removed after their last."""
        done = []
        for index, case in enumerate(wanted):
            self._hub.add(case.model, self._sizes)
            done.append(Done(case, self._case(case), self._slow_rounds if case.slow else self._rounds))
            if all(later.model != case.model for later in wanted[index + 1 :]):
                self._hub.drop(case.model)
        return done

    def _case(self, case: Case) -> list[Round]:
        _say(f"{case.name}: {case.title}")
        task = Task(case.model, self._hub.endpoint, self._targets[case.place], self._hub.source(case.model))
        self._hub.faults([])
        self._clear(task)
        if case.complete:
            # Ours fetches, so that its record is there; then all look at the same files.
            self._spawner.run(self._clients.command(OURS, task), _LIMIT)
        commands = {name: self._clients.command(name, task) for name in case.clients(self._tuned)}
        self._hub.faults(case.faults)
        wanted = self._slow_rounds if case.slow else self._rounds
        rounds: list[Round] = []
        while len(quiet(rounds)) < wanted and len(rounds) < wanted + self._spare:
            if not self._ahead and not machine.wait_until_quiet(BUSY, self._patience):
                _say("  others keep the machine busy")
            number = len(rounds)
            rounds.append({name: self._turn(case, task, name, commands[name], number) for name in commands})
        self._clear(task)
        return rounds

    def _turn(self, case: Case, task: Task, name: str, command: Command, number: int) -> Run:
        if not case.complete:
            self._clear(task)
        run = self._measure(name, command, durable=case.place == "disk")
        wrong = differences(task.source, task.target, contents=number == 0)
        if wrong:
            raise BenchError(f"{case.name}: {name} said that it succeeded, but these files are wrong: {wrong[:5]}")
        _say(
            f"  {number + 1} {name:10}{run.wall:8.3f} s  cpu {run.cpu:6.2f}  {run.peak_kib // 1024:4} MiB  "
            f"{run.requests:5} requests  hub cpu {run.hub_cpu:5.2f}  others {run.foreign_cpu:5.2f}"
            f"{'  BUSY' if run.busy else ''}"
        )
        return run

    def _measure(self, name: str, command: Command, durable: bool) -> Run:
        position, hub, machine_busy, own = (
            self._hub.position(),
            self._hub.cpu,
            machine.busy_seconds(),
            time.process_time(),
        )
        cost = self._spawner.run(command, _LIMIT)
        foreign = machine.busy_seconds() - machine_busy - (time.process_time() - own)
        hub = self._hub.cpu - hub
        began = time.perf_counter()
        if durable:
            os.sync()
        settle = time.perf_counter() - began
        time.sleep(0.1)  # the hub notes an answer once it is over, which the client need not wait for
        return Run(
            client=name,
            wall=cost.wall,
            user=cost.user,
            system=cost.system,
            peak_kib=cost.peak_kib,
            settle=settle,
            requests=self._hub.requests_since(position),
            hub_cpu=hub,
            foreign_cpu=max(0.0, foreign - hub - cost.user - cost.system),
            cores=machine.cores(),
            ahead=self._ahead,
        )

    @staticmethod
    def _clear(task: Task) -> None:
        """Remove what is there, down to the disk: nobody is to wait for what another has written."""
        shutil.rmtree(task.target.parent, ignore_errors=True)
        task.target.parent.mkdir(parents=True)
        os.sync()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
