"""An adapter on its way to the workers of a group, over the group's own links.

    worker                          hub
    note {"adapter": 0}             values 0 .. n - 1, f32, in one message
    note {"adapter": n}             the next ones
    note {"adapter": all}           nothing: the worker has its part

A worker asks for each message, so no more than one is under way, and it knows the number of values
from the specification and its model: a hub cannot make it take more. One that kept its slice has
all of them already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from picoedge.errors import BoardRefusedError, MemoryBudgetError
from picoedge.fields import Fields
from picoedge.jobs.group_links import WORKER_SILENCE_S, blaming, receive_note, send_note
from picoedge.kernels.arrays import F32
from picoedge.mesh.group.channel import F32_PIECE_VALUES
from picoedge.mesh.transport.frames import HUB, Dtype, Header, Kind, pack_prefix
from picoedge.model.adapter import AdapterSlice, Cut, slice_values
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.mesh.group.links import Links
    from picoedge.store.adapter_shape import AdapterShape
    from picoedge.store.pack.reader import Pack
    from picoedge.store.shards import Slice

TAG = 12  # of a message with values; extra: the first one


def _prefix(links: Links, first: int, count: int) -> bytes:
    shape = 1, count
    header = Header(Kind.DATA, links.epoch, 0, Dtype.F32, shape, first, TAG)
    return pack_prefix(header, links.version)


def send_adapter(links: Links, rank: int, adapter: AdapterSlice) -> None:
    """The hub sends a worker its part of an adapter, as it asks for it.

    Raises BoardRefusedError where the worker knows no adapters, BoardLostError, also for a note
    that makes no sense.
    """
    values, name, due = adapter.values(), links.name(rank), 0
    while True:
        note = Fields(receive_note(links, rank, None), "a note")
        if "adapter" not in note.values:
            raise outdated(name, links.key(rank))
        with blaming(links, rank):
            first = note.integer("adapter", 0, len(values))
        if first == len(values):
            return
        if first != due:
            raise links.fault(rank, f"asks for values from {first} on, where {due} are due")
        piece = values[first : first + F32_PIECE_VALUES]
        links.send(rank, _prefix(links, first, len(piece)) + piece.tobytes())
        due = first + len(piece)


def outdated(name: str, key: str) -> BoardRefusedError:
    """The error for a board whose picoedge is older than adapters."""
    return BoardRefusedError(
        f"{name} runs an older picoedge, which knows no adapters", f"upgrade {name}",
        board=name, key=key,
    )  # fmt: skip


def receive_adapter(
    links: Links, shape: AdapterShape, part: Slice, pack: Pack, memory_bytes: int
) -> AdapterSlice:
    """A worker's part of the group's adapter, which has this shape.

    Raises MemoryBudgetError where it takes more than half of `memory_bytes`, ProtocolError for one
    that is no adapter of the model, BoardLostError.
    """
    cut = Cut(pack.config, pack.ffn_shard_cols)
    count = slice_values(shape, cut, part)
    if 4 * count > memory_bytes // 2:
        raise MemoryBudgetError(
            f"the adapter takes {format_size(4 * count)} of {format_size(memory_bytes)}",
            "take an adapter of a smaller rank, or leave this board out",
        )
    values, first = np.empty(count, np.float32), 0
    while first < count:
        send_note(links, HUB, {"adapter": first})
        piece = values[first : first + F32_PIECE_VALUES]
        _, raw, body = links.receive((HUB,), WORKER_SILENCE_S)
        if raw != _prefix(links, first, len(piece)) or len(body) != piece.nbytes:
            raise links.fault(HUB, "sent something else than the adapter's values")
        piece[...] = np.frombuffer(body, "<f4")
        first += len(piece)
    send_note(links, HUB, {"adapter": count})
    return AdapterSlice.from_values(shape, cut, part, _finite(links, values))


def refuse_adapter(links: Links, shape: AdapterShape, part: Slice, pack: Pack) -> None:
    """Tell the hub that this worker's slice has its part of the adapter already."""
    cut = Cut(pack.config, pack.ffn_shard_cols)
    send_note(links, HUB, {"adapter": slice_values(shape, cut, part)})


def _finite(links: Links, values: F32) -> F32:
    if not np.isfinite(values).all():
        raise links.fault(HUB, "sent an adapter with NaN or infinity")
    return values
