# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _stack
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Desired, Layout, Stack, Status

SECRET = "sk-super-secret"


class Killed(BaseException):
    """The process ended here: nothing may run after it but what the system does."""


class FakeBackend:
    """A process manager on files: definitions and processes outlive the run, as real ones do."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.calls: list[str] = []
        self.running: dict[str, tuple[int, str]] = {}
        self.definitions: dict[str, tuple[int, str]] = {}
        self.steps_left: int | None = None

    def step(self, call: str) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise Killed(call)
        self.calls.append(call)

    def check(self, changing: t.Sequence[str], _leaving: t.Sequence[str] = ()) -> None:
        pass

    def prepare(self) -> None:
        self.step("prepare")

    def installed(self) -> dict[str, str]:
        return {name: digest for name, (_port, digest) in self.definitions.items()}

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        return {
            name: Status("running" if name in self.running else "stopped", pid=1 if name in self.running else None)
            for name in names
            if name in self.definitions
        }

    def stop(self, names: t.Sequence[str], timeout: float) -> None:
        for name in names:
            self.step(f"stop {name}")
            self.running.pop(name, None)

    def install(self, desired: Desired) -> None:
        self.step(f"install {desired.name}")
        self.definitions[desired.name] = (desired.service["port"], desired.digest)

    def remove(self, name: str) -> None:
        self.step(f"remove {name}")
        self.definitions.pop(name, None)

    def start(self, names: t.Sequence[str]) -> None:
        for name in names:
            self.step(f"start {name}")
            port = self.definitions[name][0]
            taken = [other for other, (used, _digest) in self.running.items() if used == port and other != name]
            assert not taken, f"port {port} of {name} is still held by {taken}"
            self.running[name] = self.definitions[name]

    def tail(self, name: str, lines: int) -> list[str]:
        return []

    def pending(self, desired: t.Sequence[Desired]) -> bool:
        return False

    def define(self, desired: t.Sequence[Desired]) -> None:
        pass

    def published(self) -> dict[int, str]:
        return {}

    def shutdown(self, timeout: float) -> bool:
        return False


def service(name: str, port: int = 8000, **extra: t.Any) -> dict[str, t.Any]:
    command = ["vllm", "serve", f"/models/{name}", "--port", str(port)]
    return {
        "name": name, "port": port, "command": command, "environment": {"A": "1"}, "stop_timeout": 20, **extra
    }  # fmt: skip


def desired(name: str, port: int = 8000, secrets: dict[str, str] | None = None, **extra: t.Any) -> Desired:
    entry = service(name, port, **extra)
    return Desired(entry, secrets or {}, _stack.service_digest(entry, {}))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "root").mkdir()
    return Layout(str(tmp_path / "root"))


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(tmp_path)


def converge(layout: Layout, backend: FakeBackend, wanted: list[Desired]) -> dict[str, str]:
    stack = Stack(layout, backend)
    changes = stack.changes(wanted)
    if any(change.action != _stack.UNCHANGED for change in changes):
        stack.apply(wanted, changes, 1.0)
    return {change.name: change.action for change in changes}


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_created_then_unchanged_then_started(layout: Layout, backend: FakeBackend) -> None:
    wanted = [desired("a", 8000, {"VLLM_API_KEY": SECRET})]
    assert converge(layout, backend, wanted) == {"a": "created"}
    assert converge(layout, backend, wanted) == {"a": "unchanged"}
    backend.running.clear()
    assert converge(layout, backend, wanted) == {"a": "started"}
    assert backend.calls == ["prepare", "install a", "start a", "prepare", "start a"]


def test_files_and_their_modes(layout: Layout, backend: FakeBackend) -> None:
    converge(layout, backend, [desired("a", 8000, {"VLLM_API_KEY": SECRET})])
    assert Path(layout.environment("a")).read_text() == f"A=1\nVLLM_API_KEY={SECRET}\n"
    assert mode(layout.environment("a")) == 0o600
    assert mode(layout.workdir("a")) == 0o755
    assert mode(f"{layout.workdir('a')}/state") == 0o700
    assert mode(f"{layout.workdir('a')}/description") == 0o600
    assert mode(layout.logs) == 0o750
    description = Path(f"{layout.workdir('a')}/description").read_text()
    assert "VLLM_API_KEY" in description
    assert SECRET not in description


def test_swapped_ports_stop_both_before_either_starts(layout: Layout, backend: FakeBackend) -> None:
    converge(layout, backend, [desired("a", 8000), desired("b", 8001)])
    backend.calls.clear()
    assert converge(layout, backend, [desired("a", 8001), desired("b", 8000)]) == {"a": "updated", "b": "updated"}
    assert backend.calls == ["prepare", "stop a", "stop b", "install a", "install b", "start a", "start b"]


def test_only_what_changed_is_touched(layout: Layout, backend: FakeBackend) -> None:
    converge(layout, backend, [desired("a"), desired("b", 8001), desired("c", 8002)])
    backend.calls.clear()
    actions = converge(layout, backend, [desired("a"), desired("b", 8001, stop_timeout=30), desired("d", 8003)])
    assert actions == {"a": "unchanged", "b": "updated", "d": "created", "c": "removed"}
    assert not [call for call in backend.calls if call.endswith(" a")]
    assert not os.path.exists(layout.workdir("c"))


@pytest.mark.parametrize("step", range(12))
def test_a_run_killed_anywhere_is_repaired_by_the_next(layout: Layout, backend: FakeBackend, step: int) -> None:
    before = [desired("a", 8000, {"K": "old"}), desired("b", 8001), desired("gone", 8002)]
    after = [desired("a", 8001, {"K": SECRET}), desired("b", 8000), desired("new", 8002)]
    converge(layout, backend, before)
    backend.steps_left = step
    killed = False
    try:
        converge(layout, backend, after)
    except Killed:
        killed = True
    assert killed == (step < 11), "the number of steps of this change"
    backend.steps_left = None
    converge(layout, backend, after)
    assert backend.running == {item.name: (item.service["port"], item.digest) for item in after}
    assert sorted(os.listdir(layout.services)) == ["a", "b", "new"]
    assert Path(layout.environment("a")).read_text() == f"A=1\nK={SECRET}\n"
    assert converge(layout, backend, after) == dict.fromkeys(("a", "b", "new"), "unchanged")


@pytest.mark.parametrize("write", range(6))
def test_a_run_killed_between_two_writes_is_repaired(
    layout: Layout, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    converge(layout, backend, [desired("a", 8000, {"K": "old"})])
    real, left = os.replace, [write]

    def replace(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(source, target)

    after = [desired("a", 8000, {"K": SECRET}), desired("b", 8001)]
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with contextlib.suppress(Killed):
            converge(layout, backend, after)
    converge(layout, backend, after)
    assert set(backend.running) == {"a", "b"}
    assert Path(layout.environment("a")).read_text() == f"A=1\nK={SECRET}\n"
    assert set(converge(layout, backend, after).values()) == {"unchanged"}
    assert [name for name in os.listdir(layout.workdir("a")) if name.startswith(".new-")] == []


def test_only_a_secret_changed(layout: Layout, backend: FakeBackend) -> None:
    converge(layout, backend, [desired("a", 8000, {"K": "old"})])
    assert converge(layout, backend, [desired("a", 8000, {"K": "new"})]) == {"a": "updated"}


def test_a_directory_without_definition_is_removed(layout: Layout, backend: FakeBackend) -> None:
    """A run killed before it installed a service leaves its secrets; the next run may not want that service."""
    os.makedirs(layout.workdir("left"))
    Path(layout.environment("left")).write_text(SECRET)
    assert converge(layout, backend, [desired("a")]) == {"a": "created", "left": "removed"}
    assert os.listdir(layout.services) == ["a"]


def test_an_environment_that_is_no_text_is_written_anew(layout: Layout, backend: FakeBackend) -> None:
    converge(layout, backend, [desired("a")])
    Path(layout.environment("a")).write_bytes(b"\xff\xfe\0")
    assert converge(layout, backend, [desired("a")]) == {"a": "updated"}
    assert Path(layout.environment("a")).read_text() == "A=1\n"


def test_a_planted_link_is_replaced_not_followed(layout: Layout, backend: FakeBackend, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.makedirs(layout.workdir("a"))
    os.symlink(victim, layout.environment("a"))
    converge(layout, backend, [desired("a", 8000, {"K": SECRET})])
    assert victim.read_text() == "precious"
    assert not os.path.islink(layout.environment("a"))


def test_a_planted_directory_link_is_refused(
    layout: Layout, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    os.makedirs(layout.workdir("a"))
    link = f"{layout.workdir('a')}/state"
    os.symlink(victim, link)
    if os.geteuid() == 0:
        os.lchown(link, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(FleetError) as caught:
        converge(layout, backend, [desired("a")])
    assert caught.value.code == "stack.foreign_link"
    assert mode(str(victim)) == 0o700


def test_our_own_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    os.symlink(tmp_path / "big", tmp_path / "logs")
    _stack.make_directory(str(tmp_path / "logs"), 0o750)
    assert mode(str(tmp_path / "big")) == 0o750


def test_a_file_in_place_of_a_directory(layout: Layout, backend: FakeBackend) -> None:
    Path(layout.services).write_text("")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - one of several kinds
        converge(layout, backend, [desired("a")])
    assert layout.services in str(_stack.as_failure(caught.value))


def test_write_file_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        _stack.write_file(str(path), "new", 0o600)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]
    failure = _stack.as_failure(caught.value)
    assert failure.code == "host.disk_full"
    assert str(path) in failure.seen
    assert "df -i" in failure.remedy


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "host.disk_full"),
        (errno.EDQUOT, "host.disk_full"),
        (errno.EACCES, "host.permission"),
        (errno.EPERM, "host.permission"),
        (errno.EROFS, "host.permission"),
        (errno.EIO, "host.os_error"),
    ],
)
def test_errors_of_the_system_in_words(number: int, code: str) -> None:
    failure = _stack.as_failure(OSError(number, os.strerror(number), "/x/plan.json"))
    assert failure.code == code
    assert "/x/plan.json" in failure.seen
    assert failure.expected
    assert failure.remedy
    assert _stack.as_failure(failure) is failure


def test_the_second_deploy_is_told_who_holds_the_lock(layout: Layout) -> None:
    with _stack.exclusive(layout):
        with pytest.raises(FleetError) as caught, _stack.exclusive(layout):
            pass
        assert caught.value.code == "stack.locked"
        assert f"pid {os.getpid()} of " in caught.value.seen
    with _stack.exclusive(layout):
        pass


def test_the_lock_is_free_and_empty_after_an_exception(layout: Layout) -> None:
    with pytest.raises(RuntimeError), _stack.exclusive(layout):
        raise RuntimeError
    assert Path(layout.lock).read_text() == ""
    with open(layout.lock, encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "null", '{"a": 1} trailing'])
def test_json_that_is_not_ours_counts_as_missing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert _stack.read_json(str(path)) is None
    assert _stack.read_json(str(tmp_path / "nothing")) is None


def test_tail_reads_the_end_alone(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * 200_000 + b"\n\none\n\xff two  \n\n")
    assert _stack.tail_file(str(log), 2) == ["one", "\ufffd two"]
    assert _stack.tail_file(str(tmp_path / "nothing"), 2) == []


def test_digest_depends_on_what_needs_a_restart() -> None:
    base = _stack.service_digest(service("a"), {"engine": "1"})
    assert _stack.service_digest(service("a", probes=[1]), {"engine": "1"}) == base
    for other in (service("a", 8001), service("a", environment={}), service("a", stop_timeout=1)):
        assert _stack.service_digest(other, {"engine": "1"}) != base
    assert _stack.service_digest(service("a"), {"engine": "2"}) != base


def test_describe_hides_secrets_and_reads_like_a_command() -> None:
    text = _stack.describe(desired("a", 8000, {"HF_TOKEN": SECRET}))
    assert SECRET not in text
    assert "HF_TOKEN='********' \\\nvllm serve /models/a \\\n    --port 8000\n# digest " in text
    assert json.dumps(text)


def test_parents_are_open_to_the_service_user_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        _stack.make_directory(str(tmp_path / "a/b/root"), 0o755)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / path).stat().st_mode) for path in ("a", "a/b", "a/b/root")] == [0o755] * 3
