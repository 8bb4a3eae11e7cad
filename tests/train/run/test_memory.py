"""Memory of a run: as its arrays take it, and made to fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training_material import ARCHITECTURES, bound, random_weights, tiny_config

from picoedge.errors import MemoryBudgetError
from picoedge.kernels.loader import load_training_kernels
from picoedge.model.vjps import MicroBatch
from picoedge.train.run.memory import TrainingFit, TrainingNeeds, fit_memory, micro_batch_bytes

MB = 1 << 20


def bytes_in(found: Any, seen: set[int]) -> int:
    """Bytes of all arrays below an object, parameters and kernels left out."""
    if id(found) in seen:
        return 0
    seen.add(id(found))
    if isinstance(found, np.ndarray):
        return 0 if found.base is not None else found.nbytes
    if isinstance(found, dict):
        return sum(bytes_in(each, seen) for each in found.values())
    if isinstance(found, (list, tuple)):
        return sum(bytes_in(each, seen) for each in found)
    skipped = ("_parameters", "_kernels", "_config")
    values = vars(found) if hasattr(found, "__dict__") else {}
    return sum(bytes_in(each, seen) for name, each in values.items() if name not in skipped)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_micro_batch_takes_what_was_estimated(architecture: str, recompute: bool) -> None:
    config = tiny_config(architecture)
    _, parameters = bound(config, random_weights(config))
    kernels = load_training_kernels()
    work = MicroBatch(config, kernels, parameters, 3, 128, recompute=recompute)
    estimate = micro_batch_bytes(config, 3, 128, recompute=recompute)
    assert bytes_in(work, set()) == pytest.approx(estimate, rel=0.02)


def needs(size: int, threads: int, *, recompute: bool) -> int:
    return 100 + threads * size * (10 if recompute else 40)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1000, TrainingFit(4, False, 4, 740)),
        (739, TrainingFit(4, True, 4, 260)),
        (259, TrainingFit(3, True, 4, 220)),
        (219, TrainingFit(2, True, 4, 180)),
        (179, TrainingFit(1, True, 4, 140)),
        (139, TrainingFit(3, True, 1, 130)),
        (119, TrainingFit(1, True, 1, 110)),
    ],
)
def test_first_the_micro_batch_then_threads_which_may_compute_again(
    budget: int, expected: TrainingFit
) -> None:
    assert fit_memory(needs, [4, 3, 2, 1], 16, 4, budget) == expected


@pytest.mark.parametrize("budget", range(110, 800, 30))
def test_threads_do_not_choose_the_micro_batch(budget: int) -> None:
    """Its size decides bits: with one seed and budget it is the same on any number of threads."""
    fits = [fit_memory(needs, [4, 2, 1], 16, threads, budget) for threads in (1, 2, 3, 4, 8)]
    assert len({fit.micro_batch for fit in fits}) == 1
    assert [fit.threads for fit in fits] == sorted(fit.threads for fit in fits)


def test_too_little_memory_is_told_with_the_figures() -> None:
    config = tiny_config("llama")
    real = TrainingNeeds(config, 60_000, 256, 50 * MB)
    with pytest.raises(MemoryBudgetError, match=r"at least 58\.8 MB .* 40 MB may be taken"):
        fit_memory(real, [4, 2, 1], 16, 4, 40 * MB)
