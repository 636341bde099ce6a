# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifacts_fetch, _artifacts_piece, _job
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import Outcome, Request
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_fetch import Companion, Fetch
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import Piece
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

ID = "0123456789abcdef"


class Swarm(Companion):
    """Keeps what it was asked; goes on for ten minutes."""

    def __init__(self, notes: Path, seconds: float = 600.0) -> None:
        self.notes, self.seconds = notes, seconds

    def note(self, text: str) -> None:
        with self.notes.open("a") as stream:
            stream.write(f"{text}\n")

    def before(self, pieces: t.Sequence[Piece], monitor: t.Any) -> None:
        self.note(f"before {len(pieces)}")

    def hub(self, piece: Piece, hub: t.Any) -> t.Any:
        return f"swarm before {hub}"

    def observer(self, piece: Piece) -> t.Any:
        return f"observer of {piece.model}"

    def after(self) -> float:
        self.note("after")
        return self.seconds

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_job.Jobs]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = _job.Jobs()
    yield made
    for job in made.all():
        job.stop(2.0)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What happens in the job; acme/gone fails there, acme/slow never ends."""
    path = tmp_path / "notes"

    def present(request: Request, hub: t.Any, verify: bool, monitor: t.Any, observer: t.Any) -> Outcome:
        with path.open("a") as stream:
            stream.write(f"{request.model} from {hub}, {observer}, {verify}\n")
        if request.model == "acme/gone":
            raise FleetError("hub.not_found", "It is not there")
        if request.model == "acme/slow":
            time.sleep(600)
        return Outcome(request.path, changed=True, bytes_fetched=9)

    monkeypatch.setattr(_artifacts_piece._artifact, "present", present)
    monkeypatch.setattr(_artifacts_piece, "hub_client", lambda params: "the hub")
    return path


def piece(model: str) -> Piece:
    return Piece({"model": model}, Request(model, "v1", f"/srv/{model}", "https://hub.example.com"), {})


def launch(jobs: _job.Jobs, pieces: list[Piece], companion: Companion | None = None, job_id: str = ID) -> _job.Job:
    with jobs.locked():
        record = {"paths": [one.path for one in pieces if one.entry is None]}
        return jobs.launch(job_id, record, lambda run: Fetch(pieces, False, False, run, companion).run())


def wait_for(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_one_after_the_other_and_what_is_settled_stays(jobs: _job.Jobs, notes: Path) -> None:
    settled = piece("acme/settled")
    settled.entry = {"changed": False, "failed": False}
    job = launch(jobs, [piece("acme/gone"), settled, piece("acme/tiny")])
    wait_for(lambda: job.process is None)
    result = job.result()
    assert result is not None
    assert [entry["failed"] for entry in result["results"]] == [True, False, False]
    assert (result["changed"], result["lingers"]) == (True, False)
    assert notes.read_text().splitlines() == [
        "acme/gone from the hub, None, False",
        "acme/tiny from the hub, None, False",
    ]
    assert [line.split(" ", 1)[1] for line in job.log()] == [
        "fetching acme/gone, acme/tiny",
        "acme/gone: acme/gone at /srv/acme/gone: It is not there.",
        "acme/tiny: 9 bytes fetched",
    ]


@pytest.mark.parametrize("end", ["file", "signal", "time"])
def test_a_companion_goes_on_until_it_is_stopped(jobs: _job.Jobs, notes: Path, end: str) -> None:
    job = launch(jobs, [piece("acme/tiny")], Swarm(notes, 1.0 if end == "time" else 600.0))
    wait_for(lambda: job.result() is not None)
    result = job.result()
    assert result is not None
    assert result["lingers"]
    assert jobs.on(["/srv/acme/tiny"]) == []
    if end == "file":
        Path(job.directory, _job.STOP).touch()
    elif end == "signal":
        assert job.stop()
    wait_for(lambda: job.process is None)
    assert notes.read_text().splitlines() == [
        "before 1",
        "acme/tiny from swarm before the hub, observer of acme/tiny, False",
        "after",
        "close",
    ]
    assert not job.there(), "it clears up after itself"


def test_a_stopped_job_goes_on_for_nobody(jobs: _job.Jobs, notes: Path) -> None:
    job = launch(jobs, [piece("acme/slow"), piece("acme/tiny")], Swarm(notes))
    wait_for(lambda: notes.exists() and "acme/slow" in notes.read_text())
    os.kill(job.record["pid"], signal.SIGTERM)  # and no file that says so, as when the host shuts down
    wait_for(lambda: job.process is None)
    result = job.result()
    assert result is not None
    assert [entry["code"] for entry in result["results"]] == ["job.stopped"] * 2
    assert notes.read_text().splitlines()[-1] == "close"
    assert "after" not in notes.read_text().splitlines()


def test_only_older_jobs_are_waited_for(jobs: _job.Jobs, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_artifacts_fetch, "_YIELD_SECONDS", 0.05)
    older = launch(jobs, [piece("acme/slow")])
    wait_for(notes.exists)
    younger = launch(jobs, [piece("acme/slow"), piece("acme/tiny")], job_id="f" * 16)
    wait_for(lambda: younger.status().get("phase") == "waiting")
    assert [line.split()[0] for line in notes.read_text().splitlines()] == ["acme/slow", "acme/tiny"]
    assert older.stop()
    wait_for(lambda: notes.read_text().count("acme/slow") == 2)


def test_a_companion_of_nobody_does_nothing() -> None:
    nobody = Companion()
    assert nobody.hub(piece("acme/tiny"), "hub") == "hub"  # type: ignore[arg-type, comparison-overlap]
    assert nobody.observer(piece("acme/tiny")) is None
    assert nobody.after() == 0.0
