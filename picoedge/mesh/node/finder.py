"""Finder: which boards to dial, and at which addresses. The address book remembers them.

At an address whose key is not known, every allowed key that is missing is tried at once: the CURVE
handshake succeeds only for the right one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.errors import PicoedgeError
from picoedge.mesh.addresses import Address
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json
from picoedge.mesh.node.gossip import KnownAddresses, addresses_body, read_addresses
from picoedge.mesh.transport.dialer import Dialer, Pair

if TYPE_CHECKING:
    from picoedge.mesh.transport.loop import Loop

LOOK_UP_AGAIN_S = 30.0  # host names: an address given by DHCP may change
ADDRESSES_FILE = "peers.json"
MAX_KEPT = 4  # addresses of one board: a board that moves replaces its old ones
MAX_LOOKED_UP = 4  # addresses of one name


def pairs_to_dial(
    seeds: Iterable[Address],
    known: Mapping[str, Iterable[Address]],
    missing: Iterable[str],
    connected: Mapping[str, Iterable[Address]],
) -> set[Pair]:
    """Addresses to dial, each with the key expected there.

    `missing` are allowed keys without a connection. `connected` maps the other keys to their
    addresses: seeds among those need no dialling.
    """
    missing = list(missing)
    taken = {address for addresses in connected.values() for address in addresses}
    pairs = {(address, key) for address in seeds if address not in taken for key in missing}
    return pairs | {(address, key) for key in missing for address in known.get(key, ())}


class AddressBook:
    """Where boards were last seen, in `peers.json`: public key to addresses, the newest first.

    Hints only: keys decide. A damaged file counts as an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Address, ...]] = dict(_read_book(folder / ADDRESSES_FILE))

    @property
    def known(self) -> KnownAddresses:
        """All addresses, by key."""
        return self._known

    def add_seen(self, key: str, addresses: Iterable[Address]) -> bool:
        """Add addresses at which the board itself answered, in front; whether one is new."""
        seen = tuple(each for each in dict.fromkeys(addresses) if not each.is_everywhere)
        return self._keep(key, seen + self._known.get(key, ()))

    def add_reported(self, reported: KnownAddresses, accepts: Callable[[str], bool]) -> bool:
        """Add what another board reported, behind the known ones; whether one is new.

        Keys for which `accepts` is false are ignored.
        """
        news = [
            self._keep(key, self._known.get(key, ()) + addresses)
            for key, addresses in reported.items()
            if accepts(key)
        ]
        return any(news)

    def forget(self, key: str) -> None:
        """Remove a board that was revoked."""
        self._known.pop(key, None)

    def save(self) -> None:
        """Raises StorageError."""
        with folder_lock(self.folder):
            write_json(self.folder / ADDRESSES_FILE, addresses_body(self._known))

    def _keep(self, key: str, addresses: tuple[Address, ...]) -> bool:
        kept = tuple(dict.fromkeys(addresses))[:MAX_KEPT]
        before = self._known.get(key, ())
        self._known[key] = kept
        # A change of order alone is no news: two boards would report it to each other for ever.
        return set(kept) != set(before)


def _read_book(path: Path) -> KnownAddresses:
    try:
        value = read_json(path, "")
        return read_addresses(value) if isinstance(value, dict) else {}
    except PicoedgeError:
        return {}


class Finder:
    """Dials missing boards at the seed addresses and the addresses in the book."""

    def __init__(
        self, loop: Loop, dialer: Dialer, book: AddressBook, log_once: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._dialer = dialer
        self._book = book
        self._log_once = log_once
        self._seeds: set[Address] = set()
        self._names: dict[Address, float] = {}  # host name to the time of its next look-up
        self.is_due = True  # something changed since the last `dial_missing`
        self.has_news = False  # addresses that the other boards have not been sent

    @property
    def known(self) -> KnownAddresses:
        """The address book's."""
        return self._book.known

    def add_seeds(self, seeds: Iterable[Address]) -> None:
        """Dial these addresses too, whatever key is there. Names are looked up in a thread."""
        for seed in seeds:
            if seed.is_numeric:
                self._seeds.add(seed)
            else:
                self._names.setdefault(seed, 0.0)
        self.is_due = True

    def add_seen(self, key: str, addresses: Iterable[Address]) -> None:
        """Note addresses at which the board itself answered."""
        self._note(self._book.add_seen(key, [a for a in addresses if a.is_numeric and a.port]))

    def add_reported(self, reported: KnownAddresses, accepts: Callable[[str], bool]) -> None:
        """Note addresses that another board reported, of keys that `accepts` takes."""
        self._note(self._book.add_reported(reported, accepts))

    def forget(self, key: str) -> None:
        """Drop a board that was revoked."""
        self._book.forget(key)
        self._dialer.close_key(key)

    def dial_missing(self, others: Iterable[str], connected: set[str]) -> None:
        """Dial the boards among `others` that are not `connected`; stop all other attempts."""
        self.is_due = False
        self._look_up_names()
        missing = [key for key in others if key not in connected]
        linked = {key: self.known.get(key, ()) for key in connected}
        self._dialer.dial(pairs_to_dial(self._seeds, self.known, missing, linked))

    def save(self) -> None:
        """Save the address book for the next start."""
        self.has_news = False
        try:
            self._book.save()
        except PicoedgeError as error:
            self._log_once(str(error))

    def _note(self, is_news: bool) -> None:
        self.is_due |= is_news
        self.has_news |= is_news

    def _look_up_names(self) -> None:
        now_s = self._loop.clock()
        for name, due_s in self._names.items():
            if due_s <= now_s:
                self._names[name] = now_s + LOOK_UP_AGAIN_S
                # A name server may take many seconds, for which the daemon's thread has no time.
                threading.Thread(target=self._look_up, args=(name,), daemon=True).start()

    def _look_up(self, name: Address) -> None:
        try:
            found = socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the latter: no name, such as "a..b"
            reason = getattr(error, "strerror", None) or str(error)
            return self._loop.soon(lambda: self._log_once(f"{name.host}: {reason}"))
        addresses = [Address(str(each[4][0]), name.port) for each in found[:MAX_LOOKED_UP]]
        self._loop.soon(lambda: self.add_seeds(addresses))
