"""The other boards: greeted, heard, told who is let in, and looked for where they are missed."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from picoedge.errors import AccessError, MeshError, PicoedgeError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.node.address_book import AddressBook
from picoedge.mesh.node.failure_detector import FailureDetector, Timing
from picoedge.mesh.node.finder import Finder
from picoedge.mesh.node.gossip import (
    Beat,
    Hello,
    addresses_body,
    read_addresses,
    read_beat,
    read_hello,
)
from picoedge.mesh.node.membership import (
    Change,
    Heard,
    Left,
    Membership,
    Revoked,
)
from picoedge.mesh.transport.dialer import Connection
from picoedge.mesh.transport.messages import Body
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node

FLOOD_S = 30.0
FAREWELL_S = 0.3


@dataclass
class Board:
    """What is known of a board that said hello."""

    name: str
    incarnation: int
    digest: str
    route: Sender | None = None  # the connection that its daemon made to us
    told: tuple[str, str] = ("", "")  # digests, ours and its, when it was sent our roster


class Peers:
    """Keeps `membership` true, and every board's roster the same."""

    def __init__(self, node: Node, seeds: tuple[Address, ...], timing: Timing) -> None:
        self.incarnation = secrets.randbits(63)
        self._detector = FailureDetector(node.loop.clock, timing)
        self.boards: dict[str, Board] = {}
        self.addresses: tuple[Address, ...] = ()  # of this board, as others may reach it
        self.state: Callable[[], Body] = dict
        self._node = node
        self._timing = timing
        self._finder = Finder(
            node.loop, node.dialer, AddressBook(node.identity.folder), node.log_once
        )
        self._finder.add_seeds(seeds)
        self._digest = node.roster.digest
        self._sequence = 0
        self._sought_s = float("-inf")
        self._on_revoked: list[Callable[[str], None]] = []

    @property
    def membership(self) -> Membership:
        """Who is here, and how they are."""
        return self._detector.membership

    def start(self) -> None:
        """Begin to greet and to beat."""
        node = self._node
        node.on("hello", self._hello)
        node.on("beat", self._beat)
        node.on("gossip", self._gossip)
        node.on("peers", self._told_hints)
        node.on("leave", self._leave)
        node.dialer.up = self._greet
        node.dialer.refused = self._refused
        self._revoke()
        node.after(0.0, self._tick)

    def on_change(self, call: Callable[[Change], None]) -> None:
        """Be told of each change of the membership."""
        self._detector.on_change(call)

    def on_revoked(self, call: Callable[[str], None]) -> None:
        """Be told of each key that is let in no more: what it has here ends at once."""
        self._on_revoked.append(call)

    def seek(self, *addresses: Address) -> None:
        """Look for boards there from now on; their keys need not be known."""
        self._finder.add_seeds(addresses)

    def hint(self, key: str, *addresses: Address) -> None:
        """Look for the board `key` there."""
        self._finder.add_reported({key: addresses}, self._is_other)

    def addresses_of(self, key: str) -> tuple[Address, ...]:
        """Where the board `key` was seen, the newest first."""
        return self._finder.known.get(key, ())

    def route_of(self, key: str) -> Sender | None:
        """The connection that a board's daemon made to us, if it stands."""
        board = self.boards.get(key)
        return None if board is None else board.route

    def route_gone(self, sender: Sender) -> None:
        """A connection ended; its board may have others."""
        board = self.boards.get(sender)
        if board is not None and board.route is not None and board.route.route == sender.route:
            board.route = None

    def roster_changed(self) -> None:
        """Who is let in has changed: end what is revoked, tell everyone."""
        self._digest = self._node.roster.digest
        self._revoke()
        self._spread()
        self._finder.is_due = True

    def leave(self) -> None:
        """Say that this board goes, and wait a moment until the others have heard."""
        node, waited_for = self._node, self._connected()
        for key in list(waited_for):
            heard = functools.partial(_discard, waited_for, key)
            node.ask(key, "leave", {"incarnation": self.incarnation}, heard, FAREWELL_S)
        while waited_for:  # who is silent is answered for when its time is over
            node.loop.turn()

    # -- greeting ----------------------------------------------------------------------------

    def _own_hello(self) -> Body:
        node = self._node
        hello = Hello(
            node.identity.name,
            self.incarnation,
            node.address.port,
            self.addresses,
            node.roster.digest,
        )
        return hello.to_body()

    def _greet(self, connection: Connection) -> None:
        self._node.greet(
            connection, self._own_hello(), lambda answer: self._greeted(connection, answer)
        )

    def _greeted(self, connection: Connection, answer: Body | MeshError) -> None:
        if connection.socket.closed:
            return
        try:
            if isinstance(answer, MeshError):
                raise answer
            hello = read_hello(answer)
        except MeshError as error:
            self._node.log_once(f"{connection.address}: {error}")
            return self._node.dialer.drop(connection)
        self._node.dialer.settle(connection)
        self._met(connection.key, hello, (connection.address, *hello.addresses))
        self._seek_now()

    def _hello(self, peer: str, body: Body) -> Body:
        hello = read_hello(body)
        if not isinstance(peer, Sender):
            raise ProtocolError("greeted twice over one connection")
        if not self._is_other(peer):
            error = AccessError(
                "two daemons run with the same identity",
                "a cluster folder belongs to one board: remove the copy, and join with an invite",
            )
            self._node.log_once(f"{error.message}: {hello.name} at {peer.host} ({error.hint})")
            raise error
        seen = Address(peer.host, hello.port)
        self._met(str(peer), hello, (seen, *hello.addresses))
        board = self.boards[peer]
        board.route = peer
        return self._own_hello()

    def _met(self, key: str, hello: Hello, addresses: tuple[Address, ...]) -> None:
        board = self.boards.setdefault(key, Board(hello.name, hello.incarnation, hello.digest))
        board.incarnation, board.digest, board.told = hello.incarnation, hello.digest, ("", "")
        board.name = self._node.name_of(key)
        self._finder.add_seen(key, addresses)
        self._detector.apply(Heard(key, hello.incarnation))
        # A newcomer has not heard what was told before it came.
        self._node.after(0.0, lambda: self._introduce(key))

    def _introduce(self, key: str) -> None:
        self._spread()
        self._node.push(key, "peers", addresses_body(self._finder.known))

    def _refused(self, connection: Connection, by_roster: bool) -> None:
        if by_roster:
            name = self._node.name_of(connection.key)
            self._node.log_once(
                f"{name} at {connection.address} does not let this board in"
                " (is it revoked? picoedge keys show there)"
            )

    # -- heartbeats and gossip -----------------------------------------------------------------

    def _beat(self, peer: str, body: Body) -> None:
        beat, board = read_beat(body), self.boards.get(peer)
        if board is None or not self._speaks_for(peer, board):
            return
        if beat.incarnation != board.incarnation:
            raise ProtocolError("a heartbeat of another process than the one that said hello")
        board.digest = beat.digest
        self._detector.apply(
            Heard(str(peer), beat.incarnation, beat.sequence, beat.state, beat.stalled_on)
        )
        self._tell_roster(str(peer), board)

    def _speaks_for(self, peer: str, board: Board) -> bool:
        """Sessions of a board have its key too; only its daemon says how it is."""
        if not isinstance(peer, Sender):
            return True
        return board.route is not None and board.route.route == peer.route

    def _gossip(self, peer: str, body: Body) -> None:
        try:
            news = self._node.roster_file.take(body.get("roster"))
        except AccessError as error:
            raise ProtocolError(error.message, error.hint) from None
        if news:
            self.roster_changed()

    def _told_hints(self, peer: str, body: Body) -> None:
        self._finder.add_reported(read_addresses(body), self._is_other)

    def _leave(self, peer: str, body: Body) -> None:
        incarnation = Fields(body).integer("incarnation")
        board = self.boards.get(peer)
        if board is not None and self._speaks_for(peer, board):
            self._detector.apply(Left(str(peer), incarnation))

    def _spread(self) -> None:
        for key, board in list(self.boards.items()):
            self._tell_roster(key, board)

    def _tell_roster(self, key: str, board: Board) -> None:
        """Once for each pair of rosters: a board that cannot take ours is not sent it again."""
        ours = self._node.roster.digest
        if ours != board.digest and board.told != (ours, board.digest):
            roster = self._node.roster.to_json()
            if self._node.push(key, "gossip", {"roster": roster}):
                board.told = ours, board.digest

    def _revoke(self) -> None:
        roster = self._node.roster
        for key in roster.revoked.keys() - self.membership.revoked:
            self._detector.apply(Revoked(key))
            self._node.server.cut_all(key)
            self._finder.forget(key)
            self.boards.pop(key, None)
            for call in self._on_revoked:
                call(key)

    # -- time ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        node = self._node
        node.after(self._timing.beat_s, self._tick)
        for sender in node.server.enforce_limits():
            node.log_once(f"dropped {node.name_of(sender)}: it sends more than is believed")
            node.server.cut(sender, FLOOD_S)
        node.see_gone()
        self._reload()
        self._beat_all()
        self._detector.check_timeouts()
        if self._finder.has_news:
            self._tell_hints()
        if self._finder.is_due or node.loop.clock() - self._sought_s >= self._timing.seek_s:
            self._seek_now()

    def _beat_all(self) -> None:
        self._sequence += 1
        digest = self._node.roster.digest
        beat = Beat(self.incarnation, self._sequence, digest, self.state()).to_body()
        for key in self._connected():
            self._node.push(key, "beat", beat)

    def _reload(self) -> None:
        try:
            self._node.roster_file.reload_if_changed()
        except PicoedgeError as error:
            self._node.log_once(str(error))
        if self._node.roster.digest != self._digest:
            self.roster_changed()

    def _tell_hints(self) -> None:
        body = addresses_body(self._finder.known)
        for key in self._connected():
            self._node.push(key, "peers", body)
        self._finder.save()

    def _seek_now(self) -> None:
        self._sought_s = self._node.loop.clock()
        self._finder.dial_missing(self._others(), self._connected())

    # -- who -----------------------------------------------------------------------------------

    def _connected(self) -> set[str]:
        routes = {key for key, board in self.boards.items() if board.route is not None}
        return routes | {connection.key for connection in self._node.dialer.greeted}

    def _others(self) -> list[str]:
        return [key for key in self._node.roster.members if self._is_other(key)]

    def _is_other(self, key: str) -> bool:
        return key != self._node.identity.keys.public and self._node.roster.is_allowed(key)


def _discard(keys: set[str], key: str, _: object) -> None:
    keys.discard(key)
