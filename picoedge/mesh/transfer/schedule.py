"""Schedule of a transfer from many donors at once: which is asked for which item, and when.

Each donor has one item in flight and one waiting, so that its link never idles; the next goes to
the donor that has room first. That is the greedy schedule by earliest finish, and needs no estimate
to be right. Items that few donors have are asked for first (rarest first, as in BitTorrent). When
none is left to ask for, an idle donor is asked for a second copy of an item that its donor would
take longer with (hedging); the first answer counts.

No clock and no socket: an event comes in with its time, and actions go out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

QUEUE_DEPTH = 2  # one in flight, one waiting
COPIES = 2  # of one item, asked for at a time
# A donor that is asked and sends nothing for so long is set aside: its disk may take a second.
DONOR_SILENCE_S = 3.0
_GAIN = 1.2  # a second copy must come sooner by this factor: a better donor may yet become idle
_SPEED_MEMORY_S = 2.0  # time constant of the mean of a donor's speed


@dataclass(frozen=True)
class Ask:
    """Ask `donor` for `item`, after what it was asked for before."""

    donor: str
    item: str


@dataclass(frozen=True)
class Cancel:
    """Nothing more of `item` is wanted from `donor`; what still comes is ignored."""

    donor: str
    item: str


@dataclass(frozen=True)
class PauseDonor:
    """`donor` has been silent and is asked nothing until it joins again."""

    donor: str


DonorAction = Ask | Cancel | PauseDonor


@dataclass
class _Speed:
    """Bytes a second: an exponentially weighted mean."""

    nbytes: float = 0.0
    seconds: float = 0.0
    since_s: float = 0.0

    def add(self, nbytes: int, now_s: float) -> None:
        took = max(now_s - self.since_s, 0.0)
        fade = math.exp(-took / _SPEED_MEMORY_S)
        self.nbytes = self.nbytes * fade + nbytes
        self.seconds = self.seconds * fade + took
        self.since_s = now_s

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0


@dataclass
class _Donor:
    has: frozenset[str]
    asked: dict[str, float] = field(default_factory=dict)  # bytes still to come, in order
    last_received_s: float = 0.0  # when it last sent something, or was first asked
    speed: _Speed = field(default_factory=_Speed)

    def wait_s(self, item: str, now_s: float) -> float:
        """Estimated seconds until an item that it was asked for has come."""
        ahead = 0.0
        for name, nbytes in self.asked.items():
            ahead += nbytes
            if name == item:
                break
        bytes_per_s = self.speed.bytes_per_s
        stalled = now_s - self.last_received_s  # as long again, at least, as nothing has come
        return max(ahead / bytes_per_s, stalled) if bytes_per_s else math.inf


class TransferSchedule:
    """The state of one transfer. Each method takes one event and returns the actions it calls for.

    Check `is_wanted` before an item that came is used: each is used once.
    """

    def __init__(self, items: Mapping[str, int], *, silence_s: float = DONOR_SILENCE_S) -> None:
        """`items`: name -> bytes, in the order they are best fetched."""
        self._nbytes = dict(items)
        self._silence_s = silence_s
        self._missing = dict.fromkeys(items)
        self._donors: dict[str, _Donor] = {}
        self._banned: set[str] = set()
        self._queues: dict[frozenset[str], deque[str]] = {}
        self._requeue()

    # -- state -------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether all items have arrived."""
        return not self._missing

    @property
    def missing(self) -> list[str]:
        """Items that have not arrived."""
        return list(self._missing)

    def is_wanted(self, item: str) -> bool:
        """Whether an item has yet to arrive."""
        return item in self._missing

    # -- events ------------------------------------------------------------------------------------

    def joined(self, donor: str, has: Collection[str], now_s: float) -> list[DonorAction]:
        """A donor has these items: it is new, is back, or has more than before."""
        if donor in self._banned:
            return []
        self._donors.pop(donor, None)
        new = _Donor(frozenset(has) & self._nbytes.keys(), last_received_s=now_s)
        new.speed.since_s = now_s
        self._donors[donor] = new
        self._requeue()
        return self._next(now_s)

    def failed(self, donor: str, now_s: float) -> list[DonorAction]:
        """A donor sent wrong bytes: it is never asked again, and others for its items."""
        self._banned.add(donor)
        self._donors.pop(donor, None)
        self._requeue()
        return self._next(now_s)

    def refused(self, donor: str, item: str, now_s: float) -> list[DonorAction]:
        """A donor does not have an item after all."""
        if donor in self._donors:
            state = self._donors[donor]
            state.has -= {item}
            state.asked.pop(item, None)
            state.last_received_s = now_s
            self._requeue()
        return self._next(now_s)

    def received(self, donor: str, item: str, nbytes: int, now_s: float) -> None:
        """Some bytes of an item came."""
        if donor in self._donors:
            state = self._donors[donor]
            state.speed.add(nbytes, now_s)
            state.last_received_s = now_s
            if item in state.asked:
                state.asked[item] = max(state.asked[item] - nbytes, 0.0)

    def arrived(self, donor: str, item: str, now_s: float) -> list[DonorAction]:
        """An item is complete and right."""
        self._missing.pop(item, None)
        if not any(item in state.asked for state in self._donors.values()):
            self._requeue()  # it came all the same, and is not to be asked for any more
        actions: list[DonorAction] = []
        for name, state in self._donors.items():
            if item in state.asked:
                del state.asked[item]
                if name != donor:
                    actions.append(Cancel(name, item))
        return actions + self._next(now_s)

    def tick(self, now_s: float) -> list[DonorAction]:
        """Time went by: set silent donors aside, hedge slow ones."""
        silent = [
            name
            for name, donor in self._donors.items()
            if donor.asked and now_s - donor.last_received_s >= self._silence_s
        ]
        for name in silent:
            del self._donors[name]
        if silent:
            self._requeue()
        return [PauseDonor(name) for name in silent] + self._next(now_s)

    # -- actions -----------------------------------------------------------------------------------

    def _requeue(self) -> None:
        """Queue the items that no donor is asked for, by the set of donors that have them."""
        asked = {item for donor in self._donors.values() for item in donor.asked}
        holders: dict[str, list[str]] = {item: [] for item in self._missing if item not in asked}
        for name, donor in self._donors.items():
            for item in donor.has:
                if item in holders:
                    holders[item].append(name)
        self._queues = {}
        for item, names in holders.items():
            self._queues.setdefault(frozenset(names), deque()).append(item)

    def _next(self, now_s: float) -> list[DonorAction]:
        return [*self._fill(self._rarest, now_s), *self._fill(self._hedge, now_s)]

    def _fill(self, choose: Callable[[str, float], str | None], now_s: float) -> list[DonorAction]:
        """Ask for items in turn: for a donor's second one when all donors have a first."""
        actions: list[DonorAction] = []
        for depth in range(QUEUE_DEPTH):
            for name, donor in self._donors.items():
                if len(donor.asked) > depth:
                    continue
                item = choose(name, now_s)
                if item is None:
                    continue
                if not donor.asked:  # its silence counts from now
                    donor.last_received_s = donor.speed.since_s = now_s
                donor.asked[item] = float(self._nbytes[item])
                actions.append(Ask(name, item))
        return actions

    def _rarest(self, name: str, now_s: float) -> str | None:
        """The next item that no donor is asked for: the rarest of what this one has."""
        offered = [holders for holders, queue in self._queues.items() if queue and name in holders]
        return self._queues[min(offered, key=len)].popleft() if offered else None

    def _hedge(self, name: str, now_s: float) -> str | None:
        """An item that this idle donor would bring sooner than its donor: the one due last."""
        me = self._donors[name]
        if me.asked:
            return None
        waits: dict[str, list[tuple[float, int]]] = {}
        for donor in self._donors.values():
            for place, item in enumerate(donor.asked):
                waits.setdefault(item, []).append((donor.wait_s(item, now_s), place))
        bytes_per_s = me.speed.bytes_per_s or math.inf  # unmeasured: try it
        late = {
            item: copies[0]
            for item, copies in waits.items()
            if len(copies) < COPIES
            and item in me.has
            and copies[0][0] > _GAIN * self._nbytes[item] / bytes_per_s
        }
        return max(late, key=late.__getitem__) if late else None
