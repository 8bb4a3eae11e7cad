"""The other boards as this one hears them: silence in ticks, incarnations, what they offer.

Silence is counted in this board's own ticks, so a board that was stopped and wakes forgives its own
stop before it handles the first frame that was queued meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from picoedge.mesh.consensus.configuration import BoardId, Role
from picoedge.mesh.consensus.messages import Beat

NEVER = 1 << 30  # ticks of silence of a board that was not heard since this one started


@dataclass(frozen=True, slots=True)
class TickTiming:
    """Ticks: heartbeats of this process (250 ms in a daemon)."""

    unheard: int = 3  # of silence until others are asked to relay
    silence: int = 4  # until a board is suspected: one or two beats may be late on a busy board
    stuck: int = 8  # without progress of any member until something unnamed is suspected
    tally: int = 2  # after `Prepare`, until the silent are not waited for
    agreed: int = 3  # how long a pre-vote counts
    back_off: int = 2  # between own ballots, and as much again for each rank
    relay: int = 6  # how long a relay lasts after the last complaint
    route: int = 12  # until a relay in use is made permanent, or one not needed taken away


@dataclass(slots=True)
class Peer:
    """One key. `silent`: ticks since a frame came directly; `quiet`: directly or by a relay."""

    incarnation: int
    silent: int = 0
    quiet: int = 0
    beat: Beat | None = None


class Hearing:
    """All boards ever heard, by key, and the revoked keys."""

    def __init__(self, me: BoardId, timing: TickTiming) -> None:
        self.me, self.timing = me, timing
        self.peers: dict[str, Peer] = {}
        self.revoked: set[str] = set()
        self.ticks = 0  # since this process started

    def heard(self, sender: BoardId, relayed: bool) -> bool:
        """Note a frame. False where it is to be dropped: of a revoked key, or of a past process."""
        if sender.key in self.revoked:
            return False
        peer = self.peers.get(sender.key)
        if peer is None or sender.incarnation > peer.incarnation:
            silent = NEVER if relayed else 0
            self.peers[sender.key] = Peer(sender.incarnation, silent)
            return True
        if sender.incarnation < peer.incarnation:
            return False
        peer.quiet = 0
        if not relayed:
            peer.silent = 0
        return True

    def tick(self) -> None:
        """One heartbeat interval has passed."""
        self.ticks += 1
        for peer in self.peers.values():
            peer.silent += 1
            peer.quiet += 1

    def lost(self, key: str) -> None:
        """The connection to a board has ended."""
        if key in self.peers:
            self.peers[key].silent = self.peers[key].quiet = NEVER

    def address(self, board: BoardId) -> BoardId:
        """The process that has the key now, as far as this board knows."""
        peer = self.peers.get(board.key)
        return (
            board if peer is None else BoardId(board.key, max(peer.incarnation, board.incarnation))
        )

    def present(self, key: str) -> BoardId | None:
        """The process of a key that is heard, None if it is not."""
        if key == self.me.key:
            return self.me
        peer = self.peers.get(key)
        if peer is None or key in self.revoked or peer.quiet > self.timing.silence:
            return None
        return BoardId(key, peer.incarnation)

    def hears(self, board: BoardId) -> bool:
        """Whether this very process is heard directly."""
        return board == self.me or self._quiet(board, direct=True) <= self.timing.unheard

    def is_gone(self, board: BoardId) -> bool:
        """Whether it is revoked, has restarted, or is not heard even by a relay."""
        if board == self.me:
            return False
        return self._quiet(board, direct=False) > self.timing.silence

    def _quiet(self, board: BoardId, *, direct: bool) -> int:
        peer = self.peers.get(board.key)
        if board.key in self.revoked or (peer and peer.incarnation > board.incarnation):
            return NEVER
        if peer is None:
            return self.ticks  # no board is suspected before this one has listened a while
        return peer.silent if direct else peer.quiet

    def heard_directly(self) -> frozenset[str]:
        """Keys of the boards heard directly."""
        limit = self.timing.silence
        keys = {key for key, peer in self.peers.items() if peer.silent <= limit}
        return frozenset(keys - self.revoked | {self.me.key})

    def witnesses(self) -> list[BoardId]:
        """Boards that are heard and offer to be witnesses, the longest up first."""
        found = [
            (-peer.beat.age, key) for key, peer in self.peers.items()
            if peer.beat and peer.beat.role is Role.WITNESS and self.present(key)
        ]  # fmt: skip
        return [BoardId(key, self.peers[key].incarnation) for _, key in sorted(found)]

    def is_witness(self, key: str) -> bool:
        """Whether the board of a key offers only to vote."""
        peer = self.peers.get(key)
        return bool(peer and peer.beat and peer.beat.role is Role.WITNESS)
