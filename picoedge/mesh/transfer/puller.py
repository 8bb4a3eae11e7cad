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
from picoedge.mesh.transfer.donor_client import DonorAnswer, DonorClient, Offered, Part
from picoedge.mesh.transfer.schedule import (
    DONOR_SILENCE_S,
    Ask,
    Cancel,
    DonorAction,
    TransferSchedule,
)
from picoedge.store.shards import MANIFEST, MANIFEST_BYTES, PackItem, Wanted, pack_id
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.store.pack.partial import PartialPack

_TICK_S = 0.1  # between looks at silent donors, and between reports of progress
OFFER_AGAIN_S = 1.0  # for donors that are silent, and those that are pulling the pack themselves
PULL_STALL_S = 10.0  # a daemon that restarts is back by then


@dataclass(frozen=True)
class PullReport:
    """Result of a pull. `already`: wanted bytes that were here before. `wrong`: banned donors."""

    nbytes: int
    already: int
    by_donor: Mapping[str, int]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class PullOptions:
    """Reports of a pull, and its time limits."""

    progress: Callable[[int, int], None] = lambda done, total: None  # bytes of complete items
    warn: Callable[[str], None] = lambda text: None
    silence_s: float = DONOR_SILENCE_S  # until a donor is set aside
    stall_s: float = PULL_STALL_S  # until a pull in which nothing comes fails


@dataclass(frozen=True)
class PullTarget:
    """The items to pull: bytes by item, in the order they are best fetched.

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
) -> PullReport:
    """Fill `target`, NAME.pico, with the items `wanted` of the pack `identity`.

    `donors`: names of boards and their clients. Raises StorageError with the figures if the disk is
    too small, BoardLostError if no board sends an item that is missing, and what
    `store.pack.partial` raises. Items that came are kept.
    """
    from picoedge.store.pack.partial import PartialPack

    puller = Puller(identity, donors, options or PullOptions())
    if not target.exists():
        puller.run(_manifest(target, identity))
    with PartialPack(target) as filled:
        if filled.pack.identity != identity:
            raise StorageError(f"{target} is another pack", f"picoedge rm {target.stem}")
        missing = filled.missing(wanted)
        filled.check_room(missing)
        puller.run(_missing_items(filled, missing))
    nbytes = sum(item.nbytes for item in missing)
    already = sum(item.nbytes for item in filled.pack.needed(wanted)) - nbytes
    return PullReport(nbytes, already, puller.by_donor, tuple(sorted(puller.wrong)))


def _manifest(target: Path, identity: str) -> PullTarget:
    from picoedge.store.pack.partial import create_partial

    def accept(item: str, data: memoryview) -> bool:
        manifest = bytes(data)
        if pack_id(manifest) != identity:
            return False
        create_partial(target, manifest)
        return True

    def offered_items(offered: Offered) -> list[str]:
        if not 0 < offered.manifest_bytes <= MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {offered.manifest_bytes} bytes")
        return [MANIFEST]

    return PullTarget({MANIFEST: 1}, offered_items, accept)


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
    """Asks donors as the schedule says, until a target is reached.

    `by_donor`: bytes accepted from each for the last target; `wrong`: banned donors.
    """

    def __init__(
        self, identity: str, donors: Sequence[tuple[str, DonorClient]], options: PullOptions
    ) -> None:
        self._identity, self._donors = identity, dict(donors)
        self._options = options
        self.by_donor: dict[str, int] = {}
        self.wrong: set[str] = set()
        self._progress_s = self._told_s = -1e9

    def run(self, target: PullTarget) -> None:
        """Pull until all items are accepted. Raises BoardLostError if no donor sends the rest."""
        self._target = target
        self._schedule = TransferSchedule(target.items, silence_s=self._options.silence_s)
        for name in self.wrong:
            self._schedule.failed(name, 0.0)
        self.by_donor = dict.fromkeys(self._donors, 0)
        self._progress_s = time.monotonic()
        poller = zmq.Poller()
        for donor in self._donors.values():
            donor.reset()
            poller.register(donor.socket, zmq.POLLIN)
        while not self._schedule.is_done:
            self._ask_offers()
            poller.poll(int(_TICK_S * 1000))
            # All donors are read before one counts as silent: a write may have taken long.
            for name in self._donors:
                self._receive(name)
            self._do(self._schedule.tick(time.monotonic()))
            self._check_stalled()
            self._tell()

    def _ask_offers(self) -> None:
        """Ask donors that have made no offer, or may have more by now."""
        now_s = time.monotonic()
        for name, donor in self._donors.items():
            offered = donor.offered
            settled = offered is not None and (offered.held is None or not donor.is_idle)
            if not settled and name not in self.wrong and now_s - donor.offer_s >= OFFER_AGAIN_S:
                donor.ask_offer(self._identity, now_s)

    def _receive(self, name: str) -> None:
        donor = self._donors[name]
        try:
            for answer in donor.receive():
                if name not in self.wrong:
                    self._take(name, donor, answer)
        except ProtocolError as error:
            self._ban(name, error.message)

    def _take(self, name: str, donor: DonorClient, answer: DonorAnswer) -> None:
        now_s = time.monotonic()
        if isinstance(answer, Offered):
            if not donor.is_idle:
                return  # it was asked for items meanwhile: the offer may be old and is asked again
            has = self._target.offered_items(answer)
            donor.offered, donor.refused = answer, ""
            self._do(self._schedule.joined(name, has, now_s))
        elif isinstance(answer, Part):
            self._progress_s = now_s
            self._schedule.received(name, answer.item, answer.nbytes, now_s)
            if answer.whole is not None and self._schedule.is_wanted(answer.item):
                self._accept(name, answer.item, answer.whole)
            donor.ask_more()
        elif answer.item:
            self._do(self._schedule.refused(name, answer.item, now_s))
            donor.ask_more()
        else:
            donor.refused = answer.reason

    def _accept(self, name: str, item: str, data: memoryview) -> None:
        if not self._target.accept(item, data):
            self._ban(name, f"{item} does not match its hash")
            return
        self.by_donor[name] += len(data)
        self._do(self._schedule.arrived(name, item, time.monotonic()))

    def _ban(self, name: str, why: str) -> None:
        if name in self.wrong:
            return
        self.wrong.add(name)
        self._donors[name].reset()
        self._options.warn(f"board {name} sent wrong bytes and is not asked again: {why}")
        self._do(self._schedule.failed(name, time.monotonic()))

    def _do(self, actions: Sequence[DonorAction]) -> None:
        for action in actions:
            donor = self._donors[action.donor]
            if isinstance(action, Ask):
                assert donor.offered is not None
                is_manifest, sizes = action.item == MANIFEST, self._target.items
                nbytes = donor.offered.manifest_bytes if is_manifest else sizes[action.item]
                donor.add(action.item, nbytes)
            elif isinstance(action, Cancel):
                donor.cancel(action.item)
                donor.ask_more()
            else:
                donor.reset()

    def _check_stalled(self) -> None:
        silent_s = time.monotonic() - self._progress_s
        refusals = {n: donor.refused for n, donor in self._donors.items() if n not in self.wrong}
        hopeless = all(refusals.values())
        if self._schedule.is_done or (silent_s < self._options.stall_s and not hopeless):
            return
        missing = self._schedule.missing
        sizes = self._target.items
        missing_bytes = sum(sizes[item] for item in missing)
        size = "" if MANIFEST in missing else f", {format_size(missing_bytes)}"
        said = [f"{name}: {refusal or 'no answer'}" for name, refusal in refusals.items()]
        said += [f"{name}: sent wrong bytes" for name in sorted(self.wrong)]
        raise BoardLostError(
            f"no board sends {missing[0]}: {len(missing)} of {len(sizes)} items are missing{size}"
            f" ({'; '.join(said) or 'no boards'})",
            "start a board that has the model and try again: what came is kept",
        )

    def _tell(self) -> None:
        now_s = time.monotonic()
        if MANIFEST in self._target.items:
            return
        if self._schedule.is_done or now_s - self._told_s >= _TICK_S:
            self._told_s = now_s
            total = sum(self._target.items.values())
            self._options.progress(sum(self.by_donor.values()), total)
