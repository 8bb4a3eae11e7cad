"""How a model is to be opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from picoedge.config import SamplingOptions


@dataclass(frozen=True)
class ClusterOptions:
    """How a session is spread over the mesh; by default as the plan finds best."""

    boards: int | None = None  # so many
    split: tuple[float, ...] = ()  # weights of the boards' shares, this one's first
    allreduce: Literal["star", "exchange"] | None = None
    split_head: bool = False  # the head may be dealt, so that others see the likely next tokens
    transport: Literal["auto", "zeromq", "stream"] = "auto"  # what carries sums between boards
    wire: str = "f64"  # how sums travel: "f64" is exact; "f32", "f16", "q8" are smaller


@dataclass(frozen=True)
class OpenOptions:
    """How a model is opened. None everywhere: what this board and the model suggest."""

    threads: int | None = None
    memory_bytes: int | None = None  # ceiling for everything this process takes
    window_io: str = "auto"  # how what does not fit is read: "direct", "mmap"
    kv_bits: int = 16  # of the cache of keys and values: 16 or 8
    verify: bool = False  # compare what is streamed with its hashes
    logit_rows: int = 1  # tokens whose logits are wanted at once
    n_ctx: int | None = None
    kernels: str | None = None  # "numpy", "native"
    cluster: ClusterOptions | None = None  # None: this board alone
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
