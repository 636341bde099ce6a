# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module vllm_model_info as a process of its own, against the embedded hub: what it asks for, and how much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import model_checkpoints as checkpoints
import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import GIB, model_of, size
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_plan import assess
from model_hub import Fault, Hub, add_model
from module_host import TOKEN, Host, everything, pythons

LLAMA = "acme/llama"
SINGLE = "acme/single"
SHARDS = 5
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 10,
    "vocab_size": 8000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}


def write(directory: Path, shards: int) -> int:
    """A checkpoint whose tensors are holes; returns the bytes that it loads."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}" + " " * 100_000)
    tensors, named = checkpoints.decoder(CONFIG), {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = tensors[number::shards]
        head, whole = checkpoints.header(part)
        with (directory / name).open("wb") as file:
            file.write(head)
            file.truncate(whole)
        named.update({one.name: name for one in part})
    total = sum(one.size for one in tensors)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": named}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


@pytest.fixture
def models(tmp_path: Path) -> dict[str, int]:
    return {LLAMA: write(tmp_path / "llama", SHARDS), SINGLE: write(tmp_path / "single", 1)}


@pytest.fixture
def hub(tmp_path: Path, models: dict[str, int]) -> Iterator[Hub]:
    root = tmp_path / "hub"
    root.mkdir()
    add_model(root, LLAMA, tmp_path / "llama", tag="v1")
    add_model(root, SINGLE, tmp_path / "single")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "config.json").write_text(json.dumps(CONFIG))
    (gguf / "model-q4.gguf").write_bytes(b"GGUF")
    add_model(root, "acme/gguf", gguf)
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "config.json").write_text(json.dumps(CONFIG))
    (pickle / "pytorch_model.bin").write_bytes(b"pickle")
    add_model(root, "acme/pickle", pickle)
    with Hub(root, lfs_base="http://localhost:{port}") as running:
        yield running


@pytest.fixture
def host(tmp_path: Path, hub: Hub) -> Host:
    return Host(tmp_path, hub.endpoint)


def info(host: Host, *models: str | dict[str, Any], **options: Any) -> dict[str, Any]:
    wanted = [{"model": one} if isinstance(one, str) else one for one in models]
    result = host.run("vllm_model_info", model=None, models=wanted, **options)
    assert result["changed"] is False
    return result


@pytest.mark.parametrize("python", pythons(), ids=lambda name: Path(name).name)
def test_models_are_read_in_a_few_requests_and_bytes(
    host: Host, hub: Hub, models: dict[str, int], tmp_path: Path, python: str
) -> None:
    host.python = python
    before = everything(tmp_path)
    result = info(host, {"model": LLAMA, "revision": "v1"}, SINGLE, _ansible_check_mode=True)
    assert everything(tmp_path) == before, "nothing is written"
    large, single = result["models"][f"{LLAMA}@v1"], result["models"][f"{SINGLE}@master"]
    for name, entry in ((LLAMA, large), (SINGLE, single)):
        assert (entry["error"], entry["source"]) == (None, "hub")
        assert entry["weights"]["total_bytes"] == models[name]
        assert entry["weights"]["exact"] is True
        assert len(entry["commit"]) == 40
    # The headers say the same however the tensors are spread.
    assert {**large["weights"], "tensors": 0} == {**single["weights"], "tensors": 0}
    assert large["artifact_bytes"] > large["bytes_total"] > models[LLAMA] > 20_000_000
    # Revision and listing, config, and for the large model the index and a range of each file.
    assert hub.requests.count("*tokenizer*") == 0
    assert hub.requests.sent() < 500_000, "of more than 54 MB"
    ranges = [one.headers.get("range") for one in hub.requests.select("lfs/*")]
    assert ranges == ["bytes=0-65535"] * (SHARDS + 1), "where the hub sends a client for large files"
    assert result["requests"] == len(hub.requests)
    assert len(hub.requests) <= 2 * (SHARDS + 1) + 9
    assert host.rss < 64, f"{host.rss} MiB"


def test_the_entry_gives_a_sum_and_findings(host: Host, models: dict[str, int]) -> None:
    entry = info(host, LLAMA)["models"][f"{LLAMA}@master"]
    sizing = size(model_of(entry), memory_total_bytes=24 * GIB)
    assert sizing.exact_weights
    assert sizing.weights_bytes == models[LLAMA]
    assert sizing.kv_bytes_per_token == 2 * 10 * 2 * 32 * 2
    _sizing, found = assess("svc", entry, {}, tensor_parallel=3, cards_memory=[24 * GIB] * 3)
    assert [one.code for one in found] == ["plan.tensor_parallel_illegal"]


def test_what_is_wrong_with_one_model_does_not_touch_the_others(host: Host) -> None:
    result = info(host, "acme/gguf", "acme/pickle", "acme/gone", {"model": LLAMA, "revision": "v9"}, SINGLE)
    codes = {name: (entry["error"] or {}).get("code") for name, entry in result["models"].items()}
    assert codes == {
        "acme/gguf@master": "model.gguf",
        "acme/pickle@master": "manifest.pickle",
        "acme/gone@master": "hub.not_found",
        f"{LLAMA}@v9": "hub.unknown_revision",
        f"{SINGLE}@master": None,
    }
    for entry in result["models"].values():
        assert entry["error"] is None or all(entry["error"][key] for key in ("seen", "expected", "remedy"))


def test_an_artifact_that_is_there_is_read_without_the_hub(
    host: Host, hub: Hub, models: dict[str, int], path: Path
) -> None:
    host.run(model=LLAMA, path=str(path), revision="v1")
    hub.requests.clear()
    wanted = {"model": LLAMA, "revision": "v1", "path": str(path)}
    entry = info(host, wanted)["models"][f"{LLAMA}@v1"]
    assert (entry["source"], entry["error"]) == ("artifact", None)
    assert entry["weights"]["total_bytes"] == models[LLAMA]
    assert len(hub.requests) == 0
    next(path.glob("model-00003-*")).unlink()
    entry = info(host, wanted)["models"][f"{LLAMA}@v1"]
    assert (entry["source"], entry["error"]) == ("hub", None)


def test_a_hub_out_of_reach_is_an_error_for_each_model_and_soon(
    host: Host, hub: Hub, path: Path, tmp_path: Path
) -> None:
    hub.faults.add(Fault(match="*", status=503, times=1000))
    entry = info(host, SINGLE)["models"][f"{SINGLE}@master"]
    assert entry["error"]["code"] == "hub.unavailable"
    result = info(host, LLAMA, SINGLE, endpoint="http://127.0.0.1:9")
    assert {entry["error"]["code"] for entry in result["models"].values()} == {"hub.unreachable"}
    # What lies there is read as it is.
    lying = {"model": SINGLE, "path": str(tmp_path / "single")}
    entry = info(host, lying, endpoint="http://127.0.0.1:9")["models"][f"{SINGLE}@master"]
    assert (entry["source"], entry["error"]) == ("directory", None)


def test_a_connection_that_is_cut_is_tried_again(host: Host, hub: Hub, models: dict[str, int]) -> None:
    hub.faults.add(Fault(match="*.safetensors", drop_after=10, times=1))
    hub.faults.add(Fault(match="lfs/*", drop_after=10, times=1))
    entry = info(host, SINGLE)["models"][f"{SINGLE}@master"]
    assert entry["error"] is None
    assert entry["weights"]["total_bytes"] == models[SINGLE]


def test_options_that_cannot_be_fail_the_module(host: Host) -> None:
    bad = host.result(host.start("vllm_model_info", model=None, models=[{"model": "nobody"}]))
    assert bad["code"] == "hub.bad_model"
    plain = "http://hub.example.com"
    bad = host.result(host.start("vllm_model_info", model=None, models=[], token=TOKEN, endpoint=plain))
    assert bad["code"] == "hub.token_over_http"
