"""The daemon's network half: one thread that answers, tells, and keeps in touch.

    node = Node(context, identity, roster_file, listen, peers)
    node.on("status", lambda peer, body: {"memory": ...})
    node.run()                                     # until node.stop()

It knows nothing of models. Whoever sends a frame has proven its key; whoever sends nonsense loses
its connection and harms nobody else.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from picoedge.errors import AccessError, BoardLostError, MeshError, PicoedgeError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.admission import admit
from picoedge.mesh.identity.identity import Identity, load_signing_key
from picoedge.mesh.identity.invite import Invites
from picoedge.mesh.identity.roster import Roster
from picoedge.mesh.identity.roster_file import RosterFile
from picoedge.mesh.node.failure_detector import Timing
from picoedge.mesh.node.peers import Peers
from picoedge.mesh.transport.dialer import Connection, Dialer
from picoedge.mesh.transport.frames import control, read_control
from picoedge.mesh.transport.loop import Call, Loop
from picoedge.mesh.transport.messages import (
    ERROR,
    MAX_ID,
    REPLY,
    Body,
    error_of,
    number_of,
)
from picoedge.mesh.transport.replies import Handler, Pending, Reply, frames_of, reply_of
from picoedge.mesh.transport.server import Frames, Request, Sender, Server

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Context, Socket

REQUESTS_PER_TURN = 32  # of one socket, which takes turns among its connections itself
WAITING_PER_SENDER = 64
ASKED = 1024
STRIKES = 8  # malformed messages of one key, until it has to wait between connections
REFUSED_S = 10.0
JOIN = "join"

Answered = Callable[[Body | MeshError], None]


@dataclass
class _Ask:
    key: str
    answered: Answered
    cancel: Call


class Node:
    """One board's place in the mesh. Raises MeshError where `listen` cannot be bound.

    `log` is given lines for people. `clock` is in seconds and never goes back.
    """

    def __init__(
        self,
        context: Context,
        identity: Identity,
        roster_file: RosterFile,
        listen: Address,
        peers: Iterable[Address] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        timing: Timing | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.identity = identity
        self.roster_file = roster_file
        self.invites = Invites(identity.folder)
        self.loop = Loop(clock)
        self._log = log or _to_stderr
        self._logged: set[str] = set()
        self._handlers: dict[str, Handler] = {}
        self._numbers = itertools.count(1)
        self._asks: dict[int, _Ask] = {}
        self._waiting: Counter[bytes] = Counter()
        self._strikes: Counter[str] = Counter()
        self._on_gone: list[Callable[[Sender], None]] = []
        try:
            self.server = Server(context, identity.keys, listen, self._is_admitted)
        except BaseException:
            self.loop.close()
            raise
        self.dialer = Dialer(context, identity.keys, self.loop)
        self.peers = Peers(self, tuple(peers), timing or Timing())
        self._wire()

    # -- what the daemon's other half uses ----------------------------------------------------

    @property
    def address(self) -> Address:
        """Where it listens, with the real port."""
        return self.server.address

    @property
    def roster(self) -> Roster:
        """Who is let in, now."""
        return self.roster_file.roster

    def on(self, kind: str, handler: Handler) -> None:
        """Have `handler(peer, body)` answer messages of a kind.

        `peer` is the sender's public key: an `Sender`, which also knows its connection, or the key
        alone where the board's daemon says it over a connection that we made. The answer is a
        body, a `RawReply`, a `Pending`, or a PicoedgeError raised.
        """
        assert kind not in self._handlers, kind
        self._handlers[kind] = handler

    def on_gone(self, call: Callable[[Sender], None]) -> None:
        """Be told of each connection that ended: whoever vanishes frees what it held."""
        self._on_gone.append(call)

    def push(self, to: str, kind: str, body: Body) -> bool:
        """Tell something without waiting: an `Sender` over its connection, a key's daemon else.

        False where nobody is there, or reads so slowly that the connection was ended.
        """
        return self._send(to, control(kind, body))

    def ask(
        self, key: str, kind: str, body: Body, answered: Answered, timeout_s: float = 5.0
    ) -> None:
        """Ask another board's daemon; `answered` is called once, with its body or an error."""
        number = self._expect(key, answered, timeout_s)
        if not self._send(key, control(kind, {**body, "id": number})):
            self._settle(number, BoardLostError("not connected", board=self.name_of(key)))

    def add(self, what: Socket | int, call: Call) -> None:
        """Call whenever the socket or file has something to read."""
        self.loop.add(what, call)

    def remove(self, what: Socket | int) -> None:
        """Forget a socket or file, before it is closed."""
        self.loop.remove(what)

    def after(self, delay_s: float, call: Call) -> Call:
        """Call once after a while; what is returned cancels it."""
        return self.loop.after(delay_s, call)

    def soon(self, call: Call) -> None:
        """Call in this node's thread. Safe in a signal handler and from any thread."""
        self.loop.soon(call)

    def run(self) -> None:
        """Serve until `stop`, then take leave of the others."""
        self.loop.run()
        self.peers.leave()

    def stop(self) -> None:
        """Have `run` end. Safe in a signal handler and from any thread."""
        self.loop.stop()

    def close(self) -> None:
        """Let go of all sockets. Idempotent."""
        self.dialer.close_all()
        self.server.close()
        self.loop.close()

    def name_of(self, key: str) -> str:
        """What people call the board with this key."""
        return self.roster.name_of(key) or f"{key[:8]}…"

    def log_once(self, line: str) -> None:
        """Tell people, if they have not been told the same."""
        if line not in self._logged and len(self._logged) < 1000:
            self._logged.add(line)
            self._log(line)

    # -- how it works ----------------------------------------------------------------------

    def _wire(self) -> None:
        self.on(JOIN, self._join)
        self.on("roster", lambda peer, body: {"roster": self.roster.to_json()})
        self.loop.add(self.server.gate.socket, self.server.gate.answer)
        self.loop.add(self.server.monitor, self.see_gone)
        self.loop.add(self.server.socket, self._read_door)
        self.dialer.read = self._read_dial
        self.peers.start()

    def _is_admitted(self, key: str) -> bool:
        return self.roster.is_allowed(key) or self._is_invited(key)

    def _is_invited(self, key: str) -> bool:
        return self.invites.is_open(key, time.time())

    def see_gone(self) -> None:
        """Take note of connections that ended."""
        for sender in self.server.gone(self.loop.clock()):
            self._waiting.pop(sender.route, None)
            self.peers.route_gone(sender)
            for call in self._on_gone:
                call(sender)

    def _read_door(self) -> None:
        for _ in range(REQUESTS_PER_TURN):
            request = self.server.receive()
            if request is None:
                break
            try:
                self._open(request)
            except ProtocolError as error:
                self.drop(request.sender, error)
        self.see_gone()

    def _open(self, request: Request) -> None:
        if self.roster.is_allowed(request.sender):
            return self._serve(request.sender, request.frames)
        kind, _ = read_control(request.frames)
        if kind != JOIN or not self._is_invited(request.sender):
            raise ProtocolError("a key that is not of the cluster asks")
        # Whatever the answer is, this key has nothing more to say.
        self.after(1.0, lambda: self.server.cut_all(request.sender))
        return self._serve(request.sender, request.frames)

    def _read_dial(self, connection: Connection) -> None:
        for _ in range(REQUESTS_PER_TURN):
            frames = connection.receive()
            if frames is None:
                return
            try:
                self._serve(connection.key, frames)
            except ProtocolError as error:
                self.log_once(f"dropped {self.name_of(connection.key)}: {error}")
                self.dialer.drop(connection)

    def _serve(self, peer: str, frames: list[bytes]) -> None:
        """Answer one message. Raises ProtocolError where it makes no sense."""
        kind, body = read_control(frames)
        if kind in (REPLY, ERROR):
            return self._replied(peer, kind, body)
        number = number_of(body)
        if isinstance(peer, Sender) and self._waiting[peer.route] >= WAITING_PER_SENDER:
            raise ProtocolError(f"more than {WAITING_PER_SENDER} requests wait for an answer")
        reply = reply_of(self._handlers.get(kind), kind, peer, body)
        if not isinstance(reply, Pending):
            return self._answer(peer, body, reply)
        if isinstance(peer, Sender) and number is not None and not reply.is_answered:
            self._waiting[peer.route] += 1
        reply.deliver(lambda late: self._answer_late(peer, body, late))

    def _answer(self, peer: str, body: Body, reply: Reply) -> None:
        frames = frames_of(reply, body)
        if frames is not None:
            self._send(peer, frames)
        elif isinstance(reply, PicoedgeError):
            self.log_once(f"what {self.name_of(peer)} told had no effect: {reply}")

    def _answer_late(self, peer: str, body: Body, reply: Reply) -> None:
        if isinstance(peer, Sender) and self._waiting[peer.route] > 0:
            self._waiting[peer.route] -= 1
        self._answer(peer, body, reply)

    def _send(self, to: str, frames: Frames) -> bool:
        if isinstance(to, Sender):
            return self.server.send(to, frames)
        link = self.dialer.link(to)
        if link is None:
            route = self.peers.route_of(to)
            return route is not None and self.server.send(route, frames)
        return link.send(frames) or self._unsent(link)

    def _unsent(self, link: Connection) -> bool:
        """The connection is gone, or takes no more: then it is ended."""
        self.dialer.look(link)
        if link.is_greeted:
            self.log_once(f"{self.name_of(link.key)} reads nothing: its connection is ended")
            self.dialer.drop(link)
        return False

    def greet(self, connection: Connection, body: Body, answered: Answered) -> None:
        """Ask over a connection that is no link yet."""
        number = self._expect(connection.key, answered, 5.0)
        if not connection.send(control("hello", {**body, "id": number})):
            self._settle(number, BoardLostError("gone", board=self.name_of(connection.key)))

    def _expect(self, key: str, answered: Answered, timeout_s: float) -> int:
        assert len(self._asks) < ASKED, "asked without waiting for answers"
        number = next(self._numbers)
        name = self.name_of(key)
        lost = BoardLostError(f"board {name} does not answer", board=name)
        cancel = self.after(timeout_s, lambda: self._settle(number, lost))
        self._asks[number] = _Ask(str(key), answered, cancel)
        return number

    def _settle(self, number: int, answer: Body | MeshError) -> None:
        ask = self._asks.pop(number, None)
        if ask is not None:
            ask.cancel()
            ask.answered(answer)

    def _replied(self, peer: str, kind: str, body: Body) -> None:
        number = Fields(body).integer("id", 0, MAX_ID)
        ask = self._asks.get(number)
        if ask is None or ask.key != peer:
            return  # answered too late: nobody waits any more
        self._settle(number, body if kind == REPLY else error_of(body, self.name_of(peer)))

    def drop(self, sender: Sender, error: PicoedgeError) -> None:
        """End the connection of a peer that makes no sense; one that goes on has to wait."""
        key = str(sender)
        self._strikes[key] += 1
        if self._strikes[key] == 1:
            self.log_once(f"dropped {self.name_of(key)}: {error}")
        if self._strikes[key] > STRIKES:
            self.log_once(
                f"{self.name_of(key)} goes on: it is kept out {REFUSED_S:.0f} s each time"
            )
        self.server.cut(sender, REFUSED_S if self._strikes[key] > STRIKES else 0.0)

    def _join(self, peer: str, body: Body) -> Body:
        fields = Fields(body)
        public, name = fields.text("public", 40), fields.text("name", 64)
        if self.roster.is_allowed(peer):
            raise AccessError("this key is in the cluster already", "picoedge run")
        signing = load_signing_key(self.identity.folder)
        admit(self.roster_file, signing, str(peer), public, name, time.time())
        self.log_once(f"{self.name_of(public)} joined the cluster")
        self.peers.roster_changed()
        return {"roster": self.roster.to_json()}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
