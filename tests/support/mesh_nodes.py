"""Nodes for the tests: real sockets on 127.0.0.1, each in a thread with a context of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.admission import found_cluster
from picoedge.mesh.identity.identity import Identity, KeyPair, create_identity, load_signing_key
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node.liveness import Change, Timing
from picoedge.mesh.node.node import Node
from picoedge.mesh.transport.client import Client

LOOPBACK = Address("127.0.0.1", 0)
QUICK = Timing(beat_s=0.03, silence_s=0.4, seek_s=0.06)
PATIENCE_S = 20.0


def found(folder: Path, *names: str) -> list[Identity]:
    """A cluster of boards called `names`, that know each other's keys."""
    first = found_cluster(folder / names[0], "desk", names[0])
    signing, rosters = load_signing_key(first.folder), RosterFile(first.folder)
    pairs = {name: KeyPair.new() for name in names[1:]}
    for name, keys in pairs.items():
        rosters.update(lambda roster, n=name, k=keys: roster.with_allow(signing, k.public, n))
    others = [
        create_identity(folder / name, name, rosters.roster.to_json(), keys)
        for name, keys in pairs.items()
    ]
    return [first, *others]


class Running:
    """A node in a thread. Other threads reach into it with `do` only."""

    def __init__(
        self, identity: Identity, *peers: Address, timing: Timing = QUICK, **options: Any
    ) -> None:
        self.identity = identity
        self.key = identity.keys.public
        self.lines: list[str] = []
        self.changes: list[tuple[str, Change]] = []
        self.context: Any = zmq.Context()
        self._news = threading.Condition()
        roster = RosterFile(identity.folder)
        self.node = Node(
            self.context, identity, roster, LOOPBACK, peers, timing=timing, log=self._log, **options
        )
        self.address = self.node.address
        self.node.peers.liveness.on_change(self._changed)
        self._thread = threading.Thread(target=self._run, name=identity.name)
        self.fault: BaseException | None = None

    def start(self) -> Running:
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.node.run()
        except BaseException as error:
            self.fault = error

    def _log(self, line: str) -> None:
        self.lines.append(line)
        self._wake()

    def _changed(self, key: str, change: Change) -> None:
        self.changes.append((key, change))
        self._wake()

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def do(self, call: Callable[[], Any]) -> Any:
        """Call something in the node's own thread."""
        done: list[Any] = []

        def inside() -> None:
            done.append(call())
            self._wake()

        self.node.rpc.loop.soon(inside)
        self.wait(lambda: bool(done))
        return done[0]

    def wait(self, holds: Callable[[], bool]) -> None:
        """Until something holds that a change, a log line or `do` brings about."""
        with self._news:
            assert self._news.wait_for(holds, PATIENCE_S), (self.changes, self.lines)

    def saw(self, key: str, change: Change) -> bool:
        return (key, change) in self.changes

    def wait_for(self, other: Running, change: Change) -> None:
        self.wait(lambda: self.saw(other.key, change))

    def client(self, context: Any, keys: KeyPair) -> Client:
        return Client(context, keys, self.address, self.key, self.identity.name)

    def end(self) -> None:
        """Stop as SIGTERM does, and let go of everything. Idempotent."""
        self.node.stop()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self.node.close()
        self.context.term()
        if self.fault is not None:
            raise self.fault


@contextmanager
def running(*nodes: Running) -> Iterator[None]:
    """Start nodes, and end them however the test ends."""
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            node.end()


@contextmanager
def fresh_context() -> Iterator[Any]:
    """A context of the test's own, of which nothing is left behind."""
    context: Any = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(0)
