"""The other boards: hello, heartbeats, roster gossip, and the search for missing ones.

A service on `Rpc`. Every board sends all others a heartbeat with its report and the digest of its
roster; a board whose digest differs is sent the roster.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from picoedge.errors import AccessError, MeshError, PicoedgeError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import MAX_NAME
from picoedge.mesh.node.finder import (
    AddressBook,
    Finder,
    addresses_body,
    listed_addresses,
    read_addresses,
)
from picoedge.mesh.node.liveness import Liveness, Timing
from picoedge.mesh.transport.messages import Body
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import Identity
    from picoedge.mesh.identity.roster import RosterFile
    from picoedge.mesh.node.rpc import Rpc
    from picoedge.mesh.transport.dialer import OutgoingConnection

# A board that was not connected for so long cannot be reached: a board that has just started, or
# was lost and found, is connected sooner.
UNREACHED_S = 10.0
FAREWELL_S = 0.3  # for the answers to our `leave`: a peer that is gone must not delay our end
MAX_DIGEST = 64  # characters; ours has 16, and one of 256 bits would have these
MAX_REPORT_FIELDS = 64  # of a report in a heartbeat: one of ours has 16
MAX_REPORT_NAME, MAX_REPORT_TEXT = 32, 200  # characters


@dataclass(frozen=True)
class Hello:
    """The first message between daemons: the process (`incarnation`), and where it listens."""

    name: str
    incarnation: int
    port: int
    addresses: tuple[Address, ...]
    digest: str  # of its roster


def read_hello(body: Body) -> Hello:
    """Raises ProtocolError."""
    fields = Fields(body)
    return Hello(
        fields.text("name", MAX_NAME),
        fields.integer("incarnation"),
        fields.integer("port", 0, 65535),
        listed_addresses(body),
        fields.text("digest", MAX_DIGEST),
    )


@dataclass
class PeerBoard:
    """A board whose daemon has said hello."""

    incarnation: int
    digest: str  # of its roster
    address: Address  # at which it was met
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
        self.boards: dict[str, PeerBoard] = {}
        self.addresses: tuple[Address, ...] = ()  # of this board, as others may reach it
        self.report: Callable[[], Body] = dict  # this board's, for its heartbeats
        # Of another board's report: the fields that are kept, each within its bounds.
        self.read_report: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _flat
        self._rpc = rpc
        self._identity = identity
        self._roster_file = roster_file
        self._timing = timing
        self.liveness = Liveness(rpc.loop.clock, timing)
        self.book = AddressBook(identity.folder)
        self._finder = Finder(rpc.loop, rpc.dialer, self.book, rpc.log)
        self._finder.add_seeds(seeds)
        self._digest = roster_file.roster.digest
        self._sequence = 0
        self._sought_s = self._shared_s = self._hinted_s = float("-inf")
        self._missing_since: dict[str, float] = {}
        rpc.on("hello", self._hello)
        rpc.on("beat", self._beat)
        rpc.on("gossip", self._gossip)
        rpc.on("peers", self._book_reported)
        rpc.on("leave", self._leave)
        rpc.dialer.up = self._greet
        rpc.dialer.refused = self._refused
        self._revoke()
        rpc.loop.after(0.0, self._tick)

    def hint(self, key: str, *addresses: Address, reporter: str = "") -> None:
        """Look for the board `key` at these addresses; ignored where it is not of the cluster.

        `reporter`: the board that says so.
        """
        if self._is_other(key):
            self.book.add_reported(key, addresses, reporter)

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
            body = {"incarnation": self.incarnation}
            rpc.ask(key, "leave", body, partial(_discard, waiting, key), FAREWELL_S)
        while waiting:  # a peer that does not reply is dropped when its request times out
            rpc.loop.turn()

    def address_of(self, key: str) -> Address | None:
        """Address at which this board reaches the daemon of another one; None if not connected."""
        board = self.boards.get(key)
        return board.address if board is not None and key in self._rpc.connected() else None

    def reached(self, keys: Iterable[str]) -> dict[str, str]:
        """Addresses at which this board reaches the daemons it is connected to, of these, by key.

        An address that is right for another board may be of a network that this one is not in.
        """
        found = {key: self.address_of(key) for key in keys}
        return {key: str(address) for key, address in found.items() if address is not None}

    def addresses_of(self, key: str) -> tuple[Address, ...]:
        """Addresses to look for a board at: first the one where this board reaches it now."""
        now, known = self.address_of(key), self.book.of(key)
        return known if now is None else tuple(dict.fromkeys((now, *known)))

    def unreached(self) -> list[str]:
        """Keys of boards that could not be reached for UNREACHED_S."""
        before = self._rpc.loop.clock() - UNREACHED_S
        return [key for key, since in self._missing_since.items() if since <= before]

    # -- hello ---------------------------------------------------------------------------------

    def _own_hello(self) -> Body:
        return {
            "name": self._identity.name,
            "incarnation": self.incarnation,
            "port": self._rpc.server.address.port,
            "addresses": [str(address) for address in self.addresses],
            "digest": self._roster_file.roster.digest,
            "epoch": 0,  # version 1 demands it, and ignores its value
        }

    def _greet(self, connection: OutgoingConnection) -> None:
        answered = partial(self._greeted, connection)
        self._rpc.ask_over(connection, "hello", self._own_hello(), answered)

    def _greeted(self, connection: OutgoingConnection, answer: Body | MeshError) -> None:
        if connection.socket.closed:
            return
        try:
            if isinstance(answer, MeshError):
                raise answer
            hello = read_hello(answer)
        except MeshError as error:
            about = f"no hello of {self._rpc.name_of(connection.key)}"
            self._rpc.log(f"{connection.address}: {error}", about)
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
            line = f"{error.message}: {hello.name} at {peer.host} ({error.hint})"
            self._rpc.log(line, error.message)
            raise error
        self._met(str(peer), hello, (Address(peer.host, hello.port), *hello.addresses))
        self._rpc.routes[str(peer)] = peer
        return self._own_hello()

    def _met(self, key: str, hello: Hello, addresses: tuple[Address, ...]) -> None:
        self.boards[key] = PeerBoard(hello.incarnation, hello.digest, addresses[0])
        self.book.add_seen(key, addresses)
        self.liveness.heard(key, hello.incarnation)
        # It has not received what was sent to all before it came.
        self._rpc.loop.after(0.0, lambda: self._introduce(key))

    def _introduce(self, key: str) -> None:
        self._spread()
        self._rpc.push(key, "peers", addresses_body(self.book.seen))

    def _refused(self, connection: OutgoingConnection, by_roster: bool) -> None:
        if by_roster:
            name = self._rpc.name_of(connection.key)
            self._rpc.log(
                f"{name} at {connection.address} does not let this board in: it is revoked there,"
                " or kept out for a while (picoedge keys show, and the log there)"
            )

    # -- heartbeats and gossip -----------------------------------------------------------------

    def _beat(self, peer: str, body: Body) -> None:
        fields, board = Fields(body), self.boards.get(peer)
        incarnation, sequence = fields.integer("incarnation"), fields.integer("sequence")
        digest, report = fields.text("digest", MAX_DIGEST), fields.object("report").values
        if len(report) > MAX_REPORT_FIELDS:
            raise ProtocolError(f"a report of {len(report)} fields")
        if board is None or not self._is_daemon(peer):
            return
        if incarnation != board.incarnation:
            raise ProtocolError("a heartbeat of a process that did not say hello")
        board.digest = digest
        self.liveness.heard(str(peer), incarnation, sequence, self.read_report(report))
        self._send_roster(str(peer), board)

    def _is_daemon(self, peer: str) -> bool:
        return not isinstance(peer, Sender) or self._rpc.is_daemon(peer)

    def _gossip(self, peer: str, body: Body) -> None:
        try:
            theirs = self._roster_file.read(body.get("roster"))
        except AccessError as error:
            raise ProtocolError(error.message, error.hint) from None
        try:
            if self._roster_file.take(theirs):
                self.roster_changed()
        except PicoedgeError as error:  # of this board's own file: no fault of the peer
            self._rpc.log(f"the roster of {self._rpc.name_of(peer)} was not taken: {error}")

    def _book_reported(self, peer: str, body: Body) -> None:
        for key, addresses in read_addresses(body, self._is_other).items():
            self.hint(key, *addresses, reporter=str(peer))

    def _leave(self, peer: str, body: Body) -> None:
        incarnation = Fields(body).integer("incarnation")
        if peer in self.boards and self._is_daemon(peer):
            self.liveness.left(str(peer), incarnation)

    def _spread(self) -> None:
        for key, board in list(self.boards.items()):
            self._send_roster(key, board)

    def _send_roster(self, key: str, board: PeerBoard) -> None:
        """Once for each pair of rosters: a board that cannot take ours is not sent it again."""
        ours = self._roster_file.roster.digest
        if ours != board.digest and board.sent_roster != (ours, board.digest):
            roster = self._roster_file.roster.to_json()
            if self._rpc.push(key, "gossip", {"roster": roster}):
                board.sent_roster = ours, board.digest

    def _revoke(self) -> None:
        for key in self._roster_file.roster.revoked.keys() - self.liveness.revoked:
            self._rpc.server.disconnect_key(key)
            self._rpc.dialer.close_key(key)
            self.book.forget(key)
            self.boards.pop(key, None)
            self.liveness.revoke(key)

    # -- time ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        rpc, seek_s = self._rpc, self._timing.seek_s
        rpc.loop.after(self._timing.beat_s, self._tick)
        rpc.enforce_limits()
        self._reload_roster()
        self._beat_all()
        self.liveness.check_timeouts()
        now_s = rpc.loop.clock()
        if self.book.has_news and now_s - self._shared_s >= seek_s:
            self._share_book()
        if self.book.has_reports and now_s - self._hinted_s >= seek_s:
            self._finder.is_due, self._hinted_s = True, now_s
            self.book.has_reports = False
        if self._finder.is_due or now_s - self._sought_s >= seek_s:
            self._dial_missing()

    def _beat_all(self) -> None:
        self._sequence += 1
        digest = self._roster_file.roster.digest
        beat = {
            "incarnation": self.incarnation,
            "sequence": self._sequence,
            "digest": digest,
            "report": self.report(),
        }
        for key in self._rpc.connected():
            self._rpc.push(key, "beat", beat)

    def _share_book(self) -> None:
        """Send other boards the new addresses, dial there, and save them for the next start.

        A board that tells new addresses without end has them sent once in a while.
        """
        self._finder.is_due, self._shared_s = True, self._rpc.loop.clock()
        for key in self._rpc.connected():
            self._rpc.push(key, "peers", addresses_body(self.book.seen))
        try:
            self.book.save()
        except PicoedgeError as error:
            self._rpc.log(str(error))

    def _reload_roster(self) -> None:
        try:
            self._roster_file.reload_if_changed()
        except PicoedgeError as error:
            self._rpc.log(str(error))
        if self._roster_file.roster.digest != self._digest:
            self.roster_changed()

    def _dial_missing(self) -> None:
        self._sought_s = now_s = self._rpc.loop.clock()
        others = [key for key in self._roster_file.roster.members if self._is_other(key)]
        connected = self._rpc.connected()
        missing = {key for key in others if key not in connected}
        self._missing_since = {key: self._missing_since.get(key, now_s) for key in missing}
        self._finder.dial_missing(others, connected)

    def _is_other(self, key: str) -> bool:
        return key != self._identity.keys.public and self._roster_file.roster.is_allowed(key)


def _flat(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The numbers and short texts of a report, where no service says what it may hold."""
    short = {name: value for name, value in report.items() if len(name) <= MAX_REPORT_NAME}
    texts = {name: value[:MAX_REPORT_TEXT] for name, value in short.items() if type(value) is str}
    return texts | {n: value for n, value in short.items() if isinstance(value, (int, float))}


def _discard(keys: set[str], key: str, _: object) -> None:
    keys.discard(key)
