"""The transport of a link: the quicker one, measured by both ends, or the only one."""

from __future__ import annotations

import dataclasses
import socket

import pytest
from group_links import ROWS, TRANSPORTS, note, opened
from mesh_sums import LOOPBACK, boards

from picoedge.mesh.group import peer_link
from picoedge.mesh.group.peer_link import ROUNDS, TransportChoice, choose_transport
from picoedge.mesh.transport import sealed_stream
from picoedge.mesh.transport.limits import Limits
from picoedge.mesh.transport.sealed_stream import SealedStream, Ticket


def test_the_quicker_transport_is_kept_and_the_stream_where_in_doubt() -> None:
    slow, quick = [2e-3] * ROUNDS, [1e-3] * ROUNDS
    assert choose_transport("auto", True, quick, slow) == "stream"
    assert choose_transport("auto", True, slow, quick) == "zeromq"
    assert choose_transport("auto", True, slow, slow) == "stream"
    assert choose_transport("auto", True, [*slow[1:], 1e-4], quick) == "stream"  # on a busy board
    assert choose_transport("auto", True, slow, quick[1:]) == "stream"
    assert choose_transport("auto", False, [], []) == "zeromq"
    for wish in ("stream", "zeromq"):
        for times in ((slow, quick), (quick, slow)):
            assert choose_transport(wish, True, *times) == wish


@pytest.mark.parametrize("kept", TRANSPORTS)
def test_both_ends_keep_what_was_measured(
    kept: TransportChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def choose(
        wish: TransportChoice, is_open: bool, stream_s: list[float], zeromq_s: list[float]
    ) -> TransportChoice:
        measured.append((wish, is_open, len(stream_s), len(zeromq_s)))
        return kept

    monkeypatch.setattr(peer_link, "choose_transport", choose)
    with boards(3, "exchange", ROWS, transport="auto") as group:
        opened(group)
        for rank, links in enumerate(group.links):
            assert links.transports() == {other: kept for other in range(3) if other != rank}
            assert not links.unreachable()
            for other in range(3):
                if other != rank:
                    links.send(other, note(b"from %d" % rank))
        for rank, links in enumerate(group.links):
            for other in range(3):
                if other != rank:
                    assert bytes(links.receive((other,), 5)[2]) == b"from %d" % other
    assert measured == 3 * [("auto", True, ROUNDS, ROUNDS)]


def test_nothing_is_sealed_where_zeromq_carries_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_stream, "Seal", None)
    with boards(3, "exchange", ROWS, transport="zeromq") as group:
        opened(group)
        assert group.links[1].transports() == {0: "zeromq", 2: "zeromq"}


def test_a_stream_that_cannot_be_opened_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(ticket: Ticket, host: str, most_bytes: int, _: int) -> SealedStream:
        with socket.socket() as unused:
            unused.bind((LOOPBACK, 0))
            port = unused.getsockname()[1]
            return open_stream(dataclasses.replace(ticket, port=port), host, most_bytes)

    open_stream = Ticket.connect
    monkeypatch.setattr(Ticket, "connect", connect)
    with boards(2, "star", ROWS, transport="auto") as group:
        opened(group)
        assert group.links[0].transports() == {1: "zeromq"}
        assert "refused" in group.links[0].unreachable()[1]
        group.links[0].send(1, note(b"all the same"))
        assert bytes(group.links[1].receive((0,), 5)[2]) == b"all the same"


def test_a_timing_that_takes_too_long_falls_to_the_stream() -> None:
    with boards(2, "star", ROWS, transport="auto", limits=Limits(probe_s=0.0)) as group:
        opened(group)
        assert group.links[0].transports() == {1: "stream"}
        group.links[1].send(0, note(b"no probe before it"))
        assert bytes(group.links[0].receive((1,), 5)[2]) == b"no probe before it"
