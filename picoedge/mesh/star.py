"""The star: workers send their parts to the hub, the hub adds them and sends the sum back.

Two hops a sum, and a worker has one link.
"""

from __future__ import annotations

from picoedge.mesh.adder import Adder
from picoedge.mesh.collective import F64
from picoedge.mesh.wire import HUB


class Star(Adder):
    """The board in the middle, rank 0, linked to every other; or one at the end of a ray."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN a worker's are of no use: only the hub goes on with them.
        """
        self._add_up(sums, (HUB,))
