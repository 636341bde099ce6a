# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Findings of the plan that an operator may turn off by their code: judgements, not contradictions. Pure, no I/O."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding

SKIPPABLE = frozenset(
    {
        "plan.compose_old",
        "plan.context_too_long",
        "plan.cpu_engine",
        "plan.driver_too_old",
        "plan.environment_unknown",
        "plan.flag_deprecated",
        "plan.flag_removed",
        "plan.flag_too_new",
        "plan.flag_unknown",
        "plan.flag_value",
        "plan.flags_unchecked",
        "plan.gpu_broken",
        "plan.gpu_mixed",
        "plan.gpu_overcommitted",
        "plan.gpu_renumbered",
        "plan.gpu_too_old",
        "plan.image_latest",
        "plan.image_unused",
        "plan.memory_short",
        "plan.memory_tight",
        "plan.model_not_found",
        "plan.model_refused",
        "plan.model_unknown",
        "plan.no_api_key",
        "plan.selinux",
        "plan.tensor_parallel_illegal",
        "plan.unknown_variable",
    }
)
"""Estimates, tables of other people's software, and advice. Without the others there is nothing that could be run, or
they have a variable of their own that says yes."""


def without_skipped(findings: t.Sequence[Finding], skip: t.Collection[str]) -> tuple[list[Finding], list[str]]:
    """The findings that stay, and the codes among ``skip`` that the plan turned off."""
    off = SKIPPABLE.intersection(skip)
    return [finding for finding in findings if finding.code not in off], sorted(off)
