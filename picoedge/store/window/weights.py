"""Weight stores: all weights mapped, or by a plan, resident units and a window for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from picoedge.files import READ_STALL_S
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import RowGather, Weights
from picoedge.store.pages import forget_anonymous
from picoedge.store.reads import Files, check_hashes
from picoedge.store.shards import Slice, Unit, UnitKind
from picoedge.store.window.io import READERS, DirectIO, MappedIO, WindowIO
from picoedge.store.window.plan import Forecast, Ring, WindowPlan, page_bytes
from picoedge.store.window.read_ahead import CheckUnit, Usage, Window
from picoedge.store.window.set_aside import SetAside, set_aside

if TYPE_CHECKING:
    from picoedge.store.pack.reader import Pack

OnBytes = Callable[[int], None]
"""called with the bytes just read"""
NOTHING_HELD = WindowPlan((), frozenset(), Ring((), (), 0), Forecast(0.0, 0.0, 0.0))
"""plan of no shards, to measure what a model takes beside them"""


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

    def rewind(self) -> None:
        """The next pass begins at the first unit. The caller must have dropped all spans."""

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
        shards = self.part.of(kind)
        return [BoundSpan(shards, self._pack.mapped(kind, layer, shards))] if shards else []

    def embedding(self) -> RowTable:
        """See `WeightStore.embedding`."""
        self._pack.check_rows()
        embedding = self._pack.embedding
        return RowGather(embedding) if isinstance(embedding, Weights) else embedding

    def rewind(self) -> None:
        """Mapped weights have no order."""

    def close(self) -> None:
        """See `WeightStore.close`: the pages may stay in the page cache, not in this process."""
        self._pack.unmap_pages()


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
        aside: SetAside | None = None,
    ) -> None:
        """Read the resident units; `progress` is called for each.

        `aside` has units that need not be read. `io`: "direct" or "mmap". Raises
        StorageError, and with `verify` ModelError on a wrong hash.
        """
        self._pack, self.part, self.plan = pack, part, plan
        self._mode, self._read_ahead = io, read_ahead
        self._check = self._compare if verify else None
        self.resident: dict[Unit, U8] = self._taken(aside) if aside else {}
        self._spans: dict[tuple[UnitKind, int], list[BoundSpan]] = {}
        self._window: Window | None = None
        self._past = Usage()  # of replaced windows
        self.replan(plan, progress)

    def _taken(self, aside: SetAside) -> dict[Unit, U8]:
        taken = aside.take(self.plan.resident)
        if self._check is not None:
            for unit, array in taken.items():
                self._check(unit, array)
        return taken

    def set_aside(self) -> int:
        """Move the resident units into a file of memory, whose descriptor this returns.

        Nothing but `close` may follow. Raises OSError.
        """
        self._spans = {}
        return set_aside(self.resident)

    def replan(self, plan: WindowPlan, progress: OnBytes | None = None) -> None:
        """Change to another plan of the same shards; units resident in both stay in place.

        The caller must have dropped all `BoundSpan`s, or their memory is not freed. Raises as the
        constructor.
        """
        self._close_window()
        self._spans = {}  # frees the old ring before anything is allocated
        self.plan = plan
        for unit in self.resident.keys() - plan.resident:
            forget_anonymous(self.resident.pop(unit))
        wanted = [unit for unit in plan.units if unit in plan.resident]
        missing = [unit for unit in wanted if unit not in self.resident]
        self.resident |= read_units(self._pack.path, missing, self._check, progress)
        if plan.streamed:
            self._window = self._open_window()
        self._bind()

    def _open_window(self) -> Window:
        streamed, ring = self.plan.streamed, self.plan.ring
        folder, direct = self._pack.path, self._mode == "direct"
        files, readers = Files(folder, direct=direct), READERS if direct else 1
        io: WindowIO
        if direct:
            io = DirectIO(files, ring.nbytes, dict(zip(streamed, ring.places, strict=True)))
        else:
            io = MappedIO(files, streamed, self._read_ahead)
        return Window(streamed, ring, io, folder=folder, readers=readers, check=self._check)

    def _compare(self, unit: Unit, data: U8) -> None:
        check_hashes(self._pack.path, unit, data, self._pack.unit_items(unit))

    def _bind(self) -> None:
        streamed = 0
        for unit in self.plan.units:
            spans = self._spans.setdefault((unit.kind, unit.layer), [])
            if unit in self.plan.resident:
                weights = self._pack.weights_in(unit, self.resident[unit])
                spans.append(BoundSpan(unit.shards, weights))
                continue
            window = self._window
            assert window is not None
            weights = self._pack.weights_in(unit, window.io.array(unit))
            wait = partial(window.acquire, streamed), partial(window.release, streamed)
            spans.append(BoundSpan(unit.shards, weights, *wait))
            streamed += 1

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

    def rewind(self) -> None:
        """See `WeightStore.rewind`. The window starts again; resident units stay in place."""
        if self._window is not None:
            self.replan(self.plan)

    def close(self) -> None:
        """See `WeightStore.close`. Frees the weights, though arrays may still refer to them."""
        self._spans = {}
        for array in self.resident.values():
            forget_anonymous(array)
        self.resident = {}
        self._close_window()

    def _close_window(self) -> None:
        self._past, window, self._window = self.usage, self._window, None
        if window is not None:
            window.close()
            window.io.free()


def read_units(
    folder: Path,
    units: Sequence[Unit],
    check: CheckUnit | None,
    progress: OnBytes | None = None,
    *,
    stall_s: float = READ_STALL_S,
) -> dict[Unit, U8]:
    """Bytes of each unit, u8 [nbytes], in one block of anonymous memory.

    One block, as huge pages do not end where units do. Raises StorageError, MemoryBudgetError, and
    the errors of `check`.
    """
    if not units:
        return {}
    ends = list(accumulate(map(page_bytes, units)))
    places = (0, *ends[:-1])
    ring = Ring(places, (len(units),) * len(units), ends[-1])  # no unit overlaps another
    with closing(Files(folder, direct=True)) as files:
        io = DirectIO(files, ring.nbytes, dict(zip(units, places, strict=True)))
        window = Window(
            units, ring, io, folder=folder, readers=READERS, check=check, once=True, stall_s=stall_s
        )
        with closing(window):
            for i, unit in enumerate(units):
                window.acquire(i)
                window.release(i)
                if progress is not None:
                    progress(unit.nbytes)
    return {unit: io.array(unit) for unit in units}
