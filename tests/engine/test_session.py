"""Sessions: text as it comes, what ends it, what the cache saves."""

from __future__ import annotations

import pytest
from fake_model import BOS, EOS, ByteTokenizer, ScriptedModel, scripted_session

from picoedge.config import SamplingOptions
from picoedge.engine.session import PREFILL_CHUNK, Session, common_prefix
from picoedge.errors import ContextError, StorageError, TextError


def ids(text: str) -> list[int]:
    return ByteTokenizer().encode(text)


def runs_of(session: Session) -> list[tuple[int, list[int]]]:
    assert isinstance(session.model, ScriptedModel)
    return session.model.runs


def test_text_comes_in_pieces_and_stops_at_end_of_text() -> None:
    session = scripted_session("hi!")
    assert list(session.generate(ids("yo"))) == ["h", "i", "!"]
    assert session.stats.finish_reason == "stop"
    assert session.stats.tokens == [*b"hi!"]
    assert session.stats.prompt_tokens == 3


def test_a_character_of_several_tokens_comes_whole() -> None:
    session = scripted_session("aé漢🙂")
    assert list(session.generate(ids("yo"))) == ["a", "é", "漢", "🙂"]


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    session = scripted_session([*b"a\xe6\xbc"])
    assert "".join(session.generate(ids("yo"))) == "a�"


def test_max_tokens_ends_with_length() -> None:
    session = scripted_session("abcdef")
    assert "".join(session.generate(ids("yo"), max_tokens=3)) == "abc"
    assert session.stats.finish_reason == "length"
    assert not session.stats.context_full
    # the third token is never run: nothing is to follow it
    assert [len(tokens) for _, tokens in runs_of(session)] == [3, 1, 1]


def test_zero_tokens_run_the_prompt_only() -> None:
    session = scripted_session("abc")
    assert list(session.generate(ids("yo"), max_tokens=0)) == []
    assert session.stats.finish_reason == "length"
    assert len(runs_of(session)) == 1


def test_the_full_context_ends_with_length_and_says_so() -> None:
    session = scripted_session("abcdefgh", n_ctx=6)
    # 3 of prompt, 3 run of the answer, and the token of the last run
    assert "".join(session.generate(ids("yo"))) == "abcd"
    assert session.stats.finish_reason == "length"
    assert session.stats.context_full


def test_a_prompt_of_one_token_fills_the_context_and_says_so() -> None:
    session = scripted_session("abcdefgh", n_ctx=4)
    assert "".join(session.generate([120])) == "abcd"
    assert session.stats.context_full


def test_a_prompt_that_does_not_fit_is_refused_with_the_counts() -> None:
    session = scripted_session("abc", n_ctx=10)
    with pytest.raises(ContextError, match=r"25 tokens.*10") as caught:
        session.generate(ids("x" * 24))
    assert "--ctx-size" in caught.value.hint
    assert runs_of(session) == []


def test_the_largest_prompt_that_fits_gets_an_answer() -> None:
    session = scripted_session("abc", n_ctx=10)
    assert "".join(session.generate(ids("x" * 8))) == "ab"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(TextError, match="empty"):
        scripted_session("abc").generate([])


def test_stop_strings_work_across_tokens_and_are_not_shown() -> None:
    session = scripted_session("one two STOP three")
    assert "".join(session.generate(ids("yo"), stop=["STOP"])) == "one two "
    assert session.stats.finish_reason == "stop"
    assert session.stats.tokens == [*b"one two STOP"]


def test_the_beginning_of_a_stop_string_alone_is_shown() -> None:
    session = scripted_session("one STO")
    assert "".join(session.generate(ids("yo"), stop=["STOP"])) == "one STO"


def test_ignore_eos_goes_on() -> None:
    session = scripted_session([97, EOS, 98])
    assert "".join(session.generate(ids("yo"), ignore_eos=True, max_tokens=3)) == "ab"
    assert session.stats.tokens == [97, EOS, 98]


def test_cancel_keeps_what_was_said() -> None:
    session = scripted_session("abcdef")
    pieces = []
    for piece in session.generate(ids("yo")):
        pieces.append(piece)
        if piece == "c":
            session.cancel()
    assert pieces == ["a", "b", "c"]
    assert session.stats.finish_reason == "cancelled"


def test_cancel_during_a_long_prompt_stops_between_chunks() -> None:
    session = scripted_session("abc", "abc", n_ctx=5000)
    model = session.model
    forward = model.forward

    def forward_then_cancel(tokens: list[int], position: int) -> object:
        session.cancel()
        return forward(tokens, position)

    model.forward = forward_then_cancel  # type: ignore[method-assign,assignment]
    assert list(session.generate(ids("x" * 3000))) == []
    assert session.stats.finish_reason == "cancelled"
    assert [len(tokens) for _, tokens in runs_of(session)] == [PREFILL_CHUNK]


def test_a_cancelled_session_answers_the_next_prompt() -> None:
    session = scripted_session("abc", "def")
    for _ in session.generate(ids("yo")):
        session.cancel()
    assert "".join(session.generate(ids("yo there"))) == "def"


def test_the_next_turn_runs_only_what_is_new() -> None:
    session = scripted_session("abc", "def")
    "".join(session.generate(ids("hello ")))
    said = [BOS, *b"hello abc"]
    "".join(session.generate([*said, *b" more"]))
    # `c` was run to see that the text ends there
    assert runs_of(session)[4] == (len(said), [*b" more"])
    assert session.stats.reused_tokens == len(said)


def test_the_last_token_of_a_cut_answer_is_run_in_the_next_turn() -> None:
    session = scripted_session("abc", "def")
    "".join(session.generate(ids("hello "), max_tokens=2))
    "".join(session.generate([BOS, *b"hello ab more"]))
    assert runs_of(session)[2] == (8, [*b"b more"])


def test_the_same_prompt_again_runs_one_token() -> None:
    session = scripted_session("abc", "abc")
    "".join(session.generate(ids("hello")))
    session.model.runs.clear()  # type: ignore[attr-defined]
    list(session.generate(ids("hello"), max_tokens=1))
    assert runs_of(session) == [(5, [*b"o"])]
    assert session.stats.reused_tokens == 5


def test_a_prompt_that_differs_early_forgets_the_rest() -> None:
    session = scripted_session("abc", "def", "ghi")
    "".join(session.generate(ids("hello")))
    "".join(session.generate(ids("help me")))
    assert runs_of(session)[4] == (4, [*b"p me"])
    "".join(session.generate(ids("hello me")))
    assert runs_of(session)[8] == (4, [*b"lo me"])


def test_forget_runs_everything_again() -> None:
    session = scripted_session("abc", "abc")
    "".join(session.generate(ids("hello")))
    session.forget()
    "".join(session.generate(ids("hello")))
    assert session.stats.reused_tokens == 0


def test_an_error_in_the_model_leaves_a_cache_that_is_known() -> None:
    session = scripted_session("abcdef", "ghi")
    model = session.model
    real, calls = model.forward, []

    def failing(tokens: list[int], position: int) -> object:
        calls.append(position)
        if len(calls) == 3:
            raise MemoryError
        return real(tokens, position)

    model.forward = failing  # type: ignore[method-assign,assignment]
    with pytest.raises(MemoryError):
        "".join(session.generate(ids("hello")))
    "".join(session.generate([BOS, *b"helloab", *b" x"]))
    # only `a` was in the cache beside the prompt
    assert session.stats.reused_tokens == len(b"hello") + 2


def test_an_answer_that_breaks_off_has_the_text_there_was() -> None:
    session = scripted_session("abcdef", "xyz")
    session.model.fails_at = 3  # type: ignore[attr-defined]
    pieces: list[str] = []
    with pytest.raises(StorageError, match="reading failed"):
        pieces.extend(session.generate(ids("hello"), stop=["cX"]))
    assert pieces == ["a", "b", "c"]  # the last was held back, as it might have been a stop
    assert bytes(session.stats.tokens) == b"abc"
    assert session.stats.finish_reason == "error"
    assert "".join(session.generate(ids("hello"))) == "xyz"
    assert session.stats.finish_reason == "stop"


def test_rates_count_seconds_of_the_given_clock() -> None:
    session = scripted_session("abcd")
    "".join(session.generate(ids("hello")))
    stats = session.stats
    assert stats.ttft_s == 1.0
    assert stats.prefill_tok_s == 6.0
    assert stats.decode_steps == 4  # b, c, d and the end of text
    assert stats.s_per_token == 1.0
    assert stats.decode_tok_s == 1.0


def test_one_token_has_no_decoding_rate() -> None:
    session = scripted_session("abcd")
    "".join(session.generate(ids("hello"), max_tokens=1))
    assert session.stats.s_per_token is None
    assert session.stats.decode_tok_s is None


def test_a_seed_gives_the_same_text_again() -> None:
    def text(seed: int) -> str:
        model = ScriptedModel([*range(97, 107)])
        model.forward = lambda tokens, position: _flat()  # type: ignore[method-assign]
        session = Session(model, ByteTokenizer(), SamplingOptions(seed=seed, top_k=0))
        return "".join(session.generate(ids("x"), max_tokens=20, ignore_eos=True))

    assert text(1) == text(1)
    assert text(1) != text(2)


def _flat() -> object:
    import numpy as np

    return np.arange(258, dtype=np.float32) % 7


def test_two_sessions_live_side_by_side() -> None:
    one, two = scripted_session("abc"), scripted_session("xyz")
    pairs = zip(one.generate(ids("1")), two.generate(ids("2")), strict=True)
    assert list(pairs) == [("a", "x"), ("b", "y"), ("c", "z")]


def test_close_closes_the_model() -> None:
    session = scripted_session("abc")
    session.close()
    assert session.model.closed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9], 1), ([5], [6], 0)],
)
def test_common_prefix(a: list[int], b: list[int], expected: int) -> None:
    assert common_prefix(a, b) == expected
