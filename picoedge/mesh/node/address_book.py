"""Address book: where boards were last seen, in `peers.json`. Hints only: keys decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.mesh.addresses import Address
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json
from picoedge.mesh.node.gossip import KnownAddresses, addresses_body, read_addresses

ADDRESSES_FILE = "peers.json"
MAX_KEPT = 4  # addresses of one board: a board that moves replaces its old ones


class AddressBook:
    """Public key to addresses, the newest first. A damaged file counts as an empty one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Address, ...]] = dict(_read(folder / ADDRESSES_FILE))

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


def _read(path: Path) -> KnownAddresses:
    try:
        value = read_json(path, "")
        return read_addresses(value) if isinstance(value, dict) else {}
    except PicoedgeError:
        return {}
