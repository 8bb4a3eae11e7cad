"""What fits which memory, and the figures of the catalogue."""

from __future__ import annotations

import pytest

from bench.catalogue_sizes import SHAPES, sizes_of
from picoedge.registry.catalogue import built_in_folder, load_catalogue
from picoedge.registry.fits import NOT, STREAMED, WHOLE, MemoryOfModel
from picoedge.units import MB

MODEL = MemoryOfModel(1000 * MB, 200 * MB)


@pytest.mark.parametrize(
    ("available", "fit"),
    [(1000 * MB, WHOLE), (999 * MB, STREAMED), (200 * MB, STREAMED), (199 * MB, NOT), (0, NOT)],
)
def test_one_board(available: int, fit: str) -> None:
    assert MODEL.on_board(available) == fit


@pytest.mark.parametrize(
    ("budgets", "fit"),
    [([600, 600], WHOLE), ([500, 500], STREAMED), ([1000], WHOLE), ([150, 150], NOT), ([], NOT)],
)
def test_several_boards(budgets: list[int], fit: str) -> None:
    assert MODEL.over_boards([budget * MB for budget in budgets]) == fit


def test_a_pack_without_an_entry_is_estimated() -> None:
    memory = MemoryOfModel.of_pack(400 * MB)
    assert memory.least < memory.whole
    assert memory.whole > 400 * MB


def test_the_catalogues_figures_are_those_of_its_shapes() -> None:
    entries = load_catalogue([built_in_folder()])
    computed = {shape.name: sizes_of(shape) for shape in SHAPES}
    told = {entry.name: entry for entry in entries.values() if not entry.measured}
    assert len(entries) >= 11
    for name, entry in told.items():
        sizes = computed[name]
        assert (entry.n_bytes, entry.memory_bytes) == (sizes.weights, sizes.memory), name
        assert entry.least_memory_bytes == sizes.least
        assert entry.hub_name is not None
        assert entry.parameters
    assert told
