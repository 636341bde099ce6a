# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab: emulated hosts on a network of their own, an inventory that names them, a model hub where one is asked for."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import typing as t
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import apt, images
from . import inventory as inventories
from ._base import (
    REPOSITORY,
    LabError,
    cache_root,
    digest_of,
    locked,
    need,
    require_root,
    run,
    runtime_root,
    say,
    timed,
    within,
)
from .engine import MACHINE, NETWORK, Engine
from .provision import archive, simulator
from .registry import Registry, registry_address
from .spec import HostSpec, check_name, default_hosts

LABEL = "gpulab"
DEFAULT_INVENTORY = REPOSITORY / "inventory/lab/hosts.yml"
USERS = ("root", "ops")
ALIVE = ("running", "paused", "disconnected")
SHM = "64g"
UNCONFINED = ("seccomp", "apparmor", "systempaths")
BOOT_SECONDS = 240
# Booting is work for the processor. More at once do not come up sooner, and time out.
AT_ONCE = max(2, os.cpu_count() or 1) + 1

READY = """
until state=$(systemctl is-system-running --wait 2>/dev/null); [ "$state" = running ] || [ "$state" = degraded ]; do
    sleep 0.2
done
for unit in "$@"; do
    systemctl is-active --quiet "$unit" || { systemctl status --no-pager --lines=20 "$unit" >&2; exit 1; }
done
[ "$state" = running ] || systemctl list-units --failed --plain --no-legend
"""


@dataclass(frozen=True)
class Host:
    """One host of a lab that is up, and its name in the engine."""

    spec: HostSpec
    address: str
    container: str

    @property
    def name(self) -> str:
        return self.spec.name


class Lab:
    """A lab by its name. ``hosts`` describes it where it is not up yet; as a context manager it is up inside."""

    def __init__(
        self,
        name: str,
        hosts: Sequence[HostSpec] | int | None = None,
        *,
        inventory: Path | None = None,
        user: str = "root",
        hub: Path | None = None,
    ) -> None:
        self.name = check_name(name)
        self.engine = Engine()
        self.registry = Registry()
        self.directory = labs_root() / name
        self._wanted = default_hosts(hosts) if isinstance(hosts, int) else hosts
        self._inventory = inventory
        self._hub = hub
        self._user = user
        if user not in USERS:
            raise LabError(f"the user {user!r}", f"one of {', '.join(USERS)}", "choose one")

    def __enter__(self) -> Lab:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # What there is

    @property
    def state(self) -> dict[str, t.Any]:
        try:
            document: dict[str, t.Any] = json.loads((self.directory / "state.json").read_text())
        except FileNotFoundError:
            raise LabError(
                f"there is no lab {self.name}", f"one of: {', '.join(names()) or 'none is up'}", "python -m gpu_lab up"
            ) from None
        return document

    @property
    def hosts(self) -> dict[str, Host]:
        state = self.state
        return {
            spec["name"]: Host(
                HostSpec(**spec), f"{NETWORK}.{state['subnet']}.{number + 11}", f"{self.name}-{spec['name']}"
            )
            for number, spec in enumerate(state["hosts"])
        }

    @property
    def hub_url(self) -> str | None:
        """The model hub's address, as the hosts reach it; None where the lab has none."""
        url: str | None = self.state.get("hub_url")
        return url

    @property
    def inventory(self) -> Path:
        """The inventory in the lab's own directory, which is gone with the lab."""
        return self.directory / "inventory.yml"

    def host(self, name: str) -> Host:
        hosts = self.hosts
        if name not in hosts:
            raise LabError(f"the lab {self.name} has no host {name}", f"one of {', '.join(hosts)}", "name one of them")
        return hosts[name]

    # Life

    def up(self) -> None:
        """Have every host up. Those that are missing, stopped or made of another specification are made again."""
        require_root()
        need({"ssh-keygen": "openssh-client"})
        with locked(self.directory.with_name(f".{self.name}.lock")), timed(f"lab {self.name} is up"):
            self._reserve()
            self.engine.start()
            apt.serve()
            self.registry.start()
            hosts = list(self.hosts.values())
            images.ensure(self.engine, {host.spec.family for host in hosts})
            self._make_keys()
            self._make_network()
            self._make_hosts(hosts)
            self._start_hub()
            self._write_inventory(hosts)

    def down(self) -> None:
        """Remove all of it, whatever state it is in; the engine stops with the last lab."""
        require_root()
        with locked(self.directory.with_name(f".{self.name}.lock")):
            if not self.directory.exists():
                return
            with timed(f"lab {self.name} is down"):
                self._stop_hub()
                self._forget_connections()
                self.engine.start()
                self._remove_containers(self._containers())
                volumes = self.engine.docker("volume", "ls", "-q", "--filter", f"label={LABEL}={self.name}").split()
                if volumes:
                    self.engine.docker("volume", "rm", "--force", *volumes)
                self.engine.docker("network", "rm", self._network, check=False)
                self._remove_inventory()
                shutil.rmtree(self.directory)
                stop_if_unused(self.engine)

    def _reserve(self) -> None:
        """Take a subnet and write down what is wanted; from here on the engine stays."""
        with self.engine.lock():
            path = self.directory / "state.json"
            before = self.state if path.exists() else None
            hosts = self._wanted
            if before is None and hosts is None:
                raise LabError(f"there is no lab {self.name}", "a number of hosts or a specification", "give --hosts")
            state = before or {"subnet": self._free_subnet(), "user": self._user, "inventory": None, "hub": None}
            if hosts is not None:
                state["hosts"] = [spec.as_json() for spec in hosts]
                state["user"] = self._user
            if self._inventory:
                state["inventory"] = str(self._inventory.resolve())
            if self._hub:
                state["hub"] = str(self._hub.resolve())
            self._save(state)

    def _save(self, state: dict[str, t.Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        new = self.directory / "state.json.new"
        new.write_text(json.dumps(state, indent=1))
        new.replace(self.directory / "state.json")

    def _free_subnet(self) -> int:
        taken = {Lab(name).state["subnet"] for name in names()}
        free = [number for number in range(1, 250) if number not in taken]
        if not free:
            raise LabError("249 labs are up", "a free subnet", "take one down: python -m gpu_lab status")
        return free[0]

    @property
    def _network(self) -> str:
        return f"gpulab-{self.name}"

    def _make_network(self) -> None:
        subnet = self.state["subnet"]
        if self.engine.docker("network", "ls", "-q", "--filter", f"name=^{self._network}$").strip():
            return
        self.engine.docker(
            "network", "create", "--driver", "bridge", "--subnet", f"{NETWORK}.{subnet}.0/24",
            "--gateway", f"{NETWORK}.{subnet}.1", "--label", f"{LABEL}={self.name}",
            "--opt", f"com.docker.network.bridge.name=gpulab{subnet}", self._network,
        )  # fmt: skip

    def _make_keys(self) -> None:
        """A key for people and one for hosts, the same for all of them: a host that is made again is still known."""
        subnet = self.state["subnet"]
        for name in ("id_ed25519", "host_ed25519"):
            if not (self.directory / name).exists():
                kind = ["-t", "ed25519", "-N", "", "-C", self._network]
                run("ssh-keygen", "-q", *kind, "-f", self.directory / name)
        public = " ".join((self.directory / "host_ed25519.pub").read_text().split()[:2])
        (self.directory / "known_hosts").write_text(f"{NETWORK}.{subnet}.* {public}\n")

    # Hosts

    def _make_hosts(self, hosts: Sequence[Host]) -> None:
        marks = {host.container: self._mark(host) for host in hosts}
        found = self._containers()
        good = {name for name, (state, mark) in found.items() if state in ALIVE and mark == marks.get(name)}
        self._remove_containers(name for name in found if name not in good)
        missing = [host for host in hosts if host.container not in good]

        def make(host: Host) -> None:
            if host in missing:
                self._create(host, marks[host.container])
            elif found[host.container][0] == "paused":
                self.unpause(host.name)
            elif found[host.container][0] == "disconnected":
                self.connect(host.name)
            self._wait(host)

        for_all(make, hosts)
        if missing:
            say(f"booted {len(missing)} of {len(hosts)} hosts")

    def _mark(self, host: Host) -> str:
        """What a host is made of: one that is made of something else is made again."""
        image = images.FAMILIES[host.spec.family].tag(host.spec.docker)
        simulation = simulator(host.spec.docker).digest
        spec = json.dumps(host.spec.as_json(), sort_keys=True)
        return digest_of(image, spec, host.address, simulation, (self.directory / "host_ed25519.pub").read_text())

    def _containers(self) -> dict[str, tuple[str, str]]:
        """State and mark of every container that has this lab's label. One without a network is ``disconnected``."""
        shown = '{{.Names}}\t{{.State}}\t{{.Networks}}\t{{.Label "gpulab.mark"}}'
        lines = self.engine.docker("ps", "--all", "--filter", f"label={LABEL}={self.name}", "--format", shown)
        found = {}
        for name, state, network, mark in (line.split("\t") for line in lines.splitlines()):
            found[name] = ("disconnected" if state == "running" and not network else state, mark)
        return found

    def states(self) -> dict[str, str]:
        """What the engine says of each container."""
        return {name: state for name, (state, _mark) in self._containers().items()}

    def _remove_containers(self, containers: Iterable[str]) -> None:
        for_all(lambda name: self.engine.docker("rm", "--force", "--volumes", name), list(containers))

    def _create(self, host: Host, mark: str) -> None:
        family = images.FAMILIES[host.spec.family]
        volumes = [
            word
            for path in ("/var/lib/docker", "/var/lib/containerd")
            for word in ("--mount", f"type=volume,dst={path},volume-label={LABEL}={self.name}")
        ]
        self.engine.docker(
            "create", "--name", host.container, "--hostname", host.container,
            "--label", f"{LABEL}={self.name}", "--label", f"{LABEL}.mark={mark}",
            "--network", self._network, "--ip", host.address, "--network-alias", host.name,
            # Nothing listens there, so a name that the engine does not know is refused at once.
            "--dns", MACHINE,
            "--cgroupns", "private", "--tmpfs", "/run:mode=0755,exec", "--tmpfs", "/run/lock",
            "--tmpfs", "/tmp:mode=1777,exec",
            # As on a machine, where it may take half of the memory.
            "--shm-size", SHM,
            *volumes,
            *(word for name in self.engine.capabilities() for word in ("--cap-add", name)),
            *(word for name in UNCONFINED for word in ("--security-opt", f"{name}=unconfined")),
            "--device-cgroup-rule", "a *:* rwm",
            "--stop-signal", "SIGRTMIN+3", "--stop-timeout", "20",
            family.tag(host.spec.docker),
        )  # fmt: skip
        for content in (simulator(host.spec.docker).content, archive(host.spec, self.directory)):
            self.engine.docker("cp", "-", f"{host.container}:/", input_bytes=content)
        self.engine.docker("start", host.container)

    def _wait(self, host: Host) -> None:
        """Until systemd has booted, sshd answers, and Docker does where the host has it."""
        units = ["ssh.service", *(["docker.service"] if host.spec.docker else [])]
        try:
            failed = self.run(host.name, ["sh", "-c", READY, "sh", *units], timeout=BOOT_SECONDS)
        except LabError as error:
            raise LabError(
                f"the host {host.container} did not come up: {error}",
                f"systemd, {', '.join(units)} within {BOOT_SECONDS} s",
                f"python -m gpu_lab shell {host.name} --name {self.name}, then journalctl -b",
            ) from None
        if failed.strip():
            say(f"{host.name}: failed units: {' '.join(line.split()[0] for line in failed.splitlines())}")
        if not within(10, lambda: apt.listens(host.address, 22)):
            raise LabError(f"nothing listens on {host.address}:22", "sshd", f"see journalctl -u ssh in {host.name}")

    # The hub

    def _start_hub(self) -> None:
        state = self.state
        if not state["hub"]:
            return
        started = json.loads(self._hub_command("start", "--root", state["hub"], "--host", MACHINE))
        self._save({**state, "hub_url": started["endpoint"]})

    def _stop_hub(self) -> None:
        if (self.directory / "hub").exists():
            self._hub_command("stop")

    def _hub_command(self, *arguments: object) -> str:
        environment = {"PYTHONPATH": str(REPOSITORY / "tests/lab")}
        command = [sys.executable, "-m", "model_hub", *arguments, "--state", self.directory / "hub"]
        return run(*command, environment=environment)

    # Its inventory

    def _write_inventory(self, hosts: Sequence[Host]) -> None:
        state = self.state
        control = self._control
        control.mkdir(parents=True, exist_ok=True)
        text = inventories.render(
            {host.name: host.address for host in hosts},
            user=state["user"],
            key=self.directory / "id_ed25519",
            known_hosts=self.directory / "known_hosts",
            control=control,
            more={
                "lab_registry": registry_address(),
                **({"vllm_hub_endpoint": self.hub_url} if self.hub_url else {}),
            },
        )
        self.inventory.write_text(text)
        if state["inventory"]:
            path = Path(state["inventory"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _remove_inventory(self) -> None:
        """Only where it is still the one that was written."""
        named = self.state["inventory"] if (self.directory / "state.json").exists() else None
        with contextlib.suppress(FileNotFoundError):
            if named and Path(named).read_text() == self.inventory.read_text():
                Path(named).unlink()

    @property
    def _control(self) -> Path:
        return runtime_root() / "ssh" / self.name

    def _forget_connections(self) -> None:
        for socket in self._control.glob("*") if self._control.exists() else ():
            run("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "lab", check=False)
        shutil.rmtree(self._control, ignore_errors=True)

    # Using it, and what can go wrong with hosts

    def run(
        self,
        host: str,
        argv: Sequence[object],
        *,
        check: bool = True,
        input_bytes: bytes | None = None,
        timeout: float = 300,
    ) -> str:
        """What a command that root runs in a host prints on stdout."""
        interactive = [] if input_bytes is None else ["--interactive"]
        container = self.host(host).container
        return self.engine.docker(
            "exec", *interactive, container, *argv, check=check, input_bytes=input_bytes, timeout=timeout
        )

    def copy(self, source: Path, host: str, destination: str) -> None:
        """Copy a file or a directory into a host."""
        self.engine.docker("cp", source, f"{self.host(host).container}:{destination}")

    def fetch(self, host: str, source: str, destination: Path) -> None:
        """Copy a file or a directory out of a host."""
        self.engine.docker("cp", f"{self.host(host).container}:{source}", destination)

    def stop(self, host: str) -> None:
        """Shut it down, as a person does; ``start`` boots it again with its files and its containers."""
        self.engine.docker("stop", self.host(host).container)

    def kill(self, host: str) -> None:
        """Take its power."""
        self.engine.docker("kill", self.host(host).container)

    def start(self, host: str) -> None:
        self.engine.docker("start", self.host(host).container)
        self._wait(self.host(host))

    def pause(self, host: str) -> None:
        """Freeze every process of it: its connections stay open and nothing answers."""
        self.engine.docker("pause", self.host(host).container)

    def unpause(self, host: str) -> None:
        self.engine.docker("unpause", self.host(host).container)

    def disconnect(self, host: str) -> None:
        """Pull its network cable."""
        self.engine.docker("network", "disconnect", "--force", self._network, self.host(host).container)

    def connect(self, host: str) -> None:
        at = self.host(host)
        self.engine.docker("network", "connect", "--ip", at.address, "--alias", at.name, self._network, at.container)

    def shell_command(self, host: str) -> list[str]:
        client = self.engine.client()
        return [*client, "exec", "--interactive", "--tty", self.host(host).container, "bash", "--login"]


# All labs


def labs_root() -> Path:
    return cache_root() / "run"


def names() -> list[str]:
    return sorted(path.parent.name for path in labs_root().glob("*/state.json"))


def stop_if_unused(engine: Engine) -> bool:
    """Stop the engine where neither a lab nor a command uses it."""
    with engine.lock():
        if names() or _users():
            return False
        engine.stop_locked()
        return True


def _users() -> list[int]:
    users = [int(path.name.removeprefix("user-")) for path in cache_root().glob("user-*")]
    return [pid for pid in users if Path(f"/proc/{pid}").exists()]


@contextlib.contextmanager
def engine_in_use() -> t.Iterator[Engine]:
    """The engine, up while it is used without a lab."""
    require_root()
    engine = Engine()
    mark = cache_root() / f"user-{os.getpid()}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    with engine.lock():
        mark.touch()
    try:
        engine.start()
        yield engine
    finally:
        mark.unlink(missing_ok=True)
        stop_if_unused(engine)


def build_images() -> None:
    """Have every host image built and imported."""
    with engine_in_use() as engine:
        images.ensure(engine, set(images.FAMILIES))


def push_images(only: Iterable[str] | None = None) -> dict[str, str]:
    """Build the images of ``lab_images`` and have them in the registry; returns the digest of each."""
    with engine_in_use():
        registry = Registry()
        registry.start()
        lab_images = importlib.import_module("lab_images")
        built = lab_images.build_all() if only is None else lab_images.build_all(list(only))
        return {image.ref: registry.push(image.layers, image.ref, image.config) for image in built}


T = t.TypeVar("T")


def for_all(do: Callable[[T], object], things: Sequence[T]) -> None:
    """Do it for every one, a few at a time. The first error is raised when all have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for result in [pool.submit(do, thing) for thing in things]:
            result.result()
