"""The NumPy backend against plain f64 arithmetic on dequantized weights."""

from __future__ import annotations

import dataclasses
import gc
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from planes import unpack_planes
from reference_arithmetic import EPS, close, normed, random_f32

from picoedge.kernels.api import Project, ProjectSum, Residual
from picoedge.kernels.arrays import F16, F32, F64, Array
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Quants, Weights, dequantize, pack_planes
from picoedge.kernels.reference.backend import NumpyKernels
from picoedge.kernels.reference.operations import gated, norm_row, rms_norm
from picoedge.kernels.reference.planes import widen
from picoedge.kernels.reference.threads import Scratch, ThreadPool

QUANTIZED = [name for name, fmt in FORMATS.items() if fmt.bits < 32]


def random_quants(name: str, rows: int, cols: int, superblock: int, seed: int) -> Quants:
    rng = np.random.default_rng(seed)
    fmt, blocks = FORMATS[name], cols // 32
    q = rng.integers(0, 2**fmt.bits, (rows, cols), dtype=np.uint8)

    def half(*shape: int) -> F16:
        return (rng.standard_normal(shape) * 0.01).astype("<f2")

    if not fmt.superblocks:
        return Quants(q, half(rows, blocks), half(rows, blocks) if fmt.has_min else None)
    supers = half(rows, cols // superblock)
    if fmt.bits == 6:
        scales = rng.integers(-128, 128, (rows, 2 * blocks)).astype(np.int8)
        return Quants(q, scales, superscales=supers)
    scales, mins = rng.integers(0, 64, (2, rows, blocks), dtype=np.uint8)
    return Quants(q, scales, mins, supers, half(rows, cols // superblock))


def random_weights(
    name: str, rows: int, cols: int, count: int = 1, seed: int = 0
) -> tuple[Weights, list[F64]]:
    """A run of shards with gaps around each matrix, and each shard's matrix in f64."""
    superblock = 0
    if FORMATS[name].superblocks:
        superblock = next(s for s in (256, 128, 64, 32) if cols % s == 0)
    spec = MatrixSpec(FORMATS[name], rows, cols, 128, superblock)
    stride = 128 + spec.nbytes + 64
    data = np.random.default_rng(99).integers(0, 256, stride * count, dtype=np.uint8)
    weights, plain = Weights(spec, data, stride, count), []
    for i in range(count):
        shard = weights.shard(i)
        if name == "f32":
            values = np.random.default_rng(seed + i).standard_normal((rows, cols))
            spec.plane(shard, "values")[...] = values
            plain.append(values.astype(np.float32).astype(np.float64))
            continue
        shard[128:] = 0
        pack_planes(spec, random_quants(name, rows, cols, superblock, seed + i), shard)
        plain.append(dequantize(spec, unpack_planes(spec, shard)).astype(np.float64))
    return weights, plain


def blocked(x: Array, name: str) -> F64:
    """x as the product sees it: in int8 blocks of 32, unless the matrix is f32."""
    if name == "f32":
        return x.astype(np.float64)
    cut = x.astype(np.float32).reshape(len(x), -1, 32)
    amax = np.abs(cut).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    whole = np.rint(cut * inverse).astype(np.float64)
    return (whole * (amax / np.float32(127)).astype(np.float64)).reshape(x.shape)


def stream(x: F32, sums: F64 | None = None, post_norm: F32 | None = None) -> Residual:
    """A residual stream whose norm weighs all alike."""
    return Residual(x, sums, post_norm, np.ones(x.shape[1], np.float32), EPS)


SHAPES = pytest.mark.parametrize(("n", "rows", "cols", "count"), [
    (1, 16, 32, 1), (1, 50, 96, 3), (2, 17, 64, 2), (3, 300, 1024, 1), (5, 7, 512, 1),
    (40, 33, 256, 3), (9, 400, 640, 2),
])  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@SHAPES
def test_project(
    kernels: NumpyKernels, name: str, n: int, rows: int, cols: int, count: int
) -> None:
    weights, plain = random_weights(name, rows, cols, count)
    x = random_f32(n, cols)
    out = np.full((n + 1, rows * count), np.nan, np.float32)
    kernels.project(Project(stream(x), [weights], [None], out))(n)
    close(out[:n], blocked(normed_f32(x), name) @ np.vstack(plain).T)
    assert np.isnan(out[n]).all()


@pytest.mark.parametrize("name", FORMATS)
@SHAPES
def test_project_sum(
    kernels: NumpyKernels, name: str, n: int, rows: int, cols: int, count: int
) -> None:
    weights, plain = random_weights(name, rows, cols, count)
    x = random_f32(n, cols * count)
    sums = np.full((n + 1, rows), np.nan)
    kernels.project_sum(ProjectSum(x, None, weights, sums))(n)
    close(sums[:n], blocked(x, name) @ np.hstack(plain).T)
    assert np.isnan(sums[n]).all()


def normed_f32(x: F32) -> F32:
    """The backend's own norm: another's last bit could turn a rounding in a block."""
    return rms_norm(x, np.ones(x.shape[-1], np.float32), EPS)


def row_norm(x: F32, weight: F32) -> F32:
    out = np.empty_like(x)
    norm_row(x, weight, EPS, out)
    return out


def test_rms_norm() -> None:
    x, weight = random_f32(3, 4, 64), random_f32(64, seed=6)
    np.testing.assert_allclose(rms_norm(x, weight, EPS), normed(x, weight), rtol=1e-6)
    np.testing.assert_allclose(row_norm(x[0, 0], weight), normed(x[0, 0], weight), rtol=1e-6)
    assert not rms_norm(np.zeros((1, 64), np.float32), weight, EPS).any()


def test_blocks_round_half_to_even() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = 127, 0.5, 1.5, -0.5, -2.5
    sums = np.empty((1, 32))
    NumpyKernels(1).project_sum(ProjectSum(x, None, identity_q8(), sums))(1)
    np.testing.assert_array_equal(sums[0, :5], [127, 0, 2, 0, -2])


def identity_q8() -> Weights:
    spec = MatrixSpec(FORMATS["q8"], 32, 32)
    data = np.zeros(spec.nbytes, np.uint8)
    ones = np.eye(32, dtype=np.int8).view(np.uint8)
    pack_planes(spec, Quants(ones, np.ones((32, 1), np.float16)), data)
    return Weights(spec, data, spec.nbytes, 1)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("n", [1, 20])
def test_largest_quants_do_not_overflow(name: str, n: int) -> None:
    """Every quant and every activation at its extreme, in every combination of signs."""
    fmt, cols = FORMATS[name], 512
    spec = MatrixSpec(fmt, 16, cols, superblock=256 if fmt.superblocks else 0)
    base = random_quants(name, 16, cols, spec.superblock, 3)
    lowest, highest = (128, 127) if fmt.bits == 8 else (0, 2**fmt.bits - 1)
    q = np.full((16, cols), highest, np.uint8)
    q[8:] = lowest
    parts = dataclasses.replace(base, q=q)
    data = np.zeros(spec.nbytes, np.uint8)
    pack_planes(spec, parts, data)
    signs = np.where(np.arange(cols) // 32 % 3 == 0, 1, -1)
    signs[cols // 2 :: 2] *= -1
    x = np.repeat(signs[None].astype(np.float32), n, axis=0)
    sums = np.empty((n, 16))
    NumpyKernels(1).project_sum(ProjectSum(x, None, Weights(spec, data, spec.nbytes, 1), sums))(n)
    close(sums, x.astype(np.float64) @ dequantize(spec, parts).astype(np.float64).T)


@pytest.mark.parametrize("post", [False, True], ids=["plain", "post-norm"])
@pytest.mark.parametrize("name", ["q4", "f32"])
def test_project_adds_the_sums_before_the_norm(post: bool, name: str) -> None:
    weights, plain = random_weights(name, 20, 64)
    x, before = random_f32(3, 64), random_f32(3, 64)
    sums = random_f32(3, 64, seed=8).astype(np.float64) * 1.1
    post_norm = random_f32(64, seed=9) if post else None
    norm = random_f32(64, seed=10)
    out = np.empty((3, 20), np.float32)
    source = Residual(x, sums, post_norm, norm, EPS)
    NumpyKernels(1).project(Project(source, [weights], [None], out))(3)
    added = sums.astype(np.float32)
    np.testing.assert_allclose(
        x, before + (added if post_norm is None else normed(added, post_norm)), rtol=1e-5, atol=1e-6
    )
    close(out, blocked(rms_norm(x, norm, EPS), name) @ plain[0].T)


@pytest.mark.parametrize("name", ["q5", "f32"])
def test_project_from_the_last_token_only(name: str) -> None:
    weights, plain = random_weights(name, 40, 64)
    x, sums = random_f32(6, 64), np.ones((6, 64))
    out = np.full((1, 40), np.nan, np.float32)
    NumpyKernels(2).project(Project(stream(x, sums), [weights], [None], out))(6, 5)
    np.testing.assert_array_equal(x[:5], random_f32(6, 64)[:5])
    np.testing.assert_array_equal(x[5], random_f32(6, 64)[5] + 1)
    close(out, blocked(normed_f32(x[5:]), name) @ plain[0].T)


@pytest.mark.parametrize("n", [1, 12])
def test_project_of_several_matrices_with_biases(kernels: NumpyKernels, n: int) -> None:
    made = [random_weights("q6k", 48, 256, 2, 1), random_weights("f32", 10, 256, 2, 2),
            random_weights("q8", 23, 256, 1, 3)]  # fmt: skip
    biases = [random_f32(96), None, random_f32(23)]
    x = random_f32(n, 256)
    out = np.full((n, 139), np.nan, np.float32)
    kernels.project(Project(stream(x), [w for w, _ in made], biases, out))(n)
    want = [blocked(normed_f32(x), w.spec.format.name) @ np.vstack(plain).T for w, plain in made]
    want[0] += biases[0]
    want[2] += biases[2]
    close(out, np.hstack(want))


@pytest.mark.parametrize("n", [1, 10])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("name", ["q4k", "f32"])
def test_activation(kernels: NumpyKernels, activation: str, name: str, n: int) -> None:
    weights, plain = random_weights(name, 30, 256, 2)
    x = random_f32(n, 1024) * 3
    x[0, :4] = 200, -200, 0, -0.0
    gate, up = x[:, :512].astype(np.float64), x[:, 512:]
    if activation == "silu":
        want = gate * 0.5 * (1 + np.tanh(gate / 2)) * up
    else:
        want = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        want *= up
    got = gated(activation, x[:, :512], up, np.empty((n, 512), np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    sums = np.empty((n, 30))
    kernels.project_sum(ProjectSum(x, activation, weights, sums))(n)
    close(sums, blocked(got, name) @ np.hstack(plain).T)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n", [1, 8])
def test_zero_inputs_give_zeros(name: str, n: int) -> None:
    weights, _ = random_weights(name, 20, 64, 2)
    sums, out = np.full((n, 20), np.nan), np.full((n, 40), np.nan, np.float32)
    backend = NumpyKernels(1)
    backend.project_sum(ProjectSum(np.zeros((n, 128), np.float32), None, weights, sums))(n)
    backend.project(Project(stream(np.zeros((n, 64), np.float32)), [weights], [None], out))(n)
    assert not sums.any()
    assert not out.any()


def test_no_weights_sum_to_zero() -> None:
    sums = np.full((4, 8), np.nan)
    NumpyKernels(1).project_sum(ProjectSum(np.zeros((4, 0), np.float32), None, None, sums))(3, 1)
    assert not sums[1:3].any()
    assert np.isnan(sums[[0, 3]]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_shards_are_added_in_f64(name: str) -> None:
    """One call over four shards gives the bits of four calls over one, added in f64 in order."""
    weights, _ = random_weights(name, 33, 64, 4)
    x = random_f32(2, 256)
    backend, whole, part = NumpyKernels(2), np.empty((2, 33)), np.empty((2, 33))
    backend.project_sum(ProjectSum(x, None, weights, whole))(2)
    added = np.zeros((2, 33))
    for i in range(4):
        one = Weights(weights.spec, weights.data[i * weights.stride :], weights.stride, 1)
        columns = np.ascontiguousarray(x[:, i * 64 : (i + 1) * 64])
        backend.project_sum(ProjectSum(columns, None, one, part))(2)
        added += part
    np.testing.assert_array_equal(whole, added)
    backend.close()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("by_columns", [False, True], ids=["rows", "columns"])
def test_threads_do_not_change_a_bit(name: str, by_columns: bool) -> None:
    """A product large enough to be shared out; `one` is not."""
    weights, _ = random_weights(name, 2100, 1024, 2)
    one = Weights(weights.spec, weights.data, weights.stride, 1)
    x, results = random_f32(1, 2048 if by_columns else 1024), []
    for threads in (1, 2, 3):
        backend = NumpyKernels(threads)
        if by_columns:
            sums = np.empty((1, 2100))
            backend.project_sum(ProjectSum(x, None, weights, sums))(1)
            results.append(sums)
        else:
            out, first = np.empty((1, 4200), np.float32), np.empty((1, 2100), np.float32)
            backend.project(Project(stream(x.copy()), [weights], [None], out))(1)
            backend.project(Project(stream(x.copy()), [one], [None], first))(1)
            np.testing.assert_array_equal(out[:, :2100], first)
            results.append(out)
        backend.close()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_closed_kernels_refuse_work_and_forgotten_ones_stop_their_threads() -> None:
    weights, _ = random_weights("q4", 2100, 2048)
    out = np.empty((1, 2100), np.float32)
    before = threading.active_count()
    for forget in (False, True):
        backend = NumpyKernels(2)
        project = backend.project(Project(stream(random_f32(1, 2048)), [weights], [None], out))
        project(1)
        assert threading.active_count() == before + 1
        if forget:
            del backend, project
            gc.collect()
        else:
            backend.close()
            with pytest.raises(AssertionError, match="closed"):
                project(1)
        assert threading.active_count() == before


def test_weights_may_be_read_only_and_inside_a_larger_file(tmp_path: Path) -> None:
    weights, plain = random_weights("q4m", 20, 64, 2)
    path = tmp_path / "shards"
    path.write_bytes(bytes(64) + weights.data.tobytes())
    mapped = np.memmap(path, np.uint8, "r", offset=64)
    x, out = random_f32(1, 64), np.empty((1, 40), np.float32)
    moved = Weights(weights.spec, mapped, weights.stride, 2)
    NumpyKernels(1).project(Project(stream(x), [moved], [None], out))(1)
    close(out, blocked(normed_f32(x), "q4m") @ np.vstack(plain).T)


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    pool = ThreadPool(2)

    def fail(_: Scratch) -> None:
        raise ValueError("from a job")

    def note(i: int, _: Scratch) -> None:
        done.append(i)

    for _ in range(3):
        with pytest.raises(ValueError, match="from a job"):
            pool.run([fail] * 4)
    done: list[int] = []
    pool.run([partial(note, i) for i in range(50)])
    assert sorted(done) == list(range(50))
    pool.close()
    pool.close()


def test_f16_scales_of_every_kind_are_widened_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    out = np.empty(finite.shape, np.float32)
    widen(finite.view(np.int16), out)
    np.testing.assert_array_equal(out, finite.astype(np.float32))
