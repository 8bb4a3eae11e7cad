"""Boards of a session for tests: real sockets on loopback, a thread and a context for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from picoedge.cluster.forward_pass import ForwardPass, Stages
from picoedge.jobs.group_links import hub_rule
from picoedge.kernels.arrays import F64
from picoedge.mesh.group.channel import ArrayLimits, Channel
from picoedge.mesh.group.codecs import codecs_for
from picoedge.mesh.group.links import SEND_STALL_S, Links
from picoedge.mesh.group.peer_link import TransportChoice
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.frames import HUB, VERSION
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits

EPOCH = 7
LOOPBACK = "127.0.0.1"


def name_of(rank: int) -> str:
    return f"board-{rank}"


@dataclass
class Boards:
    """`ports` of the ranks that listen."""

    keys: list[KeyPair]
    contexts: list[zmq.Context[Any]]
    links: list[Links]
    ports: dict[int, int]

    def each(self, function: Callable[[int], Any]) -> list[Any]:
        """What the function gives or raises for each rank, all at the same time."""

        def outcome(rank: int) -> Any:
            try:
                return function(rank)
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(self.links)) as pool:
            return list(pool.map(outcome, range(len(self.links))))


@contextmanager
def boards(
    count: int,
    kind: str,
    rows: ArrayLimits,
    *,
    connect: bool = True,
    stall_s: float = SEND_STALL_S,
    transport: TransportChoice = "stream",
    version: int = VERSION,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Boards]:
    """Links of a session, not yet open; all sockets are closed at the end."""
    keys = [KeyPair.new() for _ in range(count)]
    contexts = [zmq.Context() for _ in range(count)]
    bounds = rows.socket_bounds()
    links = [
        Links(
            contexts[rank],
            keys[rank],
            rank,
            EPOCH,
            bounds,
            rule=hub_rule(rank),
            stall_s=stall_s,
            transport=transport,
            version=version,
            limits=limits,
        )
        for rank in range(count)
    ]
    pairs = [(i, j) for j in range(count) for i in range(j) if kind == "exchange" or i == HUB]
    try:
        for i, j in pairs:
            links[i].add(j, keys[j].public, name_of(j))
            links[j].add(i, keys[i].public, name_of(i))
        ports = {rank: links[rank].listen(LOOPBACK) for rank in range(1, count)}
        for i, j in pairs if connect else []:
            links[i].connect(j, f"{LOOPBACK}:{ports[j]}")
        yield Boards(keys, contexts, links, ports)
    finally:
        for link in links:
            link.close()
        for context in contexts:
            context.destroy(linger=0)


def forward_pass(
    links: Links, kind: str, count: int, stages: Stages, rows: ArrayLimits, wire: str = "f64"
) -> ForwardPass:
    channel = Channel(links, range(count), rows, codecs_for(wire, rows.width), silence_s=10)
    return ForwardPass(channel, stages, owners=None if kind == "exchange" else (HUB,))


def part(rank: int, forward: int, stage: int, n: int, hidden: int) -> F64:
    """What a rank adds to a sum: numbers whose sum depends on the order of adding.

    Parts of odd ranks need all bits of an f64, parts of even ones are f32, as nearly all are.
    """
    return _part(rank, forward, stage, n, hidden).copy()


@functools.lru_cache(maxsize=64)
def _part(rank: int, forward: int, stage: int, n: int, hidden: int) -> F64:
    seed = np.random.default_rng((rank, forward, stage))
    values = seed.standard_normal((n, hidden)) * 10.0 ** seed.integers(-9, 9, (n, hidden))
    return values if rank % 2 else values.astype(np.float32).astype(np.float64)
