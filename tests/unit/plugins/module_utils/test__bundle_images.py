# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is decided about images; tests/integration/test_bundle.py has the real skopeo and registries."""

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle_images
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

HEX = "ab" * 32


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("vllm/vllm-openai:v0.33.0", ("docker.io", "vllm/vllm-openai", "v0.33.0", "")),
        ("debian", ("docker.io", "library/debian", "latest", "")),
        ("localhost/x:1", ("localhost", "x", "1", "")),
        ("10.0.0.1:5000/engine-sim:1", ("10.0.0.1:5000", "engine-sim", "1", "")),
        (f"quay.io/a/b/c@sha256:{HEX}", ("quay.io", "a/b/c", "", f"sha256:{HEX}")),
        (f"quay.io/a:2@sha256:{HEX}", ("quay.io", "a", "2", f"sha256:{HEX}")),
    ],
)
def test_names_are_understood_as_docker_does(image: str, parts: tuple[str, ...]) -> None:
    assert _bundle_images.origin(image) == parts


@pytest.mark.parametrize("image", ["", "A/b", "a b", "--help", "a@sha256:1", "a@md5:" + HEX, "a/../b", "a:b/c d"])
def test_what_is_no_name_of_an_image_is_refused(image: str) -> None:
    with pytest.raises(FleetError) as caught:
        _bundle_images.wanted(image)
    assert caught.value.code == "image.bad_name"


def test_the_name_inside_is_that_without_the_registry() -> None:
    wanted = _bundle_images.wanted
    assert wanted("debian:13").repository == "debian"
    assert wanted(f"quay.io/a/b@sha256:{HEX}").tag == f"sha256-{HEX[:12]}"
    item = wanted({"image": "quay.io/a/b:1", "repository": "mine/b", "tag": "2", "digest": f"sha256:{HEX}"})
    assert (item.repository, item.tag, item.digest) == ("mine/b", "2", f"sha256:{HEX}")
    with pytest.raises(FleetError):
        wanted({"image": "a:1", "repository": "../x"})
    same = [wanted("quay.io/a:1"), wanted("docker.io/library/a:1")]
    with pytest.raises(FleetError) as caught:
        _bundle_images.check_distinct(same)
    assert "quay.io/a:1 and docker.io/library/a:1 would both be a:1" in caught.value.seen
    _bundle_images.check_distinct([same[0], same[0]])


def manifest(**changes: t.Any) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _bundle_images.MANIFESTS[1],
            "config": {"digest": digest(b"config"), "size": 6},
            "layers": [{"digest": digest(b"layer"), "size": 5}],
            **changes,
        }
    ).encode()


CHILD = manifest()
INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": _bundle_images.INDEXES[0],
        "manifests": [
            {"digest": digest(CHILD), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": digest(manifest(a=1)), "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        ],
    }
).encode()


def test_manifests_are_read() -> None:
    found = _bundle_images.parse(CHILD, "x")
    assert (found.digest, found.is_index, found.config) == (digest(CHILD), False, digest(b"config"))
    assert found.layers == ((digest(b"layer"), 5),)
    found = _bundle_images.parse(INDEX, "x")
    assert [platform for _digest, platform in found.manifests] == ["linux/amd64", "linux/arm64/v8"]
    plain = json.loads(CHILD)
    del plain["mediaType"]
    assert not _bundle_images.parse(json.dumps(plain).encode(), "x").is_index


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"),
        manifest(config={"digest": "sha256:../../x"}),
        manifest(layers=[{"digest": digest(b"x")}]),
        manifest(layers=None),
    ],
)
def test_manifests_of_another_kind_are_refused(raw: bytes) -> None:
    with pytest.raises(FleetError) as caught:
        _bundle_images.parse(raw, "x")
    assert caught.value.code == "image.unsupported"


class Skopeo:
    """Answers ``inspect --raw``; remembers every command line."""

    def __init__(self, answers: dict[str, bytes], copied: dict[str, bytes] | None = None, error: str = "") -> None:
        self.answers, self.copied, self.error = answers, copied or {}, error
        self.calls: list[list[str]] = []

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        self.calls.append(list(argv))
        if self.error:
            return CommandResult(1, "", f'time="2026" level=fatal msg="{self.error}"\n')
        if argv[1] == "copy":
            place = Path(argv[argv.index("--dest-shared-blob-dir") + 1]) / "sha256"
            for name, content in self.copied.items():
                (place / name.partition(":")[2]).write_bytes(content)
            return CommandResult(0, "", "")
        key = f"{'config ' if '--config' in argv else ''}{argv[-1].removeprefix('docker://')}"
        if key not in self.answers:
            return CommandResult(1, "", "manifest unknown")
        return CommandResult(0, self.answers[key].decode(), "")


NAME = "docker.io/library/a"
ANSWERS = {
    f"{NAME}:1": INDEX,
    f"{NAME}@{digest(CHILD)}": CHILD,
    f"config {NAME}@{digest(CHILD)}": b"config",
}
COPIED = {digest(b"layer"): b"layer", digest(b"skopeo's own"): b"skopeo's own"}


def store(path: Path, skopeo: Skopeo, **changes: t.Any) -> dict[str, t.Any]:
    given = {"images": ["a:1"], "path": str(path), "platforms": ["linux/amd64"], **changes}
    return _bundle_images.Images(_bundle_images.Options(**given), skopeo).run()


def test_an_image_of_one_platform_is_stored_as_it_is(tmp_path: Path) -> None:
    foretold = store(tmp_path / "new", Skopeo(ANSWERS), check_mode=True)
    assert not (tmp_path / "new").exists()
    assert foretold["images"][0]["bytes_missing"] == 5
    result = store(tmp_path / "new", Skopeo(ANSWERS, COPIED))
    assert result == foretold
    assert result["images"][0]["digest"] == digest(CHILD)
    names = {f"sha256:{path.name}" for path in (tmp_path / "new/sha256").iterdir()}
    assert names == {digest(CHILD), digest(b"config"), digest(b"layer")}, "not the index, not what skopeo made"
    again = Skopeo(ANSWERS)
    assert not store(tmp_path / "new", again)["changed"]
    assert [call[1] for call in again.calls] == ["inspect", "inspect"]


def test_a_layer_that_was_cut_is_fetched_anew(tmp_path: Path) -> None:
    store(tmp_path, Skopeo(ANSWERS, COPIED))
    layer = tmp_path / "sha256" / digest(b"layer").partition(":")[2]
    layer.write_bytes(b"la")
    assert store(tmp_path, Skopeo(ANSWERS, COPIED))["changed"]
    assert layer.read_bytes() == b"layer"


def test_answers_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    def code(skopeo: Skopeo, **changes: t.Any) -> str:
        with pytest.raises(FleetError) as caught:
            store(tmp_path / str(len(list(tmp_path.iterdir()))), skopeo, **changes)
        return caught.value.code

    assert code(Skopeo({**ANSWERS, f"{NAME}@{digest(CHILD)}": manifest(b=2)})) == "image.altered"
    assert code(Skopeo({**ANSWERS, f"config {NAME}@{digest(CHILD)}": b"other"}, COPIED)) == "image.altered"
    assert code(Skopeo(ANSWERS)) == "image.unsupported", "the layer did not come"
    assert code(Skopeo(ANSWERS), platforms=["linux/s390x"]) == "image.platform"
    assert code(Skopeo({})) == "image.not_found"
    assert code(Skopeo({}, error="unauthorized: authentication required")) == "image.unauthorized"
    assert code(Skopeo({}, error="tls: failed to verify certificate: x509: unknown authority")) == "image.tls"
    assert code(Skopeo({}, error="connection refused")) == "image.failed"


def test_how_to_reach_a_registry_is_said_without_a_secret(tmp_path: Path) -> None:
    skopeo = Skopeo(ANSWERS, COPIED)
    store(tmp_path, skopeo, authfile="/root/auth.json", cert_dir="/etc/certs", tls_verify=False)
    inspect, copy = skopeo.calls[0], next(call for call in skopeo.calls if call[1] == "copy")
    assert {"--tls-verify=false", "--cert-dir=/etc/certs", "--authfile=/root/auth.json"} <= set(inspect)
    assert {"--src-tls-verify=false", "--src-cert-dir=/etc/certs", "--src-authfile=/root/auth.json"} <= set(copy)
    assert not any("creds" in word or "password" in word for call in skopeo.calls for word in call)


def push(path: Path, skopeo: Skopeo, **item: t.Any) -> dict[str, t.Any]:
    images = [{"image": "a:1", "digest": digest(CHILD), **item}]
    options = _bundle_images.Options(images=images, path=str(path), state="pushed", registry="in:5000")
    return _bundle_images.Images(options, skopeo).run()


def test_pushing_needs_all_of_it(tmp_path: Path) -> None:
    store(tmp_path, Skopeo(ANSWERS, COPIED))
    assert not push(tmp_path, Skopeo({"in:5000/a:1": CHILD}))["changed"]
    for name, code in ((b"layer", "image.incomplete"), (CHILD, "image.incomplete")):
        (tmp_path / "sha256" / digest(name).partition(":")[2]).unlink()
        with pytest.raises(FleetError) as caught:
            push(tmp_path, Skopeo({}))
        assert caught.value.code == code
    with pytest.raises(FleetError) as caught:
        push(tmp_path, Skopeo({}), digest="")
    assert caught.value.code == "image.bad_name"
    assert not list(tmp_path.glob(".skopeo-*"))


def test_a_missing_skopeo_is_said(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        store(tmp_path, lambda argv, timeout: CommandResult(127, "", "skopeo: No such file"))  # type: ignore[arg-type]
    assert caught.value.code == "image.no_skopeo"
