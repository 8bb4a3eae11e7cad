"""Products of packed matrices: the bits of products of their values, in every format."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_material import draw_shards, pack, random_f32

from picoedge.kernels.arrays import F32
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Weights, dequantize
from picoedge.kernels.reference.training import NumpyTrainingKernels
from picoedge.kernels.stacked import StackedWeights
from picoedge.kernels.training import NativeTrainingKernels, TrainingKernels

QUANTIZED = [name for name, fmt in FORMATS.items() if fmt.bits < 32]


def quantized(name: str, rows: int, cols: int, count: int, seed: int) -> tuple[Weights, list[F32]]:
    """Shards, and the values of each."""
    shards = draw_shards(name, rows, cols, count, seed)
    weights = pack(name, shards)
    return weights, [dequantize(weights.spec, shard) for shard in shards]


def floats(rows: int, cols: int, count: int, seed: int) -> tuple[Weights, list[F32]]:
    values = [random_f32(seed + i, rows, cols) for i in range(count)]
    spec = MatrixSpec(FORMATS["f32"], rows, cols, 64)
    stride = spec.nbytes + 128
    weights = Weights(spec, np.zeros(stride * count, np.uint8), stride, count)
    for i, own in enumerate(values):
        spec.plane(weights.shard(i), "values")[...] = own
    return weights, values


def check(levels: list[NativeTrainingKernels], matrix: StackedWeights, values: F32) -> None:
    """Both ways, with rows that fill no tile: the bits of `multiply`, on every level."""
    assert values.shape == (matrix.rows, matrix.cols)
    for back, right in ((False, values.T), (True, values)):
        a = random_f32(5, 19, right.shape[0])
        wanted = np.empty((19, right.shape[1]), np.float32)
        levels[0].multiply(a, right, wanted)
        others: list[TrainingKernels] = [*levels, NumpyTrainingKernels()]
        for kernels in others:
            out = np.full_like(wanted, np.nan)
            kernels.multiply_stacked(a, matrix, out, back=back)
            if kernels.is_exact:
                assert out.tobytes() == wanted.tobytes(), (kernels.name, back)
            else:
                error = np.linalg.norm(out - wanted) / np.linalg.norm(wanted)
                assert error < 1e-5


@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_of_several_matrices(levels: list[NativeTrainingKernels], name: str) -> None:
    """Heights that end inside a tile, and more columns than a block of the products' order."""
    cols = 288 if not FORMATS[name].superblocks else 320
    tall, first = quantized(name, 40, cols, 2, 1)
    short, second = quantized(name, 7, cols, 3, 2)
    check(levels, StackedWeights((tall, short)), np.concatenate([*first, *second]))


@pytest.mark.parametrize("name", QUANTIZED)
def test_columns_of_shards(levels: list[NativeTrainingKernels], name: str) -> None:
    """A block of the products' order begins and ends inside a shard."""
    weights, values = quantized(name, 37, 192, 3, 3)
    check(levels, StackedWeights((weights,), by_columns=True), np.concatenate(values, axis=1))


def test_floats_of_any_shape(levels: list[NativeTrainingKernels]) -> None:
    tall, first = floats(21, 50, 2, 1)
    short, second = floats(5, 50, 1, 2)
    check(levels, StackedWeights((tall, short)), np.concatenate([*first, *second]))
    weights, values = floats(23, 90, 3, 3)
    check(levels, StackedWeights((weights,), by_columns=True), np.concatenate(values, axis=1))


def test_formats_side_by_side(levels: list[NativeTrainingKernels]) -> None:
    """A k-quant mixture has v in another format than q and k."""
    one, first = quantized("q4k", 32, 256, 1, 1)
    other, second = quantized("q6k", 16, 256, 2, 2)
    check(levels, StackedWeights((one, other)), np.concatenate([*first, *second]))


def test_rows_behind_the_vocabulary_are_not_the_matrix(
    levels: list[NativeTrainingKernels],
) -> None:
    weights, values = quantized("q8", 48, 64, 3, 1)
    check(levels, StackedWeights((weights,), limit=101), np.concatenate(values)[:101])


def test_matrices_of_several_panels(levels: list[NativeTrainingKernels]) -> None:
    weights, values = quantized("q4m", 496, 64, 4, 1)
    check(levels[-1:], StackedWeights((weights,)), np.concatenate(values))
