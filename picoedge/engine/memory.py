"""What a model will take and what this board has, in bytes, before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from picoedge.config import ModelConfig
from picoedge.engine import cgroups
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.cache_size import kv_cache_bytes
from picoedge.units import format_size

INTERPRETER_BYTES = 48 << 20  # Python, NumPy and the kernels' own buffers
BPE_BYTES_PER_TOKEN = 480  # measured: 22 MB for 49,152 tokens and their merges
SENTENCEPIECE_BYTES_PER_TOKEN = 260  # measured: 65 MB for 262,144 tokens
DEFAULT_CONTEXT = 4096
SMALLEST_DEFAULT_CONTEXT = 512
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2 ** 63


@dataclass(frozen=True)
class Estimate:
    """Bytes a model takes when its context is full."""

    weights: int
    kv_cache: int
    activations: int
    n_ctx: int
    tokenizer: int = 0

    @property
    def private(self) -> int:
        """Bytes that cannot be dropped and read again from disk, as weights can."""
        return self.kv_cache + self.activations

    @property
    def total(self) -> int:
        """All of it, the interpreter included."""
        return self.weights + self.private + self.fixed

    @property
    def fixed(self) -> int:
        """What there is beside the model: the interpreter and the tokenizer."""
        return INTERPRETER_BYTES + self.tokenizer

    def __str__(self) -> str:
        return (
            f"weights {format_size(self.weights)} + context of {self.n_ctx} tokens "
            f"{format_size(self.kv_cache)} + buffers {format_size(self.activations)} + "
            f"interpreter and tokenizer {format_size(self.fixed)} = {format_size(self.total)}"
        )


def estimate(
    config: ModelConfig,
    weight_bytes: int,
    n_ctx: int,
    *,
    kv_bits: int = 16,
    sentencepiece: bool = False,
    batch: int = 256,
) -> Estimate:
    """What a whole model takes, its cache of keys and values in `kv_bits` (32, 16 or 8).

    `sentencepiece`: the kind of its tokenizer. The f64 temporaries of the rope tables (16 bytes
    an entry beside the 8 kept) are not counted: they are gone before the cache is filled, and
    smaller than it.
    """
    key_value_width = config.num_key_value_heads * config.head_dim
    layer = kv_cache_bytes(n_ctx, config.num_key_value_heads, config.head_dim, kv_bits)
    attention_width = config.num_attention_heads * config.head_dim
    rope = 2 * 4 * (config.head_dim // 2) * (2 if config.windowed_layers else 1)
    per_token = 12 * config.hidden_size + 8 * config.intermediate_size
    per_token += 4 * (2 * attention_width + 2 * key_value_width)
    activations = 2 * min(batch, n_ctx) * per_token + 4 * config.vocab_size  # twice: int8, scratch
    per_word = SENTENCEPIECE_BYTES_PER_TOKEN if sentencepiece else BPE_BYTES_PER_TOKEN
    cache = config.num_hidden_layers * layer + n_ctx * rope
    return Estimate(weight_bytes, cache, activations, n_ctx, per_word * config.vocab_size)


def default_context(config: ModelConfig, budget: int, *, kv_bits: int = 16) -> int:
    """Context when none is asked for: modest, the model's own limit, a quarter of the memory."""
    n_ctx = min(DEFAULT_CONTEXT, config.max_position_embeddings)
    while n_ctx > SMALLEST_DEFAULT_CONTEXT:
        if estimate(config, 0, n_ctx, kv_bits=kv_bits).kv_cache <= budget // 4:
            break
        n_ctx //= 2
    return n_ctx


def check_private(need: Estimate, available: int) -> None:
    """Refuse a context that cannot fit. Raises MemoryBudgetError with the figures.

    Weights can be read again from disk, so only the rest must fit in what is `available`.
    """
    if need.private > available:
        raise MemoryBudgetError(
            f"a context of {need.n_ctx} tokens needs {format_size(need.private)}, "
            f"{format_size(available)} of memory is free",
            "take a smaller --ctx-size, or stop other programs",
        )


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
