# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import make_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import KEYS
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack_apply import (
    Options,
    desired_services,
    plan_document,
)
from hypothesis import given
from hypothesis import strategies as st
from plan_case import SECRET, SETTINGS, UUID, codes, facts, indices, only, plan, recorded, service, without_gpus

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
    assert entry["gpus"] == [
        {
            "index": 2,
            "uuid": UUID.format(3),
            "name": "NVIDIA H200",
            "pci_bus_id": "00000000:3B:00.0",
            "memory_total_bytes": 150754820096,
        }
    ]
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
        mine = expected[entry["name"]]
        assert entry["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(UUID.format(index + 1) for index in mine)
        assert entry["shell"].startswith(f"CUDA_VISIBLE_DEVICES={','.join(map(str, mine))} ")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"engine_versions": {"cuda": "0.24.0"}}, "GPU"),
        ({"engine_versions": {"cuda": "1.0.0"}}, "GPU"),
        ({"engine_versions": {"cuda": "0.33.0+cu129"}}, "GPU"),
        ({"engine_versions": {"cuda": "0.23.1"}}, "1,0"),
        ({"engine_versions": {"cuda": "0.9.2"}}, "1,0"),
        ({"engine_versions": {"cuda": "nightly"}}, "1,0"),
        ({"engine_managed": False, "engine_path": "/opt/vllm"}, "1,0"),
    ],
)
def test_cards_are_uuids_where_the_engine_reads_them(settings: dict[str, t.Any], expected: str) -> None:
    planned = plan(service(gpus=[1, 0]), **settings)
    told = planned["services"][0]["environment"]["CUDA_VISIBLE_DEVICES"]
    assert told == (f"{UUID.format(2)},{UUID.format(1)}" if expected == "GPU" else expected)
    assert planned["services"][0]["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("count", "check", "uuids"), [(5, "0", True), (6, "0", False), (6, "1", True), (6, None, True)]
)
def test_six_uuids_are_too_long_a_name_for_the_file_of_the_peer_check(count: int, check: t.Any, uuids: bool) -> None:
    card = facts()["gpus"][0]
    cards = [{**card, "index": index, "uuid": UUID.format(index)} for index in range(count)]
    environment = {} if check is None else {"VLLM_SKIP_P2P_CHECK": check}
    planned = plan(service(gpus=count, environment=environment), on=facts(gpus=cards))
    told = planned["services"][0]["environment"]["CUDA_VISIBLE_DEVICES"]
    assert told.startswith("GPU-") == uuids
    assert len(told.split(",")) == count


def test_what_is_applied_is_the_same_under_other_indices() -> None:
    before = facts()
    cards = [{**card, "index": 2 - card["index"]} for card in before["gpus"]]
    record = {"services": {"chat": {"gpus": before["gpus"][:2], "wish": [0, 1]}}}
    plans = [plan(service(gpus=[0, 1]), on=before), plan(service(gpus=[0, 1]), on=facts(gpus=cards, record=record))]
    documents = []
    for planned in plans:
        options = Options(
            root=planned["root"], runtime="systemd", services=planned["services"], engine=planned["engine"]
        )
        documents.append(plan_document(options, desired_services(options)))
    assert [finding["code"] for finding in plans[1]["findings"]] == ["plan.gpu_renumbered"]
    assert [entry["shell"].split(" ")[0] for planned in plans for entry in planned["services"]] == [
        "CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,1"
    ]  # fmt: skip
    assert documents[0] == documents[1]


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


@pytest.mark.parametrize("zero", [0, "0"])
def test_a_count_of_none_may_have_been_meant_as_an_index(zero: t.Any) -> None:
    finding = only(plan(service(gpus=zero)))
    assert finding["code"] == "plan.cpu_beside_gpus"
    assert "a number is a count" in finding["expected"]
    assert "for the card with index 0 write gpus: [0]" in finding["remedy"]


def test_a_card_that_is_partitioned_is_not_given() -> None:
    cards = recorded("a100-mig-535")
    named = only(plan(service(gpus=[0]), on=facts(cards)))
    assert (named["code"], named["seen"]) == ("plan.gpu_mig", "GPU 0 is partitioned (MIG)")
    assert indices(plan(service(gpus=1), on=facts(cards))) == {"chat": [1]}
    assert only(plan(service(gpus=2), on=facts(cards)))["seen"] == "1 of 2 GPUs are free (left out: 0 (MIG is on))"


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
        (2, None, {"pipeline-parallel-size": "²"}, 2, 1),
    ],
)
def test_parallelism(gpus: int, size: int | None, args: dict[str, t.Any], expected: int, errors: int) -> None:
    planned = plan(service(gpus=gpus, tensor_parallel_size=size, args=args))
    (entry,) = planned["services"]
    assert (entry["tensor_parallel_size"], planned["errors"]) == (expected, errors)
    assert ("--tensor-parallel-size" in entry["command"]) == (expected > 1)
    assert {code for code, _service in codes(planned)} <= {"plan.parallelism", "plan.flag_value"}


def test_parallelism_counts_the_fleets_flags() -> None:
    planned = plan(service(gpus=2), default_args={"pipeline-parallel-size": 2})
    assert (planned["services"][0]["tensor_parallel_size"], planned["errors"]) == (1, 0)


def test_the_cpu_engine_takes_a_tensor_parallel_size_that_is_set() -> None:
    planned = plan(service(tensor_parallel_size=2), on=without_gpus(), device="cpu")
    assert planned["services"][0]["tensor_parallel_size"] == 2
    assert "CUDA_VISIBLE_DEVICES" not in planned["services"][0]["environment"]


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
        "CUDA_VISIBLE_DEVICES": UUID.format(2),
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


@pytest.mark.parametrize("junk", ["x", 7, [], {}, [None], [["x"]], [{"a": []}], True])
@pytest.mark.parametrize("key", ["gpus", "listening", "nvidia", "record", "applied", "models", "cpu"])
@pytest.mark.parametrize("gpus", [1, 0])
def test_whatever_a_host_says_becomes_a_plan(key: str, junk: t.Any, gpus: int) -> None:
    host = facts() if gpus else without_gpus()
    planned = plan(service(gpus=gpus), on={**host, key: junk}, device="auto" if gpus else "cpu")
    assert [entry["name"] for entry in planned["services"]] == ["chat"]


@pytest.mark.parametrize("junk", ["x", 7, [], {}, [["x"]], {"devices": 7}, True])
@pytest.mark.parametrize("key", ["name", "memory_total_bytes", "numa_node", "mig", "ecc", "processes", "pci_bus_id",
                                 "compute_capability"])  # fmt: skip
def test_whatever_a_card_says_becomes_a_plan(key: str, junk: t.Any) -> None:
    planned = plan(service(gpus=2), on=facts([{**card, key: junk} for card in facts()["gpus"]]))
    assert len(planned["services"][0]["gpus"]) == 2


def test_a_processor_of_which_nothing_is_known_is_not_refused() -> None:
    for cpu in (None, {}, {"flags": None}):
        assert plan(service(), on=without_gpus(cpu=cpu), device="cpu")["errors"] == 0
