"""Sums at the boards that own them: all send their parts there, and are sent back the sums.

The star's hub owns all values; where there is no hub, each board may own a share of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from picoedge.kernels.arrays import F64
from picoedge.mesh.group.chunking import shares
from picoedge.mesh.group.collective import Finish, flat, pieces
from picoedge.mesh.group.member import Member, Sum
from picoedge.mesh.transport.frames import PREFIX_BYTES, Kind


class Adder(Member):
    """A board that sends its parts to the owners of values, or is one, or both, or neither."""

    def _begin_shares(self, made: Sum, owners: Sequence[int]) -> Finish:
        """Send this board's parts. Who is linked to an owner must not wait for anyone else."""
        contributors = self._stages.contributors(made.stage)
        runs = shares(made.values.size, owners)
        mine = runs.pop(self._rank, slice(0, 0))
        if self._rank in contributors:
            for owner in sorted(runs, key=lambda owner: (owner < self._rank, owner)):
                self._send_parts(made, owner, runs[owner], alone=len(contributors) == 1)
        return partial(self._finish_shares, made, runs, mine)

    def _finish_shares(self, made: Sum, runs: dict[int, slice], mine: slice) -> None:
        """Add up what this board owns, and take from the owners the rest."""
        if mine.stop > mine.start:
            self._own(made, mine)
        if self._stages.takers(made.stage, (self._rank,)):
            for owner, run in runs.items():
                self._take(made, owner, run)

    def _send_parts(self, made: Sum, owner: int, run: slice, *, alone: bool) -> None:
        """To the owner of these values; what one board has `alone` is the whole sum already."""
        codec, kind = self._codecs.part, Kind.SUM_PART
        if alone:
            codec, kind = self._codecs.whole, Kind.SUM
        values = flat(made.values)
        for piece in pieces(run):
            self._encode(values[piece], codec)
            self._send((owner,), self._header_of(made, kind, piece))

    def _own(self, made: Sum, run: slice) -> None:
        """Add all parts of these values, this board's own among them or not; tell the sums."""
        contributors = self._stages.contributors(made.stage)
        takers = self._stages.takers(made.stage, self._others)
        workers = [rank for rank in contributors if rank != self._rank]
        relay = len(workers) == len(contributors) == 1
        values = flat(made.values)
        for piece in pieces(run):
            mine, header = values[piece], self._header_of(made, Kind.SUM, piece)
            if relay:
                self._relay(workers[0], header, mine)
            else:
                expected = self._header_of(made, Kind.SUM_PART, piece)
                self._add(contributors, self._receive(workers, expected), mine)
            if takers and not relay:
                self._encode(mine, self._codecs.whole)
            if takers:
                self._send(takers, header)

    def _relay(self, rank: int, header: bytes, values: F64) -> None:
        """Make the next message, to the byte, of what one worker alone has."""
        body = self._receive((rank,), header)[rank]
        self._decode(rank, body, self._codecs.whole, values)
        self._message(len(body))[PREFIX_BYTES:] = body

    def _take(self, made: Sum, owner: int, run: slice) -> None:
        """Go on with the sums of these values that their owner has."""
        values = flat(made.values)
        for piece in pieces(run):
            header = self._header_of(made, Kind.SUM, piece)
            body = self._receive((owner,), header)[owner]
            self._decode(owner, body, self._codecs.whole, values[piece])
