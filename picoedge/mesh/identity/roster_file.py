"""The roster on disk, which both the daemon and `picoedge keys` write, under a lock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from picoedge.errors import AccessError, MeshError
from picoedge.mesh.identity.roster import Roster
from picoedge.mesh.private_files import Stamp, folder_lock, read_json, stamp_of, write_json

REMEDY = "remove the folder, and join again with a new invite"


class RosterFile:
    """`roster.json` of a cluster folder. `roster` is the one read or written last.

    Raises AccessError if the file is missing, damaged or forged, StorageError if it cannot be
    read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "roster.json"
        self._stamp: Stamp | None = stamp_of(self.path)
        self.roster = self._read(None)

    def reload_if_changed(self) -> bool:
        """Merge the file if another process has replaced it; whether `roster` has changed.

        Entries are never lost to an older file. A damaged file raises once.
        """
        stamp = stamp_of(self.path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return self._hold(self.roster.merge(self._read(self.roster)))

    def update(self, change: Callable[[Roster], Roster]) -> bool:
        """Apply `change` to the newest roster and save it; whether `roster` has changed.

        It is on the disk when this returns. If `change` raises, nothing is changed.
        """
        with folder_lock(self.folder):
            on_disk = self._read(self.roster)
            changed = change(self.roster.merge(on_disk))
            if changed != on_disk:
                write_json(self.path, changed.to_json())
            self._stamp = stamp_of(self.path)
        return self._hold(changed)

    def take(self, value: object) -> bool:
        """Merge a roster (JSON) from a peer; whether it had anything new.

        Raises ProtocolError or AccessError if it is malformed, another cluster's or forged.
        """
        theirs = Roster.from_json(value, self.roster)
        if self.roster.merge(theirs) == self.roster:
            return False
        return self.update(lambda roster: roster.merge(theirs))

    def _hold(self, roster: Roster) -> bool:
        changed = roster != self.roster
        self.roster = roster
        return changed

    def _read(self, known: Roster | None) -> Roster:
        value = read_json(self.path, REMEDY)
        if value is None:
            raise AccessError(f"{self.path}: there is no roster", REMEDY)
        try:
            return Roster.from_json(value, known)
        except MeshError as error:
            raise AccessError(f"{self.path}: {error.message}", error.hint or REMEDY) from None


def write_first_roster(folder: Path, roster: Roster) -> None:
    """Write the roster of a folder that has no identity yet."""
    write_json(folder / "roster.json", roster.to_json())
