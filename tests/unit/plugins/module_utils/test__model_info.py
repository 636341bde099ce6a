# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is read of a model and from where: _model_info and _model_files."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _model_info
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import Resolution
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, FileStat, Manifest
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_files import (
    BYTES_MAX,
    Budget,
    HubFiles,
    artifact_files,
    loose_files,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_info import describe, read_model, shortened
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import model_of, size
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import TransientError

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import model_checkpoints as checkpoints

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
COMMIT = "2e50b77b0eee3083842019e257b74854323d880a"
MODEL = "acme/tiny"

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
}


def checkpoint(shards=1, config=None):
    """The files of a small model, its weights in so many parts. Returns them and the bytes of its tensors."""
    config = config or SMALL
    tensors = checkpoints.decoder(config)
    files = {"config.json": json.dumps(config).encode()}
    named = {}
    for number in range(shards):
        part = tensors[number::shards]
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        head, whole = checkpoints.header(part)
        files[name] = head + bytes(whole - len(head))
        named.update({one.name: name for one in part})
    total = sum(one.size for one in tensors)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": named}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files, total


class Stream:
    described = "a stream"
    total = None

    def __init__(self, data, offset):
        self.data, self.offset, self.whole, self.closed = data, offset, False, False

    def read(self, limit):
        piece, self.data = self.data[:limit], self.data[limit:]
        return piece

    def close(self):
        self.closed = True


class FakeHub:
    """A hub in memory; ``asked`` are the ranges, ``refusals`` what the next questions get."""

    requests = 0
    timeout = 5.0

    def __init__(self, files):
        self.files, self.asked, self.refusals, self.lock = files, [], [], threading.Lock()
        self.ranges, self.down = True, None

    def resolve(self, model, revision, patient=True):
        assert not patient
        if self.down is not None:
            raise self.down
        return Resolution(revision, COMMIT)

    def list_rows(self, model, resolution):
        return [
            {"Path": path, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for path, data in self.files.items()
        ]

    def source(self, model, resolution):
        return self

    def open(self, entry, start, end):
        with self.lock:
            self.asked.append((entry.path, start, end))
            if self.refusals:
                raise self.refusals.pop()
        data = self.files[entry.path]
        return Stream(data[start:end], start) if self.ranges else Stream(data, 0)

    @property
    def bytes_asked(self):
        return sum(end - start for _path, start, end in self.asked)


def item(**values):
    return {"model": MODEL, "revision": "master", "path": None, "include": [], "exclude": [], **values}


def entry_of(files, **values):
    return describe(FakeHub(files), item(**values))


def error_of(files, **values):
    entry = entry_of(files, **values)
    assert entry["error"] is not None
    assert all(entry["error"][key] for key in ("code", "seen", "expected", "remedy"))
    assert entry["weights"] is None
    return entry["error"]


# ---- what is read


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_of_the_hub(shards):
    files, total = checkpoint(shards)
    files["README.md"] = b"x" * 5000
    hub = FakeHub(files)
    entry = describe(hub, item())
    assert entry["error"] is None
    assert (entry["commit"], entry["source"]) == (COMMIT, "hub")
    assert entry["weights"]["exact"] is True
    assert entry["weights"]["total_bytes"] == total
    assert entry["artifact_bytes"] == sum(map(len, files.values()))
    assert entry["bytes_total"] == sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert entry["files"] == sorted(name for name in files if name.endswith(".safetensors"))
    assert {path for path, _start, _end in hub.asked} == set(files) - {"README.md"}
    assert len(hub.asked) == len(files) - 1, "one request for each file"
    assert json.loads(json.dumps(entry)) == entry
    read = model_of(entry)
    assert read.weights.exact
    assert size(read, max_model_len=1024).weights_bytes == total


def test_a_header_that_is_longer_than_the_first_bytes(monkeypatch):
    monkeypatch.setattr(_model_info, "FIRST_BYTES", 300)
    files, total = checkpoint()
    hub = FakeHub(files)
    assert describe(hub, item())["weights"]["total_bytes"] == total
    asked = [(start, end) for path, start, end in hub.asked if path == "model.safetensors"]
    assert asked[0] == (0, 300)
    assert asked[1][0] == 300
    assert asked[1][1] < len(files["model.safetensors"])


def test_a_hub_that_ignores_ranges(monkeypatch):
    monkeypatch.setattr(_model_info, "FIRST_BYTES", 300)
    files, total = checkpoint()
    hub = FakeHub(files)
    hub.ranges = False
    assert describe(hub, item())["weights"]["total_bytes"] == total


def test_a_hub_that_fails_now_and_then_and_one_that_goes_on_failing():
    files, total = checkpoint()
    hub = FakeHub(files)
    hub.refusals = [TransientError("hub.unavailable", "HTTP 503")] * 2
    assert describe(hub, item())["weights"]["total_bytes"] == total
    hub.refusals = [OSError("cut")] * 9
    assert describe(hub, item())["error"]["code"] == "model.unreadable"
    hub.refusals = [TransientError("hub.unavailable", "HTTP 503", "an answer", "Wait")] * 9
    assert describe(hub, item())["error"]["code"] == "hub.unavailable"


def test_a_file_that_is_not_what_the_listing_says():
    files, _total = checkpoint()
    hub = FakeHub(files)
    listing = hub.list_rows(MODEL, None)
    hub.list_rows = lambda model, resolution: listing
    files["config.json"] = files["config.json"].replace(b"64", b"65")
    assert describe(hub, item())["error"]["code"] == "model.unreadable"


def test_copies_for_other_software_are_no_weights():
    files, total = checkpoint()
    files["consolidated.safetensors"] = files["model.safetensors"]
    files["original/model.safetensors"] = files["model.safetensors"]
    entry = entry_of(files)
    assert entry["weights"]["total_bytes"] == total
    assert entry["bytes_total"] == len(files["model.safetensors"])


def test_patterns_choose_the_files():
    files, total = checkpoint()
    files["fp32/model.safetensors"] = b"0" * 100
    files["model.fp32.safetensors"] = files["model.safetensors"]
    assert entry_of(files, exclude=["*fp32*"])["weights"]["total_bytes"] == total
    assert error_of(files, include=["*.json"])["code"] == "model.no_weights"
    assert error_of(files, exclude=["config.json"])["code"] == "model.no_config"


def test_how_far_an_image_is_scaled_down():
    vision = json.loads((CONFIGS / "qwen2.5-vl-7b.json").read_text(encoding="utf-8"))["vision_config"]
    config = {**SMALL, "model_type": "qwen2_5_vl", "vision_config": vision}
    files, _total = checkpoint(config=config)
    assert model_of(entry_of(files)).towers[0].tokens == 16384
    for processor in ({"max_pixels": 1003520}, {"size": {"longest_edge": 1003520}}):
        files["preprocessor_config.json"] = json.dumps(processor).encode()
        assert model_of(entry_of(files)).towers[0].tokens == 1280
    for odd in (b"[]", b"{", b'{"max_pixels": "x"}', b'{"size": {"longest_edge": 448}}', b"x" * 300_000):
        files["preprocessor_config.json"] = odd
        assert model_of(entry_of(files)).towers[0].tokens == 16384


def test_a_quantisation_that_is_told_beside_the_config():
    """hf_quant_config.json, from which vLLM takes it too where config.json says nothing."""
    files, _total = checkpoint()
    plain = model_of(entry_of(files))
    told = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    files["hf_quant_config.json"] = json.dumps(told).encode()
    quantised = model_of(entry_of(files))
    assert (quantised.quantization.method, quantised.quantization.cache) == ("modelopt", "fp8")
    assert size(quantised).kv_bytes_per_token * 2 == size(plain).kv_bytes_per_token
    for odd in (b"[]", b"{", b'{"quantization": 3}', b'{"quantization": {"bits": 16}}', b"x" * 300_000):
        files["hf_quant_config.json"] = odd
        assert size(model_of(entry_of(files))).kv_bytes_per_token == size(plain).kv_bytes_per_token


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_the_shortened_config_reads_like_the_whole_one(name):
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    longer = {**config, "suppress_tokens": list(range(5000)), "id2label": {str(one): "x" for one in range(5000)}}
    short = shortened(longer)
    assert read_config(short) == read_config(config)
    assert len(json.dumps(short)) < 6000


def test_a_config_is_shortened_whatever_it_is():
    deep = {}
    for _level in range(50):
        deep = {"a": deep, "b": [deep] if len(str(deep)) < 100 else []}
    assert len(json.dumps(shortened({"x": deep, "y": "z" * 10**6, "k" * 10**6: 1}))) < 20_000


# ---- what cannot be read


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"config.json": b"{"}, "model.bad_config"),
        ({"config.json": b"[]"}, "model.bad_config"),
        ({"config.json": b'{"num_hidden_layers": 1e9}'}, "model.bad_config"),
        ({"config.json": b"[" * 100_000}, "model.bad_config"),
        ({"config.json": b" " * (5 * 2**20)}, "model.too_large"),
        ({"config.json": None}, "model.no_config"),
        ({"config.json": None, "params.json": b"{}"}, "model.no_config"),
        ({"model.safetensors": b"short"}, "model.bad_safetensors"),
        ({"model.safetensors": b"\xff" * 100}, "model.bad_safetensors"),
        ({"model.safetensors": (20).to_bytes(8, "little") + b"{" * 100}, "model.bad_safetensors"),
        ({"model.safetensors": None, "model-q4.gguf": b"GGUF"}, "model.gguf"),
        ({"model.safetensors": None}, "model.no_weights"),
        ({"model.safetensors": None, "pytorch_model.bin": b"pickle"}, "manifest.pickle"),
        ({"model.safetensors.index.json": b"{}"}, "model.bad_index"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "gone.safetensors"}}'}, "model.missing_file"),
        ({"../evil": b"x"}, "manifest.unsafe_listing"),
    ],
)
def test_a_repository_that_is_out_of_order(change, code):
    files, _total = checkpoint()
    files = {name: data for name, data in {**files, **change}.items() if data is not None}
    assert error_of(files)["code"] == code


def test_the_file_that_is_wrong_is_named():
    files, _total = checkpoint(3)
    files["model-00002-of-00003.safetensors"] = b"\xff" * 100
    assert "model-00002-of-00003.safetensors" in error_of(files)["seen"]


def test_no_more_is_read_than_is_allowed():
    budget = Budget(100)
    budget.take(60)
    with pytest.raises(FleetError) as caught:
        budget.take(41)
    assert caught.value.code == "model.too_large"
    assert budget.read == 60
    assert BYTES_MAX == 64 * 2**20


# ---- a directory


def place(directory, files):
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def publish(directory, files, model=MODEL, revision="master", commit=COMMIT):
    """An artifact as the module modelscope_model leaves it."""
    place(directory, files)
    entries = tuple(Entry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items()))
    stats = {one.path: FileStat(one.size, (directory / one.path).stat().st_mtime_ns) for one in entries}
    manifest = Manifest(model, revision, commit, "https://hub.example.com", (), (), (), entries, stats, "1")
    place(directory, {".gpufleet/manifest.json": _manifest.dump(manifest).encode()})
    return directory


def test_a_complete_artifact_is_read_without_a_question(tmp_path):
    files, total = checkpoint(2)
    path = publish(tmp_path / "model", files)
    hub = FakeHub({})
    for revision in ("master", COMMIT):
        entry = describe(hub, item(path=str(path), revision=revision))
        assert (entry["source"], entry["commit"], entry["error"]) == ("artifact", COMMIT, None)
        assert entry["weights"]["total_bytes"] == total
        assert entry["artifact_bytes"] == sum(map(len, files.values()))
        assert (entry["path"], entry["missing_bytes"]) == (str(path), 0)
    assert hub.asked == []


def test_what_a_fetch_would_still_bring(tmp_path):
    files, _total = checkpoint(2)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    every = sum(map(len, files.values()))
    path = tmp_path / "model"
    assert entry_of(files)["missing_bytes"] is None, "nobody said where"
    assert entry_of(files, path=str(path))["missing_bytes"] == every
    place(path, {first: files[first]})
    assert entry_of(files, path=str(path))["missing_bytes"] == every - len(files[first])
    parts = tmp_path / ".model.gpufleet" / "parts"
    place(parts, {hashlib.sha256(files[second]).hexdigest(): files[second][:100]})
    assert entry_of(files, path=str(path))["missing_bytes"] == every - len(files[first]) - 100
    (tmp_path / "link").symlink_to(path)
    assert entry_of(files, path=str(tmp_path / "link"))["missing_bytes"] > 0, "it is for the fetch to refuse it"


@pytest.mark.parametrize(
    "what", ["another model", "another revision", "missing file", "cut file", "no manifest", "odd"]
)
def test_what_is_not_the_artifact_is_read_from_the_hub(tmp_path, what):
    files, total = checkpoint(2)
    path = publish(
        tmp_path / "model",
        files,
        model="acme/other" if what == "another model" else MODEL,
        revision="v1" if what == "another revision" else "master",
    )
    shard = path / "model-00002-of-00002.safetensors"
    if what == "missing file":
        shard.unlink()
    if what == "cut file":
        shard.write_bytes(shard.read_bytes()[:-1])
    if what == "no manifest":
        (path / ".gpufleet/manifest.json").unlink()
    if what == "odd":
        (path / ".gpufleet/manifest.json").write_bytes(b"\xff{")
    assert artifact_files(str(path), MODEL, "master") is None
    entry = describe(FakeHub(files), item(path=str(path)))
    assert (entry["source"], entry["error"]) == ("hub", None)
    assert entry["weights"]["total_bytes"] == total


def test_a_host_without_hub_reads_what_lies_there(tmp_path):
    files, total = checkpoint()
    path = place(tmp_path / "model", files)
    hub = FakeHub({})
    hub.down = TransientError("hub.unreachable", "no route", "a connection", "Check the network")
    entry = describe(hub, item(path=str(path)))
    assert (entry["source"], entry["commit"], entry["error"]) == ("directory", None, None)
    assert entry["weights"]["total_bytes"] == total
    # No config.json, no directory, or a hub that says no: then its word stands.
    assert describe(hub, item(path=str(tmp_path)))["error"]["code"] == "hub.unreachable"
    assert describe(hub, item(path=str(tmp_path / "nowhere")))["error"]["code"] == "hub.unreachable"
    assert describe(hub, item())["error"]["code"] == "hub.unreachable"
    hub.down = FleetError("hub.not_found", "no such model", "one", "Check the spelling")
    assert describe(hub, item(path=str(path)))["error"]["code"] == "hub.not_found"


def test_links_and_pipes_are_not_followed(tmp_path):
    files, _total = checkpoint()
    path = place(tmp_path / "model", files)
    (path / "config.json").rename(tmp_path / "outside.json")
    (path / "config.json").symlink_to(tmp_path / "outside.json")
    os.mkfifo(path / "pipe.safetensors")
    assert loose_files(str(path)) is None
    (path / "config.json").unlink()
    (tmp_path / "outside.json").rename(path / "config.json")
    assert set(loose_files(str(path)).entries) == set(files)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    files, _total = checkpoint()
    found = loose_files(str(place(tmp_path / "model", files)))
    (tmp_path / "model/model.safetensors").write_bytes(b"")
    with pytest.raises(FleetError) as caught:
        read_model(found)
    assert caught.value.code == "model.unreadable"


def test_a_hub_that_sends_a_trickle(monkeypatch):
    """Each byte within the time-out, and all of them never: whoever reads side by side would hold the host up."""
    files, _total = checkpoint()
    hub, clock = FakeHub(files), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Trickle(Stream):
        def read(self, limit):
            clock[0] += 4.0
            return super().read(1)

    streams = []

    def open_(entry, start, end):
        streams.append(Trickle(files[entry.path][start:end], start))
        return streams[-1]

    hub.open = open_
    entry = describe(hub, item())
    assert entry["error"]["code"] == "model.unreadable"
    assert "longer than 20 seconds" in entry["error"]["seen"]
    assert clock[0] < 60, "and it is not tried again"
    assert all(stream.closed for stream in streams)


def test_a_stream_that_begins_elsewhere():
    files, _total = checkpoint()
    hub = FakeHub(files)
    found = HubFiles(hub, MODEL, "master", [], [])
    hub.open = lambda entry, start, end: Stream(b"x" * 100, start + 7)
    with pytest.raises(FleetError) as caught:
        found.read(found.entries["model.safetensors"], 10, 20)
    assert caught.value.code == "model.unreadable"
    hub.open = lambda entry, start, end: Stream(b"", start)
    with pytest.raises(FleetError) as caught:
        found.read(found.entries["model.safetensors"], 10, 20)
    assert caught.value.code == "hub.cut"
