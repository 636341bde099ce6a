# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import typing as t

from ansible import constants as C  # noqa: N812
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_wait import (
    IN_BACKGROUND,
    interval,
    progress_line,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import lost_connection, unreachable_text
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_fleet import (
    Look,
    doubts,
    memberships,
    read_look,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import MODES, Membership
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import new_secret

display = Display()

# A person watches a terminal; a log is read later.
PROGRESS_SECONDS = 5.0 if sys.stdout.isatty() else 20.0
FIRST_SLICE = 5.0
LONGEST_SLICE = 20.0
# A download takes hours, in which a connection may break; the job on the host does not mind.
RECONNECT_SECONDS = 60.0
RETRY_SECONDS = 5.0
# How often it is looked and started again where somebody else took the result of the job that was waited for.
STARTS = 3
TAKEN = (
    "Other runs took the results of the job, one after the other. Expected: one run at a time that fetches the same. "
    "Remedy: run it again when the others have ended."
)
BACKGROUND_STATES = ("present", "verified")
# Of an earlier task's result: what that task has said already, or is about itself.
SAID = ("warnings", "deprecations", "invocation", "job", "look")
# For the action alone, never for the module on the host.
OURS = ("peers", "seed")

Answer = dict[str, t.Any]


class ConnectionLost(Exception):
    """The host was not reached for so long that it is given up."""


class ActionModule(ActionBase):
    """Looks, has a job started where there is something to do, and waits for it in slices, showing progress."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> Answer:
        result: Answer = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = dict(self._task.args)
        args.pop("phase", None)
        background = boolean(args.get("background") or False, strict=False)
        started = args.pop("started", None) or None
        state = str(args.get("state") or "present")
        waits = not self._task.check_mode and state in BACKGROUND_STATES
        # A verification hashes what each host has; what it has to repair comes from the hub.
        together = waits and state == "present" and args.get("distribution") in MODES
        own = {key: args.pop(key, None) for key in OURS}
        try:
            if args.get("ends"):
                result.update(self._call({"ends": args["ends"], "phase": "end"}, task_vars))
            elif own["peers"]:
                result.update(self._join(args, own, together, task_vars))
            elif started is None and background and together:
                result.update(self._call({**args, "phase": "look"}, task_vars))
            elif started is not None and not started.get("job"):
                result.update(self._handed_on(started))
            elif started is None and (background or not waits):
                result.update(self._call({**args, "phase": "start" if waits else "run"}, task_vars))
            else:
                result.update(self._finish(args, started, task_vars))
        except ConnectionLost as exc:
            # Failed, not unreachable: only so is a host rescued, and its part of the summary written.
            result.update(changed=False, failed=True, msg=unreachable_text(str(exc)), connection_lost=str(exc))
        return result

    # --- together with the other hosts of the play ---

    def _join(self, args: Answer, own: Answer, together: bool, task_vars: dict[str, t.Any]) -> Answer:
        """This host's part in what all hosts of the play saw when they looked."""
        host, variable = str(task_vars["inventory_hostname"]), str(own["peers"])
        said = {name: _said(task_vars, name, variable) for name in task_vars.get("ansible_play_batch") or [host]}
        mine: Answer = dict(said.get(host) or {})
        if mine.get("failed") or lost_connection(mine):
            return self._handed_on(mine)
        if not together or not mine.get("look"):
            return {key: value for key, value in mine.items() if key not in SAID or key == "job"}
        looks, warnings = _looks(said)
        told = memberships(looks, str(args["distribution"]), own["seed"], int(args.get("peer_port") or 0), _secret())
        warnings += doubts(looks, own["seed"], told)
        part = told.get(host)
        if part is None and host in looks and not looks[host]["open"]:
            return self._handed_on(mine)
        if part is not None:
            self._say_who_begins(part)
            document = part.as_dict()
            args = {**args, "secret": document.pop("secret"), "membership": document}
        answer = self._call({**args, "phase": "start"}, task_vars)
        answer.pop("invocation", None)  # the whole listing
        if warnings:
            answer["warnings"] = [*warnings, *(answer.get("warnings") or [])]
        return answer

    @staticmethod
    def _say_who_begins(part: Membership) -> None:
        for pinned in part.artifacts:
            others = [name for name in pinned.chain[pinned.complete :] if name != part.name]
            giver = pinned.chain[max(0, pinned.complete - 1)]
            if part.name == giver and others:
                count = "1 other host" if len(others) == 1 else f"{len(others)} other hosts"
                display.display(f"[{giver}] gives {pinned.model} to {count} ({part.mode})")

    def _handed_on(self, started: Answer) -> Answer:
        """What an earlier task came to without a job; said once more, so that one variable holds the end of it."""
        lost = lost_connection(started)
        if lost:
            raise ConnectionLost(lost)
        kept = {key: value for key, value in started.items() if key not in SAID}
        results = kept.get("results") or []
        changed = (
            bool(kept.get("changed")) or any(entry.get("changed") for entry in results) or bool(kept.get("stopped"))
        )
        return {"results": [], **kept, "changed": changed}

    def _call(self, args: Answer, task_vars: dict[str, t.Any]) -> Answer:
        answer: Answer = self._execute_module(
            module_name="gpufleet.vllm.vllm_artifacts", module_args=args, task_vars=task_vars
        )
        return answer

    def _finish(self, args: Answer, started: Answer | None, task_vars: dict[str, t.Any]) -> Answer:
        """Until the job has ended; where there is none yet, it is started."""
        warnings: list[t.Any] = []
        for _again in range(STARTS):
            if started is None:
                started = self._call({**args, "phase": "start"}, task_vars)
                if started.get("failed") or not started.get("job"):
                    return started
                warnings += started.get("warnings") or []
            answer = self._wait({"job": started["job"]}, args, task_vars)
            if not answer.get("gone"):
                break
            started = None
        if answer.get("gone"):
            answer.update(failed=True, msg=TAKEN)
        if answer.pop("lingers", None) and started is not None:
            answer["lingering"] = {"id": started["job"].get("id")}
        for key in ("done", "gone"):
            answer.pop(key, None)
        if warnings:
            answer["warnings"] = [*warnings, *(answer.get("warnings") or [])]
        return answer

    def _wait(self, started: Answer, args: Answer, task_vars: dict[str, t.Any]) -> Answer:
        host = str(task_vars.get("inventory_hostname", ""))
        begun = shown = time.monotonic()
        if started["job"].get("attached"):
            display.display(f"[{host}] a job that an earlier run started goes on (process {started['job'].get('pid')})")
        longest, length = float(args.get("slice") or LONGEST_SLICE), FIRST_SLICE
        while True:
            slices = {"phase": "wait", "started": started, "slice": min(length, longest)}
            answer = self._slice(slices, host, task_vars)
            if answer.get("failed") or answer.get("unreachable") or answer.get("done") or answer.get("gone"):
                return answer
            now = time.monotonic()
            length = interval(PROGRESS_SECONDS, now - begun)
            # A slice ends a little early or late.
            if shown == begun or now - shown >= length - 1.0:
                self._say_once_that_it_goes_on()
                shown = now
                display.display(progress_line(host, answer.get("status") or {}))

    def _slice(self, slices: Answer, host: str, task_vars: dict[str, t.Any]) -> Answer:
        """One module call; where the connection is lost, the same again until it is back."""
        lost_since: float | None = None
        while True:
            try:
                return self._call(slices, task_vars)
            except AnsibleConnectionFailure as exc:
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    display.display(f"[{host}] no connection, trying again for {RECONNECT_SECONDS:.0f} s: {exc}")
                if now - lost_since >= RECONNECT_SECONDS:
                    raise ConnectionLost(f"{exc} (for {now - lost_since:.0f} s)") from None
                time.sleep(RETRY_SECONDS)

    @staticmethod
    def _say_once_that_it_goes_on() -> None:
        # Each host waits in a process of its own; the directory of this run is what they share.
        shared: str = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]
        try:
            os.close(os.open(os.path.join(shared, "vllm_artifacts_said"), os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            return
        display.display(IN_BACKGROUND)


def _said(task_vars: dict[str, t.Any], name: str, variable: str) -> Answer:
    """What an earlier task registered on a host of the play."""
    hostvars = task_vars.get("hostvars") or {}
    said = hostvars[name].get(variable) if name in hostvars else None
    return said if isinstance(said, dict) else {}


def _looks(said: dict[str, Answer]) -> tuple[dict[str, Look], list[str]]:
    """What the hosts saw, without those that say nothing of use, and a warning for each that says what is no look."""
    looks: dict[str, Look] = {}
    warnings: list[str] = []
    for name, one in said.items():
        if one.get("look") and not one.get("failed"):
            try:
                looks[name] = read_look(one["look"])
            except ValueError as exc:
                warnings.append(f"What {name} says of its artifacts cannot be used ({exc}). The others do without it.")
    return looks, warnings


def _secret() -> str:
    """The secret of this run of Ansible: made by the first worker that needs it, in the run's own private directory."""
    shared: str = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]
    path = os.path.join(shared, "vllm_artifacts_secret")
    with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as stream:
        return stream.read()
    handle, mine = tempfile.mkstemp(dir=shared)  # readable for this user alone
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(new_secret())
    with contextlib.suppress(FileExistsError):
        os.link(mine, path)
    os.unlink(mine)
    with open(path, encoding="ascii") as stream:
        return stream.read()
