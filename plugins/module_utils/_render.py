# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Rendering: services into argument vectors, shell text, systemd units and supervisor programs. Pure, no I/O."""

from __future__ import annotations

import json
import posixpath
import shlex
import typing as t

# After a boot nothing may have made /dev/nvidia-uvm yet, and the unit's own CUDA may not: its setuid helper has no
# privileges there. So root makes the nodes first; without the helper (drivers that bring none) nothing is lost.
DEVICE_NODES = "ExecStartPre=+-/usr/bin/nvidia-modprobe -c 0 -u\n"
MANAGED = "Managed by gpufleet.vllm: changes made here are overwritten by the next deploy."


def flag(name: str, value: t.Any) -> list[str]:
    """One vLLM flag as arguments.

    ``True`` is the bare flag, ``False`` its ``--no-`` form, a mapping is JSON, a list repeats values behind one flag
    (argparse ``nargs``), each JSON where it is a mapping itself; everything else is its text.
    """
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    if isinstance(value, dict):
        return [f"--{name}", _text(value)]
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(_text, value)]
    return [f"--{name}", str(value)]


def _text(value: t.Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True) if isinstance(value, dict) else str(value)


def flags(arguments: t.Mapping[str, t.Any]) -> list[list[str]]:
    return [flag(name, value) for name, value in arguments.items()]


def shell_command(
    environment: t.Mapping[str, str],
    command: t.Sequence[str],
    options: t.Sequence[t.Sequence[str]],
) -> str:
    """The command as a person types it: environment first, then one option a line::

        CUDA_VISIBLE_DEVICES=2 \\
        vllm serve /data/models/vlm/whisper-large-v3 \\
            --port 8081
    """
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(shlex.join(command))
    lines += ["    " + shlex.join(option) for option in options]
    return " \\\n".join(lines)


STARTED = "=== gpufleet.vllm: a new process starts here ==="


def launch_script(environment_file: str, command: t.Sequence[str], state: str = "") -> str:
    """A script that starts the service in the foreground: what supervisor runs, and what a person can run by hand.

    Nothing of the environment that it is started from reaches the service. Workers that outlived a killed engine, which
    hold its memory, are ended first: they work in its ``state`` directory and have no terminal, as a person would.
    """
    return f"""#!/bin/sh
# {MANAGED}
[ -n "${{GPUFLEET_CLEAN-}}" ] || exec env -i GPUFLEET_CLEAN=1 SUPERVISOR_SERVER_URL="${{SUPERVISOR_SERVER_URL-}}" \\
    SUPERVISOR_PROCESS_NAME="${{SUPERVISOR_PROCESS_NAME-}}" /bin/sh "$0"
[ -z "$SUPERVISOR_PROCESS_NAME" ] || echo {shlex.quote(STARTED)}
{_end_leftovers(state) if state else ""}set -a
. {shlex.quote(environment_file)}
set +a
exec {shlex.join(command)}
"""


def _end_leftovers(state: str) -> str:
    return f"""for process in /proc/[0-9]*; do
    [ "$process" != "/proc/$$" ] && read -r stat 2>/dev/null <"$process/stat" || continue
    set -- ${{stat##*) }}
    [ "$5" = 0 ] && [ "$(readlink "$process/cwd" 2>/dev/null)" = {shlex.quote(state)} ] || continue
    kill -KILL "${{process#/proc/}}" 2>/dev/null
done
"""


def environment_text(environment: t.Mapping[str, str]) -> str:
    """An environment file that both a POSIX shell and systemd's ``EnvironmentFile=`` read alike.

    Values stand in single quotes where they need any; a single quote inside is written ``'\\''`` for the shell, which
    systemd does not read, so such values are double-quoted instead, with the characters special to either escaped.
    """
    return "".join(f"{name}={_environment_quote(value)}\n" for name, value in environment.items())


def _environment_quote(value: str) -> str:
    if "'" not in value:
        return shlex.quote(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
    return f'"{escaped}"'


def systemd_quote(argument: str) -> str:
    """One word of ``ExecStart=``: ``%`` and ``$`` doubled against specifiers and variables, the rest C-quoted.

    A line break would end the setting, and what follows it would be read as settings of its own.
    """
    escaped = _systemd_escape(argument).replace("$", "$$")
    for char, written in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        escaped = escaped.replace(char, written)
    return f'"{escaped}"' if escaped != argument or not argument or any(c in argument for c in " \t';#") else argument


def _systemd_escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def systemd_path(path: str) -> str:
    """One of a list of paths (``ReadWritePaths=``), which spaces would part."""
    escaped = _systemd_escape(path)
    return f'"{escaped}"' if escaped != path or any(c in path for c in " \t'") else path


def systemd_text(value: str) -> str:
    """A free text setting of a unit (``Description=``), where only ``%`` is special."""
    return value.replace("%", "%%")


def systemd_unit(
    service: t.Mapping[str, t.Any],
    paths: t.Mapping[str, str],
    user: str,
    group: str,
    digest: str,
) -> str:
    """The hardened unit of one service.

    ``service`` is an entry of the plan, ``paths`` has ``root``, ``state`` (the one directory that the service may
    write) and ``environment`` (the 0600 file that systemd reads as root). Not set, on purpose: ``PrivateDevices`` and
    ``ProtectClock`` (the first hides /dev/nvidia*, and so does the second before systemd 253, since it brings a
    ``DeviceAllow`` along: https://github.com/systemd/systemd/issues/18142), ``MemoryDenyWriteExecute`` and
    ``SystemCallFilter`` (CUDA and torch compile code while they run). ``ReadOnlyPaths=/run`` is needed beside
    ``ProtectSystem=strict``: with ``ProtectControlGroups`` or ``ProtectKernelTunables`` systemd sets up /run itself and
    leaves it, and /run/lock, writable. Sockets below it can still be connected to.
    """
    title = systemd_text(f"vLLM service {service['name']} ({service['model']})")
    command = " ".join(systemd_quote(word) for word in service["command"])
    return f"""# {MANAGED}
# root={paths["root"]}
# digest={digest}
[Unit]
Description={title}
Documentation=https://docs.vllm.ai/
Wants=network-online.target
After=network-online.target nvidia-persistenced.service nvidia-fabricmanager.service
StartLimitIntervalSec=30min
StartLimitBurst=5

[Service]
Type=exec
User={user}
Group={group}
UMask=0077
WorkingDirectory={systemd_text(paths["state"])}
EnvironmentFile={systemd_text(paths["environment"])}
{DEVICE_NODES if service.get("device") == "cuda" else ""}ExecStart={command}
Restart=always
RestartSec=10
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={service["stop_timeout"]}
LimitNOFILE=1048576
LimitMEMLOCK=infinity
OOMPolicy=stop
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
ReadOnlyPaths=/run
ReadWritePaths={systemd_path(paths["state"])}
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def supervisor_escape(value: str) -> str:
    """supervisor expands ``%(name)s`` in every value of its configuration."""
    return value.replace("%", "%%")


def supervisor_config(paths: t.Mapping[str, str]) -> str:
    """The configuration of the one supervisord of a root; programs are included from ``conf.d``.

    ``paths["programs"]`` lies beside the configuration, and is named from there: supervisor parts the patterns of
    ``files`` at spaces, which a root may have.
    """
    base = {name: supervisor_escape(path) for name, path in paths.items()}
    return f"""; {MANAGED}
[unix_http_server]
file={base["socket"]}
chmod=0700

[supervisord]
logfile={base["log"]}
logfile_maxbytes=10MB
logfile_backups=2
pidfile={base["pid"]}
directory={base["root"]}
umask=077

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{base["socket"]}

[include]
files={posixpath.basename(base["programs"])}/*.conf
"""


def supervisor_program(service: t.Mapping[str, t.Any], paths: t.Mapping[str, str], digest: str) -> str:
    """One program. The digest stands in its environment, so that supervisor sees any change of the service as a change.

    Only the main process gets SIGTERM (it drains, then stops its workers); what is left of the group after
    ``stopwaitsecs`` is killed.
    """
    # supervisor expands this one value twice (its options.py, _processes_from_section).
    log = supervisor_escape(supervisor_escape(paths["log"]))
    return f"""; {MANAGED}
[program:{service["name"]}]
command=/bin/sh {supervisor_escape(shlex.quote(paths["script"]))}
directory={supervisor_escape(paths["state"])}
environment=GPUFLEET_DIGEST="{digest}"
autostart=true
autorestart=true
startsecs=5
startretries=3
stopsignal=TERM
stopasgroup=false
killasgroup=true
stopwaitsecs={service["stop_timeout"]}
redirect_stderr=true
stdout_logfile={log}
stdout_logfile_maxbytes=50MB
stdout_logfile_backups=3
"""
