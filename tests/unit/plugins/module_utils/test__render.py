# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import configparser
import json
import os
import shlex
import stat
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _render
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NASTY = [
    "",
    " ",
    "plain",
    "two words",
    "it's",
    '"double"',
    "'",
    "''",
    "'\"'\"'",
    "$HOME ${HOME} $(id) $$",
    "`id`",
    "it's $HOME and `id` and \\n",
    "back\\slash\\",
    "it's a back\\slash\\",
    "100% %h %% %(ENV_HOME)s",
    "; # not a comment",
    "tab\there",
    "!history !!",
    "* ? [a-z] ~ {a,b}",
    "a=b&c|d<e>f",
    "Qwen2.5-VL 模型 🦙 é",
    '{"image":4,"video":0}',
    "-n",
    "\\",
    "\\'",
]
# What the service spec lets through: anything on one line that UTF-8 can hold.
ONE_LINE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\t"), max_size=40)
ARGUMENT = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PRINT = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def sh(*arguments: str) -> str:
    done = subprocess.run(
        ["/bin/sh", *arguments], env={"PATH": os.defpath}, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stderr == ""
    return done.stdout


def launched(directory: Path, environment: dict[str, str], arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments and environment that a service is started with by its launch script."""
    file = directory / "it's the $environment"
    file.write_text(_render.environment_text(environment), encoding="utf-8")
    script = directory / "run.sh"
    script.write_text(_render.launch_script(str(file), [sys.executable, "-c", PRINT, *arguments]), encoding="utf-8")
    argv, seen = json.loads(sh(str(script)))
    return argv, seen


# -- flags


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, ["--x"]),
        (False, ["--no-x"]),
        (0, ["--x", "0"]),
        (1, ["--x", "1"]),
        (0.5, ["--x", "0.5"]),
        ("auto", ["--x", "auto"]),
        ("", ["--x", ""]),
        ("True", ["--x", "True"]),
        ({"b": 1, "a": [True, None]}, ["--x", '{"a":[true,null],"b":1}']),
        (["a", 1], ["--x", "a", "1"]),
        (("a",), ["--x", "a"]),
        ([{"name": "a"}, "b"], ["--x", '{"name":"a"}', "b"]),
    ],
)
def test_flag(value: t.Any, expected: list[str]) -> None:
    assert _render.flag("x", value) == expected


def test_flags_keep_their_order() -> None:
    assert _render.flags({"b": 1, "a": True}) == [["--b", "1"], ["--a"]]


# -- shell


def test_shell_command_reads_as_a_person_types_it() -> None:
    text = _render.shell_command({"CUDA_VISIBLE_DEVICES": "2"}, ["vllm", "serve", "/m"], [["--port", "1"], ["--x"]])
    assert text == "CUDA_VISIBLE_DEVICES=2 \\\nvllm serve /m \\\n    --port 1 \\\n    --x"


def test_shell_command_means_what_it_says() -> None:
    text = _render.shell_command({"A": NASTY[11], "B": "1"}, [sys.executable, "-c", PRINT], [["--x", n] for n in NASTY])
    argv, environment = json.loads(sh("-c", text))
    assert argv == [word for nasty in NASTY for word in ("--x", nasty)]
    assert (environment["A"], environment["B"]) == (NASTY[11], "1")


def test_launch_script_round_trip(tmp_path: Path) -> None:
    wanted = {f"V{number}": value for number, value in enumerate(NASTY)}
    arguments = [*NASTY, "two\nlines"]
    argv, environment = launched(tmp_path, wanted, arguments)
    assert argv == arguments
    assert {name: environment[name] for name in wanted} == wanted


@SLOW
@given(st.lists(ONE_LINE, max_size=5), st.lists(ARGUMENT, max_size=5))
def test_any_launch_script_round_trip(tmp_path: Path, values: list[str], arguments: list[str]) -> None:
    wanted = {f"V{number}": value for number, value in enumerate(values)}
    argv, environment = launched(tmp_path, wanted, arguments)
    assert argv == arguments
    assert {name: environment[name] for name in wanted} == wanted


def test_launch_script_replaces_the_shell_and_exports_to_it_alone(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("A=1\n")
    text = _render.launch_script(str(tmp_path / "environment"), ["/bin/sh", "-c", 'echo "$A $$ $PPID"'])
    (tmp_path / "run.sh").write_text(text)
    shell = subprocess.Popen(["/bin/sh", str(tmp_path / "run.sh")], stdout=subprocess.PIPE, text=True)
    assert shell.communicate()[0].split() == ["1", str(shell.pid), str(os.getpid())]
    assert text.startswith(f"#!/bin/sh\n# {_render.MANAGED}\n")


# -- the environment file as systemd reads it


def systemd_environment(text: str) -> dict[str, str]:
    """An ``EnvironmentFile=`` as systemd.exec(5) and its parser (src/basic/env-file.c) read it, one line a variable.

    Single quotes take all as it is; in double quotes a backslash escapes one of ``"\\`$`` and stays otherwise; nothing
    is expanded.
    """
    found = {}
    for line in text.splitlines():
        name, _equals, rest = line.partition("=")
        value, quote, position = "", "", 0
        while position < len(rest):
            char = rest[position]
            following = rest[position + 1 : position + 2]
            if char == quote:
                quote = ""
            elif quote == "'":
                value += char
            elif char == "\\" and quote:
                value += following if following in '"\\`$' else char + following
                position += 1
            elif char in "'\"" and not quote:
                quote = char
            else:
                assert quote or char not in "\\ \t;#", f"not in quotes: {line}"
                value += char
            position += 1
        assert not quote, line
        found[name] = value
    return found


@pytest.mark.parametrize("value", NASTY)
def test_systemd_reads_an_environment_file_like_a_shell(value: str) -> None:
    assert systemd_environment(_render.environment_text({"A": value})) == {"A": value}


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]*", fullmatch=True), ONE_LINE, max_size=4))
def test_any_environment_is_one_line_a_variable_to_systemd(environment: dict[str, str]) -> None:
    text = _render.environment_text(environment)
    assert text.count("\n") == len(environment)
    lines = text.split("\n")[:-1]
    assert {name: value for line in lines for name, value in systemd_line(line).items()} == environment


def systemd_line(line: str) -> dict[str, str]:
    # splitlines() parts at more than systemd does.
    return systemd_environment(line) if len(line.splitlines()) <= 1 else dict([_unquoted(line)])


def _unquoted(line: str) -> tuple[str, str]:
    name, _equals, rest = line.partition("=")
    return name, shlex.split(rest)[0]


# -- units


def systemd_words(text: str) -> list[str]:
    """``ExecStart=`` as systemd.service(5) and systemd.syntax(7) read it: words, C escapes, ``%%``, ``$$``.

    Any specifier or variable in it is an error: nothing of ours names one.
    """
    words: list[str] = []
    position, current, quote = 0, None, ""
    escapes = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'"}
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
            current = (current or "") + escapes[text[position]]
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote and current is None:
            quote, current = char, ""
        elif char == " " and not quote:
            words += [] if current is None else [current]
            current = None
        else:
            assert quote or char not in "\t'\"", text
            current = (current or "") + char
        position += 1
    assert not quote
    words += [] if current is None else [current]
    return [_doubled(_doubled(word, "%"), "$") for word in words]


def _doubled(word: str, char: str) -> str:
    parts = word.split(char * 2)
    assert not any(char in part for part in parts), f"a lone {char} in {word}"
    return char.join(parts)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--port", "--port"),
        ("/data/models/m", "/data/models/m"),
        ("", '""'),
        ("a b", '"a b"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('{"a":1}', '"{\\"a\\":1}"'),
        ("a\\b", '"a\\\\b"'),
        ("it's", '"it\'s"'),
        (";", '";"'),
        ("a\nUser=root", '"a\\nUser=root"'),
        ("模型", "模型"),
    ],
)
def test_systemd_quote(word: str, expected: str) -> None:
    assert _render.systemd_quote(word) == expected


@given(st.lists(ARGUMENT, max_size=6))
def test_any_command_line_is_one_line_of_the_same_words(words: list[str]) -> None:
    text = " ".join(map(_render.systemd_quote, words))
    assert "\n" not in text
    assert "\r" not in text
    assert systemd_words(text) == words


SERVICE = {
    "name": "chat",
    "model": "acme/tiny",
    "command": [
        "/opt/vllm/bin/vllm",
        "serve",
        "/data/my models/100%",
        "--hf-overrides",
        '{"a":"$b\'s"}',
        "a\nUser=root",
    ],
    "stop_timeout": 150,
}
PATHS = {
    "root": "/var/lib/gpufleet-vllm",
    "state": "/var/lib/my vllm/100%/services/chat/state",
    "environment": "/var/lib/my vllm/100%/services/chat/environment",
}


def unit_settings(text: str) -> dict[str, dict[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, _equals, value = line.partition("=")
            section.setdefault(name, []).append(value)
    return sections


def test_unit() -> None:
    text = _render.systemd_unit(SERVICE, PATHS, "vllm", "gpu", "0123abcd")
    assert "\n# root=/var/lib/gpufleet-vllm\n# digest=0123abcd\n" in text
    unit = unit_settings(text)
    service = {name: value for name, (value,) in unit["Service"].items()}
    assert systemd_words(service["ExecStart"]) == SERVICE["command"]
    assert (service["User"], service["Group"], service["TimeoutStopSec"]) == ("vllm", "gpu", "150")
    assert service["WorkingDirectory"] == "/var/lib/my vllm/100%%/services/chat/state"
    assert service["EnvironmentFile"] == "/var/lib/my vllm/100%%/services/chat/environment"
    assert systemd_words(service["ReadWritePaths"]) == [PATHS["state"]]
    assert unit["Install"] == {"WantedBy": ["multi-user.target"]}
    # CUDA needs its devices, and compiles code while it runs.
    assert not {
        "ProtectClock",
        "DeviceAllow",
        "ExecStartPre",
        "PrivateDevices",
        "MemoryDenyWriteExecute",
        "SystemCallFilter",
        "Environment",
    } & set(service)
    assert {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "UMask": "0077"}.items() <= service.items()


@pytest.mark.parametrize(
    ("path", "expected"), [("/srv/x", "/srv/x"), ("/a b", '"/a b"'), ("/a%", '"/a%%"'), ("/a$b", "/a$b")]
)
def test_systemd_path(path: str, expected: str) -> None:
    assert _render.systemd_path(path) == expected


# -- supervisor

SUPERVISOR_PATHS = {
    "root": "/srv/my vllm/100%",
    "socket": "/srv/my vllm/100%/supervisor/supervisor.sock",
    "pid": "/srv/my vllm/100%/supervisor/supervisord.pid",
    "log": "/srv/my vllm/100%/logs/supervisord.log",
    "programs": "/srv/my vllm/100%/supervisor/conf.d",
}
PROGRAM_PATHS = {"script": "/srv/it's 100%/run.sh", "state": "/srv/it's 100%/state", "log": "/srv/it's 100%/chat.log"}


def ini(text: str) -> configparser.RawConfigParser:
    # As supervisor.options.UnhosedConfigParser reads it.
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    parser.read_string(text)
    return parser


def test_supervisor_config() -> None:
    parser = ini(_render.supervisor_config(SUPERVISOR_PATHS))
    assert parser["unix_http_server"]["file"] == "/srv/my vllm/100%%/supervisor/supervisor.sock"
    assert parser["unix_http_server"]["chmod"] == "0700"
    assert parser["supervisord"]["umask"] == "077"
    # supervisor parts this at spaces, so it is relative to the configuration.
    assert parser["include"]["files"] == "conf.d/*.conf"


def test_supervisor_program() -> None:
    parser = ini(_render.supervisor_program(SERVICE, PROGRAM_PATHS, "0123abcd"))
    program = parser["program:chat"]
    assert shlex.split(program["command"] % {}) == ["/bin/sh", PROGRAM_PATHS["script"]]
    assert program["directory"] % {} == PROGRAM_PATHS["state"]
    assert program["stdout_logfile"] % {} % {} == PROGRAM_PATHS["log"]
    assert program["environment"] == 'GPUFLEET_DIGEST="0123abcd"'
    assert (program["stopwaitsecs"], program["stopasgroup"], program["killasgroup"]) == ("150", "false", "true")


def test_supervisor_itself_reads_it(tmp_path: Path) -> None:
    options = pytest.importorskip("supervisor.options", reason="the supervisor package is in requirements/dev.txt")
    root = tmp_path / "my vllm 100%"
    base = root / "supervisor"
    (base / "conf.d").mkdir(parents=True)
    (root / "logs").mkdir()
    paths = {
        "root": str(root),
        "socket": f"{base}/supervisor.sock",
        "pid": f"{base}/supervisord.pid",
        "log": f"{root}/logs/supervisord.log",
        "programs": f"{base}/conf.d",
    }
    program = {"script": f"{root}/it's run.sh", "state": str(root), "log": f"{root}/logs/chat.log"}
    (base / "supervisord.conf").write_text(_render.supervisor_config(paths))
    (base / "conf.d" / "chat.conf").write_text(_render.supervisor_program(SERVICE, program, "0123abcd"))
    server = options.ServerOptions()
    server.realize(["-c", f"{base}/supervisord.conf"])
    (group,) = server.process_group_configs
    (process,) = group.process_configs
    assert (group.name, process.name) == ("chat", "chat")
    assert shlex.split(process.command) == ["/bin/sh", program["script"]]
    assert (process.directory, process.stdout_logfile) == (program["state"], program["log"])
    assert process.environment["GPUFLEET_DIGEST"] == "0123abcd"
    assert (process.stopwaitsecs, process.stopasgroup, process.killasgroup) == (150, False, True)
    assert (process.startsecs, process.startretries, process.autostart) == (5, 3, True)
    assert (server.pidfile, server.logfile, server.directory) == (paths["pid"], paths["log"], paths["root"])
    (socket,) = server.server_configs
    assert (socket["file"], stat.filemode(socket["chmod"])) == (paths["socket"], "?rwx------")


def test_unit_of_a_gpu_service_has_its_device_nodes_made_as_root() -> None:
    text = _render.systemd_unit({**SERVICE, "device": "cuda"}, PATHS, "vllm", "gpu", "0123abcd")
    assert unit_settings(text)["Service"]["ExecStartPre"] == ["+-/usr/bin/nvidia-modprobe -c 0 -u"]
    assert text.index("ExecStartPre=") < text.index("ExecStart=")


def test_launch_script_lets_nothing_of_its_caller_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    _argv, seen = launched(tmp_path, {"A": "1", "PATH": "/usr/bin:/bin"}, [])
    assert seen["A"] == "1"
    assert not {"VLLM_API_KEY", "CUDA_VISIBLE_DEVICES"} & set(seen)


def test_launch_script_ends_what_a_killed_engine_left(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("A=1\n")
    state = tmp_path / "state"
    state.mkdir()
    left = subprocess.Popen(["sleep", "60"], cwd=state, start_new_session=True)
    bystander = subprocess.Popen(["sleep", "60"], cwd=tmp_path, start_new_session=True)
    try:
        script = tmp_path / "run.sh"
        script.write_text(_render.launch_script(str(tmp_path / "environment"), ["true"], str(state)))
        assert sh(str(script)) == ""
        assert left.wait(timeout=10) == -9
        assert bystander.poll() is None
    finally:
        for process in (left, bystander):
            process.kill()
            process.wait()
