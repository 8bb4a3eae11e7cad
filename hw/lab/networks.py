"""What joins boards, as boards and tests handle it: links, and the port of each board."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hw.lab.links import LinkShape

Way = tuple[int, int]  # from one board to another, by their indices


class Network(Protocol):
    """A bridge or a switch between boards."""

    def shape(self, ways: Sequence[Way], shape: LinkShape) -> None:
        """Shape ways anew."""

    def cut(self, ways: Sequence[Way], cut: bool) -> None:
        """Cut or heal ways."""

    def limit_port(self, board: int, bytes_per_s: float | None) -> None:
        """Limit what all of a board's links share, each direction by itself."""

    def counts(self) -> dict[str, int]:
        """Frames until now, by what became of them."""

    def close(self) -> None:
        """Remove it."""


class Link:
    """The connection between two boards: one way, or both."""

    def __init__(self, network: Network, ways: Sequence[Way]) -> None:
        self._network, self._ways = network, ways

    def shape(self, shape: LinkShape) -> None:
        """Give it another delay, rate, jitter and loss, now. Raises LabError on plain links."""
        self._network.shape(self._ways, shape)

    def cut(self) -> None:
        """Lose all frames sent over it, in silence."""
        self._network.cut(self._ways, True)

    def heal(self) -> None:
        """Undo the cut; what was lost stays lost."""
        self._network.cut(self._ways, False)


class Port(Link):
    """All links of one board at once, and what they share."""

    def __init__(self, network: Network, board: int, boards: int) -> None:
        others = [index for index in range(boards) if index != board]
        super().__init__(network, [way for o in others for way in ((board, o), (o, board))])
        self._board = board

    def limit(self, bytes_per_s: float | None) -> None:
        """What goes in and what goes out a second; None: no limit. Raises LabError if plain."""
        self._network.limit_port(self._board, bytes_per_s)
