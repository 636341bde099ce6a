# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``gpusim``: puts the kernel's side of the data file in place, and sets faults on a running host.

What programs ask for themselves (nvidia-smi, NVML, the hook) follows the data file at once. The rest is files that
others read, and ``gpusim apply`` writes them: at boot, before Docker, and whenever the data file changes
(``gpusim.path``).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import typing as t
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from nvidia_sim import ctk
from nvidia_sim.state import FAULTS, ORPHANS, SimError, State, data_path, read
from nvidia_sim.views import as_json, flat, kernel_log, pci_files, proc_files

# The programs of the container toolkit, and the function that is each.
TOOLKIT = {
    "nvidia-container-cli": "container:cli",
    "nvidia-container-runtime": "container:runtime",
    "nvidia-container-runtime-hook": "container:hook",
    "nvidia-ctk": "ctk:main",
    "nvidia-cdi-hook": "container:cdi_hook",
}
FABRIC_MANAGER = "nv-fabricmanager"
CDI = "etc/cdi/nvidia.yaml"
_HIDDEN = "usr/lib/gpusim/hidden"
_CONTROL_NODE = 255
_NVIDIA_MAJOR = 195
_KERNEL_ERROR = 3


# --------------------------------------------------------------------------------------------------------------------
# apply
# --------------------------------------------------------------------------------------------------------------------


def apply(root: Path) -> list[str]:
    """Write what the kernel and the boot would have; the result says what this host does not let us write."""
    with _alone(root):
        state = read(root)
        _link_library(root, state)
        _show(root, TOOLKIT, not state.missing_toolkit)
        _show(root, [FABRIC_MANAGER], state.fabric_version is not None)
        _mark_reboot(root, state)
        problems = [
            *_replace_tree(root, "proc/driver", "nvidia", proc_files(state)),
            *_replace_tree(root, "sys/bus/pci", "devices", pci_files(state)),
            *_make_nodes(root, state),
        ]
        _write_cdi(root, state)
        if root == Path("/") and Path("/run/systemd/system").is_dir():
            _run_daemons(state)
            _run_orphans(root, state)
        return problems + _log(root, state)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    directory = root / "run/gpusim"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _link_library(root: Path, state: State) -> None:
    """The library under its version: a CDI specification of another driver then names a file that is not there."""
    wanted = root / ctk.library(state.driver)
    for other in wanted.parent.glob("libnvidia-ml.so.*.*"):
        if other != wanted:
            other.unlink()
    if not wanted.is_symlink():
        wanted.symlink_to("../gpusim/libnvidia-ml.so")


def _mark_reboot(root: Path, state: State) -> None:
    """What Debian's packages leave behind that need one."""
    flag = root / "run/reboot-required"
    packages = flag.with_name("reboot-required.pkgs")
    if state.reboot_packages is None:
        # Only what was written here: a package may have wanted one as well.
        if packages.exists() and packages.read_text().startswith(_OURS):
            packages.unlink()
            flag.unlink(missing_ok=True)
        return
    flag.write_text("*** System restart required ***\n")
    packages.write_text("".join(f"{name}\n" for name in (_OURS, *state.reboot_packages)))


_OURS = "gpusim"


def _systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _run_daemons(state: State) -> None:
    persistent = not state.error and any(gpu.persistence_mode == "Enabled" for gpu in state.gpus)
    for unit, wanted in (("nvidia-fabricmanager", state.fabric_active), ("nvidia-persistenced", persistent)):
        # Without waiting: at boot this is itself a unit that others wait for.
        _systemctl("--no-block", "start" if wanted else "stop", f"{unit}.service")


def _run_orphans(root: Path, state: State) -> None:
    """Real processes, under the name that vLLM gives its own, with systemd as their parent."""
    path = root / ORPHANS
    pids: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    wanted = {str(orphan.gpu) for orphan in state.orphans}
    for gpu in set(pids) - wanted:
        _systemctl("stop", f"gpusim-orphan-{gpu}.service")
    for gpu in wanted:
        unit = f"gpusim-orphan-{gpu}.service"
        if _systemctl("is-active", unit) != "active":
            command = ["/bin/bash", "-c", 'exec -a "VLLM::EngineCore" sleep infinity']
            subprocess.run(["systemd-run", "--quiet", "--collect", f"--unit={unit}", *command], check=True)
        pids[gpu] = int(_systemctl("show", "--property=MainPID", "--value", unit) or 0)
    ctk.write(path, json.dumps({gpu: pid for gpu, pid in pids.items() if gpu in wanted}))


def fabric_manager(root: Path, arguments: list[str]) -> int:
    """``nv-fabricmanager --version``."""
    del arguments
    sys.stdout.write(f"Fabric Manager version is : {read(root).fabric_version}\n")
    return 0


def _show(root: Path, names: t.Iterable[str], visible: bool) -> None:
    shown, hidden = root / "usr/bin", root / _HIDDEN
    hidden.mkdir(parents=True, exist_ok=True)
    source, target = (hidden, shown) if visible else (shown, hidden)
    for name in names:
        if (source / name).exists():
            (source / name).replace(target / name)


def _replace_tree(root: Path, mounted: str, name: str, files: dict[str, str]) -> list[str]:
    """Files in a kernel file system: on a host, below a tmpfs of ours that hides the kernel's own directory."""
    # Of /sys/bus/pci the directory itself is hidden, of /proc/driver all.
    top, under = (root / mounted, name) if mounted.startswith("proc") else (root / mounted / name, "")
    if root == Path("/"):
        problem = _mount(top)
        if problem:
            return [problem]
    directory = top / under
    with contextlib.suppress(FileNotFoundError):
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if under:
            directory.rmdir()
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return []


def _mount(directory: Path) -> str | None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    if any(fields[:2] == ["gpusim", str(directory)] for fields in mounts):
        return None
    if not directory.is_dir():
        return f"{directory} is not there on this kernel: its files are left out"
    command = ["mount", "-t", "tmpfs", "-o", "mode=0755,size=1m", "gpusim", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{' '.join(command)} failed, so its files are left out: {done.stderr.strip()}" if done.returncode else None


def _make_nodes(root: Path, state: State) -> list[str]:
    """/dev/nvidia*, with the numbers that no other driver has: without NVIDIA's own, to open one is an error."""
    if root != Path("/"):
        return []
    nodes = {"nvidiactl": _CONTROL_NODE, **{f"nvidia{gpu.index}": gpu.index for gpu in state.gpus}}
    for name, minor in nodes.items():
        path = root / "dev" / name
        if path.exists():
            continue
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(_NVIDIA_MAJOR, minor))
            path.chmod(0o666)
        except OSError as error:
            return [f"mknod {path} failed, so there are no NVIDIA device nodes: {error.strerror}"]
    return []


def _write_cdi(root: Path, state: State) -> None:
    if not (root / "usr/bin/nvidia-ctk").exists() or state.error or not state.gpus or not state.write_cdi:
        return
    path = root / CDI
    text = ctk.render(ctk.stale(state, state.stale_cdi) if state.stale_cdi else state)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    ctk.write(path, text)


def _log(root: Path, state: State) -> list[str]:
    """Send the kernel's lines that are new to the journal. It takes them as kernel messages from the kernel alone, so
    ``journalctl -t kernel`` shows them and ``journalctl -k`` does not."""
    seen_path = root / "run/gpusim/logged.json"
    seen = json.loads(seen_path.read_text()) if seen_path.exists() else []
    lines = kernel_log(state)
    try:
        for line in lines:
            if list(line) not in seen:
                _syslog(root, line.text)
    except OSError as error:
        return [f"/dev/log takes no messages, so the journal has no NVRM lines (dmesg has): {error.strerror}"]
    seen_path.write_text(json.dumps(lines))
    return []


def _syslog(root: Path, text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(str(root / "dev/log"))
        for line in text.splitlines():
            connection.send(f"<{_KERNEL_ERROR}>kernel: {line}".encode())


# --------------------------------------------------------------------------------------------------------------------
# dmesg
# --------------------------------------------------------------------------------------------------------------------


def dmesg(root: Path, arguments: list[str]) -> int:
    """``dmesg``, of the host that is simulated: the kernel's own ring belongs to the machine below it."""
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    human = any(argument in ("-T", "--ctime") for argument in arguments)
    for when, text in kernel_log(read(root)):
        moment = datetime.fromisoformat(when).timestamp() if when else started
        stamp = time.ctime(moment) if human else f"{max(0.0, moment - started):12.6f}"
        sys.stdout.write("".join(f"[{stamp}] {line}\n" for line in text.splitlines()))
    return 0


# --------------------------------------------------------------------------------------------------------------------
# gpusim
# --------------------------------------------------------------------------------------------------------------------


def _edit_faults(root: Path, change: t.Callable[[dict[str, t.Any]], None]) -> None:
    path = data_path(root)
    data = json.loads(path.read_text())
    before = json.dumps(data)
    change(data.setdefault("faults", {}))
    ctk.write(path, json.dumps(data, indent=2) + "\n")
    try:
        read(root)
    except (SimError, TypeError, ValueError):
        ctk.write(path, before)
        raise


def _set_fault(root: Path, name: str, value: str) -> None:
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    _edit_faults(root, lambda faults: faults.update({name: parsed}))


def _clear_faults(root: Path, names: list[str]) -> None:
    unknown = sorted(set(names) - set(FAULTS))
    if unknown:
        raise SimError(f"no fault is called {', '.join(unknown)}", f"some of {', '.join(FAULTS)}", "correct the name")

    def clear(faults: dict[str, t.Any]) -> None:
        for name in names or list(faults):
            faults.pop(name, None)

    _edit_faults(root, clear)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpusim", description="The simulated GPUs of this host.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("apply", help="write what the kernel and the boot would have")
    commands.add_parser("show", help="the full state, as JSON")
    commands.add_parser("state", help="the full state, as the NVML library reads it")
    listing = "; ".join(f"{name}: {meaning}" for name, meaning in FAULTS.items())
    fault = commands.add_parser("fault", help="set a fault and apply it", epilog=listing.replace("%", "%%"))
    fault.add_argument("name", choices=FAULTS)
    fault.add_argument("value", nargs="?", default="true", help="JSON; true unless given")
    clear = commands.add_parser("clear", help="clear these faults, or all, and apply that")
    clear.add_argument("names", nargs="*")
    return parser


def main(root: Path, arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.command in ("show", "state"):
        sys.stdout.write((as_json if options.command == "show" else flat)(read(root)))
        return 0
    if options.command == "fault":
        _set_fault(root, options.name, options.value)
    elif options.command == "clear":
        _clear_faults(root, options.names)
    for problem in apply(root):
        sys.stderr.write(f"gpusim: {problem}\n")
    return 0
