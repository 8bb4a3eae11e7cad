"""Disks, as block-I/O controllers name them."""

from __future__ import annotations

import os
from pathlib import Path

from hw.lab.errors import LabError

BLOCK_DEVICES = Path("/sys/dev/block")
MOUNTS = Path("/proc/self/mountinfo")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def disk_of(folder: Path) -> str:
    """The whole disk, "254:0", that holds a folder: limits are set on disks, not partitions.

    Raises LabError if it is on none.
    """
    number = os.stat(folder).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    if not (BLOCK_DEVICES / device).exists():
        device = _mounted_device(folder)
    entry = (BLOCK_DEVICES / device).resolve()
    if not entry.exists():
        raise LabError(f"{folder} is not on a block device whose rate could be limited")
    return (entry.parent / "dev").read_text().strip() if (entry / "partition").exists() else device


def _mounted_device(folder: Path) -> str:
    """Of a file system that hides its device's number: what the mount table names as its source."""
    best, source = -1, ""
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = Path(before.split()[4])
        if len(place.parts) > best and folder.resolve().is_relative_to(place):
            best, source = len(place.parts), after.split()[1]
    if not source.startswith("/dev/"):
        raise LabError(f"{folder} is on {source or 'nothing known'}, not on a disk")
    number = os.stat(source).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def drop_caches() -> None:
    """Write back dirty pages and drop clean ones: the next reads come from the disk."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError as error:
        raise LabError(f"cannot write '3' to {DROP_CACHES}: {error.strerror}") from error
