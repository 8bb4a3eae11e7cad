"""Progress reports of long work."""

from __future__ import annotations

import functools
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the stage ("packing"), the amount done, and the whole amount (0: unknown).

With "" the stage is over.
"""


def no_progress(stage: str, done: int, total: int) -> None:
    """For callers that show nothing."""


def one_stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    """`progress` for one stage of the work; None where there is none."""
    return None if progress is None else functools.partial(progress, stage)
