# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle_write
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_unbundle


def call(capsys: pytest.CaptureFixture[str], **args: object) -> dict[str, t.Any]:
    with patch_module_args(args), pytest.raises(SystemExit):
        vllm_unbundle.main()
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "driver.run").write_bytes(b"a driver")
    _bundle_write.write(_bundle_write.Request(path=str(tmp_path / "fleet"), files=[str(tmp_path / "driver.run")]))
    return tmp_path / "fleet"


def test_a_bundle_is_unpacked_once(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a module's warnings end depends on what else the process has imported.
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, text: said.append(text))
    args = {"path": str(bundle), "dest": str(tmp_path / "in"), "allow_unsigned": True}
    assert call(capsys, **args, _ansible_check_mode=True)["changed"]
    assert not (tmp_path / "in").exists()
    done = call(capsys, **args)
    assert (done["changed"], done["bytes_copied"], done["signer"]) == (True, 8, "")
    assert "is not signed" in said[-1]
    assert (tmp_path / "in/files/driver.run").read_bytes() == b"a driver"
    assert not call(capsys, **args)["changed"]
    assert not call(capsys, path=str(bundle), state="checked", allow_unsigned=True)["changed"]


def test_failures(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, path=str(bundle), dest=str(tmp_path / "in"))
    assert (result["failed"], result["code"]) == (True, "bundle.unsigned")
    assert not (tmp_path / "in").exists()
    result = call(capsys, path=str(bundle))
    assert result["msg"] == "state is present but all of the following are missing: dest"
