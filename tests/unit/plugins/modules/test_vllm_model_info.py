# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _model_info
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_model_info


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def run(capsys, **args):
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_model_info.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("check_mode", [False, True])
def test_an_entry_for_each_model_and_an_error_for_one_that_cannot_be_read(capsys, monkeypatch, check_mode):
    def files(client, item):
        raise FleetError("hub.not_found", f"no {item['model']}", "a repository", "Check the spelling")

    monkeypatch.setattr(_model_info, "_files", files)
    models = [{"model": "acme/one"}, {"model": "acme/one"}, {"model": "acme/two", "revision": "v1"}]
    result = run(capsys, models=models, _ansible_check_mode=check_mode)
    assert not result["changed"]
    assert list(result["models"]) == ["acme/one@master", "acme/two@v1"]
    entry = result["models"]["acme/two@v1"]
    assert entry["error"] == {
        "code": "hub.not_found",
        "seen": "no acme/two",
        "expected": "a repository",
        "remedy": "Check the spelling",
    }
    assert entry["config"] is None
    assert entry["weights"] is None


def test_a_model_without_a_path_lies_below_the_root(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(_model_info, "describe", lambda client, item: asked.append(item["path"]) or {})
    models = [{"model": "acme/one"}, {"model": "acme/two", "path": "/elsewhere/two"}]
    run(capsys, models=models, model_root="/data/models/")
    assert sorted(asked) == ["/data/models/one", "/elsewhere/two"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"models": [{"model": "no-owner"}]}, "hub.bad_model"),
        ({"models": [{"model": "acme/one", "revision": "../x"}]}, "hub.bad_revision"),
        ({"models": [], "timeout": 0}, "hub.bad_timeout"),
        ({"models": [], "endpoint": "ftp://x"}, "hub.bad_endpoint"),
        ({"models": [], "endpoint": "http://hub.example.com", "token": "ms-0123456789"}, "hub.token_over_http"),
    ],
)
def test_options_that_cannot_be_fail_the_module(capsys, args, code):
    result = run(capsys, **args)
    assert result["failed"]
    assert result["code"] == code
    assert "ms-0123456789" not in json.dumps(result)
