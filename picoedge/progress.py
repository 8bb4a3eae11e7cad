"""How long work tells how far it is."""

from __future__ import annotations

import functools
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("packing"), how much is done, and of how much (0: unknown).

With "" nothing is being done: before something else is told.
"""


def no_progress(stage: str, done: int, total: int) -> None:
    """For callers that show nothing."""


def one_stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    """`progress` for one stage of the work; None where there is none."""
    return None if progress is None else functools.partial(progress, stage)
