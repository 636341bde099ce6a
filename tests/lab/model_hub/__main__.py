# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m model_hub``: import models, serve them, and run the hub in the background."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import daemon
from .faults import FaultError
from .server import Access, Hub
from .store import DEFAULT_DATE, StoreError, add_model

NOT_RUNNING = 3
"""Exit status of ``status`` where no hub runs, as init scripts have it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (StoreError, FaultError, daemon.DaemonError) as error:
        print(f"model_hub: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model_hub", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser("add", help="import a directory as the head of a branch; repeating it changes nothing")
    add.add_argument("--root", type=Path, required=True, help="the hub's directory; made when missing")
    add.add_argument("--model", required=True, metavar="OWNER/NAME")
    add.add_argument("--from", type=Path, required=True, dest="source", metavar="DIR")
    add.add_argument("--branch", default="master")
    add.add_argument("--tag")
    add.add_argument("--copy", action="store_true", help="copy the bytes instead of hard-linking them")
    add.add_argument("--date", type=int, default=DEFAULT_DATE, metavar="EPOCH", help="commit date")
    add.set_defaults(run=_add)

    serve = commands.add_parser("serve", help="serve in the foreground until SIGTERM or Ctrl-C")
    _serving(serve)
    serve.add_argument("--instance", default="", help=argparse.SUPPRESS)
    serve.add_argument("--ready-file", type=Path, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)

    start = commands.add_parser("start", help="serve in the background; nothing where the same hub already answers")
    _serving(start)
    start.add_argument("--state", type=Path, required=True, metavar="DIR", help="keeps pid and log")
    start.set_defaults(run=_start)

    for name, run, text in (("stop", _stop, "stop the background hub"), ("status", _status, "is it running?")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--state", type=Path, required=True, metavar="DIR")
        command.set_defaults(run=run)
    return parser


def _serving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="JSON file of faults; read again when it changes")
    parser.add_argument("--log", type=Path, metavar="FILE", help="one JSON object per request")
    parser.add_argument("--lfs-base", metavar="URL", help="base of the signed URLs, as http://localhost:{port}")
    parser.add_argument("--token", help=f"accepted token; better in the environment, as {daemon.TOKEN_VARIABLE}")
    parser.add_argument("--private", action="append", default=[], metavar="OWNER/NAME", help="needs the token")
    parser.add_argument("--gated", action="append", default=[], metavar="OWNER/NAME", help="refused to everyone")


def _add(arguments: argparse.Namespace) -> int:
    added = add_model(
        arguments.root,
        arguments.model,
        arguments.source,
        branch=arguments.branch,
        tag=arguments.tag,
        copy=arguments.copy,
        date=arguments.date,
    )
    return _say(asdict(added))


def _serve(arguments: argparse.Namespace) -> int:
    token = arguments.token or os.environ.get(daemon.TOKEN_VARIABLE)
    access = Access(tokens=[token] if token else [], private=arguments.private, gated=arguments.gated)
    if access.private and not token:
        raise StoreError("--private without a token: nobody could read it. Give --token or " + daemon.TOKEN_VARIABLE)
    try:
        hub = Hub(
            arguments.root,
            host=arguments.host,
            port=arguments.port,
            access=access,
            faults_file=arguments.faults,
            log=arguments.log,
            lfs_base=arguments.lfs_base,
            instance=arguments.instance,
        )
    except OSError as error:
        raise StoreError(_bind_text(arguments, error)) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        # From another thread: shutdown waits for the loop that this handler interrupts.
        signal.signal(number, lambda *_: threading.Thread(target=hub.stop, daemon=True).start())
    print(f"model hub at {hub.endpoint} over {hub.root}", flush=True)
    if arguments.ready_file:
        partial = arguments.ready_file.with_name(arguments.ready_file.name + ".new")
        partial.write_text(hub.endpoint, encoding="utf-8")
        partial.replace(arguments.ready_file)
    hub.serve_forever()
    hub.close()
    return 0


def _bind_text(arguments: argparse.Namespace, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {arguments.port} of {arguments.host} is taken by another program. Choose another --port."
    return f"cannot serve at {arguments.host}:{arguments.port}: {error}"


def _start(arguments: argparse.Namespace) -> int:
    extra: list[str] = []
    for option in ("faults", "log"):
        path = getattr(arguments, option)
        extra += [f"--{option}", str(path.resolve())] if path else []
    extra += ["--lfs-base", arguments.lfs_base] if arguments.lfs_base else []
    for option in ("private", "gated"):
        for model in getattr(arguments, option):
            extra += [f"--{option}", model]
    token = arguments.token or os.environ.get(daemon.TOKEN_VARIABLE)
    state, changed = daemon.start(arguments.root, arguments.host, arguments.port, arguments.state, extra, token)
    return _say({**asdict(state), "changed": changed})


def _stop(arguments: argparse.Namespace) -> int:
    state = daemon.stop(arguments.state)
    return _say({"changed": state is not None, "pid": state.pid if state else None})


def _status(arguments: argparse.Namespace) -> int:
    state, healthy = daemon.status(arguments.state)
    _say({"running": state is not None, "healthy": healthy, **(asdict(state) if state else {})})
    return 0 if healthy else NOT_RUNNING


def _say(value: dict[str, Any]) -> int:
    print(json.dumps(value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
