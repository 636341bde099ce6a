# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet without a way out: a bundle is made outside and carried to a host of the lab that becomes mirror and
registry, and a GPU host deploys from that while every other address is cut off, and what it tries to reach is counted.

Needs root; the lab installs what it lacks and says what it can not install.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_box import Run, play
from gpu_lab import Lab, parse, push_images, registry_address
from lab_box import LabBox, make_hub, seed
from model_hub import Hub
from registry_box import make_wheel

pytestmark = pytest.mark.lab

GPU, DEPOT = "gpu-01", "depot"
ROOT = "/srv/gpufleet-mirror"
STICK = "/mnt/stick"
# Everything that begins at the host or in a container of it and leaves it, but for the fleet's own network.
CUT = """
for chain in OUTPUT FORWARD; do
    iptables --insert $chain 1 --out-interface eth0 ! --destination {subnet} --protocol udp --jump REJECT
    iptables --insert $chain 1 --out-interface eth0 ! --destination {subnet} --protocol tcp --syn --jump REJECT
done
"""
COUNT = "iptables --verbose --exact --numeric --list {chain} | awk '/eth0/ && /REJECT/ {{ print $1 }}'"


@dataclass
class Site:
    """The inside, and what was carried there."""

    box: LabBox
    bundled: Run
    unbundled: list[Run]
    address: str
    certificate: Path
    digest: str

    def sh(self, script: str, host: str = GPU, check: bool = True) -> str:
        return self.box.sh(script, host, check=check)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:8790"

    @property
    def image(self) -> str:
        return f"{self.address}:5000/engine-sim:1@{self.digest}"

    def deploy(self) -> Run:
        # No key in this one: what is shown is where things come from.
        services = [{key: value for key, value in item.items() if key != "api_key"} for item in seed()]
        given = {"vllm_hub_endpoint": self.endpoint, "vllm_image": self.image}
        return self.box.deploy({GPU: services}, "--limit", f"{GPU},localhost", **given)

    def attempts(self, host: str) -> int:
        """Packets that were to begin a connection, or were one of UDP, with an address outside of the fleet."""
        counts = [self.sh(COUNT.format(chain=chain), host).split() for chain in ("OUTPUT", "FORWARD")]
        assert [len(count) for count in counts] == [2, 2], counts
        return sum(int(number) for count in counts for number in count)

    def cut(self, host: str) -> None:
        self.sh(CUT.format(subnet=self.address.rpartition(".")[0] + ".0/24"), host)
        registry = f"http://{registry_address()}/v2/"
        assert self.sh(f"curl -s -m 5 -o /dev/null {registry} || echo refused", host) == "refused"
        assert self.attempts(host) > 0, "what is counted is what goes out"
        self.sh("iptables --zero", host)


def bundle(directory: Path, hub: str) -> Run:
    make_wheel(directory)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key"], check=True)
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "vllm_services": seed(),
        "vllm_image": f"{registry_address()}/engine-sim:1",
        "bundle_path": str(directory / "stick/fleet"),
        "bundle_format": "tar",
        "bundle_split_size": "4m",
        "bundle_store": str(directory / "store"),
        "bundle_signing_key": str(directory / "key"),
        "bundle_hub_endpoint": hub,
        "bundle_tls_verify": False,
        "bundle_wheels": [
            {"name": "tools", "requirements": ["tiny"], "pip_args": ["--no-index", f"--find-links={directory}"]}
        ],
    }
    document = {
        "gpu_hosts": {"hosts": {"planned": {}}},
        "all": {"hosts": {"localhost": {}}, "vars": variables},
    }
    inventory = directory / "outside.json"
    inventory.write_text(json.dumps(document))
    return play("bundle", inventory, HOME=str(directory))


def unbundle(box: LabBox, *arguments: str, **variables: t.Any) -> Run:
    given = {
        "mirror_hosts": DEPOT,
        "mirror_bind_address": box.address(DEPOT),
        "unbundle_path": f"{STICK}/fleet",
        "unbundle_allowed_signers": f"bundles {(box.directory / 'key.pub').read_text()}",
        "unbundle_registry_tls_certificate": "/etc/ssl/depot.crt",
        "unbundle_registry_tls_key": "/etc/ssl/depot.key",
        "unbundle_cert_dir": "/etc/ssl/depot",
        **variables,
    }
    return play("unbundle", box.lab.inventory, "-e", json.dumps(given), *arguments)


def certify(box: LabBox) -> Path:
    """A certificate for the registry, which the GPU host's Docker is told to trust; its daemon is left alone."""
    address, certificate = box.address(DEPOT), box.directory / "depot.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=depot", "-addext", f"subjectAltName=IP:{address}",
         "-keyout", box.directory / "depot.key", "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    box.sh("mkdir -p /etc/ssl/depot", DEPOT)
    for source, host, target in (
        (certificate, DEPOT, "/etc/ssl/depot.crt"),
        (certificate, DEPOT, "/etc/ssl/depot/ca.crt"),
        (box.directory / "depot.key", DEPOT, "/etc/ssl/depot.key"),
    ):
        box.lab.copy(source, host, target)
    place = f"/etc/docker/certs.d/{address}:5000"
    box.sh(f"mkdir -p {place}", GPU)
    box.lab.copy(certificate, GPU, f"{place}/ca.crt")
    return certificate


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("airgap")
    digest = push_images(["engine-sim:1"])["engine-sim:1"]
    hosts = parse({"hosts": [{"name": GPU, "family": "debian13"}, {"name": DEPOT, "family": "debian13"}]})
    # The lab itself has no hub. The one outside is on loopback, and gone when the bundle is made.
    with Lab("airgap", hosts) as lab:
        box = LabBox(lab, directory)
        with Hub(make_hub(directory)) as hub:
            bundled = bundle(directory, hub.endpoint)
        assert bundled.rc == 0, bundled.output[-6000:]
        lab.run(DEPOT, ["mkdir", "-p", "/mnt"])
        lab.copy(directory / "stick", DEPOT, STICK)
        certificate = certify(box)
        made = Site(box, bundled, [], box.address(DEPOT), certificate, digest)
        made.cut(GPU)
        made.unbundled = [unbundle(box, "--check", "--diff"), unbundle(box)]
        assert [run.rc for run in made.unbundled] == [0, 0], "\n".join(run.output[-6000:] for run in made.unbundled)
        # It had its packages from the site's own source; from now on it is cut off as well.
        made.cut(DEPOT)
        yield made


def test_check_mode_foretold_the_load_and_a_second_one_changes_nothing(site: Site) -> None:
    foretold, done = site.unbundled
    assert "would be pushed" in foretold.output
    for line in ("signed by bundles", f"vllm_hub_endpoint: {site.endpoint}", site.image):
        assert line in done.output
    again = unbundle(site.box)
    assert (again.rc, again.changed) == (0, 0), again.output
    checked = unbundle(site.box, unbundle_state="checked")
    assert (checked.rc, checked.changed) == (0, 0), checked.output
    assert "every file in it is right" in checked.output


def test_models_are_stored_once(site: Site) -> None:
    shown = site.sh(f"find {ROOT} -name model.safetensors -printf '%i %n\\n' | sort -u", DEPOT).splitlines()
    assert shown
    assert all(int(line.split()[1]) >= 2 for line in shown), "what is served and what was unpacked are one file"


def test_a_deploy_needs_no_address_outside(site: Site) -> None:
    run = site.deploy()
    assert run.rc == 0, run.output[-6000:]
    assert "1 host, 2 services: all answer" in run.output
    inspected = site.box.inspect("vllm-qwen-vl-service")
    assert inspected["Config"]["Image"] == site.image, "by the digest that it has outside"
    assert site.box.answers(8000)
    assert site.box.answers(8081)
    again = site.deploy()
    assert (again.rc, again.changed) == (0, 0), again.output
    assert {host: site.attempts(host) for host in (GPU, DEPOT)} == {GPU: 0, DEPOT: 0}


def test_packages_and_the_collection_are_served_too(site: Site) -> None:
    listed = site.sh(f"curl -sf {site.endpoint}/bundle/wheels/tools/")
    assert "tiny-1.0-py3-none-any.whl" in listed
    name = site.sh(f"ls {ROOT}/bundle/collection", DEPOT)
    assert name.startswith("gpufleet-vllm-")
    site.sh(f"curl -sf -o /tmp/collection.tar.gz {site.endpoint}/bundle/collection/{name}")
    assert "playbooks/deploy.yml" in site.sh("tar -tzf /tmp/collection.tar.gz")
    for hidden in ("manifest.json", ".gpufleet.json", "images/blobs/", "wheels/../manifest.json", "models/"):
        status = site.sh(f"curl -s --path-as-is -o /dev/null -w '%{{http_code}}' {site.endpoint}/bundle/{hidden}")
        assert status in {"400", "403", "404"}, hidden


def test_a_bundle_that_was_damaged_on_the_way_changes_nothing(site: Site) -> None:
    # Another byte whatever stands there: what a bundle holds differs from run to run.
    part = f"{STICK}/fleet.tar.002"
    flip = f"f = open('{part}', 'r+b'); f.seek(9000); byte = f.read(1)[0]; f.seek(9000); f.write(bytes([byte ^ 255]))"
    site.sh(f'python3 -c "{flip}"', DEPOT)
    before = site.sh(f"find {ROOT} /etc/gpufleet-registry -type f -printf '%p %i %T@\\n' | sort | sha256sum", DEPOT)
    run = unbundle(site.box, unbundle_root="/srv/other")
    assert run.rc == 2, run.output
    assert "bundle.damaged" in run.output or "fleet.tar.002 differs from fleet.sha256" in run.output
    assert site.sh("ls /srv/other/models 2>&1 || :", DEPOT).endswith("No such file or directory")
    after = site.sh(f"find {ROOT} /etc/gpufleet-registry -type f -printf '%p %i %T@\\n' | sort | sha256sum", DEPOT)
    assert after == before
