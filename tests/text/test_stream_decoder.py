"""Incremental decoding and stop strings: the shown text never depends on how it arrives."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import HARD_TEXT, bpe_metadata, sentencepiece_metadata

from picoedge.text.export.export import write_from_gguf
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.text.tokenizer.stream_decoder import StopStrings, StreamDecoder

KINDS = {
    "bytes": bpe_metadata,
    "pieces": sentencepiece_metadata,
    "pieces, own space": lambda: sentencepiece_metadata(True),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_from_gguf(KINDS[request.param](), folder)
    return load_tokenizer(folder)


def streamed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, **options)
    return [*map(decoder.push, ids), decoder.flush()]


def test_hard_text_comes_in_whole_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(HARD_TEXT, parse_special=False)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == HARD_TEXT
    assert len(ids) > len(HARD_TEXT.encode()) / 8  # else it was not one token at a time
    assert not any("\ufffd" in piece for piece in pieces)
    assert "👩‍👩‍👧‍👦" in "".join(pieces)


@given(seed=st.lists(st.integers(0, 699), max_size=30), skip=st.booleans())
def test_pieces_join_to_the_full_decode(tokenizer: Tokenizer, seed: list[int], skip: bool) -> None:
    """Also for ids that are no sound text: halves of characters, special tokens anywhere."""
    pieces = streamed(tokenizer, seed, skip_special=skip)
    assert "".join(pieces) == tokenizer.decode(seed, skip_special=skip)


@given(text=st.text(max_size=40))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    space_is_kept = text.replace("▁", " ")  # SentencePiece cannot tell the two apart
    assert tokenizer.decode(ids) in (text, space_is_kept)


def test_half_a_character_waits_for_the_other_half(tmp_path: Path) -> None:
    write_from_gguf(sentencepiece_metadata(), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    halves = tokenizer.encode("\U0001f9ff", add_bos=False)
    assert len(halves) == 4
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(i) for i in halves] == ["", "", "", "\U0001f9ff"]
    assert [decoder.push(halves[0]), decoder.flush()] == ["", "\ufffd"]


def test_the_first_space_is_dropped_only_where_a_text_begins(tmp_path: Path) -> None:
    write_from_gguf(sentencepiece_metadata(True), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the two", add_bos=True)
    assert "".join(streamed(tokenizer, ids)) == "the two"
    assert "".join(streamed(tokenizer, ids, start_of_text=False)) == " the two"


def stopped(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """All that is shown of a stream, and whether it was cut."""
    watch, shown = StopStrings(stops), ""
    for piece in pieces:
        text, done = watch.push(piece)
        shown += text
        if done:
            return shown, True
    return shown + watch.flush(), False


def reference(stops: list[str], text: str) -> tuple[str, bool]:
    """The same by trying every end."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stops if s and text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


SHORT = st.text(alphabet="ab\n", max_size=4)


@given(stops=st.lists(SHORT, max_size=3), pieces=st.lists(SHORT, max_size=12))
def test_a_stop_is_found_wherever_borders_fall(stops: list[str], pieces: list[str]) -> None:
    assert stopped(stops, pieces) == reference(stops, "".join(pieces))


def test_only_what_may_become_a_stop_is_held_back() -> None:
    watch = StopStrings(["\nUser:", "</s>"])
    assert watch.push("hello\nUs") == ("hello", False)
    assert watch.push("ual <") == ("\nUsual ", False)
    assert watch.push("/s") == ("", False)
    assert watch.push(">more") == ("", True)
    assert watch.push("more") == ("", True)
    assert watch.flush() == ""


def test_without_stops_nothing_is_held() -> None:
    watch = StopStrings(["", ""])
    assert watch.push("anything") == ("anything", False)
    assert watch.flush() == ""
