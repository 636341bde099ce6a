# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest as m
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

SHA_A, SHA_B = "a" * 64, "b" * 64


def row(path, size=7, sha256=SHA_A, **more):
    # The shape of a real listing's row, less the fields nothing reads.
    return {"Path": path, "Type": "blob", "Size": size, "Sha256": sha256, **more}


def manifest(**changes):
    entries = (m.Entry("a.json", 3, SHA_A), m.Entry("sub/b.bin", 5, SHA_B))
    fields = {
        "model": "acme/tiny",
        "revision": "master",
        "commit": "c" * 40,
        "endpoint": "https://hub.example.com",
        "include": (),
        "exclude": ("*.md",),
        "left_out": ("pickle.pt",),
        "entries": entries,
        "stats": {"a.json": m.FileStat(3, 11), "sub/b.bin": m.FileStat(5, 12)},
    }
    return m.Manifest(**{**fields, **changes})


@pytest.mark.parametrize(
    "path",
    ["config.json", "sub/dir/x.bin", "a b.txt", "模型.bin", ".gitattributes", "..a", "a..b/c", "x.incomplete", "ab:c"],
)
def test_paths_that_are_fine(path):
    assert m.path_fault(path) is None
    m.check_paths([path])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "non-empty"),
        (None, "non-empty"),
        (7, "non-empty"),
        ("/etc/passwd", "absolute"),
        ("C:evil.txt", "absolute"),
        ("../../evil", "'..'"),
        ("ok/../../evil", "'..'"),
        ("..", "'..'"),
        ("./x", "'.'"),
        ("a/./b", "'.'"),
        ("a//b", "empty component"),
        ("a/", "slash"),
        ("..\\evil", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x1b[2J", "control"),
        ("a\x85b", "control"),
        ("a\ud800", "control"),
        (".gpufleet/manifest.json", "our own"),
        (".GPUfleet", "our own"),
        ("e" * 256, "longer"),
        ("/".join(["d" * 200] * 20), "longer"),
    ],
)
def test_hostile_paths_are_refused_whole(path, reason):
    assert reason in m.path_fault(path)
    with pytest.raises(FleetError) as caught:
        m.entries_from_rows([row("good.txt"), row(path)], include=["good.txt"])
    assert caught.value.code == "manifest.unsafe_listing"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["a", "a"], "twice"),
        (["config.json", "CONFIG.json"], "only in case"),
        (["stra\u00dfe", "STRASSE"], "only in case"),
        (["\u00e9", "e\u0301"], "normalisation"),
        (["a", "a/b"], "both a file and"),
        (["A/b/c", "a/B"], "both a file and"),
        (["config.json", "config.json.incomplete"], "partial"),
    ],
)
def test_clashing_paths_are_refused(paths, reason):
    with pytest.raises(FleetError, match=reason):
        m.check_paths(paths)


def test_entries_are_sorted_lower_case_and_without_directories():
    rows = [row("z", sha256=SHA_B.upper()), {"Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}, row("sub/a", 0)]
    rows[2]["Sha256"] = SHA_A
    assert m.entries_from_rows(rows) == (m.Entry("sub/a", 0, SHA_A), m.Entry("z", 7, SHA_B))


def test_an_entry_without_type_or_with_lower_case_path_key_counts_as_file():
    assert m.entries_from_rows([{"path": "x", "Size": 1, "Sha256": SHA_A}]) == (m.Entry("x", 1, SHA_A),)


@pytest.mark.parametrize(
    "change",
    [{"Sha256": ""}, {"Sha256": None}, {"Sha256": "g" * 64}, {"Sha256": "a" * 63}]
    + [{"Size": value} for value in (-1, "5", None, True, 1.5, 1 << 62)],
    ids=repr,
)
def test_what_cannot_be_verified_is_refused_unless_left_out(change):
    rows = [row("good"), {**row("bad"), **change}]
    with pytest.raises(FleetError) as caught:
        m.entries_from_rows(rows)
    assert caught.value.code == "manifest.unverifiable"
    assert "bad" in caught.value.seen
    assert [entry.path for entry in m.entries_from_rows(rows, exclude=["bad"])] == ["good"]


def test_odd_listings():
    with pytest.raises(FleetError, match="no files"):
        m.entries_from_rows([{"Path": "d", "Type": "tree"}])
    with pytest.raises(FleetError, match="neither blob nor tree"):
        m.entries_from_rows([row("x", Type="commit")])
    with pytest.raises(FleetError, match="None of the 1 files") as caught:
        m.entries_from_rows([row("x")], include=["*.bin"])
    assert caught.value.code == "manifest.nothing_selected"
    with pytest.raises(FleetError, match="two different sizes"):
        m.entries_from_rows([row("x", 1), row("y", 2)])


@pytest.mark.parametrize(
    ("path", "include", "exclude", "expected"),
    [
        ("a/b.bin", [], [], True),
        ("a/b.bin", ["*.bin"], [], True),  # * crosses /
        ("a/b.bin", ["b.bin"], [], False),  # the whole path, not the name
        ("a/b.bin", ["a/*"], ["*.bin"], False),  # exclude after include
        ("a/b.bin", ["*.BIN"], [], False),
        ("model.bin", ["model.*\\.bin"], [], False),
        ("pytorch_model.bin", [".*model.bin"], [], True),  # old regular expressions
        ("a/b.bin", [], ["onnx/*"], True),
        ("a1", ["a[0-9]"], [], True),
    ],
)
def test_patterns(path, include, exclude, expected):
    assert m.selected(path, include, exclude) is expected


def test_digest_depends_on_content_and_not_on_order():
    one = manifest()
    assert one.digest == m.digest_of(reversed(one.entries))
    assert one.digest != m.digest_of(one.entries[:1])
    assert m.digest_of([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_manifest_survives_the_disk():
    for one in (manifest(), manifest(commit=None)):
        assert m.load(m.dump(one)) == one
        assert one.bytes_total == 8


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"format": 2},
        {"digest": SHA_A},
        {"files": None},
        {"files": [{"path": "../x", "size": 1, "sha256": SHA_A, "mtime_ns": 1}]},
        {"files": [{"path": "x", "size": -1, "sha256": SHA_A, "mtime_ns": 1}]},
        {"files": [{"path": "x", "size": 1, "sha256": "short", "mtime_ns": 1}]},
        {"include": 3},
        {"commit": ...},
    ],
    ids=repr,
)
def test_a_manifest_that_is_not_ours_is_no_manifest(change):
    document = {**json.loads(m.dump(manifest())), **change}
    if change.get("commit") is ...:
        del document["commit"]
    with pytest.raises(ValueError, match=r"manifest|digest"):
        m.load(json.dumps(document))
    with pytest.raises(ValueError, match=r"."):
        m.load("[]")


def found(kind="file", size=3, mtime=11):
    return m.Found(kind, m.FileStat(size, mtime))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (found(), "trusted"),
        (found(mtime=12), "to_hash"),
        (found(size=4), "missing"),
        (found(kind="symlink"), "missing"),
        (found(kind="directory"), "missing"),
        (None, "missing"),
    ],
    ids=["same", "touched", "other size", "link", "directory", "gone"],
)
def test_comparison_with_the_disk(item, expected):
    entry = m.Entry("a.json", 3, SHA_A)
    disk = {} if item is None else {"a.json": item}
    assert getattr(m.compare([entry], manifest(), disk), expected) == (entry,)
    assert m.compare([entry], manifest(), disk, rehash=True).trusted == ()
    assert m.compare([entry], None, disk).trusted == ()


def test_a_recorded_stat_vouches_for_the_recorded_content_only():
    entry = m.Entry("a.json", 3, SHA_B)
    assert m.compare([entry], manifest(), {"a.json": found()}).to_hash == (entry,)


def test_foreign_and_blockers():
    disk = {
        "a": found(),
        "mine": found("directory"),
        "mine/b": found(),
        "link": found("symlink"),
        "empty": found("directory"),
        "full": found("directory"),
        "full/x": found(),
        "dir": found("directory"),
        "dir/x": found(),
    }
    strangers = m.foreign(disk, owned=["a", "mine/b"])
    assert strangers == ["dir/x", "empty", "full/x", "link"]
    wanted = [m.Entry(path, 1, SHA_A) for path in ("link/inside", "dir", "empty", "a")]
    assert m.blockers(wanted, strangers, disk) == ["dir/x", "empty", "link"]
    assert m.blockers([m.Entry("link", 1, SHA_A)], strangers, disk) == []
    assert m.ancestors("a/b/c") == ["a", "a/b"]
