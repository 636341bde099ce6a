# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which model artifacts of a host nobody needs any more, and their removal.

Everything is kept for which one reason speaks: the plan of this run, a name the operator gave, the record, the plan
that was applied last, its age, a process or mount that uses it, another run that works on it, other hosts that may use
it. What is left goes as ``_artifact.absent`` has it: only what the manifest owns.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import time
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _artifact,
    _prune_find,
    _prune_marks,
    _prune_use,
    _staging,
    _usage,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_find import LEFTOVER, Candidate
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import absolute_root
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Layout, exclusive, read_json

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

KEPT = "kept"
REMOVED = "removed"

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_FOREIGN_SHOWN = 100


@dataclass(frozen=True)
class Options:
    """The options of the module ``vllm_artifact_prune``; ``age`` in seconds."""

    root: str
    roots: tuple[str, ...]
    age: float
    keep: tuple[str, ...] = ()
    keep_published: tuple[str, ...] = ()
    plan: t.Mapping[str, t.Any] = field(default_factory=dict)
    without_record: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Decision:
    """What happens to one artifact or leftover, and why; ``reason`` is stable, ``why`` for a person."""

    candidate: Candidate
    action: str
    reason: str
    why: str
    used: float
    used_by: str
    bytes_freed: int = 0

    def as_dict(self) -> dict[str, t.Any]:
        manifest = self.candidate.manifest
        return {
            "path": self.candidate.path,
            "kind": self.candidate.kind,
            "model": manifest.model if manifest else None,
            "revision": manifest.revision if manifest else None,
            "commit": manifest.commit if manifest else None,
            "bytes": self.candidate.size,
            "bytes_freed": self.bytes_freed,
            "foreign": list(self.candidate.foreign[:_FOREIGN_SHOWN]),
            "last_use": _usage.stamp(self.used) if self.used else None,
            "last_use_by": self.used_by,
            "action": self.action,
            "reason": self.reason,
            "why": self.why,
        }


def parse_age(text: str) -> float:
    """``30d`` in seconds. Raises FleetError for anything that is no age."""
    match = _AGE.fullmatch(text.strip())
    if match:
        return float(match[1]) * _SECONDS[match[2]]
    if text.strip() == "0":
        return 0.0
    raise FleetError(
        "prune.bad_age",
        f"age is {text!r}",
        "a number and its unit: m, h, d or w, as in 30d; 0 for no age at all",
        "Correct vllm_prune_age",
    )


def shown_age(seconds: float) -> str:
    """A span of time for a person, in its largest fitting unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"


# --- what protects ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """Paths that one document names: ``texts`` wherever they stand in it, ``paths`` as directories of models.

    A draft model or an adapter stands in a command, so every text counts.
    """

    texts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: t.Mapping[str, t.Any] | None) -> Names:
        paths = _usage.artifact_paths(document)
        real = {os.path.realpath(path) for path in paths if path.startswith("/")}
        return cls(tuple(sorted({*_texts(document or {}), *real})), tuple(sorted(paths | real)))

    def name(self, places: t.Iterable[str]) -> bool:
        """Whether one of the names of a directory is among them."""
        return any(self._name(place) for place in places)

    def _name(self, place: str) -> bool:
        pattern = re.compile(re.escape(place) + r"(?![\w.-])")
        return any(place in text and pattern.search(text) for text in self.texts) or any(
            _prune_use.is_below(place, path) for path in self.paths if path.startswith("/")
        )


def _texts(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def read_state(layout: Layout, options: Options) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """The record and the applied plan of the host. Raises FleetError where they cannot tell what the host needs."""
    found = []
    for path in (layout.record, layout.plan):
        document = read_json(path)
        if document is None and os.path.lexists(path):
            raise FleetError(
                "prune.state_unreadable",
                f"{path} cannot be read",
                "what this host runs, or ran last",
                "Run as root (become: true); if the file is damaged, deploy again, which writes it anew",
            )
        found.append(document or {})
    record, plan = found
    if options.without_record:
        return record, plan
    if not record and not plan:
        raise FleetError(
            "prune.no_record",
            f"{layout.root} holds no record and no plan: what this host runs is not known",
            "a host that was deployed to, whose record names what it needs",
            "Check vllm_root, or deploy first. Where nothing was ever deployed, vllm_prune_without_record: true prunes "
            "by age and the inventory alone",
        )
    if not (_usage.artifact_paths(record) or _usage.artifact_paths(plan) or _usage.artifact_paths(options.plan)):
        raise FleetError(
            "prune.nothing_needed",
            f"Neither the inventory nor the plan and record in {layout.root} name any model",
            "at least one model that stays: an inventory without services may be a mistake",
            "Check vllm_services. If no model is needed here, vllm_prune_without_record: true prunes by age alone",
        )
    return record, plan


# --- deciding --------------------------------------------------------------------------------------------------------


class Prune:
    """One look at a host, or one pruning of it."""

    def __init__(self, options: Options, now: float | None = None, proc: str = "/proc") -> None:
        self._options, self._proc = options, proc
        self._now = time.time() if now is None else now
        self._layout = Layout(options.root)
        self.warnings: list[str] = []
        self.needed: dict[str, list[str]] = {"paths": [], "published": []}

    def run(self, check_mode: bool) -> list[Decision]:
        """Decide, and unless in check mode remove. Raises FleetError where it must not even decide."""
        decisions = self._decide()
        if check_mode or not any(item.action == REMOVED for item in decisions):
            return decisions
        with self._alone():
            # Only now is it certain that no deploy is under way, so all is looked at once more.
            decisions = [self._remove(item) for item in self._decide()]
        return with_bytes_freed(decisions)

    @contextlib.contextmanager
    def _alone(self) -> t.Iterator[None]:
        if not os.path.isdir(self._layout.root):
            yield
            return
        with exclusive(self._layout):
            yield

    def _decide(self) -> list[Decision]:
        self.warnings = []
        options = self._options
        record, applied = read_state(self._layout, options)
        known = [
            ("wanted", "the inventory wants it", Names.of(options.plan)),
            ("recorded", "the record of the host names it: what it last ran well", Names.of(record)),
            ("applied", "the plan that was applied last names it", Names.of(applied)),
        ]
        left, left_unknown = _usage.last_named(self._layout)
        left = {os.path.realpath(path): moment for path, moment in left.items()}
        candidates = _prune_find.find(options.roots, self.warnings)
        mounts = _prune_use.parse_mounts(_mount_table(self._proc))
        decisions = []
        for candidate in candidates:
            moments = [*candidate.moments, (left.get(candidate.target, left_unknown), "deployed")]
            used, used_by = max(moments)
            reason = self._reason(candidate, known, used, used_by) or self._kept_elsewhere(candidate, mounts)
            decision = Decision(candidate, KEPT if reason else REMOVED, *(reason or ("unused", "")), used, used_by)
            decisions.append(decision)
        decisions = self._without_used(decisions)
        decisions = [self._without_shared(item, mounts) for item in decisions]
        self.needed = _needed([names for _reason, _why, names in known], decisions, mounts)
        return with_bytes_freed([self._explained(item) for item in decisions])

    def _reason(
        self, candidate: Candidate, known: t.Sequence[tuple[str, str, Names]], used: float, used_by: str
    ) -> tuple[str, str] | None:
        """Why it is kept, as far as no process has to be looked at."""
        if candidate.fault:
            return "unreadable", candidate.fault
        for reason, why, names in known:
            if names.name(candidate.places):
                return reason, why
        item = self._kept_by(candidate)
        if item:
            return "named", f"vllm_prune_keep has {item}"
        age = self._now - used
        if age < self._options.age:
            return "recent", f"{used_by} {shown_age(max(0.0, age))} ago; {shown_age(self._options.age)} have to pass"
        if candidate.interrupted:
            return "interrupted", "a run was killed while it swapped two versions; the next fetch of the model mends it"
        holder = _prune_find.holder(candidate.staging)
        return ("locked", f"{holder} works on it") if holder else None

    def _kept_by(self, candidate: Candidate) -> str | None:
        for item in self._options.keep:
            if item.startswith("/"):
                paths = {item.rstrip("/"), os.path.realpath(item)}
                if any(
                    _prune_use.is_below(place, path) or _prune_use.is_below(path, place)
                    for place in candidate.places
                    for path in paths
                ):
                    return item
            elif candidate.manifest and fnmatch.fnmatchcase(candidate.manifest.model, item):
                return item
        return None

    def _kept_elsewhere(self, candidate: Candidate, mounts: t.Sequence[_prune_use.Mount]) -> tuple[str, str] | None:
        found = _published(candidate)
        if found is None:
            return None
        own = _prune_marks.mark(found, mounts)
        if any(_prune_marks.same(own, mark) for mark in self._options.keep_published):
            return "named", "another host needs it, whatever path it has there"
        return None

    def _without_used(self, decisions: list[Decision]) -> list[Decision]:
        watched = [item.candidate.watched for item in decisions if item.action == REMOVED]
        uses = _prune_use.uses_of(watched, self._proc)
        if uses.hidden:
            self.warnings.append(
                f"{uses.hidden} process(es) could not be looked into, so a model that one of them has open is not "
                f"known to be in use{'' if os.geteuid() == 0 else '; as root (become: true) all are seen'}."
            )
        return [
            replace(item, action=KEPT, reason="in_use", why=uses.found[item.candidate.watched.path])
            if item.action == REMOVED and item.candidate.watched.path in uses.found
            else item
            for item in decisions
        ]

    def _without_shared(self, decision: Decision, mounts: t.Sequence[_prune_use.Mount]) -> Decision:
        mount = _prune_use.covering(mounts, decision.candidate.path)
        if decision.action == KEPT or self._options.shared or not _prune_use.is_shared(mount):
            return decision
        kind = mount.kind if mount else ""
        why = f"it lies on {kind}, and other hosts may need it; vllm_prune_shared: true takes all of them into account"
        return replace(decision, action=KEPT, reason="shared", why=why)

    def _explained(self, decision: Decision) -> Decision:
        if decision.action == KEPT:
            return decision
        kind = "left by an interrupted run; " if decision.candidate.kind == LEFTOVER else ""
        return replace(decision, why=f"{kind}{decision.used_by} {shown_age(self._now - decision.used)} ago")

    # --- removing ---

    def _remove(self, decision: Decision) -> Decision:
        if decision.action == KEPT:
            return decision
        try:
            if decision.candidate.kind == LEFTOVER:
                self._remove_leftover(decision.candidate)
            else:
                self._remove_artifact(decision.candidate)
        except FleetError as exc:
            reason = "locked" if exc.code == "artifact.locked" else "failed"
            return replace(decision, action=KEPT, reason=reason, why=exc.seen)
        except OSError as exc:
            return replace(decision, action=KEPT, reason="failed", why=f"{exc.filename or ''}: {exc.strerror}")
        return decision

    def _remove_artifact(self, candidate: Candidate) -> None:
        manifest = candidate.manifest
        if manifest is None:
            raise AssertionError("an artifact has a manifest")
        fresh = _prune_find.published(candidate.path)
        if fresh != candidate.published:
            raise FleetError("artifact.locked", f"another run changed {candidate.path} meanwhile")
        request = _artifact.Request(
            manifest.model, manifest.revision, candidate.path, manifest.endpoint, lock_timeout=0.0
        )
        self.warnings.extend(_artifact.absent(request).warnings)

    @staticmethod
    def _remove_leftover(candidate: Candidate) -> None:
        staging = _staging.acquire(_staging.locate(candidate.target), 0.0)
        try:
            staging.discard()
        finally:
            staging.release()


def _published(candidate: Candidate) -> _prune_marks.Published | None:
    if candidate.manifest is None:
        return None
    return _prune_marks.Published(candidate.path, candidate.manifest, candidate.inode)


def _needed(
    known: t.Sequence[Names], decisions: t.Sequence[Decision], mounts: t.Sequence[_prune_use.Mount]
) -> dict[str, list[str]]:
    """What must not go on any host that sees the same disks: all that is kept here, and what is named elsewhere."""
    # What only lies on a network file system is not needed here; whether others need it is for them to say.
    kept = [item.candidate for item in decisions if item.action == KEPT and item.reason != "shared"]
    published = [found for found in map(_published, kept) if found is not None]
    published += _prune_marks.named_in(text for names in known for text in names.texts)
    paths = {path for names in known for path in names.paths if path.startswith("/")}
    paths |= {candidate.path for candidate in kept} | {found.path for found in published}
    marks = {_prune_marks.mark(found, mounts) for found in published}
    return {"paths": sorted(paths), "published": sorted(marks)}


def _mount_table(proc: str) -> str:
    with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()


def with_bytes_freed(decisions: t.Sequence[Decision]) -> list[Decision]:
    """The bytes that each removal gives back: a file frees its blocks when the last of its names goes.

    Blocks that a reflink shares with another file cannot be told, and are counted.
    """
    names: dict[tuple[int, int], int] = {}
    for item in decisions:
        for file in item.candidate.files if item.action == REMOVED else ():
            names[file.identity] = names.get(file.identity, 0) + 1
    result = []
    for item in decisions:
        freed = 0
        for file in item.candidate.files if item.action == REMOVED else ():
            # pop: the last name is counted once, with the first artifact that has it.
            if names.get(file.identity, 0) >= file.links:
                names.pop(file.identity)
                freed += file.allocated
        result.append(replace(item, bytes_freed=freed))
    return result


# --- the module ------------------------------------------------------------------------------------------------------


def argument_spec() -> dict[str, t.Any]:
    """The argument spec of vllm_artifact_prune."""
    return {
        "root": {"type": "path", "default": "/var/lib/gpufleet-vllm"},
        "roots": {"type": "list", "elements": "path", "required": True},
        "age": {"type": "str", "default": "30d"},
        "keep": {"type": "list", "elements": "str", "default": [], "no_log": False},
        "keep_published": {"type": "list", "elements": "str", "default": [], "no_log": False},
        "plan": {"type": "dict", "default": {}},
        "without_record": {"type": "bool", "default": False},
        "shared": {"type": "bool", "default": False},
    }


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Do what the options of vllm_artifact_prune say; a removal that failed is in ``failures``. Raises FleetError."""
    params: dict[str, t.Any] = module.params
    options = Options(
        root=absolute_root(params["root"]),
        roots=tuple(params["roots"]),
        age=parse_age(params["age"]),
        keep=tuple(params["keep"]),
        keep_published=tuple(params["keep_published"]),
        plan=params["plan"],
        without_record=params["without_record"],
        shared=params["shared"],
    )
    prune = Prune(options)
    decisions = prune.run(module.check_mode)
    return {**as_result(decisions), "needed": prune.needed, "warnings": prune.warnings}


def as_result(decisions: t.Sequence[Decision]) -> dict[str, t.Any]:
    """Module results without the warnings."""
    removed = [item for item in decisions if item.action == REMOVED]
    return {
        "changed": bool(removed),
        "artifacts": [item.as_dict() for item in decisions],
        "bytes_freed": sum(item.bytes_freed for item in removed),
        "failures": [f"{item.candidate.path}: {item.why}" for item in decisions if item.reason == "failed"],
        "diff": {
            "before": "".join(f"{_line(item)}\n" for item in decisions),
            "after": "".join(f"{_line(item)}\n" for item in decisions if item.action == KEPT),
        },
    }


def _line(decision: Decision) -> str:
    manifest = decision.candidate.manifest
    what = f"{manifest.model} @ {manifest.commit or manifest.revision}" if manifest else decision.candidate.kind
    return f"{decision.candidate.path}  {what}"


def failure(failures: t.Sequence[str]) -> FleetError:
    """What to fail with where a removal failed."""
    return FleetError(
        "prune.not_removed",
        "; ".join(failures),
        "files that this user may remove",
        "Correct it on the host, then run again; what could be removed is gone, and the rest is as it was",
    )
