"""The cache of keys and values: its size to the byte, and what 16 and 8 bits do to attention."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels_material import Conversation, assert_close

from picoedge.kernels.api import Attend, AttentionShape, Kernels, KvCache, kv_cache_bytes
from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.loader import load_kernels
from picoedge.kernels.native import NativeKernels
from picoedge.kernels.reference.backend import NumpyKernels
from picoedge.kernels.reference.kv_cache import quantize_rows
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack


@pytest.fixture(scope="module")
def native() -> Iterator[NativeKernels]:
    made = load_kernels("native", 2)
    assert isinstance(made, NativeKernels)
    yield made
    made.close()


@pytest.fixture(scope="module")
def numpy() -> Iterator[NumpyKernels]:
    made = NumpyKernels(2)
    yield made
    made.close()


# ---- Size ------------------------------------------------------------------------------------


@given(
    st.integers(1, 200), st.integers(1, 9), st.integers(1, 20).map(lambda i: 8 * i),
    st.sampled_from([32, 16, 8]),
)  # fmt: skip
def test_the_size_is_known_to_the_byte(n_ctx: int, heads: int, d: int, bits: int) -> None:
    cache = KvCache(n_ctx, AttentionShape(heads, heads, d, 0.1), bits)
    arrays = [values for values in vars(cache).values() if isinstance(values, np.ndarray)]
    assert len(arrays) == (4 if bits == 8 else 2)
    assert cache.nbytes == sum(values.nbytes for values in arrays)
    assert cache.nbytes == kv_cache_bytes(n_ctx, heads, d, bits)


def test_the_size_of_a_known_cache() -> None:
    """A layer of Llama 2 7B: 2 x 32 heads, 2048 positions, 128 dimensions (8 bits: 4 scales)."""
    numbers = 2 * 32 * 2048
    assert kv_cache_bytes(2048, 32, 128, 32) == numbers * 512
    assert kv_cache_bytes(2048, 32, 128, 16) == numbers * 256
    assert kv_cache_bytes(2048, 32, 128, 8) == numbers * 136
    assert kv_cache_bytes(2033, 32, 128, 8) == numbers * 136  # whole tiles of 16 positions
    assert kv_cache_bytes(16, 1, 48, 8) == 2 * 16 * (48 + 2 * 2)  # 32 dimensions and 16


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("bits", [16, 8])
def test_positions_never_written_take_no_memory(
    native: NativeKernels, numpy: NumpyKernels, bits: int
) -> None:
    shape = AttentionShape(1, 1, 128, 0.1)
    rope = np.ones((1, 64), np.float32), np.zeros((1, 64), np.float32)
    qkv, out = np.ones((1, 3 * 128), np.float32), np.empty((1, 128), np.float32)
    for kernels in (native, numpy):
        before = resident_bytes()
        cache = KvCache(1 << 20, shape, bits)
        kernels.attend(Attend(qkv, shape, rope, None, 1e-6, cache, out))(1, 0)
        taken = resident_bytes() - before
        assert cache.nbytes > 250 << 20
        assert taken < 32 << 20  # a few huge pages, and the backend's own buffers
        del cache


# ---- Contents --------------------------------------------------------------------------------


def held(cache: KvCache, shape: AttentionShape, kernels: Kernels) -> tuple[list[F32], list[F32]]:
    """Whole numbers and scales of an 8-bit cache, keys then values: [kv, n, d] and [kv, n, B]."""
    heads, d, blocks = shape.kv_heads, shape.head_dim, -(-shape.head_dim // 32)
    assert cache.key_scales is not None
    assert cache.value_scales is not None
    if not isinstance(kernels, NativeKernels):
        return [cache.keys, cache.values], [cache.key_scales, cache.value_scales]

    def by_row(tiles: Array, columns: int) -> Array:
        return tiles.reshape(heads, -1, columns, 16).swapaxes(2, 3).reshape(heads, -1, columns)

    rows = [by_row(cache.keys, d), cache.values.reshape(heads, -1, d)]
    return rows, [by_row(cache.key_scales, blocks), cache.value_scales.reshape(heads, -1, blocks)]


@pytest.mark.parametrize("head_dim", [16, 48, 64])
def test_both_backends_hold_the_same_numbers(
    native: NativeKernels, numpy: NumpyKernels, head_dim: int
) -> None:
    shape = AttentionShape(4, 2, head_dim, 0.2)
    talk = replace(Conversation.draw(shape, 50, 5, bits=8), norms=None)
    talk.qkv[7] *= 1e9  # scales beyond an f16
    talk.qkv[8] *= 1e-7  # below its least normal number
    talk.qkv[9] = 0
    contents = []
    for kernels in (native, numpy):
        cache = KvCache(50, shape, 8)
        out = np.empty((50, 4 * head_dim), np.float32)
        kernels.attend(Attend(talk.qkv.copy(), shape, talk.rope, None, 1e-6, cache, out))(50, 0)
        assert np.isfinite(out).all()
        contents.append(held(cache, shape, kernels))
    for ours, theirs in zip(*contents, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_sums_of_both_backends_differ_by_rounding_alone(
    native: NativeKernels, numpy: NumpyKernels
) -> None:
    for shape in (AttentionShape(6, 2, 64, 0.1), AttentionShape(2, 2, 80, 0.1, 20)):
        talk = replace(Conversation.draw(shape, 300, 6, bits=8), norms=None)
        assert_close(talk.attend(native), talk.attend(numpy), 2e-6)


def test_a_block_is_rounded_to_half_a_step() -> None:
    rows = np.random.default_rng(1).standard_normal((40, 80)).astype(np.float32)
    rows[3], rows[4, :32], rows[5, 64:] = 0, 0, 1e6
    quants, scales = quantize_rows(rows)
    steps = np.repeat(scales.astype(np.float32), 32, axis=1)[:, :80]
    assert (np.abs(quants * steps - rows) <= 0.50001 * steps).all()
    assert not quants[3].any()
    assert scales[3].tolist() == [0, 0, 0]
    assert scales[4, 0] == 0
    amax = np.abs(rows[0, :32]).max()
    assert scales[0, 0] == np.float16(amax / np.float32(127))
    assert np.abs(quants[0, :32]).max() == 127


def test_halves_are_rounded_to_even() -> None:
    row = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5] + [0.0] * 25], np.float32)
    assert quantize_rows(row)[0][0, :7].tolist() == [127, 0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("head_dim", [24, 40])
def test_head_sizes_of_no_whole_vectors(
    native: NativeKernels, numpy: NumpyKernels, head_dim: int
) -> None:
    talk = replace(Conversation.draw(AttentionShape(4, 2, head_dim, 0.2), 40, 7), norms=None)
    exact = replace(talk, bits=32).attend(numpy)
    narrow_one = replace(talk, bits=8)
    assert 0 < error(narrow_one.attend(numpy), exact) < 0.02
    np.testing.assert_array_equal(narrow_one.attend(native), narrow_one.attend(numpy))


# ---- What it costs ---------------------------------------------------------------------------


def error(got: F32, want: F32) -> float:
    """Relative, of all together."""
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("head_dim", [64, 112])
def test_each_width_is_nearer_the_exact_cache(
    backend: str, head_dim: int, native: NativeKernels, numpy: NumpyKernels
) -> None:
    kernels: Kernels = native if backend == "native" else numpy
    talk = Conversation.draw(AttentionShape(6, 2, head_dim, 0.05), 200, 8)
    want = replace(talk, bits=32).attend(numpy)
    errors = [error(replace(talk, bits=bits).attend(kernels), want) for bits in (16, 8)]
    assert 1e-6 < errors[0] < 5e-4 < errors[1] < 2e-2


def test_a_model_says_the_same_with_8_bits(native: NativeKernels, smollm2_pack: Path) -> None:
    pack, prompt, logits = Pack.open(smollm2_pack), [(7919 * i) % 4000 + 51 for i in range(12)], []
    for bits in (16, 8):
        model = Transformer(pack, load_kernels("native", 2), 112, kv_bits=bits)
        heads, d = model.config.num_key_value_heads, model.config.head_dim
        want = model.config.num_hidden_layers * kv_cache_bytes(112, heads, d, bits)
        assert model.memory_bytes()["kv_cache"] == want
        if bits == 16:
            prompt += continuation(model, prompt, 100)
        logits.append(np.concatenate([rows.copy() for rows in model.forward_all(prompt, 0)]))
        model.close()
    assert 1e-4 < error(logits[1], logits[0]) < 0.06
    assert (logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).mean() > 0.93


def continuation(model: Transformer, prompt: list[int], n: int) -> list[int]:
    """Its n greedy tokens."""
    tokens = [int(model.forward(prompt, 0).argmax())]
    while len(tokens) < n:
        at = len(prompt) + len(tokens) - 1
        tokens.append(int(model.forward(tokens[-1:], at).argmax()))
    return tokens
