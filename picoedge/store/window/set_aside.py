"""Resident weights in memory of no process: a file without a name, which can be handed on.

It begins with a page that says which units follow. A unit is either here or in a process: a
written one is freed there at once, and a read one is cut off here, from the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

from picoedge.fields import check_values
from picoedge.kernels.arrays import U8
from picoedge.store.pages import PAGE, anonymous, forget_anonymous, page_up
from picoedge.store.shards import Unit, UnitKind
from picoedge.store.window.plan import page_bytes

_HEAD_BYTES = 1 << 22  # of the list of units: that of a model of 405 billion parameters has 60 KB
_CHUNK = 2 << 20  # a huge page: bytes that are in both places for a moment


def set_aside(resident: Mapping[Unit, U8]) -> int:
    """Move units out of this process's memory; the descriptor of the file. Raises OSError."""
    units = list(resident)
    head = json.dumps([_row(unit) for unit in units]).encode()
    first = page_up(8 + len(head))
    fd = os.memfd_create("picoedge-kept", os.MFD_CLOEXEC)
    try:
        _write(fd, len(head).to_bytes(8, "little") + head, 0)
        for unit, at in zip(units, _places(units, first), strict=True):
            data = resident[unit]
            lead = data.ctypes.data % PAGE  # a page is freed when all of it is written
            for end in range(_CHUNK - lead, unit.nbytes + _CHUNK, _CHUNK):
                part = data[max(0, end - _CHUNK) : end]
                _write(fd, part, at + max(0, end - _CHUNK))
                forget_anonymous(part)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write(fd: int, data: bytes | U8, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


@dataclass(eq=False)
class SetAside:
    """Weights that were set aside; this process owns the file `fd`. Call `close` at the end."""

    fd: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes now."""
        return os.fstat(self.fd).st_blocks * 512 if self.fd >= 0 else 0

    def take(self, wanted: Iterable[Unit]) -> dict[Unit, U8]:
        """Move the wanted units, as far as they are here, into this process's memory, in one block.

        Nothing is left here. What the file says of itself is not trusted: a unit is taken if it is
        the very same one, and wholly there. Raises MemoryBudgetError.
        """
        units = set(wanted)
        found = [(unit, at) for unit, at in self._content() if unit in units]
        ends = list(accumulate(page_bytes(unit) for unit, _ in found))
        taken: dict[Unit, U8] = {}
        try:
            memory = anonymous(ends[-1]) if ends else None
            for (unit, at), end in reversed(list(zip(found, ends, strict=True))):
                assert memory is not None
                start = end - page_bytes(unit)
                array = memory[start : start + unit.nbytes]
                if self._read(array, at):
                    taken[unit] = array
        finally:
            self.close()
        return {unit: taken[unit] for unit, _ in found if unit in taken}

    def _content(self) -> list[tuple[Unit, int]]:
        """Units and where each begins; nothing where the list is damaged."""
        try:
            length = int.from_bytes(os.pread(self.fd, 8, 0), "little")
            if length > _HEAD_BYTES:
                return []
            data = os.pread(self.fd, length, 8)
            check_values(data)
            units = [_unit(*row) for row in json.loads(data)]
            size = os.fstat(self.fd).st_size
        except (OSError, ValueError, TypeError, RecursionError):
            return []
        placed = zip(units, _places(units, page_up(8 + length)), strict=True)
        return [(unit, at) for unit, at in placed if at + unit.nbytes <= size]

    def _read(self, array: U8, at: int) -> bool:
        """Fill an array from its end on, and cut off what was read; False: it is not all there."""
        view = memoryview(array)
        for start in range((array.nbytes - 1) // _CHUNK * _CHUNK, -1, -_CHUNK):
            part = view[start : start + _CHUNK]
            try:
                if os.preadv(self.fd, [part], at + start) != len(part):
                    return False
                os.ftruncate(self.fd, at + start)
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Free what was not taken. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _places(units: Sequence[Unit], first: int) -> list[int]:
    ends = list(accumulate((page_up(unit.nbytes) for unit in units), initial=first))
    return ends[:-1]


def _row(unit: Unit) -> list[Any]:
    shards = unit.shards
    return [
        unit.kind, unit.layer, shards.start, shards.stop, unit.file, unit.offset, unit.nbytes
    ]  # fmt: skip


def _unit(
    kind: Any, layer: int, first: int, last: int, file: str, offset: int, nbytes: int
) -> Unit:
    numbers = (layer, first, last, offset, nbytes)
    if not all(type(number) is int and number >= 0 for number in numbers) or nbytes == 0:
        raise ValueError(numbers)
    if not isinstance(kind, str) or not isinstance(file, str):
        raise TypeError(f"a unit of {type(kind)} in {type(file)}")
    return Unit(cast(UnitKind, kind), layer, range(first, last), file, offset, nbytes)
