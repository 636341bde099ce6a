# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rendered unit, read by systemd's own parser. No systemd needs to run for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _render


def test_systemd_verifies_a_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.fail("systemd-analyze was not found; install it (Debian: apt-get install systemd)")
    state = tmp_path / "my vllm 100%" / "state"
    state.mkdir(parents=True)
    (state / "environment").write_text("A=1\n")
    service = {
        "name": "chat",
        "model": "acme/tiny",
        "command": [sys.executable, "serve", "/data/my models/100% $HOME", '{"a":"b\'s"}', ";", "", "a\nUser=nobody"],
        "stop_timeout": 150,
    }
    paths = {"root": str(tmp_path), "state": str(state), "environment": f"{state}/environment"}
    unit = tmp_path / "vllm-chat.service"
    unit.write_text(_render.systemd_unit(service, paths, "root", "root", "0123abcd"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "vllm-chat" in line]) == (0, []), done.stderr
