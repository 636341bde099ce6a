# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bundles of a real hub and real registries, by the playbook and by skopeo, ssh-keygen and pip themselves.

What a stick can do to a bundle is in tests/unit/plugins/module_utils/test__bundle_write.py; the other side, with nginx,
a registry and a deploy, in test_airgap.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_box import MODEL, Run, make_model, play
from model_hub import Fault, Hub, add_model
from module_host import Host, tree
from registry_box import DOCKER, OCI, RegistryBox, digest, layer, make_wheel

PASSWORD = "hunter2-of-the-registry"
HTPASSWD = "somebody:$2b$05$abcdefghijklmnopqrstuuJQ0OEfoQ1jvzDwPykoQtl7vEtSYYygy\n"


@dataclass
class Outside:
    """A place with a network: a hub, a registry with images, a directory of wheels, and what the playbook is told."""

    directory: Path
    hub: Hub
    registry: RegistryBox
    images: dict[str, bytes]
    key: Path

    def bundle(self, *arguments: str, **variables: t.Any) -> Run:
        services = [{"name": "chat", "model": MODEL, "revision": "v1", "api_key": "sk-of-the-service"}]
        hosts = {
            "gpu-01": {"vllm_image": self.image("engine:1"), "vllm_services": services},
            "gpu-02": {"vllm_services": [{**services[0], "image": self.image("audio:1")}]},
        }
        given = {
            "ansible_python_interpreter": sys.executable,
            "bundle_path": str(self.directory / "stick/fleet"),
            "bundle_store": str(self.directory / "store"),
            "bundle_signing_key": str(self.key),
            "bundle_hub_endpoint": self.hub.endpoint,
            "bundle_tls_verify": False,
            "bundle_collection": "",
            "bundle_wheels": [
                {
                    "name": "tools",
                    "requirements": ["tiny==1.0"],
                    "pip_args": ["--no-index", f"--find-links={self.directory}"],
                }
            ],
            **variables,
        }
        inventory = self.directory / "hosts.json"
        document = {"gpu_hosts": {"hosts": hosts}, "all": {"hosts": {"localhost": {}}, "vars": given}}
        document["all"]["hosts"]["localhost"] = {"ansible_connection": "local"}
        inventory.write_text(json.dumps(document))
        return play("bundle", inventory, *arguments, HOME=str(self.directory / "home"))

    def image(self, name: str) -> str:
        return f"{self.registry.address}/{name}"

    @property
    def stick(self) -> Path:
        return self.directory / "stick"

    @property
    def signers(self) -> str:
        return f"bundles {self.key.with_suffix('.pub').read_text()}"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    directory = tmp_path_factory.mktemp("outside")
    (directory / "home").mkdir()
    make_wheel(directory)
    add_model(directory / "hub", MODEL, make_model(directory / "tiny"), tag="v1")
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with RegistryBox(directory / "registry") as registry, Hub(directory / "hub") as hub:
        base = layer("base", random.Random(7).randbytes(3_000_000))
        images = {"engine:1": registry.push("engine", "1", [base, layer("a", b"engine")], DOCKER)}
        children = [
            (name, registry.push("audio", "", [base, layer("a", name.encode())], DOCKER, name))
            for name in ("amd64", "arm64")
        ]
        images["audio:1"] = registry.push_index("audio", "1", children, DOCKER)
        yield Outside(directory, hub, registry, images, key)


@pytest.fixture(scope="module")
def bundled(outside: Outside) -> Run:
    """The bundle as the playbook writes it first."""
    run = outside.bundle("-vvv", bundle_format="tar", bundle_split_size="2m")
    assert run.rc == 0, run.output[-6000:]
    return run


def test_the_playbook_writes_what_the_inventory_needs(outside: Outside, bundled: Run) -> None:
    assert "models: acme/tiny" in bundled.output
    assert "sk-of-the-service" not in bundled.output
    names = sorted(path.name for path in outside.stick.iterdir())
    assert names == ["fleet.sha256", "fleet.tar.001", "fleet.tar.002", "fleet.tar.003"]
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "fleet.sha256"], cwd=outside.stick, check=True)
    blobs = {path.name for path in (outside.directory / "store/images/sha256").iterdir()}
    assert {digest(raw).partition(":")[2] for raw in outside.images.values()} <= blobs
    assert len(blobs) == 11, "one index, three manifests with a configuration and a layer each, and one base for all"


def test_a_second_run_changes_nothing_and_check_mode_knows_it(outside: Outside, bundled: Run) -> None:
    same = {"bundle_format": "tar", "bundle_split_size": "2m"}
    requests, pulled = len(outside.hub.requests), outside.registry.log.count("blobs/sha256")
    run = outside.bundle(**same)
    assert (run.rc, run.changed) == (0, 0), run.output
    assert outside.bundle("--check", **same).changed == 0
    assert outside.hub.requests.count("lfs/*") == 1
    assert len(outside.hub.requests) > requests, "it asked for the commit"
    assert outside.registry.log.count("blobs/sha256") == pulled, "no layer was asked for again"


def read(host: Host, outside: Outside, dest: Path, **changes: t.Any) -> dict[str, t.Any]:
    given = {"path": str(outside.stick / "fleet"), "dest": str(dest), "allowed_signers": outside.signers}
    return host.run("vllm_unbundle", model=None, endpoint=None, **{**given, **changes})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, "")


def test_images_keep_their_digests_on_the_way_inside(
    outside: Outside, bundled: Run, host: Host, tmp_path: Path
) -> None:
    content = read(host, outside, tmp_path / "in")["content"]
    images = {image["image"].partition("/")[2]: image for image in content["images"]}
    assert {name: image["digest"] for name, image in images.items()} == {
        name: digest(raw) for name, raw in outside.images.items()
    }
    with RegistryBox(tmp_path / "registry") as inside:
        args = {
            "images": content["images"],
            "path": str(tmp_path / "in/images/blobs"),
            "state": "pushed",
            "registry": inside.address,
            "tls_verify": False,
        }
        args |= {"model": None, "endpoint": None}
        assert host.run("vllm_bundle_images", **args, _ansible_check_mode=True)["changed"]
        assert inside.digest("engine", "1") is None
        assert host.run("vllm_bundle_images", **args)["changed"]
        for name, raw in outside.images.items():
            assert inside.digest(*name.split(":")) == digest(raw)
        assert not host.run("vllm_bundle_images", **args)["changed"]
        # Another client gets an image of it, with layers that fit their digests.
        command = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{inside.address}/engine:1"]
        subprocess.run([*command, f"dir:{tmp_path / 'pulled'}"], check=True)
        assert (tmp_path / "pulled/manifest.json").read_bytes() == outside.images["engine:1"]


def test_the_model_is_the_hub_s_and_the_packages_install_without_an_index(
    outside: Outside, bundled: Run, host: Host, tmp_path: Path
) -> None:
    content = read(host, outside, tmp_path / "in")["content"]
    model = content["models"][0]
    assert (model["model"], model["revision"]) == (MODEL, "v1")
    assert tree(tmp_path / "in" / model["directory"]) == tree(outside.directory / "tiny")
    wheels = tmp_path / "in/wheels/tools"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    command = [python, "-m", "pip", "install", "-q", "--no-index", "--find-links", wheels]
    subprocess.run([*command, "-r", wheels / "requirements.txt"], check=True)
    answered = subprocess.run([python, "-c", "import tiny; print(tiny.ANSWER)"], check=True, capture_output=True)
    assert answered.stdout == b"42\n"


@pytest.mark.parametrize("damage", ["flipped", "missing", "extra", "truncated", "wrong key", "unsigned"])
def test_a_bundle_that_is_not_right_loads_nothing(
    outside: Outside, bundled: Run, host: Host, tmp_path: Path, damage: str
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    for path in outside.stick.iterdir():
        os.link(path, stick / path.name)
    victim = stick / "fleet.tar.002"
    content = bytearray(victim.read_bytes())
    victim.unlink()
    changes: dict[str, t.Any] = {"path": str(stick / "fleet")}
    code, named = "bundle.damaged", "fleet.tar.002"
    if damage == "flipped":
        content[len(content) // 2] ^= 0x10
    elif damage == "truncated":
        del content[-1:]
    elif damage == "missing":
        code = "bundle.missing_part"
    if damage != "missing":
        victim.write_bytes(content)
    if damage == "extra":
        (stick / "fleet.tar.004").write_bytes(b"")
        code, named = "bundle.extra_part", "fleet.tar.004"
    elif damage == "wrong key":
        other = outside.signers.split()
        key = bytearray(base64.b64decode(other[2]))
        key[-1] ^= 1
        changes["allowed_signers"] = f"bundles {other[1]} {base64.b64encode(key).decode()}"
        code, named = "bundle.bad_signature", "no key of the allowed signers"
    elif damage == "unsigned":
        run = outside.bundle(bundle_signing_key="", bundle_path=str(stick / "plain"))
        assert run.rc == 0, run.output
        changes["path"] = str(stick / "plain")
        code, named = "bundle.unsigned", "is not signed"
    given = {"dest": str(tmp_path / "in"), "allowed_signers": outside.signers, **changes}
    message = host.fail(code, module="vllm_unbundle", model=None, endpoint=None, **given)
    assert named in message
    assert not (tmp_path / "in/manifest.json").exists()


@pytest.mark.parametrize("kinds", [DOCKER, OCI, {**OCI, "layer": "application/vnd.oci.image.layer.v1.tar"}])
def test_every_format_of_images_goes_through(host: Host, tmp_path: Path, kinds: dict[str, str]) -> None:
    with RegistryBox(tmp_path / "a") as origin, RegistryBox(tmp_path / "b") as inside:
        children = [
            (name, origin.push("x/y", "", [layer("f", name.encode())], kinds, name)) for name in ("amd64", "arm")
        ]
        index = origin.push_index("x/y", "2", children, kinds)
        common = {"path": str(tmp_path / "store"), "tls_verify": False, "model": None, "endpoint": None}
        name = f"{origin.address}/x/y:2"
        stored = host.run("vllm_bundle_images", images=[name], **common)
        host.run("vllm_bundle_images", images=stored["images"], state="pushed", registry=inside.address, **common)
        assert inside.digest("x/y", "2") == digest(index)
        assert inside.digest("x/y", digest(children[1][1])) == digest(children[1][1])
        one = host.run("vllm_bundle_images", images=[name], platforms=["linux/arm"], **common)["images"]
        assert one[0]["digest"] == digest(children[1][1])
        by_digest = f"{origin.address}/x/y@{digest(children[0][1])}"
        item = {"image": by_digest, "repository": "z", "tag": "amd"}
        stored = host.run("vllm_bundle_images", images=[item], **common)
        host.run("vllm_bundle_images", images=stored["images"], state="pushed", registry=inside.address, **common)
        assert inside.digest("z", "amd") == digest(children[0][1])


def test_a_registry_with_users_is_reached_by_a_file_and_others_say_why_not(host: Host, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(HTPASSWD)
    with RegistryBox(tmp_path / "registry", users) as registry:
        common = {
            "images": [f"{registry.address}/x:1"],
            "path": str(tmp_path / "store"),
            "model": None,
            "endpoint": None,
            "module": "vllm_bundle_images",
        }
        host.fail("image.tls", **common)
        host.fail("image.unauthorized", tls_verify=False, **common)
        token = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.address: {"auth": token}}}))
        message = host.fail("image.not_found", tls_verify=False, authfile=str(tmp_path / "auth.json"), **common)
        assert PASSWORD not in message
    host.fail("image.failed", tls_verify=False, **common)


def test_a_fetch_that_was_cut_goes_on(outside: Outside, bundled: Run, tmp_path: Path) -> None:
    outside.hub.faults.add(Fault(match="lfs/*", status=404))
    fresh = {"bundle_store": str(tmp_path / "store"), "bundle_path": str(tmp_path / "fleet"), "bundle_images": []}
    try:
        run = outside.bundle(**fresh)
        assert run.rc == 2
        assert not (tmp_path / "fleet").exists()
    finally:
        outside.hub.faults.clear()
    run = outside.bundle(**fresh)
    assert run.rc == 0, run.output
    assert hashlib.sha256((tmp_path / "fleet/manifest.json").read_bytes()).hexdigest()
