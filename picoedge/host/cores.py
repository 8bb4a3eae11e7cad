"""Count the cores that are worth a thread each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from picoedge.host.sysfs import CGROUP_ROOT, OWN_CGROUPS, cgroup_levels, file_int, file_text
from picoedge.kernels.loader import default_threads


def is_rationed(root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS) -> bool:
    """Whether a CPU quota grants less than one core: busy-polling would use the quota up."""
    return any(cores < 1 for cores in _quotas(root, groups))


def usable_cores(root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS) -> int:
    """Cores this process may run on, within the CPU quota of its cgroups (v1 and v2).

    Threads beyond the quota would spend it on polling.
    """
    quotas = (max(1, math.ceil(cores)) for cores in _quotas(root, groups))
    return min([default_threads(), *quotas])


def _quotas(root: Path, groups: Path) -> Iterator[float]:
    """Cores that each cgroup with a CPU quota grants, like 0.5 or 2."""
    for folder, version in cgroup_levels("cpu", root, groups):
        quota, period = _v2(folder) if version == 2 else _v1(folder)
        if quota is not None and quota > 0 and period:
            yield quota / period


def _v1(folder: Path) -> tuple[int | None, int | None]:
    return file_int(folder / "cpu.cfs_quota_us"), file_int(folder / "cpu.cfs_period_us")


def _v2(folder: Path) -> tuple[int | None, int | None]:
    try:
        quota, period = file_text(folder / "cpu.max").split()
        return int(quota), int(period)
    except ValueError:  # absent, or "max 100000"
        return None, None
