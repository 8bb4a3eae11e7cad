"""Pull items from all donors that have them, at once: `pull` does so for a pack.

Items that came are kept whatever happens: a pull that is cut continues where it was. A donor that
sends wrong bytes is reported once and not asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import BoardLostError, ModelError, ProtocolError, StorageError
from picoedge.mesh.transfer.donor_client import DonorAnswer, DonorClient, DonorQueue, Offered, Part
from picoedge.mesh.transfer.schedule import DONOR_SILENCE_S, Ask, Cancel, DonorAction, Schedule
from picoedge.store.shards import MANIFEST, MANIFEST_BYTES, PackItem, Wanted, pack_id
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket
    from picoedge.store.pack.partial import PartialPack

TICK_S = 0.1
OFFER_AGAIN_S = 1.0  # for donors that are silent, and those that are pulling the pack themselves
PULL_STALL_S = 10.0  # a daemon that restarts is back by then


@dataclass(frozen=True)
class PullProgress:
    """How far a pull is: bytes of complete items, and bytes a second of each donor."""

    done: int
    total: int
    rates: Mapping[str, float]


@dataclass(frozen=True)
class PullReport:
    """What a pull did. `already`: wanted bytes that were here before. `wrong`: banned donors."""

    nbytes: int
    already: int
    seconds: float
    by_donor: Mapping[str, int]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class PullOptions:
    """How a pull reports, and how long it waits."""

    progress: Callable[[PullProgress], None] = lambda progress: None
    warn: Callable[[str], None] = lambda text: None
    poll_also: Sequence[tuple[Socket, Callable[[], None]]] = ()  # polled meanwhile; may raise
    clock: Callable[[], float] = time.monotonic
    silence_s: float = DONOR_SILENCE_S  # until a donor is set aside
    stall_s: float = PULL_STALL_S  # until a pull in which nothing comes fails


@dataclass(frozen=True)
class PullTarget:
    """What is pulled: bytes by item, in the order they are best fetched.

    `offered_items` are the items that a donor has, by its offer. `accept` uses the bytes of an
    item; it returns False if they are wrong, and the donor is banned.
    """

    items: Mapping[str, int]
    offered_items: Callable[[Offered], Collection[str]]
    accept: Callable[[str, memoryview], bool]


def pull(
    target: Path,
    identity: str,
    wanted: Wanted,
    donors: Sequence[tuple[str, DonorClient]],
    options: PullOptions | None = None,
    *,
    free: Callable[[Path], int] | None = None,
) -> PullReport:
    """Fill `target`, NAME.pico, with the items `wanted` of the pack `identity`.

    `donors`: names of boards and their clients; `free`: bytes free on the disk of a folder. Raises
    StorageError with the figures if the disk is too small, BoardLostError if no board sends an item
    that is missing, and what `store.pack.partial` raises. Items that came are kept.
    """
    from picoedge.files import free_bytes
    from picoedge.store.pack import partial

    options = options or PullOptions()
    began_s = options.clock()
    wrong: set[str] = set()
    if not target.exists():
        _pull_manifest(target, identity, Puller(identity, donors, options, wrong))
    with partial.PartialPack(target, free=free or free_bytes) as filled:
        if filled.pack.identity != identity:
            raise StorageError(f"{target} is another pack", f"picoedge rm {target.stem}")
        missing = filled.missing(wanted)
        filled.check_room(missing)
        puller = Puller(identity, donors, options, wrong)
        if missing:
            puller.run(_missing_items(filled, missing))
    nbytes = sum(item.nbytes for item in missing)
    already = sum(item.nbytes for item in filled.pack.needed(wanted)) - nbytes
    seconds = options.clock() - began_s
    return PullReport(nbytes, already, seconds, puller.by_donor, tuple(sorted(wrong)))


def _pull_manifest(target: Path, identity: str, puller: Puller) -> None:
    from picoedge.store.pack import partial

    def accept(item: str, data: memoryview) -> bool:
        manifest = bytes(data)
        if pack_id(manifest) != identity:
            return False
        partial.create_partial(target, manifest)
        return True

    def offered_items(offered: Offered) -> list[str]:
        if not 0 < offered.manifest_bytes <= MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {offered.manifest_bytes} bytes")
        return [MANIFEST]

    puller.run(PullTarget({MANIFEST: 1}, offered_items, accept))


def _missing_items(filled: PartialPack, missing: Sequence[PackItem]) -> PullTarget:
    wanted = {item.name: item for item in missing}
    order = [item.name for item in filled.pack.items()]

    def accept(name: str, data: memoryview) -> bool:
        try:
            filled.write(wanted[name], data)
        except ModelError:
            return False
        return True

    return PullTarget(
        {item.name: item.nbytes for item in missing}, lambda offered: offered.names(order), accept
    )


class Puller:
    """Asks donors as the schedule says, until a target is reached. `wrong`: banned donors."""

    def __init__(
        self,
        identity: str,
        donors: Sequence[tuple[str, DonorClient]],
        options: PullOptions,
        wrong: set[str],
    ) -> None:
        self._queues = {name: DonorQueue(donor, identity) for name, donor in donors}
        self._options, self._now_s = options, options.clock
        self._wrong = wrong
        self.by_donor = dict.fromkeys(self._queues, 0)
        self._progress_s = self._told_s = -1e9

    def run(self, target: PullTarget) -> None:
        """Pull until all items are accepted. Raises BoardLostError if no donor sends the rest."""
        self._target = target
        self._schedule = Schedule(target.items, silence_s=self._options.silence_s)
        for name in self._wrong:
            self._schedule.failed(name, 0.0)
        self._progress_s = self._now_s()
        poller = zmq.Poller()
        for socket, _ in self._options.poll_also:
            poller.register(socket, zmq.POLLIN)
        for queue in self._queues.values():
            queue.reset()
            poller.register(queue.donor.socket, zmq.POLLIN)
        while not self._schedule.is_done:
            self._ask_offers()
            ready = dict(poller.poll(int(TICK_S * 1000)))
            for socket, call in self._options.poll_also:
                if socket in ready:
                    call()
            # All donors are read before one counts as silent: a write may have taken long.
            for name in list(self._queues):
                self._receive(name)
            self._do(self._schedule.tick(self._now_s()))
            self._check_stalled()
            self._tell()

    def _ask_offers(self) -> None:
        """Ask donors that have made no offer, or may have more by now."""
        now_s = self._now_s()
        for name, queue in self._queues.items():
            settled = queue.offered is not None and (
                queue.offered.held is None or not queue.is_idle
            )
            if settled or name in self._wrong or now_s - queue.offer_s < OFFER_AGAIN_S:
                continue
            queue.ask_offer(now_s)

    def _receive(self, name: str) -> None:
        queue = self._queues[name]
        try:
            for answer in queue.donor.receive():
                if name not in self._wrong:
                    self._take(name, queue, answer)
        except ProtocolError as error:
            self._ban(name, error.message)

    def _take(self, name: str, queue: DonorQueue, answer: DonorAnswer) -> None:
        now_s = self._now_s()
        if isinstance(answer, Offered):
            if not queue.is_idle:
                return  # it was asked for items meanwhile: the offer may be old and is asked again
            has = self._target.offered_items(answer)
            queue.offered, queue.refused = answer, ""
            self._do(self._schedule.joined(name, has, now_s))
        elif isinstance(answer, Part):
            self._progress_s = now_s
            self._schedule.received(name, answer.item, len(answer.data), now_s)
            whole = queue.receive(answer)
            if whole is not None and self._schedule.is_wanted(answer.item):
                self._accept(name, answer.item, whole)
            queue.ask_more()
        elif answer.item:
            queue.refuse(answer.item)
            self._do(self._schedule.refused(name, answer.item, now_s))
            queue.ask_more()
        else:
            queue.refused = answer.reason

    def _accept(self, name: str, item: str, data: memoryview) -> None:
        if not self._target.accept(item, data):
            self._ban(name, f"{item} does not match its hash")
            return
        self.by_donor[name] += len(data)
        self._do(self._schedule.arrived(name, item, self._now_s()))

    def _ban(self, name: str, why: str) -> None:
        if name in self._wrong:
            return
        self._wrong.add(name)
        self._queues[name].reset()
        self._options.warn(f"board {name} sent what is wrong and is not asked again: {why}")
        self._do(self._schedule.failed(name, self._now_s()))

    def _do(self, actions: Sequence[DonorAction]) -> None:
        for action in actions:
            queue = self._queues[action.donor]
            if isinstance(action, Ask):
                queue.add(action.item, self._nbytes(queue, action.item))
            elif isinstance(action, Cancel):
                queue.cancel(action.item)
                queue.ask_more()
            else:
                queue.reset()

    def _nbytes(self, queue: DonorQueue, item: str) -> int:
        if item != MANIFEST:
            return self._target.items[item]
        assert queue.offered is not None
        return queue.offered.manifest_bytes

    def _check_stalled(self) -> None:
        silent_s = self._now_s() - self._progress_s
        queues = {name: queue for name, queue in self._queues.items() if name not in self._wrong}
        hopeless = all(queue.refused for queue in queues.values())
        if self._schedule.is_done or (silent_s < self._options.stall_s and not hopeless):
            return
        missing = self._schedule.missing
        sizes = self._target.items
        lacking = sum(sizes[item] for item in missing)
        size = "" if MANIFEST in missing else f", {format_size(lacking)}"
        said = [f"{name}: {queue.refused or 'no answer'}" for name, queue in queues.items()]
        said += [f"{name}: sent what is wrong" for name in sorted(self._wrong)]
        raise BoardLostError(
            f"no board sends {missing[0]}: {len(missing)} of {len(sizes)} items lack{size}"
            f" ({'; '.join(said) or 'no boards'})",
            "start a board that has the model and try again: what came is kept",
        )

    def _tell(self) -> None:
        now_s = self._now_s()
        if MANIFEST in self._target.items:
            return
        if self._schedule.is_done or now_s - self._told_s >= TICK_S:
            self._told_s = now_s
            rates = {name: self._schedule.rate(name) for name in self._queues}
            total = sum(self._target.items.values())
            self._options.progress(PullProgress(sum(self.by_donor.values()), total, rates))
