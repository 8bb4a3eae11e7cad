"""Lives side by side share a machine, as real boards do not: whose question had it to itself."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class Neighbours:
    """What all lives are busy with; each names itself by any key."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: Counter[Hashable] = Counter()
        self._begun: Counter[Hashable] = Counter()

    @contextmanager
    def busy(self, life: Hashable) -> Iterator[Callable[[], bool]]:
        """A question of this life; what it gives says whether no other one has asked meanwhile."""
        with self._changed:
            self._busy[life] += 1
            self._begun[life] += 1
            was_alone, others = self._is_quiet(life), self._others_begun(life)
        try:
            yield lambda: was_alone and self._others_begun(life) == others
        finally:
            with self._changed:
                self._busy[life] -= 1
                self._changed.notify_all()

    def await_quiet(self, life: Hashable, timeout_s: float) -> None:
        """Until no other life asks, or for so long: they are not held up."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_quiet(life), timeout_s)

    def _is_quiet(self, life: Hashable) -> bool:
        return not any(n for other, n in self._busy.items() if other != life)

    def _others_begun(self, life: Hashable) -> int:
        return sum(n for other, n in self._begun.items() if other != life)
