"""A board's reports of itself: facts to a hub; in heartbeats its memory, heat and work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import MeshError
from picoedge.host.resources import disk_room, rss_bytes
from picoedge.host.thermal import Thermometer
from picoedge.jobs.spec import SliceKey

if TYPE_CHECKING:
    from picoedge.daemon.memory.board_memory import BoardMemory
    from picoedge.daemon.reservations import Reservations
    from picoedge.daemon.workers import Reservation
    from picoedge.mesh.transport.messages import Body


def facts_answer(facts: Mapping[str, Any] | None, kept: object, shelf: Path) -> Body:
    """A board's facts for a hub, with the slice it has `kept` and the room of its `shelf`.

    Raises MeshError where there are none yet.
    """
    if facts is None:
        raise MeshError("this board is still being measured", "ask again in a few seconds")
    named = kept.to_json() if isinstance(kept, SliceKey) else None
    return {"facts": dict(facts), **disk_room(shelf), "kept": named}


class BoardReport:
    """Reports of the board with that key; `name_of` a board, by its key."""

    def __init__(self, key: str, name_of: Callable[[str], str]) -> None:
        self._key, self._name_of = key, name_of
        self._thermometer = Thermometer()

    def of(
        self,
        holder: Reservation | None,
        memory: BoardMemory,
        reservations: Reservations,
        kept_bytes: int,
        *,
        relayed: bool,
    ) -> Body:
        """The board in a few words. `kept_bytes`: memory of kept slices."""
        heat = self._thermometer.read()
        report: Body = {
            "memory_bytes": memory.limit,
            "rss_bytes": rss_bytes() + kept_bytes,
            "uses": memory.report(),
            "queue_length": len(reservations.queue),
            "relayed": relayed,
            "stalled_on": "",
            "temperature_c": heat.temperature_c,
            "throttled": heat.throttled,
            "transport": "",
        }
        if holder is None:
            return {**report, "does": "ending" if reservations.workers else "free"}
        key = str(holder.sender)
        report |= {"holder": self._name_of(key), "holder_key": key}
        if holder.session:
            report["holder_session"] = holder.session
        if holder.worker is None or holder.spec is None:
            return {**report, "does": "hub" if key == self._key else "taken"}
        report["rss_bytes"] += holder.worker.report()["rss_bytes"]
        return {**report, **_work_of(holder, is_relayed=relayed)}


def _work_of(holder: Reservation, *, is_relayed: bool) -> dict[str, Any]:
    assert holder.spec is not None
    assert holder.worker is not None
    report, via_zeromq = holder.worker.report(), holder.transport == "zeromq"
    return {
        "stalled_on": report["stalled_on"],
        "does": report["stage"],
        "state": report["state"],
        "transport": "relay" if is_relayed and via_zeromq else holder.transport,
        **holder.spec.describe(),
        "work": report["work"],
    }
