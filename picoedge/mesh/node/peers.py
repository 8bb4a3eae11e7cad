"""The other boards: hello, heartbeats, roster gossip, and the search for missing ones.

A service on `Rpc`. Every board sends all others a heartbeat with its state and the digest of its
roster; a board whose digest differs is sent the roster.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from picoedge.errors import AccessError, MeshError, PicoedgeError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.node.failure_detector import FailureDetector, Timing
from picoedge.mesh.node.finder import AddressBook, Finder
from picoedge.mesh.node.gossip import (
    Beat,
    Hello,
    addresses_body,
    read_addresses,
    read_beat,
    read_hello,
)
from picoedge.mesh.node.membership import Change, Heard, Left, Membership, Revoked
from picoedge.mesh.transport.messages import Body
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import Identity
    from picoedge.mesh.identity.roster import RosterFile
    from picoedge.mesh.node.rpc import Rpc
    from picoedge.mesh.transport.dialer import OutgoingConnection

FAREWELL_S = 0.3  # for the answers to our `leave`: a peer that is gone must not delay our end


@dataclass
class Board:
    """A board whose daemon has said hello."""

    name: str
    incarnation: int
    digest: str  # of its roster
    sent_roster: tuple[str, str] = ("", "")  # digests, ours and its, when it was sent ours


class Peers:
    """Maintains `membership`, and the same roster on every board."""

    def __init__(
        self,
        rpc: Rpc,
        identity: Identity,
        roster_file: RosterFile,
        seeds: tuple[Address, ...],
        timing: Timing,
    ) -> None:
        self.incarnation = secrets.randbits(63)
        self.boards: dict[str, Board] = {}
        self.addresses: tuple[Address, ...] = ()  # of this board, as others may reach it
        self.state: Callable[[], Body] = dict  # this board's report, for its heartbeats
        self._rpc = rpc
        self._identity = identity
        self._roster_file = roster_file
        self._timing = timing
        self._detector = FailureDetector(rpc.loop.clock, timing)
        self._finder = Finder(rpc.loop, rpc.dialer, AddressBook(identity.folder), rpc.log_once)
        self._finder.add_seeds(seeds)
        self._digest = roster_file.roster.digest
        self._sequence = 0
        self._sought_s = float("-inf")
        self._on_revoked: list[Callable[[str], None]] = []
        rpc.on("hello", self._hello)
        rpc.on("beat", self._beat)
        rpc.on("gossip", self._gossip)
        rpc.on("peers", self._addresses_reported)
        rpc.on("leave", self._leave)
        rpc.dialer.up = self._greet
        rpc.dialer.refused = self._refused
        self._revoke()
        rpc.loop.after(0.0, self._tick)

    @property
    def membership(self) -> Membership:
        """Every board that was heard, with its condition."""
        return self._detector.membership

    def on_change(self, call: Callable[[Change], None]) -> None:
        """Have `call` called with each change of the membership."""
        self._detector.on_change(call)

    def on_revoked(self, call: Callable[[str], None]) -> None:
        """Have `call` called with each key that is revoked."""
        self._on_revoked.append(call)

    def seek(self, *addresses: Address) -> None:
        """Look for boards at these addresses; their keys need not be known."""
        self._finder.add_seeds(addresses)

    def hint(self, key: str, *addresses: Address) -> None:
        """Look for the board `key` at these addresses."""
        self._finder.add_reported({key: addresses}, self._is_other)

    def addresses_of(self, key: str) -> tuple[Address, ...]:
        """Addresses of the board `key`, the newest first."""
        return self._finder.known.get(key, ())

    def roster_changed(self) -> None:
        """Apply a changed roster: disconnect revoked keys, and send it to all."""
        self._digest = self._roster_file.roster.digest
        self._revoke()
        self._spread()
        self._finder.is_due = True

    def leave(self) -> None:
        """Announce the end of this daemon, and wait FAREWELL_S at most for the answers."""
        rpc, waiting = self._rpc, self._rpc.connected()
        for key in list(waiting):
            heard = functools.partial(_discard, waiting, key)
            rpc.ask(key, "leave", {"incarnation": self.incarnation}, heard, FAREWELL_S)
        while waiting:  # a peer that does not reply is dropped when its request times out
            rpc.loop.turn()

    # -- hello ---------------------------------------------------------------------------------

    def _own_hello(self) -> Body:
        hello = Hello(
            self._identity.name,
            self.incarnation,
            self._rpc.server.address.port,
            self.addresses,
            self._roster_file.roster.digest,
        )
        return hello.to_body()

    def _greet(self, connection: OutgoingConnection) -> None:
        answered = functools.partial(self._greeted, connection)
        self._rpc.ask_over(connection, "hello", self._own_hello(), answered)

    def _greeted(self, connection: OutgoingConnection, answer: Body | MeshError) -> None:
        if connection.socket.closed:
            return
        try:
            if isinstance(answer, MeshError):
                raise answer
            hello = read_hello(answer)
        except MeshError as error:
            self._rpc.log_once(f"{connection.address}: {error}")
            return self._rpc.dialer.fail(connection)
        self._rpc.dialer.establish(connection)
        self._met(connection.key, hello, (connection.address, *hello.addresses))
        self._dial_missing()

    def _hello(self, peer: str, body: Body) -> Body:
        hello = read_hello(body)
        if not isinstance(peer, Sender):
            raise ProtocolError("greeted twice over one connection")
        if not self._is_other(peer):
            error = AccessError(
                "two daemons run with the same identity",
                "a cluster folder belongs to one board: remove the copy, and join with an invite",
            )
            self._rpc.log_once(f"{error.message}: {hello.name} at {peer.host} ({error.hint})")
            raise error
        self._met(str(peer), hello, (Address(peer.host, hello.port), *hello.addresses))
        self._rpc.routes[str(peer)] = peer
        return self._own_hello()

    def _met(self, key: str, hello: Hello, addresses: tuple[Address, ...]) -> None:
        name = self._rpc.name_of(key)
        self.boards[key] = Board(name, hello.incarnation, hello.digest)
        self._finder.add_seen(key, addresses)
        self._detector.apply(Heard(key, hello.incarnation))
        # It has not received what was sent to all before it came.
        self._rpc.loop.after(0.0, lambda: self._introduce(key))

    def _introduce(self, key: str) -> None:
        self._spread()
        self._rpc.push(key, "peers", addresses_body(self._finder.known))

    def _refused(self, connection: OutgoingConnection, by_roster: bool) -> None:
        if by_roster:
            name = self._rpc.name_of(connection.key)
            self._rpc.log_once(
                f"{name} at {connection.address} does not let this board in"
                " (is it revoked? picoedge keys show there)"
            )

    # -- heartbeats and gossip -----------------------------------------------------------------

    def _beat(self, peer: str, body: Body) -> None:
        beat, board = read_beat(body), self.boards.get(peer)
        if board is None or not self._is_daemon(peer):
            return
        if beat.incarnation != board.incarnation:
            raise ProtocolError("a heartbeat of another process than the one that said hello")
        board.digest = beat.digest
        self._detector.apply(
            Heard(str(peer), beat.incarnation, beat.sequence, beat.state, beat.stalled_on)
        )
        self._send_roster(str(peer), board)

    def _is_daemon(self, peer: str) -> bool:
        """Whether a connection is that of a board's daemon: its sessions have the same key."""
        if not isinstance(peer, Sender):
            return True
        route = self._rpc.routes.get(peer)
        return route is not None and route.route == peer.route

    def _gossip(self, peer: str, body: Body) -> None:
        try:
            news = self._roster_file.take(body.get("roster"))
        except AccessError as error:
            raise ProtocolError(error.message, error.hint) from None
        if news:
            self.roster_changed()

    def _addresses_reported(self, peer: str, body: Body) -> None:
        self._finder.add_reported(read_addresses(body), self._is_other)

    def _leave(self, peer: str, body: Body) -> None:
        incarnation = Fields(body).integer("incarnation")
        if peer in self.boards and self._is_daemon(peer):
            self._detector.apply(Left(str(peer), incarnation))

    def _spread(self) -> None:
        for key, board in list(self.boards.items()):
            self._send_roster(key, board)

    def _send_roster(self, key: str, board: Board) -> None:
        """Once for each pair of rosters: a board that cannot take ours is not sent it again."""
        ours = self._roster_file.roster.digest
        if ours != board.digest and board.sent_roster != (ours, board.digest):
            roster = self._roster_file.roster.to_json()
            if self._rpc.push(key, "gossip", {"roster": roster}):
                board.sent_roster = ours, board.digest

    def _revoke(self) -> None:
        for key in self._roster_file.roster.revoked.keys() - self.membership.revoked:
            self._detector.apply(Revoked(key))
            self._rpc.server.disconnect_key(key)
            self._finder.forget(key)
            self.boards.pop(key, None)
            for call in self._on_revoked:
                call(key)

    # -- time ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        rpc = self._rpc
        rpc.loop.after(self._timing.beat_s, self._tick)
        rpc.enforce_limits()
        self._reload_roster()
        self._beat_all()
        self._detector.check_timeouts()
        if self._finder.has_news:
            for key in rpc.connected():
                rpc.push(key, "peers", addresses_body(self._finder.known))
            self._finder.save()
        if self._finder.is_due or rpc.loop.clock() - self._sought_s >= self._timing.seek_s:
            self._dial_missing()

    def _beat_all(self) -> None:
        self._sequence += 1
        digest = self._roster_file.roster.digest
        beat = Beat(self.incarnation, self._sequence, digest, self.state()).to_body()
        for key in self._rpc.connected():
            self._rpc.push(key, "beat", beat)

    def _reload_roster(self) -> None:
        try:
            self._roster_file.reload_if_changed()
        except PicoedgeError as error:
            self._rpc.log_once(str(error))
        if self._roster_file.roster.digest != self._digest:
            self.roster_changed()

    def _dial_missing(self) -> None:
        self._sought_s = self._rpc.loop.clock()
        others = [key for key in self._roster_file.roster.members if self._is_other(key)]
        self._finder.dial_missing(others, self._rpc.connected())

    def _is_other(self, key: str) -> bool:
        return key != self._identity.keys.public and self._roster_file.roster.is_allowed(key)


def _discard(keys: set[str], key: str, _: object) -> None:
    keys.discard(key)
