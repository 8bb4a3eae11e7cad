"""The exchange: every board sends its part to every other, and each adds for itself.

One hop a sum instead of the star's two, for more messages: it wins where links are few and slow to
answer.
"""

from __future__ import annotations

from picoedge.mesh.collective import F64
from picoedge.mesh.member import Member
from picoedge.mesh.wire import Kind


class Exchange(Member):
    """A board, hub or worker, that is linked to all others."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN only the hub's are: nobody else goes on with them.
        """
        stage = self._next_stage()
        contributors = self._stages.contributors(stage)
        n, pieces = len(sums), self._rows.pieces(len(sums))
        if self._rank in contributors:
            takers = self._stages.takers(stage, self._others)
            for piece in pieces:
                self._encode(sums[piece])
                self._send(takers, self._header(Kind.SUM_PART, n, piece.start))
        if self._stages.takers(stage, (self._rank,)):
            others = [rank for rank in contributors if rank != self._rank]
            for piece in pieces:
                bodies = self._receive_sums(others, Kind.SUM_PART, n, piece)
                parts = {rank: self._decode(body) for rank, body in bodies.items()}
                self._add(contributors, parts | {self._rank: sums[piece]}, sums[piece])
        self._count()
