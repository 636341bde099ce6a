# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tiny models share: real architectures whose few weights are set by hand, so that they answer what was asked.

No weight is trained and none is random. All sublayers are zero but a few that read and write single dimensions of the
residual stream, each with one meaning. So an answer that comes out right has gone through the engine's real
tokenizer, preprocessor, encoder, attention and sampler; and a few lines of this code say why it is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from .place import WEIGHTS, Array, Built, bfloat16, place, write_json, write_weights

HEAD = 64
"""Size of an attention head; vLLM's CPU attention takes 32 and more, and fails for less at the first request."""

Shapes = Mapping[str, Sequence[int]]


class Tensors:
    """The tensors of a model, by name: ones where they scale a norm, else zero until something is written to them."""

    def __init__(self, shapes: Shapes) -> None:
        self._values: dict[str, Array] = {
            name: np.full(tuple(shape), float(_is_norm(name)), np.float32) for name, shape in sorted(shapes.items())
        }

    def __getitem__(self, name: str) -> Array:
        return self._values[name]

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each, in name order."""
        return {name: values.shape for name, values in self._values.items()}

    @property
    def bits(self) -> list[Array]:
        """Each as bit patterns of bfloat16, in name order."""
        return [bfloat16(values) for values in self._values.values()]


def _is_norm(name: str) -> bool:
    *_path, module, kind = name.split(".")
    return kind == "weight" and ("norm" in module or module == "ln_q")


@dataclass(frozen=True)
class TinyModel:
    """All that is in the directory of a tiny model."""

    tensors: Tensors
    documents: Mapping[str, Mapping[str, Any]]
    tokenizer: Tokenizer
    card: str

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted((*self.documents, "README.md", "tokenizer.json", WEIGHTS)))

    def build(self, out: Path) -> Built:
        """Write the model to the directory ``out``, unless it is there as it is. Raises BuildError."""
        digest = self._digest()
        return place(out, digest, self.files, lambda target: self._write(target, digest))

    def _digest(self) -> str:
        seen = hashlib.sha256(json.dumps([self.documents, self.card, self.tensors.layout]).encode())
        seen.update(self.tokenizer.to_str().encode())
        for values in self.tensors.bits:
            seen.update(values.data)
        return seen.hexdigest()

    def _write(self, target: Path, digest: str) -> None:
        write_weights(target / WEIGHTS, self.tensors.layout, self.tensors.bits, digest)
        for name, value in self.documents.items():
            write_json(target / name, value)
        self.tokenizer.save(str(target / "tokenizer.json"))
        (target / "README.md").write_text(self.card, encoding="utf-8")


@dataclass
class Speech:
    """Sentences as chains of tokens, each of which has one successor.

    ``spoken`` are tokens of the vocabulary in the order of their ids; a token that no merge leads to is never read
    from a prompt, only written.
    """

    sentences: Sequence[Sequence[str]]
    end: str
    successors: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.successors = {}
        for sentence in self.sentences:
            for token, following in zip(sentence, (*sentence[1:], self.end), strict=True):
                if self.successors.setdefault(token, following) != following:
                    raise ValueError(f"{token!r} has two successors")

    @property
    def starts(self) -> list[str]:
        return [sentence[0] for sentence in self.sentences]

    @property
    def spoken(self) -> list[str]:
        return list(self.successors)


def byte_tokenizer(spoken: Sequence[str], read: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """Byte-level BPE over the 256 bytes, that can write the tokens ``spoken``, and reads the words ``read`` as one."""
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in read:
        for end in range(1, len(word)):
            pair = (word[:end], word[end])
            merges += [pair] if pair not in merges else []
            vocab.setdefault(word[: end + 1], len(vocab))
    for token in spoken:
        vocab.setdefault(token, len(vocab))
    built = Tokenizer(BPE(vocab=vocab, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return built


def added_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, Any]:
    """``added_tokens_decoder`` of tokenizer_config.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(tokenizer.token_to_id(name)): {"content": name, **flags} for name in names}
