"""Boards that misbehave on a link: each message that does not fit is the fault of its sender."""

from __future__ import annotations

import dataclasses
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from group_links import (
    BOTH,
    HELLO,
    HUBS_CHOICE,
    HUBS_HELLO,
    ROWS,
    drain,
    faulty_pair,
    flood_until_lost,
    hub_of,
    input_header,
    message,
    opened,
    stranger,
)
from mesh_sums import EPOCH, LOOPBACK, Boards, boards, forward_pass, name_of

from picoedge.errors import BoardLostError
from picoedge.mesh.group.peer_link import ZEROMQ_BIT, BoardFaultError, TransportChoice
from picoedge.mesh.transport.frames import HUB, Dtype, Header, Kind
from picoedge.mesh.transport.sealed_stream import Ticket

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
def test_a_message_that_does_not_fit_is_the_fault_of_its_sender(
    transport: TransportChoice, frames: list[bytes]
) -> None:
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        hub = hub_of(group)
        send(*frames)
        with pytest.raises(BoardFaultError, match=name_of(1)) as caught:
            hub.begin(np.ones((1, 64)))()
        assert caught.value.board == name_of(1)


def test_nothing_comes_after_the_last_sum_of_a_pass(transport: TransportChoice) -> None:
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        hub = hub_of(group)
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
def test_an_early_message_must_be_of_the_next_sum(
    transport: TransportChoice, headers: list[Header]
) -> None:
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        board = forward_pass(group.links[HUB], "star", 2, BOTH, ROWS)
        board.input(np.zeros((2, 64), np.float32), 0)
        finish, _ = board.begin(np.ones((1, 64))), board.begin(np.ones((1, 64)))
        send(*map(message, headers))
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} sent SUM"):
            finish()


def test_an_early_part_that_was_never_due_is_a_fault_at_the_next_pass(
    transport: TransportChoice,
) -> None:
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        board = forward_pass(group.links[HUB], "star", 2, BOTH, ROWS)
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
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        hub, sums = hub_of(group), np.ones((1, 64))
        send(bytes(mutated))
        send(message(RIGHT, 0) + np.full(64, 2.0).tobytes())
        with suppress(BoardFaultError):
            hub.begin(sums)()
            assert (sums == 3).all()  # it was taken for a part of the next


@pytest.mark.parametrize("transport", ["stream"])
def test_a_message_too_large_ends_its_connection(transport: TransportChoice) -> None:
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        hub = hub_of(group)
        send(bytes(ROWS.message_bytes + 100))
        with pytest.raises(BoardFaultError, match=f"{name_of(1)} sent a message of .* the limit"):
            hub.begin(np.ones((1, 64)))()


@pytest.mark.parametrize("transport", ["zeromq"])
def test_the_longest_message_passes_and_a_longer_one_ends_its_connection(
    transport: TransportChoice,
) -> None:
    with faulty_pair(transport) as (group, worker):
        send = worker.open()
        longest = message(Header(Kind.CONTROL, EPOCH), ROWS.message_bytes - 32)
        send(longest, longest + b"\0")
        assert len(group.links[HUB].receive((1,), 5)[2]) == ROWS.message_bytes - 32
        with pytest.raises(BoardLostError, match="board-1 is lost: its connection ended"):
            group.links[HUB].receive((1,), 5)


def test_a_flood_is_dropped_and_the_fault_of_its_sender_when_it_is_due() -> None:
    with boards(3, "exchange", ROWS, stall_s=1, transport="zeromq") as group:
        opened(group)
        group.links[0]._connections[2].window = 1 << 30  # type: ignore[attr-defined]
        flooding = threading.Thread(target=flood_until_lost, args=(group.links[0], 2))
        flooding.start()
        with pytest.raises(BoardLostError, match=f"{name_of(1)} sent nothing"):
            group.links[2].receive((1,), 0.5)
        with pytest.raises(BoardFaultError, match=f"{name_of(0)} sent .* before their time"):
            drain(group.links[2], 0)
        group.links[2].close()
        flooding.join()


@contextmanager
def entered(
    group: Boards, dealer: Any, transport: TransportChoice
) -> Iterator[Callable[[bytes], object]]:
    """A function that sends messages over the link of a stranger with the hub's keys."""
    dealer.send(HUBS_HELLO + bytes([1 | (ZEROMQ_BIT if transport == "zeromq" else 0)]))
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        opening = pool.submit(group.links[1].open, 5)
        answer = dealer.recv()[len(HUBS_HELLO) :]
        if transport == "zeromq":
            assert answer == b"\1"
            dealer.send(HUBS_CHOICE)
            send = dealer.send
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
        boards(2, "star", ROWS, connect=False, transport=transport) as group,
        stranger(group, 1, group.keys[0]) as dealer,
        entered(group, dealer, transport) as send,
    ):
        for frame in frames:
            send(frame)
        board = forward_pass(group.links[1], "star", 2, BOTH, ROWS)
        with pytest.raises(BoardFaultError, match=name_of(HUB)):
            board.next_input()
