"""Weights set aside in memory of no process, and taken up again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from picoedge.kernels.arrays import U8
from picoedge.store.pages import PAGE, anonymous
from picoedge.store.shards import Unit
from picoedge.store.window import set_aside as module
from picoedge.store.window.set_aside import SetAside, set_aside

SIZES = (5 * PAGE, 1, PAGE + 1, 3 * PAGE - 7)


def unit_of(number: int, nbytes: int) -> Unit:
    return Unit("ffn", number, range(2, 4), f"layer-{number:03d}.safetensors", PAGE, nbytes)


UNITS = [unit_of(i, nbytes) for i, nbytes in enumerate(SIZES)]


@pytest.fixture(params=[PAGE, 1 << 20])
def resident(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[Unit, U8]]:
    monkeypatch.setattr(module, "_CHUNK", request.param)
    random = np.random.default_rng(1)
    made = {}
    for i, unit in enumerate(UNITS):  # one of them begins within a page
        array = anonymous(unit.nbytes + PAGE)[16 * (i == 0) :][: unit.nbytes]
        array[:] = random.integers(0, 256, unit.nbytes, np.uint8)
        made[unit] = array
    return made


def test_weights_that_were_set_aside_are_taken_up_bit_for_bit(resident: dict[Unit, U8]) -> None:
    before = {unit: bytes(array) for unit, array in resident.items()}
    aside = SetAside(set_aside(resident))
    assert aside.nbytes >= sum(SIZES)
    taken = aside.take(UNITS)
    assert {unit: bytes(array) for unit, array in taken.items()} == before
    assert aside.fd == -1


def test_each_byte_has_one_owner(resident: dict[Unit, U8]) -> None:
    fd = set_aside(resident)
    assert not any(array[i] for array in resident.values() for i in range(array.nbytes))
    seen = os.dup(fd)
    SetAside(fd).take(UNITS)
    assert os.fstat(seen).st_size <= 2 * PAGE  # the list alone is left
    os.close(seen)


def test_units_of_another_slice_are_not_taken(resident: dict[Unit, U8]) -> None:
    first = bytes(resident[UNITS[0]])
    aside = SetAside(set_aside(resident))
    other = unit_of(1, 2)
    taken = aside.take([UNITS[0], other])
    assert [(unit, bytes(array)) for unit, array in taken.items()] == [(UNITS[0], first)]


@pytest.mark.parametrize("head", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7)])
def test_a_damaged_file_has_nothing(head: bytes) -> None:
    fd = os.memfd_create("damaged")
    os.write(fd, head)
    assert SetAside(fd).take(UNITS) == {}


@pytest.mark.parametrize(
    "row", ["[1]", "{}", '[["ffn",0,2,1,"a",-1,9]]', '[["ffn",0,2,4,"a",0,0]]']
)
def test_a_list_that_is_not_sound_has_nothing(row: str) -> None:
    fd = os.memfd_create("damaged")
    os.write(fd, len(row).to_bytes(8, "little") + row.encode())
    assert SetAside(fd).take(UNITS) == {}


def test_a_unit_that_was_cut_is_not_taken(resident: dict[Unit, U8]) -> None:
    fd = set_aside(resident)
    os.ftruncate(fd, os.fstat(fd).st_size - 1)
    assert list(SetAside(fd).take(UNITS)) == UNITS[:-1]


def test_nothing_set_aside_is_nothing() -> None:
    aside = SetAside(-1)
    assert (aside.nbytes, aside.take(UNITS)) == (0, {})
    aside.close()
