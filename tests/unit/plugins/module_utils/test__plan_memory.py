# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from plan_case import codes, facts, indices, only, plan, service, without_gpus

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
GIB = 1024**3


def entry(config: str, total: int) -> dict[str, t.Any]:
    """One model as vllm_model_info returns it, of which the headers were not read."""
    return {"config": json.loads((CONFIGS / f"{config}.json").read_text()), "bytes_total": total, "error": None}


def refusal(code: str, source: str | None = None) -> dict[str, t.Any]:
    """A model that the hub refused, as vllm_model_info has it."""
    error = {"code": code, "seen": f"https://hub refused it: {code}.", "expected": "another", "remedy": "Correct it"}
    return {"commit": None, "source": source, "config": None, "error": error}


MODELS = {
    "acme/small@master": entry("qwen3-8b", 16 * GIB),
    "acme/large@master": entry("llama-3.1-70b", 141 * GIB),
    "acme/gone@master": {"error": {"code": "hub.unreachable", "seen": "no answer", "expected": "one", "remedy": "x"}},
}


def applied(planned: dict[str, t.Any]) -> dict[str, t.Any]:
    """The record of a plan, as facts of the next run."""
    return {entry["name"]: {"gpus": entry["gpus"], "wish": entry["wish"]} for entry in planned["services"]}


def test_the_sum_is_part_of_the_plan() -> None:
    (small,) = plan(service("small", max_model_len=8192), on=facts(models=MODELS))["services"]
    assert small["memory"]["fits"]
    assert small["memory"]["max_model_len"] == 8192
    assert (small["wish"], small["tensor_parallel_size"]) == ("auto", 1)


def test_as_many_cards_as_the_model_needs_where_that_is_left_open() -> None:
    planned = plan(service("large"), service("small", port=8001), on=facts(models=MODELS))
    assert indices(planned) == {"large": [0, 1], "small": [2]}
    large = planned["services"][0]
    assert (large["wish"], large["tensor_parallel_size"], large["memory"]["fits"]) == ("auto", 2, True)
    assert planned["errors"] == 0


@pytest.mark.parametrize("keys", [{"tensor_parallel_size": 2}, {"args": {"pipeline-parallel-size": 2}}])
def test_as_many_cards_as_the_parallelism_that_is_set(keys: dict[str, t.Any]) -> None:
    planned = plan(service("small", **keys), on=facts(models=MODELS))
    assert (indices(planned), planned["errors"]) == ({"small": [0, 1]}, 0)


def test_what_was_left_open_keeps_its_cards_whatever_is_known_of_the_model_now() -> None:
    first = plan(service("large"), on=facts(models=MODELS))
    for models in ({}, {"acme/large@master": entry("qwen3-8b", 16 * GIB)}, MODELS):
        again = plan(service("large"), on=facts(models=models, record={"services": applied(first)}))
        assert indices(again) == {"large": [0, 1]}
        assert again["services"][0]["command"] == first["services"][0]["command"]


def test_one_card_that_is_asked_for_later_is_one_card() -> None:
    first = plan(service("large"), on=facts(models=MODELS))
    again = plan(service("large", gpus=1), on=facts(record={"services": applied(first)}))
    assert indices(again) == {"large": [0]}


def test_a_model_that_cannot_fit_is_told_before_anything_starts() -> None:
    finding = only(plan(service("large", gpus=1, max_model_len=4096), on=facts(models=MODELS)))
    assert (finding["code"], finding["severity"], finding["service"]) == ("plan.memory_short", "error", "large")
    assert "tensor_parallel_size: 2" in finding["remedy"]


def test_an_estimate_can_be_overruled() -> None:
    planned = plan(service("large", gpus=1), on=facts(models=MODELS), skip=["plan.memory_short", "plan.no_api_key"])
    assert (planned["errors"], planned["skipped"]) == (0, ["plan.memory_short", "plan.no_api_key"])


def test_a_tensor_parallel_size_that_the_model_has_no_heads_for() -> None:
    planned = plan(service("small", gpus=3), on=facts(models=MODELS))
    assert codes(planned) == [("plan.tensor_parallel_illegal", "small")]


def test_a_number_of_gpus_that_follows_from_nothing_is_told() -> None:
    finding = only(plan(service("gone"), on=facts(models=MODELS)))
    assert (finding["code"], finding["severity"]) == ("plan.model_unknown", "warning")
    assert finding["seen"] == "one GPU is taken, since gpus: is not set and the model's size is not known: no answer"
    assert finding["remedy"].startswith("set gpus: of gone; or let the host reach the hub")
    assert "vllm_hub_endpoint" in finding["remedy"], "the operator's variable, and not the module's option"


@pytest.mark.parametrize(
    "keys",
    [{"gpus": 1}, {"gpus": {"count": 1}}, {"tensor_parallel_size": 1}, {"args": {"pipeline-parallel-size": 2}}],
)
def test_a_number_of_gpus_that_somebody_chose_is_not(keys: dict[str, t.Any]) -> None:
    assert only(plan(service("gone", **keys), on=facts(models=MODELS)))["severity"] == "info"


def test_nor_one_that_the_service_has_already() -> None:
    first = plan(service("gone"), on=facts(models=MODELS))
    again = plan(service("gone"), on=facts(models=MODELS, record={"services": applied(first)}))
    assert only(again)["severity"] == "info"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("hub.not_found", "plan.model_not_found"),
        ("hub.unknown_revision", "plan.model_not_found"),
        ("hub.no_access", "plan.model_refused"),
    ],
)
@pytest.mark.parametrize("keys", [{"gpus": 1}, {}])
@pytest.mark.parametrize("source", [None, "hub"])
def test_a_model_that_the_hub_does_not_have(code: str, expected: str, keys: dict[str, t.Any], source: str) -> None:
    """The fetch would end with the same, however the number of GPUs is said."""
    finding = only(plan(service("small", **keys), on=facts(models={"acme/small@master": refusal(code, source)})))
    assert (finding["code"], finding["severity"], finding["service"]) == (expected, "error", "small")
    assert (finding["seen"], finding["expected"]) == (f"https://hub refused it: {code}", "another")
    assert finding["remedy"] != "Correct it"


def test_what_to_do_about_it_is_said_in_variables_of_the_operator() -> None:
    remedies = {}
    for code in ("hub.not_found", "hub.unknown_revision", "hub.no_access"):
        planned = plan(service("small"), on=facts(models={"acme/small@master": refusal(code)}))
        remedies[code] = only(planned)["remedy"]
    assert remedies["hub.not_found"].startswith("correct model: and revision: of small, or vllm_hub_endpoint")
    assert remedies["hub.unknown_revision"] == "correct revision: of small"
    assert remedies["hub.no_access"].startswith("set vllm_hub_token")


def test_nor_is_it_there_for_a_service_on_the_cpu() -> None:
    models = {"acme/small@master": refusal("hub.not_found")}
    planned = plan(service("small"), on=without_gpus(models=models), allow_cpu=True)
    assert ("plan.model_not_found", "small") in codes(planned)


@pytest.mark.parametrize("code", ["hub.unreachable", "hub.unavailable", "hub.busy", "hub.tls", "hub.odd_answer"])
def test_a_hub_that_gives_no_definite_answer_is_held_against_none(code: str) -> None:
    finding = only(plan(service("small", gpus=1), on=facts(models={"acme/small@master": refusal(code)})))
    assert (finding["code"], finding["severity"]) == ("plan.model_unknown", "info")


@pytest.mark.parametrize(
    "there",
    [
        {"deployed": {"artifacts": [{"model": "acme/small", "revision": "master", "path": "/data/models/small"}]}},
        {"deployed": {"services": {"old": {"model": "acme/small", "revision": "master"}}}},
        {"record": {"services": {"old": {"model": "acme/small", "revision": "master"}}}},
    ],
)
def test_what_the_host_was_deployed_with_goes_on_whatever_a_hub_says(there: dict[str, t.Any]) -> None:
    """Of the fleet's models another host asks, and it does not have what this one has."""
    models = {"acme/small@master": refusal("hub.not_found")}
    planned = plan(service("small", gpus=1), on=facts(models=models, **there))
    assert [(one["code"], one["severity"]) for one in planned["findings"]] == [("plan.model_unknown", "info")]
    other = plan(service("small", gpus=1, revision="v2"), on=facts(models={"acme/small@v2": refusal("hub.not_found")}))
    assert codes(other) == [("plan.model_not_found", "small")]


def test_a_model_that_is_complete_on_the_host_was_asked_of_nobody() -> None:
    complete = {**entry("qwen3-8b", 16 * GIB), "source": "artifact"}
    assert plan(service("small", gpus=1), on=facts(models={"acme/small@master": complete}))["findings"] == []


@pytest.mark.parametrize("deployed", [None, 7, "text", {"artifacts": 7, "services": []}, {"artifacts": [7, None, {}]}])
def test_whatever_a_host_says_of_its_deploys(deployed: t.Any) -> None:
    models = {"acme/small@master": refusal("hub.not_found")}
    assert codes(plan(service("small"), on=facts(models=models, deployed=deployed))) == [
        ("plan.model_not_found", "small")
    ]


@pytest.mark.parametrize("error", [{"code": ["hub.not_found"]}, {"code": "hub.not_found", "seen": 7, "expected": None}])
def test_whatever_a_host_says_of_an_error(error: dict[str, t.Any]) -> None:
    planned = plan(service("small", gpus=1), on=facts(models={"acme/small@master": {"error": error}}))
    assert len(planned["findings"]) == 1


def test_an_answer_of_the_hub_can_be_overruled() -> None:
    """An operator who knows better goes on: the fetch says so again, and the others of the host are fetched."""
    models = {"acme/small@master": refusal("hub.not_found")}
    planned = plan(service("small"), on=facts(models=models), skip=["plan.model_not_found"])
    assert (planned["errors"], planned["skipped"]) == (0, ["plan.model_not_found"])


def test_what_is_not_known_is_held_against_none() -> None:
    planned = plan(service("gone", gpus=2), on=facts(models=MODELS))
    assert codes(planned) == [("plan.model_unknown", "gone")]
    assert planned["errors"] == 0
    silent = plan(service("gone", gpus=2), on=facts())
    assert (silent["findings"], silent["services"][0]["memory"]) == ([], None)


@pytest.mark.parametrize("models", [None, [], "text", {"acme/small@master": 7}, {"acme/small@master": {"config": 7}}])
def test_whatever_a_host_says_of_its_models(models: t.Any) -> None:
    assert plan(service("small"), on=facts(models=models))["errors"] == 0
