"""A board's folder after a power cut: what was synced is there, of the rest what the disk likes.

A folder has either the names it was last synced with or its present ones; a file's content is the
synced one, the one of now, or a torn one: the beginning of the new and zeros, or the old.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

SMALL_BYTES = 1 << 20  # larger files of before are linked, not copied
SECTOR = 512
NAMES = ".names"

Names = dict[str, str]  # name -> key


class Disk:
    """What of `root` would survive; `shadow` is where the preloaded library writes."""

    def __init__(self, library: Path, root: Path, shadow: Path) -> None:
        self._library, self._root, self._shadow = library, root, shadow
        self._key = ctypes.CDLL(str(library)).bench_key
        self._linked: dict[str, int] = {}  # key -> modification time of before

    def environment(self) -> dict[str, str]:
        """For each process of the board."""
        names = {"BENCH_SHADOW": str(self._shadow), "BENCH_SHADOW_OF": str(self._root)}
        return {"LD_PRELOAD": str(self._library), **names}

    def key(self, path: Path) -> str:
        """A file's or folder's own name, whatever it is called. Raises OSError."""
        buffer = ctypes.create_string_buffer(64)
        if self._key(os.fsencode(path), buffer):
            raise FileNotFoundError(str(path))
        return buffer.value.decode()

    def begin(self) -> None:
        """All that is there now is on the disk."""
        shutil.rmtree(self._shadow, ignore_errors=True)
        self._shadow.mkdir()
        self._linked.clear()
        self._hold(self._root)

    def _hold(self, folder: Path) -> None:
        names = self._names(folder)
        self._write(self.key(folder), names)
        for name, key in names.items():
            path = folder / name
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                self._hold(path)
            elif stat.S_ISREG(mode) and path.stat().st_size <= SMALL_BYTES:
                shutil.copy2(path, self._shadow / key)
            elif stat.S_ISREG(mode):
                os.link(path, self._shadow / key)
                self._linked[key] = path.stat().st_mtime_ns

    def _names(self, folder: Path) -> Names:
        return {name: self.key(folder / name) for name in sorted(os.listdir(folder))}

    def _write(self, key: str, names: Names) -> None:
        lines = [f"{one} {name}\n" for name, one in names.items()]
        (self._shadow / (key + NAMES)).write_text("".join(lines))

    def _synced_names(self, key: str) -> Names:
        """The names that a folder was last synced with; none if it never was."""
        try:
            lines = (self._shadow / (key + NAMES)).read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {name: one for one, _, name in (line.partition(" ") for line in lines)}

    # -- the cut -----------------------------------------------------------------------------------

    def cut(self, dice: random.Random) -> Lost:
        """Put the folder in the state that a power cut leaves; no process may use it."""
        lost = Lost()
        self._cut_folder(self._root, self.key(self._root), dice, lost)
        return lost

    def _cut_folder(self, folder: Path, key: str, dice: random.Random, lost: Lost) -> None:
        now, synced = self._names(folder), self._synced_names(key)
        chosen = now
        if now != synced and dice.random() < 0.5:
            chosen = synced
            lost.folders.append(str(folder.relative_to(self._root)))
        for name in sorted(now.keys() - {n for n in now if chosen.get(n) == now[n]}):
            _remove(folder / name)
        for name, one in chosen.items():
            path = folder / name
            if now.get(name) != one:
                self._make(path, one)
            elif path.is_dir() and not path.is_symlink():
                self._cut_folder(path, one, dice, lost)
            elif path.is_file() and not path.is_symlink():
                self._cut_file(path, one, dice, lost)

    def _make(self, path: Path, key: str) -> None:
        """What had this name when its folder was synced, as it was synced itself."""
        held = self._shadow / key
        if (self._shadow / (key + NAMES)).exists():
            path.mkdir()
            for name, one in self._synced_names(key).items():
                self._make(path / name, one)
        elif held.exists():
            shutil.copyfile(held, path)
        else:
            path.touch()  # its content was never synced

    def _cut_file(self, path: Path, key: str, dice: random.Random, lost: Lost) -> None:
        held, its = self._shadow / key, path.stat()
        if key in self._linked and held.exists() and held.stat().st_ino == its.st_ino:
            if its.st_mtime_ns == self._linked[key]:
                return
            synced = b""
        elif held.exists():
            if (held.stat().st_mtime_ns, held.stat().st_size) == (its.st_mtime_ns, its.st_size):
                return
            synced = held.read_bytes()
        else:
            synced = b""
        now = path.read_bytes()
        left = torn(synced, now, dice)
        if left != now:
            lost.files.append(str(path.relative_to(self._root)))
            with open(path, "r+b") as file:
                file.truncate(0)
                file.write(left)


@dataclass
class Lost:
    """What a cut took back: folders' names, and files' contents."""

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def torn(synced: bytes, now: bytes, dice: random.Random) -> bytes:
    """What a disk may hold of a file that was written to since it was synced."""
    way = dice.randrange(4)
    if way == 0:
        return now
    if way == 1:
        return synced
    end = dice.randrange(len(now) + 1) // SECTOR * SECTOR if len(now) > SECTOR else 0
    if way == 2:  # the length was written, not all of the content
        return now[:end] + bytes(max(0, len(now) - end))
    return now[:end] + synced[end:]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
