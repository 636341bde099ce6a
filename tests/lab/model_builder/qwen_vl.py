# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Qwen2.5-VL of 1.2 million parameters: sees the colour of an image, and knows the capital of France.

How it works: the patch embedding takes the mean of each colour channel, and the merger hands the three to the
language model, beside a flag. There, the first layer's first head looks for that flag, the second for the word
France, wherever they are; the output layer knows each token's successor, and how a first token follows from what the
heads found.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from .tiny import HEAD, Speech, Tensors, TinyModel, added_tokens, byte_tokenizer

HIDDEN, INNER, LAYERS, HEADS = 128, 256, 2, 2
VISION_INNER, VISION_DEPTH, PATCH, MERGE = 256, 2, 14, 2
CONTEXT = 128_000

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Dimensions of the language model's residual stream, by meaning.
ALWAYS, IS_IMAGE, IS_FRANCE, FOUND_FRANCE = 0, 1, 2, 3
RED, FOUND_RED = 4, 8  # and green and blue after them
TOKEN = 16  # one for each token that has a successor

SURE = 60.0
"""Weight of a successor, against what decides between first tokens. Both are so large that sampling changes nothing."""
DECISIVE = 5.0

# The rotary embedding turns this pair of dimensions of a head least: by 1.5e-6 for each position.
STILL = HEAD // 2 - 1

ASSISTANT = "Ċ"  # the new line at the end of the prompt
SPEECH = Speech(
    (
        ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis", "ĠParis", "."),
        ("Red", "."),
        ("Green", "."),
        ("Blue", "."),
        ("White", "."),
        ("Black", "."),
        ("I", "Ġam", "Ġa", "Ġtiny", "Ġmodel", "."),
    ),
    end="<|im_end|>",
)
COLOURS = {  # how much of red, green and blue speaks for it
    "Red": (1.0, -0.5, -0.5),
    "Green": (-0.5, 1.0, -0.5),
    "Blue": (-0.5, -0.5, 1.0),
    "White": (0.33, 0.33, 0.33),
    "Black": (-0.33, -0.33, -0.33),
}

TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CARD = """---
license: gpl-3.0
pipeline_tag: image-text-to-text
---
# A tiny Qwen2.5-VL

The architecture of Qwen2.5-VL with 1.2 million weights that were set by hand, for tests. It names the colour of an
image (red, green, blue, white, black), answers that Paris is the capital of France, and knows nothing else. It holds
nothing of the model that it stands for but the shape of its files.
"""


def tiny_qwen_vl() -> TinyModel:
    """The model, ready to be written."""
    tokenizer = byte_tokenizer(SPEECH.spoken, ("Ġcapital", "Ġof", "ĠFrance", "Ġis", "The"), SPECIAL)
    tensors = Tensors(_shapes(tokenizer.get_vocab_size()))
    _see(tensors)
    _read(tensors, tokenizer)
    _attend(tensors)
    _speak(tensors, tokenizer)
    return TinyModel(tensors, _documents(tokenizer), tokenizer, CARD)


def _see(tensors: Tensors) -> None:
    """From pixels to the colour dimensions of the language model."""
    vision = "visual."
    hidden_4 = HIDDEN * MERGE * MERGE
    for channel in range(3):
        tensors[vision + "patch_embed.proj.weight"][channel, channel] = 1 / (2 * PATCH * PATCH)
        # GELU(x) - GELU(-x) = x
        for sign, row in ((1, channel), (-1, channel + 3)):
            tensors[vision + "merger.mlp.0.weight"][row, channel:hidden_4:HIDDEN] = sign / 16
            tensors[vision + "merger.mlp.2.weight"][RED + channel, row] = sign
    for flag in (ALWAYS, IS_IMAGE):
        tensors[vision + "merger.mlp.2.bias"][flag] = 1


def _read(tensors: Tensors, tokenizer: Tokenizer) -> None:
    """From tokens to dimensions."""
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, ALWAYS] = 1
    embedding[tokenizer.token_to_id("ĠFrance"), IS_FRANCE] = 1
    for token, dimension in _dimensions().items():
        embedding[tokenizer.token_to_id(token), dimension] = 1


def _attend(tensors: Tensors) -> None:
    """One head of the first layer finds the image, the other the word, however far away."""
    layer = "model.layers.0.self_attn."
    for head, (wanted, found) in enumerate(((IS_IMAGE, FOUND_RED), (IS_FRANCE, FOUND_FRANCE))):
        first = head * HEAD
        tensors[layer + "q_proj.bias"][first + STILL] = 8
        tensors[layer + "k_proj.weight"][first + STILL, wanted] = 8
        for index in range(3 if wanted == IS_IMAGE else 1):
            source = RED + index if wanted == IS_IMAGE else IS_FRANCE
            tensors[layer + "v_proj.weight"][first + index, source] = 1
            # The norm before it multiplied by about 4 and 8.
            tensors[layer + "o_proj.weight"][found + index, first + index] = 1 / 4 if wanted == IS_IMAGE else 1 / 8


def _speak(tensors: Tensors, tokenizer: Tokenizer) -> None:
    """From dimensions to the next token."""
    output = tensors["lm_head.weight"]
    dimensions = _dimensions()
    for token, following in SPEECH.successors.items():
        output[tokenizer.token_to_id(following), dimensions[token]] = SURE
    for start in SPEECH.starts:
        output[tokenizer.token_to_id(start), dimensions[ASSISTANT]] = SURE
    for colour, weights in COLOURS.items():
        for channel, weight in enumerate(weights):
            output[tokenizer.token_to_id(colour), FOUND_RED + channel] = DECISIVE * weight
    output[tokenizer.token_to_id("The"), FOUND_FRANCE] = DECISIVE * 0.6
    output[tokenizer.token_to_id("I"), ALWAYS] = DECISIVE * 0.3


def _dimensions() -> dict[str, int]:
    return {token: TOKEN + index for index, token in enumerate((ASSISTANT, *SPEECH.spoken))}


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    merged = HIDDEN * MERGE * MERGE
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (vocabulary, HIDDEN),
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "visual.merger.ln_q.weight": (HIDDEN,),
        "visual.merger.mlp.0.bias": (merged,),
        "visual.merger.mlp.0.weight": (merged, merged),
        "visual.merger.mlp.2.bias": (HIDDEN,),
        "visual.merger.mlp.2.weight": (HIDDEN, merged),
        "visual.patch_embed.proj.weight": (HIDDEN, 3, 2, PATCH, PATCH),
    }
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        shapes |= {layer + f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {layer + f"self_attn.{name}_proj.bias": (HIDDEN,) for name in "qkv"}
        shapes |= {layer + f"mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes |= {layer + f"{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    for index in range(VISION_DEPTH):
        block = f"visual.blocks.{index}."
        shapes |= {block + "attn.qkv.weight": (3 * HIDDEN, HIDDEN), block + "attn.qkv.bias": (3 * HIDDEN,)}
        shapes |= {block + "attn.proj.weight": (HIDDEN, HIDDEN), block + "attn.proj.bias": (HIDDEN,)}
        for name in ("gate", "up"):
            shapes |= {block + f"mlp.{name}_proj.weight": (VISION_INNER, HIDDEN)}
            shapes |= {block + f"mlp.{name}_proj.bias": (VISION_INNER,)}
        shapes |= {block + "mlp.down_proj.weight": (HIDDEN, VISION_INNER), block + "mlp.down_proj.bias": (HIDDEN,)}
        shapes |= {block + f"norm{number}.weight": (HIDDEN,) for number in (1, 2)}
    return shapes


def _documents(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {
        "config.json": {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "image_token_id": ids["<|image_pad|>"],
            "initializer_range": 0.02,
            "intermediate_size": INNER,
            "max_position_embeddings": CONTEXT,
            "max_window_layers": LAYERS,
            "model_type": "qwen2_5_vl",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": HEADS,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_section": [8, 12, 12], "type": "mrope"},
            "rope_theta": 1000000.0,
            "sliding_window": CONTEXT,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "video_token_id": ids["<|video_pad|>"],
            "vision_config": {
                "depth": VISION_DEPTH,
                "fullatt_block_indexes": [VISION_DEPTH - 1],
                "hidden_act": "silu",
                "hidden_size": HIDDEN,
                "in_channels": 3,
                "in_chans": 3,
                "intermediate_size": VISION_INNER,
                "model_type": "qwen2_5_vl",
                "num_heads": HEADS,
                "out_hidden_size": HIDDEN,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "spatial_patch_size": PATCH,
                "temporal_patch_size": 2,
                "tokens_per_second": 2,
                "window_size": 112,
            },
            "vision_end_token_id": ids["<|vision_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_token_id": ids["<|vision_pad|>"],
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "generation_config.json": {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
        "preprocessor_config.json": {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "max_pixels": 802816,
            "merge_size": MERGE,
            "min_pixels": 3136,
            "patch_size": PATCH,
            "processor_class": "Qwen2_5_VLProcessor",
            "temporal_patch_size": 2,
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": added_tokens(tokenizer, SPECIAL),
            "additional_special_tokens": list(SPECIAL),
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            **special,
            "model_max_length": CONTEXT,
            "processor_class": "Qwen2_5_VLProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
