"""Quantize floats in blocks of 32, for sources in floats or codebook formats."""

from __future__ import annotations

import numpy as np

from picoedge.errors import ModelError
from picoedge.kernels.arrays import F16, F32
from picoedge.kernels.blocks import BLOCK_COLS, FORMATS, Format, MatrixSpec, Quants, dequantize

FORMAT_OF_BITS = {4: "q4m", 5: "q5m", 6: "q6", 8: "q8", 32: "f32"}
_NARROWEST_FIRST = ("q4m", "q5m", "q6", "q8")
# Largest RMS error of a format, relative to the RMS of the weights, that does not change answers.
# At 0.026 (IQ4_NL in q6) the perplexity of SmolLM2 moved by 3 %, at 0.003 (q8) it did not.
VISIBLE_ERROR = 0.01


def quantize(values: F32, fmt: Format, name: str) -> Quants:
    """Quantize f32 [R, C] in a format without superblocks.

    `name` is the tensor's. Raises ModelError, naming it, where f16 scales overflow.
    """
    blocks = values.reshape(len(values), -1, BLOCK_COLS)
    with np.errstate(all="ignore"):  # overflow is refused below
        parts = _with_minimum(blocks, fmt) if fmt.has_min else _symmetric(blocks, fmt)
    for scales in (parts.scales, parts.mins):
        if scales is not None and not np.isfinite(scales).all():
            raise ModelError(f"tensor {name} holds weights too large for {fmt.name}", "use f32")
    return parts


def _symmetric(blocks: F32, fmt: Format) -> Quants:
    if fmt.bits == 8:
        step = np.abs(blocks).max(axis=2) / 127
        low, high = -127, 127
    else:
        # The value of largest magnitude maps to -offset, the end with one step more.
        largest = np.abs(blocks).argmax(axis=2)[:, :, None]
        step = np.take_along_axis(blocks, largest, axis=2)[:, :, 0] / -fmt.offset
        low, high = -fmt.offset, fmt.offset - 1
    scales = step.astype(np.float16)
    q = np.rint(blocks * _inverse(scales)[:, :, None]).clip(low, high) + fmt.offset
    dtype = np.int8 if fmt.bits == 8 else np.uint8
    return Quants(q.astype(dtype).view(np.uint8).reshape(len(blocks), -1), scales)


def _with_minimum(blocks: F32, fmt: Format) -> Quants:
    top = 2**fmt.bits - 1
    mins = blocks.min(axis=2).astype(np.float16)
    shifted = blocks - mins.astype(np.float32)[:, :, None]
    scales = (shifted.max(axis=2) / top).astype(np.float16)
    q = np.rint(shifted * _inverse(scales)[:, :, None]).clip(0, top)
    return Quants(q.astype(np.uint8).reshape(len(blocks), -1), scales, mins)


def _inverse(scales: F16) -> F32:
    wide = scales.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


def narrowest_format(sample: F32) -> str:
    """Narrowest format with a relative RMS error of at most VISIBLE_ERROR on f32 [n, C]."""
    power = float(np.square(sample, dtype=np.float64).sum())
    for name in _NARROWEST_FIRST[:-1]:
        if error_power(sample, name) <= VISIBLE_ERROR**2 * power:
            return name
    return _NARROWEST_FIRST[-1]


def error_power(sample: F32, name: str) -> float:
    """Sum of squared quantization errors of `sample` in a format."""
    fmt = FORMATS[name]
    parts = quantize(sample, fmt, "sample")
    back = dequantize(MatrixSpec(fmt, *sample.shape), parts)
    return float(np.square(back - sample, dtype=np.float64).sum())
