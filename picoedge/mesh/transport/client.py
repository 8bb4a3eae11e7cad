"""Asking a daemon, from another process: a command, or the session that is a hub."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import AccessError, BoardLostError, MeshError, ProtocolError
from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.curve import SocketBounds, configure_client
from picoedge.mesh.transport.frames import control, read_control
from picoedge.mesh.transport.messages import ERROR, REPLY, Body, error_of
from picoedge.mesh.transport.monitor import read_event

if TYPE_CHECKING:
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

OnPush = Callable[[str, Body], None]

BOUNDS = SocketBounds(frame_bytes=1 << 20, messages=256)
PUSHED = 1024  # messages told, kept for whoever looks
RECONNECT_MS = 100
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | _FAILED
)


class Client:
    """A connection to the daemon of the board `name`, whose key is `server_key`.

    It is of one thread. Once a connection has ended every call raises: what the daemon held for
    it is gone. Use it with `with`, or `close` it.
    """

    def __init__(
        self, context: Context, keys: KeyPair, address: Address, server_key: str, name: str
    ) -> None:
        self.name = name
        self.address = address
        self.socket: Socket = context.socket(zmq.DEALER)
        configure_client(self.socket, keys, server_key, BOUNDS)
        self.socket.reconnect_ivl = RECONNECT_MS
        self.socket.immediate = True
        self.monitor: Any = self.socket.get_monitor_socket(_WATCHED)
        self._numbers = itertools.count(1)
        self._pushed: list[tuple[str, Body]] = []
        self._seen = "nothing listens there"
        self._was_up = False
        self._lost: MeshError | None = None
        self.socket.connect(address.endpoint)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        kind: str,
        body: Body | None = None,
        timeout_s: float = 5.0,
        on_push: OnPush | None = None,
    ) -> Body:
        """The daemon's answer; `told` is given at once what it tells before, or else `pushed` is.

        Raises AccessError where this key is not let in, BoardLostError where nothing answers in
        time or the connection ends, and the board's own error as MeshError.
        """
        frames = self.ask_raw(kind, body, timeout_s, on_push)
        assert isinstance(frames, dict), "raw bytes where a body was asked for"
        return frames

    def ask_raw(
        self,
        kind: str,
        body: Body | None = None,
        timeout_s: float = 5.0,
        on_push: OnPush | None = None,
    ) -> Body | list[bytes]:
        """As `ask`; an answer that is no control message is returned as its frames."""
        number = next(self._numbers)
        deadline_s = time.monotonic() + timeout_s
        self._send(control(kind, {**(body or {}), "id": number}), deadline_s)
        while True:
            frames = self._receive(deadline_s)
            answer = self._answer(frames, number)
            if answer is not None:
                return answer
            if on_push is not None and self._pushed:
                on_push(*self._pushed.pop())

    def notifications(self) -> list[tuple[str, Body]]:
        """What the daemon told since the last call, oldest first; does not wait.

        Raises BoardLostError where the connection ended, after the last of it was returned.
        """
        self._watch()
        with contextlib.suppress(zmq.Again):
            while len(self._pushed) < PUSHED:
                self._answer(self.socket.recv_multipart(zmq.NOBLOCK), 0)
        pushed, self._pushed = self._pushed, []
        if self._lost is not None and not pushed:
            raise self._lost
        return pushed

    def close(self) -> None:
        """Idempotent."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close(0)

    def _send(self, frames: list[bytes], deadline_s: float) -> None:
        while True:
            self._watch()
            if self._lost is not None:
                raise self._lost
            with contextlib.suppress(zmq.Again):
                self.socket.send_multipart(frames, zmq.NOBLOCK)
                return
            self._wait(zmq.POLLOUT, deadline_s)

    def _receive(self, deadline_s: float) -> list[bytes]:
        while True:
            with contextlib.suppress(zmq.Again):
                return self.socket.recv_multipart(zmq.NOBLOCK)
            self._watch()
            if self._lost is not None:
                raise self._lost
            self._wait(zmq.POLLIN, deadline_s)

    def _answer(self, frames: list[bytes], number: int) -> Body | list[bytes] | None:
        """The answer to request `number`; what was told on the way is kept, late answers not."""
        try:
            kind, body = read_control(frames)
        except ProtocolError:
            if number and len(frames) == 2:
                return frames
            raise
        if kind not in (REPLY, ERROR):
            if len(self._pushed) < PUSHED:
                self._pushed.append((kind, body))
            return None
        if body.get("id") != number:
            return None
        if kind == ERROR:
            raise error_of(body, self.name)
        return body

    def _wait(self, events: int, deadline_s: float) -> None:
        wait_s = deadline_s - time.monotonic()
        if wait_s <= 0:
            raise self._silent()
        poller = zmq.Poller()
        poller.register(self.socket, events)
        poller.register(self.monitor, zmq.POLLIN)
        poller.poll(max(1, int(wait_s * 1000)))

    def _watch(self) -> None:
        while (happened := read_event(self.monitor)) is not None:
            self._happened(happened[0])

    def _happened(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._was_up = True
            self._seen = "it took the question and is silent"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._lost = AccessError(
                f"board {self.name} at {self.address} does not let this board in",
                "this key is not in its roster, or revoked: picoedge keys show there",
            )
        elif event & _FAILED:
            self._seen = f"who listens there is not {self.name}, or of another cluster"
        elif event == zmq.EVENT_DISCONNECTED and self._was_up and self._lost is None:
            self._lost = self._board_lost("its connection ended")

    def _silent(self) -> MeshError:
        return self._board_lost(self._seen)

    def _board_lost(self, why: str) -> BoardLostError:
        return BoardLostError(
            f"board {self.name} at {self.address}: {why}",
            "is `picoedge run` running there?",
            board=self.name,
        )
