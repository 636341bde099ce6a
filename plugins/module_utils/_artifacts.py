# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""All model artifacts of a host in one module call: the quick look first, then a job for what there is to do.

A look resolves each revision and compares recorded sizes and times. Where that settles everything, nothing is started
and nothing written. Else a job (``_job``) does the rest in the background (``_artifacts_fetch``), and the action plugin
``vllm_artifacts`` asks for it in slices.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _job
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_module import transfer_argument_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import (
    Piece,
    make_pieces,
    stopped_error,
    summed,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import (
    connection_argument_spec,
    selection_argument_spec,
)

if t.TYPE_CHECKING:
    from types import ModuleType

    from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import Membership

STATES = ("present", "verified", "absent", "stopped")
PACE = (*transfer_argument_spec(), "timeout", "lock_timeout")
"""Options that say how something is fetched. A job of the same request that runs at another pace is begun anew."""

DIRECT = "direct"

_LOOKS = 8
_SAME_SECONDS = 3600.0
"""A verification that ended unseen counts for so long."""

_POLL = 0.2


def argument_spec() -> dict[str, t.Any]:
    """The options of the module ``vllm_artifacts``."""
    one = {
        **selection_argument_spec(),
        "path": {"type": "path"},
        "services": {"type": "list", "elements": "str", "default": []},
    }
    return {
        "artifacts": {"type": "list", "elements": "dict", "default": [], "options": one},
        "state": {"type": "str", "choices": list(STATES), "default": "present"},
        **connection_argument_spec(),
        **transfer_argument_spec(),
        "lock_timeout": {"type": "float", "default": 60.0},
        "background": {"type": "bool", "default": False},
        "started": {"type": "dict"},
        "slice": {"type": "float", "default": 20.0},
        "distribution": {"type": "str", "choices": [DIRECT, "seed", "swarm"], "default": DIRECT},
        "seed": {"type": "str"},
        "address": {"type": "str"},
        "peer_port": {"type": "int", "default": 8791},
        "peers": {"type": "str"},
        "membership": {"type": "dict"},
        "secret": {"type": "str", "no_log": True},
        "ends": {"type": "dict"},
        "phase": {"type": "str", "choices": ["run", "look", "start", "wait", "end"], "default": "run"},
    }


class Options(t.NamedTuple):
    """What the module was asked for; ``params`` are those of :func:`argument_spec`."""

    params: dict[str, t.Any]
    check_mode: bool = False
    diff: bool = False


def perform(options: Options) -> dict[str, t.Any]:
    """One call of the module. Raises FleetError for what no artifact is to blame for."""
    try:
        return _perform(options)
    except OSError as exc:
        where = f" at {exc.filename}" if exc.filename is not None else ""
        raise FleetError(
            "job.failed",
            f"{exc.strerror or type(exc).__name__}{where}",
            f"a directory for jobs, {_job.home()}, that this user can write to",
            "Free some space there or correct its permissions, then run it again",
        ) from exc


def _perform(options: Options) -> dict[str, t.Any]:
    if options.params["phase"] == "wait":
        return wait(options)
    if options.params["phase"] == "end":
        return end(options.params["ends"] or {})
    pieces = make_pieces(options.params, options.check_mode)
    state = options.params["state"]
    if state == "stopped":
        return stop(pieces, options.check_mode)
    if state == "absent" or options.check_mode or options.params["phase"] == "run":
        return run(pieces, options)
    if options.params["phase"] == "look":
        return look_around(pieces, options)
    return start(pieces, options)


# --- at once ---------------------------------------------------------------------------------------------------------


def run(pieces: list[Piece], options: Options) -> dict[str, t.Any]:
    """All of it in this call: check mode, removal, and whoever calls the module without its action plugin."""
    state = options.params["state"]
    if state == "absent" and not options.check_mode:
        for job in _at(pieces):
            job.stop()
    for piece in pieces:
        if state == "absent":
            piece.attempt(lambda one: _artifact.absent(one.request))
        else:
            piece.attempt(lambda one: one.present(state == "verified"))
    return summed(pieces, options.diff)


def stop(pieces: list[Piece], check_mode: bool) -> dict[str, t.Any]:
    """End the jobs that work on the artifacts, or give them to others; what they received is kept."""
    jobs = _at(pieces)
    for job in jobs if not check_mode else []:
        job.stop()
    return {"changed": bool(jobs), "results": [], "stopped": [described(job) for job in jobs]}


def _at(pieces: list[Piece]) -> list[_job.Job]:
    paths, jobs = [piece.path for piece in pieces], _job.Jobs()
    giving = [job for job in jobs.all() if job.process is not None and set(paths) & set(job.record.get("gives") or [])]
    return [*(job for job in jobs.on(paths) if job.id not in {one.id for one in giving}), *giving]


def end(lingering: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """End a job that has done its work and goes on for others, as nobody needs it any more."""
    _job.Jobs().get(str(lingering.get("id") or "")).stop()
    return {"changed": False}


# --- together with the other hosts -----------------------------------------------------------------------------------


def look_around(pieces: list[Piece], options: Options) -> dict[str, t.Any]:
    """Settle what a look settles, and say what the fleet has to know to see to the rest."""
    params = options.params
    _together().check(params)
    said = [one for one in _each(pieces, _together().look) if one is not None]
    around = {"address": params["address"], "artifacts": said, "open": any(piece.entry is None for piece in pieces)}
    if around["open"]:
        return {"changed": False, "results": [], "look": around}
    jobs = _job.Jobs()
    return {**_nothing_to_do(jobs, jobs.get(identity(pieces, params)), pieces, options), "look": around}


# --- in the background -----------------------------------------------------------------------------------------------


def start(pieces: list[Piece], options: Options) -> dict[str, t.Any]:
    """Look; where there is something to do, see to it that a job does it, and say which."""
    params, verify = options.params, options.params["state"] == "verified"
    membership, warnings = _membership(params), []
    if membership is not None:
        membership, warnings = _together().vet(pieces, membership)
    if not verify:
        look(pieces, membership)
    jobs, job_id = _job.Jobs(), identity(pieces, params)
    serves = membership is not None and membership.serves
    if all(piece.entry is not None for piece in pieces) and not serves:
        result = _nothing_to_do(jobs, jobs.get(job_id), pieces, options)
        return {**result, "warnings": [*warnings, *(result.get("warnings") or [])]}
    with jobs.locked():
        job = jobs.get(job_id)
        pace = {key: params[key] for key in PACE}
        if membership is not None:
            # Hosts of two runs do not know each other; what a job of an earlier one received is kept.
            pace["run"] = _together().run_mark(membership)
            _make_room(jobs, membership.port)
        if job.works and job.record.get("pace") == pace:
            return {"changed": False, "job": {**described(job), "attached": True}, "warnings": warnings}
        if verify and _fresh(job):
            return {"changed": False, "job": {**described(job), "attached": True}}
        if job.there():
            warnings += _clear(job)
        jobs.sweep()
        record = {
            "models": [piece.model for piece in pieces if piece.entry is None],
            "paths": [piece.path for piece in pieces if piece.entry is None],
            "pace": pace,
            "gives": [piece.path for piece in pieces] if serves else [],
            "port": membership.port if membership is not None and serves else None,
        }
        job = jobs.launch(job_id, record, _work(pieces, options, membership))
    return {"changed": False, "job": {**described(job), "attached": False}, "warnings": warnings}


def _together() -> ModuleType:
    # Only here: Ansible compiles what a call imports each time.
    from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifacts_swarm

    return _artifacts_swarm


def _membership(params: t.Mapping[str, t.Any]) -> Membership | None:
    return _together().membership_of(params) if params["membership"] else None


def _make_room(jobs: _job.Jobs, port: int) -> None:
    """End what an earlier run left giving at the port: its controller was cut off before it could."""
    for job in jobs.all():
        if job.record.get("port") == port and job.result() is not None and job.process is not None:
            job.stop()


def _work(pieces: list[Piece], options: Options, membership: Membership | None = None) -> t.Callable[[_job.Run], None]:
    # Not before there is something to fetch: Ansible compiles what a call imports each time.
    from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifacts_fetch

    verify, diff = options.params["state"] == "verified", options.diff
    companion = None
    if membership is not None:
        companion = _together().SwarmCompanion(membership, pieces, pieces[0].request.bandwidth)
    return lambda inside: _artifacts_fetch.Fetch(pieces, verify, diff, inside, companion).run()


def look(pieces: list[Piece], membership: Membership | None = None) -> None:
    """Settle what a look settles: what is there as recorded, and what cannot be had."""
    if membership is None:
        _each(pieces, Piece.look)
    else:
        _each(pieces, lambda piece: _together().settle(piece, membership))


def _each(pieces: list[Piece], work: t.Callable[[Piece], t.Any]) -> list[t.Any]:
    if len(pieces) == 1:
        return [work(pieces[0])]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, min(_LOOKS, len(pieces)))) as pool:
        return list(pool.map(work, pieces))


def identity(pieces: t.Iterable[Piece], params: t.Mapping[str, t.Any]) -> str:
    """The id of the job that does this: what is wanted, and not who asks or how fast. Homes may be shared by hosts."""
    wanted = [piece.identity for piece in pieces]
    text = json.dumps([_machine(), params["state"], params["endpoint"], wanted], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _machine() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as stream:
            known = stream.read().strip()
    except (OSError, ValueError):
        known = ""
    return f"{os.uname().nodename} {known}"


def _fresh(job: _job.Job) -> bool:
    """Whether the job did its work a while ago, and nobody has been told."""
    result = job.result()
    return bool(result and result.get("results")) and not _failed(result) and job.age() < _SAME_SECONDS


def _failed(result: t.Mapping[str, t.Any] | None) -> bool:
    return any(entry.get("failed") for entry in (result or {}).get("results") or [])


def _nothing_to_do(jobs: _job.Jobs, job: _job.Job, pieces: list[Piece], options: Options) -> dict[str, t.Any]:
    """The result where all is settled; a job of an interrupted run that goes on for others can be ended by this one."""
    lingers = job.there() and job.process is not None and job.result() is not None
    result = _seen(jobs, job, pieces) or summed(pieces, options.diff)
    result.pop("lingers", None)
    return {**result, "lingering": {"id": job.id}} if lingers else result


def _seen(jobs: _job.Jobs, job: _job.Job, pieces: list[Piece]) -> dict[str, t.Any] | None:
    """What a job did that nobody has been told of yet, for example after Ctrl-C: this run tells."""
    if not job.there():
        return None
    result, lingers = job.result(), job.process is not None
    if lingers and (result is None or job.told):
        return None
    here = [(piece.entry or {}).get("published") for piece in pieces]
    there = [entry.get("published") for entry in (result or {}).get("results") or []]
    if lingers:
        job.tell()
    else:
        with jobs.locked():
            job.discard()
    return None if result is None or result.get("stopped") or _failed(result) or here != there else result


def _clear(job: _job.Job) -> list[str]:
    """Out of the way with a job that ended, died, or does the same at another pace; what a person should know of it."""
    stopped, result = job.stop(), job.result()
    warnings = []
    if not stopped and result is None and job.record:
        log = job.log(3)
        warnings.append(
            f"An earlier job (process {job.record.get('pid')}, since {job.record.get('since')}) ended without a "
            "result: it was killed, or the host was restarted. What it received is kept, and a new one goes on."
            + (f" Its log ended: {' | '.join(log)}" if log else "")
        )
    job.discard(above=False)
    return warnings


def described(job: _job.Job) -> dict[str, t.Any]:
    """A job for people and for the wait."""
    return {
        "id": job.id,
        "pid": job.record.get("pid"),
        "since": job.record.get("since"),
        "models": job.record.get("models") or [],
        "directory": job.directory,
    }


# --- the wait --------------------------------------------------------------------------------------------------------


def wait(options: Options) -> dict[str, t.Any]:
    """At most ``slice`` seconds: the job's result when it is done, else how far it is. Raises FleetError if it died."""
    known = ((options.params["started"] or {}).get("job") or {}).get("id") or ""
    jobs, deadline = _job.Jobs(), time.monotonic() + options.params["slice"]
    while True:
        job = jobs.get(str(known))
        alive = job.process is not None
        result = job.result()
        if result is not None:
            return _taken(jobs, job, result)
        if not job.there():
            # Somebody else waited for it, too, and was told first.
            return {"changed": False, "done": False, "gone": True}
        if not alive and job.record:
            log = job.log()
            with jobs.locked():
                job.discard()
            raise died(job, log)
        if time.monotonic() >= deadline:
            return {"changed": False, "done": False, "status": job.status()}
        time.sleep(_POLL)


def _taken(jobs: _job.Jobs, job: _job.Job, result: dict[str, t.Any]) -> dict[str, t.Any]:
    if result.get("lingers"):
        job.tell()
    else:
        deadline = time.monotonic() + 5.0
        while job.process is not None and time.monotonic() < deadline:
            time.sleep(_POLL / 10)
        with jobs.locked():
            job.discard()
    if result.get("stopped"):
        raise stopped_error()
    return {**result, "done": True}


def died(job: _job.Job, log: t.Sequence[str]) -> FleetError:
    """The error for a job that is gone without a word."""
    models = ", ".join(job.record.get("models") or []) or "the artifacts"
    said = "; the end of its log: " + " | ".join(log) if log else "; its log is empty"
    return FleetError(
        "job.died",
        f"The background job that fetched {models} (process {job.record.get('pid')}, since {job.record.get('since')}) "
        f"ended without a result: it was killed, ran out of memory, or the host was restarted{said}",
        "a job that ends by itself and leaves a result",
        "Run the same command again: what was received is kept, and a new job goes on from there. Where jobs end with "
        "the session that began them, logind has KillUserProcesses=yes: connect as root, or enable lingering for the "
        "user (loginctl enable-linger)",
    )
