"""Which boards of a session are lost, why, and to whom that matters."""

from __future__ import annotations

from collections.abc import Collection

from picoedge.errors import BoardLostError, ProtocolError
from picoedge.mesh.transport.frames import HUB


class BoardFaultError(BoardLostError, ProtocolError):
    """A board of the session sent what makes no sense: it is lost to the session."""


class Losses:
    """As the board of rank `rank` sees it; `names` are what people call the others, by rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.names: dict[int, str] = {}
        self._gone: dict[int, str] = {}  # why, by rank

    def add(self, rank: int, why: str) -> None:
        """That board is gone; what was said of it first counts."""
        self._gone.setdefault(rank, why)

    def of(self, ranks: Collection[int]) -> BoardLostError | None:
        """The error where a lost board matters to one that waits for these ranks.

        The hub minds any, everybody minds the hub. Of the rest, the hub will say what becomes.
        """
        for rank, why in self._gone.items():
            if rank in ranks or HUB in (rank, self._rank):
                name = self.names[rank]
                return BoardLostError(f"{name} is lost: {why}", board=name)
        return None

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error that says a board misbehaves, to be raised."""
        name = self.names[rank]
        return BoardFaultError(
            f"{name} {what}", "update picoedge there; if that is not it, revoke its key", board=name
        )
