# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From looks to parts: who gives what to whom, and what they agree on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_fleet import memberships
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import Membership, read_membership
from hypothesis import given
from hypothesis import strategies as st

SECRET = "3c" * 32
OLD, NEW = "a" * 40, "b" * 40


def rows(mark: str = "x", size: int = 5000) -> list[dict[str, Any]]:
    digest = hashlib.sha256(mark.encode()).hexdigest()
    return [{"Path": "model.safetensors", "Type": "blob", "Size": size, "Sha256": digest}]


def files(mark: str = "x", size: int = 5000) -> list[dict[str, Any]]:
    return [{"path": row["Path"], "size": row["Size"], "sha256": row["Sha256"]} for row in rows(mark, size)]


def artifact(**more: Any) -> dict[str, Any]:
    return {"model": "acme/a", "revision": "master", "include": [], "exclude": [], "allow_pickle": False, **more}


def lacks(commit: str | None = NEW, missing: int = 5000, **more: Any) -> dict[str, Any]:
    return artifact(complete=False, commit=commit, missing=missing, rows=rows(), warnings=[], **more)


def blind(**more: Any) -> dict[str, Any]:
    """Lacks it, and could not ask the hub."""
    return artifact(complete=False, parts=0, **more)


def has(commit: str | None = NEW, mark: str = "x", **more: Any) -> dict[str, Any]:
    return artifact(complete=True, commit=commit, files=files(mark), missing=0, **more)


def plan(looks: dict[str, list[dict[str, Any]]], mode: str = "swarm", seed: str | None = None) -> dict[str, Membership]:
    whole = {
        name: {"address": f"10.0.0.{place}", "artifacts": items} for place, (name, items) in enumerate(looks.items())
    }
    return memberships(whole, mode, seed, 8791, SECRET)


def chain(told: dict[str, Membership], name: str) -> tuple[str, ...]:
    (pinned,) = told[name].artifacts
    return pinned.chain


def test_where_nobody_lacks_anything_nobody_has_a_part() -> None:
    assert plan({"a": [has()], "b": [has()], "c": []}) == {}
    assert plan({}) == {}


def test_one_alone_has_nobody_to_get_it_from() -> None:
    assert plan({"a": [lacks()]}) == {}
    assert plan({"a": [lacks()], "b": [lacks(revision="v2")]}) == {}


def test_who_lacks_it_stands_in_one_chain_and_all_are_told_the_same() -> None:
    told = plan({"a": [lacks()], "b": [lacks(missing=100)], "c": [lacks()]})
    assert list(told) == ["a", "b", "c"]
    assert {chain(told, name) for name in told} == {("b", "a", "c")}
    assert told["a"].addresses == {"a": "10.0.0.0", "b": "10.0.0.1", "c": "10.0.0.2"}
    assert {part.secret for part in told.values()} == {SECRET}
    assert [told[name].name for name in told] == list(told)


def test_who_has_it_gives_it_and_others_are_left_alone() -> None:
    told = plan({"a": [has()], "b": [has()], "c": [has()], "d": [lacks()]})
    assert list(told) == ["b", "c", "d"]
    assert chain(told, "d") == ("b", "c", "d")
    assert told["d"].artifacts[0].complete == 2


def test_host_with_an_older_version_is_in_need_once_somebody_knows_the_newer() -> None:
    told = plan({"old": [has(OLD, "old")], "new": [lacks(NEW)]})
    assert chain(told, "old") == ("new", "old"), "the one that can ask the hub is first"
    assert told["old"].artifacts[0].complete == 0
    assert {part.artifacts[0].commit for part in told.values()} == {NEW}


def test_word_of_the_seed_counts() -> None:
    told = plan({"a": [lacks(OLD)], "b": [lacks(NEW)]}, seed="b")
    assert chain(told, "a") == ("b", "a")
    assert told["a"].artifacts[0].commit == NEW
    assert plan({"a": [lacks(OLD)], "b": [lacks(NEW)]}, seed="elsewhere")["a"].artifacts[0].commit == OLD


def test_host_that_cannot_ask_the_hub_is_told() -> None:
    told = plan({"blind": [blind()], "sees": [lacks()]})
    assert chain(told, "blind") == ("sees", "blind"), "the one that can ask the hub is first"
    assert read_membership(told["blind"].as_dict()).artifacts[0].rows == tuple(rows())


def test_without_any_hub_the_word_of_a_complete_host_counts() -> None:
    told = plan({"has": [has(OLD)], "blind": [blind()]})
    assert chain(told, "blind") == ("has", "blind")
    assert told["blind"].artifacts[0].commit == OLD
    assert [entry.path for entry in told["blind"].artifacts[0].entries] == ["model.safetensors"]


def test_without_anybody_who_knows_there_is_no_part() -> None:
    assert plan({"a": [blind()], "b": [blind()]}) == {}


@pytest.mark.parametrize(("mark", "complete"), [("x", 1), ("other", 0)])
def test_hub_that_tells_no_commit_is_compared_by_content(mark: str, complete: int) -> None:
    told = plan({"a": [has(None, mark)], "b": [lacks(None)]})
    assert told["b"].artifacts[0].complete == complete


def test_different_selections_are_different_artifacts() -> None:
    told = plan({"a": [lacks()], "b": [lacks(include=["*.json"])], "c": [lacks(), lacks(include=["*.json"])]})
    assert {pinned.include: pinned.chain for pinned in told["c"].artifacts} == {
        (): ("a", "c"),
        ("*.json",): ("b", "c"),
    }
    assert set(told["a"].addresses) == {"a", "c"}, "nobody is let in who has no business here"


def test_mode_and_port_are_handed_on() -> None:
    told = plan({"a": [lacks()], "b": [lacks()]}, mode="seed")
    assert (told["a"].mode, told["a"].port) == ("seed", 8791)
    assert told["a"].serves
    assert not told["b"].serves


kinds = st.sampled_from([lacks, blind, has])
fleets = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "e"]), st.lists(kinds.map(lambda kind: kind()), max_size=1), max_size=5
)


@given(fleets, st.sampled_from(["swarm", "seed"]))
def test_all_agree_and_can_read_what_they_are_told(looks: dict[str, list[dict[str, Any]]], mode: str) -> None:
    told = plan(looks, mode)
    agreed = set()
    for name, part in told.items():
        assert read_membership(json.loads(json.dumps(part.as_dict()))) == part
        for pinned in part.artifacts:
            assert name in pinned.chain
            assert set(pinned.chain) <= set(part.addresses)
            assert set(pinned.chain) <= set(told), "whoever is counted on is told so"
            agreed.add((pinned.commit, pinned.chain, pinned.complete))
    assert len(agreed) <= 1
