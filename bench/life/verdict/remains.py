"""What a life leaves behind on its machine when all has ended."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.life.boards import LifeBoard
from picoedge.store.pack.atomic_folder import is_passing

SEGMENTS, PROC = Path("/dev/shm"), Path("/proc")
OURS = re.compile("picoedge|^psm_|^sem\\.")  # by its name or by Python's: other programs have some
LISTENING, ESTABLISHED = "0A", "01"  # of a TCP socket; what only ends by itself is the kernel's
_UNFINISHED = (".new", ".tmp")


def segments() -> set[str]:
    """Segments of shared memory on this machine: POSIX ones by name, System V ones by id."""
    named = [path.name for path in SEGMENTS.glob("*")] if SEGMENTS.is_dir() else []
    posix = {name for name in named if OURS.search(name)}
    return posix | {f"System V {line.split()[1]}" for line in _lines(PROC / "sysvipc/shm")[1:]}


def segments_left(before: set[str]) -> list[str]:
    """New ones that no living process has: others' lives on this machine go on."""
    new = segments() - before
    if not new:
        return []
    held = {line.split("/dev/shm/", 1)[1].split(" ")[0] for line in _maps() if "/dev/shm/" in line}
    attached = {
        f"System V {parts[1]}"
        for parts in map(str.split, _lines(PROC / "sysvipc/shm")[1:])
        if int(parts[6]) > 0
    }
    return [f"segment {name}" for name in sorted(new - held - attached)]


def left_on(boards: Sequence[LifeBoard]) -> list[str]:
    """Processes, sockets and partial files of boards, once daemons and chats have ended."""
    found: list[str] = []
    for each in boards:
        name = each.board.name
        found += [f"{name}: process {_words(pid)}" for pid in each.board.pids()]
        found += [f"{name}: socket {socket}" for socket in _sockets(each)]
        found += [f"{name}: {path}" for path in files_left(each.board.folder)]
    return found


def files_left(folder: Path) -> list[str]:
    """What processes that are gone have left in a folder, at any depth: partial files and pipes."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if is_passing(path.name) or path.suffix in _UNFINISHED or path.is_socket() or path.is_fifo()
    ]


def _sockets(each: LifeBoard) -> Iterator[str]:
    """Of the board's own network, still held by a process."""
    names = ("tcp", "tcp6", "udp", "udp6", "unix")
    script = "; ".join(f"echo {name}; cat /proc/net/{name}" for name in names)
    done = each.board.run(["sh", "-c", script])
    kind = ""
    for line in done.stdout.splitlines():
        parts = line.split()
        if line in names:
            kind = line
        elif parts and parts[0].endswith(":") and is_held(kind, parts):
            yield f"{kind} {' '.join(parts[1:4])}"


def is_held(kind: str, parts: Sequence[str]) -> bool:
    """Whether a line of /proc/net/KIND is of a socket that a process could have."""
    return kind in ("udp", "udp6", "unix") or parts[3] in (LISTENING, ESTABLISHED)


@dataclass(frozen=True)
class Spaces:
    """The network namespaces of a lab, by their numbers."""

    numbers: frozenset[int]

    @classmethod
    def of(cls, boards: Sequence[LifeBoard]) -> Spaces:
        """While the lab is open."""
        return cls(frozenset(os.fstat(each.board.namespace.fd).st_ino for each in boards))

    def left(self) -> list[str]:
        """Those that a process is in, or holds open, after the lab was closed."""
        found = []
        for folder in PROC.glob("[0-9]*"):
            for link in (folder / "ns/net", *_open_files(folder)):
                with suppress(OSError):
                    number = _number(os.readlink(link))
                    if number in self.numbers:
                        found.append(f"namespace {number}, of {_words(int(folder.name))}")
        return sorted(set(found))


def _number(target: str) -> int:
    """`net:[4026532000]` → 4026532000; 0 for another file."""
    return int(target[5:-1]) if target.startswith("net:[") else 0


def _open_files(folder: Path) -> list[Path]:
    try:
        return list((folder / "fd").iterdir())
    except OSError:
        return []


def _maps() -> Iterator[str]:
    for path in PROC.glob("[0-9]*/maps"):
        yield from _lines(path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return str(pid)
    return b" ".join(words[:6]).decode(errors="replace")
