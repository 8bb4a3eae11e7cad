"""A channel gives its ranks the messages they expect, in order, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mesh_sums import EPOCH, Boards, boards

from picoedge.errors import BoardLostError
from picoedge.mesh.group.channel import ArrayLimits, Channel
from picoedge.mesh.group.codecs import codecs_for
from picoedge.mesh.group.peer_link import BoardFaultError
from picoedge.mesh.transport.frames import HEADER, HUB, VERSION, Dtype, Header, Kind, unpack

LIMITS = ArrayLimits(rows=4, width=64)
TAG = 8  # a kind of its own in version 1


def channel_of(group: Boards, rank: int) -> Channel:
    group.links[rank].open(5)
    ranks = range(len(group.links))
    return Channel(group.links[rank], ranks, LIMITS, codecs_for("f64", LIMITS.width), silence_s=5)


@pytest.mark.parametrize("version", [1, VERSION])
def test_an_array_is_broadcast_under_its_tag(version: int) -> None:
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    with boards(3, "star", LIMITS, version=version) as group:

        def outcome(rank: int) -> Any:
            channel = channel_of(group, rank)
            header = channel.header(Kind.DATA, Dtype.F32, x.shape, 5, channel.advance(), TAG)
            if rank == HUB:
                return channel.send_bytes(channel.others, header, memoryview(x).cast("B"))
            found, raw, body = channel.receive_next(HUB) or pytest.fail("it said goodbye")
            assert raw == header
            assert unpack(raw, versions=(version,)) == found
            assert found == Header(Kind.DATA, EPOCH, 0, Dtype.F32, (2, 64), 5, TAG)
            assert raw[2:4] == bytes([1, TAG] if version == 1 else [VERSION, Kind.DATA])
            return bytes(body)

        assert group.each(outcome) == [None, x.tobytes(), x.tobytes()]


def test_a_header_of_another_version_is_the_fault_of_its_sender() -> None:
    with boards(2, "star", LIMITS) as group:

        def outcome(rank: int) -> Any:
            channel = channel_of(group, rank)
            header = channel.header(Kind.DATA, Dtype.F32, (1, 64), 0, channel.advance(), TAG)
            if rank == HUB:
                old = header[:2] + bytes([1, TAG]) + header[4 : HEADER.size] + bytes(2)
                return channel.send_bytes((1,), old, memoryview(bytes(256)))
            return channel.receive((HUB,), header)

        _, worker = group.each(outcome)
    assert isinstance(worker, BoardFaultError)
    assert "a message of version 1" in str(worker)


def test_another_tag_than_is_due_is_the_fault_of_its_sender() -> None:
    with boards(2, "star", LIMITS) as group:

        def outcome(rank: int) -> Any:
            channel = channel_of(group, rank)
            number = channel.advance()
            header = channel.header(Kind.DATA, Dtype.F32, (1, 64), 0, number, TAG + rank)
            if rank == HUB:
                return channel.send_bytes((1,), header, memoryview(bytes(256)))
            return channel.receive((HUB,), header)

        _, worker = group.each(outcome)
    assert isinstance(worker, BoardFaultError)
    assert "sent DATA 8: 0 of 1 x 64 F32 at 0" in str(worker)


def test_a_goodbye_is_the_end_or_a_loss_where_an_array_was_due() -> None:
    with boards(3, "star", LIMITS) as group:

        def outcome(rank: int) -> Any:
            channel = channel_of(group, rank)
            header = channel.header(Kind.DATA, Dtype.F32, (1, 64), 0, channel.advance(), TAG)
            if rank == HUB:
                return channel.close()
            return channel.receive_next(HUB) if rank == 1 else channel.receive((HUB,), header)

        hub, idle, busy = group.each(outcome)
    assert (hub, idle) == (None, None)
    assert isinstance(busy, BoardLostError)
    assert "ended the session" in str(busy)
