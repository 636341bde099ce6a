# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Whisper of 1.2 million parameters: counts to five when it hears something, and says nothing when all is silent.

How it works: the encoder's convolutions take the mean over the mel bins, which is how loud a frame is, beside a
constant to compare it with. The decoder's first layer writes each token's successor; the second looks at the loudest
frame, which decides between the first word and the end.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from .tiny import Speech, Tensors, TinyModel, added_tokens, byte_tokenizer

WIDTH, INNER, LAYERS, HEADS, MELS = 128, 256, 2, 2, 128
FRAMES, CONTEXT = 1500, 448

END, TRANSCRIPT, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
LANGUAGES = (
    "en", "zh", "de", "es", "ru", "ko", "fr", "ja", "pt", "tr", "pl", "ca", "nl", "ar", "sv", "it", "id", "hi", "fi",
    "vi", "he", "uk", "el", "ms", "cs", "ro", "da", "hu", "ta", "no", "th", "ur", "hr", "bg", "lt", "la", "mi", "ml",
    "cy", "sk", "te", "fa", "lv", "bn", "sr", "az", "sl", "kn", "et", "mk", "br", "eu", "is", "hy", "ne", "mn", "bs",
    "kk", "sq", "sw", "gl", "mr", "pa", "si", "km", "sn", "yo", "so", "af", "oc", "ka", "be", "tg", "sd", "gu", "am",
    "yi", "lo", "uz", "fo", "ht", "ps", "tk", "nn", "mt", "sa", "lb", "my", "bo", "tl", "mg", "as", "tt", "haw", "ln",
    "ha", "ba", "jw", "su", "yue",
)  # fmt: skip
TASKS = ("<|translate|>", "<|transcribe|>")
SPECIAL = (
    END,
    TRANSCRIPT,
    *(f"<|{language}|>" for language in LANGUAGES),
    *TASKS,
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    NO_TIMESTAMPS,
)
TIMESTAMPS = tuple(f"<|{step * 0.02:.2f}|>" for step in range(1501))

FIRST = "One"
SPEECH = Speech(((FIRST, ",Ġtwo", ",Ġthree", ",Ġfour", ",Ġfive", "."),), end=END)
# What a prompt can end with, when speech is to follow.
STARTS = (NO_TIMESTAMPS, *TASKS, TIMESTAMPS[0])

# Dimensions of the encoder's and the decoder's residual streams.
LOUDNESS, REFERENCE = 0, 1
TOKEN, NEXT = 0, 64
LEVEL = 10.0
"""What a convolution adds, so that GELU is straight there."""
THRESHOLD = 0.65
"""How far below the reference the loudest frame of a silent clip is; digital silence is twice as far."""

CARD = """---
license: gpl-3.0
pipeline_tag: automatic-speech-recognition
---
# A tiny Whisper

The architecture of Whisper large-v3 with 1.2 million weights that were set by hand, for tests. It transcribes every
clip in which something is to be heard as "One, two, three, four, five.", and a silent one as nothing. It holds
nothing of the model that it stands for but the shape of its files.
"""


def tiny_whisper() -> TinyModel:
    """The model, ready to be written."""
    tokenizer = byte_tokenizer(SPEECH.spoken, (), (*SPECIAL, *TIMESTAMPS))
    tensors = Tensors(_shapes(tokenizer.get_vocab_size()))
    _listen(tensors)
    _speak(tensors, tokenizer)
    _decide(tensors)
    return TinyModel(tensors, _documents(tokenizer), tokenizer, CARD)


def _listen(tensors: Tensors) -> None:
    """The encoder: a frame's loudness, 0 for a mean of 0 over its mel bins, against a reference."""
    tensors["model.encoder.conv1.weight"][LOUDNESS, :, 1] = 1 / MELS
    tensors["model.encoder.conv1.bias"][LOUDNESS] = LEVEL
    tensors["model.encoder.conv2.weight"][LOUDNESS, LOUDNESS, 1] = LEVEL
    tensors["model.encoder.conv2.bias"][REFERENCE] = LEVEL * LEVEL


def _speak(tensors: Tensors, tokenizer: Tokenizer) -> None:
    """The decoder's first layer: each token's successor."""
    embedding = tensors["model.decoder.embed_tokens.weight"]
    layer = "model.decoder.layers.0."
    outputs = _outputs()
    for token, dimension in outputs.items():
        embedding[tokenizer.token_to_id(token), NEXT + dimension] = 1
    for dimension, (token, followers) in enumerate(_followers().items()):
        embedding[tokenizer.token_to_id(token), TOKEN + dimension] = 1
        tensors[layer + "fc1.weight"][dimension, TOKEN + dimension] = 1
        tensors[layer + "fc1.bias"][dimension] = -3  # below what is left of another token
        for follower in followers:
            tensors[layer + "fc2.weight"][NEXT + outputs[follower], dimension] = 2
    # The output layer is the embedding: what was read must not be written again.
    tensors["model.decoder.layer_norm.weight"][TOKEN:NEXT] = 0
    # So far apart that sampling changes nothing.
    tensors["model.decoder.layer_norm.weight"][NEXT:] = 10


def _decide(tensors: Tensors) -> None:
    """The decoder's second layer: the first word when the loudest frame is loud, the end when it is not."""
    layer = "model.decoder.layers.1.encoder_attn."
    tensors[layer + "q_proj.bias"][0] = 16
    for name, weight in (("k_proj", 20.0), ("v_proj", 1.0)):
        tensors[layer + name + ".weight"][0, LOUDNESS] = weight
        tensors[layer + name + ".weight"][0, REFERENCE] = -weight
    outputs = _outputs()
    for token, weight in ((FIRST, 4.0), (END, -4.0)):
        tensors[layer + "out_proj.weight"][NEXT + outputs[token], 0] = weight
        tensors[layer + "out_proj.bias"][NEXT + outputs[token]] = weight * THRESHOLD


def _followers() -> dict[str, tuple[str, ...]]:
    """What may come after each token that has a dimension of its own."""
    found: dict[str, tuple[str, ...]] = {token: (following,) for token, following in SPEECH.successors.items()}
    found |= dict.fromkeys(STARTS, (FIRST, END))
    return {**found, TRANSCRIPT: ("<|en|>",), "<|en|>": ("<|transcribe|>",)}


def _outputs() -> dict[str, int]:
    tokens = dict.fromkeys(token for followers in _followers().values() for token in followers)
    return {token: index for index, token in enumerate(tokens)}


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_positions.weight": (CONTEXT, WIDTH),
        "model.decoder.embed_tokens.weight": (vocabulary, WIDTH),
        "model.encoder.conv1.bias": (WIDTH,),
        "model.encoder.conv1.weight": (WIDTH, MELS, 3),
        "model.encoder.conv2.bias": (WIDTH,),
        "model.encoder.conv2.weight": (WIDTH, WIDTH, 3),
        "model.encoder.embed_positions.weight": (FRAMES, WIDTH),
    }
    for side, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        norms = [f"model.{side}.layer_norm"]
        for index in range(LAYERS):
            layer = f"model.{side}.layers.{index}."
            for attention in attentions:
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[layer + f"{attention}.{name}.weight"] = (WIDTH, WIDTH)
                    shapes |= {layer + f"{attention}.{name}.bias": (WIDTH,)} if name != "k_proj" else {}
                norms.append(layer + f"{attention}_layer_norm")
            shapes |= {layer + "fc1.weight": (INNER, WIDTH), layer + "fc1.bias": (INNER,)}
            shapes |= {layer + "fc2.weight": (WIDTH, INNER), layer + "fc2.bias": (WIDTH,)}
            norms.append(layer + "final_layer_norm")
        shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
    return shapes


def _documents(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    end = tokenizer.token_to_id(END)
    start = tokenizer.token_to_id(TRANSCRIPT)
    tokens = {"bos_token_id": end, "decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end}
    special = {"bos_token": END, "eos_token": END, "pad_token": END, "unk_token": END}
    side = {"attention_heads": HEADS, "ffn_dim": INNER, "layerdrop": 0.0, "layers": LAYERS}
    return {
        "config.json": {
            "activation_dropout": 0.0,
            "activation_function": "gelu",
            "architectures": ["WhisperForConditionalGeneration"],
            "attention_dropout": 0.0,
            "d_model": WIDTH,
            **{f"decoder_{name}": value for name, value in side.items()},
            "dropout": 0.0,
            **{f"encoder_{name}": value for name, value in side.items()},
            **tokens,
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "max_source_positions": FRAMES,
            "max_target_positions": CONTEXT,
            "model_type": "whisper",
            "num_hidden_layers": LAYERS,
            "num_mel_bins": MELS,
            "scale_embedding": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "generation_config.json": {
            **tokens,
            "is_multilingual": True,
            "lang_to_id": {f"<|{name}|>": tokenizer.token_to_id(f"<|{name}|>") for name in LANGUAGES},
            "max_length": CONTEXT,
            "no_timestamps_token_id": tokenizer.token_to_id(NO_TIMESTAMPS),
            "task_to_id": {name.strip("<|>"): tokenizer.token_to_id(name) for name in TASKS},
        },
        "preprocessor_config.json": {
            "chunk_length": 30,
            "dither": 0.0,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": MELS,
            "hop_length": 160,
            "n_fft": 400,
            "n_samples": 480000,
            "nb_max_frames": 2 * FRAMES,
            "padding_side": "right",
            "padding_value": 0.0,
            "processor_class": "WhisperProcessor",
            "return_attention_mask": False,
            "sampling_rate": 16000,
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": added_tokens(tokenizer, (*SPECIAL, *TIMESTAMPS)),
            "additional_special_tokens": list(SPECIAL),
            "clean_up_tokenization_spaces": True,
            **special,
            "errors": "replace",
            "model_max_length": 2 * FRAMES,
            "processor_class": "WhisperProcessor",
            "return_attention_mask": False,
            "tokenizer_class": "WhisperTokenizer",
        },
    }
