# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bundles that are written, damaged and read: _bundle_write, _bundle_read, _bundle_tree and _bundle_signature."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _artifact,
    _bundle,
    _bundle_read,
    _bundle_signature,
    _bundle_tar,
    _bundle_tree,
    _bundle_write,
    _manifest,
    _safefs,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

MODEL, COMMIT = "acme/tiny", "c" * 40
PLACE = f"models/{MODEL}/{COMMIT}"
SPLIT = 1 << 20


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_artifact(directory: Path, files: dict[str, bytes]) -> Path:
    """What modelscope_model publishes."""
    entries, stats = [], {}
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        entries.append(Entry(name, len(content), sha256(content)))
        stats[name] = _manifest.FileStat(len(content), path.stat().st_mtime_ns)
    manifest = _manifest.Manifest(
        model=MODEL,
        revision="master",
        commit=COMMIT,
        endpoint="https://hub.example.com",
        include=(),
        exclude=(),
        left_out=(),
        entries=tuple(sorted(entries, key=lambda entry: entry.path)),
        stats=stats,
    )
    (directory / ".gpufleet").mkdir()
    (directory / ".gpufleet/manifest.json").write_text(_manifest.dump(manifest))
    return directory


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bundles", "-f", path], check=True)
    return path


def public(key: Path) -> str:
    return f"bundles {key.with_suffix('.pub').read_text()}"


@dataclass
class World:
    """What there is to bundle, and the ways there and back."""

    root: Path
    key: Path
    request: _bundle_write.Request = field(init=False)

    def __post_init__(self) -> None:
        weights = random.Random(1).randbytes(2_500_000)
        model = make_artifact(self.root / "model", {"config.json": b"{}", "sub/model.safetensors": weights})
        blobs = [b"a manifest", b"a layer", b"a configuration"]
        (self.root / "images/sha256").mkdir(parents=True)
        for blob in blobs:
            (self.root / "images/sha256" / sha256(blob)).write_bytes(blob)
        (self.root / "wheels").mkdir()
        (self.root / "wheels/requirements.txt").write_text("x==1\n")
        (self.root / "wheels/x-1-py3-none-any.whl").write_bytes(b"a wheel")
        (self.root / "wheels/.gpufleet-wheels.json").write_text("{}")
        (self.root / "acme-tools-1.2.3.tar.gz").write_bytes(b"a collection")
        (self.root / "extra.deb").write_bytes(b"a package")
        self.request = _bundle_write.Request(
            path=str(self.root / "out/fleet"),
            models=[{"model": MODEL, "revision": "master", "path": str(model)}],
            images=[
                {
                    "image": "registry.example.com/engine:1",
                    "repository": "engine",
                    "tag": "1",
                    "digest": f"sha256:{sha256(blobs[0])}",
                    "blobs": [f"sha256:{sha256(blob)}" for blob in blobs],
                }
            ],
            images_path=str(self.root / "images"),
            wheels=[{"name": "controller", "path": str(self.root / "wheels")}],
            collection=str(self.root / "acme-tools-1.2.3.tar.gz"),
            files=[str(self.root / "extra.deb")],
            signing_key=str(self.key),
        )

    def write(self, **changes: t.Any) -> dict[str, t.Any]:
        return _bundle_write.write(replace(self.request, **changes))

    def tar(self, **changes: t.Any) -> dict[str, t.Any]:
        return self.write(**{"format": "tar", "split": SPLIT, **changes})

    def read(self, **changes: t.Any) -> dict[str, t.Any]:
        given = {"path": self.request.path, "dest": str(self.root / "in"), "allowed_signers": public(self.key)}
        return _bundle_read.read(_bundle_read.Request(**{**given, **changes}))

    def refused(self, **changes: t.Any) -> FleetError:
        with pytest.raises(FleetError) as caught:
            self.read(**changes)
        assert not Path(str(changes.get("dest", self.root / "in")), _bundle.MANIFEST).exists(), "nothing looks complete"
        return caught.value

    @property
    def out(self) -> Path:
        return Path(self.request.path)

    def part(self, number: int) -> Path:
        return self.root / f"out/fleet.tar.{number:03d}"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("keys")
    return [make_key(directory / name) for name in ("good", "other")]


@pytest.fixture
def world(tmp_path: Path, keys: list[Path]) -> World:
    return World(tmp_path, keys[0])


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".gpufleet") and "/.gpufleet/" not in str(path)
    }


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))


# --- there and back


@pytest.mark.parametrize("how", ["directory", "tar", "split"])
def test_what_was_written_is_read(world: World, how: str) -> None:
    done = world.write() if how == "directory" else world.tar(split=SPLIT if how == "split" else 0)
    assert done["changed"]
    assert len(done["parts"]) == {"directory": 0, "tar": 1, "split": 3}[how]
    result = world.read()
    assert result["changed"]
    assert result["signer"] == "bundles"
    assert result["bytes_copied"] == result["bytes_total"] == done["bytes_total"]
    found = tree(world.root / "in")
    assert found.pop("manifest.json.sig").startswith(b"-----BEGIN SSH SIGNATURE")
    assert hashlib.sha256(found.pop("manifest.json")).hexdigest() == result["manifest_sha256"]
    assert found == {
        f"{PLACE}/config.json": b"{}",
        f"{PLACE}/sub/model.safetensors": random.Random(1).randbytes(2_500_000),
        **{f"images/blobs/sha256/{sha256(blob)}": blob for blob in (b"a manifest", b"a layer", b"a configuration")},
        "wheels/controller/requirements.txt": b"x==1\n",
        "wheels/controller/x-1-py3-none-any.whl": b"a wheel",
        "collection/acme-tools-1.2.3.tar.gz": b"a collection",
        "files/extra.deb": b"a package",
    }
    content = result["content"]
    assert content["models"][0] | {"digest": ""} == {
        "model": MODEL,
        "revision": "master",
        "commit": COMMIT,
        "directory": PLACE,
        "digest": "",
        "files": 2,
        "bytes": 2_500_002,
    }
    assert content["collection"]["version"] == "1.2.3"
    assert [image["tag"] for image in content["images"]] == ["1"]


def test_each_model_that_was_read_is_an_artifact(world: World) -> None:
    world.tar()
    world.read()
    place = world.root / "in" / PLACE
    root = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        warnings: list[str] = []
        manifest = _artifact.read_manifest(root, str(place), warnings)
        assert manifest is not None
        assert warnings == []
        assert (manifest.model, manifest.revision, manifest.commit) == (MODEL, "master", COMMIT)
        for entry in manifest.entries:
            state = _safefs.lstat(root, entry.path)
            assert state is not None
            assert manifest.stats[entry.path] == _manifest.FileStat(state.st_size, state.st_mtime_ns)
    finally:
        os.close(root)


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_the_second_run_changes_nothing(world: World, format: str) -> None:
    write = world.write if format == "directory" else world.tar
    write()
    before = {path: path.stat().st_mtime_ns for path in (world.root / "out").rglob("*")}
    again = write()
    assert (again["changed"], again["bytes_written"]) == (False, 0)
    assert {path: path.stat().st_mtime_ns for path in (world.root / "out").rglob("*")} == before
    assert world.read()["changed"]
    again = world.read()
    assert (again["changed"], again["bytes_copied"]) == (False, 0)
    assert again["diff"]["after"]["add"] == []


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_check_mode_foretells_and_writes_nothing(world: World, format: str) -> None:
    write = world.write if format == "directory" else world.tar
    foretold = write(check_mode=True)
    assert not (world.root / "out").exists()
    done = write()
    assert {**foretold, "diff": None} == {**done, "diff": None}
    assert {**foretold["diff"], "after": None} == {**done["diff"], "after": None}
    foretold = world.read(check_mode=True)
    assert not (world.root / "in").exists()
    assert foretold == world.read()
    (world.root / "extra.deb").write_bytes(b"another package")
    assert write(check_mode=True)["changed"]
    assert not world.read(check_mode=True)["changed"]


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_only_what_changed_is_copied(world: World, format: str) -> None:
    write = world.write if format == "directory" else world.tar
    write()
    world.read()
    write(files=[], wheels=[], models=[])
    again = world.read()
    assert (again["changed"], again["bytes_copied"]) == (True, 0)
    assert "files/extra.deb" in again["diff"]["before"]["remove"]
    assert not (world.root / "in/models").exists(), "its manifest went, too"
    assert not (world.root / "in/files").exists()
    write()
    layer = world.root / "in" / "images/blobs/sha256" / sha256(b"a layer")
    layer.unlink()  # it may be linked
    layer.write_bytes(b"another")
    again = world.read()
    assert again["bytes_copied"] == again["bytes_total"] - len(b"a manifesta configurationa collection")
    assert not world.read()["changed"]


def test_a_directory_on_the_same_file_system_costs_no_space(world: World) -> None:
    world.write()
    source = world.root / "model/sub/model.safetensors"
    assert (world.out / PLACE / "sub/model.safetensors").stat().st_ino == source.stat().st_ino
    world.read()
    assert (world.root / "in" / PLACE / "sub/model.safetensors").stat().st_ino == source.stat().st_ino
    shutil.rmtree(world.root / "in")
    (world.out / PLACE / "sub/model.safetensors").chmod(0o600)
    world.read()
    assert (world.root / "in" / PLACE / "sub/model.safetensors").stat().st_ino != source.stat().st_ino
    assert (world.root / "in" / PLACE / "sub/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_tar_that_was_unpacked_by_hand_is_a_bundle(world: World) -> None:
    parts = world.tar()["parts"]
    world.out.mkdir()
    whole = b"".join(Path(part).read_bytes() for part in parts)
    subprocess.run(["tar", "-x", "-C", world.out], input=whole, check=True)
    assert world.read(path=str(world.out))["changed"]


def test_sha256sum_finds_the_parts_good(world: World) -> None:
    world.tar()
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "fleet.sha256"], cwd=world.root / "out", check=True)


def test_checking_writes_nothing(world: World) -> None:
    world.tar()
    result = world.read(dest="")
    assert (result["changed"], result["bytes_copied"]) == (False, 0)
    assert not (world.root / "in").exists()
    flip(world.part(2), 700_000)
    assert world.refused(dest="").code == "bundle.damaged"


# --- damage


def test_a_flipped_byte_is_found_and_its_part_named(world: World) -> None:
    world.tar()
    flip(world.part(2), 500_000)
    error = world.refused()
    assert error.code == "bundle.damaged"
    assert "model.safetensors" in error.seen
    assert "fleet.tar.002 differs from fleet.sha256" in error.seen
    assert "tar.001" not in error.seen


def test_a_run_after_the_part_was_copied_again_goes_on(world: World) -> None:
    world.tar()
    good = world.part(2).read_bytes()
    flip(world.part(2), 500_000)
    world.refused()
    world.part(2).write_bytes(good)
    result = world.read()
    assert result["changed"]
    assert result["bytes_copied"] < result["bytes_total"], "what was right is kept"
    assert not list((world.root / "in").rglob("*.partial"))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_part_is_named(world: World, number: int) -> None:
    world.tar()
    world.part(number).unlink()
    error = world.refused()
    assert error.code == "bundle.missing_part"
    assert f"lacks fleet.tar.00{number}, of 3 parts" in error.seen


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("size", [-1, 512])
def test_a_part_of_another_size_is_named(world: World, number: int, size: int) -> None:
    world.tar()
    path = world.part(number)
    os.truncate(path, path.stat().st_size + size)
    error = world.refused()
    assert error.code in {"bundle.damaged", "bundle.truncated"}
    assert f"fleet.tar.00{number}" in error.seen


def test_parts_of_another_bundle_are_named(world: World) -> None:
    world.tar()
    (world.root / "out/fleet.tar.004").write_bytes(b"")
    error = world.refused()
    assert (error.code, "fleet.tar.004" in error.seen) == ("bundle.extra_part", True)


def test_parts_that_were_swapped_are_refused(world: World) -> None:
    world.tar()
    content = [world.part(number).read_bytes() for number in (1, 2)]
    world.part(1).write_bytes(content[1])
    world.part(2).write_bytes(content[0])
    assert "fleet.tar.001" in world.refused().seen


def test_a_directory_that_lacks_or_has_a_file_more_is_refused(world: World) -> None:
    world.write()
    victim = world.out / PLACE / "config.json"
    content = victim.read_bytes()
    victim.unlink()
    error = world.refused()
    assert (error.code, "config.json" in error.seen) == ("bundle.missing_file", True)
    victim.symlink_to("/etc/hostname")
    assert world.refused().code == "bundle.damaged"
    victim.unlink()
    victim.write_bytes(content + b" ")
    assert world.refused().code == "bundle.damaged"
    victim.write_bytes(b"[]")
    error = world.refused()
    assert (error.code, "config.json" in error.seen) == ("bundle.damaged", True)
    victim.write_bytes(content)
    (world.out / PLACE / "run.sh").write_bytes(b"")
    error = world.refused()
    assert (error.code, "run.sh" in error.seen) == ("bundle.extra", True)


# --- signatures


def test_a_bundle_that_another_key_signed_is_refused(world: World, keys: list[Path]) -> None:
    world.tar(signing_key=str(keys[1]))
    error = world.refused()
    assert error.code == "bundle.bad_signature"
    assert not (world.root / "in").exists()
    both = public(keys[0]) + public(keys[1]).replace("bundles ", "somebody ")
    assert world.refused(allowed_signers=both, signer="bundles").code == "bundle.bad_signature"
    assert world.read(allowed_signers=both)["signer"] == "somebody"


def test_a_manifest_that_was_changed_is_refused_though_it_is_well_formed(world: World) -> None:
    world.write()
    path = world.out / _bundle.MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"revision": "master"', b'"revision": "mister"'))
    assert world.refused().code == "bundle.bad_signature"
    assert world.refused(allow_unsigned=True).code == "bundle.bad_signature", "there are signers to hold it to"


@pytest.mark.parametrize("signature", [b"", b"nonsense", b"-----BEGIN SSH SIGNATURE-----\n"])
def test_a_signature_that_is_none_is_refused(world: World, signature: bytes) -> None:
    world.write()
    (world.out / _bundle.SIGNATURE).write_bytes(signature)
    assert world.refused().code == "bundle.bad_signature"


def test_a_signature_for_something_else_is_refused(world: World) -> None:
    world.write()
    (world.out / _bundle.SIGNATURE).unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", world.key, "-n", "file", world.out / _bundle.MANIFEST],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert (world.out / _bundle.SIGNATURE).exists()
    assert world.refused().code == "bundle.bad_signature"


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_an_unsigned_bundle_must_be_asked_for(world: World, format: str) -> None:
    world.write(signing_key="", format=format)
    assert world.refused().code == "bundle.unsigned"
    result = world.read(allow_unsigned=True)
    assert (result["signer"], len(result["warnings"])) == ("", 1)


def test_a_signed_bundle_needs_to_know_whom_to_believe(world: World) -> None:
    world.tar()
    assert world.refused(allowed_signers=" ").code == "bundle.no_signers"
    assert "was not verified" in world.read(allowed_signers="", allow_unsigned=True)["warnings"][0]


def test_keys_that_do_not_serve(world: World, tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        world.tar(signing_key=str(tmp_path / "none"))
    assert caught.value.code == "bundle.no_key"
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    with pytest.raises(FleetError) as caught:
        world.tar(signing_key=str(locked))
    assert caught.value.code == "bundle.sign_failed"
    assert not list((world.root / "out").glob("*"))


@pytest.mark.parametrize("format", ["directory", "tar"])
def test_another_key_or_none_makes_another_bundle(world: World, keys: list[Path], format: str) -> None:
    write = world.write if format == "directory" else world.tar
    created = write()
    assert write(signing_key=str(keys[1]))["changed"]
    assert not write(signing_key=str(keys[1]))["changed"]
    assert world.read(allowed_signers=public(keys[1]))["created"]
    assert write(signing_key="")["changed"]
    assert not write(signing_key="")["changed"]
    assert write()["content"] == created["content"]
    assert _bundle_signature.made_by(b"x", _bundle_signature.sign(b"x", str(keys[0])), str(keys[0]))


def test_the_public_half_is_found_in_the_private_key(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    signature = _bundle_signature.sign(b"x", str(key))
    (tmp_path / "key.pub").unlink()
    assert _bundle_signature.made_by(b"x", signature, str(key))
    assert not _bundle_signature.made_by(b"y", signature, str(key))


# --- what stands in the way


def test_a_full_disk_is_noticed_before_the_first_byte(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tar()
    real = os.statvfs

    def little(path: t.Any) -> os.statvfs_result:
        state = list(real(path))
        state[4] = 10
        return os.statvfs_result(state)

    monkeypatch.setattr(os, "statvfs", little)
    error = world.refused()
    assert error.code == "bundle.no_space"
    assert not list((world.root / "in").glob("models"))
    with pytest.raises(FleetError) as caught:
        world.tar(path=str(world.root / "else/fleet"))
    assert caught.value.code == "bundle.no_space"
    assert not (world.root / "else").exists()


def test_a_write_that_fails_leaves_nothing_that_looks_complete(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tar()
    real, count = os.write, [0]

    def failing(handle: int, data: t.Any) -> int:
        count[0] += len(data)
        if count[0] > 1_500_000:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    (world.root / "extra.deb").write_bytes(b"another package")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        with pytest.raises(OSError, match="No space left"):
            world.tar()
    assert sorted(path.name for path in (world.root / "out").iterdir()) == [
        "fleet.sha256", "fleet.tar.001", "fleet.tar.002", "fleet.tar.003",
    ]  # fmt: skip
    assert world.read()["changed"], "the one that was there still is"
    count[0] = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        patch.setattr(os, "link", lambda *args, **kwargs: (none for none in ()).throw(OSError(18, "cross-device")))
        with pytest.raises(OSError, match="No space left"):
            world.write(path=str(world.root / "usb"))
    assert not (world.root / "usb/manifest.json").exists()
    assert world.refused(path=str(world.root / "usb"), dest=str(world.root / "in3")).code == "bundle.not_found"
    world.write(path=str(world.root / "usb"))
    assert world.read(path=str(world.root / "usb"), dest=str(world.root / "in2"))["changed"]


def test_fewer_parts_leave_none_of_the_old_ones(world: World) -> None:
    world.tar()
    world.tar(models=[])
    assert sorted(path.name for path in (world.root / "out").iterdir()) == ["fleet.sha256", "fleet.tar.001"]
    assert world.read()["changed"]
    world.tar(split=0)
    assert sorted(path.name for path in (world.root / "out").iterdir()) == ["fleet.sha256", "fleet.tar"]


def test_a_directory_with_other_things_in_it_is_left_alone(world: World) -> None:
    world.out.mkdir(parents=True)
    (world.out / "thesis.odt").write_text("precious")
    with pytest.raises(FleetError) as caught:
        world.write()
    assert (caught.value.code, "thesis.odt" in caught.value.seen) == ("bundle.path_in_use", True)
    world.tar()
    (world.root / "in").mkdir()
    (world.root / "in/photo.jpg").write_text("precious")
    assert world.refused(path=f"{world.out}.tar.001").code == "bundle.path_in_use"
    (world.root / "file").write_text("")
    assert world.refused(path=f"{world.out}.sha256", dest=str(world.root / "file")).code == "bundle.path_in_use"


@pytest.mark.parametrize(
    "name", ["manifest.json", "manifest.json.sig", ".gpufleet.partial", "wheels/controller/requirements.txt"]
)
@pytest.mark.parametrize("check_mode", [True, False])
def test_a_file_of_a_name_of_ours_does_not_make_a_directory_ours(world: World, name: str, check_mode: bool) -> None:
    path = world.out / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(FleetError) as caught:
        world.write(check_mode=check_mode)
    assert (caught.value.code, name in caught.value.seen) == ("bundle.path_in_use", True)
    assert path.read_text() == "precious"


def test_one_run_at_a_time(world: World) -> None:
    world.tar()
    with _bundle_tree.Tree(str(world.root / "in")):
        assert world.refused().code == "bundle.busy"
    held = _bundle_tree.lock(f"{world.out}.lock", "it")
    try:
        with pytest.raises(FleetError) as caught:
            world.tar(split=0)
        assert caught.value.code == "bundle.busy"
    finally:
        os.close(held)


def test_a_bundle_is_not_unpacked_into_itself(world: World) -> None:
    world.write()
    with pytest.raises(FleetError) as caught:
        world.read(dest=world.request.path)
    assert caught.value.code == "bundle.path_in_use"
    assert (world.out / _bundle.MANIFEST).exists()


def test_what_is_not_there_is_said(world: World) -> None:
    assert world.refused().code == "bundle.not_found"
    world.out.mkdir(parents=True)
    assert world.refused().code == "bundle.not_found"


def test_a_damaged_state_file_costs_time_alone(world: World) -> None:
    world.tar()
    world.read()
    (world.root / "in" / _bundle_tree.STATE).write_text("{damaged")
    assert not world.read()["changed"]
    (world.root / "in" / _bundle_tree.STATE).write_text('{"ours": ["../../etc/passwd", 7], "stats": []}')
    assert not world.read()["changed"]


# --- content that does not do


def bad(world: World, **changes: t.Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        world.write(**changes)
    return caught.value


def test_content_that_cannot_be_bundled(world: World) -> None:
    assert bad(world, models=[], images=[], wheels=[], collection="", files=[]).code == "bundle.bad_content"
    assert bad(world, collection=str(world.root / "extra.deb")).code == "bundle.bad_content"
    assert bad(world, files=[str(world.root)]).code == "bundle.bad_content"
    assert bad(world, wheels=[{"name": "a/b", "path": str(world.root / "wheels")}]).code == "bundle.bad_content"
    (world.root / "empty").mkdir()
    assert bad(world, wheels=[{"name": "a", "path": str(world.root / "empty")}]).code == "bundle.bad_content"
    (world.root / "images/sha256" / sha256(b"a layer")).unlink()
    assert bad(world).code == "bundle.bad_content"
    (world.root / "other").mkdir()
    (world.root / "other/extra.deb").write_bytes(b"another")
    files = [str(world.root / "extra.deb"), str(world.root / "other/extra.deb")]
    assert bad(world, images=[], files=files).code == "bundle.bad_content"
    assert not (world.root / "out").exists()


def test_a_model_that_changed_since_it_was_verified_is_refused(world: World) -> None:
    weights = world.root / "model/sub/model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert bad(world).code == "bundle.model_changed"
    assert bad(world, models=[{"model": MODEL, "path": str(world.root / "none")}]).code == "bundle.model_changed"
    assert bad(world, models=[{"model": "acme/else", "path": str(world.root / "model")}]).code == "bundle.model_changed"


def test_a_model_that_rotted_behind_its_stat_is_found_while_it_is_written(world: World) -> None:
    weights = world.root / "model/sub/model.safetensors"
    state = weights.stat()
    flip(weights, 1_000_000)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(FleetError) as caught:
        world.tar()
    assert caught.value.code == "bundle.source_changed"
    assert not list((world.root / "out").iterdir())


# --- hostile tars that are signed by nobody


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "models/../../escaped"])
def test_a_tar_that_lists_a_path_outside_writes_nothing(world: World, name: str) -> None:
    entry = Entry(name, 4, sha256(b"evil"))
    manifest = _bundle.dump(_bundle.Bundle("now", {}, (entry,)))
    raw = b""
    for member, content in ((_bundle.MANIFEST, manifest), (name, b"evil")):
        raw += _bundle_tar.header(member, len(content)) + content + b"\0" * _bundle_tar.padding(len(content))
    raw += _bundle_tar.trailer(len(raw))
    (world.root / "out").mkdir()
    (world.root / "out/fleet.tar").write_bytes(raw)
    (world.root / "out/fleet.sha256").write_text(_bundle.dump_sums([("fleet.tar", sha256(raw))]))
    assert world.refused(allow_unsigned=True).code == "bundle.unsafe_path"
    assert not list(world.root.rglob("*escaped*"))
    assert not (world.root / "in").exists()
