# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception of the builder."""

from __future__ import annotations


class BuildError(Exception):
    """The model cannot be built; the text says what was seen, what was expected and what to do."""
