"""Limit of the work and memory of a chat template, in units of about one character."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import wraps
from itertools import chain
from typing import Any

from picoedge.errors import TextError

NODE = 16
"""units of a list item, a loop step or a call: about the bytes of the objects behind them"""

# Templates in use take at most 10 units per unit of input, and 0.2 s for 200 messages.
_BASE_UNITS = 4 << 20
_UNITS_PER_INPUT = 200
_MAX_UNITS = 128 << 20
_TIME_S = 5.0
_REMEDY = "the template may be hostile; give the prompt without one"
_CONTAINERS: tuple[type[Collection[Any]], ...] = (
    list, tuple, type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip


def tree_size(value: Any, limit: int = _MAX_UNITS) -> int:
    """Units of a value, an item counted at each place it appears; stops counting past `limit`.

    Lists that share items are small in memory, but grow exponentially when compared or printed.
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
    """Budget of one rendering: units and seconds. Raises TextError once either is used up.

    Values are paid for when they are made, so none is ever too large to be compared or printed.
    """

    def __init__(self, input_units: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.refill(input_units)

    def refill(self, input_units: int) -> None:
        """Begin a rendering of `input_units` of template and variables."""
        self._left = min(_BASE_UNITS + _UNITS_PER_INPUT * input_units, _MAX_UNITS)
        self._deadline = self._clock() + _TIME_S

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
        """Pay for a new value and return it; an iterator becomes a list."""
        if isinstance(value, Iterator):
            value = list(self.each(value))
        self.weigh(value)
        return value

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same items, one step paid for each."""
        for value in values:
            self.spend(NODE)
            yield value

    def paid(self, text: str) -> str:
        """`text`, paid for."""
        self.spend(NODE + len(text))
        return text

    def output(self, value: Any) -> str:
        """A value as text, paid for."""
        self.weigh(value)
        return self.paid(str(value))

    def stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, one step paid for each call."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.spend(NODE)
            return function(*args, **kwargs)

        return call
