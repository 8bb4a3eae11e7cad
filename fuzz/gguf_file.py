"""GGUF files of a small model, written value by value, so that each can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from fuzz.mutate import EDGES, NUMBERS, TEXTS, mutate_bytes, mutate_text

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
FORMS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, ALIGNMENT = 64, 64, 2, 1, 32, 32
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


@dataclass(frozen=True)
class Value:
    """A key's value: its type, for arrays the type of the items, and what is written."""

    kind: int
    value: Any
    item: int = 0
    count: int = -1  # as claimed; -1: as many as there are


@dataclass(frozen=True)
class TensorRow:
    """A row of the tensor table; its data are zeros."""

    name: str
    shape: tuple[int, ...]  # rows first
    kind: int = 0  # F32
    offset: int = 0


@dataclass(frozen=True)
class Gguf:
    """A whole file."""

    keys: tuple[tuple[str, Value], ...]
    tensors: tuple[TensorRow, ...]
    version: int = 3

    def to_bytes(self) -> bytes:
        """The file."""
        head = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))]
        for key, value in self.keys:
            head += [_text(key), struct.pack("<I", value.kind & 0xFFFFFFFF), _value(value)]
        for row in self.tensors:
            dims = [size & 0xFFFFFFFFFFFFFFFF for size in reversed(row.shape)]
            head.append(
                _text(row.name)
                + struct.pack("<I", len(dims))
                + struct.pack(f"<{len(dims)}Q", *dims)
            )
            head.append(struct.pack("<IQ", row.kind & 0xFFFFFFFF, row.offset & 0xFFFFFFFFFFFFFFFF))
        data = b"".join(head)
        data += bytes(-len(data) % ALIGNMENT)
        end = max((t.offset + _nbytes(t) for t in self.tensors), default=0)
        return data + b"\x01\x3c" * (min(max(end, 0), 1 << 18) // 2)


def _nbytes(row: TensorRow) -> int:
    total = 4
    for size in row.shape:
        total *= size
    return total


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if value.kind == ARRAY:
        items = value.value if isinstance(value.value, (list, tuple)) else [value.value]
        count = len(items) if value.count < 0 else value.count
        head = struct.pack("<IQ", value.item & 0xFFFFFFFF, count & 0xFFFFFFFFFFFFFFFF)
        return head + b"".join(_scalar(value.item, item) for item in items)
    return _scalar(value.kind, value.value)


def _scalar(kind: int, value: Any) -> bytes:
    if kind == TEXT:
        return _text(str(value))
    form = FORMS.get(kind, "I")
    if form in "fd":
        try:
            return struct.pack(f"<{form}", float(value))
        except (OverflowError, TypeError, ValueError):
            return struct.pack(f"<{form}", float("nan"))
    number = int(value) if isinstance(value, (int, float)) and abs(value) < 1e30 else 0
    width = struct.calcsize(form)
    return (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")


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
        offset += -(-_nbytes(rows[-1]) // ALIGNMENT) * ALIGNMENT
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
    end = max(row.offset + -(-_nbytes(row) // ALIGNMENT) * ALIGNMENT for row in file.tensors)
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


def mutated_gguf(rng: Random, _: Sequence[bytes]) -> bytes:
    """One of the sound files with wrong values."""
    return mutated_gguf_of(rng, rng.choice(SAMPLES))


def mutated_gguf_of(rng: Random, file: Gguf) -> bytes:
    """A file with wrong values; one time in five its bytes are changed as well."""
    for _count in range(rng.choice((1, 1, 2, 3))):
        file = _mutate(rng, file)
    data = file.to_bytes()
    return mutate_bytes(rng, data[: 1 << 13]) + data[1 << 13 :] if rng.randrange(5) == 0 else data


def _mutate(rng: Random, file: Gguf) -> Gguf:
    if rng.random() < 0.65 or not file.tensors:
        return replace(file, keys=_mutate_keys(rng, list(file.keys)))
    if rng.randrange(30) == 0:
        return replace(file, version=rng.choice((0, 1, 2, 4, 3 << 24, 1 << 31)))
    rows = list(file.tensors)
    at = rng.randrange(len(rows))
    row = rows[at]
    what = rng.randrange(6)
    if what == 0:
        del rows[at]
    elif what == 1:
        rows.append(
            replace(
                row, name=rng.choice((row.name, "v.patch.weight", "blk.1.attn_q.weight", *TEXTS))
            )
        )
    elif what == 2:
        size = rng.choice((0, 1, 2, 31, 32, 33, 1 << 20, 1 << 32, 1 << 63, (1 << 64) - 1))
        rows[at] = replace(row, shape=(size, *row.shape[1:]))
    elif what == 3:
        rows[at] = replace(row, shape=rng.choice(((), row.shape * 2, row.shape[::-1], (1,) * 9)))
    elif what == 4:
        rows[at] = replace(row, kind=rng.choice((*range(42), 255, 1 << 31)))
    else:
        rows[at] = replace(
            row, offset=rng.choice((1, 31, 32, row.offset + 8, 1 << 40, (1 << 64) - 32))
        )
    return replace(file, tensors=tuple(rows))


def _mutate_keys(rng: Random, keys: list[tuple[str, Value]]) -> tuple[tuple[str, Value], ...]:
    at = rng.randrange(len(keys)) if keys else 0
    what = rng.randrange(9)
    if not keys or what == 0:
        keys.insert(at, (_new_key(rng, keys), _any(rng)))
        return tuple(keys)
    key, value = keys[at]
    if what == 1:
        del keys[at]
    elif what == 2:
        keys.append(keys[at])
    elif what == 3:
        keys[at] = key, replace(value, kind=rng.choice((*range(14), 255)))
    elif what == 4 and value.kind == ARRAY:
        count = rng.choice((0, 1, len(value.value) + 1, 1 << 20, 1 << 40, (1 << 64) - 1))
        keys[at] = key, replace(value, count=count)
    elif what == 5 and value.kind == ARRAY:
        keys[at] = key, replace(value, item=rng.choice((*range(14), 255)))
    elif what == 6:
        keys[at] = key, _any(rng)
    else:
        keys[at] = key, _changed(rng, value)
    return tuple(keys)


def _new_key(rng: Random, keys: list[tuple[str, Value]]) -> str:
    """A key that the reader may know."""
    architecture = str(dict(keys).get("general.architecture", Value(TEXT, "llama")).value)[:20]
    names = (
        "expert_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.original_context_length",
        "attention.scale",
        "attention.sliding_window_pattern",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "vocab_size",
        "rope.dimension_sections",
        "attention.layer_norm_epsilon",
        "logit_scale",
        "residual_scale",
        "pooling_type",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_log_multiplier",
        "rope.freq_base_swa",
    )
    text = (
        "precompiled_charsmap",
        "add_space_prefix",
        "remove_extra_whitespaces",
        "unknown_token_id",
        "eot_token_id",
        "eom_token_id",
        "padding_token_id",
        "add_eos_token",
        "added_tokens",
        "pre",
        "merges",
        "scores",
        "suffix_token_id",
    )
    sampling = ("temp", "top_k", "top_p", "min_p", "penalty_repeat")
    return rng.choice(
        (
            f"{architecture}.{rng.choice(names)}",
            f"tokenizer.ggml.{rng.choice(text)}",
            f"general.sampling.{rng.choice(sampling)}",
            "split.count",
            "split.no",
            "general.file_type",
            "general.type",
            "general.quantization_version",
            rng.choice(TEXTS),
        )
    )


def _any(rng: Random) -> Value:
    kind = rng.randrange(13)
    if kind != ARRAY:
        return Value(kind, rng.choice(TEXTS) if kind == TEXT else _number(rng))
    item = rng.choice((TEXT, I32, F32, U8, BOOL, ARRAY, U64))
    count = rng.choice((0, 1, 2, 5, 267))
    return Value(
        ARRAY, [rng.choice(TEXTS) if item == TEXT else _number(rng) for _ in range(count)], item
    )


def _number(rng: Random) -> Any:
    number = rng.choice((*EDGES, *NUMBERS))
    return 0 if number is None else number


def _changed(rng: Random, value: Value) -> Value:
    if value.kind == ARRAY and value.value:
        items = list(value.value)
        at = rng.randrange(len(items))
        items[at] = mutate_text(rng, items[at]) if isinstance(items[at], str) else _number(rng)
        if rng.randrange(3) == 0:
            other = rng.randrange(len(items))
            items[other] = items[at]
        return replace(value, value=items)
    if value.kind == TEXT:
        names = (
            "llama",
            "qwen2",
            "qwen3",
            "gemma3",
            "gpt2",
            "bert",
            "default",
            "llama-bpe",
            "qwen2",
            "tekken",
            "t5",
            "rwkv",
            "none",
        )
        return replace(
            value,
            value=mutate_text(rng, str(value.value)) if rng.randrange(2) else rng.choice(names),
        )
    return replace(value, value=_number(rng))
