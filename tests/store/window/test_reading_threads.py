"""Reads done in threads: slow, hanging and refused ones, and errors that are not our own."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model

from picoedge.errors import MemoryBudgetError, StorageError
from picoedge.store import reads
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.pages import PAGE, anonymous
from picoedge.store.reads import Files, RowFile, read_range
from picoedge.store.shards import Unit
from picoedge.store.sources.source import open_source
from picoedge.store.window import io as window_io
from picoedge.store.window import weights as window_weights
from picoedge.store.window.io import DirectIO
from picoedge.store.window.read_ahead import Window
from picoedge.store.window.weights import read_units

LONG_S = 20.0  # nothing here takes as long
PAGES = 8
Read = Callable[..., Any]


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    data = np.arange(PAGES * PAGE, dtype=np.uint32).astype(np.uint8)
    (tmp_path / "layer-000.safetensors").write_bytes(data.tobytes())
    return Unit("ffn", 0, range(PAGES), "layer-000.safetensors", 0, PAGES * PAGE)


def bytes_of(folder: Path, unit: Unit) -> np.ndarray:
    return np.fromfile(folder / unit.file, np.uint8)[unit.offset : unit.end]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG_S)
        assert not thread.is_alive()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """A read that waits for it hangs; it ends with the test."""
    event = threading.Event()
    yield event
    event.set()


def closed_files(monkeypatch: pytest.MonkeyPatch) -> list[Files]:
    """The files of loads, to be looked at afterwards."""
    opened: list[Files] = []

    def keep(folder: Path, *, direct: bool) -> Files:
        opened.append(Files(folder, direct=direct))
        return opened[-1]

    monkeypatch.setattr(window_weights, "Files", keep)
    return opened


# -- resident units ------------------------------------------------------------------------------


def test_a_load_whose_reads_are_slow_is_waited_for(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Read = os.preadv

    def slow(*args: Any) -> int:
        threading.Event().wait(0.1)  # none takes too long, all together do
        return int(real(*args))

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(window_io, "CHUNK", PAGE)
    arrays = read_units(tmp_path, [unit], None, stall_s=0.4)
    np.testing.assert_array_equal(arrays[unit], bytes_of(tmp_path, unit))


def test_a_load_that_hangs_names_the_byte_and_closes_its_files(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    real: Read = os.preadv
    hanging: list[threading.Thread] = []

    def hang(fd: int, views: Any, offset: int) -> int:
        if offset == 3 * PAGE:
            hanging.append(threading.current_thread())
            gate.wait(LONG_S)
        return int(real(fd, views, offset))

    opened = closed_files(monkeypatch)
    monkeypatch.setattr(os, "preadv", hang)
    monkeypatch.setattr(window_io, "CHUNK", PAGE)
    with pytest.raises(StorageError, match="not answered") as raised:
        read_units(tmp_path, [unit], None, stall_s=0.2)
    assert f"shard layer-000/ffn.003, byte {3 * PAGE}:" in raised.value.message
    assert opened[0].closed
    assert hanging[0].is_alive()
    gate.set()


def test_a_load_that_fails_or_is_interrupted_closes_its_files(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = closed_files(monkeypatch)

    def interrupt(window: Window, index: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(StorageError):
        read_units(tmp_path, [unit], refuse(OSError(errno.EIO, "gone")))
    assert opened[0].closed
    monkeypatch.setattr(Window, "acquire", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_units(tmp_path, [unit], None)
    assert opened[1].closed


def refuse(error: BaseException) -> Callable[[Unit, np.ndarray], None]:
    def check(unit: Unit, array: np.ndarray) -> None:
        raise error

    return check


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (OSError(errno.EIO, "gone"), StorageError, "reading failed: gone"),
        (MemoryError(), MemoryBudgetError, "no memory for reading"),
        (OSError(errno.ENOMEM, "no"), MemoryBudgetError, "no memory for reading"),
    ],
)
def test_any_error_of_a_loading_thread_is_told_at_once(
    tmp_path: Path, unit: Unit, raised: BaseException, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as told:
        read_units(tmp_path, [unit], refuse(raised))
    assert "layer-000/ffn.000" in str(told.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_in_a_loading_thread_is_no_silence(tmp_path: Path, unit: Unit) -> None:
    with pytest.raises(StorageError, match="broken off"):
        read_units(tmp_path, [unit], refuse(ZeroDivisionError()))


def test_no_memory_for_a_unit_is_an_error_with_a_remedy(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(MemoryBudgetError, match=r"no memory for .*--memory"):
        anonymous(1 << 20)
    with pytest.raises(MemoryBudgetError, match="no memory for"):
        read_units(tmp_path, [unit], None)


# -- files that open unbuffered and cannot be read so --------------------------------------------


class Refusing:
    """A file system that opens files unbuffered, and then calls every such read wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unbuffered: set[int] = set()
        self.refused = 0
        self._open: Read = os.open
        self._preadv: Read = os.preadv
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(os, "preadv", self.preadv)

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        fd = int(self._open(path, flags & ~os.O_DIRECT, *args, **kwargs))
        (self.unbuffered.add if flags & os.O_DIRECT else self.unbuffered.discard)(fd)
        return fd

    def preadv(self, fd: int, *args: Any) -> int:
        if fd in self.unbuffered:
            self.refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        return int(self._preadv(fd, *args))


def test_reads_that_are_refused_unbuffered_are_buffered(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing, dropped = Refusing(monkeypatch), list[int]()
    monkeypatch.setattr(reads, "forget_cached", lambda fd, start, end: dropped.append(start))
    monkeypatch.setattr(window_io, "CHUNK", 2 * PAGE)
    files = Files(tmp_path, direct=True)
    io = DirectIO(files, PAGES * PAGE, {unit: 0})
    assert not files.cached
    for chunk in range(io.chunks(unit)):
        io.fill(unit, chunk)
    np.testing.assert_array_equal(io.array(unit), bytes_of(tmp_path, unit))
    assert files.cached
    assert refusing.refused == 1  # once is enough to know
    assert dropped == [i * 2 * PAGE for i in range(4)]
    fds = len(os.listdir("/proc/self/fd"))
    io.close()
    assert len(os.listdir("/proc/self/fd")) == fds - 2


def test_reads_refused_at_the_same_time_are_all_done(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = Refusing(monkeypatch)
    units = [unit.part(i, i + 1) for i in range(PAGES)]
    arrays = read_units(tmp_path, units, None)
    assert refusing.refused >= 1
    for each in units:
        np.testing.assert_array_equal(arrays[each], bytes_of(tmp_path, each))


def test_a_buffered_read_that_is_refused_is_an_error(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(fd: int, *args: Any) -> int:
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "preadv", wrong)
    files = Files(tmp_path, direct=False)
    with pytest.raises(StorageError, match="reading failed: Invalid argument"):
        read_range(files, unit, anonymous(PAGE), 0, PAGE)
    files.close()


# -- rows of tokens ------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> RowFile:
    pack_source(
        open_source(tiny_model.write_tiny_model(tmp_path / "tiny")), tmp_path / "t.pico", bits=8
    )
    found = Pack.open(tmp_path / "t.pico").row_reader()
    return RowFile(tmp_path / "t.pico", found._shards, found._decode, stall_s=0.2)


def test_a_row_that_hangs_is_an_error_with_a_place(
    tmp_path: Path, rows: RowFile, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    width = Pack.open(tmp_path / "t.pico").config.hidden_size
    want, out = np.zeros((2, width), np.float32), np.full((2, width), 7, np.float32)
    rows.gather([1, 2], want)
    real: Read = os.preadv
    second = rows._shards.offset + 2 * width * 34 // 32  # rows of Q8_0

    def hang(fd: int, views: Any, offset: int) -> int:
        if offset == second:
            gate.wait(LONG_S)
        return int(real(fd, views, offset))

    monkeypatch.setattr(os, "preadv", hang)
    place = rf"shard embed/embed\.\d+, byte {second}"
    with pytest.raises(StorageError, match=f"{place}: .*not answered"):
        rows.gather([1, 2], out)
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "rows":
            thread.join(LONG_S)
    assert (out == 7).all()  # what came late was not written to memory that others use by now
    rows.gather([1, 2], out)
    np.testing.assert_array_equal(out, want)


def test_rows_that_are_slow_are_waited_for(
    tmp_path: Path, rows: RowFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, real = Pack.open(tmp_path / "t.pico").config.hidden_size, os.preadv

    def slow(*args: Any) -> int:
        threading.Event().wait(0.05)  # none takes too long, all together do
        return real(*args)

    monkeypatch.setattr(os, "preadv", slow)
    rows.gather([1] * 8, np.zeros((8, width), np.float32))


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(OSError(errno.EIO, "gone"), StorageError), (MemoryError(), MemoryBudgetError)],
)
def test_errors_of_rows_are_the_caller_s_and_leave_no_thread(
    tmp_path: Path,
    rows: RowFile,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    kind: type[Exception],
) -> None:
    def fail(*args: object) -> bytes:
        raise raised

    width, before = Pack.open(tmp_path / "t.pico").config.hidden_size, threading.active_count()
    rows.gather([1], np.zeros((1, width), np.float32))
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(kind):
        rows.gather([1], np.zeros((1, width), np.float32))
    assert threading.active_count() == before
