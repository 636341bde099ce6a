# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From inventory and facts to what each host's plan takes, with what is said on the way.

_placement_input, _placement_short and _placement_plan together, as the action uses them.
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _placement_input
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_input import to_host, why_unusable
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_plan import (
    Fleet,
    Known,
    brief,
    host_services,
    place_fleet,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_short import INSTALL
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import Running
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_case import facts as plan_facts
from plan_case import plan

GIB = 1 << 30
CONFIGS = Path(__file__).parent / "fixtures/configs"
SECRET = "sk-unit-0123456789"


def facts(name: str, count: int = 4, gib: float = 80, link: str | None = "nv18", **more: t.Any) -> dict[str, t.Any]:
    """What vllm_host_info returns of a host, as far as placement reads it."""
    gpus = [
        {
            "index": index,
            "uuid": f"GPU-{name}-{index}",
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total_bytes": int(gib * GIB),
            "compute_capability": "9.0",
            "numa_node": index // 4,
            "mig": {"current": "disabled"},
            "processes": [],
        }
        for index in range(count)
    ]
    pairs = [[one, other] for one in range(count) for other in range(one + 1, count)]
    nvlinks = int(link[2:]) if link and link.startswith("nv") else 0
    topology = [{"gpus": pair, "link": link, "nvlinks": nvlinks} for pair in pairs]
    nvidia = {"topology": topology if link else None}
    return {"gpus": gpus, "gpu_reason": "", "nvidia": nvidia, "listening": [], "record": None, **more}


def deployed(**services: t.Any) -> dict[str, t.Any]:
    """The part of the facts that says what runs: by service its cards and its port."""
    entries = {
        name: {"gpus": [{"uuid": uuid} for uuid in cards], "port": port} for name, (cards, port) in services.items()
    }
    return {"deployed": {"services": entries}}


def service(name: str, gpus: t.Any = 1, **more: t.Any) -> dict[str, t.Any]:
    made = {"name": name, "model": "acme/tiny", "gpus": gpus, **more}
    return {key: value for key, value in made.items() if value is not None}


def fleet(services: t.Any, hosts: t.Mapping[str, t.Any], **more: t.Any) -> Fleet:
    known = {name: one if isinstance(one, Known) else Known(one) for name, one in hosts.items()}
    return place_fleet(services, known, lambda patterns: [name for name in hosts if name in patterns], **more)


def codes(placed: Fleet) -> list[str]:
    return [finding.code for finding in placed.findings]


def only(placed: Fleet) -> Finding:
    (finding,) = placed.findings
    return finding


def indices(placed: Fleet) -> dict[str, dict[str, list[int]]]:
    return {
        host: {entry["name"]: [int(uuid.rpartition("-")[2]) for uuid in entry["gpus"]] for entry in entries}
        for host, entries in placed.hosts.items()
    }


# --- services --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        (service("chat", [0, 1]), "service.bad_value", "a count, or what the cards must be like"),
        (service("chat", replicas=-1), "service.bad_value", "a whole number from 0 to 10000"),
        (service("chat", hosts=[]), "service.bad_value", "a list of hosts, groups or patterns"),
        (service("chat", hosts=[1]), "service.bad_value", "a list of hosts, groups or patterns"),
        (service("chat", replica=2), "service.unknown_key", "replicas, revision, "),
        ({"name": "chat"}, "service.missing_key", "every service has model:"),
        ("chat", "service.bad_value", "a mapping with name: and model:"),
    ],
)
def test_what_cannot_be_a_fleet_service(entry: t.Any, code: str, words: str) -> None:
    placed = fleet([entry], {"a": facts("a", **deployed(chat=(["GPU-a-0"], 8000)))})
    finding = only(placed)
    assert (finding.code, finding.severity) == (code, "error")
    assert words in finding.expected
    assert "vllm_services" not in finding.remedy.replace("move the service to vllm_services of its host", "")
    assert placed.hosts == {}, "nothing is given up for what could not be read"


@pytest.mark.parametrize(
    ("key", "remedy"), [("replica", "write replicas:"), ("host", "write hosts:"), ("prot", "write port:")]
)
def test_a_key_is_guessed_among_all_that_a_fleet_service_may_have(key: str, remedy: str) -> None:
    finding = only(fleet([service("chat", **{key: 2})], {"a": facts("a")}))
    assert finding.remedy == remedy
    listed = finding.expected.removeprefix("keys among ").split(", ")
    assert listed == sorted(listed)
    assert {"replicas", "hosts", "model"} <= set(listed)


def test_a_list_is_expected_and_each_name_once() -> None:
    assert only(fleet({"chat": 1}, {"a": facts("a")})).seen == "vllm_fleet_services is a mapping"
    assert codes(fleet([service("x"), service("x")], {"a": facts("a")})) == ["service.duplicate_name"]


def test_a_list_that_is_wrong_hides_no_model_that_is_wrong_too() -> None:
    error = {"code": "hub.not_found", "seen": "no such model", "expected": "one", "remedy": "x"}
    models = {"acme/tinny@master": {"error": error}, "acme/tiny@master": {"error": {**error, "code": "hub.tls"}}}
    services = [service("x"), service("x"), service("y", model="acme/tinny")]
    placed = fleet(services, {"a": facts("a")}, models=models)
    assert [(finding.code, finding.service) for finding in placed.findings] == [
        ("service.duplicate_name", "x"),
        ("plan.model_not_found", "y"),
    ]
    runs = {"deployed": {"services": {"y": {"model": "acme/tinny", "revision": "master"}}}}
    hosts = {"a": facts("a"), "b": facts("b", **runs), "c": None, "d": {"unreachable": True}}
    assert codes(fleet(services, hosts, models=models)) == ["service.duplicate_name"], "it runs, and goes on"
    for odd in (None, 7, {"acme/tinny@master": 7}):
        assert codes(fleet(services, {"a": facts("a", **runs)}, models=odd)) == ["service.duplicate_name"]


def test_one_list_for_all() -> None:
    finding = only(fleet([service("x")], {"a": facts("a"), "b": Known(facts("b"), differs=True)}))
    assert (finding.code, "on b than" in finding.seen) == ("plan.fleet_differs", True)


def test_hosts_restrict_and_a_pattern_without_a_host_is_an_error() -> None:
    hosts = {"a": facts("a"), "b": facts("b")}
    assert list(fleet([service("x", hosts=["b"])], hosts).hosts) == ["b"]
    assert list(fleet([service("x", hosts="b")], hosts).hosts) == ["b"]
    finding = only(fleet([service("x", hosts=["c"])], hosts))
    assert (finding.code, finding.seen) == ("plan.no_host", "hosts: c matches no host of the fleet")


def test_constraints_reach_the_cards() -> None:
    hosts = {"a": facts("a", gib=48), "b": facts("b", link="sys"), "c": facts("c")}
    asked = {"count": 2, "min_memory_gib": 79.6, "link": "nvlink", "name": "h100", "min_compute_capability": 8.9}
    assert indices(fleet([service("x", asked)], hosts)) == {"c": {"x": [0, 1]}}
    assert indices(fleet([service("x", {"count": 2, "link": "pcie"})], {"b": facts("b", link="node")})) == {
        "b": {"x": [0, 1]}
    }


def test_shares_are_those_of_the_services() -> None:
    pair = [service("x", gpu_memory_utilization=0.45), service("y", args={"gpu-memory-utilization": 0.5})]
    assert indices(fleet(pair, {"a": facts("a", 1)})) == {"a": {"x": [0], "y": [0]}}
    alone = [service("x", gpu_memory_utilization=0.97), service("y", gpu_memory_utilization=0.01)]
    assert codes(fleet(alone, {"a": facts("a", 1)})) == ["plan.unplaced"]


def model(name: str, total: int) -> dict[str, t.Any]:
    return {"config": json.loads((CONFIGS / name).read_text()), "bytes_total": total, "error": None}


def test_the_number_of_cards_follows_from_the_model() -> None:
    wide = {"acme/tiny@master": model("llama-3.1-70b.json", 141_000_000_000)}
    small = {"acme/tiny@master": model("llama-3.1-8b.json", 16_060_000_000)}
    sized = [service("x", None, max_model_len=16384)]
    assert len(fleet(sized, {"a": facts("a", 8)}, models=wide).hosts["a"][0]["gpus"]) == 4
    assert len(fleet(sized, {"a": facts("a", 8, 141)}, models=wide).hosts["a"][0]["gpus"]) == 2
    assert len(fleet(sized, {"a": facts("a", 8)}, models=small).hosts["a"][0]["gpus"]) == 1
    both = {"a": facts("a", 8, 24), "b": facts("b", 8, 80)}
    assert list(fleet(sized, both, models=wide).hosts) == ["b"], "fewer cards, and room"
    short = fleet(sized, {"a": facts("a", 2, 24)}, models=wide)
    assert codes(short) == ["plan.memory_short"]
    given = [service("x", None, tensor_parallel_size=2, args={"pipeline-parallel-size": 2})]
    assert len(fleet(given, {"a": facts("a", 8)}).hosts["a"][0]["gpus"]) == 4


def test_a_number_of_cards_comes_to_cards_that_hold_the_model() -> None:
    """The best fit alone would take the smaller host."""
    known = {"acme/tiny@master": model("llama-3.1-8b.json", 16_060_000_000)}
    both = {"a": facts("a", 2, 16), "b": facts("b", 8, 80)}
    counted = [service("x", 1, max_model_len=16384)]
    assert list(fleet(counted, both).hosts) == ["a"]
    assert list(fleet(counted, both, models=known).hosts) == ["b"]
    assert list(fleet([service("x", {"count": 1, "min_memory_gib": 10})], both, models=known).hosts) == ["a"]


def test_what_runs_is_not_moved_by_what_is_reckoned() -> None:
    known = {"acme/tiny@master": model("llama-3.1-8b.json", 16_060_000_000)}
    both = {"a": facts("a", 2, 16, **deployed(x=(["GPU-a-0"], 8000))), "b": facts("b", 8, 80)}
    assert indices(fleet([service("x", 1, max_model_len=16384)], both, models=known)) == {"a": {"x": [0]}}


def test_a_model_of_which_nothing_is_known_runs_on_and_is_not_started() -> None:
    sized = [service("x", None)]
    running = fleet(sized, {"a": facts("a", **deployed(x=(["GPU-a-1", "GPU-a-2"], 8000)))})
    assert indices(running) == {"a": {"x": [1, 2]}}
    assert [(finding.code, finding.severity) for finding in running.findings] == [("plan.model_unknown", "warning")]
    new = fleet(sized, {"a": facts("a")})
    assert only(new).code == "plan.unplaced", "said once"
    assert only(new).seen == (
        "1 replica has no host; the number of GPUs cannot be told from acme/tiny@master, which was not read"
    )
    assert only(new).remedy == "set gpus: of x, for example gpus: 1"


def refusal(code: str) -> dict[str, t.Any]:
    """A model that the hub did not give, as vllm_model_info has it."""
    return {"acme/tiny@master": {"error": {"code": code, "seen": "no answer.", "expected": "one", "remedy": "Mend it"}}}


def test_without_a_hub_nothing_new_is_placed_and_the_hub_is_what_to_mend_first() -> None:
    finding = only(fleet([service("x", None)], {"a": facts("a")}, models=refusal("hub.unreachable")))
    assert (finding.code, finding.severity) == ("plan.unplaced", "error")
    assert finding.seen == "1 replica has no host; the number of GPUs cannot be told from acme/tiny@master: no answer"
    assert finding.remedy.startswith("let the host reach the hub (network, name resolution, https_proxy), or set vllm_")
    assert finding.remedy.endswith("; or set gpus: of x, for example gpus: 1")


@pytest.mark.parametrize("code", ["hub.unreachable", "hub.busy", "hub.not_found", "hub.no_access", "model.gguf", ""])
def test_what_runs_is_not_refused_while_the_hub_is_down(code: str) -> None:
    """Neither by the placement nor by the plan of its host, whether the number of its GPUs is stated or not."""
    runs = {"x": (["GPU-a-1", "GPU-a-2"], 8000), "y": (["GPU-a-0"], 8001)}
    document = deployed(**runs)["deployed"]
    for entry in document["services"].values():
        entry.update(model="acme/tiny", revision="master")
    there = {**plan_facts(), **facts("a", deployed=document, models=refusal(code))}
    services = [service("x", None), service("y", 1)]
    placed = fleet(services, {"a": there, "b": facts("b")}, models=refusal(code))
    assert indices(placed) == {"a": {"x": [1, 2], "y": [0]}}
    assert [(one.code, one.severity, one.service) for one in placed.findings] == [
        ("plan.model_unknown", "warning", "x")
    ]
    assert brief(placed.findings) == []
    planned = plan(*host_services([], services, placed.hosts["a"]), on=there)
    assert [one for one in planned["findings"] if one["severity"] == "error"] == []
    assert [one["name"] for one in planned["services"]] == ["x", "y"]


def test_a_model_that_the_hub_does_not_have_is_not_mended_by_a_count() -> None:
    finding = only(fleet([service("x", None)], {"a": facts("a")}, models=refusal("hub.not_found")))
    assert finding.remedy.startswith("correct model: and revision: of x")
    assert "gpus: 1" not in finding.remedy


def test_a_port_of_a_service_that_runs_is_said_to_be_its_own() -> None:
    known = {"a": facts("a", **deployed(one=(["GPU-a-0"], 8000)))}
    placed = fleet([service("one", 1), service("two", 1, port=8000)], known)
    assert "port 8000 is held by one" in only(placed).seen
    assert only(placed).remedy.startswith("leave port: of two out, which chooses a free one")
    assert {entry["name"]: entry["port"] for entry in placed.hosts["a"]} == {"one": 8000}


@pytest.mark.parametrize(
    ("own", "wanted", "cards"),
    [
        ({"gpus": [0], "gpu_memory_utilization": 0.5}, 0.4, [0]),
        ({"gpus": [0], "gpu_memory_utilization": 0.5}, 0.5, [1]),
        ({"gpus": [0], "gpu_memory_utilization": 0.5}, None, [1]),
        ({"gpus": [0]}, 0.4, [1]),
        ({"gpus": 1, "gpu_memory_utilization": 0.5}, 0.4, [1]),
    ],
)
def test_a_card_is_shared_with_a_service_of_the_host_where_both_say_how(
    own: dict[str, t.Any], wanted: float | None, cards: list[int]
) -> None:
    known = Known(facts("a", 2), [{"name": "own", "model": "acme/own", "port": 8100, **own}])
    placed = fleet([service("x", 1, **({"gpu_memory_utilization": wanted} if wanted else {}))], {"a": known})
    assert indices(placed) == {"a": {"x": cards}}
    assert not placed.findings
    planned = plan(*host_services(known.services, [service("x", 1, gpu_memory_utilization=wanted)], placed.hosts["a"]),
                   on={**plan_facts(), **facts("a", 2)})  # fmt: skip
    assert [finding["code"] for finding in planned["findings"] if finding["severity"] == "error"] == []


@pytest.mark.parametrize(
    ("address", "asked", "port"),
    [("127.0.0.1", None, 8000), ("10.0.0.1", None, 8001), (None, None, 8001), ("127.0.0.1", 8000, 8000),
     ("10.0.0.1", 8000, None), (None, 8000, None)],
)  # fmt: skip
def test_a_port_is_taken_on_the_address_that_it_is_taken_on(
    address: str | None, asked: int | None, port: int | None
) -> None:
    listening = [{"address": "10.0.0.1", "port": 8000, "process": "nginx", "service": None}]
    entry = service("x", 1, **({"bind_address": address} if address else {}), **({"port": asked} if asked else {}))
    placed = fleet([entry], {"a": facts("a", listening=listening)})
    assert [one["port"] for one in placed.hosts.get("a", [])] == ([port] if port else [])
    assert ("port 8000 is held by nginx" in only(placed).seen) if port is None else not placed.findings


def test_advice_that_needs_another_packing_is_found() -> None:
    """Without the link these sizes fit, but not in the order in which they are placed at first."""
    sizes = {"a": 3, "b": 3, "c": 2, "d": 2, "e": 2}
    services = [
        service("linked", {"count": 4, "link": "nvlink"}),
        *(service(name, size) for name, size in sizes.items()),
    ]
    placed = fleet(services, {name: facts(name, 8, link="sys") for name in ("a", "b")})
    assert only(placed).remedy.startswith("link: any instead of nvlink for linked")


def test_models_that_nobody_could_read_are_told() -> None:
    known = {"a": facts("a")}
    placed = fleet([service("x", 1)], known, unread="a: the connection was closed")
    assert [(finding.code, finding.severity) for finding in placed.findings] == [("plan.models_unread", "warning")]
    assert placed.findings[0].seen.endswith("could not be read on a: the connection was closed")
    assert indices(placed) == {"a": {"x": [0]}}


def test_a_fleet_without_any_gpu_runs_on_cpus() -> None:
    placed = fleet([service("x", None), service("y", None)], {"a": facts("a", 0), "b": facts("b", 0)})
    assert indices(placed) == {"a": {"x": []}, "b": {"y": []}}, "where there is least"


# --- hosts -----------------------------------------------------------------------------------------------------------


def test_what_runs_is_what_was_deployed_last() -> None:
    cards = [{"uuid": "GPU-a-0"}]
    said = {
        "record": {"services": {"x": {"gpus": [{"uuid": "GPU-a-3"}], "port": 8005}, "gone": {"gpus": cards}}},
        "applied": {"services": {"x": {"gpus": cards}}},
    }
    assert to_host("a", facts("a", **said), [], {"x", "gone"}).running == {"x": Running(("GPU-a-0",), 8005)}
    del said["applied"]
    assert set(to_host("a", facts("a", **said), [], {"x", "gone"}).running) == {"x", "gone"}


def test_cards_of_the_hosts_own_services_are_left_to_them() -> None:
    own = [{"name": "named", "model": "a/b", "gpus": [1]}, {"name": "counted", "model": "a/b", "gpus": 1, "port": 9000}]
    hosts = {"a": Known(facts("a", 4, **deployed(x=(["GPU-a-0"], 8000))), own)}
    assert indices(fleet([service("x"), service("y")], hosts)) == {"a": {"x": [0], "y": [3]}}
    hosts = {"a": Known(facts("a", 4, **deployed(x=(["GPU-a-1"], 8000))), own)}
    placed = fleet([service("x")], hosts)
    assert 1 not in indices(placed)["a"]["x"]
    assert "GPU 1 is that of named" in only(placed).seen


def test_a_service_of_the_hosts_own_is_not_the_fleets() -> None:
    hosts = {"a": Known(facts("a", **deployed(x=(["GPU-a-0"], 8000))), [service("x")]), "b": Known(facts("b"))}
    assert list(fleet([service("x")], hosts).hosts) == ["b"]


def test_cards_that_nobody_is_given() -> None:
    there = facts("a", 4)
    gpus = there["gpus"]
    gpus[0]["mig"] = {"current": "enabled"}
    gpus[1]["processes"] = [{"pid": 7, "name": "python", "memory_used_bytes": 2 * GIB, "service": None}]
    gpus[2]["ecc"] = {"uncorrected_volatile": 3}
    gpus[3]["processes"] = [{"pid": 8, "name": "Xorg", "memory_used_bytes": 90 << 20, "service": None}]
    assert indices(fleet([service("x")], {"a": there})) == {"a": {"x": [3]}}
    text = fleet([service("x", 2)], {"a": there}).findings[0].seen
    assert "GPU 0 is held by MIG (it is partitioned)" in text
    assert "GPU 1 is held by process 7 (python)" in text
    assert "GPU 2 reports memory errors" in text


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "it is not in this run"),
        ({"unreachable": True}, "it was not reached"),
        ({"failed": True, "msg": "x"}, "its facts could not be gathered"),
        ({}, "its facts could not be gathered"),
        (facts("a", 0, **deployed(x=(["GPU-a-0"], 1))), "its driver shows none of the GPUs that it has services on"),
        (facts("a", 0), ""),
        (facts("a"), ""),
    ],
)
def test_hosts_that_cannot_be_reckoned_with(given: t.Any, why: str) -> None:
    assert why_unusable(given) == why


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["gpus", "uuid", "index", "services", "x", "port", "link", "mig", "processes", "topology"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
KEYS = ["gpus", "nvidia", "listening", "record", "applied", "deployed"]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1))
def test_no_fact_of_any_shape_breaks_it(odd: dict[str, t.Any]) -> None:
    whole = facts("a")
    card = {**whole["gpus"][0], **{key: value for key, value in odd.items() if key not in ("index", "uuid")}}
    for shape in (odd, {**whole, **odd}, {**whole, "gpus": [card]}, {"gpus": odd.get("gpus")}):
        placed = fleet([service("x"), service("y", None)], {"a": shape, "b": facts("b")}, missing="free")
        assert placed.hosts


# --- ports -----------------------------------------------------------------------------------------------------------


def ports(placed: Fleet) -> dict[str, dict[str, int]]:
    return {host: {entry["name"]: entry["port"] for entry in entries} for host, entries in placed.hosts.items()}


def test_ports_are_the_lowest_free_ones_and_stay() -> None:
    three = [service(name) for name in "xyz"]
    first = fleet(three, {"a": facts("a")})
    assert ports(first) == {"a": {"x": 8000, "y": 8001, "z": 8002}}
    runs = deployed(y=(["GPU-a-1"], 8001), z=(["GPU-a-2"], 8002))
    assert ports(fleet(three[1:], {"a": facts("a", **runs)})) == {"a": {"y": 8001, "z": 8002}}
    assert ports(fleet([service("b"), *three[1:]], {"a": facts("a", **runs)})) == {
        "a": {"b": 8000, "y": 8001, "z": 8002}
    }


def test_ports_of_others_are_left_alone() -> None:
    own = [{"name": "own", "model": "a/b", "gpus": [0]}]
    there = facts("a", listening=[{"port": 8001, "process": "nginx", "service": None, "address": "0.0.0.0"}])
    assert ports(fleet([service("x"), service("y", port=8002)], {"a": Known(there, own)})) == {
        "a": {"x": 8003, "y": 8002}
    }


def test_a_range_that_is_full_and_one_that_is_none() -> None:
    assert codes(fleet([service("x"), service("y")], {"a": facts("a")}, ports="9000-9000")) == ["plan.port_short"]
    for wrong in ("9000", "9000-8000", "0-5", "1-99999", "a-b"):
        assert codes(fleet([service("x")], {"a": facts("a")}, ports=wrong)) == ["plan.bad_setting"]


# --- what is said ----------------------------------------------------------------------------------------------------


def test_the_nearest_host_and_who_is_in_the_way() -> None:
    hosts = {
        "gpu-01": facts("gpu-01", 4, **deployed(whisper=(["GPU-gpu-01-2"], 8000))),
        "gpu-02": facts("gpu-02", 2),
    }
    placed = fleet([service("whisper"), service("large", 4)], hosts)
    finding = only(placed)
    assert (finding.code, finding.severity, finding.service) == ("plan.unplaced", "error", "large")
    assert finding.seen == (
        "1 replica has no host; nearest is gpu-01: 3 of 4 GPUs are free (GPU 2 is held by whisper); "
        "there is no other packing beside what runs"
    )
    assert finding.expected == "1 more host with 4 free GPUs"
    assert finding.remedy == (
        "move whisper from gpu-01: set hosts: [gpu-02] on whisper; or gpus: 2 instead of 4 for large, where its model "
        "fits on them; or add a host for large with 4 free GPUs"
    )
    # What is advised does it.
    for more in ({"whisper": {"hosts": ["gpu-02"]}}, {"large": {"gpus": 2}}):
        advised = [{**one, **more.get(one["name"], {})} for one in (service("whisper"), service("large", 4))]
        assert "plan.unplaced" not in codes(fleet(advised, hosts))
    assert "plan.unplaced" not in codes(fleet([service("whisper"), service("large", 4)], {**hosts, "c": facts("c")}))
    assert placed.hosts["gpu-01"][0]["name"] == "whisper", "what has a place is told to those who look"


@pytest.mark.parametrize(
    ("wish", "seen", "remedy"),
    [
        ({"count": 1, "min_memory_gib": 100}, "the largest GPU has 80 GiB, 20 GiB short", "min_memory_gib: 80 for x"),
        ({"count": 1, "name": "B200"}, "no GPU is a 'B200' (there are NVIDIA H100 80GB HBM3)", "add a host for x with"),
        ({"count": 1, "min_compute_capability": 10.0}, "the highest compute capability is 9.0", "10.0"),
        ({"count": 8}, "the most GPUs of this kind in one host are 4 (a), 4 short", "gpus: 4 instead of 8 for x"),
    ],
)
def test_what_no_host_has(wish: dict[str, t.Any], seen: str, remedy: str) -> None:
    finding = only(fleet([service("x", wish)], {"a": facts("a")}))
    assert seen in finding.seen
    assert remedy in finding.remedy


def test_what_no_host_has_joined() -> None:
    pairs = facts("a", 4, link="sys")
    pairs["nvidia"]["topology"] = [
        {**entry, "nvlinks": 4, "link": "nv4"} if entry["gpus"] in ([0, 1], [2, 3]) else entry
        for entry in pairs["nvidia"]["topology"]
    ]
    finding = only(fleet([service("x", {"count": 4, "link": "nvlink"})], {"a": pairs}))
    assert "the most GPUs of this kind joined by NVLink in one host are 2 (a), 2 short" in finding.seen
    assert "link: any instead of nvlink for x" in finding.remedy


def test_replicas_ports_and_hosts_that_are_too_few() -> None:
    hosts = {"a": facts("a"), "b": facts("b")}
    finding = only(fleet([service("x", replicas=3)], hosts))
    assert finding.seen.startswith("1 of 3 replicas has no host; every host that it may have runs one already")
    assert "replicas: 2 for x" in finding.remedy
    own = [{"name": "own", "model": "a/b", "gpus": [0], "port": 9000}]
    finding = only(fleet([service("x", port=9000)], {"a": Known(facts("a"), own)}))
    assert "nearest is a: port 9000 is held by own" in finding.seen
    assert "leave port: of x out" in finding.remedy
    full = {"a": facts("a", 1, **deployed(y=(["GPU-a-0"], 8000))), "b": facts("b")}
    finding = only(fleet([service("y"), service("x", hosts=["a"])], full))
    assert "move y from a: set hosts: [b] on y" in finding.remedy
    assert "let x have other hosts" in finding.remedy


def test_what_is_needed_names_no_size_that_nobody_asked_for() -> None:
    """Sizes of the fleet's own cards: an H100 has 79.6 GiB, and one of 44.9 is enough."""
    known = {"acme/tiny@master": model("llama-3.1-8b.json", 16_060_000_000)}
    hosts = {"a": facts("a", 1, 44.99), "b": facts("b", 2, 79.65), "c": facts("c", 2, 79.65)}
    sized = service("chat", None, replicas=4, hosts=["b", "c"], max_model_len=16384)
    finding = only(fleet([sized], hosts, models=known))
    assert finding.expected == "2 more hosts among b, c with 1 free GPU of at least 44.9 GiB, where its model fits"
    assert "add 2 hosts for chat with 1 free GPU of at least 44.9 GiB, within its hosts: (b, c)" in finding.remedy
    counted = only(fleet([service("chat", 3, max_model_len=16384)], hosts, models=known))
    assert counted.expected == "1 more host with 3 free GPUs of at least 44.9 GiB, where its model fits"
    assert only(fleet([service("chat", 3)], hosts)).expected == "1 more host with 3 free GPUs"
    asked = only(fleet([service("chat", {"count": 3, "min_memory_gib": 44.91})], hosts, models=known))
    assert asked.expected == "1 more host with 3 free GPUs of at least 45 GiB", "a wish is rounded up"
    only_large = only(fleet([{**sized, "hosts": None, "replicas": 4}], {"b": hosts["b"]}, models=known))
    assert only_large.expected == "3 more hosts with 1 free GPU of at least 79.6 GiB, where its model fits"


def test_other_ways_to_have_it_are_those_with_more_and_smaller_cards() -> None:
    wide = {"acme/tiny@master": model("llama-3.1-70b.json", 141_000_000_000)}
    hosts = {"a": facts("a", 8, 48), "b": facts("b", 8, 80), "c": facts("c", 8, 141)}
    finding = only(fleet([service("x", None, replicas=4, max_model_len=16384)], hosts, models=wide))
    assert finding.expected == (
        "1 more host with 2 free GPUs of at least 141 GiB or 4 free GPUs of at least 48 GiB, where its model fits"
    )


def test_a_port_that_is_held_is_all_that_is_said_where_there_are_cards() -> None:
    listening = [{"address": "0.0.0.0", "port": 2024, "process": None, "service": None}]
    finding = only(fleet([service("x", 1, port=2024)], {"a": facts("a", 1, listening=listening)}))
    assert finding.seen == "1 replica has no host; nearest is a: port 2024 is held by a process of another user"
    assert finding.remedy == "leave port: of x out, which chooses a free one"
    full = facts("a", 1, listening=listening, **deployed(y=(["GPU-a-0"], 8000)))
    finding = only(fleet([service("y"), service("x", 1, port=2024)], {"a": full}))
    assert "port 2024 is held by a process of another user; 0 of 1 GPU are free (GPU 0 is held by y)" in finding.seen
    assert "add a host" in finding.remedy


def test_each_remedy_names_the_service() -> None:
    finding = only(fleet([service("x", 5)], {"a": facts("a")}))
    assert (
        finding.remedy == "gpus: 4 instead of 5 for x, where its model fits on them; or gpus: 2 instead of 5 for x, "
        "where its model fits on them; or add a host for x with 5 free GPUs"
    )
    named = only(fleet([service("x", {"count": 1, "name": "B200"})], {"a": facts("a")}))
    assert named.remedy == "add a host for x with 1 free GPU named 'B200'"


def test_without_a_solver_it_says_how_to_have_one() -> None:
    sizes = [4, 3, 3, 2, 2, 2]
    services = [service(f"s{number}", size) for number, size in enumerate(sizes)]
    hosts = {name: facts(name, 8, link="sys") for name in ("a", "b")}
    assert fleet(services, hosts).findings == ()
    finding = only(fleet(services, hosts, solve=lambda *_: None))
    assert "whether another packing has room was not searched" in finding.seen
    assert finding.remedy.startswith(INSTALL)


def test_hosts_that_are_not_there() -> None:
    services = [service("x", 2, replicas=2), service("y")]
    here = facts("a", **deployed(x=(["GPU-a-0", "GPU-a-1"], 8000)))
    limited = fleet(services, {"a": here, "b": None, "c": None})
    assert indices(limited) == {"a": {"x": [0, 1]}}
    finding = only(limited)
    assert (finding.code, finding.severity) == ("plan.host_missing", "info")
    assert finding.seen == ("b, c are not in this run: 2 replicas (x, y) may run there and stay there")
    assert finding.remedy.startswith("run without --limit; if they are gone for good take them out of the inventory")
    lost = fleet(services, {"a": here, "b": {"unreachable": True}})
    assert [(finding.code, finding.severity) for finding in lost.findings] == [("plan.host_missing", "warning")]
    assert only(lost).seen == "b was not reached: 2 replicas (x, y) may run there and stay there"
    assert only(lost).remedy.startswith("run again when it answers; if it is gone for good take it out of")
    alone = fleet(services[1:], {"a": facts("a"), "b": {"failed": True}})
    assert only(alone).seen == "b: its facts could not be gathered; 1 replica (y) may run there and stays there"
    freed = fleet(services, {"a": here, "b": {"unreachable": True}, "c": facts("c")}, missing="free")
    assert indices(freed) == {"a": {"x": [0, 1], "y": [2]}, "c": {"x": [0, 1]}}
    assert codes(freed) == ["plan.host_missing"]
    gone = fleet(services, {"a": here, "c": facts("c")})
    assert sum(len(entries) for entries in gone.hosts.values()) == 3, (
        "a host that left the inventory frees its services"
    )
    assert codes(gone) == []
    settled = fleet([service("x", 2)], {"a": here, "b": None})
    assert codes(settled) == [], "nothing is missing of what is known to be here"


def test_moves_are_told_with_their_reason() -> None:
    runs = facts("a", 2, **deployed(x=(["GPU-a-7"], 8000)))
    finding = only(fleet([service("x")], {"a": runs}))
    assert (finding.code, finding.severity) == ("plan.service_moved", "warning")
    assert finding.seen == "changes on a: GPU GPU-a-7 is gone"
    moved = only(
        fleet([service("x", hosts=["b"])], {"a": facts("a", **deployed(x=(["GPU-a-1"], 8000))), "b": facts("b")})
    )
    assert moved.seen == "moves from a to b: hosts: does not name it any more"
    grown = only(fleet([service("x", 2)], {"a": facts("a", **deployed(x=(["GPU-a-1"], 8000)))}))
    assert grown.seen == "changes on a: it wants 2 GPUs and has 1"


def test_each_host_says_it_in_one_finding() -> None:
    placed = fleet([service("x", 9), service("y", 9)], {"a": facts("a")})
    (short,) = brief(placed.findings)
    assert (short.code, short.severity) == ("plan.placement_failed", "error")
    assert "has 2 errors (x, y)" in short.seen
    assert "fleet.findings" in short.remedy
    assert "has 1 error (x)" in brief(fleet([service("x", 9)], {"a": facts("a")}).findings)[0].seen
    assert brief(fleet([service("x")], {"a": facts("a")}).findings) == []


# --- the services of one host ----------------------------------------------------------------------------------------


def test_the_services_of_a_host() -> None:
    own = [service("own", [0])]
    whole = [service("x", {"count": 2}, api_key=SECRET, replicas=2, hosts=["a"]), service("elsewhere")]
    placed = fleet(whole, {"a": facts("a"), "b": facts("b")})
    assert SECRET not in repr(placed)
    services = host_services(own, whole, placed.hosts["a"])
    assert services[0] == own[0]
    assert [one["name"] for one in services] == ["own", "elsewhere", "x"]
    assert services[-1] == {
        "name": "x", "model": "acme/tiny", "api_key": SECRET, "gpus": ["GPU-a-0", "GPU-a-1"], "port": 8001
    }  # fmt: skip
    assert host_services(own, whole, []) is own
    assert host_services("odd", whole, placed.hosts["a"]) == "odd"
    cpu = fleet([service("x", None)], {"a": facts("a", 0)})
    assert host_services([], [service("x", {"count": 2})], cpu.hosts["a"])[0]["gpus"] is None


def test_memories_are_those_of_the_fleet() -> None:
    hosts = [to_host(name, facts(name, count, gib), [], ()) for name, count, gib in (("a", 8, 24), ("b", 2, 80))]
    assert _placement_input.memories(hosts) == [(24 * GIB, 8), (80 * GIB, 2)]
