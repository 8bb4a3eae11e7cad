"""Lines for the user of a model over boards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from picoedge.sanitize import one_line

if TYPE_CHECKING:
    from picoedge.progress import Progress


class Teller:
    """Writes lines to stderr, each on a line of its own."""

    def __init__(self, progress: Progress | None) -> None:
        """`progress` may have drawn on the line where the next one begins."""
        self._progress = progress
        self._clear: Callable[[], None] = lambda: None

    def __call__(self, line: str) -> None:
        """Write a line."""
        self._clear()
        if self._progress is not None:
            self._progress("", 0, 0)
        print(one_line(line), file=sys.stderr, flush=True)

    @contextmanager
    def clearing(self, clear: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `clear` is called before each line."""
        before, self._clear = self._clear, clear
        try:
            yield
        finally:
            self._clear = before
