# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import dataclasses
import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import KEYS
from hypothesis import given
from hypothesis import strategies as st

FIXTURES = Path(__file__).parent / "fixtures" / "nvidia"
SECRET = "sk-hunter2-0123456789"
SETTINGS = Settings(
    root="/var/lib/gpufleet-vllm", model_root="/data/models", engine_versions={"cuda": "0.33.0", "cpu": "0.32.0"}
)
UUID = "GPU-a0000009-0000-4000-8000-00000000000{}"


def recorded(name: str) -> list[dict[str, t.Any]]:
    """The GPUs of a recorded ``nvidia-smi -q -x``."""
    return _nvidia.parse_smi_xml((FIXTURES / f"{name}.xml").read_text(encoding="utf-8"))["gpus"]  # type: ignore[return-value]


def facts(gpus: t.Any = None, **changed: t.Any) -> dict[str, t.Any]:
    """A host with the three recorded H200."""
    return {
        "gpus": recorded("h200-580") if gpus is None else gpus,
        "gpu_reason": "",
        "machine": "x86_64",
        "cpu": {"model": "AMD EPYC 9554", "flags": ["avx2", "avx512f"]},
        "service_manager": "systemd",
        "listening": [],
        **changed,
    }


def without_gpus(**changed: t.Any) -> dict[str, t.Any]:
    return facts([], **{"gpu_reason": "nvidia-smi is not installed", **changed})


def service(name: str = "chat", **keys: t.Any) -> dict[str, t.Any]:
    return {"name": name, "model": f"acme/{name}", **keys}


def plan(*services: t.Any, on: t.Any = None, **settings: t.Any) -> dict[str, t.Any]:
    return make_plan(list(services), dataclasses.replace(SETTINGS, **settings), facts() if on is None else on)


def codes(planned: dict[str, t.Any]) -> list[tuple[str, str]]:
    return [(finding["code"], finding["service"]) for finding in planned["findings"]]


def only(planned: dict[str, t.Any]) -> dict[str, str]:
    assert len(planned["findings"]) == 1, planned["findings"]
    return planned["findings"][0]  # type: ignore[no-any-return]


def indices(planned: dict[str, t.Any]) -> dict[str, list[int]]:
    return {entry["name"]: [gpu["index"] for gpu in entry["gpus"]] for entry in planned["services"]}


# -- the whole plan


def test_a_plan() -> None:
    planned = plan(service(port=8001, gpus=[2], api_key=SECRET))
    assert planned["findings"] == []
    assert {key: planned[key] for key in ("device", "runtime", "errors")} == {
        "device": "cuda",
        "runtime": "systemd",
        "errors": 0,
    }
    assert planned["engine"] == {
        "flavor": "cuda",
        "version": "0.33.0",
        "path": "/var/lib/gpufleet-vllm/engine/cuda-0.33.0",
        "executable": "/var/lib/gpufleet-vllm/engine/cuda-0.33.0/bin/vllm",
        "managed": True,
    }
    assert planned["artifacts"] == [
        {"model": "acme/chat", "revision": "master", "include": [], "exclude": [], "path": "/data/models/chat",
         "services": ["chat"]},
    ]  # fmt: skip
    (entry,) = planned["services"]
    assert entry["command"] == [
        "/var/lib/gpufleet-vllm/engine/cuda-0.33.0/bin/vllm", "serve", "/data/models/chat", "--port", "8001",
        "--served-model-name", "chat", "--host", "127.0.0.1", "--shutdown-timeout", "120",
    ]  # fmt: skip
    assert entry["command"][3:] == entry["declared"] + entry["operational"]
    assert entry["gpus"] == [{"index": 2, "uuid": UUID.format(3), "name": "NVIDIA H200"}]
    assert (entry["secrets"], entry["probes"], entry["stop_timeout"]) == (["VLLM_API_KEY"], None, 150)
    assert SECRET not in json.dumps(planned)


def test_a_plan_is_plain_data_and_changes_nothing_it_was_given() -> None:
    services, given_facts = [service(args={"hf-overrides": {"a": [1]}})], facts()
    before = copy.deepcopy((services, given_facts))
    planned = make_plan(services, SETTINGS, given_facts)
    assert json.loads(json.dumps(planned)) == planned
    assert (services, given_facts) == before


def test_findings_of_every_kind_come_at_once() -> None:
    planned = plan(
        service("a", gpus=[7], port=8000),
        service("b", gpus=[0], port=8000),
        {"name": "c", "model": "acme/c", "prot": 1},
        service("d", gpus=[1], port=8002, path="/data/models/a"),
        on=facts(listening=[{"address": "127.0.0.1", "port": 8002, "pid": 7, "process": "nginx", "service": None}],
                 service_manager="none"),
        runtime="systemd",
    )  # fmt: skip
    assert set(codes(planned)) == {
        ("service.unknown_key", "c"),
        ("plan.no_systemd", ""),
        ("plan.gpu_missing", "a"),
        ("plan.port_shared", "b"),
        ("plan.port_taken", "d"),
        ("plan.path_shared", "d"),
    }
    assert planned["errors"] == 6


# -- device


@pytest.mark.parametrize(
    ("device", "allow_cpu", "host", "gpus", "expected", "found"),
    [
        ("auto", False, facts(), None, "cuda", []),
        ("auto", True, facts(), 1, "cuda", []),
        ("cuda", False, facts(), [0], "cuda", []),
        ("auto", False, without_gpus(), None, "cuda", [("plan.no_gpu", "")]),
        ("cuda", True, without_gpus(), None, "cuda", [("plan.no_gpu", "")]),
        ("auto", True, without_gpus(), None, "cpu", [("plan.cpu_engine", "")]),
        ("auto", True, without_gpus(), 0, "cpu", [("plan.cpu_engine", "")]),
        ("auto", True, without_gpus(), 1, "cuda", [("plan.no_gpu", "chat")]),
        ("auto", False, without_gpus(), [0], "cuda", [("plan.no_gpu", "chat")]),
        ("cpu", False, without_gpus(), None, "cpu", [("plan.cpu_engine", "")]),
        ("cpu", False, facts(), None, "cpu", [("plan.cpu_engine", "")]),
        ("cpu", False, facts(), [0], "cpu", [("plan.gpus_on_cpu", "chat"), ("plan.cpu_engine", "")]),
        ("cpu", False, without_gpus(cpu={"model": "Xeon X5650", "flags": []}), None, "cpu",
         [("plan.cpu_without_avx2", "")]),
        ("cpu", False, without_gpus(machine="aarch64", cpu={"flags": []}), None, "cpu", [("plan.cpu_engine", "")]),
    ],
)  # fmt: skip
def test_device(
    device: str, allow_cpu: bool, host: t.Any, gpus: t.Any, expected: str, found: list[tuple[str, str]]
) -> None:
    planned = plan(service(gpus=gpus), on=host, device=device, allow_cpu=allow_cpu)
    assert (planned["device"], codes(planned)) == (expected, found)


def test_what_is_said_about_the_device() -> None:
    refused = plan(service(), on=without_gpus())["findings"][0]
    assert refused["seen"] == "nvidia-smi is not installed"
    assert "vllm_allow_cpu: true" in refused["remedy"]
    allowed = only(plan(service(), on=without_gpus(), allow_cpu=True))
    assert (allowed["severity"], allowed["seen"]) == ("info", "the CPU engine is used: nvidia-smi is not installed")
    assert allowed["remedy"] == "nothing to do: vllm_allow_cpu: true allows it"
    chosen = only(plan(service(), device="cpu"))
    assert chosen["seen"] == "the CPU engine is used: vllm_device is cpu"
    old = only(plan(service(), on=without_gpus(cpu={"model": "Xeon X5650", "flags": []}), device="cpu"))
    assert old["seen"] == "the CPU (Xeon X5650) has no AVX2"


def test_no_gpu_is_said_once() -> None:
    assert codes(plan(service("a"), service("b", port=8001), on=without_gpus())) == [("plan.no_gpu", "")]


def test_a_host_that_runs_nothing_needs_nothing() -> None:
    planned = plan(on=without_gpus(), engine_versions={})
    assert (planned["services"], planned["findings"]) == ([], [])


# -- runtime and engine


@pytest.mark.parametrize(
    ("wanted", "manager", "expected", "errors"),
    [
        ("auto", "systemd", "systemd", 0),
        ("auto", "none", "supervisor", 0),
        ("systemd", "systemd", "systemd", 0),
        ("systemd", "none", "systemd", 1),
        ("supervisor", "systemd", "supervisor", 0),
        ("supervisor", "none", "supervisor", 0),
    ],
)
def test_runtime(wanted: str, manager: str, expected: str, errors: int) -> None:
    planned = plan(service(), on=facts(service_manager=manager), runtime=wanted)
    assert (planned["runtime"], planned["errors"]) == (expected, errors)


def test_an_engine_of_ones_own() -> None:
    engine = plan(service(), engine_path="/opt/vllm/", engine_managed=False, engine_versions={})["engine"]
    assert (engine["executable"], engine["managed"], engine["version"]) == ("/opt/vllm/bin/vllm", False, "")


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"engine_managed": False}, "vllm_engine_managed is false, and vllm_engine_path is empty"),
        ({"engine_versions": {"cpu": "1"}}, "vllm_engine_versions has no cuda"),
        ({"root": "~/vllm"}, "vllm_root is '~/vllm'"),
        ({"model_root": "models"}, "vllm_model_root is 'models'"),
        ({"bind_address": "[::1]"}, "vllm_bind_address is '[::1]'"),
        ({"default_args": {"max-model-len": 1}}, "vllm_default_args is a value that is hidden"),
        ({"default_args": {"api-key": SECRET}}, "vllm_default_args is a value that is hidden"),
        ({"cpu_args": {"port": 1}}, "vllm_cpu_args is a value that is hidden"),
        ({"default_environment": {"VLLM_API_KEY": SECRET}}, "vllm_default_environment is a value that is hidden"),
        ({"cpu_environment": {"A": "1\n2"}}, "vllm_cpu_environment is a value that is hidden"),
    ],
)
def test_bad_settings(settings: dict[str, t.Any], seen: str) -> None:
    planned = plan(service(), **settings)
    finding = only(planned)
    assert (finding["code"], finding["severity"], finding["seen"]) == ("plan.bad_setting", "error", seen)
    assert SECRET not in json.dumps(planned)


# -- GPUs


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"a": [0, 1], "b": [2]}, {"a": [0, 1], "b": [2]}),
        ({"a": [1, 0]}, {"a": [1, 0]}),
        ({"a": [UUID.format(3), 0]}, {"a": [2, 0]}),
        ({"a": 3}, {"a": [0, 1, 2]}),
        ({"a": None}, {"a": [0]}),
        ({"a": 1, "b": 1, "c": None}, {"a": [0], "b": [1], "c": [2]}),
        ({"a": 1, "b": [0], "c": 1}, {"a": [1], "b": [0], "c": [2]}),
        ({"a": None, "b": [0, 2]}, {"a": [1], "b": [0, 2]}),
    ],
)
def test_gpu_assignment(wanted: dict[str, t.Any], expected: dict[str, list[int]]) -> None:
    services = [service(name, gpus=gpus, port=8000 + number) for number, (name, gpus) in enumerate(wanted.items())]
    planned = plan(*services)
    assert planned["findings"] == []
    assert indices(planned) == expected
    for entry in planned["services"]:
        assert entry["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, expected[entry["name"]]))


@pytest.mark.parametrize(
    ("wanted", "code", "blamed", "seen"),
    [
        ({"a": [3]}, "plan.gpu_missing", "a", "GPU 3 is not on this host"),
        ({"a": ["GPU-deadbeef"]}, "plan.gpu_missing", "a", "GPU GPU-deadbeef is not on this host"),
        ({"a": [0, 1], "b": [1]}, "plan.gpu_shared", "b", f"GPU 1 ({UUID.format(2)}) is already the GPU of a"),
        ({"a": [0, UUID.format(1)]}, "plan.gpu_shared", "a", f"GPU 0 ({UUID.format(1)}) is named twice"),
        ({"a": 4}, "plan.gpu_short", "a", "3 of 3 GPUs are free"),
        ({"a": [0, 1], "b": 2}, "plan.gpu_short", "b", "1 of 3 GPUs are free (held: 0 by a, 1 by a)"),
        ({"a": 0}, "plan.cpu_beside_gpus", "a", "gpus is 0 on a host with GPUs"),
        ({"a": ["MIG-1234"]}, "plan.gpu_mig", "a", "MIG-1234 is a MIG device"),
    ],
)
def test_gpus_that_cannot_be_given(wanted: dict[str, t.Any], code: str, blamed: str, seen: str) -> None:
    services = [service(name, gpus=gpus, port=8000 + number) for number, (name, gpus) in enumerate(wanted.items())]
    planned = plan(*services)
    finding = only(planned)
    assert (finding["code"], finding["service"], finding["seen"]) == (code, blamed, seen)
    assert indices(planned)[blamed] == []


def test_a_card_that_is_partitioned_is_not_given() -> None:
    cards = recorded("a100-mig-535")
    named = only(plan(service(gpus=[0]), on=facts(cards)))
    assert (named["code"], named["seen"]) == ("plan.gpu_mig", "GPU 0 is partitioned (MIG)")
    assert indices(plan(service(gpus=1), on=facts(cards))) == {"chat": [1]}
    assert only(plan(service(gpus=2), on=facts(cards)))["seen"] == "1 of 2 GPUs are free"


def test_one_mistake_is_one_finding() -> None:
    """Too few cards is not told a second time as a wrong tensor parallel size, nor to the neighbour."""
    planned = plan(service("a", gpus=4, tensor_parallel_size=4), service("b", gpus=1, port=8001))
    assert codes(planned) == [("plan.gpu_short", "a")]
    assert indices(planned) == {"a": [], "b": [0]}
    assert codes(plan(service(gpus=[0, 9], tensor_parallel_size=2))) == [("plan.gpu_missing", "chat")]


@pytest.mark.parametrize(
    ("gpus", "size", "args", "expected", "errors"),
    [
        (1, None, {}, 1, 0),
        (2, None, {}, 2, 0),
        (2, 2, {}, 2, 0),
        (3, 2, {}, 2, 1),
        (2, None, {"pipeline_parallel_size": 2}, 1, 0),
        (2, None, {"pp": "2"}, 1, 0),
        (2, None, {"data-parallel-size": 2}, 1, 0),
        (3, None, {"pipeline-parallel-size": 2}, 1, 1),
        (2, 2, {"pipeline-parallel-size": 2}, 2, 1),
        (1, None, {"pipeline-parallel-size": 2}, 1, 1),
        (2, None, {"pipeline-parallel-size": "²"}, 2, 0),
    ],
)
def test_parallelism(gpus: int, size: int | None, args: dict[str, t.Any], expected: int, errors: int) -> None:
    planned = plan(service(gpus=gpus, tensor_parallel_size=size, args=args))
    (entry,) = planned["services"]
    assert (entry["tensor_parallel_size"], planned["errors"]) == (expected, errors)
    assert ("--tensor-parallel-size" in entry["command"]) == (expected > 1)
    assert {code for code, _service in codes(planned)} <= {"plan.parallelism"}


def test_parallelism_counts_the_fleets_flags() -> None:
    planned = plan(service(gpus=2), default_args={"pipeline-parallel-size": 2})
    assert (planned["services"][0]["tensor_parallel_size"], planned["errors"]) == (1, 0)


def test_the_cpu_engine_takes_a_tensor_parallel_size_that_is_set() -> None:
    planned = plan(service(tensor_parallel_size=2), on=without_gpus(), device="cpu")
    assert planned["services"][0]["tensor_parallel_size"] == 2
    assert "CUDA_VISIBLE_DEVICES" not in planned["services"][0]["environment"]


# -- ports


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("", "", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "10.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::", "0.0.0.0", True),
        ("0.0.0.0", "::1", False),
        ("::1", "127.0.0.1", False),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("localhost", "127.0.0.1", True),
        ("gpu-01", "gpu-01", True),
    ],
)
def test_two_services_on_one_port(first: str, second: str, clash: bool) -> None:
    planned = plan(service("a", bind_address=first), service("b", bind_address=second))
    assert codes(planned) == ([("plan.port_shared", "b")] if clash else [])
    assert codes(plan(service("a", bind_address=first), service("b", bind_address=second, port=8001))) == []


@pytest.mark.parametrize(
    ("bind", "listener", "taken"),
    [
        ("127.0.0.1", {"address": "127.0.0.1"}, True),
        ("127.0.0.1", {"address": "0.0.0.0"}, True),
        ("127.0.0.1", {"address": "::"}, True),
        ("127.0.0.1", {"address": "::1"}, False),
        ("0.0.0.0", {"address": "::1"}, False),
        ("10.0.0.1", {"address": "127.0.0.1"}, False),
        ("127.0.0.1", {"address": "127.0.0.1", "port": 9000}, False),
        ("127.0.0.1", {"address": "127.0.0.1", "service": "chat"}, False),
        ("127.0.0.1", {"address": "127.0.0.1", "service": "an-older-one"}, False),
    ],
)
def test_ports_of_others(bind: str, listener: dict[str, t.Any], taken: bool) -> None:
    entry = {"port": 8000, "pid": 4242, "process": "nginx", "service": None, **listener}
    planned = plan(service(bind_address=bind), on=facts(listening=[entry]))
    assert codes(planned) == ([("plan.port_taken", "chat")] if taken else [])


@pytest.mark.parametrize(
    ("listener", "seen"),
    [
        ({"process": "nginx", "pid": 7}, "port 8000 is in use by nginx (pid 7) on 0.0.0.0"),
        ({"process": None, "pid": None}, "port 8000 is in use by a process of another user on 0.0.0.0"),
    ],
)
def test_who_holds_a_port(listener: dict[str, t.Any], seen: str) -> None:
    entry = {"address": "0.0.0.0", "port": 8000, "service": None, **listener}
    # Two sockets of one program are one finding.
    finding = only(plan(service(), on=facts(listening=[entry, {**entry, "address": "127.0.0.1"}])))
    assert (finding["seen"], finding["remedy"]) == (seen, "stop it, or set another port: for chat")


# -- artifacts


def test_services_share_an_artifact() -> None:
    planned = plan(service("a", model="acme/m"), service("b", model="acme/m", port=8001, path="/data/models//m/"))
    assert planned["findings"] == []
    assert [(artifact["path"], artifact["services"]) for artifact in planned["artifacts"]] == [
        ("/data/models/m", ["a", "b"])
    ]


@pytest.mark.parametrize("other", [{"revision": "v2"}, {"model": "other/m"}, {"include": "*.json"}, {"exclude": ["x"]}])
def test_two_artifacts_on_one_path(other: dict[str, t.Any]) -> None:
    planned = plan(service("a", model="acme/m"), service("b", **{"model": "acme/m", "port": 8001, **other}))
    finding = only(planned)
    assert (finding["code"], finding["service"], finding["remedy"]) == ("plan.path_shared", "b", "set path: for b")
    assert [artifact["services"] for artifact in planned["artifacts"]] == [["a"]]


# -- command lines and environments


def flags_of(planned: dict[str, t.Any]) -> str:
    return " ".join(planned["services"][0]["operational"])


@pytest.mark.parametrize(
    ("defaults", "args", "expected"),
    [
        ({"enforce-eager": True}, {}, "--enforce-eager"),
        ({"enforce_eager": True}, {"enforce-eager": False}, ""),
        ({"enforce-eager": True}, {"no_enforce_eager": True}, ""),
        ({"no-enforce-eager": True}, {"enforce_eager": True}, ""),
        ({"--max_num_seqs": 4, "dtype": "auto"}, {"max-num-seqs": 8}, "--dtype auto"),
    ],
)
def test_a_service_decides_over_the_fleets_flags(
    defaults: dict[str, t.Any], args: dict[str, t.Any], expected: str
) -> None:
    planned = plan(service(args=args), default_args=defaults)
    assert planned["findings"] == []
    assert flags_of(planned) == f"--host 127.0.0.1 --shutdown-timeout 120 {expected}".rstrip()


def test_cpu_flags_decide_over_the_fleets() -> None:
    settings = {"default_args": {"enforce_eager": True, "dtype": "auto"}, "cpu_args": {"no-enforce-eager": True}}
    assert flags_of(plan(service(), on=without_gpus(), device="cpu", **settings)).endswith(
        "120 --dtype auto --no-enforce-eager"
    )
    assert flags_of(plan(service(), **settings)).endswith("--enforce-eager --dtype auto")


def test_no_flag_stands_twice() -> None:
    planned = plan(
        service(args={"dtype": "half"}, max_model_len="auto", drain_seconds=0),
        default_args={"dtype": "auto", "max_num_seqs": 1},
    )
    names = [word for word in planned["services"][0]["command"] if word.startswith("--")]
    assert len(names) == len(set(names))
    assert planned["services"][0]["stop_timeout"] == 30


def test_environment() -> None:
    planned = plan(
        service(environment={"OMP_NUM_THREADS": 4, "HF_HUB_OFFLINE": False}, gpus=[1]),
        default_environment={"HF_HUB_OFFLINE": True, "A": "x"},
        cpu_environment={"ONLY_CPU": 1},
    )
    environment = planned["services"][0]["environment"]
    assert list(environment) == sorted(environment)
    assert environment == {
        "A": "x",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_HUB_OFFLINE": "0",
        "HOME": "/var/lib/gpufleet-vllm/services/chat/state",
        "OMP_NUM_THREADS": "4",
        "PATH": planned["engine"]["path"] + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "VLLM_CACHE_ROOT": "/var/lib/gpufleet-vllm/services/chat/state/cache/vllm",
        "XDG_CACHE_HOME": "/var/lib/gpufleet-vllm/services/chat/state/cache",
    }
    on_cpu = plan(service(), device="cpu", default_environment={"A": True}, cpu_environment={"ONLY_CPU": 1})
    assert {"A": "1", "ONLY_CPU": "1"}.items() <= on_cpu["services"][0]["environment"].items()
    assert "CUDA_DEVICE_ORDER" not in on_cpu["services"][0]["environment"]


def test_the_order_an_inventory_is_written_in_does_not_matter() -> None:
    environment = {"B": "2", "A": "1"}
    one = plan(service(environment=environment), default_environment={"D": "4", "C": "3"})
    two = plan(service(environment=dict(reversed(environment.items()))), default_environment={"C": "3", "D": "4"})
    assert json.dumps(one) == json.dumps(two)


@pytest.mark.parametrize(
    ("bind", "address", "url", "public"),
    [
        ("127.0.0.1", "10.0.0.11", "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "10.0.0.11", "http://127.0.0.1:8000", "http://10.0.0.11:8000"),
        ("0.0.0.0", "", "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "gpu-01", "http://127.0.0.1:8000", "http://gpu-01:8000"),
        ("::", "2001:db8::7", "http://[::1]:8000", "http://[2001:db8::7]:8000"),
        ("2001:db8::7", "gpu-01", "http://[2001:db8::7]:8000", "http://[2001:db8::7]:8000"),
        ("::1", "", "http://[::1]:8000", "http://[::1]:8000"),
        ("gpu-01", "", "http://gpu-01:8000", "http://gpu-01:8000"),
    ],
)
def test_urls(bind: str, address: str, url: str, public: str) -> None:
    (entry,) = plan(service(), bind_address=bind, address=address)["services"]
    assert (entry["url"], entry["public_url"]) == (url, public)
    assert entry["operational"][:2] == ["--host", bind]


def test_no_address_is_the_engines_default() -> None:
    (entry,) = plan(service(), bind_address="")["services"]
    assert "--host" not in entry["command"]
    assert entry["url"] == "http://127.0.0.1:8000"


def test_probes_are_the_services_or_the_probes_own_choice() -> None:
    chosen = {"kind": "chat", "prompt": "Hi", "expect": "", "max_tokens": 32}
    entries = plan(
        service("a"), service("b", port=1, probes=[]), service("c", port=2, probes=[{"kind": "chat", "prompt": "Hi"}])
    )["services"]
    assert [entry["probes"] for entry in entries] == [None, [], [chosen]]


# -- properties


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[dict[str, t.Any]], list[dict[str, t.Any]]]:
    """Services and cards, with requests that may or may not fit."""
    count, mig = draw(st.integers(0, 6)), st.sampled_from([None, "enabled"])
    cards = [
        {"index": index, "uuid": f"GPU-{index:08x}", "name": "x", "mig": {"current": draw(mig)}}
        for index in range(count)
    ]  # fmt: skip
    one = st.one_of(st.integers(0, 7), st.integers(0, 7).map(lambda index: f"GPU-{index:08x}"))
    wanted = st.one_of(st.none(), st.integers(0, 4), st.lists(one, min_size=1, max_size=3, unique=True))
    names = draw(st.lists(st.sampled_from("abcdef"), max_size=5, unique=True))
    return [service(name, gpus=draw(wanted), port=8000 + ord(name)) for name in names], cards


@given(fleets(), st.randoms(use_true_random=False))
def test_no_gpu_is_given_twice_and_the_order_of_facts_does_not_matter(
    fleet: tuple[list[dict[str, t.Any]], list[dict[str, t.Any]]], random: t.Any
) -> None:
    services, cards = fleet
    planned = plan(*services, on=facts(cards))
    given_out = [gpu["uuid"] for entry in planned["services"] for gpu in entry["gpus"]]
    assert len(given_out) == len(set(given_out))
    partitioned = {card["uuid"] for card in cards if card["mig"]["current"]}
    assert not partitioned & set(given_out)
    if not planned["errors"]:
        for declared, entry in zip(services, planned["services"], strict=True):
            gpus = declared["gpus"]
            wanted = 1 if gpus is None else gpus if isinstance(gpus, int) else len(gpus)
            assert len(entry["gpus"]) == wanted == entry["tensor_parallel_size"]
    shuffled = list(cards)
    random.shuffle(shuffled)
    assert plan(*services, on=facts(shuffled))["services"] == planned["services"]
    assert [finding["severity"] for finding in planned["findings"]].count("error") == planned["errors"]


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@given(st.one_of(JUNK, st.lists(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=6))))
def test_whatever_an_inventory_holds_becomes_findings(services: t.Any) -> None:
    planned = make_plan(services, SETTINGS, facts())
    assert all(finding["seen"] and finding["expected"] and finding["remedy"] for finding in planned["findings"])


# -- the host of the engine

HOPPER = {"nvidia": {"driver_version": "580.95.05", "cuda_version": "13.0"}, "python_version": "3.11.2"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (HOPPER, []),
        ({}, []),  # what is unknown is not held against a host
        ({**HOPPER, "python_version": "3.10.12"}, ["plan.python_too_old"]),
        ({**HOPPER, "nvidia": {"driver_version": "535.1", "cuda_version": "12.2"}}, ["plan.driver_too_old"]),
        ({**HOPPER, "selinux": "enforcing"}, ["plan.selinux"]),
        ({**HOPPER, "selinux": "permissive"}, []),
    ],
    ids=["good", "unknown", "python", "driver", "selinux", "permissive"],
)
def test_what_the_engine_needs_of_a_host(host: dict[str, t.Any], expected: list[str]) -> None:
    planned = plan(service(), on=facts(**host), engine_versions={"cuda": "0.33.0"})
    assert [finding["code"] for finding in planned["findings"]] == expected


def test_a_gpu_that_the_release_dropped() -> None:
    old = facts([{"index": 0, "uuid": "GPU-0", "name": "Tesla V100", "compute_capability": "7.0"}])
    finding = only(plan(service(), on=old, engine_versions={"cuda": "0.33.0"}))
    assert (finding["code"], finding["severity"]) == ("plan.gpu_too_old", "warning")
    assert plan(service(), on=old, engine_versions={"cuda": "0.10.0"})["findings"] == []


def test_an_interpreter_of_ones_own_is_not_judged_by_ansibles() -> None:
    planned = plan(service(), on=facts(python_version="3.9.2"), engine_python="/usr/bin/python3.12")
    assert planned["findings"] == []
