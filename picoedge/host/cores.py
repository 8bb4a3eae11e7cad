"""Cores worth a thread each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from picoedge.host import cgroups
from picoedge.kernels.loader import default_threads


def is_rationed(root: Path = cgroups.ROOT, groups: Path = cgroups.GROUPS) -> bool:
    """Whether a quota grants less than one core: waiting without sleeping would use it up."""
    return any(share < 1 for share in _shares(root, groups))


def usable_cores(root: Path = cgroups.ROOT, groups: Path = cgroups.GROUPS) -> int:
    """Cores this process may run on, within the CPU quota of its cgroups (v1 and v2).

    More threads than a quota allows would poll it away.
    """
    return min([default_threads(), *_quotas(root, groups)])


def _quotas(root: Path, groups: Path) -> Iterator[int]:
    return (max(1, math.ceil(share)) for share in _shares(root, groups))


def _shares(root: Path, groups: Path) -> Iterator[float]:
    for folder, version in cgroups.levels("cpu", root, groups):
        quota, period = _v2(folder) if version == 2 else _v1(folder)
        if quota is not None and quota > 0 and period:
            yield quota / period


def _v1(folder: Path) -> tuple[int | None, int | None]:
    return cgroups.number(folder / "cpu.cfs_quota_us"), cgroups.number(folder / "cpu.cfs_period_us")


def _v2(folder: Path) -> tuple[int | None, int | None]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota), int(period)
    except (OSError, ValueError):  # absent, or "max"
        return None, None
