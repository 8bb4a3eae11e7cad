"""Sound GGUF files with wrong keys, values, tensors and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from fuzz.gguf.file import ARRAY, BOOL, F32, I32, TEXT, U8, U64, Gguf, Value
from fuzz.gguf.models import SAMPLES
from fuzz.mutate import EDGES, NUMBERS, TEXTS, mutate_bytes, mutate_text


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
    elif what == 4 and isinstance(value.value, list):
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
    if isinstance(value.value, list) and value.value:
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
