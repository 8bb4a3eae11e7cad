"""Measure how many bytes of weights a second the kernels multiply when decoding one token."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import picoedge
from picoedge.host import measurements
from picoedge.host.sysfs import processor_name
from picoedge.kernels.api import BoundProduct, Kernels, Project, Residual
from picoedge.kernels.blocks import (
    BLOCK_COLS,
    FORMATS,
    SUPERBLOCK_COLS,
    TILE_ROWS,
    MatrixSpec,
    Weights,
)
from picoedge.store.pages import anonymous

MATRIX_BYTES = 16 << 20
_ROUND_S = 0.03
_ROUNDS = 3
_SCALE = 0.01  # of every block: neither denormal nor near f16's end
_PIECE = 1 << 20


def probe_compute(
    kernels: Kernels, format_name: str, cols: int, nbytes: int = MATRIX_BYTES
) -> float:
    """Bytes a second of projecting one token through a random matrix; the best of three rounds.

    It has `cols` inputs, a multiple of 32, and up to `nbytes`: more than the processor's caches, as
    a model has. About 0.1 s. Raises ModelError where the format cannot hold that shape.
    """
    matrix = random_weights(format_name, cols, nbytes)
    call = _bind(kernels, matrix)
    call(1)  # pages are then mapped, and threads awake
    return matrix.spec.nbytes * max(_calls_per_s(call) for _ in range(_ROUNDS))


def cached_compute(
    kernels: Kernels,
    format_name: str,
    cols: int,
    nbytes: int = MATRIX_BYTES,
    *,
    cache: Path,
    clock: Callable[[], float] = time.time,
) -> float:
    """As `probe_compute`; kept for 30 days in folder `cache` for this processor and these threads.

    A cache that is damaged or cannot be written is no error.
    """
    matrix = f"{format_name} {nbytes >> 20} MB"
    key = f"{kernels.name} {kernels.threads} {matrix} {picoedge.__version__} {processor_name()}"
    known = measurements.load(cache, "compute", key, ("weight_bytes_per_s",), clock())
    if known is not None and known["weight_bytes_per_s"]:
        return known["weight_bytes_per_s"]
    speed = probe_compute(kernels, format_name, cols, nbytes)
    measurements.save(cache, "compute", key, {"weight_bytes_per_s": speed}, clock())
    return speed


def random_weights(format_name: str, cols: int, nbytes: int = MATRIX_BYTES) -> Weights:
    """A matrix of random quants and sane scales, in at most `nbytes` (or one tile of rows)."""
    wanted = FORMATS[format_name]
    superblock = 0
    if wanted.superblocks:
        superblock = BLOCK_COLS if cols % SUPERBLOCK_COLS else SUPERBLOCK_COLS
    tile = MatrixSpec(wanted, TILE_ROWS, cols, superblock=superblock)
    rows = max(1, nbytes // tile.nbytes) * TILE_ROWS
    spec = MatrixSpec(wanted, rows, cols, superblock=superblock)
    data = anonymous(spec.nbytes)
    noise = random.Random(0).randbytes(min(_PIECE, spec.nbytes))
    quants = np.frombuffer(noise, np.uint8)
    for at in range(0, spec.nbytes, _PIECE):
        data[at : at + _PIECE] = quants[: spec.nbytes - at]
    for name, (_, _, dtype) in spec.planes.items():
        if dtype.kind == "f":
            spec.plane(data, name)[...] = _SCALE
    return Weights(spec, data, spec.nbytes, 1)


def _bind(kernels: Kernels, matrix: Weights) -> BoundProduct:
    """A norm of ones, then the matrix, of one token."""
    cols = matrix.spec.cols
    noise = np.frombuffer(random.Random(1).randbytes(cols), np.int8)
    x = noise.astype(np.float32)[None] / np.float32(64)
    source = Residual(x, None, None, np.ones(cols, np.float32), 1e-5)
    out = np.empty((1, matrix.total_rows), np.float32)
    return kernels.project(Project(source, [matrix], [None], out))


def _calls_per_s(call: BoundProduct) -> float:
    """Calls a second, over one round."""
    start, count, spent = time.perf_counter(), 0, 0.0
    while spent < _ROUND_S:
        call(1)
        count += 1
        spent = time.perf_counter() - start
    return count / spent
