"""The ledger of a board's memory: claims, each with its bytes, start and board. Pure.

An answer comes before a kept slice, a kept slice before training, and training before a measurement
of this board. A claim ends the claims that come after it, as few of them as make room; it never
ends a claim of its own rank or before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class Use(Enum):
    """Uses of memory, first served first."""

    ANSWER = "answer"
    KEPT = "kept"
    TRAINING = "training"
    MEASURING = "measuring"

    def comes_before(self, other: Use) -> bool:
        """Whether a claim of this use ends one of the other."""
        order = list(Use)
        return order.index(self) < order.index(other)


@dataclass(frozen=True)
class Claim:
    """`nbytes` of the board's memory that `user` has since `since_s`, for the board `holder`."""

    user: object
    use: Use
    nbytes: int
    since_s: float
    holder: str = ""
    model: str = ""

    def to_json(self, now_s: float) -> dict[str, Any]:
        """Plain values, with the claim's age instead of its beginning."""
        return {
            "use": self.use.value,
            "bytes": self.nbytes,
            "holder": self.holder,
            "model": self.model,
            "age_s": round(max(0.0, now_s - self.since_s)),
        }


@dataclass
class MemoryLedger:
    """The claims on this board's memory; each user has at most one."""

    claims: list[Claim] = field(default_factory=list)

    def of(self, user: object) -> Claim | None:
        """The claim of a user."""
        return next((claim for claim in self.claims if claim.user == user), None)

    def room(self, use: Use, budget: int) -> int:
        """Bytes of `budget` that a claim of this use may have."""
        return max(0, budget - sum(c.nbytes for c in self.claims if not use.comes_before(c.use)))

    def claim(self, new: Claim, budget: int) -> list[Claim] | None:
        """Enter a claim; returns those that must end for it. None, and nothing done: no room.

        What must end is struck out at once: its memory is promised to the new claim, which may
        take it when it is free.
        """
        before = [claim for claim in self.claims if claim.user != new.user]
        if new.nbytes > MemoryLedger(before).room(new.use, budget):
            return None
        ended: list[Claim] = []
        left = sorted(
            (claim for claim in before if new.use.comes_before(claim.use)),
            key=lambda claim: (list(Use).index(claim.use), -claim.since_s),
        )
        while left and new.nbytes + sum(c.nbytes for c in before) > budget:
            last = left.pop()  # of the least use, the oldest
            before.remove(last)
            ended.append(last)
        self.claims = [*before, new]
        return ended

    def replace(self, kind: type, found: Iterable[Claim]) -> None:
        """Enter the claims found of users of that kind, for all that were: none is refused."""
        self.claims = [claim for claim in self.claims if not isinstance(claim.user, kind)]
        self.claims.extend(found)

    def nbytes_of(self, kind: type) -> int:
        """Bytes of all claims of users of that kind."""
        return sum(claim.nbytes for claim in self.claims if isinstance(claim.user, kind))

    def turn(self, user: object, new: Claim) -> None:
        """A claim becomes another, of no more bytes: what it does not need is free."""
        old = self.of(user)
        assert old is not None
        self.claims = [claim for claim in self.claims if claim.user not in (user, new.user)]
        self.claims.append(replace(new, nbytes=min(old.nbytes, new.nbytes)))

    def release(self, user: object) -> None:
        """Strike out a user's claim. Unknown users are ignored."""
        self.claims = [claim for claim in self.claims if claim.user != user]
