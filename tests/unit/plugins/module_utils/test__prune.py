# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _prune, _prune_find, _prune_use, _stack
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, FileStat, Manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune import KEPT, REMOVED, Decision, Options, Prune

DAY = 86400.0
OLD = 100 * DAY


def make_artifact(path: Path, model: str = "acme/tiny", age: float = OLD, **files: bytes) -> Path:
    """A published artifact, last touched ``age`` seconds ago; two files unless others are named."""
    files = files or {"config.json": b"{}", "model.safetensors": os.urandom(20000)}
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    entries = tuple(Entry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items()))
    stats = {entry.path: FileStat(entry.size, 1) for entry in entries}
    manifest = Manifest(
        model=model, revision="master", commit="c" * 40, endpoint="https://hub.example.com", include=(), exclude=(),
        left_out=(), entries=entries, stats=stats, published="p",
    )  # fmt: skip
    (path / ".gpufleet").mkdir()
    (path / ".gpufleet/manifest.json").write_text(_manifest.dump(manifest))
    return aged(path, age)


def aged(path: Path, age: float = OLD) -> Path:
    moment = time.time() - age
    for item in [path, *path.rglob("*")]:
        os.utime(item, (moment, moment), follow_symlinks=False)
    return path


def make_leftover(path: Path, age: float = OLD) -> Path:
    (path / "parts").mkdir(parents=True)
    path.chmod(0o700)
    (path / "lock").write_text(json.dumps({"pid": 1, "host": "gpu-01", "since": "2026-01-01T00:00:00Z"}))
    (path / "parts" / ("a" * 64)).write_bytes(os.urandom(30000))
    return aged(path, age)


class Host:
    """A root with a record that names one model, and models beside it."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.models = tmp_path / "root", tmp_path / "models"
        self.root.mkdir()
        self.models.mkdir()
        self.needed = make_artifact(self.models / "needed", "acme/needed")
        self.write("record", self.document(self.needed))
        self.write("plan", self.document(self.needed))

    @staticmethod
    def document(*paths: Path) -> dict[str, t.Any]:
        return {"artifacts": [{"path": str(path)} for path in paths], "services": []}

    def write(self, name: str, document: t.Any) -> None:
        (self.root / f"{name}.json").write_text(document if isinstance(document, str) else json.dumps(document))

    def options(self, **changes: t.Any) -> Options:
        return Options(**{"root": str(self.root), "roots": (str(self.models),), "age": 30 * DAY, **changes})

    def prune(self, check_mode: bool = False, **changes: t.Any) -> dict[str, Decision]:
        """Decisions by the name of the directory. Each real run is foretold exactly, and writes nothing before."""
        before = sorted(self.models.rglob("*"))
        foretold = Prune(self.options(**changes)).run(True)
        assert sorted(self.models.rglob("*")) == before
        if check_mode:
            return {Path(item.candidate.path).name: item for item in foretold}
        done = Prune(self.options(**changes)).run(False)
        assert shown(done) == shown(foretold)
        return {Path(item.candidate.path).name: item for item in done}


def shown(decisions: t.Sequence[Decision]) -> list[dict[str, t.Any]]:
    return [item.as_dict() for item in decisions]


def reasons(decisions: t.Mapping[str, Decision]) -> dict[str, str]:
    return {name: item.reason for name, item in decisions.items()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_nobody_needs_goes_and_the_rest_stays(host: Host) -> None:
    unused = make_artifact(host.models / "family" / "unused")
    make_artifact(host.models / "fresh", age=DAY)
    (host.models / "mine").mkdir()
    (host.models / "mine" / "notes.txt").write_text("not ours")
    taken = sum(path.stat().st_blocks * 512 for path in unused.glob("*.*") if path.is_file())
    found = host.prune()
    assert reasons(found) == {"needed": "recorded", "unused": "unused", "fresh": "recent"}
    assert found["unused"].why == "published 100 days ago"
    assert found["fresh"].why == "published 1 day ago; 30 days have to pass"
    assert found["unused"].bytes_freed == taken > 0
    assert found["unused"].candidate.size == 20002
    assert not unused.exists()
    assert (host.needed / "model.safetensors").exists()
    assert (host.models / "mine" / "notes.txt").exists()
    again = Prune(host.options()).run(False)
    assert [item.action for item in again] == [KEPT, KEPT], "a second run has nothing to do"
    assert not (host.root / "lock").read_text()


@pytest.mark.parametrize("document", ["record", "plan"])
def test_what_the_host_ran_or_was_told_to_run_stays(host: Host, document: str) -> None:
    other = make_artifact(host.models / "other")
    host.write(document, host.document(other))
    found = host.prune(check_mode=True)
    assert found["other"].reason == {"record": "recorded", "plan": "applied"}[document]


def test_the_plan_of_this_run_protects_by_every_path_in_it(host: Host) -> None:
    for name in ("wanted", "draft", "draft-2", "adapters"):
        make_artifact(host.models / name)
    plan = {
        "artifacts": [{"path": f"{host.models}/wanted"}],
        "services": [
            {
                "name": "chat",
                "path": f"{host.models}/wanted",
                "command": ["vllm", f"--speculative-config={{'model': '{host.models}/draft'}}"],
                "container": {"volumes": [{"source": f"{host.models}/adapters/"}]},
            }
        ],
    }
    found = host.prune(check_mode=True, plan=plan)
    assert reasons(found) == {
        "needed": "recorded", "wanted": "wanted", "draft": "wanted", "adapters": "wanted", "draft-2": "unused"
    }  # fmt: skip


def test_a_service_whose_path_lies_in_or_above_an_artifact(host: Host) -> None:
    make_artifact(host.models / "inside")
    make_artifact(host.models / "cache" / "above")
    plan = {"services": [{"path": f"{host.models}/inside/sub"}, {"path": f"{host.models}/cache"}]}
    assert reasons(host.prune(check_mode=True, plan=plan)) == {
        "needed": "recorded", "inside": "wanted", "above": "wanted"
    }  # fmt: skip


def test_a_root_that_is_a_link_is_the_same_place(host: Host, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(host.models)
    make_artifact(host.models / "wanted")
    host.write("record", host.document(tmp_path / "link" / "needed"))
    host.write("plan", {"services": [{"command": [f"{tmp_path}/link/wanted"]}]})
    for roots in ((str(host.models),), (f"{tmp_path}/link",)):
        found = host.prune(check_mode=True, roots=roots)
        assert found["needed"].reason == "recorded"
    assert found["wanted"].reason == "applied"


def test_names_that_the_operator_keeps(host: Host) -> None:
    for name, model in (("a", "acme/a"), ("b", "other/b"), ("c", "acme/c")):
        make_artifact(host.models / name, model)
    found = host.prune(check_mode=True, keep=("other/*", f"{host.models}/c/"))
    assert reasons(found) == {"needed": "recorded", "a": "unused", "b": "named", "c": "named"}
    assert found["b"].why == "vllm_prune_keep has other/*"


def test_age_counts_from_the_deploy_that_stopped_naming_it(host: Host) -> None:
    make_artifact(host.models / "left")
    stamps = {str(host.models / "left"): time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 5 * DAY - 60))}
    host.write("artifacts", {"left": stamps})
    found = host.prune(check_mode=True)
    assert found["left"].why == "deployed 5 days ago; 30 days have to pass"
    assert host.prune(age=5 * DAY)["left"].why == "deployed 5 days ago"


def test_stamps_that_cannot_be_read_protect_everything(host: Host) -> None:
    make_artifact(host.models / "left")
    host.write("artifacts", "{damaged")
    assert host.prune(check_mode=True)["left"].reason == "recent"


def test_a_file_that_was_read_lately(host: Host) -> None:
    path = make_artifact(host.models / "read")
    file = path / "model.safetensors"
    os.utime(file, (time.time() - 2 * DAY - 60, file.stat().st_mtime))
    assert host.prune(check_mode=True)["read"].why == "read 2 days ago; 30 days have to pass"


def test_hard_links_free_nothing_while_another_name_is_left(host: Host, tmp_path: Path) -> None:
    one = make_artifact(host.models / "one", **{"model.safetensors": os.urandom(40960)})
    two = make_artifact(host.models / "two", **{"model.safetensors": (one / "model.safetensors").read_bytes()})
    (two / "model.safetensors").unlink()
    os.link(one / "model.safetensors", two / "model.safetensors")
    aged(two)
    taken = (one / "model.safetensors").stat().st_blocks * 512
    elsewhere = tmp_path / "elsewhere"
    os.link(one / "model.safetensors", elsewhere)
    assert {name: item.bytes_freed for name, item in host.prune(check_mode=True).items()} == {
        "needed": 0, "one": 0, "two": 0
    }  # fmt: skip
    elsewhere.unlink()
    kept = host.prune(check_mode=True, keep=(str(two),))
    assert kept["one"].bytes_freed == 0
    both = host.prune()
    assert both["one"].bytes_freed + both["two"].bytes_freed == taken


def test_foreign_files_stay_and_are_named(host: Host) -> None:
    path = make_artifact(host.models / "unused")
    (path / "adapter.bin").write_text("mine")
    (path / "link").symlink_to(host.needed)
    aged(path)
    found = host.prune()["unused"]
    assert (found.action, found.candidate.foreign) == (REMOVED, ("adapter.bin", "link"))
    assert sorted(item.name for item in path.iterdir()) == ["adapter.bin", "link"]
    assert (host.needed / "model.safetensors").exists()
    assert reasons(host.prune()) == {"needed": "recorded"}, "what is left is not ours any more"


def test_no_link_is_followed(host: Host, tmp_path: Path) -> None:
    outside = make_artifact(tmp_path / "outside")
    (host.models / "link").symlink_to(outside)
    real = make_artifact(host.models / "real")
    (real / "model.safetensors").unlink()
    (real / "model.safetensors").symlink_to(outside / "model.safetensors")
    aged(real)
    assert reasons(host.prune()) == {"needed": "recorded", "real": "unused"}
    assert (outside / "model.safetensors").stat().st_size == 20000


def test_a_manifest_that_leads_outside_is_not_believed(host: Host, tmp_path: Path) -> None:
    path = make_artifact(host.models / "evil")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    manifest = path / ".gpufleet" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"config.json"', '"../../victim"'))
    aged(path)
    found = host.prune()["evil"]
    assert (found.action, found.reason) == (KEPT, "unreadable")
    assert "damaged" in found.why
    assert victim.exists()


def test_what_interrupted_runs_left(host: Host) -> None:
    old = make_leftover(host.models / ".gone.gpufleet")
    make_leftover(host.models / ".fresh.gpufleet", DAY)
    make_leftover(host.models / ".needed.gpufleet")
    beside = make_artifact(host.models / "unused")
    make_leftover(host.models / ".unused.gpufleet")
    strange = make_leftover(host.models / ".strange.gpufleet")
    (strange / "notes.txt").write_text("mine")
    aged(strange)
    found = host.prune()
    assert reasons(found) == {
        "needed": "recorded", "unused": "unused", ".gone.gpufleet": "unused", ".fresh.gpufleet": "recent",
        ".needed.gpufleet": "recorded", ".unused.gpufleet": "unused", ".strange.gpufleet": "unreadable",
    }  # fmt: skip
    assert found[".gone.gpufleet"].why == "left by an interrupted run; written 100 days ago"
    assert not old.exists()
    assert not beside.exists()
    assert (host.models / ".needed.gpufleet" / "parts").exists()
    assert "notes.txt" in found[".strange.gpufleet"].why


def test_the_only_copy_of_a_version_is_no_leftover(host: Host) -> None:
    staging = make_leftover(host.models / ".swapped.gpufleet")
    make_artifact(staging / "old")
    aged(staging)
    assert host.prune()[".swapped.gpufleet"].reason == "interrupted"
    assert (staging / "old" / "model.safetensors").exists()


def test_another_run_that_works_on_it(host: Host) -> None:
    make_artifact(host.models / "busy")
    staging = make_leftover(host.models / ".busy.gpufleet")
    with (staging / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = host.prune()
        assert reasons(found) == {"needed": "recorded", "busy": "locked", ".busy.gpufleet": "locked"}
        assert found["busy"].why == "process 1 on host 'gpu-01' works on it"
    assert found["busy"].action == KEPT
    assert host.prune()["busy"].action == REMOVED


def test_a_lock_that_only_shows_when_removing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    make_artifact(host.models / "busy")
    staging = make_leftover(host.models / ".busy.gpufleet", 0)
    monkeypatch.setattr(_prune_find, "holder", lambda _staging: None)
    with (staging / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = Prune(host.options()).run(False)
    busy = next(item for item in found if item.candidate.path.endswith("/busy"))
    assert (busy.action, busy.reason, busy.bytes_freed) == (KEPT, "locked", 0)
    assert (host.models / "busy" / "model.safetensors").exists()


def test_a_publication_between_the_look_and_the_removal(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    make_artifact(host.models / "unused")
    monkeypatch.setattr(_prune_find, "published", lambda _path: time.time())
    found = Prune(host.options()).run(False)
    assert [item.reason for item in found] == ["recorded", "locked"]
    assert (host.models / "unused" / "model.safetensors").exists()


def test_an_open_file_protects(host: Host) -> None:
    make_artifact(host.models / "open")
    make_artifact(host.models / "cwd")
    make_artifact(host.models / "unused")
    code = "import sys; f = open(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(host.models / "open" / "model.safetensors")]
    with subprocess.Popen(argv, cwd=host.models / "cwd", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = host.prune()
        assert process.stdin is not None
        process.stdin.close()
    assert reasons(found) == {"needed": "recorded", "open": "in_use", "cwd": "in_use", "unused": "unused"}
    assert found["open"].why.startswith(f"process {process.pid} (")
    assert found["open"].why.endswith("has model.safetensors open")
    assert found["cwd"].why.endswith("works in it")


def test_a_network_file_system_is_not_ours_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    make_artifact(host.models / "unused")
    table = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / {host.models} rw - nfs4 nas:/models rw\n"
    monkeypatch.setattr(_prune, "_mount_table", lambda _proc: table)
    found = host.prune(check_mode=True)
    assert (found["unused"].reason, "nfs4" in found["unused"].why) == ("shared", True)
    assert host.prune(shared=True)["unused"].action == REMOVED


def test_a_removal_that_fails_does_not_stop_the_others(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        make_artifact(host.models / name)
    absent = _prune._artifact.absent

    def failing(request: t.Any) -> t.Any:
        if request.path.endswith("/a"):
            raise FleetError("host.permission", f"{request.path}: Permission denied")
        return absent(request)

    monkeypatch.setattr(_prune._artifact, "absent", failing)
    found = Prune(host.options()).run(False)
    assert [(item.action, item.reason) for item in found] == [
        (REMOVED if name == "b" else KEPT, reason)
        for name, reason in (("a", "failed"), ("b", "unused"), ("n", "recorded"))
    ]
    result = _prune.as_result(found)
    assert result["failures"] == [f"{host.models}/a: {host.models}/a: Permission denied"]
    assert result["bytes_freed"] == found[1].bytes_freed
    assert str(host.models / "b") not in result["diff"]["after"]
    assert str(host.models / "a") in result["diff"]["after"]


def test_a_deploy_that_is_under_way(host: Host) -> None:
    path = make_artifact(host.models / "unused")
    with _stack.exclusive(_stack.Layout(str(host.root))), pytest.raises(FleetError) as caught:
        Prune(host.options()).run(False)
    assert caught.value.code == "stack.locked"
    assert path.exists()


# ---- what it refuses


@pytest.mark.parametrize(
    ("record", "plan", "code"),
    [
        (None, None, "prune.no_record"),
        ("{damaged", None, "prune.state_unreadable"),
        (None, "[]", "prune.state_unreadable"),
        ({"artifacts": [], "services": []}, None, "prune.nothing_needed"),
    ],
)
def test_a_host_whose_needs_are_not_known(host: Host, record: t.Any, plan: t.Any, code: str) -> None:
    for name, document in (("record", record), ("plan", plan)):
        (host.root / f"{name}.json").unlink()
        if document is not None:
            host.write(name, document)
    for check_mode in (True, False):
        with pytest.raises(FleetError) as caught:
            Prune(host.options()).run(check_mode)
        assert caught.value.code == code
    assert (host.needed / "model.safetensors").exists()


def test_without_a_record_age_alone_protects(host: Host) -> None:
    for name in ("record", "plan"):
        (host.root / f"{name}.json").unlink()
    make_artifact(host.models / "fresh", age=DAY)
    found = host.prune(without_record=True)
    assert reasons(found) == {"needed": "unused", "fresh": "recent"}


def test_a_damaged_record_is_refused_in_any_case(host: Host) -> None:
    host.write("record", "{damaged")
    with pytest.raises(FleetError):
        Prune(host.options(without_record=True)).run(True)


def test_a_host_without_a_root_is_pruned_without_its_lock(host: Host, tmp_path: Path) -> None:
    assert host.prune(root=str(tmp_path / "absent"), without_record=True)["needed"].action == REMOVED
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("root", ["/", "models", "/tmp/.."])
def test_a_root_that_is_none(host: Host, root: str) -> None:
    with pytest.raises(FleetError) as caught:
        Prune(host.options(roots=(root,))).run(True)
    assert caught.value.code == "prune.bad_root"


def test_a_root_that_is_not_there_or_is_a_model(host: Host) -> None:
    prune = Prune(host.options(roots=(f"{host.models}/absent", str(host.needed))))
    assert prune.run(True) == []
    assert prune.warnings == [
        f"{host.models}/absent is not there; nothing was looked for in it.",
        f"{host.needed} is a model itself; only directories below it are looked at.",
    ]


def test_roots_that_overlap_count_once(host: Host) -> None:
    make_artifact(host.models / "family" / "unused")
    found = Prune(host.options(roots=(str(host.models), f"{host.models}/family"))).run(True)
    assert [Path(item.candidate.path).name for item in found] == ["unused", "needed"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY), ("12h", DAY / 2), ("0", 0.0), ("90m", 5400.0), ("1.5 w", 10.5 * DAY)]
)
def test_age(text: str, seconds: float) -> None:
    assert _prune.parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "-1d", "d", "30 days", "1e9d", "inf"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(FleetError) as caught:
        _prune.parse_age(text)
    assert caught.value.code == "prune.bad_age"


def test_processes_are_looked_at_only_for_what_would_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def scan(watched: t.Sequence[_prune_use.Watched], _proc: str) -> _prune_use.Uses:
        asked.append([Path(item.path).name for item in watched])
        return _prune_use.Uses(hidden=3 if watched else 0)

    monkeypatch.setattr(_prune_use, "uses_of", scan)
    prune = Prune(host.options())
    assert [item.action for item in prune.run(False)] == [KEPT]
    assert (asked, prune.warnings) == ([[]], [])
    make_artifact(host.models / "unused")
    prune.run(True)
    assert asked[1:] == [["unused"]]
    assert "3 process(es) could not be looked into" in prune.warnings[0]
