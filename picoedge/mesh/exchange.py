"""The exchange: every board sends its part to every other, and each adds for itself.

One hop a sum instead of the star's two, for more messages: it wins where links are few and slow to
answer.
"""

from __future__ import annotations

from picoedge.mesh.collective import F64, Member
from picoedge.mesh.wire import Kind


class Exchange(Member):
    """A board, hub or worker, that is linked to all others."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN only the hub's are: nobody else goes on with them.
        """
        stage = self._next_stage()
        contributors = self._stages.contributors(stage)
        takers = self._stages.ranks_taking(stage, self._ranks)
        n, pieces = len(sums), self._rows.pieces(len(sums))
        if self._rank in contributors:
            self._send_pieces(sums, [rank for rank in self._others if rank in takers])
        others = [rank for rank in contributors if rank != self._rank]
        if self._rank in takers and others:
            for piece in pieces:
                bodies = self._receive_sums(others, Kind.SUM_PART, n, piece)
                parts = {rank: self._decode(body) for rank, body in bodies.items()}
                rows = sums[piece]
                self._add(contributors, parts | {self._rank: rows}, rows)
        self._count()

    def _send_pieces(self, sums: F64, takers: list[int]) -> None:
        for piece in self._rows.pieces(len(sums)):
            body = self._codec.encode(sums[piece])
            self._send(takers, self._sum_header(Kind.SUM_PART, len(sums), piece.start), body)
            if not self._codec.exact:  # the others have it rounded
                sums[piece] = self._decode(body)
