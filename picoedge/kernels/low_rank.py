"""The records of a `LowRank` operation for native.c."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p

from picoedge.kernels.api import LOW_RANK_STEP, LowRank, LowRankPart
from picoedge.kernels.arrays import Array

LOW_RANK_TOKENS = 16  # LR_TOKENS of native.c: a call needs scratch for so many at once
_ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2}


class LowRankPartRecord(ct.Structure):
    """`low_rank_part_t`."""

    _fields_ = [
        *((name, c_void_p) for name in ("a", "b")),
        ("b_stride", c_int64),
        *(
            (name, c_int32)
            for name in ("column", "width", "rank", "padded", "rows", "out_offset")
        ),
    ]  # fmt: skip


class LowRankRecord(ct.Structure):
    """`low_rank_t`."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "norm", "scratch", "out", "sums")),
        ("parts", POINTER(LowRankPartRecord)),
        ("out_stride", c_int64),
        *((name, c_int32) for name in ("n_parts", "width", "activation", "padded", "columns")),
        ("eps", c_float),
    ]


def low_rank_record(op: LowRank) -> LowRankRecord:
    """The operation, without its `scratch`: LOW_RANK_TOKENS times `width` + `padded` floats."""
    target = op.sums if op.out is None else op.out
    assert target is not None
    assert target.strides[1] == target.itemsize, "rows of the output have gaps"
    parts, source = _parts(op.parts, op.width, target.shape[1]), op.source
    return LowRankRecord(
        x=_address(op.x),
        norm=None if source is None else _address(source.norm),
        out=None if op.out is None else op.out.ctypes.data,
        sums=None if op.sums is None else _address(op.sums),
        parts=parts,
        out_stride=target.strides[0] // target.itemsize,
        n_parts=len(parts),
        width=op.width,
        activation=_ACTIVATIONS[op.activation],
        padded=sum(part.padded for part in parts),
        columns=target.shape[1],
        eps=0.0 if source is None else source.eps,
    )


def _parts(given: Sequence[LowRankPart], width: int, columns: int) -> ct.Array[LowRankPartRecord]:
    records = (LowRankPartRecord * len(given))()
    for record, part in zip(records, given, strict=True):
        (cols, padded), (rank, rows) = part.a.shape, part.b.shape
        assert padded % LOW_RANK_STEP == 0
        assert rank <= padded
        assert part.column + cols <= width
        assert part.out_offset + rows <= columns
        assert part.b.strides[1] == part.b.itemsize, "rows of B have gaps"
        record.a, record.b = _address(part.a), part.b.ctypes.data
        record.b_stride = part.b.strides[0] // part.b.itemsize
        record.column, record.width, record.rank = part.column, cols, rank
        record.padded, record.rows, record.out_offset = padded, rows, part.out_offset
    return records


def _address(array: Array) -> int:
    assert array.flags.c_contiguous, "the C file takes contiguous arrays"
    return int(array.ctypes.data)
