"""The daemon's network half: identity, roster and invites, with `Rpc` and the peers on it.

    node = Node(context, identity, roster_file, listen, peers)
    node.rpc.on("status", lambda peer, body: {"memory": ...})
    node.run()                                     # until node.stop()

It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from picoedge.errors import AccessError, PicoedgeError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.admission import Invites, admit
from picoedge.mesh.identity.identity import MAX_NAME, Identity, load_signing_key
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import Roster, RosterFile
from picoedge.mesh.node.liveness import Timing
from picoedge.mesh.node.peers import Peers
from picoedge.mesh.node.rpc import Rpc
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.messages import NO_TRANSLATION, Body, Translation

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Context
    from picoedge.mesh.transport.server import Sender

JOIN = "join"
_SETTLE_S = 60.0  # between looks for invites that are over
JOINED_S = 1.0  # for the reply to leave the board, before the one-time key is disconnected


class Node:
    """One board's place in the mesh. Raises MeshError if `listen` cannot be bound.

    `peers` are addresses at which to look for boards. `log` is given lines for people;
    `translation` is for boards of the previous wire version, `moment` tells the time.
    """

    def __init__(
        self,
        context: Context,
        identity: Identity,
        roster_file: RosterFile,
        listen: Address,
        peers: Iterable[Address] = (),
        *,
        timing: Timing | None = None,
        log: Callable[[str], None] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        translation: Translation = NO_TRANSLATION,
        moment: Callable[[], Moment] = Moment.now,
    ) -> None:
        self._moment = moment
        self.identity = identity
        self.roster_file = roster_file
        self.invites = Invites(identity.folder)
        self.rpc = Rpc(
            context,
            identity.keys,
            listen,
            lambda key: self.roster.is_allowed(key) or self._is_invited(key),
            self._authorize,
            name_of=self.name_of,
            log=log,
            limits=limits,
            translation=translation,
        )
        self.peers = Peers(self.rpc, identity, roster_file, tuple(peers), timing or Timing())
        self.rpc.on(JOIN, self._join)
        self.rpc.on("roster", lambda peer, body: {"roster": self.roster.to_json()})
        self._settle_invites()

    @property
    def address(self) -> Address:
        """The address at which it listens, with the real port."""
        return self.rpc.server.address

    @property
    def roster(self) -> Roster:
        """The roster as of now."""
        return self.roster_file.roster

    def name_of(self, key: str) -> str:
        """The board's name in the roster, or the beginning of its key."""
        return self.roster.shown_names.get(key) or f"{key[:8]}…"

    def run(self) -> None:
        """Serve until `stop`, then tell the others that this board leaves."""
        self.rpc.loop.run()
        self.peers.leave()

    def stop(self) -> None:
        """End `run`. Safe in a signal handler and from any thread."""
        self.rpc.loop.stop()

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        self.rpc.close()

    def _settle_invites(self) -> None:
        try:
            self.invites.settle(self._moment())
        except PicoedgeError as error:
            self.rpc.log(str(error))
        self.rpc.loop.after(_SETTLE_S, self._settle_invites)

    def _is_invited(self, key: str) -> bool:
        return self.invites.is_open(key, self._moment())

    def _authorize(self, sender: Sender, kind: str) -> None:
        """Members may send anything, the one-time key of an invite a single `join`."""
        if self.roster.is_allowed(sender):
            return
        if kind != JOIN or not self._is_invited(sender):
            raise ProtocolError("a key that is not of the cluster asks")
        self.rpc.loop.after(JOINED_S, lambda: self.rpc.server.disconnect_key(sender))

    def _join(self, peer: str, body: Body) -> Body:
        fields = Fields(body)
        public, name = fields.text("public", len(peer)), fields.text("name", 2 * MAX_NAME)
        if self.roster.is_allowed(peer):
            raise AccessError("this key is in the cluster already", "picoedge run")
        signing = load_signing_key(self.identity.folder)
        admit(self.roster_file, signing, str(peer), public, name, self._moment())
        self.rpc.log(f"{self.name_of(public)} joined the cluster")
        self.peers.roster_changed()
        return {"roster": self.roster.to_json()}
