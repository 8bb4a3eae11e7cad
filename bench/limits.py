"""Real limits for one child: a control group with a ceiling of memory and a pace of the disk.

Version 1 (two groups, one in each hierarchy) and version 2 (one group) of Linux's control groups.
What a child read is the block-I/O controller's figure, its peak that of the memory controller:
page cache that it brought in is part of both. Imports nothing heavy: measured workers use it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.children import Unready

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
SWAPS = Path("/proc/swaps")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
BLOCK_DEVICES = Path("/sys/dev/block")
MOUNTS = Path("/proc/self/mountinfo")

# v1 counts what a group reads only where a pace is set; this one never holds anything up.
UNPACED = 1 << 40
_REMOVE_S = 5.0


class LimitsError(Unready):
    """Limits cannot be set here: what is missing."""


@dataclass(frozen=True)
class Hierarchy:
    """Where groups are made: folders of parents (the same one twice in version 2)."""

    version: int
    memory: Path
    io: Path


@dataclass(frozen=True)
class Limits:
    """Bytes of memory and bytes read a second; None: no limit."""

    memory_bytes: int | None = None
    read_bytes_per_s: int | None = None


@dataclass(frozen=True)
class Counter:
    """Where the bytes that a group has read from one device are counted."""

    version: int
    path: str
    device: str

    def read(self) -> int:
        """Bytes read until now."""
        text = Path(self.path).read_text()
        parse = read_bytes_v2 if self.version == 2 else read_bytes_v1
        return parse(text, self.device)


def read_bytes_v1(text: str, device: str) -> int:
    """Bytes that `blkio.throttle.io_service_bytes` says were read from a device, "254:0"."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[:2] == [device, "Read"]:
            return int(fields[2])
    return 0


def read_bytes_v2(text: str, device: str) -> int:
    """Bytes that `io.stat` says were read from a device."""
    for line in text.splitlines():
        name, *fields = line.split()
        if name == device:
            return int(dict(field.split("=", 1) for field in fields).get("rbytes", 0))
    return 0


def hierarchy(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> Hierarchy:
    """Where a group may be made beneath the one this process is in. Raises LimitsError."""
    if os.geteuid() != 0:
        raise LimitsError("limits need root: control groups cannot be made otherwise")
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError as error:
        raise LimitsError(f"no control groups here: {error}") from error
    folders = {
        name: root / name / path.lstrip("/")
        for _, names, path in lines
        for name in names.split(",")
        if name
    }
    if (root / "cgroup.controllers").exists():
        whole = _delegating(root, next((path for _, names, path in lines if not names), "/"))
        return Hierarchy(2, whole, whole)
    if not {"memory", "blkio"} <= folders.keys():
        raise LimitsError("no memory and block-I/O controllers (neither cgroup v1 nor v2)")
    return Hierarchy(1, folders["memory"], folders["blkio"])


def _delegating(root: Path, path: str) -> Path:
    """v2: the nearest group above (or at) `path` whose children have both controllers.

    A group with processes of its own cannot have such children, save the root.
    """
    folder = root / path.lstrip("/")
    for level in (folder, *folder.parents):
        if {"memory", "io"} <= set(_words(level / "cgroup.subtree_control")):
            return level
        if level == root:
            break
    if not {"memory", "io"} <= set(_words(root / "cgroup.controllers")):
        raise LimitsError("cgroup v2 offers no memory and io controllers here")
    _write(root / "cgroup.subtree_control", "+memory +io")
    return root


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def disk_of(folder: Path) -> str:
    """The whole disk, "254:0", that holds a folder: limits are set on disks, not partitions."""
    number = os.stat(folder).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    if not (BLOCK_DEVICES / device).exists():
        device = _mounted_device(folder)
    entry = (BLOCK_DEVICES / device).resolve()
    if not entry.exists():
        raise LimitsError(f"{folder} is not on a block device whose rate could be limited")
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
        raise LimitsError(f"{folder} is on {source or 'nothing known'}, not on a disk")
    number = os.stat(source).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def drop_caches() -> None:
    """Write back what is dirty and forget what is clean: what is read next comes from the disk."""
    os.sync()
    _write(DROP_CACHES, "3")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise LimitsError(f"cannot write {text!r} to {path}: {error.strerror}") from error


class Cage:
    """The control groups of one child, made and limited; see `caged`."""

    def __init__(self, where: Hierarchy, disk: str, limits: Limits) -> None:
        self._version, self._disk, self._limits = where.version, disk, limits
        name = f"picoedge-bench-{secrets.token_hex(4)}"
        self._memory, self._io = where.memory / name, where.io / name

    @property
    def folders(self) -> list[Path]:
        """The folders of its groups."""
        return list(dict.fromkeys((self._memory, self._io)))

    @property
    def counter(self) -> Counter:
        """Where its bytes are counted; a worker inside may read it too."""
        name = "io.stat" if self._version == 2 else "blkio.throttle.io_service_bytes"
        return Counter(self._version, str(self._io / name), self._disk)

    def make(self) -> None:
        """Make the groups and set the limits. Raises LimitsError."""
        for folder in self.folders:
            try:
                folder.mkdir()
            except OSError as error:
                raise LimitsError(f"cannot make {folder}: {error.strerror}") from error
        pace = self._limits.read_bytes_per_s or UNPACED
        if self._version == 2:
            self._limit_v2(pace)
        else:
            self._limit_v1(pace)

    def _limit_v1(self, pace: int) -> None:
        if self._limits.memory_bytes is not None:
            limit = str(self._limits.memory_bytes)
            _write(self._memory / "memory.limit_in_bytes", limit)
            if (self._memory / "memory.memsw.limit_in_bytes").exists():
                _write(self._memory / "memory.memsw.limit_in_bytes", limit)
        _write(self._memory / "memory.swappiness", "0")
        _write(self._io / "blkio.throttle.read_bps_device", f"{self._disk} {pace}")

    def _limit_v2(self, pace: int) -> None:
        if self._limits.memory_bytes is not None:
            _write(self._memory / "memory.max", str(self._limits.memory_bytes))
        if (self._memory / "memory.swap.max").exists():
            _write(self._memory / "memory.swap.max", "0")
        if self._limits.read_bytes_per_s is not None:
            _write(self._io / "io.max", f"{self._disk} rbps={pace}")

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, run inside: a shell joins the groups and becomes it."""
        joins = "".join(f"echo $$ > '{folder}/cgroup.procs' && " for folder in self.folders)
        return ["/bin/sh", "-c", joins + 'exec "$@"', "sh", *command]

    def peak_bytes(self) -> int:
        """Most memory ever charged to it, page cache included. Raises LimitsError if unknown."""
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self._memory / name).read_text())
        except (OSError, ValueError) as error:
            raise LimitsError(
                f"no {name}: Linux 5.19 is needed for the peak of a v2 group"
            ) from error

    def was_killed(self) -> bool:
        """Whether the kernel killed something for want of memory in it."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return any(
            line.split()[0] == "oom_kill" and int(line.split()[1]) > 0
            for line in (self._memory / name).read_text().splitlines()
        )

    def remove(self) -> None:
        """Remove the groups; a child that is just ending is waited for."""
        deadline = time.monotonic() + _REMOVE_S
        for folder in self.folders:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise LimitsError(f"cannot remove {folder}: {error.strerror}") from error
                    time.sleep(0.02)


@contextmanager
def caged(folder: Path, limits: Limits) -> Iterator[Cage]:
    """Groups for one child that reads files in `folder`; caches are dropped before.

    Raises LimitsError, which says what is missing.
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
