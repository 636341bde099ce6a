# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from plan_case import codes, facts, indices, only, plan, service

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
GIB = 1024**3


def entry(config: str, total: int) -> dict[str, t.Any]:
    """One model as vllm_model_info returns it, of which the headers were not read."""
    return {"config": json.loads((CONFIGS / f"{config}.json").read_text()), "bytes_total": total, "error": None}


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
    assert finding["remedy"] == "set gpus: of gone; or x"


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


def test_what_is_not_known_is_held_against_none() -> None:
    planned = plan(service("gone", gpus=2), on=facts(models=MODELS))
    assert codes(planned) == [("plan.model_unknown", "gone")]
    assert planned["errors"] == 0
    silent = plan(service("gone", gpus=2), on=facts())
    assert (silent["findings"], silent["services"][0]["memory"]) == ([], None)


@pytest.mark.parametrize("models", [None, [], "text", {"acme/small@master": 7}, {"acme/small@master": {"config": 7}}])
def test_whatever_a_host_says_of_its_models(models: t.Any) -> None:
    assert plan(service("small"), on=facts(models=models))["errors"] == 0
