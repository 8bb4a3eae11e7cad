"""Allreduce: the sum of all ranks' values, on all ranks that need it, to the same bits.

    finish = reduce(channel, values, contributors, receivers, owners)
    ...                             computing here hides the messages' latency
    finish()                        now `values` holds the sum

`owners` says where values are added:

    (HUB,)          a star: parts go to the hub, sums come back
    contributors    each owns a chunk of the values: reduce-scatter, then all-gather
    None            an exchange: each part goes to every receiver, which adds them itself

Parts are added in f64 in the order of ranks, so that the bits do not depend on the owners.

An exchange is one hop. With chunks there are two, and fewer bytes the more ranks there are
(Thakur, Rabenseifner, Gropp 2005): `codecs.is_cut` says where that is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from picoedge.kernels.arrays import F64
from picoedge.mesh.group.channel import Channel, message_pieces
from picoedge.mesh.group.codecs import Q8_BLOCK, QUIET
from picoedge.mesh.transport.frames import Kind


def chunks(values: int, owners: Sequence[int]) -> dict[int, slice]:
    """The values that each owner adds up, nearly equally many; some may have none.

    >>> chunks(100, (0, 2, 5))
    {0: slice(0, 32, None), 2: slice(32, 64, None), 5: slice(64, 100, None)}
    """
    blocks = -(-values // Q8_BLOCK)
    ends = [min(values, blocks * i // len(owners) * Q8_BLOCK) for i in range(len(owners) + 1)]
    ends[-1] = values
    return {owner: slice(ends[i], ends[i + 1]) for i, owner in enumerate(owners)}


def reduce(
    channel: Channel,
    values: F64,
    contributors: Sequence[int],
    receivers: Sequence[int],
    owners: Sequence[int] | None = None,
) -> Callable[[], None]:
    """Begin a sum: send this rank's part, values f64 [rows, columns], where it must go.

    Call the returned function, in the order in which sums were begun: it leaves the sum in `values`
    if this rank is among the receivers. All ranks of the channel make the same call, with
    contributors and receivers ascending. The values of a rank that is no contributor are not read.
    """
    if len(contributors) == 1 and (owners is None or len(owners) > 1):
        owners = contributors  # its part is the sum already
    sum_ = _Sum(channel, values, contributors, receivers)
    if owners is None:
        sum_.send_to_receivers()
        return sum_.add_parts
    sum_.send_to_owners(owners)
    return sum_.finish


class _Sum:
    """A sum in flight: the values, flat, are this rank's part and then the total."""

    def __init__(
        self, channel: Channel, values: F64, contributors: Sequence[int], receivers: Sequence[int]
    ) -> None:
        assert values.flags.c_contiguous
        self._channel, self._contributors = channel, contributors
        self._values, self._shape = values.reshape(-1), values.shape
        self._sequence = channel.advance_sum()
        if len(contributors) == 1:  # it has the sum already
            receivers = [rank for rank in receivers if rank != contributors[0]]
        self._targets = [rank for rank in receivers if rank != channel.rank]
        self._receives = channel.rank in receivers

    def _header(self, kind: Kind, piece: slice) -> bytes:
        codecs = self._channel.codecs
        codec = codecs.part if kind is Kind.SUM_PART else codecs.whole
        n, width = self._shape
        return self._channel.header(kind, codec.dtype, (n, width), piece.start, self._sequence)

    # -- every rank adds -----------------------------------------------------------------------

    def send_to_receivers(self) -> None:
        """Send this rank's part to every other receiver."""
        channel, values = self._channel, self._values
        if channel.rank in self._contributors:
            for piece in message_pieces(slice(0, values.size)):
                header = self._header(Kind.SUM_PART, piece)
                channel.send_values(self._targets, header, values[piece], channel.codecs.part)

    def add_parts(self) -> None:
        """Receive the parts of all others and add them up."""
        if self._receives:
            for piece in message_pieces(slice(0, self._values.size)):
                self._add(piece)

    # -- owners add ----------------------------------------------------------------------------

    def send_to_owners(self, owners: Sequence[int]) -> None:
        """Send this rank's part of each chunk to its owner: lower ranks last.

        In that order no send waits for a third rank. A part without others is the sum already.
        """
        channel, codecs, rank = self._channel, self._channel.codecs, self._channel.rank
        self._chunks = chunks(self._values.size, owners)
        self._own = self._chunks.pop(rank, slice(0, 0))
        if rank not in self._contributors:
            return
        kind, codec = Kind.SUM_PART, codecs.part
        if len(self._contributors) == 1:
            kind, codec = Kind.SUM, codecs.whole
        for owner in sorted(self._chunks, key=lambda owner: (owner < rank, owner)):
            for piece in message_pieces(self._chunks[owner]):
                header = self._header(kind, piece)
                channel.send_values((owner,), header, self._values[piece], codec)

    def finish(self) -> None:
        """Add up the chunk this rank owns, and receive the sums of the others from their owners."""
        for piece in message_pieces(self._own):
            self._add_and_send(piece)
        if self._receives:
            for owner, chunk in self._chunks.items():
                for piece in message_pieces(chunk):
                    self._receive_sum(owner, piece)

    def _add_and_send(self, piece: slice) -> None:
        channel, contributors, targets = self._channel, self._contributors, self._targets
        header = self._header(Kind.SUM, piece)
        if len(contributors) == 1 and contributors[0] != channel.rank:  # it sent the sum: relay
            body = self._receive_sum(contributors[0], piece)
            if targets:
                channel.send_bytes(targets, header, body)
            return
        self._add(piece)
        if targets:
            channel.send_values(targets, header, self._values[piece], channel.codecs.whole)

    def _receive_sum(self, rank: int, piece: slice) -> memoryview:
        """Put the sum of these values in place; returns its bytes."""
        channel = self._channel
        body = channel.receive((rank,), self._header(Kind.SUM, piece))[rank]
        channel.decode(rank, body, channel.codecs.whole, self._values[piece])
        return body

    @QUIET
    def _add(self, piece: slice) -> None:
        """Receive all parts of these values and add them in the order of ranks.

        `out` holds this rank's own part, so the total is kept in scratch until that is added.
        """
        channel, contributors, out = self._channel, self._contributors, self._values[piece]
        own, codec, count = channel.rank, channel.codecs.part, len(out)
        others = [rank for rank in contributors if rank != own]
        bodies = channel.receive(others, self._header(Kind.SUM_PART, piece))
        scratch, decoded = channel.scratch[:, :count]

        def part(rank: int, into: F64) -> F64:
            return out if rank == own else channel.decode(rank, bodies[rank], codec, into)

        own_at = contributors.index(own) if own in contributors else 0
        total = part(contributors[0], scratch)
        for i, rank in enumerate(contributors[1:], 1):
            total = np.add(total, part(rank, decoded), out=out if i >= own_at else scratch)
        if total is not out:  # a single part
            out[...] = total
