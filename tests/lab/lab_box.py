# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Emulated GPU hosts to deploy Compose stacks to: an inventory, the real playbooks, and Docker to look at the result.

Where a playbook run is not the point, :meth:`LabBox.apply` does what one does on a host (facts, plan, images, stack)
in one call of a second, with the collection's own code on the host's own Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import typing as t
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ansible
import yaml
from fleet_box import REPOSITORY, Run, controller_environment, play
from gpu_lab import Lab, parse, push_images, registry_address
from model_builder.catalogue import CATALOGUE
from model_hub import add_model

ROOT = "/var/lib/gpufleet-vllm"
MODELS = "/data/models/vlm"
KEY = "sk-lab-0123456789"
SIMULATORS = ("engine-sim:1", "engine-sim:2", "engine-sim:noaudio")
CODE = "/opt/lab"
# What a playbook run does on a host, with what check mode says before and after it.
JOB = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_info, _image, _plan, _stack, _stack_apply
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

given = json.load(sys.stdin)
settings = _plan.Settings(**given["settings"])
root = settings.root

def run():
    facts = _host_info.gather(root, "compose", [], [root, settings.model_root], "vllm")
    plan = _plan.make_plan(given["services"], settings, facts)
    errors = [finding for finding in plan["findings"] if finding["severity"] == "error"]
    if errors:
        return {"error": [finding["code"] for finding in errors], "text": json.dumps(errors)}
    images = _image.Images(_image.Options(root=root, images=plan["images"]), False).run()["images"]
    options = _stack_apply.Options(
        root=root,
        runtime=plan["runtime"],
        services=plan["services"],
        secrets=given["secrets"],
        artifacts=(_stack.read_json(root + "/plan.json") or {}).get("artifacts") or [],
        engine={**plan["engine"], "digest": ""},
        images=images,
    )
    if given["settling"]:
        return {"done": _stack_apply.present(options, False)}
    predicted = _stack_apply.present(options, True)
    done = _stack_apply.present(options, False)
    return {"predicted": predicted, "done": done, "again": _stack_apply.present(options, True)}

try:
    answer = run()
except (FleetError, OSError) as exc:
    failure = _stack.as_failure(exc)
    answer = {"error": [failure.code], "text": str(failure)}
print(json.dumps(answer))
"""


def role_defaults() -> dict[str, t.Any]:
    """What a plan depends on beside the inventory, as the role vllm has it."""
    defaults = yaml.safe_load((REPOSITORY / "roles/vllm/defaults/main.yml").read_text())
    return {name: defaults[f"vllm_{name}"] for name in ("default_args", "default_environment", "engine_versions")}


def image(tag: str) -> str:
    return f"{registry_address()}/engine-sim:{tag}"


def seed() -> list[dict[str, t.Any]]:
    """Both services of the seed, as a user writes them."""
    return [
        {
            "name": "qwen-vl-service",
            "model": "Qwen/Qwen2.5-VL-7B-Instruct",
            "served_model_name": "qwen2.5-vl",
            "gpus": [0, 1],
            "port": 8000,
            "max_model_len": 32000,
            "api_key": KEY,
        },
        {"name": "whisper-service", "model": "openai-mirror/whisper-large-v3-turbo", "gpus": [2], "port": 8081},
    ]


def faults(**settings: t.Any) -> dict[str, str]:
    """``environment:`` of a service whose simulator misbehaves."""
    return {"ENGINE_SIM_FAULTS": json.dumps(settings)}


def make_hub(root: Path) -> Path:
    """A hub's directory with the seed's models, tiny ones of the same architectures."""
    for name in ("qwen2.5-vl", "whisper"):
        entry = CATALOGUE[name]
        add_model(root / "hub", entry.id, Path(entry.build(root / name, None).path))
    return root / "hub"


@contextmanager
def lab_of(name: str, families: Mapping[str, str], directory: Path) -> Iterator[LabBox]:
    """A lab with hosts of these families, by name, that serves the seed's models."""
    push_images(SIMULATORS)
    hosts = [{"name": host, "family": family} for host, family in families.items()]
    with Lab(name, parse({"hosts": hosts}), hub=make_hub(directory)) as lab:
        yield LabBox(lab, directory)


@dataclass(frozen=True)
class Applied:
    """What :meth:`LabBox.apply` came to: check mode before it, the change, check mode after it; or why it failed."""

    answer: Mapping[str, t.Any]

    @property
    def errors(self) -> list[str]:
        return list(self.answer.get("error") or [])

    @property
    def text(self) -> str:
        return str(self.answer.get("text") or "")

    @property
    def actions(self) -> dict[str, str]:
        assert not self.errors, self.text
        return _actions(self.answer["done"])

    def exact(self) -> dict[str, str]:
        """The actions, which check mode foretold with the same diff, and after which nothing is left to do."""
        actions = self.actions
        assert _actions(self.answer["predicted"]) == actions
        assert self.answer["predicted"]["diff"] == self.answer["done"]["diff"]
        assert self.answer["predicted"]["changed"] == self.answer["done"]["changed"]
        assert not self.answer["again"]["changed"]
        return actions


def _actions(result: Mapping[str, t.Any]) -> dict[str, str]:
    return {service["name"]: service["action"] for service in result["services"]}


@dataclass
class LabBox:
    """The hosts of a lab. Where a method takes no host, it is about the first one."""

    lab: Lab
    directory: Path
    variables: dict[str, t.Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = list(self.lab.hosts)
        self.report_file = self.directory / "report.json"
        self._prepared: set[str] = set()

    def address(self, host: str = "") -> str:
        return self.lab.host(host or self.names[0]).address

    # Deploying

    def inventory(self, services: t.Any, **variables: t.Any) -> Path:
        """What a user would add to the lab's inventory. ``services``: for all hosts alike, or by host."""
        common = {
            "vllm_image": image("1"),
            "vllm_model_root": MODELS,
            "vllm_bind_address": "{{ ansible_host }}",
            # Within the limits of a machine whose root may not raise them.
            "vllm_container_ulimits": {"nofile": 10000},
            "vllm_drain_seconds": 1,
            "vllm_ready_timeout": 60,
            "vllm_report_path": str(self.report_file),
            **self.variables,
            **variables,
        }
        own = services if isinstance(services, dict) else dict.fromkeys(self.names, services)
        hosts = {name: {"vllm_services": listed} for name, listed in own.items()}
        path = self.directory / "inventory.json"
        path.write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": common}}))
        return path

    def play(self, playbook: str, services: t.Any, *arguments: str, **variables: t.Any) -> Run:
        extra = self.inventory(services, **variables)
        return play(playbook, self.lab.inventory, "-i", str(extra), *arguments)

    def deploy(self, services: t.Any, *arguments: str, **variables: t.Any) -> Run:
        return self.play("deploy", services, *arguments, **variables)

    @contextmanager
    def deploying(self, services: t.Any, *arguments: str, **variables: t.Any) -> Iterator[subprocess.Popen[str]]:
        """A deploy that is under way; its output is in ``deploy.log``."""
        extra = self.inventory(services, **variables)
        program = Path(sys.executable).with_name("ansible-playbook")
        inventories = ["-i", str(self.lab.inventory), "-i", str(extra)]
        with (
            (self.directory / "deploy.log").open("w") as log,
            subprocess.Popen(
                [program, *inventories, "gpufleet.vllm.deploy", *arguments],
                cwd=REPOSITORY,
                env=controller_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ) as running,
        ):
            yield running

    @property
    def output(self) -> str:
        """What :meth:`deploying` printed so far."""
        return (self.directory / "deploy.log").read_text()

    def report(self) -> dict[str, t.Any]:
        document: dict[str, t.Any] = json.loads(self.report_file.read_text())
        return document

    def settle(self) -> None:
        """Bring the first host to the seed, whatever it runs."""
        settled = self.apply(seed(), settling=True)
        assert not settled.errors, settled.text

    def apply(
        self, services: Sequence[Mapping[str, t.Any]], host: str = "", settling: bool = False, **settings: t.Any
    ) -> Applied:
        """Bring one host to these services, without a playbook; models must be there."""
        host = host or self.names[0]
        if host not in self._prepared:
            place = f"{CODE}/ansible_collections/gpufleet/vllm/plugins"
            self.lab.run(host, ["mkdir", "-p", place, f"{CODE}/ansible"])
            self.lab.copy(REPOSITORY / "plugins/module_utils", host, place)
            # What Ansible sends along with a module.
            self.lab.copy(Path(ansible.__file__).with_name("module_utils"), host, f"{CODE}/ansible")
            self.lab.run(host, ["touch", f"{CODE}/ansible/__init__.py"])
            self._prepared.add(host)
        own = {
            **role_defaults(),
            "root": ROOT,
            "model_root": MODELS,
            "bind_address": self.address(host),
            "address": self.address(host),
            "drain_seconds": 1,
            "ready_timeout": 60,
            "image": image("1"),
            "container_ulimits": {"nofile": 10000},
            **settings,
        }
        secrets = {item["name"]: {"VLLM_API_KEY": item["api_key"]} for item in services if item.get("api_key")}
        job = json.dumps({"services": services, "settings": own, "secrets": secrets, "settling": settling})
        said = self.lab.run(host, ["python3", "-c", JOB, CODE], input_bytes=job.encode())
        return Applied(json.loads(said))

    # Looking

    def sh(self, script: str, host: str = "", check: bool = True) -> str:
        return self.lab.run(host or self.names[0], ["sh", "-c", script], check=check).strip()

    def docker(self, *arguments: str, host: str = "") -> str:
        return self.lab.run(host or self.names[0], ["docker", *arguments]).strip()

    def containers(self, host: str = "") -> dict[str, str]:
        """The ids of all containers of a host, by name."""
        lines = self.docker("ps", "--all", "--no-trunc", "--format", "{{.Names}} {{.ID}}", host=host).splitlines()
        return dict(line.split() for line in lines)

    def inspect(self, name: str, host: str = "") -> dict[str, t.Any]:
        found: list[dict[str, t.Any]] = json.loads(self.docker("inspect", name, host=host))
        return found[0]

    def gpus(self, host: str = "") -> dict[str, list[int]]:
        """The GPUs that each running container was given, as the runtime hook wrote them down."""
        running = {identity: name for name, identity in self.containers(host).items()}
        lines = [json.loads(line) for line in self.sh("cat /var/lib/gpusim/hook.jsonl", host).splitlines()]
        return {running[line["id"]]: line["indices"] for line in lines if line["id"] in running}

    def health(self, port: int, host: str = "") -> int:
        """The status of /health, 0 where nothing answers."""
        asked = f"curl -s -o /dev/null -m 5 -w '%{{http_code}}' http://{self.address(host)}:{port}/health"
        return int(self.sh(asked, host, check=False) or 0)

    def answers(self, port: int, host: str = "", seconds: float = 20) -> bool:
        return until(lambda: self.health(port, host) == 200, seconds)

    def simulate(self, host: str = "", **settings: t.Any) -> None:
        """Faults of the host's GPUs, from now on; without any it is well again."""
        name = host or self.names[0]
        gpus = json.dumps({**self.lab.host(name).spec.gpus, "faults": settings})
        self.lab.run(name, ["sh", "-c", "cat >/etc/gpusim/gpus.json"], input_bytes=gpus.encode())


def until(condition: Callable[[], bool], seconds: float = 20, pause: float = 0.2) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
