"""Pull what a board lacks of a pack from all boards that have it, at once.

What came is kept whatever happens: a pull that is cut goes on where it was. A board that sends
wrong bytes is told of once and not asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import BoardLostError, ModelError, ProtocolError, StorageError
from picoedge.mesh.transfer.donor_client import Answer, Offered, Part, Source
from picoedge.mesh.transfer.request_window import Feed
from picoedge.mesh.transfer.schedule import SILENCE_S, Action, Ask, Cancel, Schedule
from picoedge.store.pack.inventory import MANIFEST_BYTES, PackItem, Wanted, pack_id
from picoedge.store.shards import MANIFEST
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket
    from picoedge.store.pack.partial import PartialPack

TICK_S = 0.1
OFFER_AGAIN_S = 1.0  # silent boards, and those that are being filled themselves
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Pulling:
    """How far a pull is: bytes of whole items, and what each donor sends a second."""

    done: int
    total: int
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """What a pull did. `already`: bytes that were wanted and here before it began."""

    nbytes: int
    already: int
    seconds: float
    by_donor: Mapping[str, int]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Manner:
    """How a pull tells of itself, and how long it waits."""

    progress: Callable[[Pulling], None] = lambda pulling: None
    warn: Callable[[str], None] = lambda text: None
    also: Sequence[tuple[Socket, Callable[[], None]]] = ()  # polled meanwhile; may raise
    clock: Callable[[], float] = time.monotonic
    silence_s: float = SILENCE_S  # until a donor is set aside
    patience_s: float = PATIENCE_S  # until a pull is given up in which nothing comes


@dataclass(frozen=True)
class _Goal:
    """What is pulled: sizes by name, which of it a donor has, and what is done with each.

    `accept` tells whether the bytes are right.
    """

    items: Mapping[str, int]
    has: Callable[[Offered], Collection[str]]
    accept: Callable[[str, memoryview], bool]


def pull(
    target: Path,
    identity: str,
    wanted: Wanted,
    sources: Sequence[tuple[str, Source]],
    manner: Manner | None = None,
    *,
    free: Callable[[Path], int] | None = None,
) -> Report:
    """Have `target`, NAME.pico, hold what is wanted of the pack `identity`.

    `sources`: boards' names and how they are asked; `free` tells the bytes free where a folder is.
    Raises StorageError with the figures where the disk cannot take it, BoardLostError where no
    board sends what is lacking, and what `store.partial` raises. What has come is kept.
    """
    from picoedge.store.files import free_bytes
    from picoedge.store.pack import partial

    manner = manner or Manner()
    began_s = manner.clock()
    wrong: set[str] = set()
    if not target.exists():
        _pull_manifest(target, identity, _Pull(identity, sources, manner, wrong))
    with partial.PartialPack(target, free=free or free_bytes) as filled:
        if filled.pack.identity != identity:
            raise StorageError(f"{target} is another pack", f"picoedge rm {target.stem}")
        missing = filled.missing(wanted)
        filled.check_room(missing)
        pulling = _Pull(identity, sources, manner, wrong)
        if missing:
            pulling.run(_goal(filled, missing))
    nbytes = sum(item.nbytes for item in missing)
    already = sum(item.nbytes for item in filled.pack.needed(wanted)) - nbytes
    seconds = manner.clock() - began_s
    return Report(nbytes, already, seconds, pulling.by_donor, tuple(sorted(wrong)))


def _pull_manifest(target: Path, identity: str, pulling: _Pull) -> None:
    from picoedge.store.pack import partial

    def accept(item: str, data: memoryview) -> bool:
        manifest = bytes(data)
        if pack_id(manifest) != identity:
            return False
        partial.create_partial(target, manifest)
        return True

    def has(offered: Offered) -> list[str]:
        if not 0 < offered.manifest_bytes <= MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {offered.manifest_bytes} bytes")
        return [MANIFEST]

    pulling.run(_Goal({MANIFEST: 1}, has, accept))


def _goal(filled: PartialPack, missing: Sequence[PackItem]) -> _Goal:
    wanted = {item.name: item for item in missing}
    order = [item.name for item in filled.pack.items()]

    def accept(name: str, data: memoryview) -> bool:
        try:
            filled.write(wanted[name], data)
        except ModelError:
            return False
        return True

    return _Goal(
        {item.name: item.nbytes for item in missing}, lambda offered: offered.names(order), accept
    )


class _Pull:
    """The sources of a pull, asked as the schedule says until a goal is reached."""

    def __init__(
        self,
        identity: str,
        sources: Sequence[tuple[str, Source]],
        manner: Manner,
        wrong: set[str],
    ) -> None:
        self._feeds = {name: Feed(source, identity) for name, source in sources}
        self._manner, self._now_s = manner, manner.clock
        self._wrong = wrong
        self.by_donor = dict.fromkeys(self._feeds, 0)
        self._heard_s = self._told_s = -1e9

    def run(self, goal: _Goal) -> None:
        """Until all of it is accepted. Raises BoardLostError where no board sends the rest."""
        self._goal = goal
        self._schedule = Schedule(goal.items, silence_s=self._manner.silence_s)
        for name in self._wrong:
            self._schedule.failed(name, 0.0)
        self._heard_s = self._now_s()
        poller = zmq.Poller()
        for socket, _ in self._manner.also:
            poller.register(socket, zmq.POLLIN)
        for feed in self._feeds.values():
            feed.reset()
            poller.register(feed.source.socket, zmq.POLLIN)
        while not self._schedule.is_done:
            self._ask_offers()
            ready = dict(poller.poll(int(TICK_S * 1000)))
            for socket, call in self._manner.also:
                if socket in ready:
                    call()
            # All are heard before any is called silent: a write may have taken long.
            for name in list(self._feeds):
                self._receive(name)
            self._do(self._schedule.passed(self._now_s()))
            self._check_hope()
            self._tell()

    def _ask_offers(self) -> None:
        """Ask who has not said what it has, or may have more by now."""
        now_s = self._now_s()
        for name, feed in self._feeds.items():
            settled = feed.offered is not None and (feed.offered.held is None or not feed.is_idle)
            if settled or name in self._wrong or now_s - feed.offer_s < OFFER_AGAIN_S:
                continue
            feed.ask_offer(now_s)

    def _receive(self, name: str) -> None:
        feed = self._feeds[name]
        try:
            for answer in feed.source.receive():
                if name not in self._wrong:
                    self._take(name, feed, answer)
        except ProtocolError as error:
            self._ban(name, error.message)

    def _take(self, name: str, feed: Feed, answer: Answer) -> None:
        now_s = self._now_s()
        if isinstance(answer, Offered):
            if not feed.is_idle:
                return  # it was asked for more meanwhile: what it has now is asked again
            has = self._goal.has(answer)
            feed.offered, feed.refused = answer, ""
            self._do(self._schedule.joined(name, has, now_s))
        elif isinstance(answer, Part):
            self._heard_s = now_s
            self._schedule.heard(name, answer.item, len(answer.data), now_s)
            whole = feed.take(answer)
            if whole is not None and self._schedule.is_wanted(answer.item):
                self._accept(name, answer.item, whole)
            feed.go_on()
        elif answer.item:
            feed.refuse(answer.item)
            self._do(self._schedule.refused(name, answer.item, now_s))
            feed.go_on()
        else:
            feed.refused = answer.reason

    def _accept(self, name: str, item: str, data: memoryview) -> None:
        if not self._goal.accept(item, data):
            self._ban(name, f"{item} does not match its hash")
            return
        self.by_donor[name] += len(data)
        self._do(self._schedule.arrived(name, item, self._now_s()))

    def _ban(self, name: str, why: str) -> None:
        if name in self._wrong:
            return
        self._wrong.add(name)
        self._feeds[name].reset()
        self._manner.warn(f"board {name} sent what is wrong and is not asked again: {why}")
        self._do(self._schedule.failed(name, self._now_s()))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            feed = self._feeds[action.donor]
            if isinstance(action, Ask):
                feed.add(action.item, self._nbytes(feed, action.item))
            elif isinstance(action, Cancel):
                feed.drop(action.item)
                feed.go_on()
            else:
                feed.reset()

    def _nbytes(self, feed: Feed, item: str) -> int:
        if item != MANIFEST:
            return self._goal.items[item]
        assert feed.offered is not None
        return feed.offered.manifest_bytes

    def _check_hope(self) -> None:
        silent_s = self._now_s() - self._heard_s
        feeds = {name: feed for name, feed in self._feeds.items() if name not in self._wrong}
        hopeless = all(feed.refused for feed in feeds.values())
        if self._schedule.is_done or (silent_s < self._manner.patience_s and not hopeless):
            return
        left = self._schedule.left
        lacking = sum(self._goal.items[item] for item in left)
        size = "" if MANIFEST in left else f", {format_size(lacking)}"
        said = [f"{name}: {feed.refused or 'no answer'}" for name, feed in feeds.items()]
        said += [f"{name}: sent what is wrong" for name in sorted(self._wrong)]
        raise BoardLostError(
            f"no board sends {left[0]}: {len(left)} of {len(self._goal.items)} items lack{size}"
            f" ({'; '.join(said) or 'no boards'})",
            "start a board that has the model and try again: what came is kept",
        )

    def _tell(self) -> None:
        now_s = self._now_s()
        if MANIFEST in self._goal.items:
            return
        if self._schedule.is_done or now_s - self._told_s >= TICK_S:
            self._told_s = now_s
            rates = {name: self._schedule.rate(name) for name in self._feeds}
            total = sum(self._goal.items.values())
            self._manner.progress(Pulling(sum(self.by_donor.values()), total, rates))
