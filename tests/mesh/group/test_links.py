"""Links let in the boards they expect, carry what they are given, and name a board that is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import zmq
from group_links import (
    BOTH,
    DETECT_S,
    ROWS,
    flood,
    flood_until_lost,
    note,
    opened,
    stranger,
    wait_until_refused,
)
from mesh_sums import EPOCH, LOOPBACK, boards, forward_pass, name_of

from picoedge.cluster.forward_pass import Stages
from picoedge.errors import BoardLostError, MeshError
from picoedge.jobs.group_links import hub_rule
from picoedge.mesh.group.channel import ArrayLimits
from picoedge.mesh.group.links import Links
from picoedge.mesh.group.peer_link import BoardFaultError, TransportChoice
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.frames import HUB, Header, Kind, pack_prefix

COMPUTES_S = 3.0  # three times as long as heartbeats wait for an answer


def test_messages_go_both_ways_each_with_its_sender(transport: TransportChoice) -> None:
    with boards(3, "exchange", ROWS, transport=transport) as group:
        opened(group)
        for rank, links in enumerate(group.links):
            for other in range(3):
                if other != rank:
                    links.send(other, note(b"from %d to %d" % (rank, other)))
        for rank, links in enumerate(group.links):
            for other in (2, 1, 0):  # in another order than they came in
                if other != rank:
                    source, header, body = links.receive((other,), 5)
                    assert (source, header) == (other, note())
                    assert bytes(body) == b"from %d to %d" % (other, rank)


def test_a_board_that_is_not_there_is_named(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, connect=False, transport=transport) as group:
        with pytest.raises(BoardLostError, match=f"{name_of(0)} did not join") as caught:
            group.links[1].open(0.05)
        assert caught.value.board == name_of(0)


def test_an_address_where_nothing_listens_is_told_at_once(transport: TransportChoice) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as group,
        socket.socket() as unused,
    ):
        unused.bind((LOOPBACK, 0))
        group.links[0].connect(1, f"{LOOPBACK}:{unused.getsockname()[1]}")
        with pytest.raises(BoardLostError, match="nothing listens") as caught:
            group.links[0].open(5)
        assert caught.value.board == name_of(1)


def test_a_board_with_another_key_is_not_taken_for_the_one_expected(
    transport: TransportChoice,
) -> None:
    with boards(2, "star", ROWS, connect=False, transport=transport) as group:
        impostor = Links(
            group.contexts[0], group.keys[0], HUB, EPOCH, ROWS.socket_bounds(), rule=hub_rule(HUB)
        )
        impostor.add(1, KeyPair.new().public, "the real one")
        impostor.connect(1, f"{LOOPBACK}:{group.ports[1]}")
        with pytest.raises(BoardLostError, match="the real one is lost"):
            impostor.open(5)
        impostor.close()


def test_a_stranger_never_gets_in(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, connect=False, transport=transport) as group:
        with stranger(group, 1, KeyPair.new()) as dealer:
            dealer.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=HUB)))
            with pytest.raises(BoardLostError, match="did not join"):
                group.links[1].open(0.2)
            wait_until_refused(dealer)
        group.links[0].connect(1, f"{LOOPBACK}:{group.ports[1]}")
        opened(group)
        for keys in (KeyPair.new(), group.keys[0]):  # no key is admitted now, not even of the group
            with stranger(group, 1, keys) as dealer:
                dealer.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=HUB)))
                wait_until_refused(dealer)
        group.links[0].send(1, note(b"still here"))
        assert bytes(group.links[1].receive((HUB,), 5)[2]) == b"still here"


@pytest.mark.parametrize("kind", ["star", "exchange"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_board_that_leaves_in_the_middle_is_named(
    transport: TransportChoice, kind: str, lost: int
) -> None:
    stages = Stages((0, 1, 2), (0, 1, 2), layers=2)
    summed, noticed = (threading.Barrier(3, timeout=5) for _ in range(2))
    with boards(3, kind, ROWS, transport=transport) as group:
        opened(group)

        def outcome(rank: int) -> float:
            board = forward_pass(group.links[rank], kind, 3, stages, ROWS)
            if rank == HUB:
                board.input(np.zeros((1, 64), np.float32), 0)
            else:
                board.next_input()
            board.begin(np.ones((1, 64)))()
            summed.wait()
            if rank == lost:
                group.links[rank].close()
                noticed.wait()
                return 0.0
            begun = time.monotonic()
            with pytest.raises(BoardLostError) as caught:
                board.begin(np.ones((1, 64)))()
            took_s = time.monotonic() - begun
            # in a star only the hub knows; that it ends the session is what the others see
            told = kind == "star" and rank != HUB
            assert caught.value.board == name_of(HUB if told else lost)
            if kind == "star":
                board.channel.close()
            noticed.wait()
            return took_s

        for took_s in group.each(outcome):
            assert took_s < DETECT_S


def forever(hub: Any) -> None:
    while True:
        hub.begin(np.ones((1, 64)))()
        hub.input(np.zeros((1, 64), np.float32), 1)


def worker_process(pipe: Connection, keys: KeyPair, hub: str, transport: TransportChoice) -> None:
    context: zmq.Context[Any] = zmq.Context()
    links = Links(
        context, keys, 1, EPOCH, ROWS.socket_bounds(), rule=hub_rule(1), transport=transport
    )
    links.add(HUB, hub, name_of(HUB))
    pipe.send(links.listen(LOOPBACK))
    links.open(20)
    board = forward_pass(links, "star", 2, BOTH, ROWS)
    while board.next_input():
        for _ in range(BOTH.count):
            board.begin(np.ones((1, 64)))()
    links.close()
    context.destroy(linger=0)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_is_noticed(
    transport: TransportChoice, blow: signal.Signals
) -> None:
    hub, worker = KeyPair.new(), KeyPair.new()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=worker_process, args=(there, worker, hub.public, transport))
    process.start()
    context: zmq.Context[Any] = zmq.Context()
    links = Links(
        context, hub, HUB, EPOCH, ROWS.socket_bounds(), rule=hub_rule(HUB), transport=transport
    )
    try:
        links.add(1, worker.public, name_of(1))
        links.connect(1, f"{LOOPBACK}:{here.recv()}")
        links.open(20)
        board = forward_pass(links, "star", 2, BOTH, ROWS)
        board.input(np.zeros((1, 64), np.float32), 0)
        board.begin(np.ones((1, 64)))()
        os.kill(process.pid or 0, blow)
        begun = time.monotonic()
        with pytest.raises(BoardLostError, match="board-1 is lost"):
            forever(board)  # the last part may be on its way
        assert time.monotonic() - begun < DETECT_S
    finally:
        process.kill()
        process.join()
        links.close()
        context.destroy(linger=0)


def test_a_silent_board_is_given_up_at_the_time_limit(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, transport=transport) as group:
        opened(group)
        with pytest.raises(BoardLostError, match=r"board-1 sent nothing for 0\.05 s"):
            group.links[0].receive((1,), 0.05)


def test_a_board_that_takes_nothing_does_not_stop_reports(transport: TransportChoice) -> None:
    class ReportError(Exception):
        pass

    def report() -> None:
        raise ReportError

    with boards(2, "star", ROWS, transport=transport) as group:
        opened(group)
        bell, rope = (group.contexts[0].socket(zmq.PAIR) for _ in range(2))
        bell.bind("inproc://bell")
        rope.connect("inproc://bell")
        group.links[0].poll_also(bell, report)
        timer = threading.Timer(0.05, rope.send, (b"",))
        timer.start()
        with pytest.raises(ReportError):
            flood(group.links[0], 1)  # the other end does not read
        timer.join()
        with pytest.raises(ReportError):
            group.links[0].receive((1,), 5)


def test_a_context_that_is_gone_is_an_error_of_ours(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, transport=transport) as group:
        opened(group)
        for links in group.links:
            links.close()
        with pytest.raises(MeshError, match="closed"):
            group.links[0].receive((1,), 5)


def test_a_flood_before_its_time_is_not_taken_in(transport: TransportChoice) -> None:
    with boards(3, "exchange", ROWS, stall_s=1, transport=transport) as group:
        opened(group)
        flooding = threading.Thread(target=flood_until_lost, args=(group.links[0], 2))
        flooding.start()
        with pytest.raises(BoardLostError, match=f"{name_of(1)} sent nothing"):
            group.links[2].receive((1,), 0.5)
        flooding.join()  # given up: it waits in the flooding board's own buffers
        group.links[1].send(2, note(b"in time"))
        assert bytes(group.links[2].receive((1,), 5)[2]) == b"in time"


def test_a_flood_while_a_board_sends_is_the_fault_of_its_sender(transport: TransportChoice) -> None:
    with boards(3, "exchange", ROWS, transport=transport) as group:
        opened(group)
        flooding = threading.Thread(target=flood_until_lost, args=(group.links[0], 2))
        flooding.start()
        with pytest.raises(BoardFaultError, match="before their time") as caught:
            flood(
                group.links[2], 1
            )  # it takes nothing: until then this one takes in what others send
        assert caught.value.board == name_of(0)
        group.links[2].close()
        flooding.join()


def test_boards_that_send_to_each_other_at_once_do_not_wait_for_ever(
    transport: TransportChoice,
) -> None:
    rows = ArrayLimits(rows=64, width=1 << 14)  # 8 MB: more than any buffer of the kernel's
    with boards(3, "exchange", rows, transport=transport) as group:
        opened(group)

        def sent_in_a_ring(rank: int) -> int:
            links, body = group.links[rank], bytes(rows.message_bytes - 64)
            for _ in range(32):
                links.send((rank + 1) % 3, note(body))
            return sum(len(links.receive(((rank + 2) % 3,), 5)[2]) for _ in range(32))

        for taken in group.each(sent_in_a_ring):
            assert taken == 32 * (rows.message_bytes - 64)


def test_a_board_that_computes_for_seconds_is_not_lost_and_its_sender_waits(
    transport: TransportChoice,
) -> None:
    rows = ArrayLimits(rows=1, width=1 << 16)
    computed, count, nbytes = threading.Event(), 40, 256 << 10
    with boards(2, "star", rows, transport=transport) as group:
        opened(group)

        def outcome(rank: int) -> int:
            if rank == HUB:
                for _ in range(count):
                    group.links[HUB].send(1, note(bytes(nbytes)))
                return count
            threading.Timer(COMPUTES_S, computed.set).start()
            assert computed.wait(10)
            return sum(len(group.links[1].receive((HUB,), 5)[2]) == nbytes for _ in range(count))

        assert group.each(outcome) == [count, count]


# -- the end of a group's work -------------------------------------------------------------------


def test_a_board_that_leaves_takes_nothing_from_those_that_work_on(
    transport: TransportChoice,
) -> None:
    """Rank 1 has bytes of rank 2 unread, and rank 2 of rank 1; both still send."""
    with boards(3, "exchange", ROWS, transport=transport) as group:
        opened(group)
        _, one, two = group.links
        for number in range(3):
            one.send(2, note(b"needed %d" % number))
            two.send(1, note(b"not needed"))
        has_left, connection = threading.Event(), one._connections[2]
        finish = connection.finish

        def finished() -> bool:
            awaited = finish()
            has_left.set()
            return awaited

        with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection, "finish", finished)
            leaving = pool.submit(lambda: (one.leave(10.0), one.close()))
            has_left.wait(5.0)
            wait([leaving], 5.0 if transport == "zeromq" else 0.2)  # it must not close yet
            for _ in range(20 if transport == "stream" else 0):
                two.send(1, note(b"not needed"))
            texts = [bytes(two.receive((1,), 5.0)[2]) for _ in range(3)]
            two.leave()
            group.links[HUB].close()
            leaving.result(5.0)
        assert texts == [b"needed 0", b"needed 1", b"needed 2"]


@pytest.mark.parametrize("floods", [False, True])
def test_to_leave_takes_no_longer_than_it_may(floods: bool) -> None:
    with boards(2, "star", ROWS) as group:
        opened(group)
        hub, worker = group.links
        over = threading.Event()

        def pour() -> None:
            with suppress(BoardLostError):
                while floods and not over.is_set():
                    hub.send(1, note(bytes(200)))

        with ThreadPoolExecutor(1) as pool:
            flooding = pool.submit(pour)
            began = time.monotonic()
            worker.leave(0.1)
            took_s = time.monotonic() - began
            over.set()
            worker.close()
            flooding.result(5.0)
        assert took_s < 2.0
