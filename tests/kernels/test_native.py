"""The C kernels: like NumPy within rounding, and the same bits however they are run.

A level compiled for no processor in particular is the measure: every level that this processor
can run, with any number of threads, any chunk of tokens and any cut of the weights, must agree
with it to the last bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_levels import Backends, built_levels
from kernels_material import (
    EPS,
    Conversation,
    Input,
    assert_close,
    chunks_of,
    draw_shards,
    pack,
    projected_alike,
    random_f32,
    rows_of,
    summed,
    summed_alike,
)

from picoedge.kernels.api import (
    Attend,
    AttentionShape,
    Kernels,
    KvCache,
    LowRank,
    LowRankPart,
    Project,
    ProjectSum,
    Residual,
)
from picoedge.kernels.arrays import Array
from picoedge.kernels.blocks import FORMATS, Weights
from picoedge.kernels.native import NativeKernels, open_library

QUANTIZED = [name for name, fmt in FORMATS.items() if fmt.bits < 32]
fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # a failure must come back on the next run
    suppress_health_check=[HealthCheck.too_slow],
)


# ---- project ---------------------------------------------------------------------------------


shapes = st.fixed_dictionaries(
    {
        "name": st.sampled_from(QUANTIZED),
        "n": st.integers(1, 19),
        "rows": st.integers(1, 50),
        "blocks": st.integers(1, 9),
        "count": st.integers(1, 4),
        "seed": st.integers(0, 2**20),
    }
)


@fuzz
@given(shapes, st.lists(st.integers(0, 100), max_size=3))
def test_project(backends: Backends, shape: dict[str, Any], cuts: list[int]) -> None:
    name, n, seed = shape["name"], shape["n"], shape["seed"]
    cols = 32 * shape["blocks"]
    shards = draw_shards(name, shape["rows"], cols, shape["count"], seed)
    other = pack("q8", draw_shards("q8", 5, cols, 1, seed))
    weights = [pack(name, shards), other]
    biases = [random_f32(seed, weights[0].total_rows), None]
    source = Input.draw(n, cols, seed)
    want = projected_alike(backends, source, weights, biases, cuts)
    numpy = source.project(backends.numpy, weights, biases)
    assert_close(want[1], numpy[1], 1e-6)
    assert_close(want[0], numpy[0], 5e-3)  # an int8 step of an activation may differ


@fuzz
@given(shapes, st.integers(0, 100))
def test_a_row_does_not_depend_on_the_rows_beside_it(
    backends: Backends, shape: dict[str, Any], cut: int
) -> None:
    """Boards hold some shards each, and a shard may hold any run of rows."""
    name, seed, count = shape["name"], shape["seed"], shape["count"]
    shards = draw_shards(name, shape["rows"], 32 * shape["blocks"], count, seed)
    source = Input.draw(shape["n"], 32 * shape["blocks"], seed)
    whole, _ = source.project(backends.portable, [pack(name, shards)])
    runs = list(chunks_of(shape["rows"], [cut]))
    for kernels in backends.native:
        boards = [source.project(kernels, [pack(name, [shard])])[0] for shard in shards]
        np.testing.assert_array_equal(np.hstack(boards), whole, kernels.name)
        parts = [pack(name, [rows_of(q, slice(*run))]) for q in shards for run in runs]
        np.testing.assert_array_equal(source.project(kernels, parts)[0], whole, kernels.name)


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_last_tokens_alone(backends: Backends, name: str) -> None:
    n, first, width = 11, 7, 96
    weights = pack(name, draw_shards(name, 20, width, 2, 1))
    source = Input.draw(n, width, 2)
    whole, _ = source.project(backends.portable, [weights])
    for kernels in backends.native:
        out = np.full((n - first + 1, 40), np.nan, np.float32)
        residual = Residual(source.x.copy(), source.sums, source.post_norm, source.norm, EPS)
        kernels.project(Project(residual, [weights], [None], out))(n, first)
        np.testing.assert_array_equal(out[:-1], whole[first:])
        assert np.isnan(out[-1]).all()


# ---- project_sum -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_sums_of_the_last_tokens_alone(
    backends: Backends, name: str, activation: str | None
) -> None:
    n, first, width = 11, 6, 96
    weights = pack(name, draw_shards(name, 20, width, 2, 1))
    x = random_f32(2, n, 2 * width * (2 if activation else 1))
    whole = summed(backends.portable, x, activation, weights)
    for kernels in [*backends.native, backends.numpy]:
        sums = np.full(whole.shape, np.nan)
        rows = np.zeros_like(x)
        rows[: n - first] = x[first:]
        kernels.project_sum(ProjectSum(rows, activation, weights, sums))(n, first)
        assert np.isnan(sums[:first]).all()
        if kernels is not backends.numpy:
            np.testing.assert_array_equal(sums[first:], whole[first:])
        else:
            assert_close(whole[first:], sums[first:], 5e-3)


@fuzz
@given(
    shapes,
    st.sampled_from([None, "silu", "gelu_tanh"]),
    st.lists(st.integers(0, 100), max_size=3),
)
def test_project_sum(
    backends: Backends, shape: dict[str, Any], activation: str | None, cuts: list[int]
) -> None:
    name, n, count, cols = shape["name"], shape["n"], shape["count"], 32 * shape["blocks"]
    shards = draw_shards(name, shape["rows"], cols, count, shape["seed"])
    weights, halves = pack(name, shards), 2 if activation else 1
    x = random_f32(shape["seed"], n, halves * cols * count)
    alone = [pack(name, [quants]) for quants in shards]
    want = summed_alike(backends, x, activation, alone, weights, cuts)
    assert_close(want, summed(backends.numpy, x, activation, weights), 5e-3)


@fuzz
@given(shapes, st.integers(-20, 20))
def test_activations_that_fit_their_blocks_leave_only_f32_rounding(
    backends: Backends, shape: dict[str, Any], exponent: int
) -> None:
    """Whole numbers with a peak of 127 are their own int8 blocks, so no step can differ."""
    name, n, count, cols = shape["name"], shape["n"], shape["count"], 32 * shape["blocks"]
    weights = pack(name, draw_shards(name, shape["rows"], cols, count, shape["seed"]))
    rng = np.random.default_rng(shape["seed"])
    x = rng.integers(-127, 128, (n, cols * count)).astype(np.float32)
    x[:, ::32] = 127
    x *= np.float32(2.0**exponent)
    want = summed(backends.numpy, x, None, weights)
    for kernels in (backends.portable, *backends.native):
        assert_close(summed(kernels, x, None, weights), want, 1e-6)


# ---- low_rank --------------------------------------------------------------------------------


def low_rank_parts(rng: np.random.Generator, width: int, rows: int, rank: int) -> list[LowRankPart]:
    """Two parts: of all columns, and of some; their outputs overlap."""
    parts = []
    for column, cols, offset in ((0, width, 0), (width // 2, width // 4, 3)):
        a = np.zeros((cols, -(-rank // 16) * 16), np.float32)
        a[:, :rank] = rng.standard_normal((cols, rank))
        wide = rng.standard_normal((rank, rows + 5), np.float32)
        parts.append(LowRankPart(a, wide[:, 2 : rows - 1], column, offset))
    return parts


def low_rank_added(
    kernels: Kernels, seed: int, shape: tuple[int, int, int, int], use: str, chunk: int
) -> Array:
    """What is in the output of a project, or in the sums, `chunk` tokens at a time."""
    n, width, rows, rank = shape
    rng = np.random.default_rng(seed)
    parts = low_rank_parts(rng, width, rows, rank)
    columns = 2 * width if use == "gelu_tanh" else width
    x, norm = rng.standard_normal((n, columns), np.float32), rng.standard_normal(width, np.float32)
    out, sums = rng.standard_normal((n, rows), np.float32), rng.standard_normal((n, rows))
    for first in range(0, n, chunk):
        end = min(first + chunk, n)
        if use == "project":
            source, into = Residual(x, None, None, norm, 1e-5), np.zeros((n, rows), np.float32)
            into[: end - first] = out[first:end]
            kernels.low_rank(LowRank(parts, x, into, source=source))(end, first)
            out[first:end] = into[: end - first]
        else:
            part = np.zeros_like(x)
            part[: end - first] = x[first:end]
            act = None if use == "plain" else use
            kernels.low_rank(LowRank(parts, part, sums=sums, activation=act))(end, first)
    return out if use == "project" else sums


@pytest.mark.parametrize("use", ["project", "plain", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(3, 32, 40, 2), (35, 128, 200, 16), (18, 64, 97, 19)])
def test_low_rank(backends: Backends, shape: tuple[int, int, int, int], use: str) -> None:
    want = low_rank_added(backends.portable, 5, shape, use, chunk=shape[0])
    for kernels in backends.native:
        for chunk in (1, 2, shape[0]):
            got = low_rank_added(kernels, 5, shape, use, chunk)
            np.testing.assert_array_equal(got, want, kernels.name)
    near = low_rank_added(backends.numpy, 5, shape, use, chunk=2)
    assert_close(near.astype(np.float32), want.astype(np.float32))


def test_a_row_of_a_low_rank_product_does_not_depend_on_those_beside_it(
    backends: Backends,
) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((64, 16), np.float32), rng.standard_normal((9, 80), np.float32)
    x = rng.standard_normal((2, 64), np.float32)
    whole, some = np.zeros((2, 80), np.float32), np.zeros((2, 24), np.float32)
    for kernels in backends.native:
        whole[...] = some[...] = 0
        source = Residual(x, None, None, np.ones(64, np.float32), 1e-5)
        kernels.low_rank(LowRank([LowRankPart(a, b, 0, 0)], x, whole, source=source))(2)
        cut = LowRankPart(a, b[:, 33:57], 0, 0)
        kernels.low_rank(LowRank([cut], x, some, source=source))(2)
        np.testing.assert_array_equal(some, whole[:, 33:57])


# ---- attend ----------------------------------------------------------------------------------


heads = st.builds(
    lambda kv, group, d, window: AttentionShape(kv * group, kv, 16 * d, 0.2, window),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from([0, 0, 1, 7, 16, 20]),
)


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-4), (16, 2e-3), (8, 1e-2)])
@fuzz
@given(heads, st.integers(1, 70), st.integers(0, 99), st.lists(st.integers(0, 100), max_size=3))
def test_attend(
    backends: Backends, bits: int, tolerance: float, shape: AttentionShape, n: int, seed: int,
    cuts: list[int],
) -> None:  # fmt: skip
    talk = Conversation.draw(shape, n, seed, bits)
    want = talk.attend(backends.portable)
    for kernels in backends.native:
        for chunks in ([], list(chunks_of(n, cuts))):
            np.testing.assert_array_equal(talk.attend(kernels, chunks), want, kernels.name)
    assert_close(want, talk.attend(backends.numpy), tolerance)  # a key may round to its neighbour


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize(("window", "head_dim"), [(0, 64), (20, 80)])
def test_decoding_gives_the_bits_of_prefill(
    backends: Backends, window: int, head_dim: int, bits: int
) -> None:
    talk = Conversation.draw(AttentionShape(9, 3, head_dim, 0.125, window), 50, 3, bits)
    want = talk.attend(backends.portable)
    for kernels in backends.native:
        steps = talk.attend(kernels, [(t, t + 1) for t in range(50)])
        np.testing.assert_array_equal(steps, want, kernels.name)


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_positions_written_before_do_not_matter(backends: Backends, bits: int) -> None:
    """A cache is used again after another text, of which longer tails remain in it."""
    talk = Conversation.draw(AttentionShape(4, 2, 32, 0.2), 40, 4, bits)
    want = talk.attend(backends.portable)[:9]
    for kernels in backends.native:
        cache = KvCache(40, talk.shape, bits)
        for values in vars(cache).values():
            if isinstance(values, np.ndarray):
                values.fill(85 if values.dtype == np.int8 else np.nan)
        out, buffer = np.empty((40, 128), np.float32), talk.qkv.copy()
        kernels.attend(Attend(buffer, talk.shape, talk.rope, talk.norms, 1e-6, cache, out))(9, 0)
        np.testing.assert_array_equal(out[:9], want, kernels.name)


# ---- What goes to NumPy, and threads -----------------------------------------------------------


@pytest.mark.parametrize(("head_dim", "bits"), [(24, 16), (24, 8), (24, 32)])
def test_caches_the_vectors_do_not_fit_are_numpys(
    backends: Backends, head_dim: int, bits: int
) -> None:
    talk = Conversation.draw(AttentionShape(2, 1, head_dim, 0.2), 32, 11, bits)
    np.testing.assert_array_equal(talk.attend(backends.portable), talk.attend(backends.numpy))


def test_no_shard_gives_zeros(backends: Backends) -> None:
    sums = np.full((2, 7), np.nan)
    backends.portable.project_sum(ProjectSum(random_f32(1, 2, 32), None, None, sums))(2)
    assert not sums.any()


def test_weights_must_lie_within_their_bytes(backends: Backends) -> None:
    whole = pack("q4", draw_shards("q4", 16, 64, 2, 1))
    short = Weights(whole.spec, whole.data[: whole.stride], whole.stride, 2)
    with pytest.raises(AssertionError, match="beyond its bytes"):
        Input.draw(1, 64, 1).project(backends.portable, [short])


def test_threads_that_have_fallen_asleep_wake_up(backends: Backends) -> None:
    weights = pack("q4m", draw_shards("q4m", 160, 64, 1, 6))
    source = Input.draw(3, 64, 7)
    want, _ = source.project(backends.portable, [weights])
    for _ in range(30):  # the other pools sleep while each has its turn
        for kernels in backends.native:
            np.testing.assert_array_equal(source.project(kernels, [weights])[0], want)


def test_pools_come_and_go(backends: Backends) -> None:
    weights = pack("q6k", draw_shards("q6k", 70, 64, 1, 8))
    source = Input.draw(5, 64, 9)
    want, _ = source.project(backends.portable, [weights])
    library = open_library(built_levels()[0])
    for turn in range(60):
        kernels = NativeKernels(library, 1 + turn % 4)
        if turn % 3:  # one in three is closed before it has done anything
            np.testing.assert_array_equal(source.project(kernels, [weights])[0], want)
        kernels.close()
        kernels.close()


def test_two_pools_work_side_by_side(backends: Backends) -> None:
    talk = Conversation.draw(AttentionShape(6, 2, 48, 0.2), 60, 10)
    want = talk.attend(backends.portable)
    with ThreadPoolExecutor(len(backends.native)) as threads:
        for result in threads.map(talk.attend, backends.native):
            np.testing.assert_array_equal(result, want)
