"""A long chunk of a slice passes in two lanes, which changes no bit and hides what sums take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from random_models import CASES, VOCAB, packed_model
from window_models import keep_none, keep_others, plan_of, windowed

from picoedge.kernels.arrays import F64
from picoedge.kernels.loader import load_kernels
from picoedge.model.bound_kernels import LANE_STEP, LANES_FROM, Reduce, lanes_of
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack

TOKENS = [(31 * i + 7) % VOCAB for i in range(LANES_FROM + LANE_STEP + 3)]


class Sums:
    """Sums of boards that are far away: what a board added is back only once it is asked for."""

    def __init__(self) -> None:
        self.under_way: list[F64] = []
        self.most = 0

    def begin(self, sums: F64) -> Callable[[], None]:
        self.under_way.append(sums)
        self.most = max(self.most, len(self.under_way))
        kept = sums.copy()
        sums[...] = np.nan

        def finish() -> None:
            assert self.under_way.pop(0) is sums, "sums end in the order in which they were begun"
            sums[...] = kept

        return finish


@contextmanager
def model_of(
    packed: Pack, backend: str, reduce: Reduce | None, batch: int = 128
) -> Iterator[Transformer]:
    model = Transformer(packed, load_kernels(backend, 2), 128, batch=batch, reduce=reduce)
    try:
        yield model
    finally:
        model.close()


def logits_of(model: Transformer) -> np.ndarray:
    """Of every token of a prompt, and of one after it."""
    rows = [row.copy() for row in model.forward_all(TOKENS, 0)]
    return np.vstack([*rows, model.forward([5], len(TOKENS))[None]])


@pytest.mark.parametrize("n", [1, LANES_FROM - 1, LANES_FROM, 100, 256, 257])
def test_lanes_are_every_token_once(n: int) -> None:
    assert [(lane.first, lane.end) for lane in lanes_of(n, 7, tied=False)] == [(0, n)]
    lanes = lanes_of(n, 7, tied=True)
    assert len(lanes) == (2 if n >= LANES_FROM else 1)
    assert [i for lane in lanes for i in range(lane.first, lane.end)] == list(range(n))
    assert all(lane.position == 7 + lane.first for lane in lanes)
    assert all(lane.n for lane in lanes)


@pytest.mark.parametrize("case", CASES)
def test_sums_that_are_under_way_change_no_bit(case: str, tmp_path: Path) -> None:
    packed, sums = packed_model(case, tmp_path, 8, blocks=True), Sums()
    with model_of(packed, "native", None) as alone, model_of(packed, "native", sums.begin) as tied:
        np.testing.assert_array_equal(logits_of(tied), logits_of(alone))
    assert sums.most == 2
    assert not sums.under_way


def test_lanes_of_the_numpy_backend_are_as_two_chunks(tmp_path: Path) -> None:
    """There, how many tokens are computed together may change their last bits."""
    packed, sums = packed_model("llama", tmp_path, 8, blocks=True), Sums()
    with model_of(packed, "numpy", None) as alone, model_of(packed, "numpy", sums.begin) as tied:
        got = [row.copy() for row in tied.forward_all(TOKENS, 0)]
        want = [
            row.copy()
            for lane in lanes_of(len(TOKENS), 0, tied=True)
            for row in alone.forward_all(TOKENS[lane.first : lane.end], lane.position)
        ]
    np.testing.assert_array_equal(np.vstack(got), np.vstack(want))
    assert sums.most == 2


@pytest.mark.parametrize("keep", [keep_none, keep_others])
def test_lanes_share_what_is_streamed(keep: Callable[..., bool], tmp_path: Path) -> None:
    packed, sums = packed_model("llama", tmp_path, 8, blocks=True), Sums()
    plan = plan_of(packed, keep=keep)
    with model_of(packed, "native", None) as alone:
        want = logits_of(alone)
    with windowed(
        packed, plan, "direct", "native", batch=128, n_ctx=128, reduce=sums.begin
    ) as tied:
        tied.forward(TOKENS, 0)
        np.testing.assert_array_equal(tied.forward([5], len(TOKENS)), want[-1])
        assert tied.bytes_streamed <= 2.5 * plan.streamed_bytes  # each once a pass, and ahead
    assert sums.most == 2
