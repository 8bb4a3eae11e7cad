"""From what was asked and seen to the figures of the rows. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WHOLE, FAILED, CUT, REFUSED = "whole", "failed", "cut", "refused"
MOST_REFUSED = 0.05  # of the questions: more refusals than that are failures
_CLEAR = re.compile(r"error: .+ \(.+\)")  # the fault, and the remedy


@dataclass(frozen=True)
class Asked:
    """One question. `outcome`: a whole answer, a failure, refused, or cut off by a person.

    `calm`: nothing was wrong, and the last answer came over all boards. `held`: the boards that
    the network let through could hold the model.
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
    held: bool = True

    @property
    def is_good(self) -> bool:
        """Answered whole, or refused where there was no way."""
        return self.outcome == WHOLE or self.is_excused

    @property
    def is_calm(self) -> bool:
        """Whether it tells how soon a first token comes where nothing is wrong."""
        return self.calm and self.outcome == WHOLE and self.first_s is not None

    @property
    def is_excused(self) -> bool:
        """Refused where no plan held the model."""
        return self.outcome == REFUSED and not self.held

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def judge(
    text: str, expected: str, error: str, is_complete: bool, is_cut: bool
) -> tuple[str, bool]:
    """(outcome, whether the text is the undisturbed one, as far as it goes)."""
    if is_cut:
        return CUT, expected.startswith(text.removesuffix("\n"))
    if is_complete and _CLEAR.fullmatch(error):
        return REFUSED, expected.startswith(text)
    if error or not is_complete:
        return FAILED, expected.startswith(text)
    return WHOLE, text == expected


def answered_part(asked: Sequence[Asked]) -> float:
    """Questions answered whole ÷ asked; a question that a person cut is not counted.

    A clear refusal counts where no plan over the boards that the network let through held the
    model, up to MOST_REFUSED of the questions.
    """
    counted = [one for one in asked if one.outcome != CUT]
    whole = sum(one.outcome == WHOLE for one in counted)
    excused = min(refusals(counted), int(MOST_REFUSED * len(counted)))
    return (whole + excused) / len(counted) if counted else 0.0


def refusals(asked: Sequence[Asked]) -> int:
    """How many were refused where there was no way."""
    return sum(one.is_excused for one in asked)


def same_part(asked: Sequence[Asked]) -> float:
    """Texts equal to the undisturbed ones ÷ answered."""
    answered = [one for one in asked if one.outcome in (WHOLE, CUT)]
    return sum(one.same for one in answered) / len(answered) if answered else 0.0


def calm_times(asked: Sequence[Asked]) -> list[float]:
    """Seconds to the first token of calm questions, in order."""
    return sorted(one.first_s for one in asked if one.is_calm and one.first_s)


def first_token_ratio(asked: Sequence[Asked]) -> tuple[float, float]:
    """(99th percentile ÷ median, worst ÷ median) of calm questions' first tokens."""
    times = calm_times(asked)
    if not times:
        return float("nan"), float("nan")
    median = statistics.median(times)
    return times[min(len(times) - 1, int(0.99 * len(times)))] / median, times[-1] / median
