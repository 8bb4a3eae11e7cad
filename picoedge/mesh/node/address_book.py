"""Where boards were last seen: `peers.json` of the cluster's folder. Hints only: keys decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.mesh.addresses import Address
from picoedge.mesh.node.gossip import Hints, hints_body, read_hints
from picoedge.mesh.private_files import locked, read_json, write_json

FILE = "peers.json"
MOST = 4  # addresses of one board


class HintFile:
    """Public key to addresses, the newest first. A damaged file is an empty one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hints: dict[str, tuple[Address, ...]] = dict(_read(folder / FILE))

    @property
    def hints(self) -> Hints:
        return self._hints

    def seen(self, key: str, addresses: Iterable[Address]) -> bool:
        """The board itself was met at these; whether that is news."""
        found = tuple(each for each in dict.fromkeys(addresses) if not each.is_everywhere)
        return self._hold(key, found + self._hints.get(key, ()))

    def told(self, hints: Hints, believed: Callable[[str], bool]) -> bool:
        """Another board says so: it adds to what is known, and displaces none of it."""
        news = [
            self._hold(key, self._hints.get(key, ()) + addresses)
            for key, addresses in hints.items()
            if believed(key)
        ]
        return any(news)

    def forget(self, key: str) -> None:
        """Of a board that is let in no more."""
        self._hints.pop(key, None)

    def save(self) -> None:
        """Raises StorageError."""
        with locked(self.folder):
            write_json(self.folder / FILE, hints_body(self._hints))

    def _hold(self, key: str, addresses: tuple[Address, ...]) -> bool:
        kept = tuple(dict.fromkeys(addresses))[:MOST]
        before = self._hints.get(key, ())
        self._hints[key] = kept
        # The order alone is no news: two boards would tell each other of it for ever.
        return set(kept) != set(before)


def _read(path: Path) -> Hints:
    try:
        value = read_json(path, "")
        return read_hints(value) if isinstance(value, dict) else {}
    except PicoedgeError:
        return {}
