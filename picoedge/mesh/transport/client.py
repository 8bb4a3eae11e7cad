"""Blocking client of a daemon, for other processes: a command, or a session that is a hub."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import AccessError, BoardLostError, MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.cluster_folder import find_local
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.transport.connection import Inbox, InboxGuard
from picoedge.mesh.transport.curve import (
    SocketBounds,
    close_monitored,
    configure_client,
    connect_again,
    events,
    receive_frames,
)
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.messages import (
    ACKNOWLEDGE,
    ERROR,
    NO_TRANSLATION,
    REPLY,
    WANTS,
    Body,
    Dialect,
    Translation,
    error_of,
    is_raw,
)

if TYPE_CHECKING:
    from pathlib import Path

    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

OnPush = Callable[[str, Body], None]

_MOST_PAGES = 16  # of one reply: a thousand boards come in eight
_RETRY_S = 0.1  # until a daemon that does not listen yet is tried again
_NEVER = -1  # libzmq does not connect again by itself: a flood would only begin anew
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | _FAILED
)


class Client:
    """A connection to the daemon of the board `name`, whose public key is `server_key`.

    For one thread. Once the connection has ended every call raises, as the daemon has released
    all that it held for it. Use it in a `with`, or `close` it. `translation` is for daemons of the
    previous wire version.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        address: Address,
        server_key: str,
        name: str,
        translation: Translation = NO_TRANSLATION,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.name = name
        self.key = server_key
        self.address = address
        self._limits = limits
        self._dialect = Dialect(translation, f"board {name}", acknowledges=True)
        self.socket: Socket = context.socket(zmq.DEALER)
        bounds = SocketBounds(limits.frame_bytes, limits.client_messages, bounds_received=False)
        configure_client(self.socket, keys, server_key, bounds)
        self.socket.reconnect_ivl = _NEVER
        self.socket.immediate = True
        self.monitor: Any = self.socket.get_monitor_socket(_WATCHED)
        self._numbers = itertools.count(1)
        self._notifications: list[tuple[str, Body]] = []
        self._unacknowledged: set[str] = set()  # kinds of notifications
        self._seen = "nothing listens there"
        self._was_up = False
        self._lost: MeshError | None = None
        self._guard, self._inbox = InboxGuard(), Inbox(limits.client_bytes)
        self._retry_s = math.inf
        self.socket.connect(address.endpoint)

    @property
    def version(self) -> int:
        """The wire version spoken with the daemon; known after its first reply."""
        return self._dialect.version

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
        """The daemon's reply to a request.

        `on_push(kind, body)` is called with each notification that comes before it; without it,
        `notifications` returns them. Raises AccessError if this key is not admitted,
        BoardLostError if there is no reply in time or the connection ends, the board's own error
        as MeshError, ProtocolError for anything malformed.
        """
        answer = self.ask_raw(kind, body, timeout_s, on_push)
        if isinstance(answer, dict):
            return answer
        raise ProtocolError(f"board {self.name} sent bytes in reply to {kind!r}")

    def ask_raw(
        self,
        kind: str,
        body: Body | None = None,
        timeout_s: float = 5.0,
        on_push: OnPush | None = None,
    ) -> Body | list[bytes]:
        """As `ask`; a reply that is no control message is returned as its frames."""
        number = next(self._numbers)
        deadline_s = time.monotonic() + timeout_s
        self._send(self._dialect.write(kind, {**(body or {}), "id": number}), deadline_s)
        while True:
            answer = self._answer(self._receive(deadline_s), number, kind)
            if answer is not None:
                return answer
            if on_push is not None and self._notifications:
                on_push(*self._notifications.pop())

    def push(self, kind: str, body: Body) -> None:
        """Send a notification without waiting. Raises BoardLostError if the connection ended."""
        self._send(self._dialect.write(kind, body), time.monotonic())

    def notifications(self) -> list[tuple[str, Body]]:
        """Messages that the daemon pushed since the last call, oldest first; does not wait.

        Raises BoardLostError if the connection ended, once all of them were returned.
        """
        self._read_monitor()
        while len(self._notifications) < self._limits.notifications:
            if (frames := self._take()) is None:
                break
            self._answer(frames, 0, "")
        notifications, self._notifications = self._notifications, []
        if self._lost is not None and not notifications:
            raise self._lost
        return notifications

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._guard.close()
        close_monitored(self.socket, self.monitor)

    def _send(self, frames: list[bytes], deadline_s: float) -> None:
        while True:
            self._check()
            with contextlib.suppress(zmq.Again):
                self.socket.send_multipart(frames, zmq.NOBLOCK)
                return
            self._wait(zmq.POLLOUT, deadline_s)

    def _receive(self, deadline_s: float) -> list[bytes]:
        while (frames := self._take()) is None:
            self._check()
            self._wait(zmq.POLLIN, deadline_s)
        if not self._was_up:  # its program may read nothing from now on: have the inbox guarded
            self._read_monitor()
        return frames

    def _take(self) -> list[bytes] | None:
        """The next message, if it is there."""
        frames = receive_frames(self.socket)
        if frames is None:
            self._inbox.emptied()
        else:
            self._inbox.took(sum(map(len, frames)))
        return frames

    def _check(self) -> None:
        """Raise what has ended the connection."""
        self._read_monitor()
        if self._lost is not None:
            raise self._lost

    def _answer(self, frames: list[bytes], number: int, asked: str) -> Body | list[bytes] | None:
        """The reply to request `number`. Notifications are kept, late replies dropped: None."""
        if number and is_raw(frames):
            return frames
        kind, body = self._dialect.read(frames)
        if kind not in (REPLY, ERROR):
            self._notified(kind, body)
            return None
        if body.get("id") != number:
            return None
        if kind == ERROR:
            raise error_of(body, self.name)
        return self._dialect.reply_body(asked, body)

    def _notified(self, kind: str, body: Body) -> None:
        """Keep a notification; where it asks for that, in place of the last one of its kind."""
        if body.pop(WANTS, False) is True:
            others = [each for each in self._notifications if each[0] != kind]
            self._notifications = others
            self._unacknowledged.add(kind)
            self._acknowledge()
        if len(self._notifications) < self._limits.notifications:
            self._notifications.append((kind, body))

    def _acknowledge(self) -> None:
        """Acknowledge what was read; what the queue does not take now, with the next one."""
        with contextlib.suppress(zmq.Again):
            for kind in sorted(self._unacknowledged):
                frames = self._dialect.write(ACKNOWLEDGE, {"of": kind})
                self.socket.send_multipart(frames, zmq.NOBLOCK)
                self._unacknowledged.discard(kind)

    def _wait(self, flags: int, deadline_s: float) -> None:
        now_s = time.monotonic()
        if deadline_s <= now_s:
            raise self._board_lost(self._seen)
        if self._retry_s <= now_s:
            self._retry_s = math.inf
            connect_again(self.socket, self.address.endpoint)
        poller = zmq.Poller()
        poller.register(self.socket, flags)
        poller.register(self.monitor, zmq.POLLIN)
        poller.poll(max(1, int((min(deadline_s, self._retry_s) - now_s) * 1000)))

    def _read_monitor(self) -> None:
        for event, value in events(self.monitor):
            if event in (zmq.EVENT_CLOSED, zmq.EVENT_DISCONNECTED) and not self._was_up:
                self._retry_s = time.monotonic() + _RETRY_S
            if event == zmq.EVENT_CONNECTED:
                self._guard.watch(self._inbox, value)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._was_up = True
                self._seen = "it took the question and is silent"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._lost = AccessError(
                    f"board {self.name} at {self.address} does not let this board in",
                    "this key is not in its roster, or revoked: picoedge keys show there",
                )
            elif event & _FAILED:
                self._seen = f"the board there is not {self.name}, or of another cluster"
            elif event == zmq.EVENT_DISCONNECTED and self._was_up and self._lost is None:
                self._lost = self._board_lost("its connection ended")

    def _board_lost(self, why: str) -> BoardLostError:
        return BoardLostError(
            f"board {self.name} at {self.address}: {why}",
            "is `picoedge run` running there?",
            board=self.name,
            key=self.key,
        )


def connect_local(
    context: Context, folder: Path, translation: Translation = NO_TRANSLATION
) -> Client:
    """A connection to this board's own daemon.

    Raises AccessError if the board is in no cluster, BoardLostError if no daemon runs.
    """
    identity = load_identity(folder)
    daemon = find_local(folder)
    if daemon is None:
        raise BoardLostError(
            f"no daemon runs on this board with the identity in {folder}",
            "start it: picoedge run",
            board=identity.name,
        )
    keys = identity.keys
    return Client(context, keys, daemon.address, keys.public, identity.name, translation)


def ask_pages(client: Client, kind: str, name: str, most: int, timeout_s: float) -> Body:
    """The reply to a request whose array `name`, of `most` entries, comes in pages; all of it.

    A page that is not the last has the index of the `next` one's first entry. Raises MeshError.
    """
    first = answer = client.ask(kind, timeout_s=timeout_s)
    entries = Fields(first, f"the reply to {kind}").array(name, most)
    for _ in range(_MOST_PAGES):
        if answer.get("next") is None:
            break
        answer = client.ask(kind, {"from": answer["next"]}, timeout_s=timeout_s)
        entries += Fields(answer, f"the reply to {kind}").array(name, most - len(entries))
    return {**first, name: entries}
