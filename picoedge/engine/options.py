"""Options for opening a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picoedge.mesh.group.peer_link import TransportChoice
    from picoedge.model.adapter import AdapterSlice
    from picoedge.planner.cluster_plan import ClusterOptions

TRANSPORT_CHOICES: tuple[TransportChoice, ...] = ("auto", "zeromq", "stream")


@dataclass(frozen=True)
class OpenOptions:
    """Options for opening a model. None means: chosen from the board and the model."""

    threads: int | None = None
    memory_bytes: int | None = None  # ceiling for all memory of this process
    window_io: str = "auto"  # reads of streamed weights: "direct", "mmap"
    kv_bits: int = 16  # key-value cache: 16 or 8
    verify: bool = False  # compare streamed weights with their hashes
    logit_rows: int = 1  # tokens whose logits are computed at once
    n_ctx: int | None = None
    is_default_context: bool = False  # `n_ctx` was chosen: boards without room take a smaller one
    kernels: str | None = None  # "numpy", "native"
    cluster: ClusterOptions | None = None  # None: this board alone
    sampling: Mapping[str, float | None] = field(default_factory=dict)  # before the model's own
    adapter: AdapterSlice | None = None  # added to the model's products
