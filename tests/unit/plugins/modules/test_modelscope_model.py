# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import os
import signal
import types

import pytest

# ansible-core's own way to give a module its arguments in a test
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact_module
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.modules import modelscope_model

COMMIT = "2e50b77b0eee3083842019e257b74854323d880a"
DATA = {"config.json": b"{}", "model.safetensors": b"weights"}
TOKEN = "ms-0123456789abcdef"


class Stream:
    described, whole = "a test", False

    def __init__(self, data, start, end):
        self.offset, self.total, self._data = start, len(data), data[start:end]

    def read(self, limit):
        data, self._data = self._data, b""
        return data

    def close(self):
        pass


class FakeHub:
    def resolve(self, model, revision, patient=True):
        return Resolution(revision, COMMIT, ("a warning",))

    def list_rows(self, model, resolution):
        return [
            {"Path": path, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()} for path, data in DATA.items()
        ]

    def source(self, model, resolution):
        return types.SimpleNamespace(
            open=lambda entry, start, end: Stream(DATA[entry.path], start, end), piece=None, connections=None
        )


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    one = FakeHub()
    monkeypatch.setattr(_artifact_module, "hub_client", lambda params: one)
    # Where a module's warnings end depends on what else the process has imported.
    one.said = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, text: one.said.append(text))
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return one


def run(capsys, module, **args):
    with patch_module_args({"model": "acme/tiny", **args}), pytest.raises(SystemExit) as end:
        module.main()
    result = json.loads(capsys.readouterr().out)
    assert (end.value.code != 0) == bool(result.get("failed"))
    return result


def test_present_again_and_absent(capsys, tmp_path, hub):
    path = str(tmp_path / "model")
    check = run(capsys, modelscope_model, path=path, _ansible_check_mode=True, _ansible_diff=True)
    assert not os.path.exists(path)
    real = run(capsys, modelscope_model, local_dir=path, _ansible_diff=True)
    keys = ("changed", "commit", "path", "bytes_fetched", "bytes_total", "files", "manifest_digest", "adopted", "diff")
    assert {key: check[key] for key in keys} == {key: real[key] for key in keys}
    assert (real["changed"], real["commit"], real["bytes_fetched"], real["bytes_total"]) == (True, COMMIT, 9, 9)
    assert [item["path"] for item in real["files"]] == ["config.json", "model.safetensors"]
    assert real["diff"]["before"]["commit"] is None
    assert real["diff"]["after"]["commit"] == COMMIT
    assert hub.said == ["a warning"] * 2
    again = run(capsys, modelscope_model, path=path)
    assert (again["changed"], again["bytes_fetched"], again["manifest_digest"]) == (False, 0, real["manifest_digest"])
    assert "diff" not in again
    assert not run(capsys, modelscope_model, path=path, state="verified")["changed"]
    (tmp_path / "model/notes").write_text("mine")
    gone = run(capsys, modelscope_model, path=path, state="absent")
    assert (gone["changed"], gone["foreign"]) == (True, ["notes"])


def test_the_default_path(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    result = run(capsys, modelscope_model, revision="v1")
    assert result["path"] == f"{tmp_path}/models/acme--tiny/snapshots/v1"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"model": "x"}, "hub.bad_model"),
        ({"revision": "../x"}, "hub.bad_revision"),
        ({"endpoint": "ftp://x"}, "hub.bad_endpoint"),
        ({"connections": 0}, "artifact.bad_option"),
        ({"lock_timeout": -1}, "artifact.bad_option"),
        ({"path": "/"}, "path.unusable"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_that_cannot_be(capsys, tmp_path, args, code):
    result = run(capsys, modelscope_model, **{"path": str(tmp_path / "model"), **args})
    assert result["code"] == code
    assert result["seen"]
    assert result["expected"]
    assert result["remedy"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"endpoint": "http://hub.example.com", "token": TOKEN}, "hub.token_over_http"),
        ({"timeout": 0}, "hub.bad_timeout"),
        ({"endpoint": "http://"}, "hub.bad_endpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_hub_options_that_cannot_be(capsys, tmp_path, monkeypatch, args, code):
    monkeypatch.undo()
    result = run(capsys, modelscope_model, path=str(tmp_path / "model"), **args)
    assert result["code"] == code
    assert TOKEN not in json.dumps(result)


def test_environment(capsys, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://hub.example.com")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    result = run(capsys, modelscope_model, path=str(tmp_path / "model"))
    assert result["code"] == "hub.token_over_http"
    assert "http://hub.example.com" in result["msg"]
    assert TOKEN not in json.dumps(result)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_in_order(capsys, tmp_path, monkeypatch, hub, number):
    def killed(entry, start, end):
        os.kill(os.getpid(), number)
        raise FleetError("never", "reached by the worker")

    before = signal.getsignal(signal.SIGTERM)
    source = types.SimpleNamespace(open=killed, piece=None, connections=None)
    monkeypatch.setattr(hub, "source", lambda model, resolution: source)
    result = run(capsys, modelscope_model, path=str(tmp_path / "model"))
    assert result["code"] in ("interrupted", "never")
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before
