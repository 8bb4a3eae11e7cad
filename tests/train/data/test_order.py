"""The order of samples: each once an epoch, another order in each."""

from __future__ import annotations

import pytest

from picoedge.train.data.order import SampleOrder


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_each_sample_is_seen_once_an_epoch(count: int) -> None:
    order = SampleOrder(count, seed=5)
    epochs = [[order.sample(e * count + i) for i in range(count)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count >= 64:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != list(range(count))


def test_the_seed_decides() -> None:
    one, two = ([SampleOrder(100, seed).sample(i) for i in range(100)] for seed in (1, 2))
    assert one != two
    assert one == [SampleOrder(100, 1).sample(i) for i in range(100)]
