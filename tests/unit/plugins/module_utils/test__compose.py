# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose
from ansible_collections.gpufleet.vllm.plugins.module_utils._compose import Container
from hypothesis import given
from hypothesis import strategies as st

ROOT = "/var/lib/gpufleet-vllm"


def service(**changed: t.Any) -> dict[str, t.Any]:
    return {
        "name": "qwen-vl",
        "path": "/data/models/Qwen2.5-VL-7B-Instruct",
        "arguments": ["/model", "--served-model-name", "qwen2.5-vl", "--limit-mm-per-prompt", '{"image":4}'],
        "environment": {"HF_HUB_OFFLINE": "1"},
        "gpus": [{"index": 0, "uuid": "GPU-aa"}, {"index": 1, "uuid": "GPU-bb"}],
        "port": 8081,
        "bind_address": "10.0.0.11",
        "secrets": [],
        "stop_timeout": 150,
        "ready_timeout": 1200,
        **changed,
    }


def define(choices: Container | None = None, **changed: t.Any) -> dict[str, t.Any]:
    return _compose.definition(service(**changed), "vllm/vllm-openai:v0.33.0", ROOT, choices or Container())


def test_gpus_are_named_by_uuid_and_never_counted() -> None:
    (device,) = define()["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["GPU-aa", "GPU-bb"], "capabilities": ["gpu"]}
    assert "CUDA_VISIBLE_DEVICES" not in define()["environment"]
    (device,) = define(Container(gpu_driver="cdi"))["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["nvidia.com/gpu=GPU-aa", "nvidia.com/gpu=GPU-bb"]
    assert "deploy" not in define(gpus=[])


def test_limits_are_compose_s() -> None:
    assert define(Container(limits={"memory": "64g", "cpus": 8}), gpus=[])["deploy"] == {
        "resources": {"limits": {"memory": "64g", "cpus": "8"}}
    }
    assert set(define(Container(limits={"pids": 4096}))["deploy"]["resources"]) == {"limits", "reservations"}


def test_a_container_is_hardened_and_patient() -> None:
    made = define()
    assert made["user"] == "2000:0"
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert made["read_only"] is True
    assert made["init"] is True
    assert made["restart"] == "unless-stopped"
    assert made["stop_grace_period"] == "150s"
    assert made["shm_size"] == "16gb"
    assert made["ulimits"] == {"nofile": {"soft": 65535, "hard": 1048576}, "memlock": -1, "stack": 67108864}
    assert made["healthcheck"]["start_period"] == "1200s"
    assert made["logging"]["options"] == {"max-size": "50m", "max-file": "5"}


def test_the_model_is_read_only_and_must_be_there_and_caches_outlive_the_container() -> None:
    model, home = define()["volumes"]
    assert model == {
        "type": "bind", "source": "/data/models/Qwen2.5-VL-7B-Instruct", "target": "/model", "read_only": True,
        "bind": {"create_host_path": False},
    }  # fmt: skip
    assert (home["source"], home["target"]) == (f"{ROOT}/services/qwen-vl/state", "/home/vllm")
    assert not home["bind"]["create_host_path"]


@pytest.mark.parametrize(
    ("address", "published"),
    [("10.0.0.11", "10.0.0.11"), ("localhost", "127.0.0.1"), ("0.0.0.0", None), ("", None), ("::1", "::1")],
)
def test_the_port_is_published_on_the_chosen_address(address: str, published: str | None) -> None:
    (port,) = define(bind_address=address)["ports"]
    assert (port["target"], port["published"], port.get("host_ip")) == (8000, "8081", published)


def test_secrets_are_read_from_a_file_by_a_shell_that_leaves() -> None:
    made = define(secrets=["VLLM_API_KEY"])
    assert made["secrets"] == [{"source": "qwen-vl", "target": "environment"}]
    assert made["entrypoint"][:2] == ["/bin/sh", "-c"]
    assert "exec vllm serve" in made["entrypoint"][2]
    assert made["command"] == define()["command"]
    assert define()["entrypoint"] == ["vllm", "serve"]
    assert "secrets" not in define()


def test_the_document_reads_as_it_was_meant_with_dollars_kept_from_compose() -> None:
    made = define(secrets=["VLLM_API_KEY"], environment={"PRICE": "5$"})
    text = _compose.document(ROOT, {"qwen-vl": _compose.labelled(made, "qwen-vl", ROOT, "0e12")})
    read = yaml.safe_load(text)
    assert "version" not in read
    assert read["name"] == "gpufleet-vllm"
    assert read["secrets"] == {"qwen-vl": {"file": f"{ROOT}/services/qwen-vl/environment"}}
    entry = read["services"]["qwen-vl"]
    assert entry["environment"] == {"PRICE": "5$$"}
    assert entry["entrypoint"][2].endswith('exec vllm serve "$$@"')
    assert entry["labels"]["gpufleet.vllm.digest"] == "0e12"
    assert entry["command"][-1] == '{"image":4}'
    assert text.startswith("# Managed by gpufleet.vllm")


@pytest.mark.parametrize(
    ("root", "name"),
    [(ROOT, "gpufleet-vllm"), ("/srv/vllm", "gpufleet-srv-vllm"), ("/SRV/a b", "gpufleet-srv-a-b")],
)
def test_a_root_has_a_project_of_its_own(root: str, name: str) -> None:
    assert _compose.project_name(root) == name


SCALARS = st.one_of(
    st.booleans(),
    st.integers(min_value=-(2**40), max_value=2**40),
    st.text(
        st.characters(
            codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn"), exclude_characters="\u2028\u2029\ufeff"
        )
    ),
)
NAMES = st.text(st.sampled_from("abcXYZ019_-./ :#'\"$%@!&*[]{}~"), min_size=1, max_size=12)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4), st.dictionaries(NAMES, inner, min_size=1, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(NAMES, DOCUMENTS, min_size=1, max_size=4))
def test_every_document_reads_back_as_it_was(document: dict[str, t.Any]) -> None:
    assert yaml.safe_load(_compose.to_yaml(document)) == document


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "No",
        "null",
        "~",
        "1e5",
        "0x1f",
        "012",
        "3.14",
        "-1",
        "- a",
        "a: b",
        "a #b",
        "",
        " a",
        "2026-01-01",
        "=",
        "<<",
    ],
)
def test_a_text_stays_a_text(text: str) -> None:
    assert yaml.safe_load(_compose.to_yaml({"key": text, "list": [text, {"a": text}]})) == {
        "key": text, "list": [text, {"a": text}]
    }  # fmt: skip
