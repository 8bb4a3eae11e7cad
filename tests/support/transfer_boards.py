"""Boards that give shards over real sockets, and do as they should or not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import zmq

from picoedge.errors import PicoedgeError
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transfer.donor import OFFER, READ, Donor
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.connection import InboxGuard
from picoedge.mesh.transport.frames import pack
from picoedge.mesh.transport.messages import ERROR, REPLY, control, failure_body, read_control

Frames = list[Any]
JOIN_S = 20.0


class Board(threading.Thread):
    """A daemon that does nothing but give. Override `offer` or `read` for a failing one."""

    def __init__(self, shelf: Path, clients: list[str], name: str = "board") -> None:
        super().__init__(name=name)
        self.keys = KeyPair.new()
        self.donor = Donor(PackShelf([shelf]).find)
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()  # set: it is gone, as if its plug were pulled
        self.context: Any = zmq.Context()
        self._authenticator = curve.Authenticator(self.context, lambda key: key in clients)
        self.socket: Any = self.context.socket(zmq.ROUTER)
        curve.configure_server(self.socket, self.keys, curve.SocketBounds())
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = Address("127.0.0.1", port)

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._authenticator.socket, zmq.POLLIN)
        poller.register(self.socket, zmq.POLLIN)
        while not self.over.is_set():
            ready = dict(poller.poll(20))
            if self._authenticator.socket in ready:
                self._authenticator.answer()
            if self.socket in ready:
                route, *frames = self.socket.recv_multipart()
                answer = self.answer(*read_control(frames)[1:])
                if answer is not None and not self.over.is_set():
                    self.socket.send_multipart([route, *answer])
        self.socket.close(0)
        self._authenticator.close()

    def answer(self, kind: str, body: dict[str, Any]) -> Frames | None:
        self.asked[kind if kind == OFFER else str(body["item"])] += 1
        try:
            return self.offer(body) if kind == OFFER else self.read(body)
        except PicoedgeError as error:
            return control(ERROR, {**failure_body(error), "id": body["id"]})

    def offer(self, body: dict[str, Any]) -> Frames | None:
        return control(REPLY, {**self.donor.offer(body), "id": body["id"]})

    def read(self, body: dict[str, Any]) -> Frames | None:
        header, data = self.donor.read(body)
        return [pack(header), data]

    @property
    def parts(self) -> int:
        return sum(self.asked.values()) - self.asked[OFFER]

    def end(self) -> None:
        self.over.set()
        self.join(JOIN_S)
        assert not self.is_alive()
        self.context.destroy(0)


class Dying(Board):
    """Gone after so many parts."""

    after = 20

    def read(self, body: dict[str, Any]) -> Frames | None:
        if self.parts > self.after:
            self.over.set()
        return super().read(body)


class Hanging(Board):
    """Still connected, but gives nothing after some parts."""

    after = 20

    def read(self, body: dict[str, Any]) -> Frames | None:
        return None if self.parts > self.after else super().read(body)


class Lying(Board):
    """Sends other bytes than it should."""

    def read(self, body: dict[str, Any]) -> Frames | None:
        header, data = self.donor.read(body)
        return [pack(header), bytes(len(data) - 1) + b"\x55"]


class Slow(Board):
    """Takes its time for each part."""

    part_s = 0.05

    def read(self, body: dict[str, Any]) -> Frames | None:
        self.over.wait(self.part_s)
        return super().read(body)


class Scripted(Board):
    """Answers with whatever it is told to."""

    script: dict[str, Callable[[Board, dict[str, Any]], Frames | None]]

    def offer(self, body: dict[str, Any]) -> Frames | None:
        return self.script[OFFER](self, body) if OFFER in self.script else super().offer(body)

    def read(self, body: dict[str, Any]) -> Frames | None:
        return self.script[READ](self, body) if READ in self.script else super().read(body)


@contextmanager
def links(client: KeyPair, *boards: Board) -> Iterator[list[tuple[str, DonorClient]]]:
    """Start boards and connect to each; all are gone afterwards."""
    with ExitStack() as stack:
        context: Any = zmq.Context()
        stack.callback(context.destroy, 0)
        made, guard = [], InboxGuard()
        stack.callback(guard.close)
        for board in boards:
            board.start()
            stack.callback(board.end)
            link = DonorClient(context, client, board.address, board.keys.public, guard)
            made.append((board.name, link))
        yield made
