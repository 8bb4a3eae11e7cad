"""Real limits for one child: a control group with a ceiling of memory and a pace of the disk.

The lab's control groups (`hw/lab/cgroups.py`), for one child at a time. Imports nothing heavy:
measured workers use it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.children import Unready
from hw.lab import cgroups, disks, hierarchies
from hw.lab.cgroups import Counter, read_bytes_v1, read_bytes_v2
from hw.lab.errors import LabError
from hw.lab.hierarchies import CGROUPS, OWN_GROUPS, Hierarchy

__all__ = ["Cage", "Counter", "Hierarchy", "Limits", "read_bytes_v1", "read_bytes_v2"]

SWAPS = Path("/proc/swaps")


class LimitsError(Unready):
    """Limits cannot be set here; the message names the missing thing."""


@dataclass(frozen=True)
class Limits:
    """Bytes of memory and bytes read a second; None: no limit."""

    memory_bytes: int | None = None
    read_bytes_per_s: int | None = None


@contextmanager
def _unready() -> Iterator[None]:
    """What the lab refuses, as benches say it."""
    try:
        yield
    except LabError as error:
        raise LimitsError(str(error)) from error


@_unready()
def hierarchy(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> Hierarchy:
    """Where a group may be made beneath the one this process is in. Raises LimitsError."""
    return hierarchies.hierarchy(root, own)


@_unready()
def disk_of(folder: Path) -> str:
    """The whole disk, "254:0", that holds a folder. Raises LimitsError."""
    return disks.disk_of(folder)


@_unready()
def drop_caches() -> None:
    """Drop the page cache: the next reads come from the disk. Raises LimitsError."""
    disks.drop_caches()


class Cage(cgroups.Group):
    """The control groups of one child, made and limited; see `caged`."""

    def __init__(self, where: Hierarchy, disk: str, limits: Limits) -> None:
        super().__init__(where, f"picoedge-bench-{secrets.token_hex(4)}", disk)
        self._limits = limits

    @_unready()
    def make(self) -> None:
        """Make the groups and set the limits. Raises LimitsError."""
        super().make()
        if self._limits.memory_bytes is not None:
            self.limit_memory(self._limits.memory_bytes)
        # Version 1 counts reads only where a pace is set.
        if self._limits.read_bytes_per_s is not None or self.version == 1:
            self.limit_reading(self._limits.read_bytes_per_s)

    @_unready()
    def peak_bytes(self) -> int:
        """Most memory ever charged to it, page cache included. Raises LimitsError if unknown."""
        return super().peak_bytes()

    @_unready()
    def remove(self) -> None:
        """Remove the groups; a child that is just ending is waited for. Raises LimitsError."""
        super().remove()


@contextmanager
def caged(folder: Path, limits: Limits) -> Iterator[Cage]:
    """Groups for one child that reads files in `folder`; caches are dropped before.

    Raises LimitsError, which names the missing thing.
    """
    cage = Cage(hierarchy(), disk_of(folder), limits)
    try:
        cage.make()
        drop_caches()
        yield cage
    finally:
        cage.remove()


def swap_in_use() -> bool:
    """Whether the machine has swap: a group's page could then leave memory without a trace."""
    return len(SWAPS.read_text().splitlines()) > 1
