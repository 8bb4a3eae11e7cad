"""The star: workers send their parts to the hub, the hub adds them and sends the sum back.

Two hops a sum, and a worker has one link.
"""

from __future__ import annotations

from collections.abc import Sequence

from picoedge.mesh.collective import F64
from picoedge.mesh.links import HUB, PREFIX_BYTES
from picoedge.mesh.member import Member
from picoedge.mesh.wire import Kind


class StarHub(Member):
    """The board in the middle: rank 0, linked to every other."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards."""
        stage = self._next_stage()
        contributors = self._stages.contributors(stage)
        takers = self._stages.takers(stage, self._others)
        gather = self._relay if HUB not in contributors and len(contributors) == 1 else self._gather
        for piece in self._rows.pieces(len(sums)):
            gather(contributors, len(sums), piece, sums[piece], bool(takers))
            if takers:
                self._send(takers, self._header(Kind.SUM, len(sums), piece.start))
        self._count()

    def _gather(
        self, contributors: Sequence[int], n: int, piece: slice, rows: F64, send: bool
    ) -> None:
        """Add all parts of a piece, the hub's own among them or not."""
        workers = [rank for rank in contributors if rank != HUB]
        if workers:
            bodies = self._receive_sums(workers, Kind.SUM_PART, n, piece)
            parts = {rank: self._decode(body) for rank, body in bodies.items()}
            self._add(contributors, parts | {HUB: rows}, rows)
        if send:
            self._encode(rows)

    def _relay(
        self, contributors: Sequence[int], n: int, piece: slice, rows: F64, send: bool
    ) -> None:
        """Pass on, to the byte, what one worker alone has."""
        body = self._receive_sums(contributors, Kind.SUM_PART, n, piece)[contributors[0]]
        rows[...] = self._decode(body)
        if send:
            self._message(len(body))[PREFIX_BYTES:] = body


class StarWorker(Member):
    """A board at the end of a ray: linked to the hub only."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN they stay as they are: only the hub goes on with them.
        """
        stage = self._next_stage()
        n, pieces = len(sums), self._rows.pieces(len(sums))
        if self._rank in self._stages.contributors(stage):
            for piece in pieces:
                self._encode(sums[piece])
                self._send((HUB,), self._header(Kind.SUM_PART, n, piece.start))
        if self._stages.takers(stage, (self._rank,)):
            for piece in pieces:
                body = self._receive_sums((HUB,), Kind.SUM, n, piece)[HUB]
                sums[piece] = self._decode(body)
        self._count()
