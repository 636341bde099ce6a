# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmarks on models that are too small to measure anything: they run, and what they print makes sense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def bench(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(TESTS / name) for name in ("lab", "bench"))}
    command = [sys.executable, "-m", "hub_bench", "--fast", str(tmp_path / "fast"), "--disk", str(tmp_path / "disk")]
    command += ["--quick", "--patience", "0", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_every_kind_of_case_is_measured(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    raw = tmp_path / "raw.json"
    sizes = ["--big-mib", "2", "--big-files", "2", "--many", "7", "--json", str(raw), "--markdown"]
    done = bench(tmp_path, "--only", "fresh-tmpfs", "fresh-disk", "no-op", "big-limited", "many", "--tuned", *sizes)
    assert done.returncode == 0, done.stderr
    runs = {item["case"]: item["rounds"][0] for item in json.loads(raw.read_text())}
    assert list(runs) == ["fresh-tmpfs", "fresh-disk", "no-op", "big-limited", "many"]
    assert set(runs["fresh-tmpfs"]) == {"official", "ours", "raw", "bare"}
    assert set(runs["fresh-disk"]) == {"official", "ours", "raw+fsync", "bare+fsync"}
    assert set(runs["no-op"]) == {"official", "ours", "ansiballz"}
    assert set(runs["many"]) == set(runs["big-limited"]) == {"official", "ours", "tuned"}
    # Revision, listing and seven files; one redirect for each of two large files, five small ones.
    assert runs["many"]["ours"]["requests"] == 9
    assert runs["fresh-tmpfs"]["bare"]["requests"] == 9
    assert runs["no-op"]["ours"]["requests"] == 1
    # By the process's own peak: that of whoever started it would be the same for all.
    assert 5 << 10 < runs["fresh-tmpfs"]["raw"]["peak_kib"] < runs["many"]["ours"]["peak_kib"]
    assert all(run["wall"] > 0 and run["user"] > 0 for item in runs.values() for run in item.values())
    assert "| Case |" in done.stdout
    assert "modelscope 1.40.2, modelscope-hub 0.5.1" in done.stdout
    assert not list((tmp_path / "fast").iterdir())
    assert not list((tmp_path / "disk").iterdir())


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "many")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert str(tmp_path / "fast") in done.stderr
    (tmp_path / "fast").mkdir()
    done = bench(tmp_path, "--only", "one-fast", "--one-mib", str(1 << 30))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "MiB to spare" in done.stderr
    assert not list((tmp_path / "fast").iterdir())
