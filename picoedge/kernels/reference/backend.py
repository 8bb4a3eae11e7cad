"""The reference backend: the kernels in NumPy, which also run where there is no C compiler."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picoedge.kernels.api import (
    SUM_STEP,
    Attend,
    BoundAttend,
    BoundProduct,
    LowRank,
    Project,
    ProjectSum,
)
from picoedge.kernels.arrays import F32
from picoedge.kernels.reference.activations import Operand
from picoedge.kernels.reference.attention import NumpyAttend
from picoedge.kernels.reference.matmul import Projection, Summed
from picoedge.kernels.reference.operations import gated, multiply, norm_row, rms_norm
from picoedge.kernels.reference.threads import Program, ThreadPool


class NumpyKernels:
    """The `Kernels` protocol with nothing but NumPy."""

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPool(threads)
        self.threads = self._pool.threads
        self._stop = weakref.finalize(self, self._pool.close)  # also when forgotten

    def project(self, op: Project) -> BoundProduct:
        """See `Kernels.project`."""
        assert all(one.spec.cols == op.source.x.shape[1] for one in op.weights)
        assert not op.weights or op.out.shape[1] == sum(one.total_rows for one in op.weights)
        ends = np.cumsum([one.total_rows for one in op.weights]).tolist()
        added = [
            (slice(end - len(bias), end), bias)
            for bias, end in zip(op.biases, ends, strict=True)
            if bias is not None
        ]
        return NumpyProject(self, self._pool, op, Projection(op.weights), added)

    def attend(self, op: Attend) -> BoundAttend:
        """See `Kernels.attend`."""
        return NumpyAttend(self, self._pool, op)

    def project_sum(self, op: ProjectSum) -> BoundProduct:
        """See `Kernels.project_sum`."""
        matrix, weights = None, op.weights
        if weights is not None and weights.count:
            assert op.x.shape[1] == weights.total_cols * (1 if op.activation is None else 2)
            matrix = Summed(weights, accumulate=op.accumulate)
        return NumpyProjectSum(self, self._pool, op, matrix)

    def low_rank(self, op: LowRank) -> BoundProduct:
        """See `Kernels.low_rank`."""
        return NumpyLowRank(op)

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        self._stop()


@dataclass(frozen=True, eq=False)
class NumpyProject:
    """A bound `Project`. `biases`: (columns of `out`, bias added to them)."""

    kernels: NumpyKernels  # kept alive, and its threads with it
    pool: ThreadPool
    op: Project
    projection: Projection
    biases: list[tuple[slice, F32]]

    def __call__(self, n: int, first: int = 0) -> None:
        assert 0 <= first < n <= len(self.op.source.x), "more tokens than the buffers hold"
        out = self.op.out[: n - first]
        if n - first == 1 and self.projection.all_packed:
            (self._first_row if first == 0 else self._row_program(first)).run()
            self.pool.run_programs(self._programs)
        else:
            self.pool.run(self.projection.jobs(self._input(first, n), out))
        for columns, bias in self.biases:
            out[:, columns] += bias

    @cached_property
    def _operand(self) -> Operand:
        return self.pool.scratch[0].once(self.op.source.x.shape[1], Operand)

    @cached_property
    def _programs(self) -> list[Program]:
        return self.projection.programs(self._operand, self.op.out[0], self.pool.scratch)

    @cached_property
    def _first_row(self) -> Program:
        return self._row_program(0)

    def _row_program(self, row: int) -> Program:
        """The program that makes the operand of one row of the residual stream."""
        source, program = self.op.source, Program()
        x = source.x[row]
        if source.sums is not None and not self.op.reuse_input:
            added = self.pool.scratch[0].take("added", x.shape, np.float32)
            program.add(np.copyto, added, source.sums[row], "same_kind")
            if source.post_norm is not None:
                program.add(norm_row, added, source.post_norm, source.eps, added)
            program.add(np.add, x, added, x)
        program.add(norm_row, x, source.norm, source.eps, self._operand.plain)
        self._operand.prepare(program, self.projection.widths)
        return program

    def _input(self, first: int, n: int) -> F32:
        """Add the pending sums to the residual stream; returns its norm, f32 [n - first, H]."""
        source = self.op.source
        x = source.x[first:n]
        if source.sums is not None and not self.op.reuse_input:
            added = source.sums[first:n].astype(np.float32)
            if source.post_norm is not None:
                added = rms_norm(added, source.post_norm, source.eps)
            x += added
        return rms_norm(x, source.norm, source.eps)


@dataclass(frozen=True, eq=False)
class NumpyProjectSum:
    """A bound `ProjectSum`."""

    kernels: NumpyKernels  # kept alive, and its threads with it
    pool: ThreadPool
    op: ProjectSum
    matrix: Summed | None

    def __call__(self, n: int, first: int = 0) -> None:
        assert 0 <= first < n <= len(self.op.x), "more tokens than the buffers hold"
        if self.matrix is None:
            self.op.sums[first:n] = 0
        elif n == 1 and self.matrix.width < 32:
            self._first_row.run()
            self.pool.run_programs(self._programs)
        else:
            x = self.op.x[: n - first]
            if self.op.activation is not None:
                gate, up = np.split(x, 2, axis=1)
                x = gated(self.op.activation, gate, up, np.empty(up.shape, np.float32))
            self.pool.run(self.matrix.jobs(x, self.op.sums[first:n]))

    @cached_property
    def _operand(self) -> Operand:
        cols = self.op.x.shape[1] // (1 if self.op.activation is None else 2)
        return self.pool.scratch[0].once(cols, Operand)

    @cached_property
    def _programs(self) -> list[Program]:
        assert self.matrix is not None
        return self.matrix.programs(self._operand, self.op.sums[0], self.pool.scratch)

    @cached_property
    def _first_row(self) -> Program:
        """The program that makes the operand of the first row of x."""
        assert self.matrix is not None
        program, plain = Program(), self._operand.plain
        if self.op.activation is None:
            program.add(np.copyto, plain, self.op.x[0])
        else:
            cols = len(plain)
            program.add(gated, self.op.activation, self.op.x[0, :cols], self.op.x[0, cols:], plain)
        self._operand.prepare(program, {self.matrix.width})
        return program


@dataclass(frozen=True, eq=False)
class NumpyLowRank:
    """A bound `LowRank`, on the calling thread: both products are small."""

    op: LowRank

    def __call__(self, n: int, first: int = 0) -> None:
        assert 0 <= first < n <= len(self.op.x), "more tokens than the buffers hold"
        op, x = self.op, self._input(first, n)
        for part in op.parts:
            (cols, _), (rank, rows) = part.a.shape, part.b.shape
            shrunk = np.empty((len(x), rank), np.float32)
            multiply(x[:, part.column : part.column + cols], part.a[:, :rank], shrunk)
            added = np.empty((len(x), rows), np.float32)
            multiply(shrunk, part.b, added)
            columns = slice(part.out_offset, part.out_offset + rows)
            if op.out is not None:
                op.out[: n - first, columns] += added
            else:
                assert op.sums is not None
                op.sums[first:n, columns] += np.rint(added / SUM_STEP, dtype=np.float64) * SUM_STEP

    def _input(self, first: int, n: int) -> F32:
        """The input of the product, f32 [n - first, width]."""
        op = self.op
        if op.source is not None:
            return rms_norm(op.x[first:n], op.source.norm, op.source.eps)
        x = op.x[: n - first]
        if op.activation is None:
            return x
        gate, up = np.split(x, 2, axis=1)
        return gated(op.activation, gate, up, np.empty(up.shape, np.float32))
