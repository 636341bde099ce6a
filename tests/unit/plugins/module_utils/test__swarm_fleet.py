# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From looks to parts: who gives what to whom, and what they agree on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_fleet import doubts, memberships, read_look
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


def doubts_of(looks: dict[str, list[dict[str, Any]]], seed: str | None = None) -> list[str]:
    whole = {name: {"address": "10.0.0.1", "artifacts": items} for name, items in looks.items()}
    return doubts(whole, seed, memberships(whole, "swarm", seed, 8791, SECRET))


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


# ---- hosts that contradict each other


def forged(commit: str | None = NEW) -> dict[str, Any]:
    return {**lacks(commit), "rows": rows("forged")}


@pytest.mark.parametrize("commit", [NEW, None])
@pytest.mark.parametrize("liar", ["a", "b", "c"])
@pytest.mark.parametrize("seed", [None, "a", "b", "c"])
def test_listing_of_one_host_is_not_believed_where_another_was_told_otherwise(
    commit: str | None, liar: str, seed: str | None
) -> None:
    looks = {name: [forged(commit) if name == liar else lacks(commit)] for name in "abc"}
    looks["blind"] = [blind()]
    assert plan(looks, seed=seed) == {}
    (text,) = doubts_of(looks, seed)
    assert "acme/a at revision master" in text
    groups = sorted([liar, ", ".join(name for name in "abc" if name != liar)])
    assert f"{groups[0]} and {groups[1]} say" in text or f"{groups[1]} and {groups[0]} say" in text
    assert "every host asks the hub itself" in text


def test_dispute_about_one_artifact_leaves_the_others_shared() -> None:
    told = plan({name: [found, lacks(revision="v2")] for name, found in (("a", forged()), ("b", lacks()))})
    assert [pinned.revision for pinned in told["a"].artifacts] == ["v2"]


@pytest.mark.parametrize(
    "change",
    [{"Size": 5001}, {"Sha256": "0" * 64}, {"Path": "other"}, {"Sha256": ""}],
    ids=str,
)
def test_any_difference_of_a_file_counts(change: dict[str, Any]) -> None:
    assert plan({"a": [lacks()], "b": [{**lacks(), "rows": [{**rows()[0], **change}]}]}) == {}
    more = {**lacks(), "rows": [*rows(), {**rows("y")[0], "Path": "evil.py", **change}]}
    assert plan({"a": [lacks()], "b": [more]}) == {}, "nor is a file more"


def test_order_directories_and_spelling_do_not_count() -> None:
    second = {**rows("y")[0], "Path": "config.json"}
    one = [*rows(), second, {"Path": "sub", "Type": "tree", "Size": 0}]
    other = [{**second, "Sha256": second["Sha256"].upper()}, *rows()]
    assert len(plan({"a": [{**lacks(), "rows": one}], "b": [{**lacks(), "rows": other}]})) == 2


def test_files_of_a_complete_host_contradict_a_forged_listing() -> None:
    assert plan({"evil": [forged()], "has": [has()], "blind": [blind()]}) == {}
    (text,) = doubts_of({"evil": [forged()], "has": [has()], "blind": [blind()]})
    assert "evil and has say different things" in text


def test_two_complete_hosts_that_contradict_each_other_give_nothing() -> None:
    assert plan({"a": [has()], "b": [has(mark="forged")], "blind": [blind()]}) == {}


def test_selection_of_a_complete_host_does_not_contradict_the_whole() -> None:
    listing = [*rows(), {**rows("y")[0], "Path": "config.json"}]
    told = plan({"a": [{**lacks(), "rows": listing}], "b": [has()], "c": [{**lacks(), "rows": listing}]})
    assert set(told) == {"a", "b", "c"}
    more = [*files(), {"path": "evil.py", "size": 1, "sha256": "0" * 64}]
    assert plan({"a": [lacks()], "b": [{**has(), "files": more}], "c": [lacks()]}) == {}


def test_what_most_were_told_counts_where_a_branch_moved_and_is_to_be_compared() -> None:
    told = plan({"a": [forged(OLD)], "b": [lacks()], "c": [lacks()], "blind": [blind()]})
    assert {part.artifacts[0].commit for part in told.values()} == {NEW}
    assert {part.artifacts[0].doubtful for part in told.values()} == {True}
    assert read_membership(told["a"].as_dict()).artifacts[0].doubtful
    told = plan({"a": [lacks()], "b": [lacks()]})
    assert {part.artifacts[0].doubtful for part in told.values()} == {False}
    told = plan({"stale": [has(OLD, "old")], "b": [lacks()]})
    assert {part.artifacts[0].doubtful for part in told.values()} == {True}


# ---- why it is not as it was asked for


def test_seed_that_is_not_there_is_said() -> None:
    looks = {"a": [lacks()], "b": [lacks()]}
    assert doubts_of(looks) == []
    assert doubts_of(looks, "a") == []
    (text,) = doubts_of(looks, "elsewhere")
    assert "'elsewhere', is none of the hosts" in text
    assert doubts_of({"a": [has()], "b": [has()]}, "elsewhere") == [], "nobody needs it"


def test_seed_without_a_way_to_the_hub_is_not_first_and_that_is_said() -> None:
    looks = {"seed": [blind()], "b": [lacks()]}
    assert chain(plan(looks, seed="seed"), "b") == ("b", "seed")
    (text,) = doubts_of(looks, "seed")
    assert "the seed, 'seed', cannot ask the hub" in text


def test_what_nobody_knows_is_said() -> None:
    (text,) = doubts_of({"a": [blind()], "b": [blind()]})
    assert "none of the hosts can ask the hub" in text
    assert doubts_of({"a": [blind()]}) == []
    assert doubts_of({"a": [has()], "b": []}) == []


# ---- what is no look


def look_of(*items: dict[str, Any]) -> dict[str, Any]:
    return {"address": "10.0.0.1", "artifacts": list(items), "open": True}


@pytest.mark.parametrize("item", [lacks(), blind(), has(), has(None)], ids=["lacks", "blind", "has", "no commit"])
def test_look_stays_what_it_is(item: dict[str, Any]) -> None:
    read = dict(read_look(json.loads(json.dumps(look_of(item)))))
    (artifact_read,) = read.pop("artifacts")
    assert read == {"address": "10.0.0.1", "open": True}
    assert {key: artifact_read[key] for key in item if key not in ("rows", "files")} == {
        key: value for key, value in item.items() if key not in ("rows", "files")
    }
    assert artifact_read.get("rows") == item.get("rows")
    assert artifact_read.get("files") == item.get("files")


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {}},
        {"include": None},
        {"include": [1]},
        {"exclude": "x"},
        {"missing": "abc"},
        {"missing": -1},
        {"missing": True},
        {"parts": [1]},
        {"commit": 7},
        {"warnings": [{}]},
        {"rows": "x"},
        {"rows": [1]},
        {"rows": [{"Type": "blob"}]},
        {"rows": [{**rows()[0], "Size": "x"}]},
        {"rows": [{**rows()[0], "Sha256": 5}]},
        {"files": [1]},
        {"files": {"path": "x"}},
        {"files": [{"path": "x", "size": None, "sha256": "0" * 64}]},
    ],
    ids=str,
)
def test_what_is_no_look_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no "):
        read_look(look_of({**lacks(), **change}))


@pytest.mark.parametrize("document", [None, [], "x", {}, {"address": 1}, {"address": "x", "artifacts": {}}], ids=str)
def test_anything_else_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="is no "):
        read_look(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*lacks(), *has()]), inner, max_size=4),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*lacks(), *has(), "parts"]), json_values, max_size=4))
def test_no_answer_of_one_host_stops_the_plan_of_all(change: dict[str, Any]) -> None:
    looks = {"odd": look_of({**lacks(), **change}), "b": look_of(lacks()), "c": look_of(lacks())}
    read = {}
    for name, document in looks.items():
        try:
            read[name] = read_look(document)
        except ValueError:
            assert name == "odd"
    told = memberships(read, "swarm", None, 8791, SECRET)
    doubts(read, None, told)


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
