# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Removing what an artifact's manifest owns, the manifest, and what interrupted runs left."""

from __future__ import annotations

import contextlib
import os
import stat

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _safefs, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import (
    MANIFEST_PATH,
    Outcome,
    Request,
    as_found,
    description,
    read_manifest,
    shown,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import STATE_DIRECTORY, Manifest


class Absence:
    def __init__(self, request: Request) -> None:
        self._request = request
        self._location = _staging.locate(request.path)
        self._outcome = Outcome(self._location.path)
        self._others = False

    def run(self) -> Outcome:
        outcome = self._outcome
        manifest = self._inspect()
        # What lies beside the directory of another model is of that model.
        leftovers = not self._others and os.path.lexists(self._location.staging)
        nothing = description(None, None, None, {})
        outcome.before, outcome.after = nothing, nothing
        if manifest is not None:
            files = {entry.path: shown(entry.size, entry.sha256) for entry in manifest.entries}
            outcome.before = description(manifest.model, manifest.revision, manifest.commit, files)
            outcome.commit, outcome.entries = manifest.commit, manifest.entries
        outcome.changed = manifest is not None or leftovers
        if outcome.changed and not self._request.check_mode:
            self._remove()
        return outcome

    def _inspect(self) -> Manifest | None:
        """Our manifest, if the directory holds this model; fills in what is foreign."""
        try:
            root = _safefs.open_directory(self._location.path)
        except FileNotFoundError:
            return None
        try:
            warnings: list[str] = []
            manifest = read_manifest(root, self._location.path, warnings)
            if manifest is None or manifest.model != self._request.model:
                self._others = manifest is not None
                holds = "was not made by this module" if manifest is None else f"holds {manifest.model}"
                holds = warnings[0].rstrip(".") if warnings else f"{self._location.path} {holds}"
                self._outcome.warnings.append(f"{holds}; it was left alone.")
                return None
            found = {path: as_found(item) for path, item in _safefs.walk(root, skip=STATE_DIRECTORY).items()}
            self._outcome.foreign = tuple(_manifest.foreign(found, manifest.by_path()))
            return manifest
        finally:
            os.close(root)

    def _remove(self) -> None:
        staging = _staging.acquire(self._location, self._request.lock_timeout, self._request.policy.sleep)
        try:
            self._outcome.warnings.clear()
            manifest = self._inspect()
            if manifest is not None:
                self._remove_owned(manifest)
            if not self._others:
                staging.discard()
        finally:
            staging.release()
        if manifest is not None:
            self._remove_directories()

    def _remove_owned(self, manifest: Manifest) -> None:
        root = _safefs.open_directory(self._location.path)
        try:
            owned = set(manifest.by_path())
            for path in owned:
                state = _safefs.lstat(root, path)
                if state is not None and not stat.S_ISDIR(state.st_mode):
                    _safefs.unlink(root, path)
            _safefs.remove_empty_directories(root, owned)
            # Last, so that a run that was cut short knows what is left to remove.
            _safefs.unlink(root, MANIFEST_PATH)
        finally:
            os.close(root)

    def _remove_directories(self) -> None:
        for path in (os.path.join(self._location.path, STATE_DIRECTORY), self._location.path):
            with contextlib.suppress(OSError):  # foreign files, or a mount point
                os.rmdir(path)
