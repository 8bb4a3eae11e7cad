"""Records of all that a lab makes, written before it is made, so that a later process can undo it.

A record is a file that its lab and the lab's guardian hold locked. An unlocked record was left
behind (both were killed): the next lab sweeps it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from hw.lab.cgroups import kill_all, loosen, remove_folder

RECORDS = Path("/run/picoedge-lab")


class Record:
    """One lab's record: lines of "group PATH" and "folder PATH"."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd

    @classmethod
    def create(cls, path: Path) -> Record:
        """A new one, locked; `fd` may be handed to another process, which then holds it too."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return cls(path, fd)
            os.close(fd)  # swept by another lab before it was locked

    def add(self, kind: str, path: Path) -> None:
        """Write down a thing about to be made: a "group" or a "folder"."""
        os.write(self.fd, f"{kind} {path}\n".encode())

    def undo(self) -> None:
        """End and remove all that is written down, then the record; done twice it does nothing."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return
        made = [(kind, Path(path)) for kind, _, path in (line.partition(" ") for line in lines)]
        groups = [path for kind, path in made if kind == "group"]
        for group in groups:
            loosen(group)
        for group in groups:
            kill_all(group)
        for group in groups:
            remove_folder(group)
        for kind, path in made:
            if kind == "folder":
                shutil.rmtree(path, ignore_errors=True)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def sweep(folder: Path = RECORDS) -> int:
    """Undo the labs whose records no process holds; return their number."""
    swept = 0
    for path in folder.glob("*"):
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Record(path, fd).undo()
            swept += 1
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
    return swept
