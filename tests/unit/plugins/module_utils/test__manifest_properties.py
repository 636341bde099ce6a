# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every listing and every manifest, however hostile: found by searching, not by listing cases."""

from __future__ import annotations

import json
import os
import tempfile
import typing as t
import unicodedata

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest as m
from ansible_collections.gpufleet.vllm.plugins.module_utils import _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from hypothesis import assume, example, given
from hypothesis import strategies as st

SHA = "0123456789abcdef" * 4

# Components that attack something, and the plain ones they are mixed with.
HOSTILE = ["", ".", "..", "...", " ", "~", "-rf", "C:", "c:x", "a\\b", "nul\0", "tab\t", "esc\x1b[2J", "\x7f", "\x85"]
HOSTILE += ["\ud800", "e" * 256, "é" * 128, ".gpufleet", ".GpuFleet", ".gpufleet ", "a.incomplete", "\u202egpj.exe"]
PLAIN = ["a", "A", "b", "config.json", "CONFIG.json", "straße", "STRASSE", "\xe9", "e\u0301", "\u017f", "\ufb01", "fi"]
# Letters whose case folding and composition depend on each other: where a wrong order of the two shows.
LETTERS = st.text(
    "aAsS\u017fkK\u212aåÅ\u212biIıİ\u0307\u0301\u0308\u0345\u03b1\u0391\u1f80\u1f88\u1fb3\u03b9", min_size=1
)

components = st.sampled_from(HOSTILE + PLAIN) | LETTERS | st.text(max_size=8)
paths = st.lists(components, min_size=1, max_size=4).map("/".join) | st.text(max_size=20)
calm = st.lists(st.sampled_from(PLAIN) | LETTERS, min_size=1, max_size=3).map("/".join)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def fault_of(names: t.Iterable[object]) -> str | None:
    """What is said against the paths, or None; anything but a FleetError is a failure of the test."""
    failure = failure_of(lambda: m.check_paths(names))
    if failure is None:
        return None
    assert failure.code == "manifest.unsafe_listing"
    assert str(failure).isascii(), "what a hub made up reaches a terminal as it is"
    return failure.seen


def failure_of(call: t.Callable[[], object]) -> FleetError | None:
    try:
        call()
    except FleetError as exc:
        return exc
    return None


# --- paths ---


@given(paths)
@example("../../evil-rel.txt")
@example("ok/../../evil-mid.txt")
@example("/etc/passwd")
@example("a//b")
@example("a/")
def test_what_passes_stays_inside(path: str) -> None:
    if m.path_fault(path) is not None:
        return
    with tempfile.TemporaryDirectory() as outer:
        base = os.path.join(outer, "root")
        assert os.path.normpath(os.path.join(base, path)) == os.path.join(base, path), "one file has one name"
        os.mkdir(base)
        root = _safefs.open_directory(base)
        try:
            head, tail = _safefs.split(path)
            with _safefs.directory(root, head, create=True) as parent:
                os.close(os.open(tail, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, dir_fd=parent))
            files = {name for name, item in _safefs.walk(root, m.STATE_DIRECTORY).items() if item.kind == "file"}
        finally:
            os.close(root)
        assert files == {path}, "it is found under its own name, and not in our directory"
        assert os.listdir(outer) == ["root"]


@given(json_values | paths)
def test_every_path_is_judged(path: object) -> None:
    fault = m.path_fault(path)
    assert fault is None or fault
    assert (fault_of([path]) is None) == (fault is None)


@given(st.lists(paths | calm, max_size=6), st.data())
def test_the_verdict_does_not_depend_on_the_order(names: list[str], data: st.DataObject) -> None:
    verdict = fault_of(names)
    assert (fault_of(data.draw(st.permutations(names))) is None) == (verdict is None)
    if verdict is None:
        for index in range(len(names)):
            assert fault_of(names[:index] + names[index + 1 :]) is None, "less is not worse"


def caseless(text: str) -> str:
    """The key of Unicode's canonical caseless matching (definition D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())


SAME_FILE: list[t.Callable[[str], str]] = [
    str.lower,
    str.casefold,
    lambda text: unicodedata.normalize("NFC", text),
    lambda text: unicodedata.normalize("NFD", text),
    caseless,
]


@given(st.lists(calm, min_size=2, max_size=4, unique=True))
@example(["\u1fb3\u0308", "\u03b1\u0308\u03b9"])
@example(["\u1fb3", "\u1fbc"])
def test_what_passes_is_as_many_files_on_any_file_system(names: list[str]) -> None:
    assume(fault_of(names) is None)
    for same in SAME_FILE:
        folded = [same(name) for name in names]
        assert len(set(folded)) == len(names)
        directories = {"/".join(name.split("/")[:depth]) for name in folded for depth in range(1, name.count("/") + 1)}
        assert not directories & set(folded), "nothing is a file and a directory"


@given(st.lists(calm, min_size=1, max_size=4, unique=True), st.data())
def test_a_clash_is_found_wherever_it_is(names: list[str], data: st.DataObject) -> None:
    assume(fault_of(names) is None)
    name = data.draw(st.sampled_from(names))
    twins = [name.swapcase(), name.upper(), unicodedata.normalize("NFD", name), unicodedata.normalize("NFC", name)]
    # Not every other case is the same letter: a dotless i becomes I, which is another one's capital.
    twins = [twin for twin in twins if caseless(twin) == caseless(name)]
    clash = data.draw(st.sampled_from([name, f"{name}/inside", *twins]))
    assert fault_of([*names, clash]) is not None
    assert fault_of([clash, *names]) is not None
    assert fault_of([*names, f"{name}.incomplete"]) is not None


# --- listings ---

keys = st.sampled_from(["Path", "path", "Name", "Type", "Size", "Sha256", "IsLFS", "Revision"])
odd_rows = st.dictionaries(keys | st.text(max_size=4), json_values | paths, max_size=6)
good_rows = st.builds(
    lambda path, size, digest, kind: {"Path": path, "Size": size, "Sha256": digest, "Type": kind},
    calm,
    st.integers(0, 2**50),
    st.sampled_from([SHA, SHA.upper(), f" {SHA}\n", SHA[::-1]]),
    st.sampled_from(["blob", "blob", "tree"]),
)
half_good_rows = st.builds(lambda good, odd: {**good, **odd}, good_rows, odd_rows)
patterns = st.lists(
    st.sampled_from(["*", "*.json", "a/*", "[c-a]", "[!a]", "[", ".*", "?"]) | st.text(max_size=5), max_size=3
)


@given(st.lists(good_rows | half_good_rows | odd_rows, max_size=6), patterns, patterns)
@example([{"Path": "a", "Size": True, "Sha256": SHA}], [], [])
@example([{"Path": "a", "Size": float("inf"), "Sha256": SHA}], [], [])
@example([{"Path": "a", "Type": ["blob"]}], [], [])
def test_any_listing_is_accepted_whole_or_refused(
    rows: list[dict[str, t.Any]], include: list[str], exclude: list[str]
) -> None:
    failure = failure_of(lambda: m.entries_from_rows(rows, include, exclude))
    if failure is not None:
        assert failure.code.startswith("manifest.")
        assert failure.expected
        assert failure.remedy
        return
    entries = m.entries_from_rows(rows, include, exclude)
    names = [entry.path for entry in entries]
    assert names == sorted(set(names))
    assert fault_of(names) is None
    files = [str(m.row_path(row)) for row in rows if not m.is_directory(row)]
    assert names == sorted(name for name in files if m.selected(name, include, exclude))
    assert names, "nothing is not a model"
    for entry in entries:
        assert 0 <= entry.size <= 2**50
        assert len(entry.sha256) == 64
        assert set(entry.sha256) <= set("0123456789abcdef")


@given(st.lists(good_rows, min_size=1, max_size=5), st.lists(good_rows | odd_rows, max_size=3), st.data())
def test_one_bad_path_condemns_a_listing_that_was_right(
    rows: list[dict[str, t.Any]], more: list[dict[str, t.Any]], data: st.DataObject
) -> None:
    bad = data.draw(paths.filter(lambda path: m.path_fault(path) is not None))
    listing = data.draw(st.permutations([*rows, *more, {"Path": bad, "Name": bad, "Size": 1, "Sha256": SHA}]))
    with pytest.raises(FleetError) as caught:
        m.entries_from_rows(listing, exclude=["*"])
    assert caught.value.code == "manifest.unsafe_listing", "although no pattern chooses it"


# --- patterns ---


@given(paths | calm, patterns, patterns)
def test_patterns_choose_one_by_one(path: str, include: list[str], exclude: list[str]) -> None:
    wanted = not include or any(m.selected(path, [pattern], []) for pattern in include)
    unwanted = any(m.selected(path, [pattern], []) for pattern in exclude)
    assert m.selected(path, include, exclude) == (wanted and not unwanted)
    assert m.selected(path, [], [])
    assert m.selected(path, ["*"], [])
    assert not m.selected(path, include, ["*"])


@given(calm)
def test_a_path_chooses_itself(path: str) -> None:
    assert m.selected(path, [path], [])
    assert not m.selected(path, [], [path])


# --- manifests ---


@st.composite
def manifests(draw: st.DrawFn) -> m.Manifest:
    names = draw(st.lists(calm, min_size=1, max_size=4, unique=True))
    assume(fault_of(names) is None)
    digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
    entries = tuple(m.Entry(name, draw(st.integers(0, 2**50)), draw(digests)) for name in sorted(names))
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return m.Manifest(
        model=draw(texts),
        revision=draw(texts),
        commit=draw(st.none() | texts),
        endpoint=draw(texts),
        include=tuple(draw(st.lists(texts, max_size=2))),
        exclude=tuple(draw(st.lists(texts, max_size=2))),
        left_out=tuple(draw(st.lists(texts, max_size=2))),
        entries=entries,
        stats={entry.path: m.FileStat(entry.size, draw(st.integers(-(2**63), 2**63))) for entry in entries},
        published=draw(texts),
    )


@given(manifests())
def test_a_manifest_survives_the_disk(manifest: m.Manifest) -> None:
    text = m.dump(manifest)
    assert text.isascii()
    assert m.load(text) == manifest
    assert m.dump(m.load(text)) == text


def load(text: str) -> m.Manifest | None:
    """None when it is refused in the one way in which it may be."""
    try:
        return m.load(text)
    except ValueError:
        return None


@given(st.text() | json_values.map(json.dumps))
def test_any_text_is_no_manifest(text: str) -> None:
    assert load(text) is None


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"kind":' * 100_000, "1" * 10_000], ids=["lists", "objects", "digits"]
)
def test_text_that_exhausts_a_reader_is_no_manifest(text: str) -> None:
    assert load(text) is None


ODD = [float("inf"), float("-inf"), float("nan"), 10**400, -1, 1.5, True, None, "", "x", [], ["x"], {}, {"x": 1}]


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{value!r:.20}")
def test_a_field_of_any_type_is_refused_or_read(value: object) -> None:
    entry = m.Entry("a", 1, SHA)
    right = m.dump(m.Manifest("o/n", "master", None, "", (), (), (), (entry,), {"a": m.FileStat(1, 1)}))
    for key in [*json.loads(right), *json.loads(right)["files"][0]]:
        document = json.loads(right)
        (document if key in document else document["files"][0])[key] = value
        found = load(json.dumps(document))
        assert found is None or found.entries == (entry,), key


@given(manifests(), st.data())
def test_damage_is_noticed_or_does_no_harm(manifest: m.Manifest, data: st.DataObject) -> None:
    document = json.loads(m.dump(manifest))
    place = document
    if data.draw(st.booleans()):
        place = data.draw(st.sampled_from(document["files"]))
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(json_values | paths)
    found = load(json.dumps(document))
    if found is not None:
        assert found.digest == manifest.digest, "what the files are is what the digest says"
        assert found.entries == manifest.entries
        assert m.load(m.dump(found)) == found


@given(manifests(), st.data())
def test_a_manifest_that_was_cut_off_is_none(manifest: m.Manifest, data: st.DataObject) -> None:
    text = m.dump(manifest)
    assert load(text[: data.draw(st.integers(0, len(text) - 2))]) is None


@given(manifests(), manifests())
def test_equal_digests_mean_equal_files(one: m.Manifest, other: m.Manifest) -> None:
    assert (one.digest == other.digest) == (one.entries == other.entries)


# --- the disk ---

found_items = st.builds(
    m.Found,
    st.sampled_from(["file", "file", "directory", "symlink", "other"]),
    st.builds(m.FileStat, st.integers(0, 2), st.integers(0, 1)),
)


@given(manifests(), st.data(), st.booleans())
def test_every_entry_is_trusted_hashed_or_missing(manifest: m.Manifest, data: st.DataObject, rehash: bool) -> None:
    names = [entry.path for entry in manifest.entries]
    found = data.draw(st.dictionaries(st.sampled_from(names) | calm, found_items, max_size=5))
    for entry in manifest.entries:
        if data.draw(st.booleans()):
            found[entry.path] = m.Found(
                "file",
                data.draw(
                    st.sampled_from([manifest.stats[entry.path]])
                    | st.builds(m.FileStat, st.just(entry.size), st.integers())
                ),
            )
    old = data.draw(st.sampled_from([None, manifest]))
    result = m.compare(manifest.entries, old, found, rehash)
    assert sorted([*result.trusted, *result.to_hash, *result.missing], key=lambda entry: entry.path) == list(
        manifest.entries
    )
    for entry in result.trusted:
        assert old is not None
        assert not rehash
        assert found[entry.path] == m.Found("file", manifest.stats[entry.path])
    for entry in result.to_hash:
        assert found[entry.path].kind == "file"
        assert found[entry.path].stat.size == entry.size
    strangers = m.foreign(found, names)
    assert not set(strangers) & set(names)
    assert set(m.blockers(manifest.entries, sorted(found), found)) <= set(found)
