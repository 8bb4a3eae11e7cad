"""Another library's rounding mode, and its flushing to zero, change no bit of any kernel.

Numbers given to kernels are exact in f32: what Python itself computes follows the process's mode.
"""

from __future__ import annotations

import ctypes as ct
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kernel_levels import built_levels
from kernels_material import Conversation, Input, draw_shards, pack, summed

from picoedge.kernels.api import AttentionShape
from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Weights
from picoedge.kernels.native import NativeKernels, open_library
from picoedge.kernels.sums import GradientSums
from picoedge.kernels.training import AdamStep, Attention, NativeTrainingKernels
from picoedge.kernels.training_abi import SUM_BLOCK

SOURCE = """
#if defined(__x86_64__)
#include <xmmintrin.h>
unsigned long mode(void) { return _mm_getcsr() & ~0x3fu; }
void set(unsigned long to) { _mm_setcsr((unsigned)to); }
unsigned long disturbed(void) { return 0x1f80 | 0x8040 | 0x6000; } /* to zero; flush, in and out */
#else
unsigned long mode(void) { unsigned long m; __asm__ volatile("mrs %0, fpcr" : "=r"(m)); return m; }
void set(unsigned long to) { __asm__ volatile("msr fpcr, %0" : : "r"(to)); }
unsigned long disturbed(void) { return 3ul << 22 | 1ul << 24; }
#endif
float product(volatile float a, volatile float b) { return a * b; }
"""
TINY = 1e-20  # its square is subnormal


class Disturbance:
    """A library that sets the mode of the thread that calls it."""

    def __init__(self, folder: Path) -> None:
        (folder / "mode.c").write_text(SOURCE)
        compiler = shlex.split(os.environ.get("CC") or "gcc")
        command = [*compiler, "-shared", "-fPIC", folder / "mode.c", "-o", folder / "mode.so"]
        subprocess.run(command, check=True)
        self._library = ct.CDLL(str(folder / "mode.so"))
        for name in ("mode", "disturbed"):
            getattr(self._library, name).restype = ct.c_ulong
        self._library.set.argtypes = [ct.c_ulong]
        self._library.product.argtypes = [ct.c_float, ct.c_float]
        self._library.product.restype = ct.c_float

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = self._library.mode()
        assert self._library.product(TINY, TINY) > 0
        try:
            self._library.set(self._library.disturbed())
            assert self._library.product(TINY, TINY) == 0
            yield
            assert self._library.mode() == self._library.disturbed(), "it is given back"
        finally:
            self._library.set(before)


@pytest.fixture(scope="module")
def disturbance(tmp_path_factory: pytest.TempPathFactory) -> Disturbance:
    return Disturbance(tmp_path_factory.mktemp("mode"))


def small(*shape: int, seed: int = 0, size: float = 1.0) -> F32:
    """Numbers of all sizes whose products are often subnormal, and others that round."""
    return _drawn(shape, seed, size).copy()


@cache  # NumPy's numbers are not to be drawn in another mode
def _drawn(shape: tuple[int, ...], seed: int, size: float) -> F32:
    random = np.random.default_rng([seed, *shape])
    sizes = size * 10.0 ** random.integers(-24, 2, shape)
    return (random.standard_normal(shape) * sizes).astype(np.float32)


def multiply(kernels: NativeTrainingKernels) -> list[Array]:
    out = np.empty((9, 21), np.float32)
    kernels.multiply(small(9, 300), small(21, 300).T, out)
    return [out]


def norms(kernels: NativeTrainingKernels) -> list[Array]:
    x, out, scale = small(5, 48), np.empty((5, 48), np.float32), np.empty(5, np.float32)
    dx, dgain = np.zeros_like(x), np.zeros(48, np.float32)
    kernels.norm(x, small(48), out, scale, 2.0**-20)
    kernels.norm_vjp(x, small(48), scale, small(5, 48, seed=1), dx, dgain)
    return [out, scale, dx, dgain]


def rotation(kernels: NativeTrainingKernels) -> list[Array]:
    x = small(7, 64)
    kernels.rotate(x, (small(7, 8), small(7, 8, seed=1)), 2, 16)
    return [x]


def attention(kernels: NativeTrainingKernels) -> list[Array]:
    qkv, d_out = small(70, 64), small(70, 32, seed=1)
    out, dqkv = np.empty_like(d_out), np.empty_like(qkv)
    tops, scales = (np.empty((2, 70), np.float32) for _ in range(2))
    op = Attention(AttentionShape(2, 1, 16, 0.25, 40), qkv, out, tops, scales)
    kernels.attention(op)
    kernels.attention_vjp(op, d_out, dqkv)
    return [out, tops, scales, dqkv]


def gates(kernels: NativeTrainingKernels) -> list[Array]:
    results = []
    for activation in ("silu", "gelu_tanh"):
        gate_up, out = small(5, 64), np.empty((5, 32), np.float32)
        kernels.gated(gate_up, out, activation)
        kernels.gated_vjp(gate_up, small(5, 32, seed=1), activation)
        results += [out, gate_up]
    return results


def losses(kernels: NativeTrainingKernels) -> list[Array]:
    logits, found = small(6, 96, size=90), np.empty(6)
    kernels.cross_entropy(logits, np.arange(-1, 5, dtype=np.int32), found, 2.0**-30)
    return [logits, found]


def rows(kernels: NativeTrainingKernels) -> list[Array]:
    table = small(4, 16)
    kernels.add_rows(small(9, 16, seed=1), np.arange(9, dtype=np.int32) % 4, table)
    return [table]


STEP = AdamStep(0.75, 0.875, 0.125, 0.96875, 0.03125, 0.9990234375, 2.0**-10, 1.5, 2.0**-27)


def adamw(kernels: NativeTrainingKernels) -> list[Array]:
    weights, m, v = small(500), small(500, seed=1), abs(small(500, seed=2))
    kernels.adamw(STEP, weights, m, v, small(500, seed=3))
    return [weights, m, v]


def squares(kernels: NativeTrainingKernels) -> list[Array]:
    sums = np.empty(1)
    kernels.squares(small(700, size=1e-20), sums)
    return [sums]


OPERATIONS = (
    multiply, norms, rotation, attention, gates, losses, rows, adamw, squares
)  # fmt: skip


@pytest.fixture(scope="module")
def training() -> list[NativeTrainingKernels]:
    return [NativeTrainingKernels(ct.CDLL(str(path)), path.stem) for path in built_levels()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
def test_training(
    training: list[NativeTrainingKernels],
    disturbance: Disturbance,
    operation: Callable[[NativeTrainingKernels], list[Array]],
) -> None:
    for kernels in training:
        want = [each.tobytes() for each in operation(kernels)]
        with disturbance():
            got = [each.tobytes() for each in operation(kernels)]
        assert got == want


@pytest.mark.parametrize("path", built_levels(), ids=lambda path: path.stem)
def test_sums(disturbance: Disturbance, path: Path) -> None:
    library, gradient = ct.CDLL(str(path)), small(2 * SUM_BLOCK)
    gradient[SUM_BLOCK] = 100  # a block of wide integers
    results = []
    for is_disturbed in (False, True):
        sums, out = GradientSums(library, 2 * SUM_BLOCK, 3), np.empty_like(gradient)
        with disturbance() if is_disturbed else _as_it_is():
            for _ in range(3):
                sums.add(gradient)
            sums.take(out)
        results.append(out.tobytes())
    assert results[0] == results[1]


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", built_levels(), ids=lambda path: path.stem)
def test_inference(disturbance: Disturbance, path: Path, threads: int) -> None:
    """Threads that start meanwhile have the disturbed mode, until they change it."""
    source = Input(small(3, 64), None, None, small(64, seed=1))
    spec = MatrixSpec(FORMATS["f32"], 40, 64)
    matrix = Weights(spec, small(40, 64).view(np.uint8).ravel(), spec.nbytes, 1)
    quantized = pack("q4k", draw_shards("q4k", 40, 64, 1, 1))
    talks = [Conversation.draw(AttentionShape(2, 1, 16, 0.25), 20, 2, bits) for bits in (32, 16, 8)]

    def results() -> list[bytes]:
        kernels = NativeKernels(open_library(path), threads)
        found, sums = [talk.attend(kernels) for talk in talks], []
        for weights in (matrix, quantized):
            for n in (1, 3):
                some = Input(source.x[:n], None, None, source.norm)
                found.append(some.project(kernels, [weights])[0])
                sums.append(summed(kernels, source.x[:n], None, weights))
        kernels.close()
        return [each.tobytes() for each in (*found, *sums)]

    want = results()
    with disturbance():
        got = results()
    assert got == want
