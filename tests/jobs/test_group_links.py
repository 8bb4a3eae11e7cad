"""A group's links are made to a worker's own port, or through its daemon."""

from __future__ import annotations

import re
from typing import Any

import pytest
from group_links import ROWS, opened
from mesh_sums import EPOCH, LOOPBACK, boards, name_of

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.jobs import group_links
from picoedge.mesh.addresses import Address
from picoedge.mesh.group.channel import ArrayLimits
from picoedge.mesh.transport.frames import HUB, Header, Kind, pack_prefix


def test_a_board_reached_neither_way_is_named_with_the_relays_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise MeshError("no worker of yours listens on this board", "a hint")

    monkeypatch.setattr(group_links, "Relay", refuse)
    limits = ArrayLimits(rows=4, width=64)
    with boards(2, "star", limits, connect=False, transport="auto") as group:
        address = f"{LOOPBACK}:{group.ports[1]}"
        daemon = Address(LOOPBACK, 1)
        monkeypatch.setattr(
            group_links, "probe", lambda tried: dict.fromkeys(set(tried) - {daemon}, "no")
        )
        to = {1: (address, str(daemon))}
        failures = group_links.connect(group.links[0], group.keys[0], to, {})
        assert re.search(r"nor through its daemon at .*: no worker", failures[1].message)
        assert (failures[1].board, failures[1].hint) == (name_of(1), "a hint")


CONTROL = pack_prefix(Header(Kind.CONTROL, EPOCH))


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff", b"[" * 5000, b"5"])
def test_a_rank_whose_note_is_none_is_blamed(note: bytes) -> None:
    with boards(2, "star", ROWS, transport="stream") as team:
        opened(team)
        sides = (
            lambda links: group_links.receive_note(links, 1, 5.0),
            lambda links: links.send(HUB, CONTROL + note),
        )
        raised, _ = team.each(lambda rank: sides[rank](team.links[rank]))
    assert isinstance(raised, BoardLostError)
    assert (raised.board, len(raised.key)) == (name_of(1), 40)
    assert "no JSON object" in raised.message


def test_what_makes_no_sense_in_a_note_blames_its_rank_alone() -> None:
    lost = BoardLostError("gone", key="k")
    with boards(2, "star", ROWS, transport="stream") as team:
        opened(team)
        nonsense = pytest.raises(BoardLostError, match="makes no sense: no batch")
        with nonsense as raised, group_links.blaming(team.links[0], 1):
            raise ProtocolError("no batch")
        assert raised.value.board == name_of(1)
        with pytest.raises(BoardLostError) as passed, group_links.blaming(team.links[0], 1):
            raise lost
        assert passed.value is lost
