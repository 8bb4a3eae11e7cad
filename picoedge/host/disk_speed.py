"""The read speed of the disk that holds a pack: measured once a card or disk, and kept.

Files are read direct and mapped, a few tenths of a second each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from picoedge.errors import ModelError, StorageError
from picoedge.files import reading
from picoedge.host import measurements
from picoedge.host.sysfs import Device, find_device, read_ahead_bytes, read_limit
from picoedge.kernels.arrays import U8
from picoedge.store.pages import PAGE, forget_cached, page_down, page_up
from picoedge.store.reads import Files
from picoedge.store.shards import Unit
from picoedge.store.window.io import CHUNK, READERS, DirectIO, MappedIO, WindowIO
from picoedge.units import format_size

if TYPE_CHECKING:
    from concurrent.futures import Future

PROBE_TIMEOUT_S = 30.0  # a healthy card takes one second; a hanging card never answers
ENOUGH_S = 0.4
LEAST_BYTES = 4 << 20  # less says more of how long one read takes than of speed
MOST_BYTES = 96 << 20  # read each way
_MAPPED_PIECE = 4 << 20
_SETTLE_S = 0.2  # for reads ahead that are under way when the last page asked for is there
_NEAR_LIMIT = 0.8
_FIGURES = ("direct", "mapped")  # of `Measured`, as they are kept

_T = TypeVar("_T")


@dataclass(frozen=True)
class StorageSpeed:
    """Bytes a second of sequential reading; 0.0 where that way does not work on a file system."""

    direct: float
    mapped: float
    limit: float | None  # what the control groups of this process allow
    read_ahead: int  # bytes that the kernel reads ahead of a mapped file
    device: str  # for people
    enough: bool = True  # whether enough was read to tell

    @property
    def effective_direct(self) -> float:
        """Direct reading, within the limit."""
        return self.direct if self.limit is None else min(self.direct, self.limit)

    @property
    def effective_mapped(self) -> float:
        """Mapped reading, within the limit."""
        return self.mapped if self.limit is None else min(self.mapped, self.limit)

    @property
    def best(self) -> float:
        """The better of the two, within the limit."""
        return max(self.effective_direct, self.effective_mapped)

    @property
    def held_back(self) -> bool:
        """Whether the cgroup limit was measured rather than the disk, which may be faster."""
        return self.limit is not None and max(self.direct, self.mapped) >= _NEAR_LIMIT * self.limit

    def __str__(self) -> str:
        direct = f"{format_size(self.direct)}/s direct" if self.direct else "no direct reads"
        limit = f", {format_size(self.limit)}/s allowed" if self.limit is not None else ""
        return f"{direct}, {format_size(self.mapped)}/s mapped{limit} ({self.device})"


def storage_speed(
    path: Path,
    *,
    cache: Path,
    timeout_s: float = PROBE_TIMEOUT_S,
    clock: Callable[[], float] = time.time,
) -> StorageSpeed:
    """Measure the disk of a pack by reading parts of its files, cold; about a second, 8 MB memory.

    A measurement of the last 30 days in folder `cache` is reused; a cache that is damaged or cannot
    be written is no error. For a pack below 8 MB the figures rest on few reads. Raises ModelError
    where there is nothing to read, StorageError where reading fails or does not end within
    `timeout_s`.
    """
    folder, sizes, device = _files_of(path)
    read_ahead, limit = read_ahead_bytes(device), read_limit(device)
    with reading(folder):
        key = _key(folder, device, read_ahead)
    known = measurements.load(cache, "storage", key, _FIGURES, clock())
    is_kept = known is not None and known["mapped"] > 0  # maps work everywhere
    if known is not None and is_kept:
        measured = Measured(**known, enough=True)
    else:
        measured = _measure(folder, sizes, read_ahead, timeout_s)
    direct, mapped = measured.direct, measured.mapped
    speed = StorageSpeed(direct, mapped, limit, read_ahead, str(device), measured.enough)
    if not is_kept and speed.enough and not speed.held_back:
        measurements.save(cache, "storage", key, {"direct": direct, "mapped": mapped}, clock())
    return speed


def _files_of(path: Path) -> tuple[Path, dict[str, int], Device]:
    """The folder, its safetensors files with their bytes, largest first, and its device.

    Raises ModelError where there are none.
    """
    with reading(path):
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        sizes = {file.name: size for file in files if (size := file.stat().st_size)}
        device = find_device(path.stat().st_dev)
    if not sizes:
        raise ModelError(f"{path} has nothing to read", "is it a pack? picoedge verify checks it")
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    return path if path.is_dir() else path.parent, dict(largest_first), device


def _key(folder: Path, device: Device, read_ahead: int) -> str:
    """Identifies this file system on this card with this read-ahead."""
    system = os.statvfs(folder)
    size = system.f_blocks * system.f_frsize
    return f"{device.number} {device.identity} {system.f_fsid:x} {size} {read_ahead}"


def _measure(folder: Path, sizes: dict[str, int], read_ahead: int, timeout_s: float) -> Measured:
    from concurrent.futures import TimeoutError as OutOfTime

    work = in_thread(lambda: measure_files(folder, sizes, read_ahead))
    try:
        return work.result(timeout_s)
    except OutOfTime as error:
        raise StorageError(
            f"{folder}: reading did not end within {timeout_s:.0f} s",
            "the card or disk hangs, or is very slow: check it, or use another",
        ) from error


@dataclass(frozen=True)
class Measured:
    """Bytes a second each way (0.0: it does not work here), and whether enough was read to tell."""

    direct: float
    mapped: float
    enough: bool


def measure_files(folder: Path, sizes: dict[str, int], read_ahead: int) -> Measured:
    """Read parts of files (bytes of each by name) both ways. Raises ModelError, StorageError.

    Afterwards the page cache holds none of what was read.
    """
    direct_units, mapped_units = units_to_read(sizes)
    with closing(Files(folder, direct=False)) as files:
        everything = [*direct_units, *mapped_units]
        _forget(files, everything, sizes, read_ahead)
        try:
            direct = _direct(folder, direct_units)
            mapped, cold = _mapped(files, mapped_units, read_ahead)
        except StorageError as error:  # of pieces that are no shards
            what = getattr(error.__cause__, "strerror", None) or "a file was cut, or cannot be read"
            raise StorageError(f"{folder}: measuring its speed: {what}", error.hint) from error
        finally:
            _forget(files, everything, sizes, read_ahead)
            _drop_late_reads(files, mapped_units, sizes, read_ahead)
    if not cold and direct:  # another process holds it all in memory: that is not the disk's speed
        mapped = min(mapped, direct)
    least = min(sum(unit.nbytes for unit in units) for units in (direct_units, mapped_units))
    return Measured(direct, mapped, least >= LEAST_BYTES)


def units_to_read(sizes: dict[str, int]) -> tuple[list[Unit], list[Unit]]:
    """Units to read directly and units to read mapped: two halves of the beginnings of the files.

    A file below two pages is read both ways.
    """
    direct: list[Unit] = []
    mapped: list[Unit] = []
    left = MOST_BYTES
    for name, size in sizes.items():
        half = page_down(min(size // 2, left))
        middle = (half, 2 * half) if half else (0, size)
        direct += _pieces(name, 0, half or size, CHUNK)
        mapped += _pieces(name, *middle, _MAPPED_PIECE)
        left -= half
        if left < PAGE:
            break
    return direct, mapped


def _pieces(name: str, start: int, end: int, most: int) -> list[Unit]:
    return [
        Unit("ffn", 0, range(1), name, at, min(most, end - at)) for at in range(start, end, most)
    ]


def _direct(folder: Path, units: Sequence[Unit]) -> float:
    files = Files(folder, direct=True)
    for name in dict.fromkeys(unit.file for unit in units):
        files.fd(name)  # now, and not by several threads at once
    ring = 2 * READERS
    places = {unit: i % ring * CHUNK for i, unit in enumerate(units)}
    with closing(DirectIO(files, ring * CHUNK, places)) as io:
        if files.cached:
            return 0.0
        try:
            speed = _speed(io, units, READERS)
            return 0.0 if files.cached else speed  # opened so, but read through the page cache
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) == errno.EINVAL:
                return 0.0  # opened so, but not read so: some network and user-space file systems
            raise


def _mapped(files: Files, units: Sequence[Unit], read_ahead: int) -> tuple[float, bool]:
    io = MappedIO(files, units, read_ahead)
    cold = [unit for unit in units if 2 * cached_bytes(io.array(unit)) < unit.nbytes]
    return _speed(io, cold or units, 1), bool(cold)


def _speed(io: WindowIO, units: Sequence[Unit], readers: int) -> float:
    """Bytes a second of reading units in order, for ENOUGH_S and LEAST_BYTES."""
    todo, lock, done = iter(units), threading.Lock(), 0
    start = time.perf_counter()

    def next_unit(n_bytes: int) -> Unit | None:
        nonlocal done
        with lock:
            done += n_bytes
            late = time.perf_counter() - start >= ENOUGH_S
            return None if late and done >= LEAST_BYTES else next(todo, None)

    def read() -> None:
        unit = next_unit(0)
        while unit is not None:
            for chunk in range(io.chunks(unit)):
                io.fill(unit, chunk)
            io.release(unit)
            unit = next_unit(unit.nbytes)

    for reader in [in_thread(read) for _ in range(readers)]:
        reader.result()
    return done / max(time.perf_counter() - start, 1e-6)


def in_thread(function: Callable[[], _T]) -> Future[_T]:
    """Run in a daemon thread: a read that hangs must not keep the program from ending."""
    from concurrent.futures import Future

    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised again by `result()`
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def cached_bytes(array: U8) -> int:
    """Bytes of a mapped file that are in the page cache.

    None are counted where the kernel refuses to tell.
    """
    start = page_down(array.ctypes.data)
    nbytes = page_up(array.ctypes.data + array.nbytes) - start
    pages = np.zeros(nbytes // PAGE, np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    if mincore(start, nbytes, pages.ctypes.data) != 0:
        return 0
    return int(np.count_nonzero(pages & 1)) * PAGE


def _forget(files: Files, units: Sequence[Unit], sizes: dict[str, int], read_ahead: int) -> None:
    for name, last in {unit.file: unit for unit in units}.items():
        forget_cached(files.fd(name), 0, min(last.end + 2 * read_ahead, sizes[name]))


def _drop_late_reads(
    files: Files, units: Sequence[Unit], sizes: dict[str, int], read_ahead: int
) -> None:
    """Drop pages that the kernel was still reading ahead when the others were dropped."""
    io = MappedIO(files, units, read_ahead)
    ends = [
        Unit("ffn", 0, range(1), name, 0, min(last.end + 2 * read_ahead, sizes[name]))
        for name, last in {unit.file: unit for unit in units}.items()
    ]
    until = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < until:
        if not any(cached_bytes(io.array(unit)) for unit in ends):
            return
        time.sleep(_SETTLE_S / 40)
        _forget(files, ends, sizes, read_ahead)
