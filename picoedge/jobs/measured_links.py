"""Round trips to the other daemons, as sessions of this board measured them, kept in a file.

A session that measured in a noisy moment would plan other shares than the one before, and load all
of them anew; so the shortest round trips of the last hour count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.fields import Fields
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.messages import PING_BYTES
from picoedge.planner.topology import (
    LinkFacts,
    RoundTrips,
    link_of,
    remembered,
    shortest,
    trips_from_json,
    trips_to_json,
)

LINKS_FILE, MOST_LINKS = "links.json", 128  # of the cluster folder; the links measured last
PINGS = 8  # of each size-0 latency measurement: enough for a lower quartile
_OWN = "own"  # the daemon of this board


class MeasuredLinks:
    """Round trips of this board, by the other one's key and address, from this session and others.

    A file that cannot be read or written costs figures, and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._links = folder / LINKS_FILE, dict[str, list[RoundTrips]]()
        self._own_s = 0.0

    def begin(self, own: Client, timeout_s: float) -> None:
        """Measure what a daemon itself takes, that of this board, once others' figures are read."""
        with suppress(PicoedgeError):
            fields = Fields(read_json(self._path, "") or {}, LINKS_FILE)
            for link in list(fields.values)[:MOST_LINKS]:
                self._links.setdefault(link, trips_from_json(fields, link))
        least_s = min(_pings_s(own, 0, PINGS, timeout_s))
        self._own_s, _ = self._add(_OWN, RoundTrips(time.time(), least_s, least_s))

    def measure(self, client: Client, timeout_s: float) -> LinkFacts:
        """Measure the link to a board. Raises MeshError if a ping is not answered in time."""
        small_s = _pings_s(client, 0, PINGS, timeout_s)
        now = measured_now(small_s, _pings_s(client, PING_BYTES, 2, timeout_s))
        shortest_s = self._add(f"{client.key} {client.address}", now)
        return link_of(*shortest_s, self._own_s, PING_BYTES)

    def _add(self, link: str, now: RoundTrips) -> tuple[float, float]:
        trips = self._links[link] = remembered(self._links.pop(link, ()), now)
        return shortest(trips)

    def save(self) -> None:
        """Keep the links that were measured last."""
        newest = list(self._links.items())[-MOST_LINKS:]
        with suppress(PicoedgeError), folder_lock(self._path.parent):
            write_json(self._path, {link: trips_to_json(trips) for link, trips in newest})


def measured_now(small_s: Sequence[float], large_s: Sequence[float]) -> RoundTrips:
    """Of round trips of 0 and of PING_BYTES bytes, in seconds.

    Of small ones it is the lower quartile: pauses of a board under a CPU quota are longer than any
    link.
    """
    small = sorted(small_s)[len(small_s) // 4]
    return RoundTrips(time.time(), small, max(small, min(large_s)))


def _pings_s(client: Client, nbytes: int, count: int, timeout_s: float) -> list[float]:
    times = [time.perf_counter()]
    for _ in range(count):
        client.ask_raw("ping", {"bytes": nbytes}, timeout_s)
        times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]
