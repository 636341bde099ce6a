# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import types
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifacts, _artifacts_piece, _job
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_artifacts

COMMIT = "2e50b77b0eee3083842019e257b74854323d880a"
TOKEN = "ms-0123456789abcdef"
DATA = {"config.json": b"{}", "model.safetensors": b"weights"}


class Stream:
    described, whole = "a test", False

    def __init__(self, data, start, end):
        self.offset, self.total, self._data = start, len(data), data[start:end]

    def read(self, limit):
        data, self._data = self._data, b""
        return data

    def close(self):
        pass


class FakeHub:
    """Has every model but acme/gone; sends nothing while the gate is shut."""

    def __init__(self, gate):
        self.gate, self.resolved = gate, []

    def resolve(self, model, revision, patient=True):
        self.resolved.append(model)
        if model == "acme/gone":
            raise FleetError("hub.not_found", "There is no acme/gone", "a model", "Correct it")
        return Resolution(revision, COMMIT, ("a warning",) if model == "acme/odd" else ())

    def list_rows(self, model, resolution):
        return [
            {"Path": path, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()} for path, data in DATA.items()
        ]

    def source(self, model, resolution):
        return types.SimpleNamespace(open=self.open, piece=None, connections=None)

    def open(self, entry, start, end):
        while self.gate.exists():
            time.sleep(0.02)
        return Stream(DATA[entry.path], start, end)


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    one = FakeHub(tmp_path / "gate")
    one.clients = []

    def client(params):
        one.clients.append(params)
        return one

    monkeypatch.setattr(_artifacts_piece, "hub_client", client)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    one.said = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, text: one.said.append(text))
    yield one
    for job in _job.Jobs().all():
        job.stop(5.0)


@pytest.fixture
def call(capsys, tmp_path):
    def run(*models, **args):
        artifacts = [{"model": model, "path": str(tmp_path / model.split("/")[1])} for model in models]
        full = {
            "artifacts": artifacts,
            **{name.replace("_check", "_ansible_check_mode"): v for name, v in args.items()},
        }
        with patch_module_args(full), pytest.raises(SystemExit) as end:
            vllm_artifacts.main()
        result = json.loads(capsys.readouterr().out)
        assert (end.value.code != 0) == bool(result.get("failed"))
        return result

    return run


def works(call, started, seconds=20.0):
    """Wait until the job is at its work: before that, it is stopped as a whole."""
    deadline = time.monotonic() + seconds
    while not call(phase="wait", started={"job": started["job"]}, slice=0.1)["status"].get("phase"):
        assert time.monotonic() < deadline, "it does not begin"


def done(call, started, *models, seconds=20.0):
    """The end of the wait."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = call(*models, phase="wait", started={"job": started["job"]}, slice=0.3)
        if answer.get("done") or answer.get("failed") or answer.get("gone"):
            return answer
    raise AssertionError("it does not end")


def state(tmp_path):
    return os.listdir(tmp_path / "state") if (tmp_path / "state").exists() else None


def test_at_once(call, tmp_path, hub):
    check = call("acme/tiny", "acme/odd", _check=True, _ansible_diff=True)
    assert (check["changed"], [entry["bytes_fetched"] for entry in check["results"]]) == (True, [9, 9])
    assert not (tmp_path / "tiny").exists()
    real = call("acme/tiny", "acme/odd", _ansible_diff=True)
    assert hub.said == ["a warning"] * 2
    for before, after in zip(check["results"], real["results"], strict=True):
        assert after.pop("seconds") >= 0
        assert (before.pop("published"), len(after.pop("published"))) == (None, 16)
        assert before == after
    assert check["diff"] == real["diff"]
    assert [diff["after"]["model"] for diff in real["diff"]] == ["acme/tiny", "acme/odd"]
    item = real["results"][0]["item"]
    assert (item["model"], item["revision"], item["path"]) == ("acme/tiny", "master", str(tmp_path / "tiny"))
    again = call("acme/tiny", "acme/odd")
    assert not again["changed"]
    assert "diff" not in again
    assert state(tmp_path) is None


def test_in_the_background(call, tmp_path, hub):
    hub.gate.touch()
    started = call("acme/tiny", "acme/other", phase="start", token=TOKEN, _ansible_diff=True)
    assert not started["changed"]
    assert started["job"]["attached"] is False
    assert started["job"]["models"] == ["acme/tiny", "acme/other"]
    assert "results" not in started
    answer = call(phase="wait", started={"job": started["job"]}, slice=2.5)
    assert (answer["done"], answer["status"]["model"], answer["status"]["count"]) == (False, "acme/tiny", 2)
    attached = call("acme/tiny", "acme/other", phase="start", token="another")
    assert attached["job"] == {**started["job"], "attached": True}
    files = list((tmp_path / "state").rglob("*"))
    assert {"job.json", "status.json", "log"} <= {path.name for path in files}
    for path in files:
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in json.dumps([started, answer])
    assert {client["token"] for client in hub.clients} == {TOKEN, "another"}
    hub.gate.unlink()
    ended = done(call, started)
    assert (ended["changed"], [entry["bytes_fetched"] for entry in ended["results"]]) == (True, [9, 9])
    assert len(ended["diff"]) == 2
    assert state(tmp_path) is None, "nothing is left of it"
    assert call(phase="wait", started={"job": started["job"]})["gone"], "somebody else took the result"
    settled = call("acme/tiny", "acme/other", phase="start")
    assert "job" not in settled
    assert not settled["changed"]
    assert [entry["published"] for entry in settled["results"]] == [entry["published"] for entry in ended["results"]]


def test_one_fails(call, tmp_path):
    started = call("acme/gone", "acme/tiny", phase="start")
    assert started["job"]["models"] == ["acme/tiny"]
    ended = done(call, started)
    assert ended["msg"].startswith(f"1 of 2 artifacts failed.\nacme/gone at {tmp_path}/gone: There is no acme/gone.")
    assert (ended["failed"], ended["changed"], ended["code"]) == (True, True, "hub.not_found")
    assert [entry["failed"] for entry in ended["results"]] == [True, False]
    assert ended["results"][0]["item"]["model"] == "acme/gone"
    assert ended["results"][1]["bytes_fetched"] == 9
    assert not any("files" in entry for entry in ended["results"])
    again = call("acme/gone", "acme/tiny", phase="start")
    assert (again["failed"], again["changed"], "job" in again) == (True, False, False)
    alone = call("acme/gone", phase="start")
    assert (alone["code"], alone["seen"], alone["remedy"]) == ("hub.not_found", "There is no acme/gone", "Correct it")
    assert alone["msg"].startswith("acme/gone at ")


def test_a_failure_has_its_warnings_as_a_module_warns(call, hub):
    for answer in (call("acme/gone"), call("acme/gone", "acme/odd")):
        assert answer["failed"]
        assert "warnings" not in answer, "Ansible calls that deprecated, in the middle of what failed"
    assert hub.said == ["a warning"]


def test_what_nobody_was_told_of(call, tmp_path, hub):
    started = call("acme/tiny", phase="start")
    job = _job.Jobs().get(started["job"]["id"])
    deadline = time.monotonic() + 20
    while job.result() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    while job.process is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    told = call("acme/tiny", phase="start")
    assert (told["changed"], told["results"][0]["bytes_fetched"], "job" in told) == (True, 9, False)
    assert state(tmp_path) is None, "nothing is left of it"
    assert not call("acme/tiny", phase="start")["changed"]


def test_a_verification_is_a_job(call, tmp_path):
    call("acme/tiny")
    path = tmp_path / "tiny" / "model.safetensors"
    before = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not call("acme/tiny", phase="start")["changed"], "a look does not see it"
    assert call("acme/tiny", state="verified", _check=True)["changed"]
    ended = done(call, call("acme/tiny", state="verified", phase="start"))
    assert (ended["changed"], ended["results"][0]["bytes_fetched"]) == (True, 7)
    assert path.read_bytes() == b"weights"
    assert not done(call, call("acme/tiny", state="verified", phase="start"))["changed"]


def test_a_killed_job(call, tmp_path, hub):
    hub.gate.touch()
    started = call("acme/tiny", phase="start")
    assert call(phase="wait", started={"job": started["job"]}, slice=2.5)["status"]["model"] == "acme/tiny"
    os.kill(started["job"]["pid"], signal.SIGKILL)
    ended = done(call, started)
    assert (ended["failed"], ended["code"]) == (True, "job.died")
    assert "fetching acme/tiny" in ended["seen"], "the end of its log"
    assert "Run the same command again" in ended["remedy"]
    assert state(tmp_path) is None, "nothing is left of it"
    started = call("acme/tiny", phase="start")
    os.kill(started["job"]["pid"], signal.SIGKILL)
    while _job.process_of(started["job"]["pid"]) is not None:
        time.sleep(0.02)
    hub.gate.unlink()
    again = call("acme/tiny", phase="start")
    assert "ended without a result" in hub.said[0]
    assert again["job"]["pid"] != started["job"]["pid"]
    assert done(call, again)["changed"]


def test_another_pace_begins_anew(call, hub):
    hub.gate.touch()
    first = call("acme/tiny", phase="start")
    second = call("acme/tiny", phase="start", bandwidth="200MB")
    assert "job" in second, second
    assert second["job"]["attached"] is False
    assert second["job"]["id"] == first["job"]["id"]
    assert second["job"]["pid"] != first["job"]["pid"]
    assert _job.process_of(first["job"]["pid"]) is None
    assert hub.said == []
    hub.gate.unlink()
    assert done(call, first)["changed"], "who waited for the first job waits for the second"


def test_a_job_waits_for_an_older_one_and_fetches_the_rest_meanwhile(call, tmp_path, hub):
    hub.gate.touch()
    first = call("acme/tiny", phase="start", lock_timeout=0)
    second = call("acme/tiny", "acme/other", phase="start", lock_timeout=0)
    assert second["job"]["id"] != first["job"]["id"]
    answer = call(phase="wait", started={"job": second["job"]}, slice=2.5)
    assert answer["status"]["model"] == "acme/other"
    hub.gate.unlink()
    for started in (second, first):
        assert not done(call, started).get("failed")
    assert (tmp_path / "tiny" / ".gpufleet" / "manifest.json").exists()


def test_stopping(call, tmp_path, hub):
    nothing = call("acme/tiny", state="stopped")
    assert (nothing["changed"], nothing["results"], nothing["stopped"]) == (False, [], [])
    hub.gate.touch()
    started = call("acme/tiny", "acme/other", phase="start")
    assert call("acme/third", state="stopped")["stopped"] == []
    assert call("acme/other", state="stopped", _check=True)["changed"]
    assert _job.process_of(started["job"]["pid"]) is not None
    works(call, started)
    stopped = call("acme/other", state="stopped")
    assert (stopped["changed"], stopped["stopped"][0]["id"]) == (True, started["job"]["id"])
    ended = done(call, started)
    assert (ended["failed"], ended["code"]) == (True, "job.stopped")
    assert ended["msg"].startswith("2 of 2 artifacts failed.\nacme/tiny at ")
    assert state(tmp_path) is None, "nothing is left of it"


def test_a_job_that_was_stopped_at_once(call, tmp_path, hub):
    hub.gate.touch()
    started = call("acme/tiny", phase="start")
    job = _job.Jobs().get(started["job"]["id"])
    job.stop()
    Path(job.directory, "result.json").write_text('{"stopped": true, "lingers": false}')
    assert done(call, started)["code"] == "job.stopped"
    assert state(tmp_path) is None


def test_absent_ends_the_job_first(call, tmp_path, hub):
    call("acme/other")
    hub.gate.touch()
    started = call("acme/tiny", "acme/other", phase="start")
    gone = call("acme/tiny", "acme/other", state="absent")
    assert (gone["changed"], [entry["failed"] for entry in gone["results"]]) == (True, [False, False])
    assert not (tmp_path / "other").exists()
    assert done(call, started)["code"] == "job.stopped"
    assert not call("acme/tiny", "acme/other", state="absent")["changed"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"connections": 0}, "artifact.bad_option"),
        ({"lock_timeout": -1}, "artifact.bad_option"),
        ({"bandwidth": "fast"}, "artifact.bad_bandwidth"),
        ({"endpoint": "ftp://x"}, "hub.bad_endpoint"),
        ({"artifacts": [{"model": "x"}]}, "hub.bad_model"),
        (
            {"artifacts": [{"model": "a/b", "path": "/d/x"}, {"model": "a/c", "path": "/d/../d/x"}]},
            "artifact.bad_option",
        ),
        ({"phase": "wait"}, "job.bad_id"),
        ({"phase": "wait", "started": {"job": {"id": "../../etc"}}}, "job.bad_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_that_cannot_be(call, tmp_path, args, code):
    for phase in ("run", "start"):
        result = call("acme/tiny", **{"phase": phase, **args})
        assert (result["failed"], result["code"]) == (True, code)
        assert result["remedy"]
    assert os.listdir(tmp_path) == []


def test_no_place_for_jobs(call, tmp_path):
    (tmp_path / "state").touch()
    result = call("acme/tiny", phase="start")
    assert (result["failed"], result["code"]) == (True, "job.failed")
    assert str(tmp_path / "state") in result["msg"]


def test_nothing_wanted(call, tmp_path):
    result = call(phase="start")
    assert (result["changed"], result["results"], "job" in result) == (False, [], False)
    assert os.listdir(tmp_path) == []


def test_the_documentation_is_the_spec():
    documented = yaml.safe_load(vllm_artifacts.DOCUMENTATION)["options"]
    spec = _artifacts.argument_spec()
    for name, option in documented.items():
        assert (option["type"], option.get("default")) == (spec[name]["type"], spec[name].get("default")), name
    suboptions, inner = documented["artifacts"]["suboptions"], spec["artifacts"]["options"]
    assert set(suboptions) == set(inner)
    for name, option in suboptions.items():
        assert option.get("default") == inner[name].get("default")


def test_nothing_is_read_from_a_homes_neighbour(call, tmp_path):
    """A directory of jobs that others can write to is refused."""
    place = Path(_job.home())
    place.mkdir(parents=True)
    place.chmod(0o777)
    result = call("acme/tiny", phase="start")
    place.chmod(0o700)
    assert (result["failed"], result["code"]) == (True, "job.foreign_directory")
