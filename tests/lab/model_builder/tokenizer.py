# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GGUF to Hugging Face: the tokenizer of the SmolLM family (byte-level BPE that splits digits)."""

from __future__ import annotations

from typing import Any

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from .errors import BuildError
from .llama import metadata, special_ids


def tokenizer(reader: GGUFReader) -> Tokenizer:
    """The tokenizer a GGUF file describes. Raises BuildError for a kind this builder would get wrong."""
    kind = (metadata(reader, "tokenizer.ggml.model"), metadata(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise BuildError(f"the GGUF file's tokenizer is {'/'.join(kind)}. Expected: gpt2/smollm. Use another file.")
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in metadata(reader, "tokenizer.ggml.merges")]
    built = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _control(reader).values()])
    if built.get_vocab_size() != len(tokens):
        raise BuildError(
            f"the tokenizer holds {built.get_vocab_size()} tokens, the GGUF file {len(tokens)}. The file is damaged."
        )
    return built


def tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    """``tokenizer_config.json``, with the chat template."""
    # PreTrainedTokenizerFast takes tokenizer.json as it is. GPT2Tokenizer, which upstream names, builds its own
    # pre-tokenizer in transformers 5 and no longer splits digits.
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): _added(token) for index, token in _control(reader).items()},
        "additional_special_tokens": [special_map(reader)["bos_token"], special_map(reader)["eos_token"]],
        **special_map(reader),
        "chat_template": metadata(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata(reader, "llama.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def special_map(reader: GGUFReader) -> dict[str, str]:
    """The special tokens by role, as text."""
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    return {role: tokens[index] for role, index in special_ids(reader).items()}


def _control(reader: GGUFReader) -> dict[int, str]:
    tokens, types = metadata(reader, "tokenizer.ggml.tokens"), metadata(reader, "tokenizer.ggml.token_type")
    return {index: tokens[index] for index, kind in enumerate(types) if kind == TokenType.CONTROL}


def _added(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
