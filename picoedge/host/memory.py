"""What memory this board has for us, in bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from picoedge.host import cgroups

_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2 ** 63


def available_bytes(
    root: Path = cgroups.ROOT,
    groups: Path = cgroups.GROUPS,
    meminfo: Path = Path("/proc/meminfo"),
) -> int:
    """Memory this process may still take: what is free, within its cgroup's limit."""
    return min([_system_available(meminfo), *_cgroup_rooms(root, groups)])


def _system_available(meminfo: Path) -> int:
    """Free memory and what the page cache would give back; without Linux, all there is."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_rooms(root: Path, groups: Path) -> Iterator[int]:
    """Bytes left in each cgroup that limits this process (v1 and v2, and their parents)."""
    for folder, version in cgroups.levels("memory", root, groups):
        if version == 2:
            limit, usage, prefix = "memory.max", "memory.current", ""
        else:
            limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        maximum = cgroups.number(folder / limit)
        if maximum is not None and maximum < _UNLIMITED:
            keys = (f"{prefix}inactive_file", f"{prefix}active_file")
            used = (cgroups.number(folder / usage) or 0) - _sum_of(folder / "memory.stat", keys)
            yield max(0, maximum - max(0, used))


def _sum_of(stat: Path, keys: tuple[str, str]) -> int:
    """Page cache, which is given back when memory is asked for."""
    try:
        pairs = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in keys)
