# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact_module
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.modules import modelscope_model_info

COMMIT = "2e50b77b0eee3083842019e257b74854323d880a"


class FakeHub:
    refusal = None

    def resolve(self, model, revision):
        if self.refusal is not None:
            raise self.refusal
        return Resolution(revision, COMMIT, ("a warning",))

    def list_rows(self, model, resolution):
        rows = [("b/model.bin", 7), ("a.json", 2), ("b/notes.txt", 3)]
        return [
            {"Path": path, "Size": size, "Sha256": hashlib.sha256(path.encode()).hexdigest()} for path, size in rows
        ]


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    one = FakeHub()
    monkeypatch.setattr(_artifact_module, "hub_client", lambda params: one)
    # Where a module's warnings end depends on what else the process has imported.
    one.said = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, text: one.said.append(text))
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return one


def run(capsys, **args):
    with patch_module_args({"model": "acme/tiny", **args}), pytest.raises(SystemExit):
        modelscope_model_info.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("check_mode", [False, True])
def test_what_a_model_consists_of(capsys, hub, check_mode):
    result = run(capsys, _ansible_check_mode=check_mode)
    assert (result["changed"], result["commit"], result["bytes_total"]) == (False, COMMIT, 12)
    assert [item["path"] for item in result["files"]] == ["a.json", "b/model.bin", "b/notes.txt"]
    assert len(result["manifest_digest"]) == 64
    assert hub.said == ["a warning"]


def test_patterns(capsys):
    result = run(capsys, include=["b/*"], exclude=["*.txt"])
    expected = {"path": "b/model.bin", "size": 7, "sha256": hashlib.sha256(b"b/model.bin").hexdigest()}
    assert result["files"] == [expected]


def test_a_refusal(capsys, hub):
    hub.refusal = FleetError("hub.no_access", "the hub refused", "access", "Set token")
    result = run(capsys)
    assert result["failed"]
    assert (result["code"], result["remedy"]) == ("hub.no_access", "Set token")


def test_a_token_is_not_shown(capsys, monkeypatch):
    monkeypatch.undo()
    result = run(capsys, endpoint="http://hub.example.com", token="ms-0123456789abcdef")
    assert result["code"] == "hub.token_over_http"
    assert "ms-0123456789abcdef" not in json.dumps(result)
