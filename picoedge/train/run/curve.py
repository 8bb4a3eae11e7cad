"""The curve of a run as plain text: losses over steps. Pure.

 loss
6.9 |*
    |**
    | o**
3.1 |   **o***o**
    +------------
     1       2000 steps    * training  o held out
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Points = Sequence[tuple[int, float]]

WIDTH, HEIGHT = 64, 12
_LEAST_SPAN = 1e-6


def curves_of(lines: Iterable[Mapping[str, Any]]) -> tuple[Points, Points]:
    """(training, held out) of the lines of a log: steps and losses, each in order."""
    training, held_out = {}, {}
    for line in lines:
        if "loss" in line:
            training[line["step"]] = float(line["loss"])
        if "held_out" in line:
            held_out[line["step"]] = float(line["held_out"])
    return sorted(training.items()), sorted(held_out.items())


def draw_curve(
    training: Points, held_out: Points, width: int = WIDTH, height: int = HEIGHT
) -> list[str]:
    """The lines of the picture; none where there are too few points."""
    if len(training) < 2:
        return []
    first, last = training[0][0], training[-1][0]
    smooth = _averages(training, first, last, width)
    marks = [(column, loss, "*") for column, loss in smooth.items()]
    marks += [
        (_column(step, first, last, width), loss, "o")
        for step, loss in held_out
        if first <= step <= last
    ]
    top, bottom = max(loss for _, loss, _ in marks), min(loss for _, loss, _ in marks)
    span = max(top - bottom, _LEAST_SPAN)
    rows = [[" "] * width for _ in range(height)]
    for column, loss, mark in marks:
        rows[round((top - loss) / span * (height - 1))][column] = mark
    labels = {0: f"{top:.2f}", height - 1: f"{bottom:.2f}"}
    margin = max(map(len, labels.values()))
    lines = [
        f"{labels.get(i, '').rjust(margin)} |{''.join(row)}".rstrip() for i, row in enumerate(rows)
    ]
    ends = f"{first}".ljust(width - len(str(last))) + f"{last}"
    legend = "* training loss" + ("   o held out" if held_out else "") + "   over steps"
    pad = " " * margin
    return [*lines, f"{pad} +{'-' * width}", f"{pad}  {ends}", f"{pad}  {legend}"]


def _column(step: int, first: int, last: int, width: int) -> int:
    return min(width - 1, (step - first) * width // (last - first + 1))


def _averages(points: Points, first: int, last: int, width: int) -> dict[int, float]:
    """The mean loss of the steps of each column."""
    sums: dict[int, list[float]] = {}
    for step, loss in points:
        sums.setdefault(_column(step, first, last, width), []).append(loss)
    return {column: sum(losses) / len(losses) for column, losses in sums.items()}
