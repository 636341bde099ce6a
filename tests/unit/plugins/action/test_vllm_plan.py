# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan as an action: through Ansible's own inventory, variables and templating, from the example inventory."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing as t
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar, trust_as_template
from ansible.vars.manager import VariableManager
from ansible_collections.gpufleet.vllm.plugins.action.vllm_plan import ARGUMENT_SPEC, ActionModule, read_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_plan as documented

ROOT = Path(inspect.getfile(documented)).resolve().parents[2]
FLEET = ROOT / "inventory" / "fleet"
COMPOSE = ROOT / "inventory" / "compose"
SMI = ROOT / "tests" / "unit" / "plugins" / "module_utils" / "fixtures" / "nvidia" / "h200-580.xml"
KEY = "sk-unit-0123456789"

# The first two commands of the seed document's section "Docker", byte for byte.
VISION = r"""CUDA_VISIBLE_DEVICES=0,1 \
vllm serve /data/models/vlm/Qwen2.5-VL-7B-Instruct \
    --port 8000 \
    --served-model-name Qwen2.5-VL \
    --tensor-parallel-size 2 \
    --max-model-len 32000"""
WHISPER = r"""CUDA_VISIBLE_DEVICES=2 \
vllm serve /data/models/vlm/whisper-large-v3 \
    --port 8081 \
    --served-model-name whisper-large-v3"""
SMALL_VISION = r"""CUDA_VISIBLE_DEVICES=0 \
vllm serve /data/models/vlm/Qwen2.5-VL-3B-Instruct \
    --port 8000 \
    --served-model-name qwen2.5-vl-3b \
    --max-model-len 32000 \
    --limit-mm-per-prompt '{"image":4,"video":0}'"""
SMALL_WHISPER = r"""CUDA_VISIBLE_DEVICES=1 \
vllm serve /data/models/vlm/whisper-large-v3-turbo \
    --port 8081 \
    --served-model-name whisper-large-v3-turbo \
    --gpu-memory-utilization 0.5"""
MODELS = {
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "openai-mirror/whisper-large-v3",
    "openai-mirror/whisper-large-v3-turbo",
}


def role_file(name: str) -> t.Any:
    """A file of the role, its templates as Ansible takes them."""
    return DataLoader().load_from_file(str(ROOT / "roles" / "vllm" / name), trusted_as_template=True)


def role_options() -> dict[str, t.Any]:
    """The options that the role gives this action, as templates."""
    tasks = role_file("tasks/main.yml")
    return next(task["gpufleet.vllm.vllm_plan"] for task in tasks if "gpufleet.vllm.vllm_plan" in task)  # type: ignore[no-any-return]


def host_facts(count: int = 3) -> dict[str, t.Any]:
    """What ``vllm_host_info`` returns on a host with the first of the three recorded H200."""
    return {
        "gpus": _nvidia.parse_smi_xml(SMI.read_text(encoding="utf-8"))["gpus"][:count],
        "gpu_reason": "",
        "machine": "x86_64",
        "cpu": {"model": "x", "flags": ["avx2"]},
        "service_manager": "systemd",
        "listening": [],
    }


VERSIONS = {"engine_versions": {"cuda": "0.33.0"}}


def run(arguments: dict[str, t.Any], variables: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    """The action, in a task of its own."""
    loader = DataLoader()
    templar = Templar(loader=loader, variables=variables)
    task = Task()
    task.action = "gpufleet.vllm.vllm_plan"
    task.args = arguments
    action = ActionModule(
        task=task, connection=Mock(), play_context=PlayContext(), loader=loader, templar=templar, shared_loader_obj=None
    )  # fmt: skip
    return action.run(task_vars=variables or {})


def fleet_plan(
    host: str, facts: dict[str, t.Any], key: str = KEY, example: Path = FLEET, **extra: t.Any
) -> dict[str, t.Any]:
    """The action's result for one host of an example inventory, with the role's defaults."""
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(example)])
    manager = VariableManager(loader=loader, inventory=inventory)
    found = inventory.get_host(host)
    assert found is not None
    own = manager.get_vars(host=found)
    variables = {
        **role_file("defaults/main.yml"),
        **role_file("vars/main.yml"),
        **own,
        # No fleet service is placed on it; no filter of the collection is to be had here.
        "vllm_host_services": own["vllm_services"],
        "vllm_api_key": key,
        "vllm_host": facts,
        "ansible_diff_mode": False,
        **extra,
    }
    options = Templar(loader=loader, variables=variables).template(role_options())
    return run(options, variables)


def fleet_services() -> list[dict[str, t.Any]]:
    files = sorted((FLEET / "host_vars").glob("*.yml"))
    return [entry for file in files for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["vllm_services"]]


def test_the_two_commands_of_the_seed_document() -> None:
    result = fleet_plan("gpu-01", host_facts())
    assert "failed" not in result
    plan = result["plan"]
    assert plan["findings"] == []
    vision, whisper = plan["services"]
    assert vision["shell"] == VISION
    assert whisper["shell"] == WHISPER
    assert KEY not in json.dumps(result)
    assert (vision["secrets"], whisper["secrets"]) == (["VLLM_API_KEY"], ["VLLM_API_KEY"])


@pytest.mark.parametrize(("position", "text"), [(0, VISION), (1, WHISPER)])
def test_what_is_run_begins_with_the_same_words(position: int, text: str) -> None:
    service = fleet_plan("gpu-01", host_facts())["plan"]["services"][position]
    variable, _vllm, *words = text.replace("\\\n", "").split()
    assert service["command"][0].endswith("/bin/vllm")
    assert service["command"][1 : len(words) + 1] == words
    name, _equals, value = variable.partition("=")
    # By UUID, so that a reboot that numbers the cards anew starts it on the same ones.
    uuids = {str(card["index"]): card["uuid"] for card in host_facts()["gpus"]}
    assert service["environment"][name] == ",".join(uuids[index] for index in value.split(","))
    # What the collection adds comes after, and says nothing of what was declared.
    added = service["command"][len(words) + 1 :]
    assert added == [
        "--host", "10.0.0.11", "--shutdown-timeout", "120",
        "--disable-access-log-for-endpoints", "/health,/metrics,/ping",
    ]  # fmt: skip


def test_the_smaller_models_on_the_other_host() -> None:
    plan = fleet_plan("gpu-02", host_facts(2))["plan"]
    assert plan["findings"] == []
    assert [service["shell"] for service in plan["services"]] == [
        SMALL_VISION,
        SMALL_WHISPER,
    ]
    assert [service["public_url"] for service in plan["services"]] == ["http://10.0.0.12:8000", "http://10.0.0.12:8081"]


def contained(plan: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    return [service["container"] for service in plan["services"]]


def test_the_compose_file_of_the_seed_document_put_right() -> None:
    """Its names, models, GPUs, ports and flags; not its ``count``, ``CUDA_VISIBLE_DEVICES`` and ``latest``."""
    result = fleet_plan("gpu-01", with_docker(host_facts()), example=COMPOSE)
    assert "failed" not in result, result["msg"]
    plan = result["plan"]
    assert (plan["runtime"], plan["findings"]) == ("compose", [])
    vision, whisper = contained(plan)
    assert [service["name"] for service in plan["services"]] == ["qwen-vl-service", "whisper-service"]
    assert vision["command"][:7] == [
        "/model", "--served-model-name", "qwen2.5-vl", "--tensor-parallel-size", "2", "--max-model-len", "32000"
    ]  # fmt: skip
    assert whisper["command"][:3] == ["/model", "--served-model-name", "whisper-large-v3-turbo"]
    assert [container["ports"][0] for container in (vision, whisper)] == [
        {"target": 8000, "published": port, "protocol": "tcp", "host_ip": "10.0.0.11"} for port in ("8000", "8081")
    ]
    assert [container["volumes"][0]["source"] for container in (vision, whisper)] == [
        "/data/models/vlm/Qwen2.5-VL-7B-Instruct", "/data/models/vlm/whisper-large-v3-turbo"
    ]  # fmt: skip
    assert [image["image"] for image in plan["images"]] == [
        "vllm/vllm-openai:v0.33.0", "vllm/vllm-openai-audio:v0.33.0"
    ]  # fmt: skip
    assert KEY not in json.dumps(result)


def test_the_replica_on_the_other_host() -> None:
    plan = fleet_plan("gpu-02", with_docker(host_facts(2)), example=COMPOSE)["plan"]
    assert plan["findings"] == []
    assert [service["public_url"] for service in plan["services"]] == ["http://10.0.0.12:8000"]


def with_docker(facts: dict[str, t.Any]) -> dict[str, t.Any]:
    docker = {"installed": True, "running": True}
    compose = {"installed": True, "plugin": True, "version": "2.40.1"}
    return {**facts, "nvidia": {"cuda_version": "13.0", "container": {"docker": docker, "compose": compose}}}


def test_all_models_of_the_seed_document_are_in_the_example() -> None:
    assert {service["model"] for service in fleet_services()} == MODELS


def test_a_key_that_is_not_set_opens_no_service() -> None:
    result = fleet_plan("gpu-01", host_facts(), key="")
    assert result["failed"]
    assert [finding["code"] for finding in result["plan"]["findings"]] == ["service.bad_value"] * 2
    assert "set the variable that it comes from" in result["msg"]


@pytest.mark.parametrize(("own", "source"), [({}, "elsewhere"), ({"x/a@master": {"source": "artifact"}}, "artifact")])
def test_what_lies_on_another_host_does_not_lie_on_this_one(own: dict[str, t.Any], source: str) -> None:
    arguments = {
        "services": [{"name": "a", "model": "x/a", "gpus": 1}],
        "facts": {**host_facts(), "models": own},
        "model_root": "/m",
        "engine_versions": {"cuda": "0.33.0"},
        "models": {"x/a@master": {"source": "artifact", "bytes_total": 5}},
    }
    assert run(arguments)["plan"]["models"]["x/a@master"]["source"] == source


def test_errors_fail_the_task_unless_told_not_to() -> None:
    arguments = {
        "services": [{"name": "a", "model": "x/a", "gpus": [9]}],
        "facts": host_facts(),
        "model_root": "/m",
        "engine_versions": {"cuda": "0.33.0"},
    }
    failed = run(arguments)
    assert failed["failed"]
    assert failed["msg"].startswith("The plan has 1 error, nothing was changed.\nerror plan.gpu_missing (a): GPU 9")
    assert "remedy:" in failed["msg"]
    kept = run({**arguments, "fail_on_errors": False})
    assert "failed" not in kept
    assert (kept["changed"], kept["plan"]) == (False, failed["plan"])


def test_a_finding_that_is_no_error_fails_nothing() -> None:
    result = run(
        {
            "services": [{"name": "a", "model": "x/a"}],
            "facts": {**host_facts(0), "gpu_reason": "no driver"},
            "model_root": "/m",
            "allow_cpu": True,
            "engine_versions": {"cpu": "0.32.0"},
        }
    )
    assert "failed" not in result
    assert [finding["severity"] for finding in result["plan"]["findings"]] == ["info"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "facts"),
        ({"runtime": "docker"}, "runtime"),
        ({"drain_seconds": "long"}, "drain_seconds"),
        ({"prot": 1}, "prot"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, t.Any], said: str) -> None:
    given = {"services": [], "facts": {}, "model_root": "/m", **arguments} if arguments else {}
    with pytest.raises(AnsibleError, match=re.escape(said)):
        run(given)


def test_the_documentation_is_the_argument_spec() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(ARGUMENT_SPEC)
    for name, spec in ARGUMENT_SPEC.items():
        for key in ("type", "default", "choices", "required"):
            assert options[name].get(key) == spec.get(key), (name, key)


def test_models_that_the_facts_do_not_tell_of() -> None:
    """Those of the fleet were read on one host, for all; what the host itself has is known better."""
    services = [{"name": name, "model": f"acme/{name}", "port": port} for name, port in (("a", 8000), ("b", 8001))]
    given = {"acme/a@master": {"bytes_total": 1}, "acme/b@master": {"bytes_total": 1}}
    own = {**host_facts(), "models": {"acme/b@master": {"bytes_total": 2}}}
    plan = run({"services": services, "facts": own, "model_root": "/data", "models": given, **VERSIONS})["plan"]
    assert {name: entry["bytes_total"] for name, entry in plan["models"].items()} == {
        "acme/a@master": 1,
        "acme/b@master": 2,
    }


def test_the_options_are_the_settings() -> None:
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    assert set(ARGUMENT_SPEC) - set(fields) == {
        "check_variables", "fail_on_errors", "facts", "findings", "models", "services", "show"
    }  # fmt: skip
    assert set(fields) <= set(ARGUMENT_SPEC)
    for name in set(fields) - {"root", "model_root"}:
        field = fields[name]
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        assert ARGUMENT_SPEC[name]["default"] == default, name


def test_the_role_sets_every_option() -> None:
    assert set(role_options()) == set(ARGUMENT_SPEC)


def test_the_example_sets_every_option() -> None:
    task, contained = yaml.safe_load(documented.EXAMPLES)
    assert {*task["gpufleet.vllm.vllm_plan"], *contained["gpufleet.vllm.vllm_plan"]} == set(ARGUMENT_SPEC)
    example = {**task["gpufleet.vllm.vllm_plan"], "facts": host_facts(), "model_root": "/data/models/vlm"}
    assert [service["shell"] for service in run(example)["plan"]["services"]] == [VISION, WHISPER]


# ---- the variables of the host


def wrong(**extra: t.Any) -> dict[str, t.Any]:
    """The findings of a host whose variables are wrong, by what was seen."""
    result = fleet_plan("gpu-01", host_facts(), **extra)
    return {finding["seen"]: finding for finding in result["plan"]["findings"]} | {"": result}


def test_a_wrong_choice_is_a_finding_and_all_others_are_said_too() -> None:
    found = wrong(vllm_runtime="sytemd", vllm_drain_seconds="soon", vllm_image_pull="newer", vllm_repin=["nobody"])
    result = found.pop("")
    assert result["failed"]
    assert result["plan"]["errors"] == 3
    assert found["vllm_runtime is 'sytemd'"]["remedy"] == "write systemd"
    assert {finding["code"] for finding in found.values()} >= {"plan.bad_setting"}
    assert {"vllm_drain_seconds is 'soon'", "vllm_image_pull is 'newer'"} <= set(found)
    # The rest is planned with what the role has itself.
    assert (result["plan"]["runtime"], result["plan"]["services"][0]["drain_seconds"]) == ("systemd", 120)


def test_a_wrong_value_of_a_variable_with_another_name_than_its_option() -> None:
    found = wrong(vllm_artifact_allow_pickle="maybe", vllm_preflight_skip={"a": 1})
    assert {"vllm_artifact_allow_pickle is 'maybe'", "vllm_preflight_skip is a mapping"} <= set(found)


def test_a_template_is_read_before_it_is_judged() -> None:
    template = DataLoader().load("x: '{{ mine }}'")["x"]
    assert set(wrong(vllm_image_pull="{{ not a template of ours }}")) == {
        "", "vllm_image_pull is '{{ not a template of ours }}'"
    }  # fmt: skip
    trusted = trust_as_template(str(template))
    assert set(wrong(vllm_image_pull=trusted, mine="always")) == {""}
    assert set(wrong(vllm_image_pull=trusted, mine="x")) == {"", "vllm_image_pull is 'x'"}
    assert set(wrong(vllm_image_pull=trusted)) == {""}


def test_a_misspelt_variable_is_a_warning_that_can_be_turned_off() -> None:
    found = wrong(vllm_image_pul="never")
    assert "failed" not in found.pop("")
    (finding,) = found.values()
    assert (finding["code"], finding["severity"]) == ("plan.unknown_variable", "warning")
    result = fleet_plan("gpu-01", host_facts(), vllm_image_pul="never", vllm_preflight_skip=["plan.unknown_variable"])
    assert (result["plan"]["findings"], result["plan"]["skipped"]) == ([], ["plan.unknown_variable"])


def test_misspelt_services_stop_the_host() -> None:
    result = fleet_plan("gpu-01", host_facts(), vllm_services=[], vllm_host_services=[], vllm_sevices=[{"name": "a"}])
    assert result["failed"]
    assert result["msg"].startswith("The plan has 1 error, nothing was changed.\nerror plan.unknown_variable: vllm_se")


def test_a_task_of_a_user_s_own_is_not_held_to_variables() -> None:
    arguments = {"services": [], "facts": host_facts(), "model_root": "/m", **VERSIONS}
    assert run(arguments, {"vllm_sevices": 1, "vllm_runtime": "x"})["plan"]["findings"] == []


def test_a_collection_without_its_roles(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == {}
    (tmp_path / "vllm" / "meta" / "argument_specs.yml").mkdir(parents=True)
    assert read_settings(tmp_path) == {}
