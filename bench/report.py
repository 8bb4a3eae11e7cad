"""Rows, whether they meet what they must, the table and the closing JSON line."""

from __future__ import annotations

import dataclasses
import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_SIGNS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}
_RANGE = re.compile(r"([\d.]+)-([\d.]+)")


@dataclass(frozen=True)
class Measured:
    """What a measurement gives for one row: its figure, the figure of each round, the details."""

    name: str
    value: float
    runs: tuple[float, ...]
    raw: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table. `must` is like ">= 1.3", "<= 1.1", "== 20" or "0.99-1.005"."""

    name: str
    value: float
    must: str
    aim: float | None
    ok: bool
    runs: tuple[float, ...]


def meets(value: float, must: str) -> bool:
    """Whether `value` is as `must` says; never if it is no number."""
    text = must.strip()
    for sign, compare in _SIGNS.items():
        if text.startswith(sign):
            return bool(compare(value, float(text.removeprefix(sign))))
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a condition: {must!r}")
    return float(found[1]) <= value <= float(found[2])


def row(measured: Measured, must: str, aim: float | None) -> Row:
    """The line of a measurement; judged before it is rounded."""
    return Row(
        measured.name,
        round(measured.value, 6),
        must,
        aim,
        meets(measured.value, must),
        tuple(round(run, 6) for run in measured.runs),
    )


def table(rows: Sequence[Row], notes: dict[str, str]) -> str:
    """A Markdown table, a line a row; then the notes."""
    lines = ["| row | value | must | aim | ok | runs |", "|---|---:|---|---|---|---|"]
    for line in rows:
        runs = " ".join(f"{run:.4g}" for run in line.runs)
        aim = "" if line.aim is None else f"{line.aim:g}"
        verdict = "yes" if line.ok else "NO"
        lines.append(
            f"| {line.name} | {line.value:.4g} | {line.must} | {aim} | {verdict} | {runs} |"
        )
    return "\n".join([*lines, "", *(f"{name}: {note}" for name, note in notes.items() if note)])


def closing_line(
    bench: str, commit: str, machine: dict[str, Any], rows: Sequence[Row], raw: dict[str, Any]
) -> str:
    """The JSON object that ends a run, on one line."""
    return json.dumps(
        {
            "bench": bench,
            "commit": commit,
            "machine": machine,
            "rows": [dataclasses.asdict(line) for line in rows],
            "raw": raw,
        }
    )
