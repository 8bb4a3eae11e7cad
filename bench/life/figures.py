"""From lives that are over to the rows of the bench `weeks`, each with what stands out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.life.verdict.judge import (
    CUT,
    Asked,
    answered_part,
    calm_times,
    first_token_ratio,
    refusals,
    same_part,
)
from bench.life.verdict.watch import Grown, why_too_few
from bench.report import Measured

MB = 1 << 20
TOLD = 10  # faults that a note names; the others are in the folder of --keep


@dataclass(frozen=True)
class Lived:
    """A life that is over: its own account, growth by process, what it left, what it said badly.

    `broken`: why the bench itself could not go on with it, "" where it could.
    """

    seed: int
    asked: Sequence[Asked] = ()
    strengths: Sequence[tuple[str, float]] = ()
    account: Mapping[str, Any] = field(default_factory=dict)
    grown: Sequence[Grown] = ()
    leaks: Sequence[str] = ()
    bad_words: Sequence[str] = ()
    broken: str = ""


def rows(all_of: Sequence[Lived]) -> list[Measured]:
    """The figures of lives: all questions together, the worst of the rest."""
    return [
        _answers(all_of), _same_text(all_of), _strength(all_of), _first_token(all_of),
        _growth(all_of), _leaks(all_of), _tracebacks(all_of),
    ]  # fmt: skip


def _answers(all_of: Sequence[Lived]) -> Measured:
    """No number where a life was broken off: then the bench itself has failed."""
    asked = [one for each in all_of for one in each.asked]
    parts = tuple(answered_part(each.asked) for each in all_of)
    raw = {str(each.seed): dict(each.account) for each in all_of}
    events = sum(len(each.strengths) for each in all_of)
    broken = [f"seed {each.seed} broke off: {each.broken}" for each in all_of if each.broken]
    bad = [_question(seed, one) for seed, one in _asked(all_of) if not _is_well(one)]
    note = (
        f"{len(asked)} questions of {events} events, {refusals(asked)} refused where no plan held "
        f"the model"
    )
    value = float("nan") if broken else answered_part(asked)
    return Measured("weeks_answers", value, parts, raw, _note([note, *broken, *bad]))


def _is_well(one: Asked) -> bool:
    return one.is_good or one.outcome == CUT


def _asked(all_of: Sequence[Lived]) -> Iterator[tuple[int, Asked]]:
    for each in all_of:
        for one in each.asked:
            yield each.seed, one


def _question(seed: int, one: Asked) -> str:
    return f"seed {seed}, {one.at_s:.0f} s, {one.event}, {one.moment}: {one.outcome} {one.error}"


def _note(parts: Sequence[str]) -> str:
    """The first of them, a line each."""
    more = len(parts) - TOLD - 1
    return "\n  ".join([*parts[: TOLD + 1], *([f"and {more} more"] if more > 0 else [])])


def _same_text(all_of: Sequence[Lived]) -> Measured:
    asked = [one for each in all_of for one in each.asked]
    other = [
        f"{_question(seed, one)}: {one.text!r}, not {one.expected!r}"
        for seed, one in _asked(all_of)
        if not one.same
    ]
    return Measured("weeks_same_text", same_part(asked), (), {}, _note(other))


def _strength(all_of: Sequence[Lived]) -> Measured:
    seen = sorted(
        ((took, each.seed, event) for each in all_of for event, took in each.strengths),
        reverse=True,
    )
    if not seen:
        return Measured("weeks_full_strength_s", float("nan"), (), {}, "nothing has happened")
    worst = [f"{took:.0f} s after {event}, seed {seed}" for took, seed, event in seen[:3]]
    times = tuple(took for took, _, _ in seen)
    return Measured("weeks_full_strength_s", times[0], times, {}, "; ".join(worst))


def _first_token(all_of: Sequence[Lived]) -> Measured:
    ratio, worst = first_token_ratio([one for _, one in _asked(all_of)])
    parts = tuple(first_token_ratio(each.asked)[0] for each in all_of)
    calm = [(one.first_s or 0.0, seed, one) for seed, one in _asked(all_of) if one.is_calm]
    slowest = [
        f"{first:.2f} s: seed {seed}, {one.at_s:.0f} s, {one.event}"
        for first, seed, one in sorted(calm, key=lambda each: -each[0])[:5]
    ]
    times = calm_times([one for _, one in _asked(all_of)])
    middle = f"{len(times)} questions, median {times[len(times) // 2]:.2f} s" if times else "none"
    note = _note([f"worst ÷ median {worst:.2f}; {middle}", *slowest])
    return Measured("weeks_first_token_ratio", ratio, parts, {}, note)


def _leaks(all_of: Sequence[Lived]) -> Measured:
    leaks = [f"seed {each.seed}: {leak}" for each in all_of for leak in each.leaks]
    return Measured("weeks_leaks", len(leaks), (), {"leaks": leaks}, _note(leaks))


def _tracebacks(all_of: Sequence[Lived]) -> Measured:
    bad = [f"seed {each.seed}: {words}" for each in all_of for words in each.bad_words]
    return Measured("weeks_tracebacks", len(bad), (), {"bad": bad}, _note(bad))


def _growth(all_of: Sequence[Lived]) -> Measured:
    """The most that a process grew; no number where too few have lived long enough."""
    grown = sorted(
        ((each.seed, str(one), one.n_bytes / MB) for each in all_of for one in each.grown),
        key=lambda one: -one[2],
    )
    raw, values = {"growths": grown}, tuple(mb for _, _, mb in grown)
    why = why_too_few({each.seed: each.grown for each in all_of})
    if why:
        return Measured("weeks_growth_mb", float("nan"), values, raw, why)
    seed, name, worst = grown[0]
    note = f"{len(grown)} processes; the worst: {name}, seed {seed}"
    return Measured("weeks_growth_mb", worst, values, raw, note)
