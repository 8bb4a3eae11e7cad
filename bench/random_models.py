"""Shapes of real models, to be filled with random weights: nothing has to be fetched.

What a program reads and computes does not depend on what the numbers are. They are small enough
for activations to stay finite.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WEIGHT_SD = 0.02
NORM_SD = 0.05  # around 1
_UNKNOWN, _CONTROL, _NORMAL, _BYTE = 2, 3, 1, 6  # kinds of token, in SentencePiece's numbers
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shape:
    """A llama model's shape, in Hugging Face's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_attention_heads


TINYLLAMA = Shape(2048, 5632, 22, 32, 4, 32000, 2048)
SMOLLM2 = Shape(576, 1536, 30, 9, 3, 49152, 8192)
LLAMA_70B = Shape(8192, 28672, 80, 64, 8, 32000, 4096)


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tokenizer_metadata(vocab_size: int) -> dict[str, Any]:
    """A SentencePiece vocabulary as a GGUF's key-values: three special tokens, bytes, pieces."""
    special = ["<unk>", "<s>", "</s>"]
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    rest = vocab_size - len(special) - len(every_byte)
    pieces = list(itertools.islice(_pieces(), rest))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*special, *every_byte, *pieces],
        "tokenizer.ggml.scores": [-float(i) for i in range(vocab_size)],
        "tokenizer.ggml.token_type": [
            _UNKNOWN,
            _CONTROL,
            _CONTROL,
            *[_BYTE] * 256,
            *[_NORMAL] * rest,
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _pieces() -> Iterator[str]:
    """Single characters, then runs of letters, with a space before them and without."""
    yield "▁"
    yield from (chr(code) for code in range(0x21, 0x7F))
    for length in itertools.count(1):
        for letters in itertools.product(_LETTERS, repeat=length):
            text = "".join(letters)
            yield "▁" + text
            if length > 1:
                yield text
