"""Sums at the boards that own them: all send their parts there, and are sent back the sums.

The star's hub owns all values; where there is no hub, each board may own a share of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from picoedge.mesh.collective import F64, flat, pieces
from picoedge.mesh.member import Member
from picoedge.mesh.shares import shares
from picoedge.mesh.wire import PREFIX_BYTES, Kind


class Adder(Member):
    """A board that sends its parts to the owners of values, or is one, or both, or neither."""

    def _add_up(self, sums: F64, owners: Sequence[int]) -> None:
        """Make one sum, in two hops. Who is linked to an owner must not wait for anyone else."""
        stage = self._next_stage()
        contributors = self._stages.contributors(stage)
        runs = shares(sums.size, owners)
        mine = runs.pop(self._rank, slice(0, 0))
        if self._rank in contributors:
            for owner in sorted(runs, key=lambda owner: (owner < self._rank, owner)):
                self._send_parts(owner, sums, runs[owner], alone=len(contributors) == 1)
        if mine.stop > mine.start:
            self._own(contributors, sums, mine, self._stages.takers(stage, self._others))
        if self._stages.takers(stage, (self._rank,)):
            for owner, run in runs.items():
                self._take(owner, sums, run)
        self._count()

    def _send_parts(self, owner: int, sums: F64, run: slice, *, alone: bool) -> None:
        """To the owner of these values; what one board has `alone` is the whole sum already."""
        codec, kind = self._codecs.part, Kind.SUM_PART
        if alone:
            codec, kind = self._codecs.whole, Kind.SUM
        values = flat(sums)
        for piece in pieces(run):
            self._encode(values[piece], codec)
            self._send((owner,), self._header(kind, len(sums), piece.start))

    def _own(
        self, contributors: Sequence[int], sums: F64, run: slice, takers: Sequence[int]
    ) -> None:
        """Add all parts of these values, this board's own among them or not; tell the sums."""
        workers = [rank for rank in contributors if rank != self._rank]
        relay = len(workers) == len(contributors) == 1
        values, codecs = flat(sums), self._codecs
        for piece in pieces(run):
            mine, header = values[piece], self._header(Kind.SUM, len(sums), piece.start)
            if relay:
                self._relay(workers[0], header, mine)
            else:
                expected = self._header(Kind.SUM_PART, len(sums), piece.start)
                self._add(contributors, self._receive(workers, expected), mine)
            if takers and not relay:
                self._encode(mine, codecs.whole)
            if takers:
                self._send(takers, header)

    def _relay(self, rank: int, header: bytes, values: F64) -> None:
        """Make the next message, to the byte, of what one worker alone has."""
        body = self._receive((rank,), header)[rank]
        self._decode(rank, body, self._codecs.whole, values)
        self._message(len(body))[PREFIX_BYTES:] = body

    def _take(self, owner: int, sums: F64, run: slice) -> None:
        """Go on with the sums of these values that their owner has."""
        values, codec = flat(sums), self._codecs.whole
        for piece in pieces(run):
            header = self._header(Kind.SUM, len(sums), piece.start)
            body = self._receive((owner,), header)[owner]
            self._decode(owner, body, codec, values[piece])
