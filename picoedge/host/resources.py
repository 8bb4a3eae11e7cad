"""The process's part of this machine: memory, cores, time, and the kernel's counters for it.

Within the limits of its cgroups (v1 and v2, and their parents).
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from picoedge.host.sysfs import (
    CGROUP_ROOT,
    OWN_CGROUPS,
    PROC,
    cgroup_levels,
    file_fields,
    file_int,
    file_text,
)

TICK_S = 0.25
PAUSE_S = 0.75  # beyond a tick: others give up a board that is silent for a second
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2 ** 63
REFAULT_BYTES = 7 << 20  # measured: libraries that are read again, and file-system metadata
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Parameters of mallopt (malloc.h): blocks from M_MMAP_THRESHOLD on are mappings of their own, a
# heap whose end is free for M_TRIM_THRESHOLD shrinks, and all threads share M_ARENA_MAX heaps.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MALLOC = {_M_MMAP_THRESHOLD: 32 << 10, _M_TRIM_THRESHOLD: 128 << 10, _M_ARENA_MAX: 1}


def available_bytes(
    root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS, meminfo: Path = PROC / "meminfo"
) -> int:
    """Bytes this process may still take: free memory and page cache that can be reclaimed."""
    kilobytes = _number(meminfo, "MemAvailable")  # what Linux calls available
    if kilobytes is None:  # other systems: all the memory there is
        return min([os.sysconf("SC_PHYS_PAGES") * _PAGE, *_cgroup_rooms(root, groups)])
    return min([kilobytes * 1024, *_cgroup_rooms(root, groups)])


def board_bytes(root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS, proc: Path = PROC) -> int:
    """Bytes that all of picoedge may take on this board: available memory, and the memory that its
    other processes hold already.

    A daemon that is started again beside a session must not take that session's memory for lost:
    it is what the session is to be lent.
    """
    held = {pid: own_bytes(pid, proc) for pid in picoedge_pids(proc)}
    kilobytes = _number(proc / "meminfo", "MemAvailable")
    if kilobytes is None:
        return available_bytes(root, groups, proc / "meminfo")
    rooms = [
        room + sum(held.get(pid, 0) for pid in _pids_of(folder))
        for folder, room in _limited(root, groups)
    ]
    return min([kilobytes * 1024 + sum(held.values()), *rooms])


def picoedge_pids(proc: Path) -> Iterator[int]:
    """Other processes that run one of our modules or our command."""
    for folder in proc.glob("[0-9]*"):
        words = file_text(folder / "cmdline").split("\0")[:4]
        names = [word.rpartition("/")[2] for word in words]
        is_ours = any(name == "picoedge" or name.startswith("picoedge.") for name in names)
        if is_ours and folder.name != str(os.getpid()):
            yield int(folder.name)


def own_bytes(pid: int | str, proc: Path) -> int:
    """Memory that is the process's own ("self": this one's): pages of files are given back."""
    status = proc / str(pid) / "status"
    return sum((_number(status, key) or 0) << 10 for key in ("RssAnon", "RssShmem"))


def lasting_bytes(pid: int | None = None, proc: Path = PROC) -> int:
    """Memory of a process (None: this one) without what it gives back once it has started.

    All its pages of files are free memory already, as `available_bytes` counts: to count them here
    too would promise them twice. Those that it reads again while it computes are left to it.
    """
    name = "self" if pid is None else str(pid)
    files = _number(proc / name / "status", "RssFile")
    if files is None:  # ended, or another system
        return rss_bytes() if pid is None else 0
    return own_bytes(name, proc) + min(files << 10, REFAULT_BYTES)


def _pids_of(folder: Path) -> set[int]:
    """Processes in a cgroup and those beneath it."""
    lists = [file_text(path) for path in folder.rglob("cgroup.procs")]
    return {int(word) for text in lists for word in text.split() if word.isdecimal()}


def _cgroup_rooms(root: Path, groups: Path) -> Iterator[int]:
    """Bytes below the limit of each cgroup that has one."""
    return (room for _, room in _limited(root, groups))


def _limited(root: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """Each cgroup that has a limit, with the bytes below it."""
    for folder, version in cgroup_levels("memory", root, groups):
        if version == 2:
            limit, usage, prefix = "memory.max", "memory.current", ""
        else:
            limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        maximum = file_int(folder / limit)
        if maximum is not None and maximum < _UNLIMITED:
            stat = file_fields(folder / "memory.stat")
            cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            used = (file_int(folder / usage) or 0) - cache  # the cache is reclaimed on demand
            yield folder, max(0, maximum - max(0, used))


def is_rationed(root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS) -> bool:
    """Whether a CPU quota grants less than one core: busy-polling would use the quota up."""
    return any(cores < 1 for cores in _quotas(root, groups))


def usable_cores(root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS) -> int:
    """Cores this process may run on; threads beyond its CPU quota would spend it on polling."""
    from picoedge.kernels.loader import default_threads  # NumPy, which the daemon does without

    return min([default_threads(), *(max(1, math.ceil(cores)) for cores in _quotas(root, groups))])


def _quotas(root: Path, groups: Path) -> Iterator[float]:
    """Cores that each cgroup with a CPU quota grants, like 0.5 or 2."""
    for folder, version in cgroup_levels("cpu", root, groups):
        if version == 2:
            words = file_text(folder / "cpu.max").split()
        else:
            words = [file_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            yield int(words[0]) / int(words[1])  # not "max", and not -1


def peak_rss_bytes(status: Path = PROC / "self/status") -> int:
    """The largest resident size of this process so far.

    VmHWM is of this program alone; `ru_maxrss`, used where /proc is missing, may remember the
    larger parent that started it.
    """
    kilobytes = _number(status, "VmHWM")
    if kilobytes is not None:
        return kilobytes * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_bytes(status: Path = PROC / "self/status") -> int:
    """The resident size of this process now; where /proc is missing, its largest so far."""
    kilobytes = _number(status, "VmRSS")
    return kilobytes * 1024 if kilobytes is not None else peak_rss_bytes(status)


def storage_bytes_read(io: Path = PROC / "self/io") -> int | None:
    """Bytes read from storage for this process; None where the kernel does not count them."""
    return _number(io, "read_bytes")


def disk_room(folder: Path) -> dict[str, int]:
    """Free bytes and files on the disk of a folder, which may not exist yet; {}: not known."""
    for place in (folder, *folder.parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        room = {"disk_free_bytes": status.f_bavail * status.f_frsize}
        # Some file systems have no table of files that could be full.
        return {**room, "disk_free_files": status.f_favail} if status.f_files else room
    return {}


def rss_bytes_of(pid: int, proc: Path = PROC) -> int:
    """The resident size of process `pid`; 0 where it has ended."""
    words = file_text(proc / str(pid) / "statm").split()
    return int(words[1]) * _PAGE if len(words) > 1 else 0


def state_of(pid: int, proc: Path = PROC) -> str:
    """ "running", "disk" (a thread waits for storage), "stopped" or "ended"."""
    # The letter behind the command of `12 (my (odd) name) S 1 …`; "" where the thread has ended.
    stats = map(file_text, (proc / str(pid) / "task").glob("*/stat"))
    states = {stat.rpartition(")")[2].strip()[:1] for stat in stats}
    if not states - {"", "Z", "X"}:
        return "ended"
    if states & {"T", "t"}:
        return "stopped"
    return "disk" if "D" in states else "running"


def _number(file: Path, key: str) -> int | None:
    """The number of a line of the file; None where there is no such line."""
    words = file_fields(file).get(key, "").split()
    return int(words[0]) if words and words[0].isdecimal() else None


# -- pauses --------------------------------------------------------------------------------------


def clock_s() -> float:
    """Seconds of a clock that also runs while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class PauseDetector:
    """A gap between two looks at the clock that is longer than a busy machine explains. Pure.

    `look` at least every TICK_S; `paused_s` is when the last pause ended, None without one.
    """

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self.paused_s: float | None = None

    def look(self, now_s: float) -> None:
        """The clock says `now_s`."""
        if now_s - self._looked_s >= TICK_S + PAUSE_S:
            self.paused_s = now_s
        self._looked_s = max(now_s, self._looked_s)


class PauseWatch:
    """A thread that looks at the clock, as the computing thread may be long about a token."""

    def __init__(self) -> None:
        self._detector, self._closed = PauseDetector(clock_s()), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pauses", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(TICK_S):
            self._look()

    def _look(self) -> float | None:
        with self._lock:
            self._detector.look(clock_s())
            return self._detector.paused_s

    def take(self) -> float | None:
        """End of the last pause (`clock_s`), once for each; None without a new one."""
        paused_s = self._look()
        with self._lock:
            self._detector.paused_s = None
        return paused_s

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closed.set()
        self._thread.join()


def give_back() -> None:
    """Give memory that is free in this process back to the system: what large messages took."""
    gc.collect()
    with suppress(AttributeError, OSError):  # where the C library cannot
        ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Have malloc give each large block back to the system when it is freed.

    glibc raises its bounds with the largest block freed, up to 32 MB, and gives each thread a heap
    of its own, whose end `give_back` cannot release: after one message of 1 MB, libzmq's thread
    keeps up to 2 MB. To be called before there are other threads.
    """
    with suppress(AttributeError, OSError):  # where the C library cannot
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)
