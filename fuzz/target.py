"""A parser to try, and what counts as its fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

Run = Callable[[bytes], object]  # feeds an input to the parser
Open = Callable[[Path], Run]  # makes what the parser needs in an empty folder
Mutate = Callable[[Random, Sequence[bytes]], bytes]  # an input, from the valid samples

HANG_S = 5.0
EXTRA_BYTES = 50 << 20  # of memory, beside what an input itself takes


@dataclass(frozen=True)
class Target:
    """A format. `samples` makes valid inputs; `modules`: files of picoedge that parse it.

    An input is a file's or a message's bytes. To refuse it is a PicoedgeError; anything else that
    `Run` raises is a fault, and so is a process that ends, more than HANG_S seconds, and more
    than EXTRA_BYTES of memory.
    """

    name: str
    open: Open
    samples: Callable[[], Sequence[bytes]]
    mutate: Mutate
    modules: tuple[str, ...] = ()
    weight: int = 1  # how many inputs of a run it gets, relative to others
    also: tuple[type[Exception], ...] = field(default=())  # of callers that expect them


def make_input(target: Target, samples: Sequence[bytes], seed: int, number: int) -> bytes:
    """Input `number` of a run: the same for the same seed, in any process."""
    return target.mutate(Random(f"{target.name}:{seed}:{number}"), samples)
