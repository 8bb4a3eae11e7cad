"""The exchange: every board sends its part to every other, and each adds for itself.

One hop a sum instead of the star's two, for more messages: it wins where links are few and slow to
answer. Long sums are cut into a share for each board, which is the hub of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from picoedge.mesh.adder import Adder
from picoedge.mesh.collective import F64, flat, pieces
from picoedge.mesh.shares import are_cut
from picoedge.mesh.wire import Kind


class Exchange(Adder):
    """A board, hub or worker, that is linked to all others."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN only the hub's are of use: nobody else goes on with them.
        """
        contributors = self._stages.contributors(self._stage)
        if are_cut(sums.size, len(contributors)):
            self._add_up(sums, contributors)
        else:
            self._exchange(sums, contributors)

    def _exchange(self, sums: F64, contributors: Sequence[int]) -> None:
        stage, codec = self._next_stage(), self._codecs.part
        values, all_pieces = flat(sums), pieces(slice(0, sums.size))
        headers = [self._header(Kind.SUM_PART, len(sums), piece.start) for piece in all_pieces]
        if self._rank in contributors:
            takers = self._stages.takers(stage, self._others)
            for piece, header in zip(all_pieces, headers, strict=True):
                self._encode(values[piece], codec)
                self._send(takers, header)
        if self._stages.takers(stage, (self._rank,)):
            others = [rank for rank in contributors if rank != self._rank]
            for piece, header in zip(all_pieces, headers, strict=True):
                self._add(contributors, self._receive(others, header), values[piece])
        self._count()
