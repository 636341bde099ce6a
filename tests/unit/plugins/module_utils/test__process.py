# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _process
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, run_command


def test_run_command() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run_command([sys.executable, "-c", code], 30) == (3, "out\n", "err\n", False)


def test_run_command_speaks_english_and_replaces_bad_bytes() -> None:
    code = r"import os, sys; sys.stdout.buffer.write(os.environ['LC_ALL'].encode() + b'\xff')"
    assert run_command([sys.executable, "-c", code], 30).out == "C�"


def test_run_command_of_a_missing_program() -> None:
    end = run_command(["/nonexistent/nvidia-smi"], 1)
    assert end.rc == 127
    assert "No such file" in end.err


def test_run_command_kills_the_whole_group() -> None:
    start = time.monotonic()
    end = run_command(["/bin/sh", "-c", "echo started; sleep 60 & sleep 60"], 0.5)
    assert end == (124, "started\n", "/bin/sh did not end within 0.5 s", True)
    assert time.monotonic() - start < 10


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_run_command_leaves_behind_what_does_not_die(monkeypatch: pytest.MonkeyPatch) -> None:
    # A process in another session that keeps the pipe open looks like one that the kernel does not let die.
    monkeypatch.setattr(_process, "REAP_SECONDS", 0.2)
    code = "import os, sys, time; os.fork() or (os.setsid(), time.sleep(4)); time.sleep(60)"
    start = time.monotonic()
    end = run_command([sys.executable, "-c", code], 0.5)
    assert end.timed_out
    assert time.monotonic() - start < 3.5


def test_last_words_are_the_last_line_that_says_something() -> None:
    assert CommandResult(1, "out\n", "first\n\nlast \n\n").last_words == "last"
    assert CommandResult(3, "", "").last_words == "exit status 3"


def test_an_interrupted_run_ends_its_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_arguments: object) -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(_process, "_read_both", interrupted)
    code = (
        "import os, sys, time; open(sys.argv[1] + '~', 'w').write(str(os.getpid())); "
        "os.rename(sys.argv[1] + '~', sys.argv[1]); time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_command([sys.executable, "-c", code, str(tmp_path / "pid")], 30)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_descriptor_is_inherited_when_asked(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        number = str(lock.fileno())
        check = ["/bin/sh", "-c", 'test -e "/proc/self/fd/$1"', "sh", number]
        assert run_command(check, 10).rc == 1
        assert run_command(check, 10, inherit=lock.fileno()).rc == 0
