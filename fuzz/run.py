"""Tries the inputs of many targets in a few processes at a time, and tells how far it is."""

from __future__ import annotations

import gc
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fuzz.child import Child, Part
from fuzz.target import Target
from fuzz.trial import Fault

LOOK_S = 0.5
MOST_IN_A_PART = 2000  # inputs: targets take turns, so that a run that is stopped tried all
MOST_KEPT = 20  # faults of a target, of different kinds


@dataclass
class Tally:
    """What a run has tried and found, by the names of targets."""

    tried: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Inputs tried by processes that have ended."""
        return sum(self.tried.values())

    @property
    def wrong(self) -> int:
        """Kinds of faults."""
        return sum(map(len, self.faults.values()))

    def add(self, fault: Fault) -> bool:
        """Keep a fault; False where one of its kind is known."""
        known = self.faults.setdefault(fault.target, [])
        if len(known) >= MOST_KEPT or any(each.kind == fault.kind for each in known):
            return False
        known.append(fault)
        return True


def parts_of(targets: Sequence[Target], inputs: int, seed: int) -> list[Part]:
    """At least `inputs` of the targets together, as they weigh, in the order to be tried."""
    total = sum(target.weight for target in targets)
    found: list[tuple[int, Part]] = []
    for target in targets:
        share = max(1, -(-inputs * target.weight // total))
        for turn, start in enumerate(range(0, share, MOST_IN_A_PART)):
            numbers = range(start, min(share, start + MOST_IN_A_PART))
            found.append((turn, Part(target, seed, numbers)))
    return [part for _, part in sorted(found, key=lambda each: each[0])]


def run_parts(
    parts: Sequence[Part],
    jobs: int,
    seconds: float,
    found: Callable[[Fault], None],
    progress: Callable[[int, int], None],
) -> Tally:
    """Try all, for at most `seconds` or until it is interrupted.

    `found` is told of each kind of fault, `progress` of the inputs tried and the kinds of faults.
    """
    tally = Tally(dict.fromkeys((part.target.name for part in parts), 0))
    waiting, running, end_s = deque(parts), list[Child](), time.monotonic() + seconds
    gc.freeze()  # the children share loaded modules

    def close(child: Child, *, is_stopped: bool = False) -> None:
        running.remove(child)
        tally.tried[child.part.target.name] += child.tried
        faults, rest = child.close(is_stopped=is_stopped)
        for fault in faults:
            if tally.add(fault):
                found(fault)
        if rest is not None:
            tally.tried[child.part.target.name] += 1
            waiting.appendleft(rest)

    try:
        while (waiting or running) and time.monotonic() < end_s:
            while waiting and len(running) < jobs:
                running.append(Child(waiting.popleft()))
            select.select([child.handle for child in running], [], [], LOOK_S)
            for child in [each for each in running if each.has_ended()]:
                close(child)
            progress(tally.count + sum(child.tried for child in running), tally.wrong)
    except KeyboardInterrupt:
        pass
    finally:
        for child in list(running):
            child.kill()
            close(child, is_stopped=True)
        gc.unfreeze()
    return tally
