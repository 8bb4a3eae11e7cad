"""Tokenizer protocols and settings, special tokens, and incremental decoding: whole characters, cut
at stop strings."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from picoedge.errors import TextError
from picoedge.files import read_json_file

SETTINGS_FILE = "tokenizer_config.json"
SPACE_PREFIXES = ("never", "first", "always")

# Tokens that end a turn even where the metadata does not list them as end of sequence. Without
# "</s>": where that ends a text the metadata lists it, and elsewhere it is an HTML tag.
END_OF_TURN = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<end_of_turn>", "<end_of_utterance>", "<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
})  # fmt: skip
JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
SPACE = "▁"  # SentencePiece's space


@dataclass(frozen=True)
class AddedToken:
    """A token matched as a whole before tokenization.

    `special`: parsed only from trusted text, and left out of answers.
    """

    text: str
    special: bool


@dataclass(frozen=True)
class TextSettings:
    """Beginning and end of a model's texts.

    `space_prefix`: where SentencePiece adds a space: nowhere ("never"), before the text ("first"),
    or before each part of plain text between special tokens ("always").
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    space_prefix: str = "never"
    bos_token: str = ""
    eos_token: str = ""
    added: Mapping[int, AddedToken] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `tokenizer_config.json` into `folder`."""
        values = {
            "add_bos_token": self.add_bos,
            "bos_token": self.bos_token,
            "bos_token_id": self.bos_id,
            "eos_token": self.eos_token,
            "eos_token_ids": sorted(self.eos_ids),
            "space_prefix": self.space_prefix,
            "added_tokens_decoder": {
                str(i): {"content": token.text, "special": token.special}
                for i, token in self.added.items()
            },
        }
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TextSettings:
        """Inverse of `write`. Raises TextError where a value is missing or of a wrong type."""
        path = folder / SETTINGS_FILE
        values = read_json_file(path)
        try:
            settings = cls(
                bos_id=_optional_id(values["bos_token_id"]),
                eos_ids=frozenset(_id(i) for i in values["eos_token_ids"]),
                add_bos=values["add_bos_token"] is True,
                space_prefix=values["space_prefix"],
                bos_token=str(values["bos_token"]),
                eos_token=str(values["eos_token"]),
                added=read_added(values["added_tokens_decoder"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TextError(f"{path} is damaged: {error}", "pack the model again") from error
        if settings.space_prefix not in SPACE_PREFIXES:
            raise TextError(f"{path} is damaged: space_prefix", "pack the model again")
        return settings


def read_added(values: Mapping[str, Mapping[str, Any]]) -> dict[int, AddedToken]:
    """`added_tokens_decoder` of a tokenizer config. Raises ValueError, KeyError or TypeError."""
    return {
        _id(int(i)): AddedToken(str(token["content"]), token.get("special") is True)
        for i, token in values.items()
    }


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a token id")
    return value


def _optional_id(value: Any) -> int | None:
    return None if value is None else _id(value)


class SpecialTokens:
    """Splits a text at the leftmost, longest occurrences of token texts."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {text: i for text, i in ids.items() if text}
        lengths: dict[str, set[int]] = {}
        for text in self.ids:
            lengths.setdefault(text[0], set()).add(len(text))
        # Thousands of tokens have few lengths: a search by length is faster than one large pattern.
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield token ids and the non-empty texts between them, in order."""
        done = 0
        for start, end, token in self._matches(text):
            if start > done:
                yield text[done:start]
            yield token
            done = end
        if done < len(text):
            yield text[done:]

    def _matches(self, text: str) -> Iterator[tuple[int, int, int]]:
        at = 0
        while self._first is not None and (match := self._first.search(text, at)):
            start = match.start()
            end = self._longest_end(text, start)
            if end > start:
                yield start, end, self.ids[text[start:end]]
            at = max(end, start + 1)

    def _longest_end(self, text: str, start: int) -> int:
        for length in self._lengths[text[start]]:
            if text[start : start + length] in self.ids:
                return start + length
        return start


class Vocabulary(Protocol):
    """The part of a tokenizer that decodes answers."""

    eos_ids: frozenset[int]
    """tokens that end an answer: end of sequence, of text, of turn"""
    drops_first_space: bool
    """whether the tokenizer puts a space before a text, to be dropped when decoding"""

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token: the name of a special token, b"" for an unknown id."""

    def is_special(self, token: int) -> bool:
        """Whether it is a control token, not part of a text."""


class Tokenizer(Vocabulary, Protocol):
    """Text to ids and back. Thread-safe."""

    vocab_size: int
    bos_id: int | None
    special_tokens: SpecialTokens
    """the control tokens, by text"""

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`, with BOS in front if the model wants one and the text has none.

        With `parse_special=False` the name of a special token in `text` is plain text.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return decode(self, ids, skip_special)


def clean(text: str) -> str:
    """`text` as valid Unicode: surrogate pairs joined, lone surrogates as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_bos(ids: list[int], settings: TextSettings, wanted: bool) -> list[int]:
    """`ids` with BOS in front if `wanted` and the model has one; never twice."""
    bos = settings.bos_id
    if not wanted or not settings.add_bos or bos is None or ids[:1] == [bos]:
        return ids
    return [bos, *ids]


class StreamDecoder:
    """Turns token ids into text one at a time, never half a character.

    All parts joined equal `tokenizer.decode` of the ids. `start_of_text=False`, for ids that
    continue a text, keeps SentencePiece's leading space.
    """

    def __init__(
        self, tokenizer: Vocabulary, *, skip_special: bool = True, start_of_text: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drop_space = start_of_text and tokenizer.drops_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that this token completes; invalid bytes become U+FFFD."""
        special = self._tokenizer.is_special(token)
        if special and self._skip_special:
            return ""
        data = self._tokenizer.token_bytes(token)
        if self._drop_space and not special and data:
            data = data.removeprefix(b" ")
            self._drop_space = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """U+FFFD if the last character is incomplete."""
        return self._utf8.decode(b"", True)


def decode(tokenizer: Vocabulary, tokens: Iterable[int], skip_special: bool) -> str:
    """Text of all `tokens`."""
    stream = StreamDecoder(tokenizer, skip_special=skip_special)
    pieces = [stream.push(token) for token in tokens]
    return "".join(pieces) + stream.flush()


class StopStrings:
    """Cuts a stream of text at the first stop string, which may span several tokens.

    "First" is by end (the longer of two that end together), so that the cut does not depend on how
    the text is split. Only text that may become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was found."""
        if self._stopped:
            return "", True
        text = self._held + text
        cut = self._first_stop(text)
        self._stopped = cut is not None
        keep = len(text) - self._undecided(text) if cut is None else cut
        self._held = "" if self._stopped else text[keep:]
        return text[:keep], self._stopped

    def flush(self) -> str:
        """Text held back at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        ends = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        return min(ends)[1] if ends else None

    def _undecided(self, text: str) -> int:
        """Length of the longest suffix of `text` that begins a stop string."""
        longest = max(map(len, self._stops), default=1)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return len(text) - start
        return 0
