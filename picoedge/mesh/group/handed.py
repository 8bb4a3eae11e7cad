"""Connections that another process of this board has accepted, and hands on over a Unix socket."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

MOST_FILES = 4  # of one message, of which one is due; the system closes the others


def handed_name(relay: str) -> str:
    """The name, in the abstract namespace, beside that of a worker's relay."""
    return f"{relay}-handed"


class HandedConnections:
    """Receives connections at `name`. Poll `fileno`, and iterate where it is readable."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(f"\0{name}")
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For a poll; -1 once it is closed."""
        return self._socket.fileno()

    def __iter__(self) -> Iterator[socket.socket]:
        """The connections that have come."""
        room = socket.CMSG_SPACE(MOST_FILES * array.array("i").itemsize)
        while True:
            try:
                _, rights, _, _ = self._socket.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
            except OSError:  # no more of them
                return
            for files in map(_files_of, rights):
                yield from _connections(files)

    def close(self) -> None:
        """Receive no more. Idempotent."""
        self._socket.close()


def _files_of(rights: tuple[int, int, bytes]) -> list[int]:
    level, kind, data = rights
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    files = array.array("i")
    files.frombytes(data[: len(data) - len(data) % files.itemsize])
    return list(files)


def _connections(files: list[int]) -> Iterator[socket.socket]:
    for file in files:
        try:
            yield socket.socket(fileno=file)
        except OSError:  # it is no socket
            os.close(file)
