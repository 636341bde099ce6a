# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_compose import image_version

FIXTURES = Path(__file__).parent / "fixtures" / "nvidia"
IMAGE = "vllm/vllm-openai:v0.33.0"
KEY = "sk-hunter2-0123456789"
# The seed's two services, as one writes them.
SEED = [
    {"name": "qwen-vl-service", "model": "Qwen/Qwen2.5-VL-7B-Instruct", "served_model_name": "qwen2.5-vl",
     "gpus": [0, 1], "port": 8000, "max_model_len": 32000, "api_key": KEY},
    {"name": "whisper-service", "model": "openai-mirror/whisper-large-v3-turbo", "gpus": [2], "port": 8081},
]  # fmt: skip


def container_facts(recorded: str = "26.1", **changed: t.Any) -> dict[str, t.Any]:
    """From what Docker and the toolkit of a real host said; ``changed`` replaces whole parts."""
    engine = _nvidia.empty_docker()
    engine.update({"installed": True, "path": "/usr/bin/docker", "running": True})
    _nvidia.apply_docker_version(engine, (FIXTURES / f"docker-{recorded}-version.json").read_text(encoding="utf-8"))
    _nvidia.apply_docker_info(engine, (FIXTURES / f"docker-{recorded}-info.json").read_text(encoding="utf-8"))
    return {
        "docker": engine,
        "compose": {"installed": True, "version": "2.26.1", "path": "/usr/libexec/docker/x", "plugin": True},
        "toolkit": {
            "installed": True, "version": "1.18.0", "nvidia_ctk": "/usr/bin/nvidia-ctk",
            "runtime": "/usr/bin/nvidia-container-runtime", "runtime_hook": "/usr/bin/nvidia-container-runtime-hook",
        },
        "cdi": {"enabled_in_docker": False, "spec_dirs": [], "specs": [], "docker_devices": []},
        **changed,
    }  # fmt: skip


def facts(container: dict[str, t.Any] | None = None, gpus: int = 3, **changed: t.Any) -> dict[str, t.Any]:
    cards = _nvidia.parse_smi_xml((FIXTURES / "h200-580.xml").read_text(encoding="utf-8"))["gpus"][:gpus]
    return {
        "gpus": cards,
        "gpu_reason": "" if cards else "nvidia-smi was not found",
        "machine": "x86_64",
        "cpu": {"model": "AMD EPYC 9554", "flags": ["avx2"]},
        "service_manager": "systemd",
        "listening": [],
        "nvidia": {
            "cuda_version": "13.0", "driver_version": "580.95.05", "container": container or container_facts(),
        },
        **changed,
    }  # fmt: skip


def plan(services: t.Any = None, on: t.Any = None, **settings: t.Any) -> dict[str, t.Any]:
    chosen = {"image": IMAGE, **settings}
    return make_plan(
        SEED if services is None else services,
        Settings(root="/var/lib/gpufleet-vllm", model_root="/data/models/vlm", **chosen),
        on or facts(),
    )


def codes(planned: dict[str, t.Any]) -> list[str]:
    return [finding["code"] for finding in planned["findings"]]


def test_the_seeds_stack_on_a_host_with_three_gpus() -> None:
    planned = plan()
    assert planned["findings"] == []
    assert planned["runtime"] == "compose"
    vision, whisper = (service["container"] for service in planned["services"])
    cards = [card["uuid"] for card in facts()["gpus"]]
    assert device_ids(vision) == cards[:2]
    assert device_ids(whisper) == cards[2:]
    assert vision["command"][:7] == [
        "/model", "--served-model-name", "qwen2.5-vl", "--tensor-parallel-size", "2", "--max-model-len", "32000"
    ]  # fmt: skip
    assert whisper["command"][:3] == ["/model", "--served-model-name", "whisper-large-v3-turbo"]
    assert [container["ports"][0]["published"] for container in (vision, whisper)] == ["8000", "8081"]
    assert [service["url"] for service in planned["services"]] == ["http://127.0.0.1:8000", "http://127.0.0.1:8081"]
    assert planned["images"] == [
        {"image": IMAGE, "services": ["qwen-vl-service", "whisper-service"],
         "paths": ["/data/models/vlm/Qwen2.5-VL-7B-Instruct", "/data/models/vlm/whisper-large-v3-turbo"]}
    ]  # fmt: skip


def device_ids(container: dict[str, t.Any]) -> list[str]:
    ids: list[str] = container["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
    return ids


def test_no_secret_and_no_path_of_the_host_s_engine_is_in_a_container() -> None:
    text = json.dumps(plan()["services"])
    assert KEY not in text
    environment = plan()["services"][0]["container"]["environment"]
    assert environment["HOME"] == "/home/vllm"
    assert "PATH" not in environment
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_a_service_may_bring_its_own_image_and_shared_memory() -> None:
    planned = plan([{**SEED[1], "image": "registry.lan:5000/vllm-audio:v0.33.0", "shm_size": "2gb"}])
    (service,) = planned["services"]
    assert (service["container"]["image"], service["container"]["shm_size"]) == (
        "registry.lan:5000/vllm-audio:v0.33.0", "2gb"
    )  # fmt: skip
    assert planned["images"][0]["image"] == "registry.lan:5000/vllm-audio:v0.33.0"


def test_without_an_image_nothing_of_this_happens() -> None:
    planned = plan(image="", engine_versions={"cuda": "0.33.0"})
    assert planned["runtime"] == "systemd"
    assert planned["images"] == []
    assert all("container" not in service for service in planned["services"])


@pytest.mark.parametrize("bad", ["Vllm image", "vllm:", "-x", "vllm@sha256:12", "http://registry/vllm"])
def test_an_image_that_is_none(bad: str) -> None:
    assert codes(plan([{**SEED[1], "image": bad}])) == ["service.bad_value"]
    assert "plan.bad_setting" in codes(plan(image=bad))


BROKEN: dict[str, tuple[str, dict[str, t.Any]]] = {
    "not installed": ("plan.no_docker", {"docker": _nvidia.empty_docker()}),
    "podman": ("plan.podman", {"docker": {"installed": True, "podman": True, "running": None}}),
    "snap": ("plan.docker_snap", {"docker": {"installed": True, "snap": True, "running": True}}),
    "down": ("plan.docker_down", {"docker": {"installed": True, "running": False, "error": "It does not run."}}),
    "no permission": ("plan.docker_down", {"docker": {"installed": True, "running": None, "error": "no permission"}}),
    "no compose": ("plan.no_compose", {"compose": {"installed": False}}),
    "stand-alone compose": ("plan.no_compose", {"compose": {"installed": True, "version": "1.29.2", "plugin": False}}),
    "old compose": ("plan.compose_old", {"compose": {"installed": True, "version": "2.17.3", "plugin": True}}),
    "no toolkit": ("plan.no_toolkit", {"toolkit": {"installed": False, "runtime_hook": None}}),
}


@pytest.mark.parametrize("said", ["Cannot connect to the Docker daemon", "permission denied on /var/run/docker.sock"])
def test_what_to_do_about_docker_is_said_once(said: str) -> None:
    running, error = _nvidia.docker_failure(said)
    down = {"installed": True, "running": running, "error": error}
    (finding,) = plan(on=facts(container_facts(docker=down)))["findings"]
    assert finding["seen"] == error.partition(f"{said!r}")[0] + f"{said!r}"
    assert "systemctl start docker" in finding["remedy"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_host_that_can_run_no_container_is_told_apart(name: str) -> None:
    code, part = BROKEN[name]
    planned = plan(on=facts(container_facts(**part)))
    (finding,) = planned["findings"]
    assert (finding["code"], finding["severity"]) == (code, "error")
    assert finding["seen"]
    assert finding["remedy"]
    assert plan([], on=facts(container_facts(**part)))["findings"] == []


def test_unknown_facts_are_held_against_no_host() -> None:
    container = container_facts(toolkit={}, compose={"installed": True, "plugin": True, "version": None})
    assert plan(on=facts(container))["errors"] == 0


def test_a_host_without_gpus_needs_no_toolkit() -> None:
    container = container_facts(toolkit={"installed": False, "runtime_hook": None})
    planned = plan([{**SEED[1], "gpus": None}], on=facts(container, gpus=0), allow_cpu=True)
    assert planned["errors"] == 0
    assert "deploy" not in planned["services"][0]["container"]


def test_cdi_needs_a_specification_with_these_gpus() -> None:
    names = [f"nvidia.com/gpu={card['uuid']}" for card in facts()["gpus"]]
    fresh = {"enabled_in_docker": True, "specs": [{"devices": names}]}
    stale = {"enabled_in_docker": True, "specs": [{"devices": ["nvidia.com/gpu=GPU-of-another-card"]}]}
    assert plan(on=facts(container_facts(cdi=fresh)), container_gpu_driver="cdi")["findings"] == []
    planned = plan(on=facts(container_facts(cdi=stale)), container_gpu_driver="cdi")
    assert codes(planned) == ["plan.cdi_stale"]
    assert "nvidia-ctk cdi generate" in planned["findings"][0]["remedy"]
    assert codes(plan(container_gpu_driver="cdi")) == ["plan.cdi_off"]


def test_cards_that_no_cdi_specification_can_name_are_not_looked_for() -> None:
    cards = facts()["gpus"]
    spec = {"devices": [f"nvidia.com/gpu={cards[0]['uuid']}"]}
    on = facts(container_facts(cdi={"enabled_in_docker": True, "specs": [spec]}))
    lost, parted = {**cards[1], "uuid": None}, {**cards[2], "mig": {"current": "enabled", "devices": []}}
    on["gpus"] = [cards[0], lost, parted]
    assert "plan.cdi_stale" not in codes(plan(on=on, container_gpu_driver="cdi"))
    for unknown in (None, {"enabled_in_docker": True, "specs": None}):
        assert codes(plan(on=facts(container_facts(cdi=unknown)), container_gpu_driver="cdi")) == []


@pytest.mark.parametrize(
    ("settings", "variable"),
    [({"container_user": "vllm"}, "vllm_container_user"), ({"container_shm_size": "lots"}, "vllm_container_shm_size")],
)
def test_choices_that_docker_can_not_read(settings: dict[str, t.Any], variable: str) -> None:
    (finding,) = plan(**settings)["findings"]
    assert finding["code"] == "plan.bad_setting"
    assert variable in finding["seen"]


def test_a_name_to_listen_on_is_refused() -> None:
    assert codes(plan([{**SEED[1], "bind_address": "gpu-01.lan"}])) == ["plan.no_api_key", "plan.bind_name"]
    assert codes(plan([{**SEED[1], "bind_address": "localhost"}])) == []


@pytest.mark.parametrize("image", ["vllm/vllm-openai", "vllm/vllm-openai:latest", "registry:5000/vllm"])
def test_an_image_that_floats_is_warned_of(image: str) -> None:
    assert codes(plan(image=image)) == ["plan.image_latest"] * 2


def test_a_driver_that_is_too_old_for_the_image_is_known_from_its_tag() -> None:
    old = facts()
    old["nvidia"].update(cuda_version="12.4", driver_version="550.54.15")
    assert codes(plan(on=old)) == ["plan.driver_too_old"]
    assert codes(plan(on=old, image="vllm/vllm-openai:v0.33.0-cu129")) == []


@pytest.mark.parametrize(
    ("image", "version"),
    [
        (IMAGE, "0.33.0"),
        ("registry:5000/vllm:0.32.1@sha256:" + "a" * 64, "0.32.1"),
        ("vllm/vllm-openai:v0.33.0-cu129", ""),
        ("vllm/vllm-openai:nightly", ""),
        ("", ""),
    ],
)
def test_the_version_that_a_tag_tells(image: str, version: str) -> None:
    assert image_version(image) == version


@pytest.mark.parametrize("runtime", ["supervisor", "systemd"])
def test_an_image_of_the_fleet_is_not_ignored_in_silence(runtime: str) -> None:
    planned = plan([SEED[1]], image=IMAGE, runtime=runtime, engine_versions={"cuda": "0.33.0"})
    (finding,) = planned["findings"]
    assert (finding["code"], finding["severity"], finding["service"]) == ("plan.image_unused", "warning", "")
    assert finding["seen"] == f"vllm_image is {IMAGE}, and vllm_runtime is {runtime}, which runs no containers"
    assert finding["remedy"] == "delete vllm_runtime (or set it to compose), or set vllm_image: '' for this host"


def test_nor_is_one_of_a_service() -> None:
    planned = plan([{**SEED[1], "image": IMAGE}], image=IMAGE, runtime="supervisor", engine_versions={"cuda": "0.33.0"})
    assert sorted((finding["code"], finding["service"]) for finding in planned["findings"]) == [
        ("plan.image_unused", ""),
        ("plan.image_unused", SEED[1]["name"]),
    ]
    assert "vllm_runtime: compose" in planned["findings"][1]["remedy"]


def test_an_image_alone_on_a_service_needs_compose_to_be_chosen() -> None:
    """Without ``vllm_image`` the runtime is the bare one, where an image means nothing."""
    planned = plan([{**SEED[1], "image": IMAGE}], image="", engine_versions={"cuda": "0.33.0"})
    assert codes(planned) == ["plan.image_unused"]
    chosen = plan([{**SEED[1], "image": IMAGE}], image="", runtime="compose")
    assert chosen["findings"] == []
    assert codes(plan([SEED[1]], image="", runtime="compose")) == ["plan.no_image"]
