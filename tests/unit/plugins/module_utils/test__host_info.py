# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_info
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Status


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _host_info._nvidia_probe, "gather", lambda **_more: {"gpus": [], "reason": "no driver", "source": None}
    )


def gather(root: Path, **extra: t.Any) -> dict[str, t.Any]:
    options: dict[str, t.Any] = {"runtime": "supervisor", "ports": [1], "paths": [str(root)], "user": "no-such-user"}
    return _host_info.gather(str(root), **{**options, **extra})


def test_a_bare_host(tmp_path: Path) -> None:
    facts = gather(tmp_path / "root")
    assert facts["services"] == {}
    assert facts["listening"] == []
    assert facts["plan_digest"] is None
    assert (facts["record"], facts["applied"]) == (None, None)
    assert facts["user_exists"] is False
    assert (facts["gpus"], facts["gpu_reason"]) == ([], "no driver")
    assert "gpus" not in facts["nvidia"]
    assert facts["runtime"] == "supervisor"
    assert [entry["path"] for entry in facts["filesystems"]] == [str(tmp_path / "root")]
    assert list(tmp_path.iterdir()) == [], "reading only"
    assert json.dumps(facts)


def test_a_deployed_host_whose_supervisord_died(tmp_path: Path) -> None:
    programs = tmp_path / "supervisor/conf.d"
    programs.mkdir(parents=True)
    (programs / "a.conf").write_text('[program:a]\nenvironment=GPUFLEET_DIGEST="ab"\n')
    (tmp_path / "plan.json").write_text('{"digest": "p"}')
    (tmp_path / "record.json").write_text('{"digest": "r", "recorded_at": "2026-01-01T00:00:00Z", "services": []}')
    facts = gather(tmp_path)
    assert facts["services"]["a"]["state"] == "stopped"
    assert facts["plan_digest"] == "p"
    assert facts["record"] == {"digest": "r", "recorded_at": "2026-01-01T00:00:00Z", "services": {}}
    assert facts["applied"] == {"digest": "p", "services": {}}
    (tmp_path / "plan.json").write_text("{damaged")
    damaged = gather(tmp_path)
    assert (damaged["plan_digest"], damaged["applied"]) == (None, None)


def test_a_bad_root(tmp_path: Path) -> None:
    with pytest.raises(FleetError):
        gather(Path("/"))


def test_ports_of_services_that_move_over_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process manager of the last deploy runs is stopped before it is started under another one."""

    class Compose:
        def installed(self) -> dict[str, str]:
            return {"a": "digest"}

        def status(self, names: t.Iterable[str]) -> dict[str, Status]:
            return {name: Status("running", pid=42) for name in names}

        def published(self) -> dict[int, str]:
            return {8000: "a"}

    made, asked = _host_info.make_backend, []
    monkeypatch.setattr(
        _host_info, "make_backend", lambda name, *a, **k: Compose() if name == "compose" else made(name, *a, **k)
    )

    def listeners(*arguments: t.Any) -> list[dict[str, t.Any]]:
        asked.append(arguments)
        return []

    monkeypatch.setattr(_host_info._host, "listeners", listeners)
    (tmp_path / "plan.json").write_text('{"runtime": "compose"}')
    assert gather(tmp_path)["services"] == {}
    assert asked == [({1}, {"a": 42}, {8000: "a"})]


def test_a_container_that_comes_while_the_facts_are_read_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy whose controller was killed goes on for a moment on the host."""
    snapshots = iter([({}, {}, ""), ({}, {8000: "a"}, "")])
    monkeypatch.setattr(_host_info, "_running", lambda _backend: next(snapshots))

    def listeners(_ports: t.Any, _pids: t.Any, published: dict[int, str]) -> list[dict[str, t.Any]]:
        return [{"port": 8000, "process": "docker-proxy", "service": published.get(8000)}]

    monkeypatch.setattr(_host_info._host, "listeners", listeners)
    assert [entry["service"] for entry in gather(tmp_path)["listening"]] == ["a"]
