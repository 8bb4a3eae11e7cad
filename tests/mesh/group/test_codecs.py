"""Exact sums in fewer bytes: parts without bits that are zero, and sums as they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import CASES, VOCAB, packed_model

from picoedge.errors import ProtocolError
from picoedge.kernels.arrays import F64
from picoedge.kernels.f48 import EXCEPTION, F48_BYTES
from picoedge.kernels.loader import load_f48, load_kernels
from picoedge.mesh.group.allreduce import chunks
from picoedge.mesh.group.codecs import F48_FROM, F48Codec, is_cut
from picoedge.model.bound_kernels import Reduce
from picoedge.model.transformer import Transformer

TOKENS = [(31 * i + 7) % VOCAB for i in range(9)]


def rounded(sums: F64) -> None:
    """As a sum comes from the board that added it."""
    sums[...] = sums.astype(np.float32)


def untouched(sums: F64) -> None:
    """As it is on that board."""


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("case", CASES)
def test_a_sum_is_read_as_f32(case: str, backend: str, batch: int, tmp_path: Path) -> None:
    packed = packed_model(case, tmp_path, 8, blocks=True)

    def logits(reduce: Reduce) -> bytes:
        model = Transformer(packed, load_kernels(backend, 1), 64, batch=batch, reduce=reduce)
        try:
            return np.concatenate([rows.copy() for rows in model.forward_all(TOKENS, 0)]).tobytes()
        finally:
            model.close()

    assert logits(rounded) == logits(untouched)


def part(count: int, odd: int, seed: int = 1) -> F64:
    """Some f32 numbers, but so many that have more bits than those."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(count).astype(np.float32).astype(np.float64)
    values[random.choice(count, odd, replace=False)] += 1e-15
    return values


CODECS = [F48Codec(load_f48(backend)) for backend in ("native", "numpy")]


def encoded(values: F64) -> memoryview:
    """By both backends alike."""
    rooms = [memoryview(bytearray(8 * len(values))) for _ in CODECS]
    native, numpy = (
        room[: codec.encode(values, room)] for room, codec in zip(rooms, CODECS, strict=True)
    )
    assert native == numpy
    return native


def check_decoded(body: memoryview, values: F64) -> None:
    """By both backends, into numbers that were there before."""
    for codec in CODECS:
        assert codec.decode(body, np.full(len(values), np.nan)).tobytes() == values.tobytes()


@given(st.integers(1, 3 * F48_FROM), st.integers(0, 40), st.integers(0, 9))
def test_parts_come_back_to_the_bit(count: int, odd: int, seed: int) -> None:
    values = part(count, min(odd, count), seed)
    values[:: count // 3 + 1] = np.inf
    values[1 :: count // 3 + 1] = -np.nan
    body = encoded(values)
    check_decoded(body, values)
    if count >= F48_FROM:
        assert len(body) <= F48_BYTES * count + (odd + 6) * EXCEPTION.itemsize


def test_parts_that_need_all_their_bits_take_no_more_than_those() -> None:
    values = np.random.default_rng(1).standard_normal(F48_FROM)
    assert len(encoded(values)) == 8 * F48_FROM
    check_decoded(encoded(values), values)


@pytest.mark.parametrize(
    "nbytes", [0, 1, F48_BYTES * F48_FROM - 6, F48_BYTES * F48_FROM + 1, 16 * F48_FROM]
)
def test_a_part_of_another_length_is_refused(nbytes: int) -> None:
    for codec in CODECS:
        with pytest.raises(ProtocolError, match=f"{nbytes} bytes for {F48_FROM} values"):
            codec.decode(memoryview(bytes(nbytes)), np.empty(F48_FROM))


def test_bits_of_a_value_that_is_not_there_are_refused() -> None:
    body = encoded(part(F48_FROM, 3))
    np.frombuffer(body, EXCEPTION, 3, F48_BYTES * F48_FROM)["index"][1] = F48_FROM
    for codec in CODECS:
        with pytest.raises(ProtocolError, match=f"a value beyond the {F48_FROM} there are"):
            codec.decode(body, np.empty(F48_FROM))


@given(st.integers(1, 10**6), st.lists(st.integers(0, 20), min_size=1, max_size=9, unique=True))
def test_chunks_cover_every_value_once(values: int, owners: list[int]) -> None:
    runs = list(chunks(values, owners).values())
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == values
    assert all(run.start <= run.stop and run.start % 32 == 0 for run in runs)


@pytest.mark.parametrize("boards", [2, 3, 4, 8])
def test_a_token_is_not_cut_and_a_prompt_is(boards: int) -> None:
    assert not is_cut(2048, boards)
    assert is_cut(256 * 2048, boards)
    assert is_cut(1, 1)  # told as a sum
