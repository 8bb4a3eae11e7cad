"""Several boards in one process: a thread each, and sums added in rank order between them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from picoedge.kernels.loader import load_kernels
from picoedge.model.adapter import AdapterSlice
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice

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


class HeadMeeting(Meeting):
    """And tells the others of the hub's inputs, and gathers logits there, as boards would."""

    def __init__(self, packed: Pack, slices: list[Slice]) -> None:
        super().__init__(len(slices))
        rows = packed.head_shard_rows
        self._columns = [
            slice(s.head_shards.start * rows, s.head_shards.stop * rows) for s in slices
        ]
        self._given: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in slices]
        self._inputs: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in slices]

    def announce(self, x: np.ndarray, position: int, wanted: int) -> None:
        for inputs in self._inputs[1:]:
            inputs.put((x.copy(), position, wanted))

    def end(self) -> None:
        for inputs in self._inputs:
            inputs.put(None)

    def follow(self, rank: int, model: Transformer) -> None:
        while (given := self._inputs[rank].get(timeout=BARRIER_TIMEOUT_S)) is not None:
            model.forward_slice(*given)

    def gatherer(self, rank: int) -> Callable[[np.ndarray], None]:
        def gather(logits: np.ndarray) -> None:
            if rank:
                self._given[rank].put(logits.copy())
                return
            for given, columns in zip(self._given[1:], self._columns[1:], strict=True):
                logits[:, columns] = given.get(timeout=BARRIER_TIMEOUT_S)

        return gather


def with_hub(
    packed: Pack,
    slices: list[Slice],
    run: Callable[[Transformer], T],
    batch: int = 8,
    adapter: Callable[[Slice], AdapterSlice | None] = lambda part: None,
) -> T:
    """What `run` gives on the first board; the others follow it."""
    meeting, results = HeadMeeting(packed, slices), list[T]()

    def board(rank: int) -> None:
        part = slices[rank]
        hooks = {"reduce": meeting.reducer(rank), "gather_logits": meeting.gatherer(rank)}
        if not rank:
            hooks["broadcast_input"] = meeting.announce
        kernels = load_kernels("native", 1)
        own = adapter(part)
        model = Transformer(packed, kernels, 64, batch=batch, part=part, adapter=own, **hooks)
        try:
            if rank:
                meeting.follow(rank, model)
            else:
                results.append(run(model))
        finally:
            model.close()
            if not rank:
                meeting.end()

    threads = [threading.Thread(target=board, args=(rank,)) for rank in range(len(slices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results[0]


def on_boards(
    packed: Pack,
    slices: list[Slice],
    run: Callable[[Transformer], T],
    n_ctx: int = 64,
    adapter: Callable[[Slice], AdapterSlice | None] = lambda part: None,
) -> list[T]:
    """What `run` gives on each board, every board holding one slice on the native backend."""
    meeting, results = Meeting(len(slices)), dict[int, T]()

    def board(rank: int) -> None:
        kernels, reduce = load_kernels("native", 1), meeting.reducer(rank)
        part, own = slices[rank], adapter(slices[rank])
        model = Transformer(packed, kernels, n_ctx, batch=8, reduce=reduce, part=part, adapter=own)
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
