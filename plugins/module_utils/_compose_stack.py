# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The stack under Docker Compose: one project a root, ``compose.yaml`` in it, a container a service.

Docker's labels say what runs and with which digest; the file says what should. A container is made by ``docker
compose`` alone, so a person who types ``docker compose up`` finds nothing to do.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import stat
import tempfile
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose
from ansible_collections.gpufleet.vllm.plugins.module_utils._docker import Docker, failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, Runner
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Desired, Layout, Status, read_text, write_file

UP_SECONDS = 600.0
STATES = {"created": "stopped", "exited": "stopped", "paused": "stopped", "dead": "failed", "removing": "failed"}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z ?")
ONE_OFF = "com.docker.compose.oneoff"
FILE_MODE = 0o600
ZERO_TIME = "0001-01-01T00:00:00Z"


def parse_time(text: str) -> float | None:
    """Docker's RFC 3339 time (nanoseconds, UTC) as epoch; ``None`` for its zero."""
    if not text or text == ZERO_TIME:
        return None
    try:
        return datetime.datetime.strptime(f"{text[:19]}+0000", "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return None


def parse_status(inspected: t.Mapping[str, t.Any]) -> Status:
    """One entry of ``docker inspect``: a container that loads is starting, one that Docker restarts is restarting."""
    state = inspected.get("State") or {}
    status = str(state.get("Status") or "")
    health = str((state.get("Health") or {}).get("Status") or "")
    name = STATES.get(status, status)
    if status == "running" and health == "starting":
        name = "starting"
    policy = ((inspected.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name")
    pid = state.get("Pid")
    return Status(
        state=name,
        pid=pid if isinstance(pid, int) and pid > 0 else None,
        restarts=int(inspected.get("RestartCount") or 0),
        since=parse_time(str(state.get("StartedAt") or "")) if status == "running" else None,
        detail=_detail(status, health, state),
        lasting=policy in ("unless-stopped", "always"),
    )


def _detail(status: str, health: str, state: t.Mapping[str, t.Any]) -> str:
    if status == "running":
        return f"running ({health})" if health else "running"
    said = [f"{status} (exit status {state.get('ExitCode')})"]
    if state.get("OOMKilled"):
        said.append("killed for want of memory")
    if state.get("Error"):
        said.append(str(state["Error"]))
    return ", ".join(said)


def merged_log(out: str, err: str, lines: int) -> list[str]:
    """The last lines of both streams of ``docker logs --timestamps``, in the order in which they were written."""
    stamped = sorted(
        (line for line in (out + "\n" + err).splitlines() if TIMESTAMP.match(line)), key=lambda line: line[:30]
    )
    texts = [TIMESTAMP.sub("", line, count=1).rstrip() for line in stamped]
    return [text for text in texts if text][-lines:]


def _is_service(inspected: t.Mapping[str, t.Any]) -> bool:
    """Whether it is a service's own container, and not one that a person made beside it with `docker compose run`."""
    labels = inspected["Config"].get("Labels") or {}
    return f"{_compose.LABEL}.service" in labels and labels.get(ONE_OFF) != "True"


class ComposeBackend:
    """Docker and its Compose plugin on this host."""

    def __init__(self, layout: Layout, run: Runner) -> None:
        self.layout = layout
        self.docker = Docker(run)
        self.project = _compose.project_name(layout.root)

    # Backend

    def check(self, changing: t.Sequence[str], _leaving: t.Sequence[str] = ()) -> None:
        if not changing:
            return
        version = self.docker.call("compose", "version", "--short", check=False)
        if version.rc != 0:
            remedy = "install the Compose plugin (docker-compose-plugin, docker-compose-v2 or docker-compose 2.x)"
            raise FleetError("docker.no_compose", f"docker compose: {version.last_words}", "Docker Compose v2", remedy)
        foreign = self._foreign(changing)
        if foreign:
            raise FleetError(
                "stack.foreign_container",
                f"the container {foreign[0]} exists and is not of {self.layout.root}",
                "no container of this name, or one that this collection made for this root",
                f"rename the service, or remove that container: docker rm -f {foreign[0]}",
            )

    def pending(self, desired: t.Sequence[Desired]) -> bool:
        """Whether ``compose.yaml`` is another than these services make."""
        text = read_text(self._file)
        if not desired or text is None:
            return bool(desired) != (text is not None)
        return text != self._document(desired) or stat.S_IMODE(os.stat(self._file).st_mode) != FILE_MODE

    def judge(self, desired: t.Sequence[Desired]) -> None:
        """By Compose itself: a setting that it does not take must not be found out when the services are down."""
        strangers = [item for item in desired if item.owner not in (None, (os.geteuid(), os.getegid()))]
        if strangers and os.geteuid() != 0:
            raise FleetError(
                "stack.not_root",
                f"uid {os.geteuid()} can not give files to {strangers[0].service['container']['user']}",
                "a run as root, or containers of this very user",
                "set become: true",
            )
        if not desired:
            return
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/compose.yaml"
            write_file(path, self._document(desired), FILE_MODE)
            done = self.docker.call("compose", "--file", path, "config", "--quiet", check=False)
        if done.rc != 0:
            problem = failure(done, "the Compose file")
            if problem.code != "docker.failed":
                raise problem
            raise FleetError(
                "stack.bad_compose",
                f"Docker Compose refuses the file: {done.last_words}",
                "settings that it takes",
                "correct vllm_container_limits, vllm_container_ulimits or vllm_container_logging",
            )

    def prepare(self) -> None:
        """Nothing to do: Docker is there."""

    def define(self, desired: t.Sequence[Desired]) -> None:
        if desired:
            # A plain environment may hold a secret by mistake.
            write_file(self._file, self._document(desired), FILE_MODE)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file)

    def installed(self) -> dict[str, str]:
        found = {}
        for entry in self._containers():
            labels = entry["Config"]["Labels"]
            found[str(labels[f"{_compose.LABEL}.service"])] = str(labels.get(f"{_compose.LABEL}.digest") or "")
        return found

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        wanted = set(names)
        return {name: parse_status(entry) for name, entry in self._by_name().items() if name in wanted}

    def stop(self, names: t.Sequence[str], timeout: float) -> None:
        installed = self.installed()
        present = [_compose.container_name(name) for name in names if name in installed]
        if not present:
            return
        # Each with the stop timeout that it was made with: Docker kills what has not left by then.
        done = self.docker.call("stop", *present, timeout=timeout, check=False)
        if done.rc != 0 and "no such container" not in done.err.lower():
            raise failure(done, f"'docker stop {' '.join(present)}'")

    def install(self, desired: Desired) -> None:
        self.remove(desired.name)

    def remove(self, name: str) -> None:
        if name in self.installed():
            self.docker.call("rm", "--force", "--volumes", _compose.container_name(name))

    def start(self, names: t.Sequence[str]) -> None:
        if not names:
            return
        paused = [name for name, entry in self._by_name().items() if entry["State"].get("Paused") and name in names]
        if paused:
            self.docker.call("unpause", *map(_compose.container_name, paused))
        if self._up(names).rc == 0:
            return
        # One that can not start must not keep the others from it: each on its own, and then its own words.
        failures = []
        for name in names:
            done = self._up([name])
            if done.rc != 0:
                failures.append(failure(done, f"service {name}"))
        if len(failures) == 1:
            raise failures[0]
        if failures:
            first = failures[0]
            raise FleetError(first.code, "; ".join(item.seen for item in failures), first.expected, first.remedy)

    def tail(self, name: str, lines: int) -> list[str]:
        shown = self.docker.call(
            "logs", "--timestamps", "--tail", str(lines), _compose.container_name(name), check=False
        )
        return merged_log(shown.out, shown.err, lines)

    # Beside it

    def published(self) -> dict[int, str]:
        """The host's ports that the containers of these services are published on, with the service's name."""
        ports = {}
        for name, entry in self._by_name().items():
            bindings = (entry.get("HostConfig") or {}).get("PortBindings") or {}
            for binding in (item for bound in bindings.values() for item in bound or []):
                if str(binding.get("HostPort") or "").isdigit():
                    ports[int(binding["HostPort"])] = name
        return ports

    def shutdown(self, _timeout: float) -> bool:
        """Remove what the project holds beside its containers, which are gone: its network."""
        ours = f"label=com.docker.compose.project={self.project}"
        one_off = self.docker.lines("ps", "--all", "--quiet", "--filter", ours, "--filter", f"label={ONE_OFF}=True")
        if one_off:
            self.docker.call("rm", "--force", "--volumes", *one_off)
        networks = self.docker.lines("network", "ls", "--quiet", "--filter", ours)
        if networks:
            self.docker.call("network", "rm", *networks)
        return bool(networks)

    @property
    def _file(self) -> str:
        return f"{self.layout.root}/compose.yaml"

    def _document(self, desired: t.Sequence[Desired]) -> str:
        containers = {
            item.name: _compose.labelled(item.service["container"], item.name, self.layout.root, item.digest)
            for item in desired
        }
        return _compose.document(self.layout.root, containers)

    def _up(self, names: t.Sequence[str]) -> CommandResult:
        arguments = ["--file", self._file, "--project-name", self.project, "--progress", "plain"]
        arguments += ["up", "--detach", "--no-deps", "--no-recreate", *names]
        return self.docker.call("compose", *arguments, timeout=UP_SECONDS, check=False)

    def _containers(self) -> list[dict[str, t.Any]]:
        label = f"label={_compose.LABEL}.root={self.layout.root}"
        identifiers = self.docker.lines("ps", "--all", "--quiet", "--no-trunc", "--filter", label)
        return [entry for entry in self.docker.inspect("container", identifiers) if _is_service(entry)]

    def _by_name(self) -> dict[str, dict[str, t.Any]]:
        return {entry["Config"]["Labels"][f"{_compose.LABEL}.service"]: entry for entry in self._containers()}

    def _foreign(self, names: t.Sequence[str]) -> list[str]:
        wanted = {_compose.container_name(name) for name in names}
        taken = set(self.docker.lines("ps", "--all", "--format", "{{.Names}}")) & wanted
        ours = {_compose.container_name(name) for name in self.installed()}
        return sorted(taken - ours)
