# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A healthy host with a plan for the tests of the preflight rules, and short ways to break it.

A change is a mapping of paths to values: ``{"gpus>0>ecc>uncorrected_volatile": 2}``. A path starts in the facts, or
with ``plan``, ``settings`` or ``now``; ``*`` stands for each item of a list, and ``DROP`` as a value deletes the key.
"""

from __future__ import annotations

import copy
import json
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    FleetRule,
    Rule,
    Unknown,
)

FIXTURE = Path(__file__).parents[1] / "unit/plugins/module_utils/fixtures/facts/healthy.json"
FACTS: dict[str, t.Any] = json.loads(FIXTURE.read_text(encoding="utf-8"))
IMAGE = next(iter(FACTS["nvidia"]["container"]["images"]))
NOW = FACTS["clock"]["epoch"] + 0.5
GIB = 2**30
DROP = object()
SETTINGS = {
    "vllm_expected_gpus": 8,
    "vllm_image_pull": "missing",
    "vllm_container_gpu_driver": "nvidia",
    "vllm_address": "10.0.0.11",
    "vllm_model_root": "/data/models",
}
# A remedy names what to type (a command, a file of it) or what to set (a variable, a key of a service).
COMMAND = re.compile(
    r"\b(?:dnf|nvidia-smi|nvidia-ctk|systemctl|apt|apt-mark|docker|kill|mount|du|dmesg|modprobe|lspci|setpci|ipmitool|curl|ps|"
    r"getent|chronyc|semanage|nvidia-bug-report\.sh|ansible-inventory|uname|fuser|update-grub|cuda-gdb)\b"
)
VARIABLE = re.compile(
    r"\bvllm_[a-z_]+|\b(?:gpus|image|path|environment|args|revision|model|bind_address|max_model_len):|\bVLLM_[A-Z_]+|"
    r"ansible_python_interpreter|/etc/[\w./]+"
)


def _plan() -> dict[str, t.Any]:
    settings = Settings(root="/var/lib/gpufleet-vllm", model_root="/data/models", image=IMAGE, address="10.0.0.11")
    services = [
        {"name": "chat", "model": "Qwen/Qwen3-32B", "revision": "v1.0", "gpus": [0, 1], "port": 8000},
        {"name": "whisper", "model": "openai-mirror/whisper-large-v3", "revision": "v1.0", "gpus": [2], "port": 8001},
    ]
    plan = make_plan(services, settings, FACTS)
    for artifact, amount in zip(plan["artifacts"], (66 * GIB, 3 * GIB), strict=True):
        artifact["artifact_bytes"] = amount
    return t.cast("dict[str, t.Any]", json.loads(json.dumps(plan, default=list)))


PLAN = _plan()


def _put(tree: t.Any, keys: list[str], value: t.Any) -> None:
    key = keys[0]
    if key == "*":
        for item in tree:
            _put(item, keys[1:], value) if len(keys) > 1 else None
        return
    place: t.Any = int(key) if isinstance(tree, list) else key
    if len(keys) > 1:
        if isinstance(tree, dict) and tree.get(place) is None:
            tree[place] = {}
        _put(tree[place], keys[1:], value)
    elif value is DROP:
        del tree[place]
    else:
        tree[place] = copy.deepcopy(value)


def host(change: t.Mapping[str, t.Any] | None = None, name: str = "gpu-01") -> Context:
    """The healthy host, with changes."""
    trees: dict[str, t.Any] = {"facts": FACTS, "plan": PLAN, "settings": SETTINGS, "now": NOW}
    trees = copy.deepcopy(trees)
    for path, value in (change or {}).items():
        keys = path.split(">")
        _put(trees, keys if keys[0] in trees else ["facts", *keys], value)
    return Context(name, trees["facts"], trees["plan"], trees["settings"], trees["now"])


@dataclass(frozen=True)
class Case:
    """``hosts`` are more hosts of a fleet, each with its changes; the first is the healthy one with ``change``."""

    code: str
    kind: str
    change: t.Mapping[str, t.Any] = field(default_factory=dict)
    severity: str = ""
    says: str = ""
    hosts: t.Sequence[t.Mapping[str, t.Any]] = ()

    def __str__(self) -> str:
        return f"{self.code}-{self.kind}-{self.says or '+'.join(self.change)[:60]}"


def passes(code: str, change: t.Mapping[str, t.Any] | None = None, *hosts: t.Mapping[str, t.Any]) -> Case:
    return Case(code, "pass", change or {}, hosts=hosts)


def fails(code: str, severity: str, says: str, change: t.Mapping[str, t.Any], *hosts: t.Mapping[str, t.Any]) -> Case:
    return Case(code, "fail", change, severity, says, hosts)


def unknown(code: str, change: t.Mapping[str, t.Any], *hosts: t.Mapping[str, t.Any]) -> Case:
    return Case(code, "unknown", change, hosts=hosts)


def ask(rules: t.Sequence[Rule | FleetRule], case: Case) -> t.Any:
    one = next(rule for rule in rules if rule.code == case.code)
    if isinstance(one, FleetRule):
        others = [host(change, f"gpu-{number:02d}") for number, change in enumerate(case.hosts, 2)]
        return one, one.check([host(case.change), *others])
    return one, one.check(host(case.change))


def holds(rules: t.Sequence[t.Any], case: Case) -> None:
    """Ask the rule of a case, and hold its answer to what the case says."""
    one, verdict = ask(rules, case)
    if case.kind == "pass":
        assert not isinstance(verdict, Unknown), verdict
        assert not verdict, verdict
        return
    if case.kind == "unknown":
        assert isinstance(verdict, Unknown), verdict
        assert verdict.reason
        return
    assert verdict, "no failure"
    assert not isinstance(verdict, Unknown), verdict
    failures: list[Failure] = [each[1] if isinstance(each, tuple) else each for each in verdict]
    said = [failure for failure in failures if case.says in failure.seen]
    assert said, [failure.seen for failure in failures]
    assert (said[0].severity or one.severity) == case.severity, said[0]
    for failure in failures:
        tells(failure)


def tells(failure: Failure) -> None:
    """Seen, expected and remedy are there, and the remedy is something to type or to set."""
    assert failure.seen
    assert failure.expected
    assert COMMAND.search(failure.remedy) or VARIABLE.search(failure.remedy), failure.remedy
    assert "{" not in failure.seen
    assert "None" not in failure.seen, failure.seen
    assert "()" not in failure.seen, failure.seen


def tells_all(findings: t.Sequence[Finding]) -> None:
    for one in findings:
        tells(Failure(one.seen, one.expected, one.remedy))


def incomplete(rules: t.Sequence[t.Any], cases: t.Sequence[Case]) -> list[str]:
    """The rules that lack a case of one kind, and the cases of no rule."""
    kinds = ("pass", "fail", "unknown")
    have = {(case.code, case.kind) for case in cases}
    lacking = [f"{rule.code}: {kind}" for rule in rules for kind in kinds if (rule.code, kind) not in have]
    return lacking + sorted({case.code for case in cases} - {rule.code for rule in rules})
