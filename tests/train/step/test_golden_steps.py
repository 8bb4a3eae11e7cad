"""The bits of a run: of its first weights, and of some steps on every level.

A test that fails here says that the arithmetic of a run has changed: runs that were begun before
cannot go on. `kernels.training.VERSION` is then to be raised, which refuses them.
"""

from __future__ import annotations

import ctypes as ct
import hashlib
import platform
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from picoedge.kernels import loader, training
from picoedge.kernels.arrays import F32
from picoedge.kernels.sums import GradientSums
from picoedge.kernels.training import NativeTrainingKernels
from picoedge.train.data.order import mix
from picoedge.train.presets import preset
from picoedge.train.state.initial import fill_normal, fill_uniform, random_bits, tensor_key
from picoedge.train.state.layout import Layout
from picoedge.train.step.batch import Batch
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import StepSettings, Trainer, TrainingState

LAYOUT = Layout.of(preset("1m", 256))
SETTINGS = StepSettings(2, 1, 256, Schedule(3e-3, 1, 3))
KERNELS = Path(loader.__file__).parent


def hash_of(values: F32) -> str:
    return hashlib.blake2b(values.astype("<f4").tobytes(), digest_size=8).hexdigest()


def test_the_first_weights() -> None:
    weights = LAYOUT.initial(0)
    assert hash_of(weights) == "708b55f22d71033b"
    assert hash_of(LAYOUT.initial(1)) != hash_of(weights)
    for name, deviation in (("embedding", 0.02), ("0.qkv", 0.02), ("3.down", 0.02 / 8**0.5)):
        drawn = LAYOUT.tensors[name].of(weights)
        assert drawn.std() == pytest.approx(deviation, rel=0.01)
        assert abs(drawn.mean()) < deviation / 100
        assert (np.abs(drawn) < 2 * deviation).mean() == pytest.approx(0.9545, abs=0.004)
    assert (LAYOUT.tensors["final_norm"].of(weights) == 1).all()


def test_numbers_are_those_of_the_mixer_wherever_a_span_begins() -> None:
    golden = 0x9E3779B97F4A7C15
    key = tensor_key(7, 3)
    wanted = [mix((key + golden * n) % 2**64) for n in range(5, 9)]
    assert random_bits(key, 5, 4).tolist() == wanted
    long, short = np.empty(200_000, np.float32), np.empty((7, 10), np.float32)
    for fill in (fill_normal, fill_uniform):
        fill(long, key, 0.5)
        fill(short, key, 0.5)
        np.testing.assert_array_equal(long[:70], short.ravel())
    assert np.abs(long).max() <= 0.5
    assert long.std() == pytest.approx(0.5 / 3**0.5, rel=0.01)
    assert hash_of(long) == "f76f6ee07ae0db64"


def levels() -> list[str]:
    flags = loader.cpu_flags(Path("/proc/cpuinfo").read_text())
    return loader.usable_levels(platform.machine(), flags)


@pytest.mark.parametrize("level", levels())
def test_the_weights_after_three_steps(level: str) -> None:
    library = ct.CDLL(str(KERNELS / f"_native_{level}.so"))
    sums = GradientSums(library, LAYOUT.length, SETTINGS.micro_batches)
    state = TrainingState.initial(LAYOUT, 0)
    with closing(
        Trainer(
            LAYOUT, state, SETTINGS, sums, lambda: NativeTrainingKernels(library, level), threads=2
        )
    ) as trainer:
        losses = [trainer.step(tokens_of(step)).loss for step in (1, 2, 3)]
    assert losses[-1] < losses[0]
    assert hash_of(state.weights) == "cc9ba2644feeec69"
    assert f"{losses[-1]:.17g}" == "6.1257013513908731"


def tokens_of(step: int) -> Batch:
    count = SETTINGS.micro_batches * 257
    drawn = [mix(mix(step) ^ number) % 64 for number in range(count)]
    return Batch.of_windows(np.array(drawn, np.int32).reshape(SETTINGS.micro_batches, 1, 257))


def test_constants_that_a_run_records_are_those_of_the_c_files() -> None:
    for file, constant in (("sgemm.h", "DEPTH"), ("training.c", "QUERIES")):
        found = re.search(rf"enum {{ {constant} = (\d+) }}", (KERNELS / file).read_text())
        assert found is not None
        assert int(found[1]) == getattr(training, constant)
