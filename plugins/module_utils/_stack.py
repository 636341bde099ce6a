# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The stack: the services of one host under a process manager, made to match the plan.

One root directory holds all of it, readable by a person::

    plan.json                     what was applied last (0600: an environment may hold more than a path)
    record.json                   what was last proved to answer
    artifacts.json                when a plan or record stopped naming a model artifact
    compose.yaml                  compose only; a person can use it with docker compose
    services/NAME/environment     0600, secrets included; compose: 0400 of the container's user, secrets alone
    services/NAME/run.sh          supervisor only; starts the service by hand, too
    services/NAME/state/          what the service writes: compile and kernel caches, kept across restarts
    logs/NAME.log                 supervisor only; systemd has its journal, Docker its logs
    turns/                        a lock for each card that services share, and what takes it
    supervisor/                   supervisord.conf, conf.d/, its venv and socket
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose, _render, _turns
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

UNCHANGED = "unchanged"
CREATED = "created"
UPDATED = "updated"
STARTED = "started"
REMOVED = "removed"
HIDDEN = "********"
PUBLIC_DIRECTORY = 0o755


@dataclass(frozen=True)
class Status:
    """``state`` is running, starting, restarting (it died, and is started again), stopped or failed (it is not).

    ``restarts`` and ``since`` (epoch) are there where they are known.

    ``lasting`` is false where the service would not be there again after a reboot.
    """

    state: str
    pid: int | None = None
    restarts: int | None = None
    since: float | None = None
    detail: str = ""
    lasting: bool = True

    @property
    def alive(self) -> bool:
        return self.state in ("running", "starting", "restarting")

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "since": self.since,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Layout:
    """Every path below the root, in one place."""

    root: str

    @property
    def plan(self) -> str:
        return f"{self.root}/plan.json"

    @property
    def record(self) -> str:
        return f"{self.root}/record.json"

    @property
    def artifacts(self) -> str:
        return f"{self.root}/artifacts.json"

    @property
    def lock(self) -> str:
        return f"{self.root}/lock"

    @property
    def services(self) -> str:
        return f"{self.root}/services"

    @property
    def logs(self) -> str:
        return f"{self.root}/logs"

    def workdir(self, name: str) -> str:
        return f"{self.services}/{name}"

    def environment(self, name: str) -> str:
        return f"{self.workdir(name)}/environment"

    def script(self, name: str) -> str:
        return f"{self.workdir(name)}/run.sh"

    def log(self, name: str) -> str:
        return f"{self.logs}/{name}.log"


@dataclass(frozen=True)
class Desired:
    """One service as it should be: its plan entry, its secrets and the digest of all that a restart is needed for."""

    service: t.Mapping[str, t.Any]
    secrets: t.Mapping[str, str] = field(default_factory=dict)
    digest: str = ""

    @property
    def name(self) -> str:
        return str(self.service["name"])

    @property
    def contained(self) -> bool:
        """Whether it runs in a container; its other environment stands in the Compose file then."""
        return "container" in self.service

    @property
    def owner(self) -> tuple[int, int] | None:
        """uid and gid inside a container, which are those of its files outside."""
        if not self.contained:
            return None
        uid, _colon, gid = str(self.service["container"]["user"]).partition(":")
        return int(uid), int(gid)

    def environment(self) -> dict[str, str]:
        """What its environment file holds."""
        return dict(self.secrets) if self.contained else {**self.service["environment"], **self.secrets}


class Backend(t.Protocol):
    """What a process manager must be able to do; names are service names."""

    def check(self, changing: t.Sequence[str], leaving: t.Sequence[str] = ()) -> None:
        """Refuse, before anything is touched and in check mode too, what a change of these services could not do.

        ``leaving`` are services that another process manager ends first.
        """

    def prepare(self) -> None: ...

    def pending(self, desired: t.Sequence[Desired]) -> bool:
        """Whether the definition of the whole stack, where there is one, is another than these services make."""

    def judge(self, desired: t.Sequence[Desired]) -> None:
        """Refuse, before anything is touched and in check mode too, a definition that can not be carried out."""

    def define(self, desired: t.Sequence[Desired]) -> None:
        """Write that definition."""

    def installed(self) -> dict[str, str]:
        """Names of the services under this root with the digest that they were installed with."""

    def status(self, names: t.Iterable[str]) -> dict[str, Status]: ...

    def stop(self, names: t.Sequence[str], timeout: float) -> None: ...

    def install(self, desired: Desired) -> None: ...

    def remove(self, name: str) -> None: ...

    def start(self, names: t.Sequence[str]) -> None: ...

    def tail(self, name: str, lines: int) -> list[str]: ...

    def published(self) -> dict[int, str]:
        """Ports that another process than the service's own listens on for it, with the service's name."""

    def shutdown(self, timeout: float) -> bool:
        """End what the process manager keeps beside the services, once they are gone; whether there was any."""


def service_digest(service: t.Mapping[str, t.Any], extra: t.Mapping[str, t.Any]) -> str:
    """What needs a restart: command, environment, drain, user, and the artifact and engine behind the paths.

    Of a container it is all of its definition, the image's digest included.
    """
    if "container" in service:
        relevant = {"container": service["container"], **extra}
    else:
        relevant = {
            "command": service["command"],
            "environment": service["environment"],
            "stop_timeout": service["stop_timeout"],
            **extra,
        }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def as_failure(exc: FleetError | OSError) -> FleetError:
    """An error of the system in words an operator can act on; a ``FleetError`` is that already."""
    if isinstance(exc, FleetError):
        return exc
    seen = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        expected, remedy = "space and inodes left on its file system", "free some (df -h, df -i, quota), then run again"
        return FleetError("host.disk_full", seen, expected, remedy)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        expected, remedy = "the right to read and write it", "run as root (become: true), or as the owner of vllm_root"
        return FleetError("host.permission", seen, expected, remedy)
    return FleetError("host.os_error", seen, "a working file system", "correct it on the host, then run again")


def read_text(path: str) -> str | None:
    """``None`` where there is no file; bytes that are no text are replaced, so it differs from what we would write."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def read_json(path: str) -> dict[str, t.Any] | None:
    """``None`` where there is no file, or one that a killed machine left unreadable: it is written anew then."""
    try:
        value = json.loads(read_text(path) or "null")
    except (ValueError, OSError):
        return None
    return value if isinstance(value, dict) else None


def write_file(path: str, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """All or nothing: a new file beside the old one, synced, then renamed over it."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if owner:
                os.fchown(stream.fileno(), *owner)
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as exc:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(exc, OSError):
            raise OSError(exc.errno, exc.strerror, path) from exc  # a failed write names no file
        raise


def _make_parents(path: str) -> None:
    """What is missing above a directory of ours, open to the service user whatever the umask of this run."""
    if os.path.isdir(path):
        return
    _make_parents(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
        os.chmod(path, PUBLIC_DIRECTORY)


def make_directory(path: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Made or corrected. An administrator may link it elsewhere; a link by anyone else could point us anywhere."""
    _make_parents(os.path.dirname(path))
    os.makedirs(path, exist_ok=True)
    link = os.lstat(path)
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
        raise FleetError(
            "stack.foreign_link",
            f"{path} is a link that uid {link.st_uid} made",
            "a directory, or a link made by root or by the user of this run",
            "look at where it points and who can write there, remove it, then run again",
        )
    current = os.stat(path)
    if stat.S_IMODE(current.st_mode) != mode:
        os.chmod(path, mode)
    if owner and (current.st_uid, current.st_gid) != owner:
        os.chown(path, *owner)


def tail_file(path: str, lines: int) -> list[str]:
    """The last lines of a file, reading no more than its last 64 KiB."""
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 65536))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _caller() -> str:
    """Who runs this: the user that sudo was called by, where it was, and from where."""
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.geteuid()}"
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    return f"{user} from {client}" if client else user


@contextlib.contextmanager
def exclusive(layout: Layout) -> t.Iterator[None]:
    """One deploy at a time on a host; the second is told who holds the lock."""
    with open(layout.lock, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise FleetError(
                "stack.locked",
                f"another deploy is changing {layout.root} ({stream.read().strip() or 'holder unknown'})",
                "one deploy at a time on a host",
                "wait until it has ended, then run again",
            ) from None
        stream.truncate(0)
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stream.write(f"pid {os.getpid()} of {_caller()} since {moment}\n")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


@dataclass
class Change:
    """What happens to one service; ``before`` and ``after`` are diff material with the secrets hidden."""

    name: str
    action: str
    before: str = ""
    after: str = ""
    status: Status | None = None

    def as_dict(self) -> dict[str, t.Any]:
        status = self.status.as_dict() if self.status else {"state": "absent"}
        return {"name": self.name, "action": self.action, **status}


def _options(words: t.Sequence[str]) -> list[list[str]]:
    """The words after the model, one list an option."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not options:
            options.append([])
        options[-1].append(word)
    return options


def describe(desired: Desired) -> str:
    """A service as a person would write it, for a diff; secrets are named but hidden."""
    if desired.contained:
        text = _compose.to_yaml({desired.name: desired.service["container"]})
        hidden = "".join(f"# secret: {name}={HIDDEN}\n" for name in desired.secrets)
        return f"{text}{hidden}# digest {desired.digest}\n"
    environment = {
        **desired.service["environment"],
        **dict.fromkeys(desired.secrets, HIDDEN),
    }
    command = list(desired.service["command"])
    return _render.shell_command(environment, command[:3], _options(command[3:])) + f"\n# digest {desired.digest}\n"


class Stack:
    """Brings the services under one root to the desired set: stop what changes, write, start, in that order."""

    def __init__(self, layout: Layout, backend: Backend, owner: tuple[int, int] | None = None) -> None:
        self.layout = layout
        self.backend = backend
        self.owner = owner

    def changes(self, desired: t.Sequence[Desired]) -> list[Change]:
        """What :meth:`apply` will do, without doing it."""
        installed = self.backend.installed()
        status = self.backend.status([*installed, *(item.name for item in desired)])
        wanted = {item.name for item in desired}
        changes = []
        for item in desired:
            before = self._described(item.name) if item.name in installed else ""
            action = self._action(item, installed, status.get(item.name))
            after = before if action in (UNCHANGED, STARTED) else describe(item)
            changes.append(Change(item.name, action, before, after, status.get(item.name)))
        # A directory without a definition was left by a run that was ended half-way; it may hold secrets.
        for name in sorted({*installed, *self._workdirs()} - wanted):
            changes.append(Change(name, REMOVED, self._described(name), "", None))
        return changes

    def _action(self, item: Desired, installed: t.Mapping[str, str], status: Status | None) -> str:
        if item.name not in installed:
            return CREATED
        secrets_changed = read_text(self.layout.environment(item.name)) != _render.environment_text(item.environment())
        if installed[item.name] != item.digest or secrets_changed:
            return UPDATED
        return UNCHANGED if status and status.alive and status.lasting else STARTED

    def _workdirs(self) -> list[str]:
        try:
            with os.scandir(self.layout.services) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def _described(self, name: str) -> str:
        return read_text(f"{self.layout.workdir(name)}/description") or ""

    def apply(
        self,
        desired: t.Sequence[Desired],
        changes: t.Sequence[Change],
        stop_timeout: float,
    ) -> None:
        by_name = {item.name: item for item in desired}
        self._directories()
        self._turns(desired)
        self.backend.prepare()
        self.backend.define(desired)
        moving = [change.name for change in changes if change.action in (UPDATED, REMOVED)]
        # All of them stop before any starts: two services may swap their ports or GPUs in one run.
        self.backend.stop(moving, stop_timeout)
        for change in changes:
            if change.action == REMOVED:
                self.backend.remove(change.name)
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self.layout.workdir(change.name))
            elif change.action in (CREATED, UPDATED):
                self._write(by_name[change.name])
        self.backend.start([change.name for change in changes if change.action in (CREATED, UPDATED, STARTED)])
        status = self.backend.status([item.name for item in desired])
        for change in changes:
            change.status = status.get(change.name)

    def _directories(self) -> None:
        make_directory(self.layout.services, 0o755)
        make_directory(self.layout.logs, 0o750)

    def _turns(self, desired: t.Sequence[Desired]) -> None:
        """The locks of shared cards, and the program that takes them. A file that is there stays: it may be locked."""
        cards = {card for item in desired for card in _turns.shared_cards(item.service)}
        if not cards:
            return
        where = _turns.directory(self.layout.root)
        make_directory(where, 0o755)
        if read_text(f"{where}/{_turns.PROGRAM}") != _turns.START:
            write_file(f"{where}/{_turns.PROGRAM}", _turns.START, 0o644)
        for card in sorted(cards):
            path = _turns.lock_path(card, where)
            if not os.path.lexists(path):
                write_file(path, "", 0o644)

    def _write(self, item: Desired) -> None:
        workdir = self.layout.workdir(item.name)
        # The service user owns what it writes, and not the directory above: it can not swap a file of ours for a link.
        make_directory(workdir, 0o755)
        self._make_state(f"{workdir}/state", item.owner or self.owner)
        # A container's user reads its secrets itself; everywhere else root or supervisor does.
        mode = 0o400 if item.contained else 0o600
        text = _render.environment_text(item.environment())
        write_file(self.layout.environment(item.name), text, mode, item.owner)
        # A plain environment may hold a secret by mistake.
        write_file(f"{workdir}/description", describe(item), 0o600)
        # The definition carries the digest, so it comes last: a run killed before this line is repaired by the next.
        self.backend.install(item)

    @staticmethod
    def _make_state(path: str, owner: tuple[int, int] | None) -> None:
        """The caches of a service; those of another user, which its own can not write, are made anew."""
        if owner and os.path.isdir(path) and (os.stat(path).st_uid, os.stat(path).st_gid) != owner:
            shutil.rmtree(path)
        make_directory(path, 0o700, owner)
