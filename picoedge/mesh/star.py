"""The star: workers send their parts to the hub, the hub adds them and sends the sum back.

Two hops a sum, and a worker has one link.
"""

from __future__ import annotations

from picoedge.mesh.collective import F64, Member
from picoedge.mesh.links import HUB
from picoedge.mesh.wire import Kind


class StarHub(Member):
    """The board in the middle: rank 0, linked to every other."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards."""
        stage = self._next_stage()
        contributors = self._stages.contributors(stage)
        workers = [rank for rank in contributors if rank != HUB]
        last = stage == self._stages.count - 1
        # a board that alone contributes has its sums already
        takers = [] if last else [r for r in self._others if contributors != (r,)]
        for piece in self._rows.pieces(len(sums)):
            bodies = self._receive_sums(workers, Kind.SUM_PART, len(sums), piece)
            rows = sums[piece]
            if len(contributors) == 1:
                body = bodies[workers[0]] if workers else self._codec.encode(rows)
                if workers:
                    rows[...] = self._decode(body)
            else:
                parts = {rank: self._decode(body) for rank, body in bodies.items()}
                self._add(contributors, parts | {HUB: rows}, rows)
                body = self._codec.encode(rows)
            if takers:
                self._send(takers, self._sum_header(Kind.SUM, len(sums), piece.start), body)
                if not self._codec.exact and not (len(contributors) == 1 and workers):
                    rows[...] = self._decode(body)
        self._count()


class StarWorker(Member):
    """A board at the end of a ray: linked to the hub only."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN they stay as they are: only the hub goes on with them.
        """
        stage = self._next_stage()
        contributors = self._stages.contributors(stage)
        n, pieces = len(sums), self._rows.pieces(len(sums))
        if self._rank in contributors:
            for piece in pieces:
                body = self._codec.encode(sums[piece])
                self._send((HUB,), self._sum_header(Kind.SUM_PART, n, piece.start), body)
                if contributors == (self._rank,) and not self._codec.exact:
                    sums[piece] = self._decode(body)
        if stage < self._stages.count - 1 and contributors != (self._rank,):
            for piece in pieces:
                bodies = self._receive_sums((HUB,), Kind.SUM, n, piece)
                sums[piece] = self._decode(bodies[HUB])
        self._count()
