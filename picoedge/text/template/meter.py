"""How much work and memory a chat template may take, counted in units of about one character."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any

from picoedge.errors import TextError

NODE = 16
"""units of a list item, a loop step or a call: what the objects behind them weigh"""

_BASE_UNITS = 4 << 20
_UNITS_PER_INPUT = 200
_MAX_UNITS = 128 << 20
_TIME_S = 5.0
_REMEDY = "the template may be hostile; give the prompt without one"
_CONTAINERS: tuple[type[Collection[Any]], ...] = (
    list, tuple, type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip


def tree_size(value: Any, limit: int = _MAX_UNITS) -> int:
    """Units of a value, each item counted wherever it appears; stops counting past `limit`.

    Lists that share their items take no memory, and yet grow exponentially when they are
    compared or printed: hence a tree.
    """
    total, waiting = 0, [value]
    while waiting and total <= limit:
        item = waiting.pop()
        total += NODE
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 3
        elif isinstance(item, dict):
            waiting.extend(chain(item.keys(), item.values()))
        elif isinstance(item, _CONTAINERS):
            waiting.extend(item)
    return total


class Meter:
    """Counts down while one template renders. Raises TextError at nothing left, or too late.

    Values are paid for when they are made, so none is ever too large to be compared or printed.
    """

    def __init__(self, input_units: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = min(_BASE_UNITS + _UNITS_PER_INPUT * input_units, _MAX_UNITS)
        self._clock = clock
        self._deadline = clock() + _TIME_S

    def spend(self, units: int) -> None:
        """Pay for work about to be done, or for a value of this size."""
        self._left -= max(units, 0)
        if self._left < 0:
            raise TextError("the chat template asks for too much work or memory", _REMEDY)
        if self._clock() > self._deadline:
            raise TextError(f"the chat template takes longer than {_TIME_S:.0f} s", _REMEDY)

    def weigh(self, *values: Any) -> None:
        """Pay for the size of values."""
        for value in values:
            self.spend(tree_size(value, self._left))

    def hold(self, value: Any) -> Any:
        """Pay for a new value and return it; an iterator is read into a list."""
        if isinstance(value, Iterator):
            value = list(self.each(value))
        self.weigh(value)
        return value

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same items, each a step paid for."""
        for value in values:
            self.spend(NODE)
            yield value
