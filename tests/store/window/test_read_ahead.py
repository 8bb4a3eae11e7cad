"""Reading ahead from a storage that does as it is told: places, errors, interrupts, ends."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from picoedge.errors import MemoryBudgetError, ModelError, StorageError
from picoedge.store.pages import PAGE
from picoedge.store.shards import Unit
from picoedge.store.window.plan import Ring, lay_ring
from picoedge.store.window.read_ahead import Window

LONG_S = 20.0  # nothing here takes as long
MAIN = threading.main_thread().ident or 0
Key = tuple[int, int]  # unit, chunk


class ToldStorage:
    """Writes a unit's number all over its place, a page a read; waits and fails where told to."""

    name = "told"

    def __init__(self, units: list[Unit], ring: Ring) -> None:
        self.places = dict(zip(units, ring.places, strict=True))
        self.memory = np.full(ring.nbytes, 255, np.uint8)
        self.errors: dict[Key, Exception] = {}
        self.gates: dict[Key, threading.Event] = {}
        self.begun: list[Key] = []
        self.released: list[int] = []
        self.closed = False
        self._changed = threading.Condition()

    def array(self, unit: Unit) -> np.ndarray:
        return self.memory[self.places[unit] :][: unit.nbytes]

    def chunks(self, unit: Unit) -> int:
        return unit.nbytes // PAGE

    def begins(self, unit: Unit, chunk: int) -> int:
        return unit.offset + chunk * PAGE

    def fill(self, unit: Unit, chunk: int) -> None:
        key = unit.layer, chunk
        with self._changed:
            self.begun.append(key)
            self._changed.notify_all()
        if key in self.gates:
            assert self.gates[key].wait(LONG_S)
        if key in self.errors:
            raise self.errors[key]
        self.array(unit)[chunk * PAGE : (chunk + 1) * PAGE] = unit.layer

    def release(self, unit: Unit) -> None:
        self.released.append(unit.layer)

    def close(self) -> None:
        self.closed = True

    def wait_for(self, *keys: Key) -> None:
        """Until these reads have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(keys) <= set(self.begun), LONG_S)

    def hold(self, *keys: Key) -> threading.Event:
        """These reads wait until the event is set."""
        gate = threading.Event()
        self.gates.update(dict.fromkeys(keys, gate))
        return gate


class Streamed:
    """A window over a told storage."""

    def __init__(self, pages: list[int], ring_pages: int) -> None:
        sizes = [PAGE * count for count in pages]
        self.units = [
            Unit("ffn", i, range(1), f"layer-{i:03d}.safetensors", PAGE, size)
            for i, size in enumerate(sizes)
        ]
        self.ring = lay_ring(sizes, PAGE * ring_pages)
        self.io = ToldStorage(self.units, self.ring)
        self.window: Window | None = None

    def start(self, readers: int = 3, **kwargs: object) -> Window:
        self.window = Window(
            self.units, self.ring, self.io, folder=Path("pack"), readers=readers,
            **kwargs,  # type: ignore[arg-type]
        )  # fmt: skip
        return self.window

    def use(self, index: int) -> None:
        """Acquire, find the unit's own bytes there, and release."""
        assert self.window is not None
        self.window.acquire(index)
        assert (self.io.array(self.units[index]) == index).all()
        self.window.release(index)


@pytest.fixture
def three() -> Iterator[Streamed]:
    """Three units of two pages in a ring for two."""
    yield from _closed(Streamed([2, 2, 2], 4))


@pytest.fixture
def many() -> Iterator[Streamed]:
    """Eight units of one page, all of which the ring holds."""
    yield from _closed(Streamed([1] * 8, 8))


def _closed(streamed: Streamed) -> Iterator[Streamed]:
    yield streamed
    for gate in streamed.io.gates.values():
        gate.set()
    if streamed.window is not None:
        threads = streamed.window._threads
        streamed.window.close()
        for thread in threads:
            thread.join(LONG_S)
            assert not thread.is_alive()


def interrupt_once_it_waits(window: Window) -> None:
    """Ctrl-C as soon as the main thread waits for a reader's news."""

    def interrupt() -> None:
        while not window._ahead.arrived._waiters:  # type: ignore[attr-defined]
            time.sleep(0.001)
        signal.pthread_kill(MAIN, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


def failed(text: str) -> StorageError:
    return StorageError(text)


@pytest.mark.parametrize("seed", range(12))
def test_a_unit_s_bytes_stay_from_acquire_to_release(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pages = rng.integers(1, 6, rng.integers(1, 12)).tolist()
    streamed = Streamed(pages, int(rng.integers(max(pages), sum(pages) + 1)))
    window, at = streamed.start(readers=int(rng.integers(1, 4))), 0
    for _ in range(150):
        window.acquire(at)
        assert (streamed.io.array(streamed.units[at]) == at).all()
        if rng.random() < 0.2:
            time.sleep(0)  # others may run while it is in use
        assert (streamed.io.array(streamed.units[at]) == at).all()
        if rng.random() < 0.05:  # an interrupted pass: the unit is never released
            at = int(rng.integers(len(pages)))
            continue
        window.release(at)
        at = (at + 1) % len(pages)
    window.close()


def test_units_and_bytes_that_are_read_are_counted(three: Streamed) -> None:
    window = three.start()
    for _ in range(4):
        for index in range(3):
            three.use(index)
    window.close()
    assert window.usage.units == 12
    assert 0 <= window.usage.bytes_read - 12 * 2 * PAGE <= 4 * PAGE  # a ring holds two
    assert three.io.released[:12] == [0, 1, 2] * 4


def test_no_more_is_read_ahead_than_there_is_room_for(three: Streamed) -> None:
    window = three.start()
    window.acquire(0)
    three.io.wait_for((1, 1))
    assert {unit for unit, _ in three.io.begun} == {0, 1}
    window.release(0)
    three.io.wait_for((2, 0))


def test_an_error_ahead_does_not_fail_a_unit_before_it(three: Streamed) -> None:
    three.io.errors[1, 0] = failed("one")
    gate = three.io.hold((0, 1))
    window = three.start()
    three.io.wait_for((0, 1), (1, 0))
    threading.Timer(0.02, gate.set).start()  # the error is known long before
    three.use(0)
    with pytest.raises(StorageError, match="one"):
        window.acquire(1)


def test_an_error_is_told_once_it_is_reached_and_not_read_over(many: Streamed) -> None:
    many.io.errors[3, 0] = failed("three")
    window = many.start(readers=1)
    many.io.wait_for((3, 0))
    for index in range(3):
        many.use(index)
    with pytest.raises(StorageError, match="three"):
        window.acquire(3)
    assert many.io.begun == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_the_first_unit_s_error_is_told_whichever_came_first(many: Streamed) -> None:
    gate = many.io.hold((0, 0))
    many.io.errors = {(0, 0): failed("zero"), (1, 0): failed("one")}
    window = many.start()
    many.io.wait_for((0, 0), (1, 0))
    threading.Timer(0.02, gate.set).start()  # the error is known long before
    with pytest.raises(StorageError, match="zero"):
        window.acquire(0)


def test_a_unit_of_which_a_part_failed_is_not_handed_out(three: Streamed) -> None:
    gate = three.io.hold((0, 0), (0, 1))
    three.io.errors[0, 0] = failed("first half")
    window = three.start()
    three.io.wait_for((0, 0), (0, 1))
    gate.set()
    with pytest.raises(StorageError, match="first half"):
        window.acquire(0)


@pytest.mark.parametrize("again", [0, 1, 2])
def test_after_an_error_any_unit_may_come(three: Streamed, again: int) -> None:
    three.io.errors[1, 1] = failed("pulled out")
    window = three.start()
    three.use(0)
    for _ in range(2):  # it stays an error as long as it is one
        with pytest.raises(StorageError, match="pulled out"):
            window.acquire(1)
    three.io.errors.clear()
    for i in range(7):
        three.use((again + i) % 3)


@pytest.mark.parametrize("index", [0, 2])
def test_an_interrupt_while_waiting_leaves_it_usable(three: Streamed, index: int) -> None:
    gate = three.io.hold((index, 0))
    window = three.start()
    for i in range(index):
        three.use(i)
    interrupt_once_it_waits(window)
    with pytest.raises(KeyboardInterrupt):
        window.acquire(index)
    gate.set()
    for i in range(9):
        three.use(i % 3)


def test_an_interrupt_while_it_begins_anew_leaves_it_usable(many: Streamed) -> None:
    window = many.start()
    window.acquire(0)
    many.io.begun.clear()
    gate = many.io.hold((0, 0))
    window.release(0)
    many.io.wait_for((0, 0))  # the next token's first unit, whose reading waits
    interrupt_once_it_waits(window)
    with pytest.raises(KeyboardInterrupt):
        window.acquire(4)
    gate.set()
    for i in range(16):
        many.use((3 + i) % 8)


def test_where_it_begins_anew_nothing_read_before_is_left(three: Streamed) -> None:
    window = three.start()
    three.use(0)
    three.io.wait_for((2, 1))
    three.io.released.clear()
    three.use(0)
    assert set(three.io.released) == {0, 1, 2}
    window.acquire(1)


def test_a_silent_storage_is_an_error_and_may_come_back(three: Streamed) -> None:
    gate = three.io.hold((1, 1))
    window = three.start(stall_s=0.2)
    three.use(0)
    for index in (1, 0):  # also where it would begin anew
        with pytest.raises(StorageError, match="not answered") as raised:
            window.acquire(index)
        assert "layer-001.safetensors" in raised.value.message
        assert f"shard layer-001/ffn.000, byte {2 * PAGE}:" in raised.value.message
    gate.set()
    for i in range(6):
        three.use(i % 3)


def test_a_slow_storage_is_waited_for() -> None:
    streamed = Streamed([6, 1], 7)
    gates = [streamed.io.hold((0, chunk)) for chunk in range(6)]

    def open_one_by_one() -> None:
        for chunk, gate in enumerate(gates):
            streamed.io.wait_for((0, chunk))
            time.sleep(0.1)  # none takes too long, all together do
            gate.set()

    window = streamed.start(readers=1, stall_s=0.4)
    thread = threading.Thread(target=open_one_by_one)
    thread.start()
    streamed.use(0)
    thread.join()
    window.close()
    assert window.usage.wait_s > 0.4


def test_close_leaves_a_hanging_read_behind_which_then_ends(three: Streamed) -> None:
    gate = three.io.hold((0, 0))
    window = three.start()
    three.io.wait_for((0, 0))
    began = time.monotonic()
    window.close()
    window.close()
    assert time.monotonic() - began < LONG_S / 2
    assert three.io.closed
    assert sum(thread.is_alive() for thread in window._threads) == 1
    gate.set()


def test_close_ends_all_readers(three: Streamed) -> None:
    window = three.start()
    three.use(0)
    window.close()
    assert not any(thread.is_alive() for thread in window._threads)


def test_a_forgotten_window_ends_its_readers() -> None:
    streamed = Streamed([1, 1, 1], 2)
    window = streamed.start()
    streamed.use(0)
    threads, known = window._threads, weakref.ref(window)
    streamed.window = None
    del window
    gc.collect()
    assert known() is None
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(5, "gone"), StorageError, "layer-001/ffn.000: reading failed: gone"),
        (MemoryError(), MemoryBudgetError, "no memory for reading .*layer-001/ffn.000"),
    ],
)
def test_errors_of_the_system_are_carried_too(
    three: Streamed, error: Exception, kind: type[Exception], said: str
) -> None:
    three.io.errors[1, 1] = error
    window = three.start()
    three.use(0)
    with pytest.raises(kind, match=said):
        window.acquire(1)
    assert all(thread.is_alive() for thread in window._threads)
    three.io.errors.clear()
    for i in range(7):
        three.use((1 + i) % 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_in_a_reader_is_no_silence(three: Streamed) -> None:
    three.io.errors[1, 1] = ZeroDivisionError()
    window = three.start()
    three.use(0)
    with pytest.raises(StorageError, match="broken off"):
        window.acquire(1)
    assert not window._ahead.in_flight
    three.io.errors.clear()
    for i in range(7):
        three.use((1 + i) % 3)  # by the readers that are left


def test_units_are_checked_by_the_readers(three: Streamed) -> None:
    checked: list[tuple[int, bool]] = []

    def check(unit: Unit, data: np.ndarray) -> None:
        assert (data == unit.layer).all()
        checked.append((unit.layer, threading.current_thread() is threading.main_thread()))
        if unit.layer == 2 and len(checked) > 3:
            raise ModelError("unit two is not what it was")

    window = three.start(check=check)
    for i in range(5):
        three.use(i % 3)
    with pytest.raises(ModelError, match="unit two"):
        window.acquire(2)
    assert not any(on_main for _, on_main in checked)
    assert {unit for unit, _ in checked} == {0, 1, 2}
