"""The native backend: ctypes around one of the libraries that native.c was compiled into.

The structures mirror the ones in native.c; `open_library` compares every field, and every size by
which Python makes room, with the library's own table: one built from other sources is refused.
"""

from __future__ import annotations

import ctypes as ct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cached_property, partial
from itertools import count, takewhile, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.errors import MemoryBudgetError, PicoedgeError
from picoedge.kernels.api import (
    LOW_RANK_STEP,
    Attend,
    BoundAttend,
    BoundProduct,
    LowRank,
    Project,
    ProjectSum,
)
from picoedge.kernels.arrays import F32, F64, Array
from picoedge.kernels.blocks import (
    BLOCK_COLS,
    FORMATS,
    TILE_ROWS,
    Weights,
    WeightsRecord,
    weight_records,
)
from picoedge.kernels.low_rank import (
    LOW_RANK_TOKENS,
    LowRankPartRecord,
    LowRankRecord,
    low_rank_record,
)
from picoedge.kernels.reference.backend import NumpyKernels

Row = tuple[Any, ...]  # of a table by which a library and Python are compared
_ABI = 2  # of native.c
_XBLOCK_BYTES = 48
_ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2}


def _fields(*kinds: tuple[type[Any], str]) -> list[tuple[str, type[Any]]]:
    """The fields of a structure: a type and the names of those it has, in the order in C."""
    return [(name, kind) for kind, names in kinds for name in names.split()]


class _Project(ct.Structure):
    _fields_ = _fields(
        (c_void_p, "x sums post_norm norm blocks plain scratch products out"),
        (POINTER(WeightsRecord), "weights"),
        (c_int64, "out_stride"),
        (c_int32, "n_weights width reuse_input"),
        (c_float, "eps"),
    )


class _ProjectSum(ct.Structure):
    _fields_ = _fields(
        (c_void_p, "x blocks plain scratch products sums"),
        (POINTER(WeightsRecord), "weights"),
        (c_int32, "activation width rows accumulate"),
    )


class _Attend(ct.Structure):
    _fields_ = _fields(
        (c_void_p, "qkv cos sin q_norm k_norm keys values key_scales value_scales out"),
        (c_int32, "q_heads kv_heads head_dim n_ctx window"),
        (c_float, "scale eps"),
        (c_int32, "bits"),
    )


class Field(ct.Structure):
    """field_t of abi.h: a row of a table of layouts."""

    _fields_ = _fields((c_char_p, "name"), (c_int32, "offset bytes"))


class _Format(ct.Structure):
    _fields_ = _fields(
        (c_char_p, "name"),
        (c_int32, "bits offset has_min superblocks quant_bytes high_bytes scale_bytes"),
    )


def _address(array: Array | None) -> int | None:
    if array is None:
        return None
    assert array.flags.c_contiguous, "the C file takes contiguous arrays"
    return int(array.ctypes.data)


def _addresses(owner: object, *names: str) -> dict[str, int | None]:
    """Addresses of the owner's arrays of these names, which are also a record's fields."""
    return {name: _address(getattr(owner, name)) for name in names}


_STRUCTS: dict[str, type[ct.Structure]] = {
    "weights_t": WeightsRecord,
    "project_t": _Project,
    "project_sum_t": _ProjectSum,
    "low_rank_part_t": LowRankPartRecord,
    "low_rank_t": LowRankRecord,
    "attend_t": _Attend,
}
# function -> its result and its arguments
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "pe_level": (c_char_p,),
    "pe_dense_scratch": (c_int64,),
    "pe_field": (POINTER(Field), c_int),
    "pe_format": (POINTER(_Format), c_int),
    "pe_pool_open": (c_void_p, c_int),
    "pe_pool_close": (None, c_void_p),
    "pe_project": (None, c_void_p, c_void_p, c_int32, c_int32),
    "pe_attend": (c_int, c_void_p, c_void_p, c_int32, c_int32),
    "pe_project_sum": (None, c_void_p, c_void_p, c_int32, c_int32),
    "pe_low_rank": (None, c_void_p, c_void_p, c_int32, c_int32),
    "pe_f48_encode": (c_int64, c_void_p, c_int64, c_void_p, c_int64),
    "pe_f48_decode": (c_int, c_void_p, c_int64, c_int64, c_void_p),
}


def open_library(path: Path) -> ct.CDLL:
    """Load one compiled level.

    Raises OSError where the file is not a library for this machine, and PicoedgeError where it was
    built from other sources: its structs, formats or functions differ from this file's.
    """
    lib = ct.CDLL(str(path))
    layout = [*layout_of(_sizes(), _STRUCTS), *_formats()]
    bind(lib, _FUNCTIONS, layout, lambda: [*built_layout(lib.pe_field), *_built_formats(lib)])
    return lib


def bind(
    lib: ct.CDLL,
    functions: Mapping[str, tuple[Any, ...]],
    layout: Sequence[Row],
    built: Callable[[], Sequence[Row]],
) -> None:
    """Tell ctypes the types of the library's functions: name -> result and arguments.

    Raises PicoedgeError where it lacks one of them, or its own table, which `built` reads by them,
    is not `layout`: it was built from other sources.
    """
    try:
        for name, (result, *arguments) in functions.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        others = [(ours, theirs) for ours, theirs in zip_longest(layout, built()) if ours != theirs]
        difference = f"{others[0][1]} instead of {others[0][0]}" if others else ""
    except AttributeError as error:  # a function that an older library lacks
        difference = str(error)
    if difference:
        raise PicoedgeError(
            f"{Path(lib._name).name} was built from other sources ({difference})",
            "build the kernels again: make setup, or install picoedge again",
        )


def layout_of(sizes: Mapping[str, int], structs: Mapping[str, type[ct.Structure]]) -> list[Row]:
    """The rows that a library's table has for these: name, offset, bytes."""
    layout: list[Row] = [(name, 0, size) for name, size in sizes.items()]
    for name, struct in structs.items():
        layout.append((name, 0, ct.sizeof(struct)))
        fields = [(field[0], getattr(struct, field[0])) for field in struct._fields_]
        layout += [(f"{name}.{field}", at.offset, at.size) for field, at in fields]
    return layout


def built_layout(function: Any) -> list[Row]:
    """The rows of the table of layouts behind the library's `function`."""
    return [(f.name.decode(), f.offset, f.bytes) for f in _records(function)]


def _sizes() -> dict[str, int]:
    """Sizes in native.c by which Python makes room for its buffers, and the number of its ABI."""
    return {
        "abi": _ABI, "tile": TILE_ROWS, "block": BLOCK_COLS, "low_rank_tokens": LOW_RANK_TOKENS,
        "cache_keys": TILE_ROWS, "xblock": _XBLOCK_BYTES,
    }  # fmt: skip


def _formats() -> list[Row]:
    return [
        (f.name, f.code, f.bits, f.offset, int(f.has_min), int(f.superblocks))
        for f in FORMATS.values() if f.bits < 32
    ]  # fmt: skip


def _built_formats(lib: ct.CDLL) -> list[Row]:
    return [
        (f.name.decode(), code, f.bits, f.offset, f.has_min, f.superblocks)
        for code, f in enumerate(_records(lib.pe_format))
    ]


def _records(function: Any) -> Iterator[Any]:
    """The C table behind `function(i)`, which is NULL past its end."""
    return (record.contents for record in takewhile(bool, map(function, count())))


class NativeKernels:
    """The `Kernels` protocol in C.

    f32 matrices whose columns are not in 16s, and heads that are not, go to the reference.
    """

    def __init__(self, library: ct.CDLL, threads: int) -> None:
        self.threads = max(1, threads)
        self.name = f"native {library.pe_level().decode()}"
        self._lib = library
        self._scratch: dict[tuple[str, int, int], Array] = {}
        self._pool: int | None = library.pe_pool_open(self.threads)
        if not self._pool:
            raise MemoryBudgetError(f"cannot start {threads} threads", "use fewer: -t 1")
        self._stop = weakref.finalize(self, library.pe_pool_close, self._pool)  # when forgotten too

    @cached_property
    def _reference(self) -> NumpyKernels:
        return NumpyKernels(self.threads)

    @property
    def pool(self) -> int:
        """Address of the thread pool. Operations bound before `close` must not run after it."""
        assert self._pool is not None, "the kernels are closed"
        return self._pool

    def project(self, op: Project) -> BoundProduct:
        """See `Kernels.project`."""
        source, weights, out = op.source, op.weights, op.out
        n, width = source.x.shape
        if width % TILE_ROWS:
            return self._reference.project(op)
        _check_lengths(width, source.norm, source.post_norm)
        assert source.sums is None or source.sums.shape == source.x.shape
        assert all(w.spec.cols == width for w in weights)
        assert not weights or out.shape[1] == sum(w.total_rows for w in weights)
        assert not out.size or out.strides[1] == out.itemsize, "rows of the output have gaps"
        matrices = weight_records(weights, op.biases)
        record = _Project(
            **_addresses(source, "x", "sums", "post_norm", "norm"),
            **self._scratch_for("project", n, width, weights),
            out=out.ctypes.data,
            weights=matrices,
            out_stride=out.strides[0] // out.itemsize,
            n_weights=len(weights),
            width=width,
            reuse_input=op.reuse_input,
            eps=source.eps,
        )
        keep = (record, op, matrices)
        return self._bound(self._lib.pe_project, keep, n, len(out) if weights else n)

    def attend(self, op: Attend) -> BoundAttend:
        """See `Kernels.attend`."""
        shape, cache, (cos, sin) = op.shape, op.cache, op.rope
        if shape.head_dim % TILE_ROWS:
            return self._reference.attend(op)
        q_norm, k_norm = op.norms if op.norms is not None else (None, None)
        _check_lengths(shape.head_dim, q_norm, k_norm)
        most, positions = len(op.qkv), min(cache.n_ctx, len(cos), len(sin))
        assert op.qkv.shape[1] == (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
        assert op.out.shape == (most, shape.q_heads * shape.head_dim)
        record = _Attend(
            **_addresses(op, "qkv", "out"),
            **_addresses(cache, "keys", "values", "key_scales", "value_scales"),
            **vars(shape),
            cos=_address(cos),
            sin=_address(sin),
            q_norm=_address(q_norm),
            k_norm=_address(k_norm),
            n_ctx=cache.n_ctx,
            eps=op.eps,
            bits=8 * cache.keys.itemsize,
        )
        call, address, kernels = self._lib.pe_attend, ct.addressof(record), self

        def attend(n: int, position: int, _keep: object = (record, op)) -> None:
            assert 0 < n <= most, "more tokens than the buffers hold"
            assert 0 <= position <= positions - n, "beyond the cache"
            if call(kernels.pool, address, n, position):
                raise MemoryBudgetError(
                    f"no memory for attention over {position + n} tokens", "use a smaller context"
                )

        return attend

    def project_sum(self, op: ProjectSum) -> BoundProduct:
        """See `Kernels.project_sum`."""
        x, weights = op.x, op.weights
        if weights is None:
            return partial(_no_sums, op.sums)
        if weights.spec.cols % TILE_ROWS:
            return self._reference.project_sum(op)
        n, width = x.shape[0], weights.total_cols
        assert x.shape[1] == (width if op.activation is None else 2 * width)
        assert op.sums.shape == (n, weights.spec.rows)
        matrices = weight_records([weights], [None])
        record = _ProjectSum(
            **_addresses(op, "x", "sums"),
            **self._scratch_for("project_sum", n, width, [weights]),
            weights=matrices,
            activation=_ACTIVATIONS[op.activation],
            width=width,
            rows=weights.spec.rows,
            accumulate=op.accumulate,
        )
        keep = (record, op, matrices)
        return self._bound(self._lib.pe_project_sum, keep, n, n)

    def low_rank(self, op: LowRank) -> BoundProduct:
        """See `Kernels.low_rank`."""
        if op.width % LOW_RANK_STEP:
            return self._reference.low_rank(op)
        record, most = low_rank_record(op), len(op.x)
        width = int(record.width + record.padded)
        record.scratch = self._buffer("low_rank", LOW_RANK_TOKENS, width, np.float32)
        return self._bound(self._lib.pe_low_rank, (record, op), most, most)

    def _bound(self, call: Any, keep: tuple[Any, ...], most: int, rows: int) -> BoundProduct:
        """`call` with keep[0], a record that points into the others."""
        address, kernels = ct.addressof(keep[0]), self

        def product(n: int, first: int = 0, _keep: object = keep) -> None:
            assert 0 <= first < n <= most, "more tokens than the buffers hold"
            assert n - first <= rows, "more tokens than the output holds"
            call(kernels.pool, address, n, first)

        return product

    def _scratch_for(
        self, use: str, n: int, width: int, weights: Sequence[Weights]
    ) -> dict[str, int | None]:
        """Addresses of the buffers for n rows of input, of which these kernels keep one each.

        `blocks`: int8 blocks, for quantized matrices, and `plain`: f32 rows, for f32 ones;
        `scratch`: one f32 row a thread, and `products`: a thread's own, for f32 matrices. Shared,
        as operations run one at a time. `project` and `project_sum` have inputs of their own:
        several projects may reuse one.
        """
        is_dense = any(w.spec.format.bits == 32 for w in weights)
        is_quantized = any(w.spec.format.bits < 32 for w in weights)
        room = self._buffer
        return {
            "scratch": room("scratch", self.threads, width, np.float32),
            "blocks": room(use, n, width // BLOCK_COLS * _XBLOCK_BYTES, np.uint8)
            if is_quantized
            else None,
            "plain": room(f"{use} f32", n, width, np.float32) if is_dense else None,
            "products": room("products", self.threads, self._lib.pe_dense_scratch(), np.float32)
            if is_dense
            else None,
        }

    def _buffer(self, use: str, rows: int, width: int, dtype: type[np.generic]) -> int | None:
        """Address of a buffer [rows, width] for this use; its pages take memory when written to."""
        key = use, rows, width
        if key not in self._scratch:
            self._scratch[key] = np.empty((rows, width), dtype)
        return _address(self._scratch[key])

    def close(self) -> None:
        """Stop the threads. Operations bound before must not be called after it."""
        self._pool, self._scratch = None, {}
        self._stop()
        if "_reference" in self.__dict__:
            self._reference.close()


def _check_lengths(length: int, *vectors: F32 | None) -> None:
    assert all(vector is None or vector.shape == (length,) for vector in vectors)


def _no_sums(sums: F64, n: int, first: int = 0) -> None:
    assert 0 <= first < n <= len(sums), "more tokens than the buffers hold"
    sums[first:n] = 0
