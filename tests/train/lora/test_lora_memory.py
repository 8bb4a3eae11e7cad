"""What fine-tuning takes of memory: as counted, and the first way that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_models import packed_model

from picoedge.errors import MemoryBudgetError
from picoedge.kernels.arrays import Array
from picoedge.kernels.loader import load_training_kernels
from picoedge.model.vjps import MicroBatch
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import TARGETS, AdapterLayout, LoraShape
from picoedge.train.lora.memory import LoraFit, LoraNeeds

N, BASE = 512, 50 << 20


def arrays_of(value: object) -> dict[int, Array]:
    """Arrays below an object of ours, by identity."""
    if isinstance(value, np.ndarray):
        return {id(value): value}
    if isinstance(value, list):
        return {key: each for item in value for key, each in arrays_of(item).items()}
    if type(value).__name__ in ("MicroBatch", "Activations"):
        return arrays_of(list(vars(value).values()))
    return {}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), TARGETS])
def test_bytes_are_those_of_the_arrays(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    model = FrozenModel.of(packed_model(name, tmp_path, 4, blocks=True))
    layout = AdapterLayout.of(model, LoraShape(2, 4.0, targets))
    needs = LoraNeeds(
        model.config, 0, N, N, 0, keeps_heads="o_proj" in targets,
        keeps_product="down_proj" in targets,
    )  # fmt: skip
    parameters = layout.bind(layout.initial(0), layout.initial(0))
    for kept in (0, 2):
        work = MicroBatch(
            model.config, load_training_kernels(), parameters, 1, N, recompute=True,
            kept_layers=kept, head_rows=64,
        )  # fmt: skip
        own = sum(array.nbytes for array in arrays_of(work).values())
        counted = needs.thread(64) + kept * needs.layer - (5 << 20)  # panels, and the thread's own
        assert own <= counted <= 1.3 * own


def found(needs: LoraNeeds, budget: int) -> LoraFit | None:
    try:
        fit = needs.fit(2, budget)
    except MemoryBudgetError:
        return None
    assert fit.nbytes <= budget
    return fit


def test_layers_are_kept_as_far_as_there_is_room(tmp_path: Path) -> None:
    config = FrozenModel.of(packed_model("llama", tmp_path, 4, blocks=True)).config
    config = replace(config, num_hidden_layers=30)
    needs = LoraNeeds(config, 1 << 16, N, N, BASE, keeps_heads=False, keeps_product=False)
    whole = needs.fit(2, 1 << 40)
    assert (whole.threads, whole.kept_layers) == (2, 30)
    with pytest.raises(MemoryBudgetError, match="fine-tuning takes at least"):
        needs.fit(2, BASE)
    budgets = range(whole.nbytes, BASE, -(4 << 20))
    fits = [fit for budget in budgets if (fit := found(needs, budget)) is not None]
    order = [(fit.threads, fit.kept_layers) for fit in fits]
    of_two = [kept for threads, kept in order if threads == 2]
    assert of_two == sorted(of_two, reverse=True)
    assert order[-1][0] == 1
    assert any(0 < kept < 30 for kept in of_two)
