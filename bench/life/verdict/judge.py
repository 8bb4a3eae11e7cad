"""From what was asked and seen to the figures of the rows. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WHOLE, FAILED, CUT = "whole", "failed", "cut"


@dataclass(frozen=True)
class Asked:
    """One question. `outcome`: a whole answer, a failure, or cut off by a person.

    `calm`: nothing was wrong, and the last answer came over all boards.
    """

    at_s: float
    event: str
    moment: str  # when it was asked: "during", "after", "strength", "calm", "second"
    outcome: str
    same: bool
    boards: int
    first_s: float | None
    total_s: float
    calm: bool = False
    text: str = ""
    expected: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def judge(
    text: str, expected: str, error: str, is_complete: bool, is_cut: bool
) -> tuple[str, bool]:
    """(outcome, whether the text is the undisturbed one, as far as it goes)."""
    if is_cut:
        return CUT, expected.startswith(text.removesuffix("\n"))
    if error or not is_complete:
        return FAILED, expected.startswith(text)
    return WHOLE, text == expected


def answered_part(asked: Sequence[Asked]) -> float:
    """Questions answered whole ÷ asked; a question that a person cut is not counted.

    No event leaves fewer boards than can hold the model, so a refusal is a failure.
    """
    counted = [one for one in asked if one.outcome != CUT]
    good = [one for one in counted if one.outcome == WHOLE]
    return len(good) / len(counted) if counted else 0.0


def same_part(asked: Sequence[Asked]) -> float:
    """Texts equal to the undisturbed ones ÷ answered."""
    answered = [one for one in asked if one.outcome in (WHOLE, CUT)]
    return sum(one.same for one in answered) / len(answered) if answered else 0.0


def first_token_ratio(asked: Sequence[Asked]) -> tuple[float, float]:
    """(99th percentile ÷ median, worst ÷ median) of calm questions' first tokens."""
    times = sorted(one.first_s for one in asked if one.calm and one.first_s is not None)
    if not times:
        return float("nan"), float("nan")
    median = statistics.median(times)
    return times[min(len(times) - 1, int(0.99 * len(times)))] / median, times[-1] / median
