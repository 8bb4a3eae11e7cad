"""A model streamed through a window computes what the whole one does, bit by bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threads_as_boards import Meeting
from tiny_model import write_tiny_model
from window_models import Keep, keep_head, keep_none, keep_others, plan_of, whole, windowed

from picoedge.errors import ModelError
from picoedge.model.transformer import Transformer
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.pages import PAGE
from picoedge.store.shards import Slice
from picoedge.store.sources.source import open_source
from picoedge.store.window import io as window_io
from picoedge.store.window.plan import WindowPlan
from picoedge.store.window.weights import StreamedWeights

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95, 2, 88, 41, 97, 169]
STEPS = 6
BOTH = ["direct", "mmap"]
KEEPS: list[Keep] = [keep_none, keep_head, keep_others]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder: Path = tmp_path_factory.mktemp("window")
    pack_source(open_source(write_tiny_model(folder / "hf")), folder / "tiny.pico", bits=4)
    return Pack.open(folder / "tiny.pico")


@pytest.fixture(autouse=True)
def _no_reader_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("window-")]


def logits_of(model: Transformer, prompt: list[int] = PROMPT, steps: int = STEPS) -> np.ndarray:
    """After a prompt and after each of the greedy tokens that follow, [1 + steps, vocab]."""
    seen = [model.forward(prompt, 0).copy()]
    for position in range(len(prompt), len(prompt) + steps):
        seen.append(model.forward([int(seen[-1].argmax())], position).copy())
    return np.stack(seen)


@pytest.fixture(scope="module", params=["native", "numpy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def want(packed: Pack, backend: str) -> np.ndarray:
    with whole(packed, backend) as model:
        return logits_of(model)


@pytest.mark.parametrize("io", BOTH)
@pytest.mark.parametrize("most", [1, 100_000, 1 << 20])
@pytest.mark.parametrize("room", [1, 2, 4.5])
def test_no_window_changes_a_bit(
    packed: Pack, backend: str, want: np.ndarray, io: str, most: int, room: float
) -> None:
    for keep in KEEPS:
        with windowed(packed, plan_of(packed, most, keep, room), io, backend) as model:
            np.testing.assert_array_equal(logits_of(model), want)


@pytest.mark.parametrize("io", BOTH)
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_no_chunk_of_the_prompt_changes_a_bit(packed: Pack, io: str, batch: int) -> None:
    with whole(packed) as model:
        want = logits_of(model)
    with windowed(packed, plan_of(packed), io, batch=batch) as model:
        np.testing.assert_array_equal(logits_of(model), want)


@pytest.mark.parametrize("io", BOTH)
def test_all_but_one_unit_resident(packed: Pack, backend: str, want: np.ndarray, io: str) -> None:
    for streamed in (0, 7, len(plan_of(packed).units) - 1):
        plan = plan_of(packed, keep=lambda i, unit, streamed=streamed: i != streamed, room=1)
        with windowed(packed, plan, io, backend) as model:
            assert len(plan.streamed) == 1
            np.testing.assert_array_equal(logits_of(model), want)


def test_nothing_streamed(packed: Pack, backend: str, want: np.ndarray) -> None:
    with windowed(packed, plan_of(packed, keep=lambda i, unit: True), "direct", backend) as model:
        np.testing.assert_array_equal(logits_of(model), want)
        assert model.weight_store.usage.units == 0


@pytest.mark.parametrize("io", BOTH)
def test_many_reads_a_unit(packed: Pack, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole(packed) as model:
        want = logits_of(model)
    monkeypatch.setattr(window_io, "CHUNK", 3 * PAGE)
    monkeypatch.setattr(window_io, "MAPPED_CHUNK", 2 * PAGE)
    for room in (1, 2, 4):
        with windowed(packed, plan_of(packed, 1 << 20, room=room), io) as model:
            np.testing.assert_array_equal(logits_of(model), want)


@pytest.mark.parametrize("number", [22, 12])  # EINVAL: an old kernel; ENOMEM
def test_pages_that_cannot_be_asked_for_are_read(
    packed: Pack, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with whole(packed) as model:
        want = logits_of(model)
    monkeypatch.setattr(window_io, "populate", lambda array: number)
    with windowed(packed, plan_of(packed), "mmap") as model:
        np.testing.assert_array_equal(logits_of(model), want)


@pytest.mark.parametrize("io", BOTH)
@pytest.mark.parametrize("batch", [5, 64])
def test_logits_of_all_tokens(packed: Pack, io: str, batch: int) -> None:
    with whole(packed) as model:
        want = all_logits(model)
    with windowed(packed, plan_of(packed), io, batch=batch) as model:
        np.testing.assert_array_equal(all_logits(model), want)


def all_logits(model: Transformer) -> np.ndarray:
    return np.concatenate([rows.copy() for rows in model.forward_all(PROMPT, 0)])


SMOLLM2_PROMPT = [504, 3575, 282, 4649, 314, 260, 1234, 30, 99, 7000, 12, 345, 678]


@pytest.mark.parametrize("io", BOTH)
def test_smollm2(smollm2_pack: Path, io: str) -> None:
    packed = Pack.open(smollm2_pack)
    with whole(packed) as model:
        want = logits_of(model, SMOLLM2_PROMPT, 2)
    cases: list[tuple[WindowPlan, int]] = [
        (plan_of(packed, 1 << 20, keep_none, 2), 64),
        (plan_of(packed, 1 << 18, keep_others, 5), 4),
        (plan_of(packed, 8 << 20, keep_head, 2), 64),
    ]
    for plan, batch in cases:
        with windowed(packed, plan, io, batch=batch) as model:
            np.testing.assert_array_equal(logits_of(model, SMOLLM2_PROMPT, 2), want)


@pytest.mark.parametrize("io", BOTH)
def test_smollm2_on_numpy(smollm2_pack: Path, io: str) -> None:
    packed = Pack.open(smollm2_pack)
    with whole(packed, "numpy") as model:
        want = logits_of(model, SMOLLM2_PROMPT, 1)
    with windowed(packed, plan_of(packed, 1 << 20, keep_others, 3), io, "numpy") as model:
        np.testing.assert_array_equal(logits_of(model, SMOLLM2_PROMPT, 1), want)


@pytest.mark.parametrize("io", BOTH)
def test_gemma(gemma_pack: Path, io: str) -> None:
    """A tied head, one key-value head, norms after the sublayers."""
    packed, prompt = Pack.open(gemma_pack), [2, 818, 5279, 529, 7001, 563]
    with whole(packed) as model:
        want = logits_of(model, prompt, 1)
    with windowed(packed, plan_of(packed, 4 << 20), io) as model:
        np.testing.assert_array_equal(logits_of(model, prompt, 1), want)


HEAD = range(16)
SLICES = [
    Slice(range(1), range(2), HEAD),
    Slice(range(1, 3), range(0), HEAD),
    Slice(range(0), range(0), HEAD),
]


@pytest.mark.parametrize("io", BOTH)
@pytest.mark.parametrize("streaming", [(0,), (1,), (0, 1, 2)])
def test_boards_of_which_some_stream(packed: Pack, io: str, streaming: tuple[int, ...]) -> None:
    with whole(packed) as model:
        want = logits_of(model)
    meeting, results = Meeting(len(SLICES)), dict[int, np.ndarray]()

    def board(rank: int) -> None:
        part, reduce = SLICES[rank], meeting.reducer(rank)
        keep = keep_none if rank in streaming else (lambda i, unit: True)
        plan = plan_of(packed, keep=keep, part=part)
        with windowed(packed, plan, io, batch=8, part=part, reduce=reduce) as model:
            results[rank] = logits_of(model)

    threads = [threading.Thread(target=board, args=(rank,)) for rank in range(len(SLICES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(len(SLICES)):
        np.testing.assert_array_equal(results[rank], want)


# -- how much is read ----------------------------------------------------------------------------


def bytes_read_at_rest(model: Transformer, expected: int) -> int:
    """Once readers have read as far ahead as they may, which is `expected`."""
    until = time.monotonic() + 20
    while model.weight_store.usage.bytes_read < expected and time.monotonic() < until:
        time.sleep(0.001)
    return model.weight_store.usage.bytes_read


@pytest.mark.parametrize("io", BOTH)
@pytest.mark.parametrize("keep", [keep_none, keep_head, keep_others])
def test_a_token_reads_what_is_streamed_and_no_more(packed: Pack, io: str, keep: Keep) -> None:
    plan = plan_of(packed, keep=keep, room=3)
    with windowed(packed, plan, io) as model:
        ahead = bytes_ahead(plan)
        assert bytes_read_at_rest(model, ahead) == ahead
        for n, tokens in enumerate((PROMPT, [1], [2], [3]), 1):
            model.forward(tokens, 0 if n == 1 else len(PROMPT) + n - 2)
            expected = n * plan.streamed_bytes + ahead
            assert bytes_read_at_rest(model, expected) == expected
            assert model.weight_store.usage.units == n * len(plan.streamed)


def bytes_ahead(plan: WindowPlan) -> int:
    """What a ring holds of the first units before one of them is used."""
    total = 0
    for i, unit in enumerate(plan.streamed):
        if i >= plan.ring.behind[i]:
            break
        total += window_io.page_range(unit)[1] - window_io.page_range(unit)[0]
    return total


@pytest.mark.parametrize("io", BOTH)
def test_a_prompt_reads_each_unit_once_a_chunk(packed: Pack, io: str) -> None:
    plan = plan_of(packed, keep=keep_head)
    with windowed(packed, plan, io, batch=8) as model:
        model.forward(PROMPT, 0)
        chunks, ahead = 3, bytes_ahead(plan)
        assert model.weight_store.usage.units == chunks * len(plan.streamed)
        expected = chunks * plan.streamed_bytes + ahead
        assert bytes_read_at_rest(model, expected) == expected


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Pack:
    """A pack that a test may damage."""
    pack_source(open_source(write_tiny_model(tmp_path / "hf")), tmp_path / "own.pico", bits=4)
    return Pack.open(tmp_path / "own.pico")


@pytest.mark.parametrize("io", BOTH)
@pytest.mark.parametrize("resident", [False, True])
def test_verify_names_the_shard_with_a_flipped_byte(own: Pack, io: str, resident: bool) -> None:
    unit = own.unit("ffn", 1, range(1, 2))
    flip(own.path / unit.file, unit.offset + 77)
    plan = plan_of(own, keep=lambda i, unit: resident and unit.layer == 1)
    opened: Callable[[], AbstractContextManager[Transformer]]
    opened = partial(windowed, own, plan, io, verify=True)
    with pytest.raises(ModelError) as raised, opened() as model:
        model.forward(PROMPT, 0)
    said = raised.value.message
    assert said.startswith(f"{own.path / unit.file}, shard layer-001/ffn.001, byte {unit.offset}:")
    with pytest.raises(ModelError, match=r"layer-001/ffn\.001"):
        own.verify()


@pytest.mark.parametrize("io", BOTH)
def test_verify_lets_sound_shards_pass(packed: Pack, io: str) -> None:
    with whole(packed) as model:
        want = logits_of(model)
    plan = plan_of(packed, 100_000, keep_others)
    with windowed(packed, plan, io, verify=True) as model:
        np.testing.assert_array_equal(logits_of(model), want)


@pytest.mark.parametrize("io", BOTH)
def test_a_unit_that_is_no_longer_resident_gives_its_memory_back(packed: Pack, io: str) -> None:
    all_stay, others_stay = (
        plan_of(packed, keep=keep) for keep in (lambda i, unit: True, keep_others)
    )
    weights = StreamedWeights(packed, packed.all_shards, all_stay, io=io)
    try:
        held = dict(weights.resident)
        before = {unit: array.copy() for unit, array in held.items()}
        weights.replan(others_stay)
        for unit, array in held.items():
            if unit in others_stay.resident:
                np.testing.assert_array_equal(array, before[unit])
            else:
                assert not array.any(), "pages that were given back are zero"
        weights.replan(all_stay)
        for unit, array in weights.resident.items():
            np.testing.assert_array_equal(array, before[unit])
    finally:
        weights.close()


@pytest.mark.parametrize("io", BOTH)
def test_a_file_cut_while_it_is_used(own: Pack, io: str) -> None:
    with whole(own) as model:
        want = logits_of(model)
    path, unit = own.path / "layer-002.safetensors", own.unit("ffn", 2, range(1, 2))
    sound = path.read_bytes()
    length = unit.offset + 1000
    with windowed(own, plan_of(own, room=1), io) as model:
        model.forward(PROMPT, 0)
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(Exception, match="the file ends") as raised:
            model.forward(PROMPT, 0)
        said = str(raised.value)
        assert said.startswith(f"{path}, shard layer-002/ffn.001, byte {length}:")
        with path.open("r+b") as file:
            file.write(sound)
        np.testing.assert_array_equal(logits_of(model), want)  # the card was pushed in again


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_an_interrupted_pass_is_begun_anew(packed: Pack, want: np.ndarray, backend: str) -> None:
    with windowed(packed, plan_of(packed), "direct", backend) as model:
        runs = model.weight_store.spans("ffn", 1)
        acquire: Any = runs[1].acquire

        def interrupted() -> None:
            acquire()
            object.__setattr__(runs[1], "acquire", acquire)
            raise KeyboardInterrupt

        object.__setattr__(runs[1], "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.forward(PROMPT, 0)
        np.testing.assert_array_equal(logits_of(model), want)
