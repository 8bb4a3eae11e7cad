"""Links that come and go at a listener that stays open, and greetings that are refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import zmq
from group_links import (
    HELLO,
    HUBS_CHOICE,
    HUBS_HELLO,
    ROWS,
    faulty_pair,
    message,
    note,
    stranger,
    wait_until_refused,
)
from mesh_sums import EPOCH, LOOPBACK, Boards, boards, name_of

from picoedge.errors import BoardLostError
from picoedge.mesh.group.links import Links
from picoedge.mesh.group.peer_link import ZEROMQ_BIT, BoardFaultError, LinkState, TransportChoice
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.frames import HUB, Header, Kind, pack_prefix, unpack
from picoedge.mesh.transport.limits import Limits
from picoedge.mesh.transport.sealed_stream import Cipher


@pytest.mark.parametrize("wishes", [("auto", "stream"), ("stream", "auto"), ("zeromq", "stream")])
def test_a_board_that_has_only_streams_gets_one(
    wishes: tuple[TransportChoice, TransportChoice],
) -> None:
    with standing(2, *wishes) as (group, keys, ports):
        meet(group, keys, ports, 0, 1)
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda links: links.open(5), group)) == [None, None]
        assert group[0].transports() == {1: "stream"}
        talk(group, [0, 1], 2)


def talk(group: list[Links], ranks: list[int], rounds: int) -> None:
    """These boards say a word to each other, in as many rounds."""

    def speak(rank: int) -> None:
        for i in range(rounds):
            for other in ranks:
                if other != rank:
                    group[rank].send(other, note(b"%d" % i))
            for other in ranks:
                if other != rank:
                    assert bytes(group[rank].receive((other,), 5)[2]) == b"%d" % i

    with ThreadPoolExecutor(len(ranks)) as pool:
        assert list(pool.map(speak, ranks)) == [None] * len(ranks)


def hear_goodbye(links: Links, rank: int) -> None:
    _, prefix, _ = links.receive((rank,), 5)
    assert unpack(prefix).kind is Kind.BYE
    raise BoardLostError("left", board=name_of(rank))


def only_awaited(rank: int, ranks: Collection[int]) -> bool:
    return rank in ranks


@contextmanager
def standing(
    count: int, *wishes: TransportChoice
) -> Iterator[tuple[list[Links], list[KeyPair], list[int]]]:
    """Boards whose listeners stay open, and whose links concern only the ranks they wait for."""
    keys, contexts = [KeyPair.new() for _ in range(count)], [zmq.Context() for _ in range(count)]
    group = [
        Links(
            contexts[rank], keys[rank], rank, EPOCH, ROWS.socket_bounds(),
            rule=only_awaited, transport=wishes[rank % len(wishes)],
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        yield group, keys, [links.listen(LOOPBACK) for links in group]
    finally:
        for links in group:
            links.close()
        for context in contexts:
            context.destroy(linger=0)


def meet(group: list[Links], keys: list[KeyPair], ports: list[int], i: int, j: int) -> None:
    """Begin the link of a pair; the higher rank listens."""
    group[i].add(j, keys[j].public, name_of(j))
    group[j].add(i, keys[i].public, name_of(i))
    group[i].connect(j, f"{LOOPBACK}:{ports[j]}")


@pytest.mark.parametrize("transport", ["stream", "zeromq", "auto"])
def test_a_fourth_board_joins_three_that_keep_talking_and_one_leaves(
    transport: TransportChoice,
) -> None:
    with standing(4, transport) as (group, keys, ports):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            meet(group, keys, ports, i, j)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda links: links.open(5, keep_listening=True), group[:3]))
        talk(group, [0, 1, 2], 3)
        for i in range(3):
            meet(group, keys, ports, i, 3)
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(group[3].open, 10, keep_listening=True)
            while not opening.done() or any(3 not in links.transports() for links in group[:3]):
                talk(group, [0, 1, 2], 1)  # none of the three waits for the fourth
            opening.result()
        assert {links.state(3) for links in group[:3]} == {LinkState.OPEN}
        talk(group, [0, 1, 2, 3], 3)
        for rank in (0, 2, 3):
            group[rank].remove(1)
        talk(group, [0, 2, 3], 3)
        for rank in (0, 2, 3):  # it notices, of each by itself
            with pytest.raises(BoardLostError, match="left"):
                hear_goodbye(group[1], rank)
            group[1].remove(rank)
        for i, j in ((0, 1), (1, 2), (1, 3)):  # and may come back
            meet(group, keys, ports, i, j)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda links: links.open(10, keep_listening=True), group))
        talk(group, [0, 1, 2, 3], 2)


@pytest.mark.parametrize("transport", ["stream", "zeromq", "auto"])
def test_no_stranger_gets_in_at_a_listener_that_stays_open(transport: TransportChoice) -> None:
    with standing(3, transport) as (group, keys, ports):
        meet(group, keys, ports, 0, 1)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda links: links.open(5, keep_listening=True), group[:2]))
        group[1].add(2, keys[2].public, name_of(2))  # expected, but others come
        as_boards = Boards(keys, [], group, dict(enumerate(ports)))
        for stranger_keys in (KeyPair.new(), keys[0]):  # a wrong key; a board that is here already
            with stranger(as_boards, 1, stranger_keys) as dealer, ThreadPoolExecutor(1) as p:
                dealer.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=2)) + b"\1")
                refused = p.submit(wait_until_refused, dealer)
                while not refused.done():
                    talk(group, [0, 1], 1)
                refused.result()
        assert group[1].state(2) is LinkState.EXPECTED
        with stranger(as_boards, 1, keys[2]) as dealer:  # the right key, another rank
            dealer.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=0)) + b"\1")
            while group[1].state(2) is not LinkState.ENDED:
                talk(group, [0, 1], 1)
        with pytest.raises(BoardFaultError, match=f"{name_of(2)} began with HELLO"):
            group[1].receive((2,), 5)
        talk(group, [0, 1], 2)


def test_a_removed_board_is_disconnected_though_it_holds_on() -> None:
    with standing(3, "zeromq") as (group, keys, ports):
        as_boards = Boards(keys, [], group, dict(enumerate(ports)))
        with stranger(as_boards, 1, keys[0]) as dealer:
            group[1].add(0, keys[0].public, name_of(0))
            dealer.send(HUBS_HELLO + bytes([1 | ZEROMQ_BIT]))
            dealer.send(HUBS_CHOICE)
            group[1].open(5, keep_listening=True)
            group[1].remove(0)
            ended = dealer.get_monitor_socket()
            meet(group, keys, ports, 1, 2)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda links: links.open(5, keep_listening=True), group[1:]))
            with ThreadPoolExecutor(1) as pool:
                refused = pool.submit(wait_until_disconnected, ended)
                while not refused.done():
                    with suppress(BoardLostError):
                        group[1].receive((2,), 0.05)
                refused.result()


def wait_until_disconnected(events: Any) -> None:
    while events.poll(3 * curve.SILENCE_MS):
        if zmq.EVENT_DISCONNECTED in dict(curve.events(events)):
            return
    pytest.fail("still connected")


def test_a_board_that_greets_and_stops_is_given_up() -> None:
    with (
        boards(2, "star", ROWS, connect=False, stall_s=0.2, transport="zeromq") as group,
        stranger(group, 1, group.keys[0]) as dealer,
    ):
        dealer.send(HUBS_HELLO + bytes([1 | ZEROMQ_BIT]))
        with pytest.raises(BoardLostError, match="did not finish joining"):
            group.links[1].open(5)


def test_a_member_that_computes_for_long_is_still_joined() -> None:
    limits = Limits(probe_s=0.05, stream_open_s=0.1, stream_only_s=0.1)
    with boards(2, "star", ROWS, transport="auto", limits=limits) as group:
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(group.links[0].open, 10)
            while group.links[1].state(HUB) is LinkState.EXPECTED:
                with suppress(BoardLostError):
                    group.links[1].open(0.005)
            threading.Event().wait(1)  # it computes: ten times the limits of the handshake
            group.links[1].open(5)
            joining.result()
        assert group.links[0].transports() == {1: "stream"}


def test_a_name_in_use_does_not_keep_a_board_from_its_port() -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport="zeromq") as group,
        socket.socket(socket.AF_UNIX) as taken,
    ):
        taken.bind("\0picoedge-test-name-in-use")
        taken.listen()
        assert group.links[0].listen(LOOPBACK, "picoedge-test-name-in-use") > 0


GREETINGS = {
    "rank": [message(Header(Kind.HELLO, EPOCH, extra=2), 0)],
    "epoch": [message(Header(Kind.HELLO, EPOCH - 1, extra=1), 0)],
    "kind": [message(Header(Kind.SUM_PART, EPOCH, extra=1), 0)],
    "no ticket": [HELLO],
    "cut": [HELLO[:20]],
    "half a ticket": [HELLO + bytes(40)],
    "no port": [HELLO + bytes(83)],
    "no cipher": [HELLO + b"\1\0\7" + bytes(80)],
    "two frames": [HELLO, bytes(83)],
    "noise": [bytes(range(115))],
}


@pytest.mark.parametrize("frames", GREETINGS.values(), ids=GREETINGS.keys())
def test_another_greeting_than_expected_is_refused(
    transport: TransportChoice, frames: list[bytes]
) -> None:
    with faulty_pair(transport) as (group, worker):
        worker.greet(*frames)
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} began with"):
            group.links[0].open(5)


@pytest.mark.parametrize("ciphers", [b"", b"\0", b"\2", b"\1\1", bytes(200)])
def test_a_hub_without_ciphers_is_refused(transport: TransportChoice, ciphers: bytes) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as group,
        stranger(group, 1, group.keys[0]) as hub,
    ):
        hub.send(HUBS_HELLO + ciphers)
        with pytest.raises(BoardFaultError, match=f"{name_of(HUB)} began with no ciphers"):
            group.links[1].open(5)


@pytest.mark.parametrize("transport", ["stream"])
def test_a_ticket_without_a_listener_ends_the_link(transport: TransportChoice) -> None:
    with faulty_pair(transport) as (group, worker):
        ticket = worker.listener.ticket(HUB, HUBS_HELLO, Cipher.CHACHA20_POLY1305)
        worker.listener.close()
        worker.greet(HELLO + ticket.to_bytes())
        with pytest.raises(BoardLostError, match=r"board-1 is lost: its stream cannot be reached"):
            group.links[0].open(5)
