"""The star: workers send their parts to the hub, the hub adds them and sends the sum back.

Two hops a sum, and a worker has one link.
"""

from __future__ import annotations

from picoedge.kernels.arrays import F64
from picoedge.mesh.group.allreduce import Adder
from picoedge.mesh.group.collective import Finish
from picoedge.mesh.transport.frames import HUB


class Star(Adder):
    """The board in the middle, rank 0, linked to every other; or one at the end of a ray."""

    def begin(self, sums: F64) -> Finish:
        """See `Collective.begin`."""
        return self._begin_shares(self._next_sum(sums), (HUB,))
