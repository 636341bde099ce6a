# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifacts
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import Piece, failure, make_pieces, summed
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

PARAMS: dict[str, t.Any] = {
    "state": "present", "endpoint": "hub.example.com/", "token": "ms-secret", "timeout": 60.0, "connections": 8,
    "bandwidth": "200MB", "retries": 2, "allow_pickle": True, "engine": "native", "client": "modelscope",
    "lock_timeout": 7.0,
}  # fmt: skip
ITEM: dict[str, t.Any] = {"model": "acme/tiny", "revision": "v1", "path": "/srv/x", "include": ["*.json"],
                          "exclude": [], "services": ["chat"]}  # fmt: skip


def pieces(*items: dict[str, t.Any], check_mode: bool = False, **params: t.Any) -> list[Piece]:
    made = [{**ITEM, **item} for item in items]
    return make_pieces({**PARAMS, **params, "artifacts": made}, check_mode)


def test_options_become_requests() -> None:
    one, other = pieces({}, {"model": "acme/big", "path": "/srv/y/../z"}, check_mode=True)
    request = one.request
    assert (request.model, request.revision, request.path) == ("acme/tiny", "v1", "/srv/x")
    assert (request.endpoint, request.include, request.exclude) == ("https://hub.example.com", ("*.json",), ())
    assert (request.connections, request.bandwidth, request.allow_pickle) == (8, 200_000_000, True)
    assert (request.lock_timeout, request.check_mode) == (7.0, True)
    assert (other.model, other.path) == ("acme/big", "/srv/z")
    assert one.item["services"] == ["chat"]


def test_a_link_above_the_directory_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert pieces({"path": str(tmp_path / "link" / "x")})[0].path == str(tmp_path / "real" / "x")
    with pytest.raises(FleetError, match="is the directory of acme/tiny and of acme/big"):
        pieces({"path": f"{tmp_path}/link/x"}, {"model": "acme/big", "path": f"{tmp_path}/real/x"})


def test_the_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", "/cache")
    assert pieces({"path": None})[0].path == "/cache/models/acme--tiny/snapshots/v1"


def test_the_same_request_is_the_same_job() -> None:
    def identity(item: dict[str, t.Any] | None = None, **params: t.Any) -> str:
        return _artifacts.identity(pieces(item or {}, **params), {**PARAMS, **params})

    same = identity()
    assert same == identity(token="x", bandwidth="1MB", connections=2, lock_timeout=1.0)
    assert same == identity({"services": ["other"]})
    others = [identity({"revision": "v2"}), identity({"exclude": ["*.bin"]}), identity({"path": "/srv/y"}),
              identity(state="verified"), identity(endpoint="https://other.example.com")]  # fmt: skip
    assert len({same, *others}) == 6
    assert len(same) == 16


def test_results_are_summed_up() -> None:
    good, bad = pieces({}, {"model": "acme/gone", "path": "/srv/gone"})
    good.entry = {"changed": True, "failed": False, "files": [1]}
    good.diff, good.warnings = {"after": 1}, ["careful", "careful"]
    bad.fail(FleetError("hub.not_found", "It is not there", "a model", "Correct it"))
    result = summed([good, bad], diff=True)
    assert (result["changed"], result["warnings"], result["diff"]) == (True, ["careful"], [{"after": 1}])
    failed = failure(result["results"])
    assert failed is not None
    assert failed["msg"] == (
        "1 of 2 artifacts failed.\n"
        "acme/gone at /srv/gone: It is not there. Expected: a model. Remedy: Correct it."
    )  # fmt: skip
    assert (failed["code"], failed["seen"], failed["changed"]) == ("hub.not_found", "It is not there", True)
    assert failed["results"][0] == {"changed": True, "failed": False}
    assert failure([{"failed": False}, {}]) is None
    assert failure([]) is None
    two = failure([{"failed": True, "msg": "a", "code": "x"}, {"failed": True, "msg": "b", "code": "y"}])
    assert two is not None
    assert (two["code"], two["msg"], "seen" in two) == ("artifact.failed", "2 of 2 artifacts failed.\na\nb", False)
