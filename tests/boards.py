"""Several boards in one process: a thread each, and sums added in rank order between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.reader import Pack
from picoedge.store.slices import Slice

BARRIER_TIMEOUT_S = 30

T = TypeVar("T")


class Meeting:
    """Adds the sums of all ranks, in rank order, as boards would over a network."""

    def __init__(self, ranks: int) -> None:
        self._parts: list[np.ndarray | None] = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=BARRIER_TIMEOUT_S)

    def reducer(self, rank: int) -> Callable[[np.ndarray], None]:
        """The `reduce` of one rank's model."""

        def reduce(sums: np.ndarray) -> None:
            self._parts[rank] = sums.copy()
            self._barrier.wait()
            total = np.zeros_like(sums)
            for part in self._parts:
                assert part is not None
                total += part
            self._barrier.wait()
            sums[...] = total

        return reduce


def on_boards(
    packed: Pack, slices: list[Slice], run: Callable[[Transformer], T], n_ctx: int = 64
) -> list[T]:
    """What `run` gives on each board, every board holding one slice on the native twin."""
    meeting, results = Meeting(len(slices)), dict[int, T]()

    def board(rank: int) -> None:
        kernels, reduce = load_kernels("native", 1), meeting.reducer(rank)
        model = Transformer(packed, kernels, n_ctx, batch=8, reduce=reduce, part=slices[rank])
        try:
            results[rank] = run(model)
        finally:
            model.close()

    threads = [threading.Thread(target=board, args=(rank,)) for rank in range(len(slices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(slices))]
