# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hub as a process of its own: start, stop and status, each safe to repeat.

The state directory holds ``hub.json`` (what was started), ``hub.pid``, ``hub.log`` (start-up and errors) and ``lock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .server import HEALTH_PATH, HUB_NAME

START_SECONDS = 20.0
STOP_SECONDS = 10.0
TOKEN_VARIABLE = "MODEL_HUB_TOKEN"
"""Environment variable that hands the token to the served process: a command line is for everyone to read."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DaemonError(Exception):
    """The hub could not be started or stopped; the text says what was seen and what to do."""


@dataclass(frozen=True)
class State:
    """A hub that was started from a state directory. ``instance`` is on its command line and tells it from others."""

    pid: int
    instance: str
    endpoint: str
    root: str


def start(
    root: Path, host: str, port: int, state_dir: Path, extra: Sequence[str] = (), token: str | None = None
) -> tuple[State, bool]:
    """Run ``model_hub serve`` detached and wait until it answers.

    Returns its state, and False where a healthy hub over the same root was there already. ``extra`` are further
    arguments of ``serve``. Raises DaemonError.
    """
    root = root.resolve()
    if not root.is_dir():
        raise DaemonError(f"{root} is not a directory. Expected: a hub root; make one with 'model_hub add'.")
    state_dir.mkdir(parents=True, exist_ok=True)
    with _locked(state_dir / "lock"):
        found = _running(state_dir, root, host, port) or _foreign(root, host, port)
        if found is not None:
            return found, False
        return _spawn(root, host, port, state_dir, extra, token), True


def stop(state_dir: Path) -> State | None:
    """Stop the hub that was started from ``state_dir``; returns it, or None where none runs. Raises DaemonError."""
    if not state_dir.is_dir():
        return None
    with _locked(state_dir / "lock"):
        state = _read(state_dir)
        running = state is not None and _is_ours(state)
        if state is not None and running:
            _terminate(state)
        for name in ("hub.json", "hub.pid"):
            (state_dir / name).unlink(missing_ok=True)
        return state if running else None


def status(state_dir: Path) -> tuple[State | None, bool]:
    """The hub started from ``state_dir``, if its process lives, and whether it answers."""
    state = _read(state_dir)
    if state is None or not _is_ours(state):
        return None, False
    health = _health(state.endpoint)
    return state, health is not None and health.get("instance") == state.instance


def _running(state_dir: Path, root: Path, host: str, port: int) -> State | None:
    """The live hub of this state directory, if it is the one asked for."""
    state = _read(state_dir)
    if state is None or not _is_ours(state):
        return None
    same_place = port == 0 or state.endpoint == _endpoint(host, port)
    if state.root == str(root) and same_place and _health(state.endpoint) is not None:
        return state
    raise DaemonError(
        f"{state_dir} belongs to a running hub at {state.endpoint} over {state.root} (pid {state.pid}). "
        f"Expected: none, or one at {_endpoint(host, port)} over {root}. "
        f"Stop it first: model_hub stop --state {state_dir}"
    )


def _foreign(root: Path, host: str, port: int) -> State | None:
    """A healthy hub over the same root that something else started on that port. Raises where another server is."""
    if port == 0:
        return None
    endpoint = _endpoint(host, port)
    health = _health(endpoint)
    if health is None:
        return None
    if health.get("hub") != HUB_NAME:
        raise DaemonError(f"{endpoint} is answered by something that is no model hub. {_OTHER_PORT}")
    if health.get("root") != str(root):
        raise DaemonError(f"{endpoint} is a model hub over {health.get('root')}, not over {root}. {_OTHER_PORT}")
    return State(int(health["pid"]), str(health["instance"]), endpoint, str(root))


_OTHER_PORT = "Stop it, or choose another --port."


def _spawn(root: Path, host: str, port: int, state_dir: Path, extra: Sequence[str], token: str | None) -> State:
    instance = secrets.token_hex(8)
    ready = state_dir / f"ready-{instance}"
    command = [sys.executable, "-m", __package__, "serve", "--root", str(root), "--host", host, "--port", str(port)]
    command += ["--instance", instance, "--ready-file", str(ready.resolve()), *extra]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    environment.pop(TOKEN_VARIABLE, None)
    if token is not None:
        environment[TOKEN_VARIABLE] = token
    log = state_dir / "hub.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    try:
        endpoint = _wait(process, ready, log)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        ready.unlink(missing_ok=True)
    state = State(process.pid, instance, endpoint, str(root))
    process.returncode = 0  # it lives on by design: no warning about a child left behind
    _replace(state_dir / "hub.json", json.dumps(asdict(state)) + "\n")
    _replace(state_dir / "hub.pid", f"{state.pid}\n")
    return state


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    """The endpoint of the started hub, once it answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise DaemonError("the hub did not start: " + (" ".join(tail) or f"exit {process.returncode}"))
        if ready.is_file():
            endpoint = ready.read_text(encoding="utf-8").strip()
            if _health(endpoint) is not None:
                return endpoint
        time.sleep(0.02)
    raise DaemonError(f"the hub did not answer within {START_SECONDS:.0f} s. See {log}")


def _terminate(state: State) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _is_ours(state):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL)
            deadline += STOP_SECONDS
        time.sleep(0.02)


def _is_ours(state: State) -> bool:
    """Whether the process still runs and is the hub we started: a pid alone may belong to anyone by now."""
    try:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(state.pid, os.WNOHANG)  # where start and stop run in one process, the hub is our child
        command = Path(f"/proc/{state.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return state.instance.encode() in command


def _read(state_dir: Path) -> State | None:
    try:
        value = json.loads((state_dir / "hub.json").read_text(encoding="utf-8"))
        return State(int(value["pid"]), str(value["instance"]), str(value["endpoint"]), str(value["root"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _health(endpoint: str) -> dict[str, Any] | None:
    """What the hub at ``endpoint`` says of itself; ``{}`` for a server that is no hub, None for none at all."""
    try:
        with _DIRECT.open(endpoint + HEALTH_PATH, timeout=3) as answer:
            value = json.loads(answer.read(65536))
    except urllib.error.HTTPError:
        return {}
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    return value if isinstance(value, dict) else {}


def _endpoint(host: str, port: int) -> str:
    return f"http://{host}:{port}"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
