"""The slice of this board's own last session, which the daemon keeps: memory without a process.

The session's process hands it over at its end, as a file of memory, and the next one's fetches it:
each byte has one owner, and a killed owner's bytes are free. A kept slice is freed by closing it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from picoedge.jobs.kept_memory import SOCKET, receive_message, send_message, short_path
from picoedge.jobs.spec import SliceKey, read_kept
from picoedge.sanitize import one_line

if TYPE_CHECKING:
    from picoedge.mesh.transport.loop import Loop

MOST_CONNECTIONS = 8  # of programs that are starting here: more of them would have no memory
_CREDENTIALS = struct.Struct("3i")  # pid, user, group
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)  # fails for a file that is not of memory


@dataclass(frozen=True, eq=False)
class SliceFile:
    """A slice in a file of memory, and the key of sessions that can go on with it."""

    key: SliceKey
    model: str
    fd: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Let go of it: this process's bytes of it are free."""
        os.close(self.fd)


class Answer(Protocol):
    """Answers a request of a program of this board, once."""

    def __call__(
        self, ok: bool, fd: int | None = None, leave: int | None = 0, most: int | None = 0
    ) -> None:
        """With a file, and for `hold` the bytes to leave to others, None: not known yet; and the
        most that they can be.
        """


LocalHandler = Callable[[Mapping[str, Any], int | None, Answer], None]
"""called with a request, and a file that it then owns; answers now or later"""


class HubSlice:
    """The slice that this board's last session left, or none.

    While a session has the board, the slice is that session's memory, wherever its file is open: it
    was given for later, or waits to be fetched. Otherwise it is `kept`.
    """

    def __init__(self) -> None:
        self._file: SliceFile | None = None
        self._is_kept = False

    @property
    def kept(self) -> SliceFile | None:
        """The kept slice, while no session has it."""
        return self._file if self._is_kept else None

    @property
    def nbytes(self) -> int:
        """Bytes that this process has of it."""
        return self._file.nbytes if self._file else 0

    def give(self, left: SliceFile) -> None:
        """The session that has the board leaves this slice."""
        self._drop()
        self._file = left

    def settle(self) -> SliceFile | None:
        """The session has left: what it gave, or has not fetched, is kept from now on."""
        self._is_kept = self._file is not None
        return self._file

    def lend(self, wanted: SliceKey | None) -> bool:
        """A session that wants this slice has the board; False if it is not kept."""
        if not self._is_kept or wanted is None or self._file is None or self._file.key != wanted:
            return False
        self._is_kept = False
        return True

    def fetch(self, wanted: SliceKey | None) -> SliceFile | None:
        """The lent slice, for the session's process, which owns it when it has it."""
        if self._is_kept or self._file is None or self._file.key != wanted:
            return None
        lent, self._file = self._file, None
        return lent

    def on_request(
        self, body: Mapping[str, Any], fd: int | None, answer: Answer, *, is_own: bool
    ) -> None:
        """Answer `keep` and `take`; `is_own`: a session of this board has it, and may keep."""
        given = None if fd is None else slice_file_of(body, fd)
        if body.get("do") == "keep" and is_own and (fd is None or given):
            if given is not None:
                self.give(given)
            return answer(True)
        if given is not None:
            given.close()
        lent = self.fetch(wanted_slice(body)) if body.get("do") == "take" and is_own else None
        answer(lent is not None, lent.fd if lent else None)
        if lent is not None:
            lent.close()

    def end(self) -> bool:
        """Free the kept slice; whether there was one."""
        was_kept = self._is_kept
        if was_kept:
            self._drop()
        return was_kept

    def _drop(self) -> None:
        dropped, self._file, self._is_kept = self._file, None, False
        if dropped is not None:
            dropped.close()

    def close(self) -> None:
        """Free everything. Idempotent."""
        self._drop()


class MemorySocket:
    """Takes the requests of `jobs.kept_memory` on `loop`, from programs of this user."""

    def __init__(self, folder: Path, loop: Loop, handler: LocalHandler) -> None:
        """The caller is the folder's only daemon. Raises OSError."""
        self._path, self._loop, self._handler = folder / SOCKET, loop, handler
        self._open: set[socket.socket] = set()
        self._path.unlink(missing_ok=True)  # of a daemon that was killed
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.setblocking(False)
            with short_path(folder) as path:
                self._listener.bind(path)
            self._path.chmod(0o600)
            self._listener.listen(MOST_CONNECTIONS)
        except OSError:
            self._listener.close()
            raise
        loop.add(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has ended again
            return
        if len(self._open) >= MOST_CONNECTIONS:
            return connection.close()
        connection.setblocking(False)
        self._open.add(connection)
        self._loop.add(connection.fileno(), lambda: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
        try:
            body, files = receive_message(connection)
        except (OSError, ValueError):  # it has left, or is none of ours
            return self._end(connection)

        def answer(
            ok: bool, fd: int | None = None, leave: int | None = 0, most: int | None = 0
        ) -> None:
            with suppress(OSError):
                if connection in self._open:
                    send_message(connection, {"ok": ok, "leave": leave, "most": most}, fd)

        sender = {"pid": _peer_pid(connection)}
        self._handler({**body, **sender}, files[0] if files else None, answer)

    def _end(self, connection: socket.socket) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._loop.remove(connection.fileno())
            connection.close()

    def close(self) -> None:
        """Take no more. Idempotent."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self._open):
            self._end(connection)


def _peer_pid(connection: socket.socket) -> int:
    pid, _, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return int(pid)


def wanted_slice(body: Mapping[str, Any]) -> SliceKey | None:
    """The slice that a request is about; None where it names none, or a malformed one."""
    return read_kept(body.get("slice"), "a request")


def slice_file_of(body: Mapping[str, Any], fd: int) -> SliceFile | None:
    """The slice that a session's process gives to be kept; None, and closed, where it is none."""
    key = wanted_slice(body)
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
        if key is not None:
            return SliceFile(key, one_line(str(body.get("model", "")), 64), fd)
    except OSError:
        pass
    os.close(fd)
    return None
