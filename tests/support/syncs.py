"""Which names a power cut would lose: folders made and files renamed without a sync behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


class Unsynced:
    """Names that are new in their folder, and that no fsync of the folder has followed yet."""

    def __init__(self) -> None:
        self.names = set[str]()
        self.contents = set[str]()  # files renamed before their own bytes were synced
        self._synced = set[str]()

    def made(self, path: Any) -> None:
        self.names.add(os.path.abspath(path))

    def renamed(self, source: Any, target: Any) -> None:
        if os.path.isfile(target) and os.path.abspath(source) not in self._synced:
            self.contents.add(os.path.abspath(target))
        self.names.discard(os.path.abspath(source))
        self.names.add(os.path.abspath(target))

    def synced(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._synced.add(path)
        self.names = {name for name in self.names if os.path.dirname(name) != path}


@contextmanager
def watching_syncs() -> Iterator[Unsynced]:
    """While the block runs, folders made, renames and syncs of this process are noted."""
    seen = Unsynced()
    mkdir, fsync, replace, rename = os.mkdir, os.fsync, os.replace, os.rename

    def noted_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        mkdir(path, *args, **kwargs)
        seen.made(path)

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        seen.synced(fd)

    def noted_replace(source: Any, target: Any, **kwargs: Any) -> None:
        replace(source, target, **kwargs)
        seen.renamed(source, target)

    def noted_rename(source: Any, target: Any, **kwargs: Any) -> None:
        rename(source, target, **kwargs)
        seen.renamed(source, target)

    with (
        mock.patch.object(os, "mkdir", noted_mkdir),
        mock.patch.object(os, "fsync", noted_fsync),
        mock.patch.object(os, "replace", noted_replace),
        mock.patch.object(os, "rename", noted_rename),
    ):
        yield seen


def lost_names(seen: Unsynced, *folders: Path) -> list[str]:
    """What of the names below these folders a power cut would take, as far as they still exist."""
    return sorted(
        name
        for name in seen.names | seen.contents
        if os.path.lexists(name) and any(Path(name).is_relative_to(folder) for folder in folders)
    )
