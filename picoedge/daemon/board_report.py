"""A board's report of itself for heartbeats: its heat, and the work of its holder's worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from picoedge.host.thermal import Thermometer

if TYPE_CHECKING:
    from picoedge.daemon.workers import Reservation
    from picoedge.mesh.transport.messages import Body


class BoardReport:
    """Reports of the board with that key; `name_of` a board, by its key."""

    def __init__(self, key: str, name_of: Callable[[str], str]) -> None:
        self._key, self._name_of = key, name_of
        self._thermometer = Thermometer()

    def of(self, holder: Reservation | None, state: Body, *, is_ending: bool) -> Body:
        """`state`, with the holder's work added."""
        heat = self._thermometer.read()
        state = {
            **state,
            "stalled_on": "",
            "temperature_c": heat.temperature_c,
            "throttled": heat.throttled,
            "transport": "",
        }
        if holder is None:
            return {**state, "does": "ending" if is_ending else "free"}
        key = str(holder.sender)
        state |= {"for": self._name_of(key), "for_key": key}
        if holder.session:
            state["for_session"] = holder.session
        if holder.worker is None or holder.spec is None:
            return {**state, "does": "hub" if key == self._key else "taken"}
        state["rss_bytes"] += holder.worker.report()["rss_bytes"]
        return {**state, **_work_of(holder, is_relayed=state["relayed"])}


def _work_of(holder: Reservation, *, is_relayed: bool) -> dict[str, Any]:
    assert holder.spec is not None
    assert holder.worker is not None
    report, via_zeromq = holder.worker.report(), holder.transport == "zeromq"
    return {
        "stalled_on": report["stalled_on"],
        "does": report["stage"],
        "how": report["state"],
        "transport": "relay" if is_relayed and via_zeromq else holder.transport,
        **holder.spec.describe(),
        "work": report["work"],
    }
