# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""One of the artifacts of a host: what is wanted of it, and what became of it."""

from __future__ import annotations

import os
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_module import as_diff, as_result, request_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import check_model, check_revision
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import hub_client

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Hub, Outcome, Request
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import Observer


@dataclass
class Piece:
    """One artifact. ``entry`` is its result, None while there is none; ``warnings`` and ``diff`` come with it."""

    item: dict[str, t.Any]
    request: Request
    params: dict[str, t.Any]
    entry: dict[str, t.Any] | None = None
    diff: dict[str, t.Any] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def identity(self) -> list[t.Any]:
        """What tells one request from another."""
        request = self.request
        return [request.model, request.revision, request.path, list(request.include), list(request.exclude)]

    def hub(self) -> Hub:
        return hub_client(self.params)

    def look(self) -> None:
        """Settle it if nothing is to do, or nothing can be done; reads only."""
        self.attempt(lambda one: _artifact.settled(one.request, one.hub()))

    def present(
        self,
        verify: bool,
        hub: Hub | None = None,
        monitor: Monitor | None = None,
        observer: Observer | None = None,
    ) -> Outcome:
        return _artifact.present(self.request, hub or self.hub(), verify=verify, monitor=monitor, observer=observer)

    def attempt(self, work: t.Callable[[Piece], Outcome | None]) -> None:
        """Do it and keep what came of it, be it a failure; an outcome of None leaves it open."""
        started = time.monotonic()
        try:
            outcome = work(self)
        except FleetError as exc:
            self.fail(exc)
            return
        if outcome is None:
            return
        result = as_result(outcome)
        self.warnings += result.pop("warnings")
        took = {} if self.request.check_mode else {"seconds": round(time.monotonic() - started, 3)}
        self.entry = {**result, **took, "failed": False, "item": self.item}
        self.diff = as_diff(outcome, self.model) if outcome.changed else None

    def fail(self, error: FleetError) -> None:
        said = f"{self.model} at {self.path}: {error}"
        self.entry = {
            "changed": False, "failed": True, "msg": said, **error.as_result(), "path": self.path, "item": self.item
        }  # fmt: skip


def make_pieces(params: t.Mapping[str, t.Any], check_mode: bool) -> list[Piece]:
    """The artifacts that the options name. Raises FleetError where two are one directory, or an option cannot be."""
    pieces: list[Piece] = []
    for item in params["artifacts"]:
        piece = _make(item, params, check_mode)
        twin = next((one for one in pieces if one.path == piece.path), None)
        if twin is not None:
            raise FleetError(
                "artifact.bad_option",
                f"{piece.path} is the directory of {twin.model} and of {piece.model}",
                "a directory of its own for each artifact",
                "Set another path for one of them",
            )
        pieces.append(piece)
    return pieces


def _make(item: t.Mapping[str, t.Any], params: t.Mapping[str, t.Any], check_mode: bool) -> Piece:
    model, revision = check_model(item["model"]), check_revision(item["revision"])
    parent, name = os.path.split(os.path.abspath(item["path"] or _artifact.default_path(model, revision)))
    path = os.path.join(os.path.realpath(parent), name)
    request = request_of({**params, **item}, model, revision, path, check_mode)
    hub = {key: params[key] for key in ("endpoint", "token", "timeout")}
    return Piece(dict(item), request, {**hub, "model": model, "revision": revision})


def summed(pieces: t.Sequence[Piece], diff: bool) -> dict[str, t.Any]:
    """The result of all of them; as data that a job can leave in a file."""
    entries = [piece.entry or {} for piece in pieces]
    result: dict[str, t.Any] = {
        "changed": any(entry.get("changed") for entry in entries),
        "results": entries,
        "warnings": list(dict.fromkeys(text for piece in pieces for text in piece.warnings)),
    }
    if diff:
        result["diff"] = [piece.diff for piece in pieces if piece.diff]
    return result


def failure(results: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any] | None:
    """How the module fails where one of them did; None where none did."""
    failed = [entry for entry in results if entry.get("failed")]
    if not failed:
        return None
    count = f"{len(failed)} of {len(results)} artifacts failed.\n" if len(results) > 1 else ""
    # One alone is a failure like any other, with its code for a playbook to branch on.
    codes = {str(entry.get("code")) for entry in failed}
    more = {key: failed[0].get(key) for key in ("code", "seen", "expected", "remedy")} if len(failed) == 1 else {}
    return {
        "msg": count + "\n".join(str(entry["msg"]) for entry in failed),
        "code": codes.pop() if len(codes) == 1 else "artifact.failed",
        **more,
        # Ansible shows all of a failure, and a listing of a thousand files would hide it.
        "results": [{key: value for key, value in entry.items() if key != "files"} for entry in results],
        "changed": any(entry.get("changed") for entry in results),
    }


def stopped_error() -> FleetError:
    """For what a stopped job did not come to."""
    return FleetError(
        "job.stopped",
        "The job was stopped before the artifact was complete",
        "a job that is left to end by itself",
        "Run it again: what was received is kept, and what served before still does",
    )
