"""The structures and functions of training.c, and the check that a library has the same ones.

A level's library holds the kernels of training beside those of inference, with a table of their
own: inference starts without comparing it.
"""

from __future__ import annotations

import ctypes as ct
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any

from picoedge.kernels.blocks import TILE_ROWS
from picoedge.kernels.native import Field, bind, built_layout, layout_of

QUERIES = 64  # rows of scores at once; belongs to the format of a run
SUM_BLOCK = 256  # values of a sum that are narrow or wide together
_ABI = 1  # of training.c


class AttentionRecord(ct.Structure):
    """`attention_t`."""

    _fields_ = [
        *(
            (name, c_void_p)
            for name in ("q", "k", "v", "o", "tops", "scales", "d_o", "dq", "dk", "dv", "scratch")
        ),
        *((name, c_int64) for name in ("length", "stride", "o_stride")),
        *((name, c_int32) for name in ("q_heads", "kv_heads", "head_dim", "window")),
        ("scale", c_float),
    ]


class AdamRecord(ct.Structure):
    """`adamw_t`: the fields of `training.AdamStep`."""

    _fields_ = [
        (name, c_float)
        for name in (
            "gradient_scale", "beta1", "rest1", "beta2", "rest2", "decay", "rate", "correction",
            "epsilon",
        )
    ]  # fmt: skip


class SumsRecord(ct.Structure):
    """`sums_t`."""

    _fields_ = [
        *((name, c_void_p) for name in ("plane", "rows", "wide")),
        *((name, c_int64) for name in ("count", "capacity")),
        *((name, c_int32) for name in ("exponent", "narrow")),
    ]


_STRUCTS: dict[str, type[ct.Structure]] = {
    "attention_t": AttentionRecord,
    "adamw_t": AdamRecord,
    "sums_t": SumsRecord,
}
_MATRIX = (c_void_p, c_int64, c_int64)
# function -> its result and its arguments
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "pe_training_field": (POINTER(Field), c_int),
    "pe_sgemm_scratch": (c_int64,),
    "pe_sgemm": (
        None, c_int64, c_int64, c_int64, *_MATRIX, *_MATRIX, c_void_p, c_int64, c_int32, c_void_p,
    ),
    "pe_multiply_stacked": (
        None, c_int64, c_int64, c_int64, *_MATRIX, c_void_p, c_int32, c_int32, c_int32, c_void_p,
        c_int64, c_void_p,
    ),
    "pe_norm": (None, *(c_void_p,) * 4, c_int64, c_int64, c_float),
    "pe_norm_vjp": (None, *(c_void_p,) * 6, c_int64, c_int64),
    "pe_rotate": (None, *(c_void_p,) * 3, *(c_int64,) * 5, c_float),
    "pe_attention": (None, c_void_p),
    "pe_attention_vjp": (None, c_void_p),
    "pe_gated": (None, c_void_p, c_void_p, c_int64, c_int64, c_int32),
    "pe_gated_vjp": (None, c_void_p, c_void_p, c_int64, c_int64, c_int32),
    "pe_sums_add": (c_int64, c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    "pe_sums_take": (None, c_void_p, c_void_p, c_int64),
    "pe_cross_entropy": (None, *(c_void_p,) * 3, c_int64, c_int64, c_float),
    "pe_add_rows": (None, *(c_void_p,) * 3, c_int64, c_int64),
    "pe_adamw": (None, *(c_void_p,) * 5, c_int64),
    "pe_squares": (None, c_void_p, c_void_p, c_int64, c_int64),
}  # fmt: skip


def bind_training(library: ct.CDLL) -> None:
    """Tell ctypes the types of the library's functions of training.

    Raises PicoedgeError where it was built from other sources: its structs, sizes or functions
    differ from this file's.
    """
    sizes = {
        "training_abi": _ABI, "tile": TILE_ROWS, "queries": QUERIES, "sum_block": SUM_BLOCK,
    }  # fmt: skip
    layout = layout_of(sizes, _STRUCTS)
    bind(library, _FUNCTIONS, layout, lambda: built_layout(library.pe_training_field))
