"""Answers of a conversation: the tokens that the model is to learn.

The tokens before an answer are those that a chat gives the model at that point, so the answer is
what the template renders behind them, up to the token that ends a turn. Where the tokenizer joins
the end of a prompt and the beginning of an answer in one token, that token is cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from picoedge.errors import DataError
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.train.data.records import ChatMessage, JsonlRecord


@dataclass
class TokenizedText:
    """Tokens, and for each whether the model is to learn it."""

    ids: list[int]
    counted: list[bool]

    def count(self, start: int, stop: int) -> None:
        """Have the tokens [start, stop) learned."""
        self.counted[start:stop] = [True] * (stop - start)

    def without_rest(self) -> TokenizedText:
        """Tokens up to the last one that is learned: the rest has no effect."""
        end = max((i + 1 for i, counted in enumerate(self.counted) if counted), default=0)
        return TokenizedText(self.ids[:end], self.counted[:end])


class ExampleEncoder:
    """Records to tokens, by the tokenizer and chat template of a model.

    `eos`: the token that ends a text; None: the model has none.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, eos: int | None
    ) -> None:
        self._tokenizer, self._template, self._eos = tokenizer, template, eos
        self._pieces: dict[bytes, int] | None = None

    def encode(self, record: JsonlRecord) -> list[TokenizedText]:
        """A record's tokens: one text, or several where the template renders an earlier answer
        otherwise than the last. Raises DataError, TextError with the reason.

        Names of special tokens are text in a message, but tokens in a plain text, which may have
        been rendered by the template before.
        """
        if record.messages:
            return [text.without_rest() for text in self._conversation(record.messages)]
        if not record.text.strip():
            raise DataError("no text in it")
        ids = self._tokenizer.encode(record.text)
        if self._eos is not None and ids[-1] not in self._tokenizer.eos_ids:
            ids = [*ids, self._eos]
        return [TokenizedText(ids, [i > 0 for i in range(len(ids))])]

    def _conversation(self, messages: Sequence[ChatMessage]) -> list[TokenizedText]:
        turns = _answers_in(messages)
        messages = messages[: turns[-1] + 1]
        whole = self._chat(messages)
        text, others = TokenizedText(whole, [False] * len(whole)), list[TokenizedText]()
        for turn in turns:
            prompt = self._chat(messages[:turn], asks=True)
            until = whole if turn == turns[-1] else self._chat(messages[: turn + 1])
            if not self._count_answer(text, prompt, until):
                others.append(self._answer_alone(prompt, until))
        if not any(text.counted):
            return others
        return [text, *others]

    def _chat(self, messages: Sequence[ChatMessage], *, asks: bool = False) -> list[int]:
        if self._template is None:
            raise DataError("the model has no chat template: give texts", "or choose a template")
        return encode_chat(self._template, self._tokenizer, messages, add_generation_prompt=asks)

    def _count_answer(self, text: TokenizedText, prompt: list[int], until: list[int]) -> bool:
        """Have the answer in a text learned that lies between `prompt` and the end of `until`.

        False where the text does not begin with one of them.
        """
        ends = []
        for beginning in (prompt, until):
            length = len(beginning)
            if text.ids[:length] != beginning:
                found = self._cut_behind(text, beginning)
                if found is None:
                    return False
                length = found
            ends.append(length)
        start, stop = ends
        self._count_turn(text, start, stop)
        return True

    def _answer_alone(self, prompt: list[int], until: list[int]) -> TokenizedText:
        """The answer at the end of `until`, as the last of its conversation."""
        text = TokenizedText(list(until), [False] * len(until))
        if not self._count_answer(text, prompt, until):
            # The template asks for an answer in other words than it renders one.
            self._count_turn(text, _common(prompt, until), len(until))
        return text

    def _count_turn(self, text: TokenizedText, start: int, stop: int) -> None:
        """Have [start, stop) learned, up to the first token that ends a turn.

        Behind the last answer of a text that has none comes the token that ends a text.
        """
        ends = self._tokenizer.eos_ids
        end = next((i + 1 for i in range(start, stop) if text.ids[i] in ends), None)
        if end is None and stop == len(text.ids) and self._eos is not None:
            text.ids.append(self._eos)
            text.counted.append(False)
            end = stop + 1
        text.count(start, stop if end is None else end)

    def _cut_behind(self, text: TokenizedText, beginning: list[int]) -> int | None:
        """The number of tokens that `beginning` takes in a text, whose tokens are cut there.

        None where the text begins otherwise.
        """
        pieces = [self._tokenizer.token_bytes(token) for token in text.ids]
        place = b"".join(map(self._tokenizer.token_bytes, beginning))
        if not b"".join(pieces).startswith(place):
            return None
        for number, end in enumerate(accumulate(map(len, pieces))):
            if end == len(place):
                return number + 1
            if end > len(place):
                cut = len(pieces[number]) - (end - len(place))
                head, tail = pieces[number][:cut], pieces[number][cut:]
                before, behind = self._tokens_of(head), self._tokens_of(tail)
                counted = text.counted[number]
                text.ids[number : number + 1] = [*before, *behind]
                text.counted[number : number + 1] = [counted] * (len(before) + len(behind))
                return number + len(before)
        return 0 if not place else None

    def _tokens_of(self, data: bytes) -> list[int]:
        """Tokens of these bytes: the longest first."""
        if self._pieces is None:
            tokens = range(self._tokenizer.vocab_size)
            plain = (token for token in tokens if not self._tokenizer.is_special(token))
            self._pieces = {self._tokenizer.token_bytes(token): token for token in plain}
        found = []
        while data:
            sizes = range(len(data), 0, -1)
            size = next((size for size in sizes if data[:size] in self._pieces), None)
            if size is None:
                raise DataError("an answer begins within a token that cannot be cut")
            found.append(self._pieces[data[:size]])
            data = data[size:]
        return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _answers_in(messages: Sequence[ChatMessage]) -> list[int]:
    """Indices of the answers. Raises DataError where there is none, or one without text."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError("no answer in it (role assistant)")
    if turns[0] == 0:
        raise DataError("it begins with an answer")
    if any(not messages[turn]["content"].strip() for turn in turns):
        raise DataError("an answer without text")
    return turns
