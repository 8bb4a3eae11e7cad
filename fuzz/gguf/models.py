"""GGUF files of small sound models: one layer, vocabularies of two kinds, scalings of rope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fuzz.gguf.file import (
    ALIGNMENT,
    ARRAY,
    BOOL,
    F32,
    I32,
    TEXT,
    U32,
    Gguf,
    TensorRow,
    Value,
    row_bytes,
)

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 64, 64, 2, 1, 32
WORDS = (
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{i:02X}>" for i in range(256)),
    "▁",
    "a",
    "b",
    "c",
    "▁a",
    "ab",
    "abc",
    "bc",
)
ALPHABET = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
ALPHABET += [chr(256 + i) for i in range(256 - len(ALPHABET))]


def model(architecture: str, byte_level: bool) -> Gguf:
    """A sound model of one layer."""
    sizes = {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM,
    }
    floats = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
    if architecture == "gemma3":
        sizes["attention.sliding_window"] = 16
    keys = [
        ("general.architecture", Value(TEXT, architecture)),
        ("general.alignment", Value(U32, ALIGNMENT)),
    ]
    keys += [(f"{architecture}.{name}", Value(U32, size)) for name, size in sizes.items()]
    keys += [(f"{architecture}.{name}", Value(F32, number)) for name, number in floats.items()]
    vocabulary = byte_level_keys() if byte_level else sentencepiece_keys()
    return Gguf((*keys, *vocabulary), tensor_rows(architecture, _count(vocabulary)))


def _count(keys: Sequence[tuple[str, Value]]) -> int:
    return len(dict(keys)["tokenizer.ggml.tokens"].value)


def sentencepiece_keys() -> list[tuple[str, Value]]:
    """Keys of a vocabulary as Llama's first models have it."""
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(WORDS) - 259)]
    return [
        ("tokenizer.ggml.model", Value(TEXT, "llama")),
        ("tokenizer.ggml.tokens", Value(ARRAY, list(WORDS), TEXT)),
        ("tokenizer.ggml.scores", Value(ARRAY, [-float(i) for i in range(len(WORDS))], F32)),
        ("tokenizer.ggml.token_type", Value(ARRAY, kinds, I32)),
        *_ends(),
    ]


def byte_level_keys() -> list[tuple[str, Value]]:
    """Keys of a byte-level vocabulary."""
    tokens = ["<|end|>", "<|start|>", *ALPHABET, "ab", "abc", "<tool>"]
    return [
        ("tokenizer.ggml.model", Value(TEXT, "gpt2")),
        ("tokenizer.ggml.pre", Value(TEXT, "smollm")),
        ("tokenizer.ggml.tokens", Value(ARRAY, tokens, TEXT)),
        ("tokenizer.ggml.token_type", Value(ARRAY, [3, 3, *[1] * (len(tokens) - 3), 4], I32)),
        ("tokenizer.ggml.merges", Value(ARRAY, ["a b", "ab c"], TEXT)),
        *_ends(),
    ]


def _ends() -> list[tuple[str, Value]]:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return [
        ("tokenizer.ggml.bos_token_id", Value(U32, 1)),
        ("tokenizer.ggml.eos_token_id", Value(U32, 2)),
        ("tokenizer.ggml.add_bos_token", Value(BOOL, 1)),
        ("tokenizer.chat_template", Value(TEXT, template)),
    ]


def tensor_rows(architecture: str, vocabulary: int) -> tuple[TensorRow, ...]:
    """The tensors of `model`, one after another."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_gate.weight": (INNER, HIDDEN),
        "blk.0.ffn_up.weight": (INNER, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, INNER),
    }
    if architecture in ("gemma3", "qwen3"):
        shapes |= {"blk.0.attn_q_norm.weight": (HEAD_DIM,), "blk.0.attn_k_norm.weight": (HEAD_DIM,)}
    if architecture == "gemma3":
        shapes |= {
            "blk.0.post_attention_norm.weight": (HIDDEN,),
            "blk.0.post_ffw_norm.weight": (HIDDEN,),
        }
    rows, offset = [], 0
    for name, shape in shapes.items():
        rows.append(TensorRow(name, shape, 0, offset))
        offset += -(-row_bytes(rows[-1]) // ALIGNMENT) * ALIGNMENT
    return tuple(rows)


PLAIN = tuple(
    model(name, byte) for name in ("llama", "qwen2", "qwen3", "gemma3") for byte in (False, True)
)


def _with(
    file: Gguf, *keys: tuple[str, Value], rows: Sequence[tuple[str, tuple[int, ...]]] = ()
) -> Gguf:
    """The file with more keys, named without their architecture, and more tensors."""
    architecture = dict(file.keys)["general.architecture"].value
    named = tuple((f"{architecture}.{name}", value) for name, value in keys)
    end = max(row.offset + -(-row_bytes(row) // ALIGNMENT) * ALIGNMENT for row in file.tensors)
    more = tuple(TensorRow(name, shape, 0, end + 4096 * i) for i, (name, shape) in enumerate(rows))
    return replace(file, keys=(*file.keys, *named), tensors=(*file.tensors, *more))


_YARN = (
    ("rope.scaling.type", Value(TEXT, "yarn")),
    ("rope.scaling.factor", Value(F32, 4.0)),
    ("rope.scaling.original_context_length", Value(U32, 32)),
    ("rope.scaling.yarn_log_multiplier", Value(F32, 0.1)),
)
SAMPLES = (
    *PLAIN,
    _with(PLAIN[0], *_YARN),
    _with(
        PLAIN[0],
        ("rope.scaling.type", Value(TEXT, "linear")),
        ("rope.scaling.factor", Value(F32, 2.0)),
    ),
    _with(PLAIN[0], rows=[("rope_freqs.weight", (HEAD_DIM // 2,))]),
    _with(
        PLAIN[0],
        rows=[
            ("rope_factors_long.weight", (HEAD_DIM // 2,)),
            ("rope_factors_short.weight", (HEAD_DIM // 2,)),
        ],
    ),
    _with(
        PLAIN[0],
        ("vocab_size", Value(U32, 266)),
        ("attention.scale", Value(F32, 0.1)),
        rows=[("output.weight", (267, HIDDEN))],
    ),
    _with(
        PLAIN[-1],
        ("attention.sliding_window_pattern", Value(ARRAY, [1], BOOL)),
        rows=[("v.patch.weight", (4,)), ("mm.proj.weight", (4, 4))],
    ),
    _with(
        PLAIN[-2],
        ("attention.sliding_window_pattern", Value(U32, 6)),
        ("rope.freq_base_swa", Value(F32, 1e4)),
    ),
)
