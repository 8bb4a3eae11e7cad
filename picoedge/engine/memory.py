"""What memory this board has for us, and the context that suits it, in bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from picoedge.config import ModelConfig
from picoedge.engine import cgroups
from picoedge.engine.planning import Load, cache_bytes
from picoedge.store.slices import Slice

DEFAULT_CONTEXT = 4096
SMALLEST_DEFAULT_CONTEXT = 512
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2 ** 63


def default_context(config: ModelConfig, budget: int, *, kv_bits: int = 16) -> int:
    """Context when none is asked for: modest, the model's own limit, a quarter of the memory."""
    n_ctx = min(DEFAULT_CONTEXT, config.max_position_embeddings)
    heads = Slice(range(config.num_key_value_heads), range(0))
    while n_ctx > SMALLEST_DEFAULT_CONTEXT:
        if cache_bytes(Load(config, heads, (), 0, n_ctx, kv_bits)) <= budget // 4:
            break
        n_ctx //= 2
    return n_ctx


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
