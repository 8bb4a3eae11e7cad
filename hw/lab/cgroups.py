"""Control groups of version 1 and 2: limits of memory, CPU and disk for some processes.

What they read is the block-I/O controller's figure, their peak that of the memory controller:
page cache that they brought in is part of both. Imports nothing heavy: workers use it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from hw.lab.errors import LabError
from hw.lab.hierarchies import Hierarchy, write
from hw.lab.processes import is_running, signal_all

# v1 counts what a group reads only where a pace is set; this one never holds anything up.
UNPACED = 1 << 40
# With the usual 100 ms a group that used its share up stands still for tens of ms.
CPU_PERIOD_US = 5000
MIN_QUOTA_US = 1000  # the kernel's
_END_S = 60.0  # a process that waits for a slow disk, or for its share of the CPU, ends only then
_STILL_S = 5.0


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


def cpu_quota(share: float) -> tuple[int, int]:
    """(quota, period) in microseconds of a share of CPUs: 0.5, or 2 for two whole ones."""
    if not share > 0:
        raise LabError(f"a board needs more than {share:g} of a CPU")
    period = max(CPU_PERIOD_US, ceil(MIN_QUOTA_US / share))
    return max(MIN_QUOTA_US, round(share * period)), period


class Group:
    """One group by name, in every hierarchy: processes join it by `command`."""

    def __init__(self, where: Hierarchy, name: str, disk: str | None) -> None:
        self.version, self.disk = where.version, disk
        self.memory, self.io = where.memory / name, where.io / name
        self.cpu = where.cpu / name if where.cpu is not None else None

    @property
    def folders(self) -> list[Path]:
        """Its folders, each once."""
        parts = (self.memory, self.io, self.cpu)
        return list(dict.fromkeys(part for part in parts if part is not None))

    @property
    def counter(self) -> Counter:
        """Where its bytes are counted; a worker inside may read it too. Raises LabError."""
        if self.disk is None:
            raise LabError("reads from an unknown disk are not counted")
        name = "io.stat" if self.version == 2 else "blkio.throttle.io_service_bytes"
        return Counter(self.version, str(self.io / name), self.disk)

    def make(self) -> None:
        """Make its folders, without limits; nothing of it is ever swapped. Raises LabError."""
        for folder in self.folders:
            try:
                folder.mkdir()
            except OSError as error:
                raise LabError(f"cannot make {folder}: {error.strerror}") from error
        if self.version == 1:
            write(self.memory / "memory.swappiness", "0")
        elif (self.memory / "memory.swap.max").exists():
            write(self.memory / "memory.swap.max", "0")

    def limit_memory(self, n_bytes: int | None) -> None:
        """At most this much memory, page cache included; None: no limit."""
        if self.version == 2:
            write(self.memory / "memory.max", "max" if n_bytes is None else str(n_bytes))
            return
        names = ["memory.limit_in_bytes"]
        if (self.memory / "memory.memsw.limit_in_bytes").exists():
            names.append("memory.memsw.limit_in_bytes")
        if self._is_raised(names[-1], n_bytes):  # the sum with swap is never below the other
            names.reverse()
        for name in names:
            write(self.memory / name, "-1" if n_bytes is None else str(n_bytes))

    def _is_raised(self, name: str, n_bytes: int | None) -> bool:
        path = self.memory / name
        return path.exists() and (n_bytes is None or n_bytes > int(path.read_text()))

    def limit_reading(self, bytes_per_s: int | None) -> None:
        """At most this much read from its disk a second; None: no limit. Raises LabError."""
        if self.disk is None:
            raise LabError("reading is limited where the files are on a disk")
        if self.version == 2:
            pace = "max" if bytes_per_s is None else str(bytes_per_s)
            write(self.io / "io.max", f"{self.disk} rbps={pace}")
        else:
            path = self.io / "blkio.throttle.read_bps_device"
            write(path, f"{self.disk} {bytes_per_s or UNPACED}")

    def limit_cpu(self, share: float | None) -> None:
        """At most this many CPUs' time, 0.5 or 2; None: no limit. Raises LabError."""
        if self.cpu is None:
            raise LabError("no cpu controller")
        quota, period = (None, CPU_PERIOD_US) if share is None else cpu_quota(share)
        if self.version == 2:
            write(self.cpu / "cpu.max", f"{'max' if quota is None else quota} {period}")
            return
        write(self.cpu / "cpu.cfs_quota_us", "-1")  # any period goes with no quota
        write(self.cpu / "cpu.cfs_period_us", str(period))
        if quota is not None:
            write(self.cpu / "cpu.cfs_quota_us", str(quota))

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, run inside: a shell joins the groups and becomes it."""
        joins = "".join(f"echo $$ > '{folder}/cgroup.procs' && " for folder in self.folders)
        return ["/bin/sh", "-c", joins + 'exec "$@"', "sh", *command]

    def pids(self) -> list[int]:
        """Processes inside that have joined it wholly."""
        return pids_in(self.folders[-1])

    def peak_bytes(self) -> int:
        """Most memory ever charged to it, page cache included. Raises LabError if unknown."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self.memory / name).read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"no {name}: Linux 5.19 is needed for the peak of a v2 group") from error

    def was_killed(self) -> bool:
        """Whether the kernel killed something for want of memory in it."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return any(
            line.split()[0] == "oom_kill" and int(line.split()[1]) > 0
            for line in (self.memory / name).read_text().splitlines()
        )

    def kill(self) -> None:
        """End every process inside, at once, and see them gone."""
        for folder in self.folders:
            kill_all(folder)

    def stop(self) -> None:
        """SIGSTOP to every process inside, and see them stand still."""
        stopped: set[int] = set()
        while new := set(self.pids()) - stopped:  # those they were just starting, too
            signal_all(sorted(new), signal.SIGSTOP)
            stopped |= new
        deadline = time.monotonic() + _STILL_S
        while any(map(is_running, stopped)) and time.monotonic() < deadline:
            time.sleep(0.001)

    def remove(self) -> None:
        """Remove its folders; a process that is just ending is waited for."""
        for folder in self.folders:
            remove_folder(folder)


def pids_in(folder: Path) -> list[int]:
    """Processes of the group with this folder; none if it is gone."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def loosen(folder: Path) -> None:
    """Take away what would make the end of a group's processes slow: CPU share and disk rate."""
    for name, text in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max")):
        _try_write(folder / name, text)
    for name, text in (("blkio.throttle.read_bps_device", "0"), ("io.max", "rbps=max")):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            _try_write(folder / name, f"{line.split()[0]} {text}")


def _try_write(path: Path, text: str) -> None:
    if path.exists():
        with suppress(OSError):
            path.write_text(text)


def kill_all(folder: Path) -> None:
    """SIGKILL to all in a group until none is left: a forking process leaves a child."""
    deadline = time.monotonic() + _END_S
    while pids := pids_in(folder):
        signal_all(pids, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes {pids} in {folder} do not end")
        time.sleep(0.002)


def remove_folder(folder: Path) -> None:
    """Remove a group without processes; the kernel may need a moment. Raises LabError."""
    deadline = time.monotonic() + _END_S
    while folder.exists():
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"cannot remove {folder}: {error.strerror}") from error
            time.sleep(0.02)
