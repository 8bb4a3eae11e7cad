"""Read the small files under /sys and /proc in which the kernel reports its state and limits.

The levels of this process's control groups, a block device's name, read-ahead and read limit, and
the processor's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
DEFAULT_READ_AHEAD = 128 << 10  # Linux's own, where a file system does not say
_MOST_READ_AHEAD = 1 << 30
_UNLIMITED = 1 << 60
_PROCESSOR = ("model name", "Model", "CPU part", "Hardware")  # of /proc/cpuinfo


def file_text(file: Path) -> str:
    """The file's text without outer whitespace; "" where it is absent or cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def file_int(file: Path, base: int = 10) -> int | None:
    """The integer in a file; None where it is absent or holds something else, like `max`."""
    try:
        return int(file_text(file), base)
    except ValueError:
        return None


def file_fields(file: Path) -> dict[str, str]:
    """The lines of a file like /proc/meminfo, as {first word without its colon: rest}."""
    lines = (line.replace(":", " ", 1).split(maxsplit=1) for line in file_text(file).splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}


def cgroup_levels(
    controller: str, root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS
) -> Iterator[tuple[Path, int]]:
    """(folder, cgroup version 1 or 2) of each cgroup of this process, innermost first.

    Only cgroups that `controller` ("memory", "cpu", "blkio") may limit.

    A container may see its own group as the root, so the root is a level as well.
    """
    for line in file_text(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from ((folder, 2) for folder in _upward(root, path))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _upward(root / controller, path))


def _upward(base: Path, path: str) -> Iterator[Path]:
    folder = base / path.lstrip("/")
    for level in [folder, *folder.parents]:
        yield level
        if level == base:
            return


@dataclass(frozen=True)
class Device:
    """A file system's device. `folder` is its folder in /sys, `disk` that of its whole disk.

    Both are None where the file system is on no block device: tmpfs, overlay, network shares.
    """

    number: str  # major:minor
    folder: Path | None = None
    disk: Path | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        """Its number and, if it is a partition, the whole disk's: limits are set on either."""
        whole = file_text(self.disk / "dev") if self.disk else ""
        return tuple(dict.fromkeys(n for n in (self.number, whole) if n))

    @property
    def identity(self) -> str:
        """A serial number that tells this card from another in the same slot; "" if it has none."""
        files = ("device/cid", "serial", "device/serial", "wwid", "device/wwid")
        return next((text for name in files if (text := self._of_disk(name))), "")

    def __str__(self) -> str:
        name = self.folder.name if self.folder else ""
        model = self._of_disk("device/model") or self._of_disk("device/name")
        return " ".join(word for word in (self.number, name, model) if word)

    def _of_disk(self, name: str) -> str:
        return " ".join(file_text(self.disk / name).split()) if self.disk else ""


def find_device(st_dev: int, sys: Path = SYS) -> Device:
    """The device of a file's `st_dev`."""
    number = f"{os.major(st_dev)}:{os.minor(st_dev)}"
    link = sys / "dev" / "block" / number
    if not link.exists():
        return Device(number)
    folder = link.resolve()
    return Device(number, folder, folder.parent if (folder / "partition").exists() else folder)


def read_ahead_bytes(device: Device, sys: Path = SYS) -> int:
    """Bytes that the kernel reads ahead of a sequential read."""
    files = [sys / "class" / "bdi" / number / "read_ahead_kb" for number in device.numbers]
    files += [device.disk / "queue" / "read_ahead_kb"] if device.disk else []
    for file in files:
        kilobytes = file_int(file)
        if kilobytes is not None and 0 <= kilobytes << 10 <= _MOST_READ_AHEAD:
            return kilobytes << 10
    return DEFAULT_READ_AHEAD


def read_limit(
    device: Device, root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS
) -> float | None:
    """Bytes a second that the cgroups of this process let it read; None: no limit."""
    return min(_limits(device, root, groups), default=None)


def _limits(device: Device, root: Path, groups: Path) -> Iterator[float]:
    inner = False  # version 1 does not inherit: a group inside a throttled one is not throttled
    for folder, version in cgroup_levels("blkio", root, groups):
        if version == 2:
            yield from _rates(folder / "io.max", device)
        elif not inner and (file := folder / "blkio.throttle.read_bps_device").exists():
            inner = True
            yield from _rates(file, device)


def _rates(file: Path, device: Device) -> Iterator[float]:
    """Limits of the device in lines `254:0 1048576` (v1) or `254:0 rbps=1048576 wbps=max` (v2)."""
    for number, *fields in (line.split() for line in file_text(file).splitlines() if line.strip()):
        for field in fields if number in device.numbers else ():
            key, _, value = field.rpartition("=")
            if key in ("", "rbps") and value.isdecimal() and 0 < int(value) < _UNLIMITED:
                yield float(value)


def processor_name() -> str:
    """The kind of processor: a card with measurements on it may move to another board."""
    pairs = (line.partition(":") for line in file_text(PROC / "cpuinfo").splitlines())
    values = (value.strip() for name, _, value in pairs if name.strip() in _PROCESSOR)
    return ", ".join(dict.fromkeys(values)) or os.uname().machine
