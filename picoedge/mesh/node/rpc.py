"""Requests and notifications between daemons, in one thread; services are built on it.

    rpc = Rpc(context, keys, listen, admits, authorize)
    rpc.on("echo", lambda peer, body: {"text": body["text"]})
    rpc.ask(key, "echo", {"text": "hello"}, answered)
    rpc.run()                                             # until rpc.stop()

Each message comes over a connection whose key was proven by CURVE. A peer that sends anything
malformed loses its connection, and affects no other.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from picoedge.errors import BoardLostError, MeshError, PicoedgeError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.node.journal import Journal
from picoedge.mesh.transport.credit import PushCredit
from picoedge.mesh.transport.dialer import Dialer, OutgoingConnection
from picoedge.mesh.transport.frames import pack
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.loop import Call, Loop, turns
from picoedge.mesh.transport.messages import (
    ACKNOWLEDGE,
    ERROR,
    KIND_NAME,
    MAX_ID,
    NO_TRANSLATION,
    REPLY,
    Body,
    Dialect,
    Handler,
    Pending,
    RawReply,
    Reply,
    TooLongError,
    Translation,
    VersionError,
    control,
    error_of,
    failure_body,
    number_of,
)
from picoedge.mesh.transport.server import Frames, Sender, Server
from picoedge.mesh.transport.strikes import Strikes

if TYPE_CHECKING:
    from picoedge.mesh.addresses import Address
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context

ASK_S = 5.0  # for a reply that needs no work: a board that is swapping takes seconds

Answered = Callable[[Body | MeshError], None]


@dataclass
class _Ask:
    key: str
    kind: str
    answered: Answered
    cancel: Call


class Rpc:
    """The daemon's server, its outgoing connections, and the requests over both.

    `admits(key)` says whether a key may connect, `authorize(sender, kind)` raises ProtocolError
    for a message that its key may not send. `name_of(key)` is for people, as are the lines given
    to `log`, as many as `Rpc.log` lets through. `translation` is for peers of the previous wire
    version. Raises MeshError if `listen` cannot be bound.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        listen: Address,
        admits: Callable[[str], bool],
        authorize: Callable[[Sender, str], None],
        *,
        name_of: Callable[[str], str] = str,
        log: Callable[[str], None] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        translation: Translation = NO_TRANSLATION,
    ) -> None:
        self.limits = limits
        self.name_of = name_of
        self.loop = Loop()
        self.routes: dict[str, Sender] = {}  # key to the connection that its daemon made to us
        self._authorize = authorize
        self._translation = translation
        self._journal = Journal(log or partial(print, file=sys.stderr, flush=True), self.loop.clock)
        self.log = self._journal.say
        self.loop.on_fault = self._journal.fault_of
        self._handlers: dict[str, Handler] = {}
        self._numbers = itertools.count(1)
        self._asks: dict[int, _Ask] = {}
        self._dialects: dict[bytes, Dialect] = {}  # by route
        self._credits: dict[bytes, PushCredit] = {}  # by route
        self._pending: Counter[bytes] = Counter()  # requests without a reply, by route
        self._strikes = Strikes()
        self._counted_s = 0.0
        self._on_gone: list[Callable[[Sender], None]] = []
        self.on(ACKNOWLEDGE, self._acknowledged)
        try:
            self.server = Server(context, keys, listen, admits, limits)
        except BaseException:
            self.loop.close()
            raise
        self.dialer = Dialer(context, keys, self.loop, self._new_dialect, limits)
        self.dialer.read = self._read_connection
        self.loop.add(self.server.authenticator.socket, self.server.authenticator.answer)
        self.loop.add(self.server.monitor, self.take_gone)
        self.loop.add(self.server.socket, self._read_server)

    # -- for services --------------------------------------------------------------------------

    def on(self, kind: str, handler: Handler) -> None:
        """Have `handler(peer, body)` answer messages of a kind.

        `peer` is the sender's public key: a `Sender`, which also knows its connection, or a plain
        key if the board's daemon uses a connection that we made. The handler returns a body, a
        `RawReply` or a `Pending`, or raises a PicoedgeError, which the sender receives.
        """
        assert kind not in self._handlers, kind
        self._handlers[kind] = handler

    def on_gone(self, call: Callable[[Sender], None]) -> None:
        """Have `call` called with the sender of each connection that ended."""
        self._on_gone.append(call)

    def push(self, to: str, kind: str, body: Body) -> bool:
        """Send a notification: to a `Sender` over its connection, to a plain key's daemon.

        Does not wait. False if it is not connected, or reads so slowly that it is cut off.
        """
        return self._send(to, lambda dialect: dialect.write(kind, body))

    def push_newest(self, to: Sender, kind: str, body: Body) -> None:
        """Send a notification that the next one of its kind replaces: see `credit.py`.

        It is sent once the client has read the last one; no client is cut off for not reading it.
        """
        dialect, now_s = self._dialects.get(to.route), self.loop.clock()
        if dialect is None:
            return
        credit = self._credits.get(to.route)
        if credit is None:
            credit = self._credits[to.route] = PushCredit(dialect.is_acknowledged, now_s)
        self._push_wanted(to, kind, credit.offer(kind, body, now_s))

    def ask(
        self, key: str, kind: str, body: Body, answered: Answered, timeout_s: float = ASK_S
    ) -> None:
        """Ask another board's daemon; `answered` is called once, with a body or an error."""
        number = self._expect(key, kind, answered, timeout_s)
        if not self._send(key, lambda dialect: dialect.write(kind, {**body, "id": number})):
            self._finish(number, BoardLostError("not connected", board=self.name_of(key)))

    def ask_over(
        self, connection: OutgoingConnection, kind: str, body: Body, answered: Answered
    ) -> None:
        """As `ask`, over a connection that is not established yet."""
        number = self._expect(connection.key, kind, answered, ASK_S)
        if not connection.send(connection.dialect.write(kind, {**body, "id": number})):
            self._finish(number, BoardLostError("gone", board=self.name_of(connection.key)))

    def connected(self) -> set[str]:
        """Keys of the boards whose daemons are connected, in either direction."""
        return self.routes.keys() | {each.key for each in self.dialer.established}

    def enforce_limits(self) -> None:
        """Close connections over the limits; to be called once per heartbeat."""
        self._journal.look()
        self.server.enforce_limits(self.loop.clock(), self.is_daemon)
        self._end_floods()
        self.take_gone()

    def _end_floods(self, every_s: float = 0.0) -> None:
        if (now_s := self.loop.clock()) - self._counted_s >= every_s:
            self._counted_s = now_s
            for key in (*self.server.end_floods(now_s), *self.dialer.end_floods(now_s)):
                self.log(f"dropped {self.name_of(key)}: it sends more than is believed")

    def is_daemon(self, sender: Sender) -> bool:
        """Whether a connection is that of a board's daemon: its sessions have the same key."""
        route = self.routes.get(sender)
        return route is not None and route.route == sender.route

    def take_gone(self) -> None:
        """Report connections that ended."""
        for sender in self.server.take_gone(self.loop.clock()):
            self._pending.pop(sender.route, None)
            self._dialects.pop(sender.route, None)
            self._credits.pop(sender.route, None)
            route = self.routes.get(sender)
            if route is not None and route.route == sender.route:
                del self.routes[sender]
            for call in self._on_gone:
                call(sender)

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        self.dialer.close_all()
        self.server.close()
        self.loop.close()

    # -- reading -------------------------------------------------------------------------------

    def _new_dialect(self, key: str) -> Dialect:
        board = f"board {self.name_of(key)}"
        return Dialect(self._translation, board, most_values=self.limits.values)

    def _read_server(self) -> None:
        for _ in turns(self.limits.requests_per_turn, self.limits.turn_s):
            request = self.server.receive()
            if request is None:
                break
            sender, frames = request
            dialect = self._dialects.get(sender.route)
            if dialect is None:
                dialect = self._dialects[sender.route] = self._new_dialect(sender)
            try:
                kind, body = dialect.read(frames)
                self._authorize(sender, kind)
                self._serve(sender, kind, body, dialect)
            except VersionError as error:  # a board of an older version: not malformed
                self._say_version(sender, error)
            except ProtocolError as error:
                self._drop(sender, error)
        self._end_floods(self.limits.count_s)
        self.take_gone()

    def _read_connection(self, connection: OutgoingConnection) -> None:
        for _ in turns(self.limits.requests_per_turn, self.limits.turn_s):
            frames = connection.receive()
            if frames is None:
                break
            try:
                kind, body = connection.dialect.read(frames)
                self._serve(connection.key, kind, body, connection.dialect)
            except ProtocolError as error:
                self._log_dropped(connection.key, error)
                self.dialer.fail(connection)
        self._end_floods(self.limits.count_s)

    def _serve(self, peer: str, kind: str, body: Body, dialect: Dialect) -> None:
        """Handle one message. Raises ProtocolError if it is malformed."""
        if kind in (REPLY, ERROR):
            return self._replied(peer, kind, body, dialect)
        number, route = number_of(body), peer.route if isinstance(peer, Sender) else b""
        if number is not None and route in self._credits:
            self._credits[route].heard(self.loop.clock())
        most = self.limits.pending_per_connection
        if route and self._pending[route] >= most:
            raise ProtocolError(f"more than {most} requests wait for an answer")
        if not isinstance(reply := self._handle(peer, kind, body), Pending):
            return self._reply(peer, kind, body, reply)
        if route and number is not None and reply.reply is None:
            self._pending[route] += 1
        reply.deliver(lambda late: self._reply_late(peer, kind, body, late))

    def _handle(self, peer: str, kind: str, body: Body) -> Reply | Pending:
        """Call a handler. Its errors become the reply, but for ProtocolError, which is raised."""
        handler = self._handlers.get(kind)
        if handler is None:
            return MeshError(f"this board knows nothing of {kind!r}", "is its picoedge as new?")
        try:
            return handler(peer, body) or {}
        except ProtocolError:
            raise
        except PicoedgeError as error:
            return error
        except Exception:  # a fault of ours must not end the sessions of all other boards
            self._journal.fault(f"a fault in answering {kind!r}", f"a fault in {kind}")
            return MeshError(f"a fault in answering {kind!r}", "its log there tells more")

    def _reply(self, peer: str, kind: str, body: Body, reply: Reply) -> None:
        number = number_of(body)
        if isinstance(reply, RawReply):
            self._send(peer, lambda to: [pack(reply.header, to.version), reply.buffer])
        elif isinstance(reply, PicoedgeError) and number is not None:
            error = {**failure_body(reply), "id": number}
            self._send(peer, lambda to: to.write(ERROR, error))
        elif isinstance(reply, PicoedgeError):
            about = f"what {self.name_of(peer)} told had no effect"
            self.log(f"{about}: {reply}", about)
        elif number is not None:
            try:
                self._write(peer, lambda to: to.write(REPLY, {**reply, "id": number}, asked=kind))
            except TooLongError as error:  # our own fault: the asking board is told
                self.log(f"an answer to {kind!r} was not sent: {error.message}")
                self._reply(peer, kind, body, error)

    def _reply_late(self, peer: str, kind: str, body: Body, reply: Reply) -> None:
        if isinstance(peer, Sender) and self._pending[peer.route] > 0:
            self._pending[peer.route] -= 1
        self._reply(peer, kind, body, reply)

    def _replied(self, peer: str, kind: str, body: Body, dialect: Dialect) -> None:
        number = Fields(body).integer("id", 0, MAX_ID)
        ask = self._asks.get(number)
        if ask is None or ask.key != peer:
            return  # too late: the request has timed out
        if kind == ERROR:
            return self._finish(number, error_of(body, self.name_of(peer)))
        self._finish(number, dialect.reply_body(ask.kind, body))

    def _acknowledged(self, peer: str, body: Body) -> None:
        kind = Fields(body).text("of", pattern=KIND_NAME)
        credit = self._credits.get(peer.route) if isinstance(peer, Sender) else None
        if credit is not None:
            self._push_wanted(peer, kind, credit.acknowledged(kind))

    def _push_wanted(self, to: str, kind: str, body: Body | None) -> None:
        """Send what the credit allows. A queue that is full drops it, and ends no connection."""
        if body is not None:
            self._send(to, lambda dialect: dialect.write_newest(kind, body), True)

    # -- sending -------------------------------------------------------------------------------

    def _send(
        self, to: str, write: Callable[[Dialect], Frames], is_droppable: bool = False
    ) -> bool:
        """Send the frames that `write` makes in the dialect of the connection to `to`.

        A connection that does not read is ended, but for a message that `is_droppable`. Too long a
        message is not sent.
        """
        try:
            return self._write(to, write, is_droppable)
        except TooLongError as error:
            self.log(f"a message to {self.name_of(str(to))} was not sent: {error.message}")
            return False

    def _write(
        self, to: str, write: Callable[[Dialect], Frames], is_droppable: bool = False
    ) -> bool:
        """As `_send`. Raises TooLongError."""
        connection = None if isinstance(to, Sender) else self.dialer.to(to)
        if connection is not None:
            return connection.send(write(connection.dialect)) or self._unsent(connection)
        route = to if isinstance(to, Sender) else self.routes.get(to)
        dialect = None if route is None else self._dialects.get(route.route)
        if route is None or dialect is None:
            return False
        return self.server.send(route, write(dialect), is_droppable)

    def _unsent(self, connection: OutgoingConnection) -> bool:
        """The connection has ended, or its queue is full: then it is closed."""
        self.dialer.read_monitor(connection)
        if connection.is_established:
            self.log(f"{self.name_of(connection.key)} reads nothing: its connection is ended")
            self.dialer.fail(connection)
        return False

    def _expect(self, key: str, kind: str, answered: Answered, timeout_s: float) -> int:
        assert len(self._asks) < self.limits.asks, "asked without waiting for answers"
        number, name = next(self._numbers), self.name_of(key)
        lost = BoardLostError(f"board {name} does not answer", board=name)
        cancel = self.loop.after(timeout_s, lambda: self._finish(number, lost))
        self._asks[number] = _Ask(str(key), kind, answered, cancel)
        return number

    def _finish(self, number: int, answer: Body | MeshError) -> None:
        ask = self._asks.pop(number, None)
        if ask is not None:
            ask.cancel()
            ask.answered(answer)

    # -- malformed messages --------------------------------------------------------------------

    def _drop(self, sender: Sender, error: PicoedgeError) -> None:
        """Close the connection of a malformed message; after several, refuse its key for a time."""
        key, limits = str(sender), self.limits
        self._log_dropped(key, error)
        refuse_s = 0.0
        if self._strikes.add(key, self.loop.clock()) > limits.strikes:
            refuse_s = limits.refused_s
            self.log(f"{self.name_of(key)} goes on: it is kept out {refuse_s:.0f} s each time")
        self.server.disconnect(sender, refuse_s)

    def _say_version(self, sender: Sender, error: VersionError) -> None:
        """Answer in the version of this board, which the other one then names to its user."""
        self._log_dropped(str(sender), error)
        self.server.send(sender, control(ERROR, {**failure_body(error), "id": 0}), True)

    def _log_dropped(self, key: str, error: PicoedgeError) -> None:
        about = f"dropped {self.name_of(key)}"  # a VersionError names the board
        self.log(str(error) if isinstance(error, VersionError) else f"{about}: {error}", about)
