"""The read speed of the disk that holds a pack: measured once a card or disk, and kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import ModelError, StorageError
from picoedge.files import reading
from picoedge.host import measurements
from picoedge.host.block_device import Device, find_device, read_ahead_bytes, read_limit
from picoedge.host.disk_benchmark import Measured, in_thread, measure_files
from picoedge.units import format_size

PROBE_TIMEOUT_S = 30.0  # a healthy card takes one second; one that hangs never answers
_NEAR_LIMIT = 0.8
_FIGURES = ("direct", "mapped")  # of `Measured`, as they are kept


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


@dataclass(frozen=True)
class _PackFiles:
    """The files of a pack, largest first, and what they are on."""

    folder: Path
    sizes: dict[str, int]
    device: Device
    read_ahead: int

    def measure(self, timeout_s: float) -> Measured:
        from concurrent.futures import TimeoutError as OutOfTime

        work = in_thread(lambda: measure_files(self.folder, self.sizes, self.read_ahead))
        try:
            return work.result(timeout_s)
        except OutOfTime as error:
            raise StorageError(
                f"{self.folder}: reading did not end within {timeout_s:.0f} s",
                "the card or disk hangs, or is very slow: check it, or use another",
            ) from error

    def speed(self, measured: Measured, limit: float | None) -> StorageSpeed:
        figures = measured.direct, measured.mapped, limit, self.read_ahead
        return StorageSpeed(*figures, str(self.device), measured.enough)

    def key(self) -> str:
        """Identifies this file system on this card with this read-ahead."""
        system = os.statvfs(self.folder)
        size = system.f_blocks * system.f_frsize
        parts = (self.device.number, self.device.identity, f"{system.f_fsid:x}", size)
        return " ".join(map(str, (*parts, self.read_ahead)))


def measure_storage(path: Path, *, timeout_s: float = PROBE_TIMEOUT_S) -> StorageSpeed:
    """Measure the disk of a pack by reading parts of its files, cold; about a second, 8 MB memory.

    For a pack below 8 MB the figures rest on few reads. Raises ModelError where there is nothing to
    read, StorageError where reading fails or does not end within `timeout_s`.
    """
    place = _files_of(path)
    return place.speed(place.measure(timeout_s), read_limit(place.device))


def storage_speed(
    path: Path,
    *,
    cache: Path,
    fresh: bool = False,
    timeout_s: float = PROBE_TIMEOUT_S,
    clock: Callable[[], float] = time.time,
) -> StorageSpeed:
    """As `measure_storage`, but a measurement of the last 30 days in folder `cache` is reused.

    `fresh`: measure anyway. Raises what `measure_storage` does; a cache that is damaged or
    cannot be written is no error.
    """
    place = _files_of(path)
    limit = read_limit(place.device)
    with reading(place.folder):
        key = place.key()
    known = None if fresh else measurements.load(cache, "storage", key, _FIGURES, clock())
    if known is not None and known["mapped"]:  # maps work everywhere
        return place.speed(Measured(**known, enough=True), limit)
    speed = place.speed(place.measure(timeout_s), limit)
    if speed.enough and not speed.held_back:
        figures = {"direct": speed.direct, "mapped": speed.mapped}
        measurements.save(cache, "storage", key, figures, clock())
    return speed


def _files_of(path: Path) -> _PackFiles:
    """Raises ModelError where `path` has no safetensors files."""
    folder = path if path.is_dir() else path.parent
    with reading(path):
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        sizes = {file.name: file.stat().st_size for file in files}
        device = find_device(path.stat().st_dev)
    largest = sorted((name for name, size in sizes.items() if size), key=lambda n: -sizes[n])
    if not largest:
        raise ModelError(f"{path} has nothing to read", "is it a pack? picoedge verify checks it")
    ordered = {name: sizes[name] for name in largest}
    return _PackFiles(folder, ordered, device, read_ahead_bytes(device))
