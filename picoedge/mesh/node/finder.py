"""Which boards to look for, and where.

Where the key behind an address is not known, every allowed key is tried there at once: CURVE lets
only the right one through.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from picoedge.errors import PicoedgeError
from picoedge.mesh.addresses import Address
from picoedge.mesh.node.address_book import HintFile
from picoedge.mesh.node.gossip import Hints
from picoedge.mesh.transport.dialer import Dials, Pair

if TYPE_CHECKING:
    from picoedge.mesh.transport.loop import Loop

LOOK_UP_AGAIN_S = 30.0
MOST_FOUND = 4  # addresses of one name


def wanted(
    seeds: Iterable[Address],
    hints: Mapping[str, Iterable[Address]],
    strangers: Iterable[str],
    linked: Mapping[str, Iterable[Address]],
) -> set[Pair]:
    """Which keys to try at which addresses.

    `strangers` are the allowed keys without a link, `linked` tells at which addresses boards with
    a link are: nobody else is looked for there.
    """
    strangers = list(strangers)
    taken = {address for addresses in linked.values() for address in addresses}
    pairs = {(address, key) for address in seeds if address not in taken for key in strangers}
    return pairs | {(address, key) for key in strangers for address in hints.get(key, ())}


class Seeker:
    """Dials the boards that are missed, at the addresses of seeds and hints."""

    def __init__(
        self, loop: Loop, dials: Dials, hints: HintFile, log_once: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._dials = dials
        self._hints = hints
        self._log_once = log_once
        self._seeds: set[Address] = set()
        self._names: dict[Address, float] = {}  # when each is to be looked up
        self.is_due = True  # something has changed since the last look
        self.has_news = False  # of addresses, which the others have not been told

    @property
    def hints(self) -> Hints:
        return self._hints.hints

    def add(self, seeds: Iterable[Address]) -> None:
        """Look there from now on, for whoever it is. Names are looked up in a thread."""
        for seed in seeds:
            if seed.is_numeric:
                self._seeds.add(seed)
            else:
                self._names.setdefault(seed, 0.0)
        self.is_due = True

    def met(self, key: str, addresses: Iterable[Address]) -> None:
        """The board itself was met at these."""
        found = [each for each in addresses if each.is_numeric and each.port]
        self._news(self._hints.seen(key, found))

    def told(self, hints: Hints, believed: Callable[[str], bool]) -> None:
        """Another board says where boards are."""
        self._news(self._hints.told(hints, believed))

    def forget(self, key: str) -> None:
        """Of a board that is let in no more."""
        self._hints.forget(key)
        self._dials.close_key(key)

    def look(self, others: Iterable[str], connected: set[str]) -> None:
        """Dial those of `others` that are not connected, and nobody else."""
        self.is_due = False
        self._look_up_names()
        strangers = [key for key in others if key not in connected]
        linked = {key: self.hints.get(key, ()) for key in connected}
        self._dials.seek(wanted(self._seeds, self.hints, strangers, linked))

    def save(self) -> None:
        """Keep the hints for the next start."""
        self.has_news = False
        try:
            self._hints.save()
        except PicoedgeError as error:
            self._log_once(str(error))

    def _news(self, is_news: bool) -> None:
        self.is_due |= is_news
        self.has_news |= is_news

    def _look_up_names(self) -> None:
        now_s = self._loop.clock()
        for name, due_s in self._names.items():
            if due_s <= now_s:
                self._names[name] = now_s + LOOK_UP_AGAIN_S
                # A name server may take many seconds, and libzmq's thread must not wait for it.
                threading.Thread(target=self._look_up, args=(name,), daemon=True).start()

    def _look_up(self, name: Address) -> None:
        try:
            found = socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
        except OSError as error:
            reason = error.strerror or str(error)
            return self._loop.soon(lambda: self._log_once(f"{name.host}: {reason}"))
        addresses = [Address(str(each[4][0]), name.port) for each in found[:MOST_FOUND]]
        self._loop.soon(lambda: self.add(addresses))
