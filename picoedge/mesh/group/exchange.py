"""The exchange: every board sends its part to every other, and each adds for itself.

One hop a sum instead of the star's two, for more messages: it wins where links are few and slow to
answer. Long sums are cut into a share for each board, which is the hub of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from picoedge.kernels.arrays import F64
from picoedge.mesh.group.allreduce import Adder
from picoedge.mesh.group.chunking import are_cut
from picoedge.mesh.group.collective import Finish, flat, pieces
from picoedge.mesh.group.member import Sum
from picoedge.mesh.transport.frames import Kind


class Exchange(Adder):
    """A board, hub or worker, that is linked to all others."""

    def begin(self, sums: F64) -> Finish:
        """See `Collective.begin`."""
        made = self._next_sum(sums)
        contributors = self._stages.contributors(made.stage)
        if are_cut(sums.size, len(contributors)):
            return self._begin_shares(made, contributors)
        self._send_to_all(made, contributors)
        return partial(self._add_all, made, contributors)

    def _send_to_all(self, made: Sum, contributors: Sequence[int]) -> None:
        if self._rank not in contributors:
            return
        values, takers = flat(made.values), self._stages.takers(made.stage, self._others)
        for piece in pieces(slice(0, values.size)):
            self._encode(values[piece], self._codecs.part)
            self._send(takers, self._header_of(made, Kind.SUM_PART, piece))

    def _add_all(self, made: Sum, contributors: Sequence[int]) -> None:
        if not self._stages.takers(made.stage, (self._rank,)):
            return
        values, others = flat(made.values), [r for r in contributors if r != self._rank]
        for piece in pieces(slice(0, values.size)):
            header = self._header_of(made, Kind.SUM_PART, piece)
            self._add(contributors, self._receive(others, header), values[piece])
