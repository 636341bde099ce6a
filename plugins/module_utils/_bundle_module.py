# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From the options of the bundle's modules to what they do."""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _bundle_images,
    _bundle_read,
    _bundle_wheels,
    _bundle_write,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

Params = t.Mapping[str, t.Any]


def _bad_option(seen: str, expected: str) -> FleetError:
    return FleetError("bundle.bad_option", seen, expected, "correct the options")


def split_bytes(text: str) -> int:
    """``4g`` in bytes. What a person calls 4 GB and what does not fit a FAT file system differ, so units are binary."""
    try:
        return int(human_to_bytes(text))
    except ValueError as exc:
        raise _bad_option(f"split_size is {text!a}", "a number of bytes, or one with k, m, g or t") from exc


def run_bundle(params: Params, check_mode: bool) -> dict[str, t.Any]:
    for kind, keys in (("models", ("model", "path")), ("wheels", ("name", "path")), ("images", ("image", "digest"))):
        for item in params[kind]:
            lacking = [key for key in keys if not item.get(key)]
            if lacking:
                raise _bad_option(f"an element of {kind} lacks {', '.join(lacking)}", f"{' and '.join(keys)} in each")
    if params["images"] and not params["images_path"]:
        raise _bad_option("images were given without images_path", "the directory that holds them")
    split = split_bytes(params["split_size"])
    if split and params["format"] != "tar":
        raise _bad_option(f"split_size is {params['split_size']} for a directory", "split_size 0, or format tar")
    request = _bundle_write.Request(
        path=params["path"],
        format=params["format"],
        split=split,
        models=params["models"],
        images=params["images"],
        images_path=params["images_path"] or "",
        wheels=params["wheels"],
        collection=params["collection"] or "",
        files=params["files"],
        signing_key=params["signing_key"] or "",
        check_mode=check_mode,
    )
    return _bundle_write.write(request)


def run_unbundle(params: Params, check_mode: bool) -> dict[str, t.Any]:
    request = _bundle_read.Request(
        path=params["path"],
        dest=params["dest"] if params["state"] == "present" else "",
        allowed_signers=params["allowed_signers"],
        signer=params["signer"],
        allow_unsigned=params["allow_unsigned"],
        check_mode=check_mode,
    )
    return _bundle_read.read(request)


def run_images(params: Params, check_mode: bool) -> dict[str, t.Any]:
    options = _bundle_images.Options(
        **{**params, **{name: params[name] or "" for name in ("registry", "cert_dir", "authfile")}},
        check_mode=check_mode,
    )
    return _bundle_images.Images(options).run()


def run_wheels(params: Params, check_mode: bool, python: str) -> dict[str, t.Any]:
    options = _bundle_wheels.Options(**{**params, "python": params["python"] or python}, check_mode=check_mode)
    return _bundle_wheels.present(options)
