# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's look at its artifacts before it goes along with the others, and what its job takes along."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifacts, _artifacts_swarm, _job, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_fetch import Fetch
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import Piece, make_pieces
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm import Swarm
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_fleet import memberships
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import Membership
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import TransientError

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 300_000}
COMMIT = "d" * 40
SECRET = "7e" * 32
PARAMS: dict[str, t.Any] = {
    "state": "present", "endpoint": "https://hub.example.com", "token": None, "timeout": 5.0, "connections": 4,
    "bandwidth": "", "retries": 1, "allow_pickle": False, "engine": "native", "client": "modelscope",
    "lock_timeout": 1.0, "distribution": "swarm", "seed": None, "address": "10.0.0.1", "peer_port": 8791, "peers": None,
    "membership": None, "secret": None, "ends": None, "phase": "look", "started": None, "slice": 1.0,
}  # fmt: skip


class Stream:
    whole = False
    described = "from memory"

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self.offset: int | None = start
        self.total: int | None = len(data)
        self._data, self._pos = data[:end], start

    def read(self, limit: int) -> bytes:
        found = self._data[self._pos : self._pos + limit]
        self._pos += len(found)
        return found

    def close(self) -> None:
        """Nothing."""


class Hub:
    piece: int | None = None
    connections: int | None = None

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.patient: list[bool] = []
        self.listed: list[str | None] = []
        self.error: FleetError | None = None

    def resolve(self, model: str, revision: str, patient: bool = True) -> Resolution:
        self.asked.append("resolve")
        self.patient.append(patient)
        if self.error is not None:
            raise self.error
        return Resolution(revision, COMMIT, ("it moves often",))

    def list_rows(self, model: str, resolution: Resolution) -> list[dict[str, t.Any]]:
        self.asked.append("list")
        self.listed.append(resolution.commit)
        if self.error is not None:
            raise self.error
        return [
            {"Path": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Noise": "x"}
            for name, data in FILES.items()
        ]

    def source(self, model: str, resolution: Resolution) -> Hub:
        return self

    def open(self, entry: Entry, start: int, end: int) -> Stream:
        self.asked.append("open")
        return Stream(FILES[entry.path], start, end)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(Piece, "hub", lambda _piece: made)
    return made


def piece_at(path: Path, **item: t.Any) -> Piece:
    whole = {"model": "acme/tiny", "revision": "master", "path": str(path), "include": [], "exclude": [], **item}
    return make_pieces({**PARAMS, "artifacts": [whole]}, False)[0]


def look(piece: Piece) -> dict[str, t.Any]:
    said = _artifacts_swarm.look(piece)
    assert said is not None
    return said


def unreachable() -> TransientError:
    return TransientError("hub.unreachable", "the hub cannot be reached: no route to host")


def test_look_says_what_is_lacking(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    said = look(piece)
    assert piece.entry is None
    assert (said["complete"], said["commit"], said["missing"]) == (False, COMMIT, 300_002)
    assert said["warnings"] == ["it moves often"]
    assert [row["Path"] for row in said["rows"]] == list(FILES)
    assert "Noise" not in said["rows"][0], "what nobody reads is not sent"
    assert hub.patient == [False], "others may know"
    assert not (tmp_path / "model").exists()
    assert os.listdir(tmp_path) == []


def test_look_counts_what_an_earlier_run_left(hub: Hub, tmp_path: Path) -> None:
    data = FILES["model.safetensors"]
    staging = _staging.acquire(_staging.locate(str(tmp_path / "model")), 1.0)
    part = staging.part(Entry("model.safetensors", len(data), hashlib.sha256(data).hexdigest()))
    part.write(data[:1000], 0)
    part.note(0, 1000)
    part.close()
    staging.release()
    assert look(piece_at(tmp_path / "model"))["missing"] == 300_002 - 1000
    hub.error = unreachable()
    assert look(piece_at(tmp_path / "model"))["parts"] == 1000


def test_look_says_what_is_complete(hub: Hub, tmp_path: Path) -> None:
    piece_at(tmp_path / "model").present(False)
    hub.asked.clear()
    piece = piece_at(tmp_path / "model")
    said = look(piece)
    assert piece.entry is not None
    assert (said["complete"], said["commit"], said["missing"]) == (True, COMMIT, 0)
    assert {file["path"] for file in said["files"]} == set(FILES)
    assert hub.asked == ["resolve"]


def test_damaged_artifact_is_lacking_and_its_files_are_asked_for(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    piece.present(False)
    (tmp_path / "model" / "config.json").unlink()
    said = look(piece)
    assert piece.entry is None
    assert len(said["rows"]) == 2


def test_host_out_of_the_hubs_reach_is_not_failed_yet(hub: Hub, tmp_path: Path) -> None:
    hub.error = unreachable()
    piece = piece_at(tmp_path / "model")
    said = look(piece)
    assert piece.entry is None
    assert not said["complete"]
    assert "rows" not in said


def test_what_nobody_can_help_with_fails_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.error = FleetError("hub.no_access", "It is private", "access", "Set token")
    piece = piece_at(tmp_path / "model")
    assert _artifacts_swarm.look(piece) is None
    assert piece.entry is not None
    assert piece.entry["code"] == "hub.no_access"


def test_module_call_that_looks(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    item = {"model": "acme/tiny", "revision": "master", "path": str(tmp_path / "model"), "include": [], "exclude": []}
    params = {**PARAMS, "artifacts": [item]}
    result = _artifacts.perform(_artifacts.Options(params))
    assert (result["changed"], result["results"], result["look"]["open"]) == (False, [], True)
    assert result["look"]["address"] == "10.0.0.1"
    assert not (tmp_path / "state").exists(), "nothing was started"
    piece_at(tmp_path / "model").present(False)
    result = _artifacts.perform(_artifacts.Options(params))
    assert [entry["failed"] for entry in result["results"]] == [False]
    assert result["look"]["open"] is False


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"engine": "modelscope"}, "engine is modelscope and distribution swarm"),
        ({"address": ""}, "address is not set"),
        ({"peer_port": 0}, "peer_port is 0"),
        ({"peer_port": 70000}, "peer_port is 70000"),
    ],
)
def test_options_that_do_not_go_together(change: dict[str, t.Any], text: str) -> None:
    with pytest.raises(FleetError, match=text) as caught:
        _artifacts_swarm.check({**PARAMS, **change})
    assert caught.value.code == "artifact.bad_option"


def test_membership_comes_in_two_parts(hub: Hub, tmp_path: Path) -> None:
    said = look(piece_at(tmp_path / "model"))
    told = memberships(
        {name: {"address": f"10.0.0.{name}", "artifacts": [said]} for name in "12"}, "swarm", None, 8791, SECRET
    )
    document = told["2"].as_dict()
    secret = document.pop("secret")
    assert _artifacts_swarm.membership_of({"membership": document, "secret": secret}) == told["2"]
    assert _artifacts_swarm.membership_of({"membership": None, "secret": None}) is None
    with pytest.raises(FleetError, match="secret"):
        _artifacts_swarm.membership_of({"membership": document, "secret": None})
    mark = _artifacts_swarm.run_mark(told["2"])
    assert mark not in SECRET
    assert SECRET not in mark


# ---- what the fleet settled on, compared with this host's own hub


def told_by_another(piece: Piece, commit: str, config: bytes = b"{}") -> Membership:
    """The part of a host whose look was of ``COMMIT``, where the seed says ``commit`` and its own of one file."""
    mine = look(piece)
    theirs = {**mine, "commit": commit, "rows": [dict(row) for row in mine["rows"]]}
    theirs["rows"][0]["Sha256"] = hashlib.sha256(config).hexdigest()
    looks = {"me": {"address": "10.0.0.1", "artifacts": [mine]}, "you": {"address": "10.0.0.2", "artifacts": [theirs]}}
    return memberships(looks, "swarm", "you", 8791, SECRET)["me"]


def test_branch_that_moved_is_believed_once_the_hub_says_the_same(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    part = told_by_another(piece, "e" * 40)
    hub.asked.clear()
    assert _artifacts_swarm.vet([piece], part) == (part, [])
    assert hub.asked == ["resolve", "list"]
    assert hub.listed[-1] == "e" * 40, "the commit that the fleet settled on"


def test_listing_that_the_hub_contradicts_is_not_believed(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    part = told_by_another(piece, "e" * 40, b"forged")
    kept, warnings = _artifacts_swarm.vet([piece], part)
    assert kept is None
    assert len(warnings) == 1
    assert "the hub lists other files to this host" in warnings[0]
    assert "e" * 40 in warnings[0]


def test_commit_that_the_hub_does_not_know_is_not_believed(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    part = told_by_another(piece, "e" * 40)
    hub.error = FleetError("hub.not_found", "There is no such revision", "one that exists", "Correct it")
    kept, warnings = _artifacts_swarm.vet([piece], part)
    assert kept is None
    assert "There is no such revision" in warnings[0]


def test_host_that_cannot_ask_believes_the_others(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    part = told_by_another(piece, "e" * 40, b"forged")
    hub.error = unreachable()
    assert _artifacts_swarm.vet([piece], part) == (part, [])


def test_where_all_were_told_the_same_the_hub_is_not_asked_again(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    part = told_by_another(piece, COMMIT)
    hub.asked.clear()
    assert _artifacts_swarm.vet([piece], part) == (part, [])
    assert hub.asked == []


def test_only_what_is_contradicted_is_left_out(hub: Hub, tmp_path: Path) -> None:
    piece = piece_at(tmp_path / "model")
    part = told_by_another(piece, "e" * 40, b"forged")
    other = dataclasses.replace(part.artifacts[0], model="acme/other", doubtful=False)
    both = dataclasses.replace(part, artifacts=(*part.artifacts, other))
    kept, warnings = _artifacts_swarm.vet([piece], both)
    assert kept is not None
    assert kept.artifacts == (other,)
    assert len(warnings) == 1


def test_module_call_that_is_told_a_forged_listing_takes_the_hubs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    piece_at(tmp_path / "model").present(False)
    document = told_by_another(piece_at(tmp_path / "twin"), "e" * 40, b"forged").as_dict()
    secret = document.pop("secret")
    item = {"model": "acme/tiny", "revision": "master", "path": str(tmp_path / "model"), "include": [], "exclude": []}
    params = {**PARAMS, "phase": "start", "artifacts": [item], "membership": document, "secret": secret}
    result = _artifacts.perform(_artifacts.Options(params))
    assert "job" not in result, "what the hub lists is here already"
    assert [entry["commit"] for entry in result["results"]] == [COMMIT]
    assert "does not believe the others" in result["warnings"][0]


# ---- along with a job


class Job(_job.Run):
    """A job that is this process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.lines: list[str] = []
        self.lingered: list[bool] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def linger(self, seconds: float, over: t.Callable[[], bool] = lambda: False) -> None:
        self.lingered.append(over())


def test_job_takes_the_swarm_along(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with socket.create_server(("127.0.0.31", 0)) as free:
        port = free.getsockname()[1]
    pieces = {name: piece_at(tmp_path / name / "model") for name in ("a", "b")}
    looks = {
        name: {"address": f"127.0.0.{31 + place}", "artifacts": [look(piece)]}
        for place, (name, piece) in enumerate(pieces.items())
    }
    told = memberships(looks, "swarm", None, port, SECRET)
    results, jobs = {}, {}
    companions = {name: _artifacts_swarm.SwarmCompanion(told[name], [piece], 0) for name, piece in pieces.items()}
    kept: list[t.Callable[[], None]] = []
    for name, piece in pieces.items():
        directory = tmp_path / name / "job"
        directory.mkdir(parents=True)
        # The first one goes on giving while the second takes.
        if name == "a":
            kept.append(companions[name].close)
            monkeypatch.setattr(companions[name], "close", lambda: None)
        jobs[name] = Job(directory)
        if name == "b":
            hub.error = unreachable()
        Fetch([piece], False, False, jobs[name], companions[name]).run()
        results[name] = piece.entry
    for close in kept:
        close()
    assert [entry["failed"] for entry in results.values() if entry] == [False, False]
    assert companions["a"].result()["distribution"]["to_peers"] == {"b": 300_002}
    assert companions["b"].result()["distribution"]["from_peers"] == {"a": 300_002}
    assert companions["b"].result()["warnings"] == []
    assert (jobs["a"].lingered, jobs["b"].lingered) == ([False], []), "nobody is behind the last one"
    assert (tmp_path / "b" / "model" / "config.json").read_bytes() == b"{}"


def test_pieces_are_taken_in_the_order_of_all(hub: Hub, tmp_path: Path) -> None:
    mine = [piece_at(tmp_path / name, model=f"acme/{name}") for name in ("own", "second", "first")]
    said = [look(piece) for piece in mine]
    others = {"address": "10.0.0.9", "artifacts": [said[1], {**said[2], "missing": 900_000}]}
    told = memberships({"me": {"address": "10.0.0.1", "artifacts": said}, "you": others}, "swarm", None, 8791, SECRET)
    companion = _artifacts_swarm.SwarmCompanion(told["me"], mine, 0)
    assert [piece.model for piece in companion.order(mine)] == ["acme/first", "acme/second", "acme/own"]
    assert companion.result() == {}
    assert companion.after() == 0.0
    assert companion.over()
    assert companion.observer(mine[0]) is None
    assert companion.hub(mine[0], mine[0].hub()) is mine[0].hub()
    companion.ended(mine[0])
    companion.close()


def test_failed_artifact_is_given_up_for_those_who_wait(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    piece = piece_at(tmp_path / "a" / "model")
    said = look(piece)
    looks = {name: {"address": f"127.0.0.{41 + place}", "artifacts": [said]} for place, name in enumerate("ab")}
    companion = _artifacts_swarm.SwarmCompanion(memberships(looks, "swarm", None, 18791, SECRET)["a"], [piece], 0)
    (tmp_path / "a").write_text("in the way")
    directory = tmp_path / "job"
    directory.mkdir()
    abandoned: list[str] = []
    monkeypatch.setattr(Swarm, "abandon", lambda _swarm, request: abandoned.append(request.model))
    Fetch([piece], False, False, Job(directory), companion).run()
    assert piece.entry is not None
    assert piece.entry["failed"]
    assert abandoned == ["acme/tiny"]


# ---- ends


def lingering(home: Path, job_id: str, **record: t.Any) -> Path:
    """The directory of a job that is done and goes on for others; its process is this one."""
    me = _job.process_of(os.getpid())
    assert me is not None
    directory = home / job_id
    directory.mkdir(parents=True)
    home.chmod(0o700)
    who = {"pid": me.pid, "boot": me.boot, "start": me.start}
    (directory / "job.json").write_text(json.dumps({**who, **record}))
    (directory / "result.json").write_text(json.dumps({"results": [], "lingers": True}))
    return directory


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the jobs that were stopped."""
    ids: list[str] = []

    def stop(job: _job.Job, seconds: float = 0.0) -> bool:
        ids.append(job.id)
        return True

    monkeypatch.setattr(_job.Job, "stop", stop)
    return ids


def test_what_goes_on_giving_can_be_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: list[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    home = tmp_path / "state" / "gpufleet-vllm" / "jobs"
    piece = piece_at(tmp_path / "model")
    lingering(home, "00000000000000aa", gives=[piece.path], paths=[], port=8791)
    lingering(home, "00000000000000bb", gives=["/elsewhere"], paths=[], port=8791)
    lingering(home, "00000000000000cc", gives=["/elsewhere"], paths=[], port=9999)
    result = _artifacts.stop([piece], check_mode=True)
    assert ([job["id"] for job in result["stopped"]], stopped) == (["00000000000000aa"], [])
    _artifacts.stop([piece], check_mode=False)
    assert stopped == ["00000000000000aa"]
    stopped.clear()
    _artifacts._make_room(_job.Jobs(), 8791)
    assert stopped == ["00000000000000aa", "00000000000000bb"], "whoever has the port of a new run makes room"
    stopped.clear()
    assert _artifacts.end({"id": "00000000000000cc"}) == {"changed": False}
    assert stopped == ["00000000000000cc"]
    with pytest.raises(FleetError, match="is not the id of a job"):
        _artifacts.end({"id": "../../etc"})


def test_job_that_an_interrupted_run_left_giving_is_handed_to_this_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    item = {"model": "acme/tiny", "revision": "master", "path": str(tmp_path / "model"), "include": [], "exclude": []}
    params = {**PARAMS, "artifacts": [item]}
    piece = piece_at(tmp_path / "model")
    piece.present(False)
    job_id = _artifacts.identity([piece], params)
    assert "lingering" not in _artifacts.perform(_artifacts.Options(params))
    lingering(tmp_path / "state" / "gpufleet-vllm" / "jobs", job_id, gives=[piece.path], paths=[])
    for phase in ("look", "start"):
        result = _artifacts.perform(_artifacts.Options({**params, "phase": phase}))
        assert result["lingering"] == {"id": job_id}
        assert "lingers" not in result
