"""A group's links are made to a worker's own port, or through its daemon."""

from __future__ import annotations

import re
from typing import Any

import pytest
from mesh_sums import LOOPBACK, boards, name_of

from picoedge.errors import MeshError
from picoedge.jobs import group_links
from picoedge.mesh.addresses import Address
from picoedge.mesh.group.channel import ArrayLimits


def test_a_board_reached_neither_way_is_named_with_the_relays_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise MeshError("no worker of yours listens on this board", "a hint")

    monkeypatch.setattr(group_links, "Relay", refuse)
    limits = ArrayLimits(rows=4, width=64)
    with boards(2, "star", limits, connect=False, transport="auto") as team:
        address = f"{LOOPBACK}:{team.ports[1]}"
        daemon = Address(LOOPBACK, 1)
        monkeypatch.setattr(
            group_links, "probe", lambda tried: dict.fromkeys(set(tried) - {daemon}, "no")
        )
        to = {1: (address, str(daemon))}
        failures = group_links.connect(team.links[0], team.keys[0], to, {})
        assert re.search(r"nor through its daemon at .*: no worker", failures[1].message)
        assert (failures[1].board, failures[1].hint) == (name_of(1), "a hint")
