"""Which boards the network lets through to each other at a moment. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Reach:
    """Cut links and boards that are off, of so many boards counted from 0."""

    boards: int
    _cut: set[frozenset[int]] = field(default_factory=set)
    _off: set[int] = field(default_factory=set)

    def part(self, one: int, other: int) -> None:
        """The link of two boards is cut."""
        self._cut.add(frozenset((one, other)))

    def join(self, one: int, other: int) -> None:
        """It is whole again."""
        self._cut.discard(frozenset((one, other)))

    def cut(self, board: int) -> None:
        """All links of a board are cut."""
        for other in range(self.boards):
            self.part(board, other)

    def heal(self, board: int) -> None:
        """They are whole again."""
        for other in range(self.boards):
            self.join(board, other)

    def turn_off(self, board: int) -> None:
        """A board has no power."""
        self._off.add(board)

    def turn_on(self, board: int) -> None:
        """It has."""
        self._off.discard(board)

    def of(self, board: int) -> frozenset[int]:
        """Boards that it reaches directly, and itself."""
        others = {other for other in range(self.boards) if other not in self._off}
        return frozenset({board} | {b for b in others if frozenset((board, b)) not in self._cut})
