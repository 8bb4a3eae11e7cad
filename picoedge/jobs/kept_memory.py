"""Requests of a program of this board to its daemon about memory, over a socket of their folder.

    keep    may this slice be kept? With a file of memory: keep it, once the board is free
    take    the slice that was kept for the session that has the board now: its file of memory
    free    give up the kept slice, of whatever kind; the answer comes when its memory is free
    hold    this program is about to take so many bytes; the answer has the bytes that others here
            are still to take of what they were promised ("leave"): a session's worker or hub, and
            other programs; null while the session does not know yet ("most": what it may be).
            With "session": the hub itself

A request is one JSON object, and so is its answer. The socket is a file in the cluster's folder,
which only this user can enter. No libzmq: a small board's own chat asks this before it loads.
"""

from __future__ import annotations

import array
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.host import resources

if TYPE_CHECKING:
    from picoedge.engine.options import OpenOptions
    from picoedge.store.pack.reader import Pack

SOCKET = "memory.sock"
MESSAGE_BYTES = 8 << 10  # the longest, of a slice with its adapter, is below 1 KB
_ANSWER_S = 5.0  # for a daemon that is busy
PLANNING_S = 10.0  # of a session that has just been given the board
_LOOK_S = 0.2  # between questions whether a session has planned: soon enough for a person
STARTING_BYTES = 64 << 20  # of a program before its plan: Python, tokenizer, a small window
_GONE_S = 15.0  # for a kept slice to end: in a disk read a process ends when the disk answers


def make_room(folder: Path, pack: Pack, options: OpenOptions) -> int | None:
    """Have a kept slice freed where memory is short, and leave a session's worker what it needs.

    For a model on this board alone that `is_pressed` with LEFT_FREE of the free memory. Returns
    the bytes that this process may take, which it tells with `tell_memory` when it has its plan;
    None: as the options say.
    """
    from picoedge.engine.fit import budget_bytes, is_pressed

    if is_pressed(pack, options):
        free_kept(folder)
    leave = hold_memory(folder, STARTING_BYTES)
    if leave is None:
        return None
    unbounded = dataclasses.replace(options, memory_bytes=None)
    while True:
        room = max(1, budget_bytes(options.memory_bytes) - leave)
        if not is_pressed(pack, unbounded, room / budget_bytes(None)):
            return room
        # It will be streamed through all there is; others may have been promised some meanwhile.
        before, leave = leave, max(leave, hold_memory(folder, room) or 0)
        if leave == before:
            return room


def claim_memory(folder: Path, nbytes: int) -> None:
    """Take so much for a program that knows what it needs, if need be from the kept slice."""
    if nbytes > resources.available_bytes():
        free_kept(folder)
    hold_memory(folder, nbytes)


@contextmanager
def short_path(folder: Path) -> Iterator[str]:
    """A path of the socket that is short enough for the system, wherever its folder is."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def keep_slice(folder: Path, slice_: Mapping[str, Any], model: str, make: Any) -> bool:
    """Have the daemon keep a slice; `make` returns the file of memory, which is closed here.

    It is called only if the daemon will keep it. False, without a word, if it does not.
    """
    request = {"do": "keep", "slice": slice_, "model": model}
    with suppress(OSError, ValueError), _connected(folder) as connection:
        if not _ask(connection, request)[0]:
            return False
        fd = make()
        try:
            return _ask(connection, request, fd)[0]
        finally:
            os.close(fd)
    return False


def take_slice(folder: Path, slice_: Mapping[str, Any]) -> int | None:
    """The file of memory of the slice that the daemon kept; the caller owns it. None: none."""
    with suppress(OSError, ValueError), _connected(folder) as connection:
        return _ask(connection, {"do": "take", "slice": slice_})[1]
    return None


def free_kept(folder: Path) -> bool:
    """Have the daemon give up what it keeps; whether there was something, and it is gone."""
    with suppress(OSError, ValueError), _connected(folder) as connection:
        connection.settimeout(_GONE_S)
        return _ask(connection, {"do": "free"})[0]
    return False


def hold_memory(folder: Path, nbytes: int) -> int | None:
    """Tell the daemon what this program is about to take, until it ends.

    Returns the bytes that others on this board are still to take; None without a daemon. A session
    that has just been given the board is waited for, for PLANNING_S, until it has its plan; then it
    is left the most that it may take.
    """
    deadline, most = time.monotonic() + PLANNING_S, 0
    with suppress(OSError, ValueError), _connected(folder) as connection:
        while time.monotonic() < deadline:
            leave, most = _hold(connection, {"bytes": nbytes})
            if leave is not None:
                return leave
            time.sleep(_LOOK_S)
        return most
    return None


def tell_memory(folder: Path, nbytes: int, *, session: str = "") -> None:
    """Tell the daemon what this program takes by its plan; the hub of a session says of which."""
    with suppress(OSError, ValueError), _connected(folder) as connection:
        _hold(connection, {"bytes": nbytes, "session": session})


def _hold(connection: socket.socket, request: Mapping[str, Any]) -> tuple[int | None, int]:
    send_message(connection, {"do": "hold", **request})
    answer, files = receive_message(connection)
    for file in files:
        os.close(file)
    leave, most = answer.get("leave", 0), answer.get("most", 0)
    return (max(0, leave) if type(leave) is int else None), max(0, most) if type(most) is int else 0


@contextmanager
def _connected(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_ANSWER_S)
        with short_path(folder) as path:
            connection.connect(path)
        yield connection


def _ask(
    connection: socket.socket, request: Mapping[str, Any], fd: int | None = None
) -> tuple[bool, int | None]:
    send_message(connection, request, fd)
    answer, files = receive_message(connection)
    for extra in files[1:]:
        os.close(extra)
    return answer.get("ok") is True, files[0] if files else None


# -- messages, of both ends ------------------------------------------------------------------------


def send_message(connection: socket.socket, body: Mapping[str, Any], fd: int | None = None) -> None:
    """Send one object, with a file or without. Raises OSError."""
    rights = [] if fd is None else [fd]
    level = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))
    connection.sendmsg([json.dumps(body).encode()], [level] if rights else [])


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One object, and the files with it, which the caller owns. Raises OSError, ValueError."""
    room = socket.CMSG_SPACE(array.array("i").itemsize)
    data, rights, _, _ = connection.recvmsg(MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    files = array.array("i")
    for level, kind, part in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(part[: len(part) - len(part) % files.itemsize])
    try:
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        for file in files:
            os.close(file)
        raise ValueError("not a message") from error
    return body, list(files)
