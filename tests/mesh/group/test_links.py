"""Links let in whom they expect, carry what they are given, and say who is lost or misbehaves."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import zmq
from mesh_sums import EPOCH, LOOPBACK, Boards, boards, forward_pass, name_of

from picoedge.cluster.forward_pass import Stages, Tag
from picoedge.errors import BoardLostError, MeshError
from picoedge.jobs.group_links import hub_rule
from picoedge.mesh.group import peer_link
from picoedge.mesh.group.channel import ArrayLimits
from picoedge.mesh.group.links import Links
from picoedge.mesh.group.peer_link import (
    CHOICE,
    ROUNDS,
    ZEROMQ_BIT,
    BoardFaultError,
    LinkState,
    TransportChoice,
    choose_transport,
)
from picoedge.mesh.group.ticket_listener import TicketListener
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport import curve, sealed_stream
from picoedge.mesh.transport.frames import (
    HUB,
    Dtype,
    Header,
    Kind,
    pack_prefix,
    unpack,
)
from picoedge.mesh.transport.limits import Limits
from picoedge.mesh.transport.sealed_stream import Cipher, SealedStream, Ticket

ROWS = ArrayLimits(rows=4, width=64)
TRANSPORTS: tuple[TransportChoice, ...] = ("stream", "zeromq")
BOTH = Stages((0, 1), (0, 1), layers=1)
DETECT_S = 1.5
COMPUTES_S = 3.0  # three times as long as heartbeats wait for an answer


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> TransportChoice:
    wish: TransportChoice = request.param
    return wish


def opened(team: Boards) -> None:
    for outcome in team.each(lambda rank: team.links[rank].open(5)):
        assert outcome is None


def note(text: bytes = b"") -> bytes:
    return pack_prefix(Header(Kind.CONTROL, EPOCH)) + text


# -- coming together -------------------------------------------------------------------------------


def test_messages_go_both_ways_and_come_from_whom_they_came(transport: TransportChoice) -> None:
    with boards(3, "exchange", ROWS, transport=transport) as team:
        opened(team)
        for rank, links in enumerate(team.links):
            for other in range(3):
                if other != rank:
                    links.send(other, note(b"from %d to %d" % (rank, other)))
        for rank, links in enumerate(team.links):
            for other in (2, 1, 0):  # in another order than they came in
                if other != rank:
                    source, header, body = links.receive((other,), 5)
                    assert (source, header) == (other, note())
                    assert bytes(body) == b"from %d to %d" % (other, rank)


def test_a_board_that_is_not_there_is_named(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, connect=False, transport=transport) as team:
        with pytest.raises(BoardLostError, match=f"{name_of(0)} did not join") as caught:
            team.links[1].open(0.05)
        assert caught.value.board == name_of(0)


def test_an_address_where_nothing_listens_is_told_at_once(transport: TransportChoice) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        socket.socket() as unused,
    ):
        unused.bind((LOOPBACK, 0))
        team.links[0].connect(1, f"{LOOPBACK}:{unused.getsockname()[1]}")
        with pytest.raises(BoardLostError, match="nothing listens") as caught:
            team.links[0].open(5)
        assert caught.value.board == name_of(1)


def test_a_board_with_another_key_is_not_taken_for_the_one_expected(
    transport: TransportChoice,
) -> None:
    with boards(2, "star", ROWS, connect=False, transport=transport) as team:
        impostor = Links(
            team.contexts[0], team.keys[0], HUB, EPOCH, ROWS.socket_bounds(), rule=hub_rule(HUB)
        )
        impostor.add(1, KeyPair.new().public, "the real one")
        impostor.connect(1, f"{LOOPBACK}:{team.ports[1]}")
        with pytest.raises(BoardLostError, match="the real one is lost"):
            impostor.open(5)
        impostor.close()


@contextmanager
def stranger(team: Boards, rank: int, keys: KeyPair) -> Iterator[Any]:
    """A socket that knocks at a board's door with these keys."""
    context: zmq.Context[Any] = zmq.Context()
    knocking = context.socket(zmq.DEALER)
    curve.configure_client(knocking, keys, team.keys[rank].public, ROWS.socket_bounds())
    knocking.setsockopt(zmq.RECONNECT_IVL, -1)
    knocking.get_monitor_socket()
    knocking.connect(f"tcp://{LOOPBACK}:{team.ports[rank]}")
    try:
        yield knocking
    finally:
        context.destroy(linger=0)


def wait_until_refused(knocking: Any) -> None:
    from zmq.utils.monitor import recv_monitor_message

    events = knocking.get_monitor_socket()
    while events.poll(REFUSED_MS):
        event = recv_monitor_message(events)["event"]
        assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        if event == zmq.EVENT_DISCONNECTED or event & ALL_FAILED:
            return
    pytest.fail("neither let in nor refused")


# Where a door is shut, or nobody is at it just then, some handshakes end by libzmq's own timer.
REFUSED_MS = 2 * curve.HANDSHAKE_MS
ALL_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def test_a_stranger_never_gets_in(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, connect=False, transport=transport) as team:
        with stranger(team, 1, KeyPair.new()) as knocking:
            knocking.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=HUB)))
            with pytest.raises(BoardLostError, match="did not join"):
                team.links[1].open(0.2)
            wait_until_refused(knocking)
        team.links[0].connect(1, f"{LOOPBACK}:{team.ports[1]}")
        opened(team)
        for keys in (KeyPair.new(), team.keys[0]):  # the door is shut now, for friends as well
            with stranger(team, 1, keys) as knocking:
                knocking.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=HUB)))
                wait_until_refused(knocking)
        team.links[0].send(1, note(b"still here"))
        assert bytes(team.links[1].receive((HUB,), 5)[2]) == b"still here"


# -- losing each other -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["star", "exchange"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_board_that_leaves_in_the_middle_is_named(
    transport: TransportChoice, kind: str, lost: int
) -> None:
    stages = Stages((0, 1, 2), (0, 1, 2), layers=2)
    summed, noticed = (threading.Barrier(3, timeout=5) for _ in range(2))
    with boards(3, kind, ROWS, transport=transport) as team:
        opened(team)

        def outcome(rank: int) -> float:
            board = forward_pass(team.links[rank], kind, 3, stages, ROWS)
            if rank == HUB:
                board.input(np.zeros((1, 64), np.float32), 0)
            else:
                board.next_input()
            board.begin(np.ones((1, 64)))()
            summed.wait()
            if rank == lost:
                team.links[rank].close()
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
                board.close()
            noticed.wait()
            return took_s

        for took_s in team.each(outcome):
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
    with boards(2, "star", ROWS, transport=transport) as team:
        opened(team)
        with pytest.raises(BoardLostError, match=r"board-1 sent nothing for 0\.05 s"):
            team.links[0].receive((1,), 0.05)


def test_a_board_that_takes_nothing_does_not_stop_reports(transport: TransportChoice) -> None:
    class ReportError(Exception):
        pass

    def report() -> None:
        raise ReportError

    with boards(2, "star", ROWS, transport=transport) as team:
        opened(team)
        bell, rope = (team.contexts[0].socket(zmq.PAIR) for _ in range(2))
        bell.bind("inproc://bell")
        rope.connect("inproc://bell")
        team.links[0].poll_also(bell, report)
        timer = threading.Timer(0.05, rope.send, (b"",))
        timer.start()
        with pytest.raises(ReportError):
            flood(team.links[0], 1)  # nobody reads at the other end
        timer.join()
        with pytest.raises(ReportError):
            team.links[0].receive((1,), 5)


def test_a_context_that_is_gone_is_an_error_of_ours(transport: TransportChoice) -> None:
    with boards(2, "star", ROWS, transport=transport) as team:
        opened(team)
        for links in team.links:
            links.close()
        with pytest.raises(MeshError, match="closed"):
            team.links[0].receive((1,), 5)


# -- misbehaving -----------------------------------------------------------------------------------


class FaultyWorker:
    """A peer of rank 1 that the hub's first connection has let in, and that says what it likes."""

    def __init__(self, team: Boards, context: zmq.Context[Any], transport: TransportChoice) -> None:
        self._transport = transport
        self._hub = team.links[HUB]
        self._streams: list[SealedStream] = []
        self._gate = curve.Authenticator(context, lambda key: True)
        self._router = context.socket(zmq.ROUTER)
        curve.configure_server(self._router, team.keys[1], curve.SocketBounds())
        port = self._router.bind_to_random_port(f"tcp://{LOOPBACK}")
        self._hub.connect(1, f"{LOOPBACK}:{port}")
        self._gate.answer()
        self._who, *hello = self._router.recv_multipart()
        assert len(hello) == 1
        self.entrance = TicketListener(LOOPBACK, ROWS.message_bytes + 200)

    def greet(self, *frames: bytes) -> None:
        """Answer over the first connection with these instead of what is due."""
        self._router.send_multipart([self._who, *frames])

    def close(self) -> None:
        self._gate.close()
        self.entrance.close()
        for stream in self._streams:
            stream.close()

    def open(self) -> Callable[..., None]:
        """Be let in; gives what sends messages over the link."""
        if self._transport == "zeromq":
            self.greet(HELLO + b"\1")
            self._hub.open(5)
            assert self._router.recv_multipart() == [self._who, HUBS_CHOICE]
        else:
            self.greet(
                HELLO + self.entrance.ticket(HUB, HUBS_HELLO, Cipher.CHACHA20_POLY1305).to_bytes()
            )
            self._hub.open(5)
            [(rank, stream)] = self.entrance.accepted()
            assert rank == HUB
            self._streams.append(stream)

        def send(*messages: bytes) -> None:
            for message in messages:
                if self._streams:
                    assert self._streams[0].send(message)
                else:
                    self.greet(message)

        return send


@contextmanager
def faulty_worker(team: Boards, transport: TransportChoice) -> Iterator[FaultyWorker]:
    context: zmq.Context[Any] = zmq.Context()
    made = FaultyWorker(team, context, transport)
    try:
        yield made
    finally:
        made.close()
        context.destroy(linger=0)


def hub_of(team: Boards) -> Any:
    board = forward_pass(team.links[0], "star", 2, BOTH, ROWS)
    board.input(np.zeros((1, 64), np.float32), 0)
    return board


def message(header: Header, nbytes: int = 512, padding: bytes = b"") -> bytes:
    prefix = pack_prefix(header)
    return prefix[: len(prefix) - len(padding)] + padding + bytes(nbytes)


def input_header(
    sequence: int, dtype: Dtype, shape: tuple[int, ...] = (), extra: int = 0
) -> Header:
    return Header(Kind.DATA, EPOCH, sequence, dtype, shape, extra, tag=Tag.INPUT)


HELLO = message(Header(Kind.HELLO, EPOCH, extra=1), 0)
HUBS_HELLO = message(Header(Kind.HELLO, EPOCH, extra=HUB), 0)
HUBS_CHOICE = message(Header(Kind.HELLO, EPOCH, CHOICE, extra=HUB), 0)
RIGHT = Header(Kind.SUM_PART, EPOCH, 1, Dtype.F64, (1, 64))
WRONG = {
    "kind": [message(Header(Kind.SUM, EPOCH, 1, Dtype.F64, (1, 64)))],
    "epoch": [message(Header(Kind.SUM_PART, EPOCH + 1, 1, Dtype.F64, (1, 64)))],
    "earlier": [message(Header(Kind.SUM_PART, EPOCH, 0, Dtype.F64, (1, 64)))],
    "later": [message(Header(Kind.SUM_PART, EPOCH, 3, Dtype.F64, (1, 64)))],
    "dtype": [message(Header(Kind.SUM_PART, EPOCH, 1, Dtype.F32, (1, 64)), 256)],
    "rows": [message(Header(Kind.SUM_PART, EPOCH, 1, Dtype.F64, (2, 64)), 1024)],
    "huge": [message(Header(Kind.SUM_PART, EPOCH, 1, Dtype.F64, (1 << 30, 1 << 30)))],
    "dimensions": [message(Header(Kind.SUM_PART, EPOCH, 1, Dtype.F64, (64,)))],
    "piece": [message(Header(Kind.SUM_PART, EPOCH, 1, Dtype.F64, (1, 64), extra=1))],
    "short": [message(RIGHT, 511)],
    "long": [message(RIGHT, 513)],
    "padding": [message(RIGHT, 512, b"\1\0")],
    "empty": [b""],
    "cut": [message(RIGHT)[:20]],
    "hello again": [HELLO],
    "noise": [bytes(range(256)) * 2],
}


@pytest.mark.parametrize("frames", WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_the_fault_of_its_sender(
    transport: TransportChoice, frames: list[bytes]
) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        hub = hub_of(team)
        send(*frames)
        with pytest.raises(BoardFaultError, match=name_of(1)) as caught:
            hub.begin(np.ones((1, 64)))()
        assert caught.value.board == name_of(1)


def test_nothing_comes_after_the_last_sum_of_a_pass(transport: TransportChoice) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        hub = hub_of(team)
        rights = [message(dataclasses.replace(RIGHT, sequence=1 + i)) for i in range(3)]
        send(*rights[:1], *rights[2:])
        hub.begin(np.ones((1, 64)))()
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} sent SUM"):
            hub.begin(np.ones((1, 64)))()


AHEAD = Header(Kind.SUM_PART, EPOCH, 2, Dtype.F64, (1, 64))


@pytest.mark.parametrize(
    "headers",
    [
        [AHEAD, AHEAD],
        [dataclasses.replace(AHEAD, sequence=3)],
        [dataclasses.replace(AHEAD, kind=Kind.SUM)],
        [dataclasses.replace(AHEAD, epoch=EPOCH - 1)],
        [dataclasses.replace(AHEAD, extra=extra) for extra in range(100)],
    ],
    ids=["twice", "later", "a sum", "an earlier session", "more than there are"],
)
def test_what_comes_early_must_be_of_the_next_sum(
    transport: TransportChoice, headers: list[Header]
) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        board = forward_pass(team.links[HUB], "star", 2, BOTH, ROWS)
        board.input(np.zeros((2, 64), np.float32), 0)
        finish, _ = board.begin(np.ones((1, 64))), board.begin(np.ones((1, 64)))
        send(*map(message, headers))
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} sent SUM"):
            finish()


def test_what_came_early_and_was_never_due_is_a_fault_at_the_next_pass(
    transport: TransportChoice,
) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        board = forward_pass(team.links[HUB], "star", 2, BOTH, ROWS)
        board.input(np.zeros((2, 64), np.float32), 0)
        both = [board.begin(np.ones((1, 64))) for _ in range(2)]
        send(message(dataclasses.replace(AHEAD, shape=(2, 64))), message(RIGHT), message(AHEAD))
        for finish in both:
            finish()
        for _ in both:
            board.begin(np.ones((1, 64)))
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} sent .* which was never due"):
            board.input(np.zeros((1, 64), np.float32), 2)


@pytest.mark.parametrize("seed", range(24))
def test_mutated_headers_never_make_a_sum(transport: TransportChoice, seed: int) -> None:
    random = np.random.default_rng(seed)
    mutated = bytearray(message(RIGHT))
    for at in random.integers(0, 32, random.integers(1, 4)):
        mutated[at] ^= random.integers(1, 256)
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        hub, sums = hub_of(team), np.ones((1, 64))
        send(bytes(mutated))
        send(message(RIGHT, 0) + np.full(64, 2.0).tobytes())
        with suppress(BoardFaultError):
            hub.begin(sums)()
            assert (sums == 3).all()  # it was taken for a part of the next


@pytest.mark.parametrize("transport", ["stream"])
def test_a_message_too_large_ends_its_connection(transport: TransportChoice) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        hub = hub_of(team)
        send(bytes(ROWS.message_bytes + 100))
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} sent a message of .* the limit"):
            hub.begin(np.ones((1, 64)))()


@pytest.mark.parametrize("transport", ["zeromq"])
def test_the_longest_message_passes_and_a_longer_one_ends_its_connection(
    transport: TransportChoice,
) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        send = worker.open()
        longest = message(Header(Kind.CONTROL, EPOCH), ROWS.message_bytes - 32)
        send(longest, longest + b"\0")
        assert len(team.links[HUB].receive((1,), 5)[2]) == ROWS.message_bytes - 32
        with pytest.raises(BoardLostError, match="board-1 is lost: its connection ended"):
            team.links[HUB].receive((1,), 5)


def test_a_flood_is_dropped_and_the_fault_of_its_sender_when_it_is_due() -> None:
    with boards(3, "exchange", ROWS, stall_s=1, transport="zeromq") as team:
        opened(team)
        team.links[0]._connections[2].window = 1 << 30  # type: ignore[attr-defined]
        flooding = threading.Thread(target=flood_until_lost, args=(team.links[0], 2))
        flooding.start()
        with pytest.raises(BoardLostError, match=f"{name_of(1)} sent nothing"):
            team.links[2].receive((1,), 0.5)
        with pytest.raises(BoardFaultError, match=f"{name_of(0)} sent .* before their time"):
            drain(team.links[2], 0)
        team.links[2].close()
        flooding.join()


# -- choosing a transport --------------------------------------------------------------------------


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
    with boards(3, "exchange", ROWS, transport="auto") as team:
        opened(team)
        for rank, links in enumerate(team.links):
            assert links.transports() == {other: kept for other in range(3) if other != rank}
            assert not links.unreachable()
            for other in range(3):
                if other != rank:
                    links.send(other, note(b"from %d" % rank))
        for rank, links in enumerate(team.links):
            for other in range(3):
                if other != rank:
                    assert bytes(links.receive((other,), 5)[2]) == b"from %d" % other
    assert measured == 3 * [("auto", True, ROUNDS, ROUNDS)]


def test_nothing_is_sealed_where_zeromq_carries_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_stream, "Seal", None)
    with boards(3, "exchange", ROWS, transport="zeromq") as team:
        opened(team)
        assert team.links[1].transports() == {0: "zeromq", 2: "zeromq"}


def test_a_stream_that_cannot_be_opened_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(ticket: Ticket, host: str, most_bytes: int) -> SealedStream:
        with socket.socket() as unused:
            unused.bind((LOOPBACK, 0))
            port = unused.getsockname()[1]
            return open_stream(dataclasses.replace(ticket, port=port), host, most_bytes)

    open_stream = Ticket.connect
    monkeypatch.setattr(Ticket, "connect", connect)
    with boards(2, "star", ROWS, transport="auto") as team:
        opened(team)
        assert team.links[0].transports() == {1: "zeromq"}
        assert "refused" in team.links[0].unreachable()[1]
        team.links[0].send(1, note(b"all the same"))
        assert bytes(team.links[1].receive((0,), 5)[2]) == b"all the same"


def test_a_timing_that_takes_too_long_falls_to_the_stream() -> None:
    with boards(2, "star", ROWS, transport="auto", limits=Limits(probe_s=0.0)) as team:
        opened(team)
        assert team.links[0].transports() == {1: "stream"}
        team.links[1].send(0, note(b"no probe before it"))
        assert bytes(team.links[0].receive((1,), 5)[2]) == b"no probe before it"


@pytest.mark.parametrize("wishes", [("auto", "stream"), ("stream", "auto"), ("zeromq", "stream")])
def test_a_board_that_has_only_streams_gets_one(
    wishes: tuple[TransportChoice, TransportChoice],
) -> None:
    with standing(2, *wishes) as (team, keys, ports):
        meet(team, keys, ports, 0, 1)
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda links: links.open(5), team)) == [None, None]
        assert team[0].transports() == {1: "stream"}
        talk(team, [0, 1], 2)


# -- links that come and go ------------------------------------------------------------------------


def talk(team: list[Links], ranks: list[int], rounds: int) -> None:
    """These boards say a word to each other, in as many rounds."""

    def speak(rank: int) -> None:
        for i in range(rounds):
            for other in ranks:
                if other != rank:
                    team[rank].send(other, note(b"%d" % i))
            for other in ranks:
                if other != rank:
                    assert bytes(team[rank].receive((other,), 5)[2]) == b"%d" % i

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
    """Boards whose listeners stay open, and whose links concern only who waits for them."""
    keys, contexts = [KeyPair.new() for _ in range(count)], [zmq.Context() for _ in range(count)]
    team = [
        Links(
            contexts[rank], keys[rank], rank, EPOCH, ROWS.socket_bounds(),
            rule=only_awaited, transport=wishes[rank % len(wishes)],
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        yield team, keys, [links.listen(LOOPBACK) for links in team]
    finally:
        for links in team:
            links.close()
        for context in contexts:
            context.destroy(linger=0)


def meet(team: list[Links], keys: list[KeyPair], ports: list[int], i: int, j: int) -> None:
    """Begin the link of a pair; the higher rank listens."""
    team[i].add(j, keys[j].public, name_of(j))
    team[j].add(i, keys[i].public, name_of(i))
    team[i].connect(j, f"{LOOPBACK}:{ports[j]}")


@pytest.mark.parametrize("transport", ["stream", "zeromq", "auto"])
def test_a_fourth_board_joins_three_that_keep_talking_and_one_leaves(
    transport: TransportChoice,
) -> None:
    with standing(4, transport) as (team, keys, ports):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            meet(team, keys, ports, i, j)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda links: links.open(5, keep_listening=True), team[:3]))
        talk(team, [0, 1, 2], 3)
        for i in range(3):
            meet(team, keys, ports, i, 3)
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(team[3].open, 10, keep_listening=True)
            while not opening.done() or any(3 not in links.transports() for links in team[:3]):
                talk(team, [0, 1, 2], 1)  # none of the three waits for the fourth
            opening.result()
        assert {links.state(3) for links in team[:3]} == {LinkState.OPEN}
        talk(team, [0, 1, 2, 3], 3)
        for rank in (0, 2, 3):
            team[rank].remove(1)
        talk(team, [0, 2, 3], 3)
        for rank in (0, 2, 3):  # it notices, of each by itself
            with pytest.raises(BoardLostError, match="left"):
                hear_goodbye(team[1], rank)
            team[1].remove(rank)
        for i, j in ((0, 1), (1, 2), (1, 3)):  # and may come back
            meet(team, keys, ports, i, j)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda links: links.open(10, keep_listening=True), team))
        talk(team, [0, 1, 2, 3], 2)


@pytest.mark.parametrize("transport", ["stream", "zeromq", "auto"])
def test_no_stranger_gets_in_at_a_listener_that_stays_open(transport: TransportChoice) -> None:
    with standing(3, transport) as (team, keys, ports):
        meet(team, keys, ports, 0, 1)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda links: links.open(5, keep_listening=True), team[:2]))
        team[1].add(2, keys[2].public, name_of(2))  # expected, but others come
        team_as_boards = Boards(keys, [], team, dict(enumerate(ports)))
        for stranger_keys in (KeyPair.new(), keys[0]):  # a wrong key; a board that is here already
            with stranger(team_as_boards, 1, stranger_keys) as knocking, ThreadPoolExecutor(1) as p:
                knocking.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=2)) + b"\1")
                refused = p.submit(wait_until_refused, knocking)
                while not refused.done():
                    talk(team, [0, 1], 1)
                refused.result()
        assert team[1].state(2) is LinkState.EXPECTED
        with stranger(team_as_boards, 1, keys[2]) as knocking:  # the right key, another rank
            knocking.send(pack_prefix(Header(Kind.HELLO, EPOCH, extra=0)) + b"\1")
            while team[1].state(2) is not LinkState.ENDED:
                talk(team, [0, 1], 1)
        with pytest.raises(BoardFaultError, match=f"{name_of(2)} began with HELLO"):
            team[1].receive((2,), 5)
        talk(team, [0, 1], 2)


def test_a_removed_board_is_disconnected_though_it_holds_on() -> None:
    with standing(3, "zeromq") as (team, keys, ports):
        team_as_boards = Boards(keys, [], team, dict(enumerate(ports)))
        with stranger(team_as_boards, 1, keys[0]) as knocking:
            team[1].add(0, keys[0].public, name_of(0))
            knocking.send(HUBS_HELLO + bytes([1 | ZEROMQ_BIT]))
            knocking.send(HUBS_CHOICE)
            team[1].open(5, keep_listening=True)
            team[1].remove(0)
            ended = knocking.get_monitor_socket()
            meet(team, keys, ports, 1, 2)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda links: links.open(5, keep_listening=True), team[1:]))
            with ThreadPoolExecutor(1) as pool:
                refused = pool.submit(wait_until_disconnected, ended)
                while not refused.done():
                    with suppress(BoardLostError):
                        team[1].receive((2,), 0.05)
                refused.result()


def wait_until_disconnected(events: Any) -> None:
    while events.poll(3 * curve.SILENCE_MS):
        if zmq.EVENT_DISCONNECTED in dict(curve.events(events)):
            return
    pytest.fail("still connected")


def test_a_board_that_greets_and_stops_is_given_up() -> None:
    with (
        boards(2, "star", ROWS, connect=False, stall_s=0.2, transport="zeromq") as team,
        stranger(team, 1, team.keys[0]) as knocking,
    ):
        knocking.send(HUBS_HELLO + bytes([1 | ZEROMQ_BIT]))
        with pytest.raises(BoardLostError, match="did not finish joining"):
            team.links[1].open(5)


def test_a_member_that_computes_for_long_is_still_joined() -> None:
    limits = Limits(probe_s=0.05, stream_open_s=0.1, stream_only_s=0.1)
    with boards(2, "star", ROWS, transport="auto", limits=limits) as team:
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(team.links[0].open, 10)
            while team.links[1].state(HUB) is LinkState.EXPECTED:
                with suppress(BoardLostError):
                    team.links[1].open(0.005)
            threading.Event().wait(1)  # it computes: ten times the limits of the handshake
            team.links[1].open(5)
            joining.result()
        assert team.links[0].transports() == {1: "stream"}


def test_a_name_in_use_does_not_keep_a_board_from_its_port() -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport="zeromq") as team,
        socket.socket(socket.AF_UNIX) as taken,
    ):
        taken.bind("\0picoedge-test-name-in-use")
        taken.listen()
        assert team.links[0].listen(LOOPBACK, "picoedge-test-name-in-use") > 0


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
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        worker.greet(*frames)
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} began with"):
            team.links[0].open(5)


@pytest.mark.parametrize("ciphers", [b"", b"\0", b"\2", b"\1\1", bytes(200)])
def test_a_hub_without_ciphers_is_refused(transport: TransportChoice, ciphers: bytes) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        stranger(team, 1, team.keys[0]) as hub,
    ):
        hub.send(HUBS_HELLO + ciphers)
        with pytest.raises(BoardFaultError, match=f"{name_of(HUB)} began with no ciphers"):
            team.links[1].open(5)


@pytest.mark.parametrize("transport", ["stream"])
def test_a_ticket_where_nobody_listens_ends_the_link(transport: TransportChoice) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        faulty_worker(team, transport) as worker,
    ):
        ticket = worker.entrance.ticket(HUB, HUBS_HELLO, Cipher.CHACHA20_POLY1305)
        worker.entrance.close()
        worker.greet(HELLO + ticket.to_bytes())
        with pytest.raises(BoardLostError, match=r"board-1 is lost: its stream cannot be reached"):
            team.links[0].open(5)


@contextmanager
def entered(
    team: Boards, knocking: Any, transport: TransportChoice
) -> Iterator[Callable[[bytes], object]]:
    """What sends messages over the link of whoever has the hub's keys."""
    knocking.send(HUBS_HELLO + bytes([1 | (ZEROMQ_BIT if transport == "zeromq" else 0)]))
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        opening = pool.submit(team.links[1].open, 5)
        answer = knocking.recv()[len(HUBS_HELLO) :]
        if transport == "zeromq":
            assert answer == b"\1"
            knocking.send(HUBS_CHOICE)
            send = knocking.send
        else:
            stream = Ticket.from_bytes(answer).connect(LOOPBACK, ROWS.message_bytes)
            stack.callback(stream.close)
            while not stream.flush():
                assert select.select([], [stream], [], 5)[1]
            stream.send(HUBS_HELLO)
            send = stream.send
        opening.result()
        yield send


@pytest.mark.parametrize(
    "frames",
    [
        [message(input_header(0, Dtype.F32, (5, 64)), 5 * 256)],
        [message(input_header(0, Dtype.F32, (0, 64)), 0)],
        [message(input_header(0, Dtype.F32, (1, 32)), 128)],
        [message(input_header(0, Dtype.F32, (1, 64)), 255)],
        [message(input_header(0, Dtype.F32, (1, 64), (1 << 32) - 1), 256)],
        [message(input_header(1, Dtype.F32, (1, 64)), 256)],
        [message(input_header(0, Dtype.F32), 0)],
        [message(RIGHT)],
    ],
)
def test_a_worker_believes_its_hub_no_more_than_others(
    transport: TransportChoice, frames: list[bytes]
) -> None:
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as team,
        stranger(team, 1, team.keys[0]) as knocking,
        entered(team, knocking, transport) as send,
    ):
        for frame in frames:
            send(frame)
        board = forward_pass(team.links[1], "star", 2, BOTH, ROWS)
        with pytest.raises(BoardFaultError, match=name_of(HUB)):
            board.next_input()


def test_a_flood_before_its_time_is_not_taken_in(transport: TransportChoice) -> None:
    with boards(3, "exchange", ROWS, stall_s=1, transport=transport) as team:
        opened(team)
        flooding = threading.Thread(target=flood_until_lost, args=(team.links[0], 2))
        flooding.start()
        with pytest.raises(BoardLostError, match=f"{name_of(1)} sent nothing"):
            team.links[2].receive((1,), 0.5)
        flooding.join()  # given up: it waits in the flooding board's own buffers
        team.links[1].send(2, note(b"in time"))
        assert bytes(team.links[2].receive((1,), 5)[2]) == b"in time"


def test_a_flood_while_a_board_sends_is_the_fault_of_its_sender(transport: TransportChoice) -> None:
    with boards(3, "exchange", ROWS, transport=transport) as team:
        opened(team)
        flooding = threading.Thread(target=flood_until_lost, args=(team.links[0], 2))
        flooding.start()
        with pytest.raises(BoardFaultError, match="before their time") as caught:
            flood(team.links[2], 1)  # who takes nothing: until then it takes in what others send
        assert caught.value.board == name_of(0)
        team.links[2].close()
        flooding.join()


def test_boards_that_send_to_each_other_at_once_do_not_wait_for_ever(
    transport: TransportChoice,
) -> None:
    rows = ArrayLimits(rows=64, width=1 << 14)  # 8 MB: more than any buffer of the kernel's
    with boards(3, "exchange", rows, transport=transport) as team:
        opened(team)

        def sent_in_a_ring(rank: int) -> int:
            links, body = team.links[rank], bytes(rows.message_bytes - 64)
            for _ in range(32):
                links.send((rank + 1) % 3, note(body))
            return sum(len(links.receive(((rank + 2) % 3,), 5)[2]) for _ in range(32))

        for taken in team.each(sent_in_a_ring):
            assert taken == 32 * (rows.message_bytes - 64)


def test_a_board_that_computes_for_seconds_is_not_lost_and_its_sender_waits(
    transport: TransportChoice,
) -> None:
    rows = ArrayLimits(rows=1, width=1 << 16)
    computed, count, nbytes = threading.Event(), 40, 256 << 10
    with boards(2, "star", rows, transport=transport) as team:
        opened(team)

        def outcome(rank: int) -> int:
            if rank == HUB:
                for _ in range(count):
                    team.links[HUB].send(1, note(bytes(nbytes)))
                return count
            threading.Timer(COMPUTES_S, computed.set).start()
            assert computed.wait(10)
            return sum(len(team.links[1].receive((HUB,), 5)[2]) == nbytes for _ in range(count))

        assert team.each(outcome) == [count, count]


def drain(links: Links, rank: int) -> None:
    while True:
        links.receive((rank,), 5)


def flood(links: Links, rank: int) -> None:
    while True:
        links.send(rank, note(bytes(512)))


def flood_until_lost(links: Links, rank: int) -> None:
    with pytest.raises(BoardLostError):
        flood(links, rank)
