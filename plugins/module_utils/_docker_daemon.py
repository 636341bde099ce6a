# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Docker's daemon.json, and bringing the daemon to it without a surprise for the containers that run."""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import stat
import tempfile
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, Runner
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import HIDDEN, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils._systemd import gpu_containers

PATH = "/etc/docker/daemon.json"
UNIT = "docker.service"
# What dockerd takes up on SIGHUP, in all releases from 20.10. "features" is not among them: the CDI driver, for one, is
# registered when the daemon starts.
RELOADABLE = frozenset(
    {
        "authorization-plugins",
        "debug",
        "default-runtime",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)
PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "StateChangeTimestamp")
SECRET_KEY = re.compile(r"(?i)token|password|passwd|secret|credential|access-?key")
DAEMON_GAVE_UP = re.compile("failed to start daemon|unable to configure the Docker daemon|level=fatal")
MISSING, STOPPED, RUNNING = "missing", "stopped", "running"
NOTHING, START, RELOAD, RESTART = "none", "started", "reloaded", "restarted"
SETTLE_SECONDS = 10.0

Config = dict[str, t.Any]


@dataclass(frozen=True)
class Options:
    """The options of the module ``docker_daemon``, which documents them."""

    path: str = PATH
    config: t.Mapping[str, t.Any] = field(default_factory=dict)
    log_opts: t.Mapping[str, str] = field(default_factory=dict)
    nvidia_runtime: bool = False
    cdi: bool = False
    restart_reasons: t.Sequence[str] = ()
    allow_restart: bool = False
    timeout: float = 90.0


@dataclass(frozen=True)
class Daemon:
    """``since`` is when the daemon last came up or was reloaded; ``containers`` is None where it does not say."""

    state: str
    enabled: bool = False
    since: int | None = None
    live_restore: bool = False
    containers: tuple[str, ...] | None = ()
    gpu_containers: tuple[str, ...] = ()


# ---- the file


def read_config(path: str) -> Config | None:
    """What the file holds; ``None`` where there is none. A file that we cannot keep whole is refused."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as exc:
        raise _unreadable(path, f"is not UTF-8 text: {exc.reason} at byte {exc.start}") from None
    if not text.strip():
        return {}
    try:
        config = json.loads(text, object_pairs_hook=_object)
    except ValueError as exc:
        raise _unreadable(path, f"is not JSON: {exc}") from None
    if not isinstance(config, dict):
        raise _unreadable(path, f"holds a JSON {type(config).__name__}")
    return config


def _object(pairs: list[tuple[str, t.Any]]) -> Config:
    keys = [key for key, _value in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"the key {twice[0]} is there twice, and one of the two would be lost")
    return dict(pairs)


def _unreadable(path: str, seen: str) -> FleetError:
    return FleetError(
        "docker.config_unreadable",
        f"{path} {seen}",
        "a JSON object, in which every key can be kept",
        "correct the file on the host (dockerd --validate says more), or move it away, then run again",
    )


def merged(current: t.Any, wanted: t.Any) -> t.Any:
    """``wanted`` laid over ``current``: objects key by key, lists gain what they lack, anything else is replaced."""
    if isinstance(current, dict) and isinstance(wanted, dict):
        result = dict(current)
        for key, value in wanted.items():
            result[key] = merged(current[key], value) if key in current else value
        return result
    if isinstance(current, list) and isinstance(wanted, list):
        return current + [item for item in wanted if item not in current]
    return wanted


def desired(current: t.Mapping[str, t.Any], options: Options) -> Config:
    """The configuration to have. What is a default of ours never replaces what somebody else chose."""
    result: Config = merged(dict(current), dict(options.config))
    if options.log_opts and not {"log-driver", "log-opts"} & set(result):
        result["log-driver"] = "json-file"
        result["log-opts"] = dict(options.log_opts)
    if options.nvidia_runtime and "nvidia" not in _section(result, "runtimes"):
        # As 'nvidia-ctk runtime configure --runtime=docker' writes it.
        runtime = {"args": [], "path": "nvidia-container-runtime"}
        result["runtimes"] = {**_section(result, "runtimes"), "nvidia": runtime}
    if options.cdi and "cdi" not in _section(result, "features"):
        result["features"] = {**_section(result, "features"), "cdi": True}
    return result


def _section(config: t.Mapping[str, t.Any], key: str) -> Config:
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise FleetError(
            "docker.config_invalid",
            f"{key} in Docker's configuration is {json.dumps(value)}",
            "a JSON object",
            "correct it in daemon.json on the host, or in the variable that sets it",
        )
    return value


def differing(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """The top-level keys that are not the same."""
    absent = object()
    return sorted(key for key in {*before, *after} if before.get(key, absent) != after.get(key, absent))


def as_text(config: t.Mapping[str, t.Any]) -> str:
    return json.dumps(config, indent=4, ensure_ascii=False) + "\n"


def masked(value: t.Any, key: str = "") -> t.Any:
    """For a diff: values that are secret by their key, and passwords in addresses, are hidden."""
    if isinstance(value, dict):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item, key) for item in value]
    if isinstance(value, str):
        return HIDDEN if SECRET_KEY.search(key) else re.sub(r"(://)[^/\s@]+@", rf"\1{HIDDEN}@", value)
    return value


def validate(text: str, path: str, run: Runner) -> None:
    """Let dockerd judge the file, where there is one that can (from 23.0)."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="daemon-", suffix=".json") as stream:
        stream.write(text)
        stream.flush()
        judged = run(["dockerd", "--validate", f"--config-file={stream.name}"], 30)
        # There is no dockerd, or one that does not know the flag.
        if judged.rc in (0, 127) or judged.timed_out or "unknown flag" in judged.err:
            return
        said = judged.last_words.replace(stream.name, path)
    raise FleetError(
        "docker.config_invalid",
        f"Docker would refuse its new configuration: {said}",
        "a configuration that this release of Docker starts with",
        "correct gpu_host_daemon (or daemon.json on the host); nothing was changed",
    )


# ---- the daemon


def look(run: Runner) -> Daemon:
    """What Docker does at the moment. Reads only."""
    # A timestamp of systemd's is in the local time zone otherwise.
    shown = run(["env", "TZ=UTC", "LC_ALL=C", "systemctl", "show", UNIT, f"--property={','.join(PROPERTIES)}"], 20)
    values = dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)
    if shown.rc != 0 or values.get("LoadState") != "loaded":
        return Daemon(MISSING)
    enabled = values.get("UnitFileState") not in ("disabled", "masked")
    if values.get("ActiveState") not in ("active", "reloading"):
        return Daemon(STOPPED, enabled=enabled)
    listed = run(["docker", "ps", "--format", "{{.Names}}"], 20)
    info = run(["docker", "info", "--format", "{{.LiveRestoreEnabled}}"], 20)
    return Daemon(
        RUNNING,
        enabled=enabled,
        since=parse_timestamp(values.get("StateChangeTimestamp", "")),
        live_restore=info.out.strip() == "true",
        containers=tuple(sorted(listed.out.split())) if listed.rc == 0 else None,
        gpu_containers=tuple(sorted(gpu_containers(run))),
    )


def parse_timestamp(text: str) -> int | None:
    """``Mon 2026-11-23 17:15:10 UTC`` as seconds since the epoch."""
    with contextlib.suppress(ValueError):
        return calendar.timegm(time.strptime(" ".join(text.split()[1:3]), "%Y-%m-%d %H:%M:%S"))
    return None


def pending(path: str, daemon: Daemon) -> list[str]:
    """Why a daemon that runs does not have the configuration that lies there: somebody wrote it since."""
    if daemon.state != RUNNING or daemon.since is None:
        return []
    with contextlib.suppress(FileNotFoundError):
        if int(os.stat(path).st_mtime) > daemon.since:
            return [f"{path} is newer than the daemon that runs"]
    return []


def choose(keys: t.Sequence[str], reasons: t.Sequence[str], daemon: Daemon) -> tuple[str, list[str]]:
    """What is to be done with the daemon, and why."""
    if daemon.state == MISSING:
        return NOTHING, []
    if daemon.state == STOPPED:
        return START, ["it does not run"]
    restarting = [key for key in keys if key not in RELOADABLE]
    why = [*reasons, *([f"changed: {', '.join(restarting)}"] if restarting else [])]
    if why:
        return RESTART, why
    return (RELOAD, [f"changed: {', '.join(keys)}"]) if keys else (NOTHING, [])


def stopped_by_restart(daemon: Daemon) -> list[str]:
    """Those that a restart must not meet: GPU containers always, the others unless the daemon leaves them alone."""
    others = [] if daemon.live_restore else [name for name in daemon.containers or () if _is_other(name, daemon)]
    return [f"{name} (GPU)" for name in daemon.gpu_containers] + others


def _is_other(name: str, daemon: Daemon) -> bool:
    return name not in daemon.gpu_containers


def refuse_restart(daemon: Daemon, why: t.Sequence[str]) -> None:
    in_danger = stopped_by_restart(daemon)
    if not in_danger and daemon.containers is not None:
        return
    seen = f"containers run here: {', '.join(in_danger)}" if in_danger else "Docker does not say which containers run"
    raise FleetError(
        "docker.restart_refused",
        f"Docker must be restarted ({'; '.join(why)}), and {seen}",
        "no container that a restart would stop; nothing was changed",
        "stop them first, or accept it with gpu_host_allow_docker_restart: true",
    )


# ---- both


class Applier:
    """One run: look, decide, refuse, write, act. In check mode everything but the last two."""

    def __init__(self, options: Options, check_mode: bool, run: Runner, settle: float = SETTLE_SECONDS) -> None:
        self.options = options
        self.check_mode = check_mode
        self.run = run
        self.settle = settle

    def __call__(self) -> dict[str, t.Any]:
        options = self.options
        current = read_config(options.path)
        wanted = desired(current or {}, options)
        keys = differing(current or {}, wanted)
        if keys:
            validate(as_text(wanted), options.path, self.run)
        daemon = look(self.run)
        if daemon.state == MISSING and not self.check_mode:
            raise FleetError(
                "docker.no_service",
                f"systemd has no {UNIT}",
                "Docker Engine as a service of the system",
                "install it (gpu_host_docker: true with a gpu_host_docker_source), then run again",
            )
        action, why = choose(keys, [*options.restart_reasons, *pending(options.path, daemon)], daemon)
        if action == RESTART and not options.allow_restart:
            refuse_restart(daemon, why)
        result: dict[str, t.Any] = {
            "changed": bool(keys) or action != NOTHING or (daemon.state != MISSING and not daemon.enabled),
            "action": action,
            "reasons": why,
            "changed_keys": keys,
            "containers": list(daemon.containers or ()),
            "gpu_containers": list(daemon.gpu_containers),
            "not_running_again": [],
        }
        if keys:
            result["diff"] = {
                "before_header": options.path,
                "after_header": options.path,
                "before": "" if current is None else as_text(masked(current)),
                "after": as_text(masked(wanted)),
            }
        if result["changed"] and not self.check_mode:
            result["not_running_again"] = self._apply(as_text(wanted) if keys else None, daemon, action)
        return result

    def _apply(self, text: str | None, daemon: Daemon, action: str) -> list[str]:
        if not daemon.enabled:
            # Without --no-reload this is a daemon-reload, which can take GPUs from containers.
            self._systemctl("enable", "--no-reload", UNIT)
        kept = Kept(self.options.path)
        if text is not None:
            kept.replace(text)
        if action == NOTHING:
            return []
        try:
            self._systemctl({START: "start", RELOAD: "reload", RESTART: "restart"}[action], UNIT)
            self._answers()
        except FleetError as exc:
            raise self._went_back(exc, kept) if text is not None else exc from None
        return self._lost(daemon) if action == RESTART else []

    def _went_back(self, exc: FleetError, kept: Kept) -> FleetError:
        """Docker does not run with what we wrote: it gets its old configuration back, and so do the containers."""
        kept.restore()
        self.run(["systemctl", "reset-failed", UNIT, "docker.socket"], 20)
        again = self.run(["systemctl", "--no-ask-password", "restart", UNIT], self.options.timeout)
        outcome = "runs with it again" if again.rc == 0 else "does not start with it either"
        return FleetError(
            exc.code,
            f"{exc.seen}. {self.options.path} has its old content back, and Docker {outcome}",
            exc.expected,
            "correct gpu_host_daemon; 'journalctl -u docker' on the host says why Docker ended",
        )

    def _systemctl(self, verb: str, *arguments: str) -> CommandResult:
        done = self.run(["systemctl", "--no-ask-password", verb, *arguments], self.options.timeout)
        if done.rc == 0:
            return done
        journal = self.run(["journalctl", "--unit", UNIT, "--lines", "60", "--output", "cat", "--no-pager"], 20)
        # What dockerd says when it gives up, before what systemd says of it.
        words = [line.strip() for line in journal.out.splitlines() if DAEMON_GAVE_UP.search(line)]
        said = words[-1] if words and verb != "enable" else done.last_words
        raise FleetError(
            "docker.systemctl",
            f"'systemctl {verb} {UNIT}' failed: {said}",
            "a Docker daemon that starts",
            "look at 'journalctl -u docker' on the host; a run as root (become: true) is needed",
        )

    def _answers(self) -> None:
        deadline = time.monotonic() + self.options.timeout
        while True:
            asked = self.run(["docker", "version", "--format", "{{.Server.Version}}"], 20)
            if asked.rc == 0:
                return
            if time.monotonic() >= deadline:
                raise FleetError(
                    "docker.no_answer",
                    f"Docker runs but gives no answer: {asked.last_words}",
                    f"an answer to 'docker version' within {self.options.timeout:g} s",
                    "look at 'journalctl -u docker' on the host, then run again",
                )
            time.sleep(0.5)

    def _lost(self, daemon: Daemon) -> list[str]:
        """The containers that ran before a restart and do not come back: those without a restart policy."""
        deadline = time.monotonic() + self.settle
        while True:
            listed = self.run(["docker", "ps", "--format", "{{.Names}}"], 20)
            lost = sorted(set(daemon.containers or ()) - set(listed.out.split()))
            if not lost or time.monotonic() >= deadline:
                return lost
            time.sleep(0.5)


class Kept:
    """A file that can be given its old content back."""

    def __init__(self, path: str) -> None:
        # A link stays one: configuration management often puts it there.
        self.path = os.path.realpath(path)
        self.text: bytes | None = None
        self.mode, self.owner = 0o644, (0, 0)
        with contextlib.suppress(FileNotFoundError):
            with open(self.path, "rb") as stream:
                state = os.fstat(stream.fileno())
                self.text = stream.read()
            self.mode, self.owner = stat.S_IMODE(state.st_mode), (state.st_uid, state.st_gid)

    def replace(self, text: str) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        write_file(self.path, text, self.mode, self.owner if self.text is not None else None)

    def restore(self) -> None:
        if self.text is None:
            os.unlink(self.path)
        else:
            write_file(self.path, self.text.decode(), self.mode, self.owner)


def apply(options: Options, check_mode: bool, run: Runner) -> dict[str, t.Any]:
    """What the module ``docker_daemon`` returns."""
    return Applier(options, check_mode, run)()
