"""Finder: which boards to dial, and at which addresses. The address book remembers them.

At an address whose key is not known, every allowed key that is missing is tried at once: the CURVE
handshake succeeds only for the right one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.errors import PicoedgeError, ProtocolError, UsageError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json
from picoedge.mesh.identity.identity import is_key
from picoedge.mesh.interfaces import scoped
from picoedge.mesh.transport.messages import Body

if TYPE_CHECKING:
    from picoedge.mesh.transport.dialer import Dialer
    from picoedge.mesh.transport.loop import Loop

LOOK_UP_AGAIN_S = 30.0  # host names: an address given by DHCP may change
ADDRESSES_FILE = "peers.json"
MAX_KEPT = 4  # addresses of one board where it was met: a board that moves replaces its old ones
MAX_REPORTED = 9  # further addresses of one board, of what others report
MAX_REPORTED_BY_ONE = 3  # of them: no reporter alone takes the place of the others
MAX_LOOKED_UP = 4  # addresses of one name
MAX_ADDRESSES = 8  # of one board: a few interfaces, IPv4 and IPv6
MAX_BOARDS = 1024  # as many as a roster has entries
MAX_ADDRESS = 80  # characters: an IPv6 address with its scope and port has 70
Addresses = Mapping[str, tuple[Address, ...]]  # by key


def addresses_body(known: Addresses) -> Body:
    """As `read_addresses` takes it."""
    return {"boards": {key: [str(each) for each in addresses] for key, addresses in known.items()}}


def read_addresses(body: Body, is_wanted: Callable[[str], bool] = bool) -> Addresses:
    """Public key to addresses, of the keys that are wanted. Raises ProtocolError."""
    boards = Fields(body).object("boards").values
    if len(boards) > MAX_BOARDS:
        raise ProtocolError(f"addresses of {len(boards)} boards: the limit is {MAX_BOARDS}")
    if not all(is_key(key) for key in boards):
        raise ProtocolError("addresses of a board whose name is not a public key")
    wanted = {key: listed for key, listed in boards.items() if is_wanted(key)}
    return {key: listed_addresses({"addresses": listed}) for key, listed in wanted.items()}


def listed_addresses(body: Body) -> tuple[Address, ...]:
    """The addresses of one board in a message. Raises ProtocolError."""
    texts = Fields(body).texts("addresses", MAX_ADDRESSES, MAX_ADDRESS)
    try:
        addresses = tuple(parse_address(text) for text in texts)
    except UsageError as error:
        raise ProtocolError(error.message) from None
    # A host name would need a look-up, which can block the daemon's only thread for seconds.
    if not all(address.is_numeric and address.port for address in addresses):
        raise ProtocolError("addresses of boards are told in digits")
    return addresses


class AddressBook:
    """Addresses to look for boards at: where this one met them, then where others report them.

    `seen`, in `peers.json`: public key to addresses, the newest first. That is also what this board
    reports, so that no report goes round without end and none outlives its reporter. Reports have
    places of their own: they replace no address at which a board was met, however many there are.
    Hints only: keys decide. A damaged file counts as an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, tuple[Address, ...]] = {}
        self.has_news = False  # of boards that were met, since it was saved
        self.has_reports = False  # that were not dialled yet
        self._reported: dict[str, dict[Address, str]] = {}  # by key: to the reporter, newest first
        with suppress(PicoedgeError):
            self.seen.update(read_addresses(read_json(folder / ADDRESSES_FILE, "") or {}))

    def add_seen(self, key: str, addresses: Iterable[Address]) -> None:
        """Add addresses at which the board itself answered, in front."""
        met = (each for each in addresses if each.is_numeric and not each.is_everywhere)
        found = (*(each for each in met if each.port), *self.seen.get(key, ()))
        kept = tuple(dict.fromkeys(found))[:MAX_KEPT]
        # A change of order alone is no news: the others need not be told.
        self.has_news |= set(kept) != set(self.seen.get(key, ()))
        self.seen[key] = kept

    def add_reported(self, key: str, addresses: Iterable[Address], reporter: str = "") -> None:
        """Take what `reporter` (a key; "": this board's own network) says of a board.

        It replaces what the same reporter said before.
        """
        before = self._reported.get(key, {})
        others = {address: by for address, by in before.items() if by != reporter}
        own = [address for address in dict.fromkeys(addresses) if address not in others]
        kept = dict.fromkeys(own[:MAX_REPORTED_BY_ONE], reporter) | others
        self._reported[key] = dict([*kept.items()][:MAX_REPORTED])
        self.has_reports |= not self._reported[key].keys() <= {*before, *self.seen.get(key, ())}

    def of(self, key: str) -> tuple[Address, ...]:
        """Addresses to look for a board at: first those at which it was met."""
        return tuple(dict.fromkeys((*self.seen.get(key, ()), *self._reported.get(key, ()))))

    def forget(self, key: str) -> None:
        """Drop all of a board that is revoked, and what it reported."""
        self.seen.pop(key, None)
        self._reported.pop(key, None)
        for other, reported in self._reported.items():
            self._reported[other] = {a: by for a, by in reported.items() if by != key}

    def save(self) -> None:
        """Raises StorageError."""
        self.has_news = False
        with folder_lock(self.folder):
            write_json(self.folder / ADDRESSES_FILE, addresses_body(self.seen))


class Finder:
    """Dials missing boards at the seed addresses and the addresses in `book`."""

    def __init__(
        self, loop: Loop, dialer: Dialer, book: AddressBook, log: Callable[[str], bool]
    ) -> None:
        self._loop = loop
        self._dialer = dialer
        self._book = book
        self._log = log
        self._seeds: set[Address] = set()
        self._names: dict[Address, float] = {}  # host name to the time of its next look-up
        self._looked_up: dict[Address, frozenset[Address]] = {}  # the newest addresses of a name
        self.is_due = True  # something changed since the last `dial_missing`

    def add_seeds(self, seeds: Iterable[Address]) -> None:
        """Dial these addresses too, whatever key is there. Names are looked up in a thread."""
        for seed in seeds:
            if seed.is_numeric:
                self._seeds.add(seed)
            else:
                self._names.setdefault(seed, 0.0)
        self.is_due = True

    def dial_missing(self, others: Iterable[str], connected: set[str]) -> None:
        """Dial the boards among `others` that are not `connected`; stop all other attempts."""
        self.is_due = False
        self._look_up_names()
        seen, missing = self._book.seen, [key for key in others if key not in connected]
        taken = {address for key in connected for address in seen.get(key, ())}
        pairs = [(address, key) for key in missing for address in seen.get(key, ())]
        pairs += [(address, key) for address in sorted(self._all_seeds - taken) for key in missing]
        pairs += [(address, key) for key in missing for address in self._book.of(key)]
        self._dialer.dial([(at, key) for address, key in pairs for at in scoped(address)])

    @property
    def _all_seeds(self) -> set[Address]:
        return self._seeds.union(*self._looked_up.values())

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
            return self._loop.soon(partial(self._no_address, name, reason))
        addresses = [Address(str(each[4][0]), name.port) for each in found[:MAX_LOOKED_UP]]
        self._loop.soon(partial(self._found, name, frozenset(addresses)))

    def _found(self, name: Address, addresses: frozenset[Address]) -> None:
        self._looked_up[name] = addresses
        self.is_due = True

    def _no_address(self, name: Address, reason: str) -> None:
        self._log(f"{name.host}: {reason}")
