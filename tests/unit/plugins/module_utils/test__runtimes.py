# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import grp
import os
import pwd

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _runtimes
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Layout
from ansible_collections.gpufleet.vllm.plugins.module_utils._supervisor import SupervisorBackend
from ansible_collections.gpufleet.vllm.plugins.module_utils._systemd import SystemdBackend


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("/var/lib/gpufleet-vllm", "/var/lib/gpufleet-vllm"),
        ("/var/lib/gpufleet-vllm/", "/var/lib/gpufleet-vllm"),
        ("//srv//vllm/../vllm", "/srv/vllm"),
        ("/vllm", "/vllm"),
        ("/gpufleet/", "/gpufleet"),
        ("/home/a user/vllm", "/home/a user/vllm"),
    ],
)
def test_root(given: str, cleaned: str) -> None:
    assert _runtimes.absolute_root(given) == cleaned


@pytest.mark.parametrize(
    "root",
    ["", ".", "vllm", "vllm/x/y", "/", "//", "///", "/var", "//var", "/var/lib/..", "/etc/", "/vllm/..", "/var/lib",
     "//var/lib/", "/var/tmp", "/usr/local", "/srv/a\nb", "/srv/a\0b"],
)  # fmt: skip
def test_root_that_is_refused(root: str) -> None:
    with pytest.raises(FleetError) as caught:
        _runtimes.absolute_root(root)
    assert caught.value.code == "stack.bad_root"
    assert "/var/lib/gpufleet-vllm" in caught.value.remedy


@pytest.mark.parametrize(("manager", "runtime"), [("systemd", "systemd"), ("none", "supervisor")])
def test_auto_follows_the_init_system(manager: str, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtimes, "service_manager", lambda: manager)
    assert _runtimes.resolve_runtime("auto") == runtime
    assert _runtimes.resolve_runtime("supervisor") == "supervisor"
    assert _runtimes.resolve_runtime("systemd") == "systemd"
    kind = {"systemd": SystemdBackend, "supervisor": SupervisorBackend}[runtime]
    assert isinstance(_runtimes.make_backend("auto", Layout("/srv/vllm")), kind)


def test_service_owner() -> None:
    me, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(pwd.getpwuid(os.geteuid()).pw_gid)
    assert _runtimes.service_owner("systemd", me.pw_name, group.gr_name) == (me.pw_uid, group.gr_gid)
    assert _runtimes.service_owner("supervisor", "no-such-user", "no-such-group") is None
    assert _runtimes.user_exists(me.pw_name)
    assert not _runtimes.user_exists("no-such-user")


@pytest.mark.parametrize("name", ["user", "group"])
def test_a_missing_service_user(name: str) -> None:
    user = "no-such" if name == "user" else pwd.getpwuid(os.geteuid()).pw_name
    with pytest.raises(FleetError) as caught:
        _runtimes.service_owner("systemd", user, "no-such")
    assert caught.value.code == "stack.no_user"
    assert "no-such" in caught.value.seen
