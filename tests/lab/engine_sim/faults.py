# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the simulator misbehaves.

``ENGINE_SIM_FAULTS`` is either a JSON object, or the path of a file that holds one. The file is read again for each
request, so that a test can change the faults while the server runs; it need not exist.
"""

from __future__ import annotations

import contextlib
import json
import os
import typing as t
from pathlib import Path

VARIABLE = "ENGINE_SIM_FAULTS"
KNOWN: dict[str, str] = {
    "exit": "the status that it ends with at once, before it loads anything",
    "start_seconds": "how long it loads before it listens",
    "die_after": "seconds after its start until it ends with status 1, listening or not",
    "die_message": "its last words on stderr",
    "health": "an HTTP status for /health",
    "hang": "true: /health stays good, and no question is ever answered",
    "slow": "seconds that the answer to every question takes",
    "answer": "the text of every answer instead of the right one",
    "status": "an HTTP status for every question",
    "flaky": "0.3: that part of all questions gets a 503; 2: the first two do",
    "served": "the id that /v1/models tells instead of the served one",
    "open_routes": "routes that answer without the API key: a list, or true for all",
    "cut_stream": "the number of pieces after which every stream breaks off",
}


class BadFaults(ValueError):
    """Faults that the simulator does not know."""


def parse(text: str) -> dict[str, t.Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as exc:
        raise BadFaults(f"{VARIABLE} is no JSON object: {exc}") from None
    if not isinstance(value, dict):
        raise BadFaults(f"{VARIABLE} is no JSON object: {text[:80]}")
    unknown = sorted(set(value) - set(KNOWN))
    if unknown:
        raise BadFaults(f"{VARIABLE} has unknown faults: {', '.join(unknown)}. Known are: {', '.join(KNOWN)}")
    return value


class Faults:
    """The faults of now. A file that is just being rewritten keeps the ones before it."""

    def __init__(self, setting: str | None = None) -> None:
        self.setting = (os.environ.get(VARIABLE, "") if setting is None else setting).strip()
        self._questions = 0
        self._last: dict[str, t.Any] = {}
        self._last = self._read()

    def _read(self) -> dict[str, t.Any]:
        if self.setting.startswith("{"):
            return parse(self.setting)
        path = Path(self.setting)
        return parse(path.read_text(encoding="utf-8")) if self.setting and path.is_file() else {}

    def now(self) -> dict[str, t.Any]:
        with contextlib.suppress(BadFaults, OSError):
            self._last = self._read()
        return self._last

    def question_fails(self) -> bool:
        """Whether ``flaky`` strikes now: evenly spread, so that a test knows how many do."""
        rate = float(self.now().get("flaky", 0))
        self._questions += 1
        if rate >= 1:
            return self._questions <= rate
        return int(self._questions * rate + 1e-9) > int((self._questions - 1) * rate + 1e-9)

    def opens(self, path: str) -> bool:
        routes = self.now().get("open_routes", [])
        return routes is True or (isinstance(routes, list) and path in routes)
