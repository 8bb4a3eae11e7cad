"""Weight stores: all weights mapped, or by a plan, resident units and a window for the rest.

Resident units are loaded into own memory by several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from picoedge.errors import PicoedgeError
from picoedge.files import READ_STALL_S, StallDetector, aborted_read, attempt, start_thread
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import RowGather, Weights
from picoedge.store.pages import anonymous, forget_anonymous, page_range
from picoedge.store.shards import Slice, Unit, UnitKind
from picoedge.store.window.io import (
    READERS,
    DirectIO,
    Files,
    MappedIO,
    WindowIO,
    check_hashes,
    read_unit,
)
from picoedge.store.window.plan import WindowPlan
from picoedge.store.window.read_ahead import Usage
from picoedge.store.window.window import Window, no_answer

if TYPE_CHECKING:
    from picoedge.store.pack.reader import Pack


CheckUnit = Callable[[Unit, U8], None]
OnBytes = Callable[[int], None]
"""called with the bytes just read"""


def _nothing() -> None:
    """Resident weights need no waiting."""


@dataclass(frozen=True, eq=False)
class BoundSpan:
    """Matrices of a span of shards: call `acquire` before their use, `release` after it."""

    shards: range
    weights: dict[str, Weights]
    acquire: Callable[[], None] = _nothing
    release: Callable[[], None] = _nothing


class RowTable(Protocol):
    """An embedding: one row per token."""

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i], out f32 [>= n, hidden]."""


class WeightStore(Protocol):
    """Source of a transformer's weights."""

    @property
    def part(self) -> Slice:
        """The shards in the store."""

    @property
    def usage(self) -> Usage:
        """Counters of reading."""

    def spans(self, kind: UnitKind, layer: int) -> Sequence[BoundSpan]:
        """Spans of a kind in a layer, in order of use; a token uses all of them."""

    def embedding(self) -> RowTable:
        """The embedding of tokens."""

    def close(self) -> None:
        """Stop reading. Idempotent."""


class MappedWeights:
    """A whole slice, mapped: held by the page cache, which other processes may share."""

    def __init__(self, pack: Pack, part: Slice | None = None) -> None:
        self._pack = pack
        self.part = part or pack.all_shards
        self.usage = Usage()

    def spans(self, kind: UnitKind, layer: int) -> Sequence[BoundSpan]:
        """See `WeightStore.spans`."""
        part = self.part
        shards = {"attention": part.attention, "ffn": part.ffn, "head": part.head_shards}[kind]
        return [BoundSpan(shards, self._pack.mapped(kind, layer, shards))] if shards else []

    def embedding(self) -> RowTable:
        """See `WeightStore.embedding`."""
        self._pack.check_rows()
        embedding = self._pack.embedding
        return RowGather(embedding) if isinstance(embedding, Weights) else embedding

    def close(self) -> None:
        """Nothing to stop."""


class EmptyWeights:
    """No shards, to measure what a model takes beside them."""

    def __init__(self, pack: Pack, *, owns_head: bool = True) -> None:
        """`owns_head`: with an embedding, though without logits."""
        self._pack, self.usage = pack, Usage()
        self.part = Slice(range(0), range(0), owns_head=owns_head)

    def spans(self, kind: UnitKind, layer: int) -> Sequence[BoundSpan]:
        """None."""
        return []

    def embedding(self) -> RowTable:
        """See `WeightStore.embedding`."""
        return self._pack.row_reader()

    def close(self) -> None:
        """Nothing to stop."""


class StreamedWeights:
    """Weights by a plan: resident units in own memory, the others through a window."""

    def __init__(
        self,
        pack: Pack,
        part: Slice,
        plan: WindowPlan,
        *,
        io: str,
        read_ahead: int = 0,
        verify: bool = False,
        progress: OnBytes | None = None,
    ) -> None:
        """Read the resident units; `progress` is called for each.

        `io`: "direct" or "mmap". Raises StorageError, and with `verify` ModelError on a wrong hash.
        """
        self._pack, self.part, self.plan = pack, part, plan
        self._mode, self._read_ahead, self._verify = io, read_ahead, verify
        self._progress = progress
        self.resident: dict[Unit, U8] = {}
        self._spans: dict[tuple[UnitKind, int], list[BoundSpan]] = {}
        self._window: Window | None = None
        self._io: WindowIO | None = None
        self._past = Usage()  # of replaced windows
        self.replan(plan)
        self._progress = None

    def replan(self, plan: WindowPlan) -> None:
        """Change to another plan of the same shards; units resident in both stay in place.

        The caller must have dropped all `BoundSpan`s, or their memory is not freed. Raises as the
        constructor.
        """
        self.close()
        self._past, self._window, self._io = self.usage, None, None
        self._spans = {}  # frees the old ring before anything is allocated
        self.plan = plan
        for unit in self.resident.keys() - plan.resident:
            forget_anonymous(self.resident.pop(unit))
        wanted = [unit for unit in plan.units if unit in plan.resident]
        missing = [unit for unit in wanted if unit not in self.resident]
        check = self._compare if self._verify else None
        self.resident |= read_units(self._pack.path, missing, check, self._progress)
        if plan.streamed:
            self._window = self._open_window()
        self._bind()

    def _open_window(self) -> Window:
        plan = self.plan
        self._io = io = self._make_io()
        return Window(
            plan.streamed,
            plan.ring,
            io,
            folder=self._pack.path,
            readers=READERS if self._mode == "direct" else 1,
            check=(lambda unit: self._compare(unit, io.array(unit))) if self._verify else None,
        )

    def _make_io(self) -> WindowIO:
        streamed, ring = self.plan.streamed, self.plan.ring
        files = Files(self._pack.path, direct=self._mode == "direct")
        if self._mode == "mmap":
            return MappedIO(files, streamed, self._read_ahead)
        return DirectIO(files, ring.nbytes, dict(zip(streamed, ring.places, strict=True)))

    def _compare(self, unit: Unit, data: U8) -> None:
        check_hashes(self._pack.path, unit, data, self._pack.unit_hashes(unit))

    def _bind(self) -> None:
        index = 0
        for unit in self.plan.units:
            spans = self._spans.setdefault((unit.kind, unit.layer), [])
            if unit in self.plan.resident:
                weights = self._pack.weights_in(unit, self.resident[unit])
                spans.append(BoundSpan(unit.shards, weights))
                continue
            assert self._window is not None
            assert self._io is not None
            weights = self._pack.weights_in(unit, self._io.array(unit))
            acquire = partial(self._window.acquire, index)
            spans.append(
                BoundSpan(unit.shards, weights, acquire, partial(self._window.release, index))
            )
            index += 1

    @property
    def usage(self) -> Usage:
        """Counters of all windows so far."""
        if self._window is None:
            return self._past
        return self._past + self._window.usage

    def spans(self, kind: UnitKind, layer: int) -> Sequence[BoundSpan]:
        """See `WeightStore.spans`."""
        return self._spans.get((kind, layer), [])

    def embedding(self) -> RowTable:
        """See `WeightStore.embedding`."""
        return self._pack.row_reader()

    def close(self) -> None:
        """See `WeightStore.close`."""
        if self._window is not None:
            self._window.close()


def read_units(
    folder: Path,
    units: Iterable[Unit],
    check: CheckUnit | None,
    progress: OnBytes | None = None,
    *,
    stall_s: float = READ_STALL_S,
) -> dict[Unit, U8]:
    """Bytes of each unit, u8 [nbytes], in one block of anonymous memory.

    Raises StorageError, MemoryBudgetError, and the errors of `check`. Files are closed after the
    last read, which may be later where a read hangs or an interrupt comes.
    """
    load = _Load(Files(folder, direct=True), units, check, progress)
    threads = []
    try:
        threads = [load.start(f"load-{i}") for i in range(READERS)]
        load.wait(stall_s)
    finally:
        load.stop()
    for thread in threads:
        thread.join()
    if load.error is not None:
        raise load.error
    return load.arrays


class _Load:
    """State shared by the threads of one load."""

    def __init__(
        self, files: Files, units: Iterable[Unit], check: CheckUnit | None, progress: OnBytes | None
    ) -> None:
        self.files, self.arrays = files, dict[Unit, U8]()
        units = list(units)
        self._places = _places(units)
        self.error: PicoedgeError | None = None
        self._check, self._progress = check, progress
        self._units, self._working, self._stopped = iter(units), 0, False
        self._in_flight: dict[Unit, int] = {}  # unit -> offset read up to
        self._finished = 0
        self._progressed = threading.Condition()

    def start(self, name: str) -> threading.Thread:
        """Start a reader thread. Raises MemoryBudgetError."""
        with self._progressed:
            thread = start_thread(self._work, name)
            self._working += 1
            return thread

    def wait(self, stall_s: float) -> None:
        """Wait for all threads. Raises StorageError where no read finishes for `stall_s`."""
        detector = StallDetector(stall_s)
        with self._progressed:
            while self._working:
                self._progressed.wait(detector.poll_s)
                if detector.stalled(self._finished) and self._in_flight:
                    unit, offset = next(iter(self._in_flight.items()))
                    raise self.error or no_answer(self.files.folder, unit, stall_s, offset)

    def stop(self) -> None:
        """Begin no other unit; the last thread to end closes the files."""
        with self._progressed:
            self._stopped = True
            self._close_if_idle()

    def _work(self) -> None:
        """Read unit after unit until the last, or an error."""
        try:
            while (unit := self._next()) is not None:
                self._read_one(unit)
        finally:
            with self._progressed:
                self._working -= 1
                self._close_if_idle()
                self._notify()

    def _read_one(self, unit: Unit) -> None:
        where = f"{self.files.folder / unit.file}, shard {unit.shard_at(unit.offset)}"
        error: PicoedgeError | None = None
        try:
            error = attempt(partial(self._read, unit), where)
        except BaseException:
            error = aborted_read(where)
            raise
        finally:
            with self._progressed:
                del self._in_flight[unit]
                self.error = self.error or error
                self._notify()

    def _read(self, unit: Unit) -> None:
        array = read_unit(self.files, unit, self._places[unit], partial(self._advanced, unit))
        if self._check is not None:
            self._check(unit, array)
        with self._progressed:
            self.arrays[unit] = array
            if self._progress is not None:
                self._progress(unit.nbytes)

    def _next(self) -> Unit | None:
        with self._progressed:
            unit = None if self._stopped or self.error is not None else next(self._units, None)
            if unit is not None:
                self._in_flight[unit] = unit.offset
            return unit

    def _advanced(self, unit: Unit, offset: int) -> None:
        with self._progressed:
            self._in_flight[unit] = min(offset, unit.end - 1)
            self._notify()

    def _notify(self) -> None:
        self._finished += 1
        self._progressed.notify_all()

    def _close_if_idle(self) -> None:
        if self._stopped and not self._working:
            self.files.close()


def _places(units: list[Unit]) -> dict[Unit, U8]:
    """Memory for the pages of each unit, in one block: huge pages do not end where units do."""
    sizes = [last - first for first, last in map(page_range, units)]
    block, ends = anonymous(sum(sizes)), accumulate(sizes)
    return {
        unit: block[end - size : end] for unit, size, end in zip(units, sizes, ends, strict=True)
    }
