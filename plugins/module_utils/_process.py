# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Running programs on a host: argument vectors, a time limit, and a result instead of an exception."""

from __future__ import annotations

import os
import subprocess
import typing as t
from dataclasses import dataclass

NOT_FOUND = 127
TIMED_OUT = 124


@dataclass(frozen=True)
class Completed:
    rc: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line that says something, for a message."""
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.rc}"


class Run(t.Protocol):
    def __call__(self, argv: t.Sequence[str], timeout: float = 60.0) -> Completed: ...


def run(argv: t.Sequence[str], timeout: float = 60.0) -> Completed:
    """Run without a shell and without input, in the C locale; a missing program is 127, a program past its limit 124."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
    except (FileNotFoundError, PermissionError) as exc:
        return Completed(NOT_FOUND, "", f"{argv[0]}: {exc.strerror}")
    except subprocess.TimeoutExpired:
        return Completed(TIMED_OUT, "", f"{argv[0]} did not finish within {timeout:g} s")
    return Completed(
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )
