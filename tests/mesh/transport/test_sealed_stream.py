"""Sealed messages over TCP: in order, whole, of one sender; and the tickets that admit it."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import ProtocolError
from picoedge.mesh.group.ticket_listener import TicketListener
from picoedge.mesh.transport import sealed_stream
from picoedge.mesh.transport.connection import ConnectionEnded
from picoedge.mesh.transport.limits import DEFAULT_LIMITS
from picoedge.mesh.transport.sealed_stream import (
    TAG_BYTES,
    TICKET_NAME_BYTES,
    Cipher,
    Seal,
    SealedStream,
    Ticket,
    ciphers,
    ciphers_from,
    common,
    new_key,
)

LOOPBACK = "127.0.0.1"
MOST = 1000
HERE = [cipher for cipher in Cipher if cipher in ciphers()]
WAIT_S = 5.0


# -- seals -----------------------------------------------------------------------------------------


@pytest.fixture(params=HERE, ids=lambda cipher: cipher.name)
def seals(request: pytest.FixtureRequest) -> tuple[Seal, Seal]:
    key = new_key()
    return Seal(request.param, key), Seal(request.param, key)


def closed(out: Seal, message: bytes) -> bytes:
    room = bytearray(len(message) + TAG_BYTES)
    out.close(message, memoryview(room))
    return bytes(room)


def opened(into: Seal, sealed: bytes) -> bytes:
    return bytes(into.open(sealed, memoryview(bytearray(len(sealed)))))


def test_sealed_messages_open_in_their_order(seals: tuple[Seal, Seal]) -> None:
    out, into = seals
    messages = [b"", b"one", bytes(MOST)]
    sealed = [closed(out, message) for message in messages]
    assert [opened(into, each) for each in sealed] == messages


def test_equal_messages_are_sealed_differently(seals: tuple[Seal, Seal]) -> None:
    out, _ = seals
    assert closed(out, b"the same") != closed(out, b"the same")


def test_a_message_again_or_one_left_out_does_not_open(seals: tuple[Seal, Seal]) -> None:
    out, into = seals
    first, _, third = closed(out, b"1"), closed(out, b"2"), closed(out, b"3")
    assert opened(into, first) == b"1"
    for wrong in (first, third):
        with pytest.raises(ProtocolError, match="not sealed for this connection"):
            opened(into, wrong)


@given(st.binary(max_size=40), st.integers(0, 1 << 20))
def test_no_bit_may_change(message: bytes, place: int) -> None:
    key = new_key()
    sealed = bytearray(closed(Seal(HERE[-1], key), message))
    bit = place % (8 * len(sealed))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        opened(Seal(HERE[-1], key), bytes(sealed))


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(16), bytes(500)])
def test_bytes_that_were_never_sealed_do_not_open(sealed: bytes) -> None:
    for cipher in HERE:
        with pytest.raises(ProtocolError):
            opened(Seal(cipher, new_key()), sealed)


def test_both_boards_must_have_a_cipher() -> None:
    chacha, aes = Cipher.CHACHA20_POLY1305, Cipher.AES_256_GCM
    assert common(chacha | aes, chacha | aes) is aes
    assert common(chacha | aes, chacha) is common(chacha, chacha | aes) is chacha
    assert ciphers_from(b"\xff") == chacha | aes  # one of a later version may have more
    for said in (b"", b"\0", b"\2", b"\1\1"):
        with pytest.raises(ProtocolError):
            ciphers_from(said)


def test_a_processor_on_which_aes_is_slow_has_chacha(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 2] * 3 + [0, 1] * 3)
    monkeypatch.setattr(sealed_stream.time, "perf_counter", lambda: next(clock))
    assert ciphers() == Cipher.CHACHA20_POLY1305


# -- streams ---------------------------------------------------------------------------------------


@contextmanager
def connected() -> Iterator[tuple[socket.socket, SealedStream, Seal, Seal]]:
    """A raw end, a stream at the other, and the raw end's seals."""
    to, back = new_key(), new_key()
    raw, end = socket.socketpair()
    cipher = Cipher.CHACHA20_POLY1305
    stream = SealedStream(Tcp(end), Seal(cipher, back), Seal(cipher, to), MOST)
    with raw, end:
        yield raw, stream, Seal(cipher, to), Seal(cipher, back)
        stream.close()


class Tcp(socket.socket):
    """A connection of the kernel's own, that takes what only TCP knows."""

    def __init__(self, made: socket.socket) -> None:
        super().__init__(made.family, made.type, made.proto, made.detach())

    def setsockopt(self, *what: object) -> None:
        """There is no Nagle here."""


def frame(sealed: bytes) -> bytes:
    return struct.pack("<I", len(sealed)) + sealed


def taken(stream: SealedStream) -> bytes:
    """The next message, once it is here."""
    while (message := stream.take()) is None:
        assert select.select([stream], [], [], WAIT_S)[0]
    return bytes(message)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_messages_are_whole_however_they_come(step: int) -> None:
    messages = [b"", b"a", bytes(MOST), b"b" * 17]
    with connected() as (raw, stream, out, _):
        data = b"".join(frame(closed(out, message)) for message in messages)
        found = []
        for at in range(0, len(data), step):
            raw.sendall(data[at : at + step])
            while (message := stream.take()) is not None:
                found.append(bytes(message))
        assert found == messages


def test_bytes_that_the_kernel_does_not_take_are_sent_later() -> None:
    with connected() as (raw, stream, _, into):
        sent = 0
        while stream.send(b"%04d" % sent + bytes(MOST - 4)):
            sent += 1
        assert not stream.flush()
        got = b""
        while not stream.flush():
            got += raw.recv(1 << 16)
        raw.setblocking(False)
        while len(got) < (sent + 1) * (4 + MOST + 16):
            got += raw.recv(1 << 16)
        for i in range(sent + 1):
            sealed = got[i * (MOST + 20) + 4 : (i + 1) * (MOST + 20)]
            assert opened(into, sealed)[:4] == b"%04d" % i


@pytest.mark.parametrize("nbytes", [MOST + TAG_BYTES + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_that_no_message_has_is_an_error(nbytes: int) -> None:
    with connected() as (raw, stream, _, _):
        raw.sendall(struct.pack("<I", nbytes) + bytes(100))
        with pytest.raises(ProtocolError, match=f"a message of {nbytes} bytes"):
            taken(stream)


def test_a_message_of_another_sender_is_an_error() -> None:
    with connected() as (raw, stream, _, _):
        raw.sendall(frame(closed(Seal(Cipher.CHACHA20_POLY1305, new_key()), b"hello")))
        with pytest.raises(ProtocolError, match="not sealed for this connection"):
            taken(stream)


def test_all_that_was_sent_is_taken_before_the_end() -> None:
    with connected() as (raw, stream, out, _):
        raw.sendall(frame(closed(out, b"last words")) + b"\x20\0\0\0and half a message")
        raw.close()
        assert taken(stream) == b"last words"
        with pytest.raises(ConnectionEnded, match="its connection ended"):
            taken(stream)


def test_sending_to_a_board_that_is_gone_is_an_error() -> None:
    with connected() as (raw, stream, _, _):
        raw.close()
        with pytest.raises(ConnectionEnded, match="its connection ended: broken pipe"):
            stream.send(b"hello?")


# -- the listener of tickets ---------------------------------------------------------------------

FIRST = {1: b"I am board 1", 2: b"I am board 2"}


@contextmanager
def ticket_listener() -> Iterator[TicketListener]:
    made = TicketListener(LOOPBACK, MOST)
    try:
        yield made
    finally:
        made.close()


def entered(made: TicketListener) -> tuple[int, SealedStream]:
    while True:
        for found in made.accepted():
            return found
        assert select.select(made.files, [], [], WAIT_S)[0]


def connected_by(ticket: Ticket) -> SealedStream:
    """The client's stream, once it has shown its ticket."""
    stream = ticket.connect(LOOPBACK, MOST)
    while not stream.flush():
        assert select.select([], [stream], [], WAIT_S)[1]
    return stream


def settled(made: TicketListener, connection: socket.socket) -> bytes:
    """The listener's answer to a stranger: nothing, until it closes the connection."""
    while not select.select([connection], [], [], 0)[0]:
        assert select.select([*made.files, connection], [], [], WAIT_S)[0]
        assert list(made.accepted()) == []
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


def test_a_ticket_admits_once_and_messages_follow() -> None:
    with ticket_listener() as made, ExitStack() as stack:
        tickets = {rank: made.ticket(rank, FIRST[rank], HERE[-1]) for rank in FIRST}
        for rank in (2, 1):
            ours = connected_by(Ticket.from_bytes(tickets[rank].to_bytes()))
            stack.callback(ours.close)
            assert ours.send(FIRST[rank])
            found, theirs = entered(made)
            stack.callback(theirs.close)
            assert found == rank
            assert theirs.send(b"there you are")
            assert taken(ours) == b"there you are"
            assert ours.send(b"here I am")
            assert taken(theirs) == b"here I am"
        again = stack.enter_context(socket.create_connection((LOOPBACK, made.port)))
        again.sendall(tickets[1].name)
        assert settled(made, again) == b""


@pytest.mark.parametrize("first", [FIRST[2], b"", b"noise"])
def test_a_ticket_with_other_words_than_are_due_admits_no_peer(first: bytes) -> None:
    with ticket_listener() as made, ExitStack() as stack:
        ticket = made.ticket(1, FIRST[1], HERE[-1])
        thief = connected_by(ticket)
        stack.callback(thief.close)
        thief.send(first)
        while True:
            assert list(made.accepted()) == []
            try:
                assert thief.take() is None
            except ConnectionEnded:
                break
        ours = connected_by(ticket)
        stack.callback(ours.close)
        ours.send(FIRST[1])
        rank, theirs = entered(made)
        theirs.close()
        assert rank == 1


@pytest.mark.parametrize("said", [bytes(TICKET_NAME_BYTES), b"GET / HTTP/1.1\r\n\r\n", bytes(5000)])
def test_strangers_are_let_go(said: bytes) -> None:
    with ticket_listener() as made, socket.create_connection((LOOPBACK, made.port)) as stranger:
        made.ticket(1, FIRST[1], HERE[-1])
        stranger.sendall(said)
        assert settled(made, stranger) == b""


def test_a_name_that_was_overheard_is_of_no_use() -> None:
    with ticket_listener() as made, socket.create_connection((LOOPBACK, made.port)) as stranger:
        stranger.sendall(made.ticket(1, FIRST[1], HERE[-1]).name + frame(bytes(60)))
        assert settled(made, stranger) == b""


def test_strangers_that_say_nothing_make_room_for_others() -> None:
    with ticket_listener() as made, ExitStack() as stack:
        connect = [
            stack.enter_context(socket.create_connection((LOOPBACK, made.port)))
            for _ in range(DEFAULT_LIMITS.ticketless_connections)
        ]
        assert list(made.accepted()) == []
        assert len(made.files) == 1 + DEFAULT_LIMITS.ticketless_connections
        ours = connected_by(made.ticket(1, FIRST[1], HERE[-1]))
        stack.callback(ours.close)
        ours.send(FIRST[1])
        rank, theirs = entered(made)
        theirs.close()
        assert rank == 1
        assert connect[0].recv(1) == b""


@pytest.mark.parametrize(
    "data",
    [b"", bytes(82), bytes(83), b"\1\0\3" + bytes(80), bytes(84)],
    ids=["empty", "short", "zeros", "odd start", "long"],
)
def test_bytes_that_are_no_ticket_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="a ticket of"):
        Ticket.from_bytes(data)
