# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _mirror
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror import Kept, Ref

ONE, TWO, THREE = "1" * 40, "2" * 40, "3" * 40
SHA = "ab" * 32
ENTRIES = (
    Entry("a/b/deep.bin", 5, SHA),
    Entry("a/file.json", 7, SHA),
    Entry("model.safetensors", 9, SHA),
    Entry("z.bin", _mirror.LFS_THRESHOLD, SHA),
)
REFS = {"master": Ref("master", ONE), "v1": Ref("v1", ONE, tag=True), "v2": Ref("v2", TWO, tag=True)}


def answer(data):
    return json.loads(data)["Data"]


def paths(data):
    return [row["Path"] for row in answer(data)["Files"]]


def code(function, *args):
    with pytest.raises(FleetError) as caught:
        function(*args)
    assert all((caught.value.seen, caught.value.expected, caught.value.remedy))
    return caught.value.code


def test_every_listing_that_can_be_asked_for_is_there():
    found = _mirror.commit_answers(ENTRIES, ONE)
    assert paths(found["files.json"]) == ["a", "a/b", "a/b/deep.bin", "a/file.json", "model.safetensors", "z.bin"]
    assert paths(found["listings/.direct.json"]) == ["a", "model.safetensors", "z.bin"]
    assert paths(found["listings/a/.all.json"]) == ["a/b", "a/b/deep.bin", "a/file.json"]
    assert paths(found["listings/a/.direct.json"]) == ["a/b", "a/file.json"]
    assert paths(found["listings/a/b/.all.json"]) == paths(found["listings/a/b/.direct.json"]) == ["a/b/deep.bin"]
    assert set(found) == {
        "files.json", "commit.json", "commits.json", "listings/.direct.json", "listings/a/.all.json",
        "listings/a/.direct.json", "listings/a/b/.all.json", "listings/a/b/.direct.json",
    }  # fmt: skip
    assert answer(found["commits.json"])["Commit"] == [json.loads(found["commit.json"])]
    assert json.loads(found["commit.json"])["Id"] == ONE


def test_rows_have_the_api_shape():
    rows = {row["Path"]: row for row in _mirror.rows(ENTRIES, ONE)}
    assert rows["a/file.json"] == {
        "CommitId": ONE, "CommitMessage": "import", "CommittedDate": _mirror.DATE, "CommitterName": "model-hub",
        "InCheck": False, "IsLFS": False, "Mode": "33188", "Name": "file.json", "Path": "a/file.json", "Revision": ONE,
        "Sha256": SHA, "Size": 7, "Type": "blob",
    }  # fmt: skip
    assert (rows["a"]["Type"], rows["a"]["Size"], rows["a"]["Sha256"]) == ("tree", 0, "")
    assert {path for path, row in rows.items() if row["IsLFS"]} == {"model.safetensors", "z.bin"}


def test_a_listing_can_be_read_again():
    found = json.loads(_mirror.commit_answers(ENTRIES, ONE)["files.json"])
    assert _mirror.entries_of(found) == ENTRIES
    for broken in (None, [], {}, {"Data": {"Files": [{"Type": "blob", "Path": "x"}]}}):
        with pytest.raises(ValueError, match="listing"):
            _mirror.entries_of(broken)
    for path, digest in (("../x", SHA), ("x", "short")):
        row = {"Type": "blob", "Path": path, "Size": 1, "Sha256": digest}
        with pytest.raises(ValueError, match=r"listing|digest"):
            _mirror.entries_of({"Data": {"Files": [row]}})


def test_revisions_can_be_read_again():
    data = json.loads(_mirror.revisions_answer(REFS.values()))
    assert [row["Revision"] for row in data["Data"]["RevisionMap"]["Tags"]] == ["v1", "v2"]
    assert _mirror.refs_of(data) == REFS
    for broken in (None, {}, {"Data": {"RevisionMap": {"Branches": [{"Revision": "x"}], "Tags": []}}}):
        with pytest.raises(ValueError, match="not a list"):
            _mirror.refs_of(broken)
    hostile = {"Revision": "../x", "CommitId": ONE, "CreatedAt": 1}
    with pytest.raises(ValueError, match="bad revision"):
        _mirror.refs_of({"Data": {"RevisionMap": {"Branches": [hostile], "Tags": []}}})


@pytest.mark.parametrize(
    ("refs", "size"),
    [(REFS, 3), ({"v2": REFS["v2"]}, 4), ({}, 0), ({"v2": Ref("v2", THREE)}, 0)],
    ids=["master", "another", "none", "unknown"],
)
def test_the_size_of_a_model_is_that_of_its_head(refs, size):
    commits = {ONE: [Entry("x", 3, SHA)], TWO: [Entry("x", 4, SHA)]}
    found = _mirror.model_answers("acme/tiny", refs, commits)
    assert list(found)[-1] == "revisions.json", "what is listed is there"
    assert json.loads(found["openapi.json"])["data"]["file_size"] == size
    assert answer(found["info.json"])["Path"] == "acme"


def test_names_that_a_mirror_cannot_serve():
    for model in ("acme", "a/b/c", "../x", "acme/", ".a/b", "acme/x y", "acme/" + "x" * 256):
        assert code(_mirror.check_model, model) == "mirror.bad_model"
    for revision in ("", "a/b", "..", ".hidden", "x\n", "a b"):
        assert code(_mirror.check_revision, revision) == "mirror.bad_revision"
    assert _mirror.check_model("Qwen/Qwen2.5-VL") == "Qwen/Qwen2.5-VL"
    assert _mirror.check_revision(ONE) == ONE
    for name in (".all.json", ".direct.json"):
        assert code(_mirror.check_entries, [Entry(f"x/{name}/y", 1, SHA)]) == "mirror.reserved_name"
    _mirror.check_entries([Entry(".all.json", 1, SHA)])
    assert code(_mirror.check_entries, [Entry("../x", 1, SHA)]) == "manifest.unsafe_listing"


def test_two_selections_of_a_commit_are_united_and_a_difference_is_a_fault():
    assert _mirror.united("a/b", ONE, ENTRIES[:2], ENTRIES[1:]) == ENTRIES
    assert _mirror.united("a/b", ONE, (), ENTRIES) == ENTRIES
    other = Entry("a/file.json", 7, "cd" * 32)
    assert code(_mirror.united, "a/b", ONE, ENTRIES, [other]) == "mirror.commit_differs"
    assert code(_mirror.united, "a/b", ONE, [Entry("A", 1, SHA)], [Entry("a", 1, SHA)]) == "manifest.unsafe_listing"


@pytest.mark.parametrize(
    ("keep", "refs", "commits"),
    [
        ([], ["master", "v1", "v2"], [ONE, TWO, THREE]),
        ([Kept("a/other", "master", ONE)], ["master", "v1", "v2"], [ONE, TWO, THREE]),
        ([Kept("a/b", "master", None)], ["v1", "v2"], [TWO, THREE]),
        ([Kept("a/b", "v2", TWO), Kept("a/b", "v1", None)], ["master"], [THREE]),
        ([Kept("a/b", THREE, None)], ["master", "v1", "v2"], [ONE, TWO]),
        ([Kept("a/b", "master", THREE)], ["v1", "v2"], [TWO]),
    ],
    ids=["nothing", "another model", "a name", "two names", "a commit", "a name that is to move"],
)
def test_what_a_prune_removes(keep, refs, commits):
    assert _mirror.doomed("a/b", REFS, [THREE, TWO, ONE], keep) == (refs, commits)


@pytest.mark.parametrize(
    ("revision", "removed"),
    [
        (None, (["master", "v1", "v2"], [ONE, TWO, THREE])),
        ("v2", (["v2"], [TWO])),
        ("v1", (["v1"], [])),
        (ONE, (["master", "v1"], [ONE])),
        (THREE, ([], [THREE])),
        ("v9", None),
        ("9" * 40, None),
    ],
    ids=["all", "a name alone", "a name of two", "a commit with names", "a commit without", "no name", "no commit"],
)
def test_what_goes_with_a_revision(revision, removed):
    assert _mirror.removed_with(REFS, [ONE, TWO, THREE], revision) == removed
