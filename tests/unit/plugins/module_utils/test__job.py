# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _job
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

ID = "0123456789abcdef"
RECORD = {"paths": ["/data/tiny"], "models": ["acme/tiny"], "pace": {}}


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[_job.Jobs]:
    made = _job.Jobs(str(tmp_path / "state" / "gpufleet-vllm" / "jobs"))
    yield made
    for job in made.all():
        job.stop(1.0)


def launch(jobs: _job.Jobs, work: Callable[[_job.Run], None], job_id: str = ID) -> _job.Job:
    with jobs.locked():
        return jobs.launch(job_id, RECORD, work)


def wait_for(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def sleep(run: _job.Run) -> None:
    run.report(lambda: {"phase": "fetching"})
    time.sleep(600)


def test_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/data/state")
    assert _job.home() == "/data/state/gpufleet-vllm/jobs"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert _job.home() == "/var/lib/gpufleet-vllm/jobs"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert _job.home() == "/var/tmp/gpufleet-vllm-jobs-1000"


def test_a_process_is_known_by_when_it_began() -> None:
    mine = _job.process_of(os.getpid())
    assert mine is not None
    assert (mine.pid, len(mine.boot)) == (os.getpid(), 36)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    wait_for(lambda: _job.process_of(pid) is None)  # dead already, although nobody waited for it yet
    os.waitpid(pid, 0)
    assert _job.process_of(pid) is None


def test_a_job_from_start_to_end(jobs: _job.Jobs, tmp_path: Path) -> None:
    def work(run: _job.Run) -> None:
        run.report(lambda: {"phase": "fetching", "done": 5})
        run.say("at work")
        wait_for(lambda: os.path.exists(tmp_path / "go"))
        run.finish({"results": [1], "about": [os.getcwd(), os.getpgid(0) == os.getpid(), os.getsid(0) != os.getpid()]})

    job = launch(jobs, work)
    assert stat.S_IMODE(os.stat(jobs.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(job.directory).st_mode) == 0o700
    assert job.works
    wait_for(lambda: job.status().get("done") == 5)
    for name in os.listdir(job.directory):
        assert stat.S_IMODE(os.stat(os.path.join(job.directory, name)).st_mode) == 0o600, name
    assert job.status()["age"] < 10
    wait_for(lambda: job.log() and job.log()[-1].endswith("at work"))
    assert (job.record["paths"], job.record["models"], job.record["id"]) == (["/data/tiny"], ["acme/tiny"], ID)
    process = job.process
    assert process is not None
    fds = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in ("0", "1", "2")}
    assert fds == {"/dev/null", os.path.join(job.directory, "log")}
    held = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd") if int(fd) > 2]
    assert held == []
    assert Path(f"/proc/{process.pid}/comm").read_text() == "gpufleet-job\n"
    assert [one.id for one in jobs.on(["/data/other", "/data/tiny"])] == [ID]
    assert jobs.on(["/data/other"]) == []
    assert jobs.on(["/data/tiny"], but=ID) == []

    (tmp_path / "go").touch()
    wait_for(lambda: job.process is None)
    assert job.result() == {"results": [1], "about": ["/", True, True], "lingers": False}
    assert not job.works
    with jobs.locked():
        job.discard()
    assert os.listdir(tmp_path) == ["go"], "everything that was made for it is gone"


def test_who_clears_up_last_removes_what_the_first_made(jobs: _job.Jobs, tmp_path: Path) -> None:
    both = [launch(jobs, lambda run: run.finish({}), job_id) for job_id in ("a" * 16, "b" * 16)]
    for job in both:
        wait_for(lambda job=job: job.process is None)  # type: ignore[misc]
        with jobs.locked():
            job.discard()
    assert os.listdir(tmp_path) == []


def test_directories_that_were_there_stay(jobs: _job.Jobs) -> None:
    os.makedirs(os.path.dirname(jobs.directory))
    job = launch(jobs, lambda run: run.finish({}))
    wait_for(lambda: job.process is None)
    with jobs.locked():
        job.discard()
    assert os.listdir(os.path.dirname(jobs.directory)) == []


def test_a_killed_job(jobs: _job.Jobs) -> None:
    def work(run: _job.Run) -> None:
        os.write(2, b"last words\n")
        sleep(run)

    job = launch(jobs, work)
    process = job.process
    assert process is not None
    wait_for(lambda: job.log() == ["last words"])
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: job.process is None)
    assert (job.works, job.result(), job.log()) == (False, None, ["last words"])
    assert not job.stop()


def test_a_number_that_was_given_out_again_and_a_reboot(jobs: _job.Jobs) -> None:
    job = launch(jobs, sleep)
    path = os.path.join(job.directory, _job.RECORD)
    record = json.loads(Path(path).read_text())
    for change in ({"start": record["start"] + 1}, {"boot": "another"}, {"pid": None}, {"pid": "x"}):
        Path(path).write_text(json.dumps({**record, **change}))
        assert jobs.get(ID).process is None
    Path(path).write_text("{")
    assert jobs.get(ID).process is None
    Path(path).write_text(json.dumps(record))
    assert jobs.get(ID).process is not None


def test_a_job_that_breaks_says_why(jobs: _job.Jobs) -> None:
    def work(run: _job.Run) -> None:
        raise ValueError("a bug")

    job = launch(jobs, work)
    wait_for(lambda: job.process is None)
    assert job.result() is None
    assert job.log()[-1] == "ValueError: a bug"


def test_a_job_that_cannot_begin(jobs: _job.Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: str, keep: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(_job, "_detach", fail)
    with pytest.raises(FleetError) as caught:
        launch(jobs, sleep)
    assert caught.value.code == "job.not_started"
    assert jobs.all() == []


def test_stopping_in_order_and_by_force(jobs: _job.Jobs, tmp_path: Path) -> None:
    def orderly(run: _job.Run) -> None:
        try:
            run.report(lambda: {"phase": "fetching"})
            time.sleep(600)
        except KeyboardInterrupt:
            run.finish({"stopping": run.stopping()})

    def stubborn(run: _job.Run) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / "ready").touch()
        time.sleep(600)

    job = launch(jobs, orderly)
    wait_for(job.status)
    assert job.stop()
    assert (job.process, job.result()) == (None, {"stopping": True, "lingers": False})
    other = launch(jobs, stubborn, "f" * 16)
    wait_for((tmp_path / "ready").exists)
    assert other.stop(0.2)
    assert (other.process, other.result()) == (None, None)


def test_a_stop_that_the_work_does_not_see_to(jobs: _job.Jobs) -> None:
    job = launch(jobs, lambda run: time.sleep(600))
    assert job.stop()
    assert job.result() == {"stopped": True, "lingers": False}


def test_going_on_for_others(jobs: _job.Jobs) -> None:
    def work(run: _job.Run) -> None:
        run.finish({"results": []}, lingers=True)
        run.linger(600)
        run.say("lingered")

    job = launch(jobs, work)
    wait_for(lambda: job.result() is not None)
    assert job.process is not None
    assert not job.works
    assert jobs.on(["/data/tiny"]) == []
    assert not job.told
    job.tell()
    assert job.told
    Path(job.directory, _job.STOP).touch()
    wait_for(lambda: job.process is None)
    assert job.log()[-1].endswith("lingered")


def test_lingering_ends_by_itself(jobs: _job.Jobs) -> None:
    job = launch(jobs, lambda run: run.linger(0.3))
    wait_for(lambda: job.process is None)


def test_a_second_start_has_to_wait_for_the_first(jobs: _job.Jobs) -> None:
    """Also where the first removes all that both stand on."""
    begun, inside = threading.Event(), threading.Event()

    def second() -> None:
        begun.set()
        with jobs.locked():
            inside.set()

    other = threading.Thread(target=second, daemon=True)
    with jobs.locked():
        other.start()
        begun.wait(10)
        assert not inside.wait(0.2)
        jobs.get(ID).discard()
        assert not os.path.exists(jobs.directory)
    other.join(20)
    assert inside.is_set()
    assert os.listdir(jobs.directory) == [_job.LOCK]


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_directory_of_somebody_else(jobs: _job.Jobs, tmp_path: Path, kind: str) -> None:
    os.makedirs(os.path.dirname(jobs.directory))
    place = Path(jobs.directory)
    if kind == "open":
        place.mkdir()
        place.chmod(0o755)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.touch(0o700)
    with pytest.raises(FleetError) as caught, jobs.locked():
        pass
    assert caught.value.code == "job.foreign_directory"
    for look in (jobs.all, lambda: jobs.get("0" * 16), lambda: jobs.on(["/srv/model"])):
        with pytest.raises(FleetError) as caught:
            look()
        assert caught.value.code == "job.foreign_directory", "nothing in it is believed"
    place.rmdir() if kind == "open" else place.unlink()


def test_what_is_old_is_swept(jobs: _job.Jobs) -> None:
    done = launch(jobs, lambda run: run.finish({}), "a" * 16)
    works = launch(jobs, sleep, "b" * 16)
    recent = launch(jobs, lambda run: run.finish({}), "c" * 16)
    for job in (done, recent):
        wait_for(lambda job=job: job.process is None)  # type: ignore[misc]
    long_ago = time.time() - _job.STALE_SECONDS - 60
    for job in (done, works):
        os.utime(job.directory, (long_ago, long_ago))
    with jobs.locked():
        jobs.sweep()
    assert [job.id for job in jobs.all()] == ["b" * 16, "c" * 16]


def test_ids_are_no_paths(jobs: _job.Jobs) -> None:
    for name in ("../../etc", "", "0" * 15, "G" * 16):
        with pytest.raises(FleetError):
            jobs.get(name)
    assert jobs.all() == []
    assert not jobs.get(ID).there()
    assert jobs.get(ID).status() == {}
    assert jobs.get(ID).log() == []
