"""How much memory this process may still take, in bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from picoedge.host.sysfs import CGROUP_ROOT, OWN_CGROUPS, cgroup_levels, file_fields, file_int

_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2 ** 63


def available_bytes(
    root: Path = CGROUP_ROOT,
    groups: Path = OWN_CGROUPS,
    meminfo: Path = Path("/proc/meminfo"),
) -> int:
    """Free memory and reclaimable page cache, within the limits of this process's cgroups."""
    return min([_system_available(meminfo), *_cgroup_rooms(root, groups)])


def _system_available(meminfo: Path) -> int:
    """What Linux calls available; on other systems, all the memory there is."""
    try:
        return int(file_fields(meminfo)["MemAvailable"].split()[0]) * 1024
    except (KeyError, ValueError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_rooms(root: Path, groups: Path) -> Iterator[int]:
    """Bytes below the limit of each cgroup that has one (v1 and v2, and their parents)."""
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
            yield max(0, maximum - max(0, used))
