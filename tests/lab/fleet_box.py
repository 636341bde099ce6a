# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host to deploy to in tests: this machine, a root of its own, the simulator as engine, and the real playbooks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
SUPERVISOR_LOCK = REPOSITORY / "roles/vllm_runtime/files/supervisor.txt"
MODEL = "acme/tiny"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def controller_environment(**extra: str) -> dict[str, str]:
    """What ansible-playbook gets: the repository's configuration, and nothing of the caller's fleet variables."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "GPUFLEET_", "VLLM_"))
    }
    return {
        **kept,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
        **extra,
    }


def make_model(directory: Path, seed: int = 1, architecture: str = "LlamaForCausalLM", **config: object) -> Path:
    """A model directory that the simulator can serve: a config and some bytes of weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    (directory / "model.safetensors").write_bytes(random.Random(seed).randbytes(2_000_000))
    return directory


@dataclass(frozen=True)
class Run:
    """One ansible-playbook: its exit status, what it printed, and the recap of each host."""

    rc: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        names = ("ok", "changed", "unreachable", "failed")
        return {
            match[1]: dict(zip(names, (int(number) for number in match.groups()[1:]), strict=True))
            for match in RECAP.finditer(self.output)
        }

    @property
    def changed(self) -> int:
        return sum(host["changed"] for host in self.recap.values())


def supervisor_environment() -> Path:
    """A virtual environment with what the role's lock names, made once for each lock and interpreter."""
    # Of tests/tools, which programs that need no such host have not on their path.
    from lanes import cached_environment
    from tree import cache_dir

    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return cached_environment("supervisor", SUPERVISOR_LOCK, Path(sys.executable)).parent


def copy_environment(source: Path, target: Path) -> None:
    """The same virtual environment in another place: hard links, but for the commands, which name their interpreter."""
    shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy)
    for command in (target / "bin").iterdir():
        if command.is_symlink() or not command.is_file():
            continue
        first, newline, rest = command.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and os.fsencode(source) in first:
            mode = command.stat().st_mode
            command.unlink()
            command.write_bytes(first.replace(os.fsencode(source), os.fsencode(target)) + newline + rest)
            command.chmod(mode)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@dataclass
class Box:
    """One host. ``variables`` are its inventory variables; a context manager that leaves nothing behind.

    ``python`` is the interpreter of the host, for Ansible's modules and for the engine.
    """

    hub: str
    name: str = "box"
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="gf-", dir="/tmp")))
    variables: dict[str, t.Any] = field(default_factory=dict)
    python: str = sys.executable

    def __post_init__(self) -> None:
        self.engine = self.directory / "engine"
        self.faults = self.directory / "faults.json"
        self.report_file = self.directory / "report.json"
        self._make_engine()

    @property
    def root(self) -> Path:
        """The host's ``vllm_root``, as a test reads it. Short on purpose: a Unix socket lies below it."""
        return self.directory / "root"

    @property
    def vllm_root(self) -> str:
        """The same, as the host names it."""
        return str(self.root)

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        pid_file = self.root / "supervisor" / "supervisord.pid"
        if pid_file.exists():
            run = self.play("teardown")
            assert run.rc == 0, run.output
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make_engine(self) -> None:
        vllm = self.engine / "bin" / "vllm"
        vllm.parent.mkdir(parents=True)
        # A copy: the service's user may not be able to read the checkout.
        shutil.copytree(REPOSITORY / "tests/lab/engine_sim", self.engine / "lib/engine_sim")
        vllm.write_text(f'#!/bin/sh\nPYTHONPATH={self.engine / "lib"} exec {self.python} -m engine_sim "$@"\n')
        vllm.chmod(0o755)

    def give_supervisor(self) -> None:
        """Let the host have supervisor, as after an earlier deploy: installing it takes longer than all else.

        Where a test is about a host on which nothing was ever done, do without.
        """
        venv = self.root / "supervisor" / "venv"
        venv.parent.mkdir(parents=True, mode=0o755)
        venv.parent.chmod(0o700)
        copy_environment(supervisor_environment(), venv)
        wanted = SUPERVISOR_LOCK.read_text(encoding="utf-8").rstrip()
        (venv / "gpufleet-requirements").write_text(hashlib.sha256(wanted.encode()).hexdigest() + "\n")

    def service(self, name: str, **extra: t.Any) -> dict[str, t.Any]:
        return {"name": name, "model": MODEL, "port": free_port(), "drain_seconds": 1, **extra}

    def break_engine(self, **faults: t.Any) -> None:
        """Make the simulator misbehave from now on; without arguments it is well again."""
        self.faults.write_text(json.dumps(faults))

    def inventory(self, services: t.Any, **variables: t.Any) -> Path:
        path = self.directory / "hosts.json"
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": self.python,
            "vllm_root": self.vllm_root,
            "vllm_runtime": "supervisor",
            "vllm_allow_cpu": True,
            "vllm_engine_managed": False,
            "vllm_engine_path": str(self.engine),
            "vllm_hub_endpoint": self.hub,
            "vllm_ready_timeout": 60,
            "vllm_report_path": str(self.report_file),
            "vllm_default_environment": {"ENGINE_SIM_FAULTS": str(self.faults)},
            "vllm_services": services,
            **self.variables,
            **variables,
        }
        path.write_text(json.dumps({"gpu_hosts": {"hosts": {self.name: host}}}))
        return path

    def play(self, playbook: str, services: t.Any = (), *arguments: str, **variables: t.Any) -> Run:
        inventory = self.inventory(list(services) if isinstance(services, tuple) else services, **variables)
        return play(playbook, inventory, *arguments, inside=self.inside())

    def inside(self) -> list[str]:
        """What stands before a command so that it runs on the host; nothing, where the host is this machine."""
        return []

    def deploy(self, services: t.Any, *arguments: str, **variables: t.Any) -> Run:
        return self.play("deploy", services, *arguments, **variables)

    def report(self) -> dict[str, t.Any]:
        """The JSON report of the last run."""
        document: dict[str, t.Any] = json.loads(self.report_file.read_text())
        return document

    def plan(self) -> dict[str, t.Any]:
        document: dict[str, t.Any] = json.loads((self.root / "plan.json").read_text())
        return document

    def pid(self, service: str) -> int | None:
        """The main process of a service, from supervisor itself."""
        shown = subprocess.run(
            [self.root / "supervisor/venv/bin/supervisorctl", "-c", self.root / "supervisor/supervisord.conf",
             "pid", service],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        text = shown.stdout.strip()
        return int(text) if text.isdigit() and int(text) else None


def play(
    playbook: str,
    inventory: Path,
    *arguments: str,
    inside: t.Sequence[str] = (),
    timeout: float = 300,
    **environment: str,
) -> Run:
    """Run a playbook of the collection by its name, as an installed collection is run; ``inside`` is a host's."""
    command = [
        *inside,
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        str(inventory),
        f"gpufleet.vllm.{playbook}",
        *arguments,
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=controller_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout)


@contextlib.contextmanager
def listening(port: int) -> t.Iterator[None]:
    """Something else on a port."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen()
        yield


def cut_connection(directory: Path, module: str, times: int) -> dict[str, object]:
    """Variables of a host whose SSH connection is cut so many times when a module is to run.

    The real ssh connection plugin over a stand-in for the program, which runs the command here, or is cut.
    """
    ssh, cuts = directory / "ssh", directory / "cuts"
    ssh.write_text(
        f"""#!/bin/sh
for last; do :; done
case "$last" in *AnsiballZ_{module}.py*)
    if [ -s {cuts} ]; then
        sed -i 1d {cuts}
        echo 'Connection to gpu-01 closed by remote host.' >&2
        exit 255
    fi
esac
exec /bin/sh -c "$last"
"""
    )
    ssh.chmod(0o755)
    cuts.write_text("once\n" * times)
    # Without pipelining the command names the module's file.
    return {
        "ansible_connection": "ssh", "ansible_ssh_executable": str(ssh), "ansible_ssh_transfer_method": "piped",
        "ansible_pipelining": False,
    }  # fmt: skip
