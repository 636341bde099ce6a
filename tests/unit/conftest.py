# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# ansible-test does not read pyproject.toml, which says where the tests' own programs lie.
sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("lab", "tools")]

# What is printed shall not depend on the terminal that the tests are started from.
os.environ["COLUMNS"] = "120"

# No test is a matter of time: a busy machine would fail what is right.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
