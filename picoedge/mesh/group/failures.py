"""Failed boards of a group: which, why, and whether that concerns the caller."""

from __future__ import annotations

from collections.abc import Callable, Collection

from picoedge.errors import BoardLostError, ProtocolError

# Does the failure of this rank concern a board that waits for these ranks?
FailureRule = Callable[[int, Collection[int]], bool]


class BoardFaultError(BoardLostError, ProtocolError):
    """A board of the group sent what the protocol does not allow; it counts as failed."""


class FailureBoard:
    """Failures by rank, judged by `rule`. `names` are the boards' names for people, by rank."""

    def __init__(self, rule: FailureRule) -> None:
        self._rule = rule
        self.names: dict[int, str] = {}
        self._failures: dict[int, BoardLostError] = {}

    def add(self, rank: int, why: str) -> None:
        """Record that a board has failed; the first reason stays."""
        name = self.names[rank]
        self.add_error(rank, BoardLostError(f"{name} is lost: {why}", board=name))

    def add_error(self, rank: int, error: BoardLostError) -> None:
        """Record a failure as the error to raise where it matters; the first stays."""
        self._failures.setdefault(rank, error)

    def remove(self, rank: int) -> None:
        """Forget a rank, its name and its failure."""
        self.names.pop(rank, None)
        self._failures.pop(rank, None)

    def concerning(self, ranks: Collection[int]) -> BoardLostError | None:
        """The first failure that concerns a board waiting for `ranks`, by the rule."""
        for rank, error in self._failures.items():
            if self._rule(rank, ranks):
                return error
        return None

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error to raise where a board breaks the protocol."""
        name = self.names[rank]
        return BoardFaultError(
            f"{name} {what}", "update picoedge there; if that is not it, revoke its key", board=name
        )
