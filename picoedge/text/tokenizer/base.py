"""The tokenizer protocol, a tokenizer's settings, and its special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from picoedge.errors import TextError
from picoedge.files import read_json_file
from picoedge.text.tokenizer.stream_decoder import Vocabulary, decode

SETTINGS_FILE = "tokenizer_config.json"
SPACE_PREFIXES = ("never", "first", "always")

# Tokens that end a turn even where the metadata does not list them as end of sequence. Without
# "</s>": where that ends a text the metadata lists it, and elsewhere it is an HTML tag.
END_OF_TURN = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<end_of_turn>", "<end_of_utterance>", "<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
})  # fmt: skip
JSON_FILE = "tokenizer.json"
# Of that file: one with 262,144 tokens and 514,906 merges (Gemma) has 2 million.
MOST_JSON_VALUES = 1 << 22
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

    `space_prefix`: where SentencePiece adds a space: nowhere ("never"), before a text that begins
    with none ("first"), or before each part of plain text between special tokens ("always").
    `special_ids`: further control tokens, which the tokenizer's own file takes for text.
    `aliases`: tokens that decode as another, and that no text becomes. `notes` are told when the
    model is packed, `warnings` also whenever it is opened.
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    space_prefix: str = "never"
    bos_token: str = ""
    eos_token: str = ""
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    special_ids: frozenset[int] = frozenset()
    aliases: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

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
            "special_ids": sorted(self.special_ids),
            "aliases": {str(i): first for i, first in self.aliases.items()},
            "notes": self.notes,
            "warnings": self.warnings,
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
                bos_id=None if values["bos_token_id"] is None else _id(values["bos_token_id"]),
                eos_ids=frozenset(_id(i) for i in values["eos_token_ids"]),
                add_bos=values["add_bos_token"] is True,
                space_prefix=values["space_prefix"],
                bos_token=str(values["bos_token"]),
                eos_token=str(values["eos_token"]),
                added=read_added(values["added_tokens_decoder"]),
                # Packs of earlier versions have none of these.
                special_ids=frozenset(_id(i) for i in values.get("special_ids", ())),
                aliases={_id(int(i)): _id(j) for i, j in values.get("aliases", {}).items()},
                notes=tuple(map(str, values.get("notes", ()))),
                warnings=tuple(map(str, values.get("warnings", ()))),
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
        done = at = 0
        while self._first is not None and (match := self._first.search(text, at)):
            at = match.start()
            ends = (at + length for length in self._lengths[text[at]])
            end = next((end for end in ends if text[at:end] in self.ids), 0)
            if end:
                if at > done:
                    yield text[done:at]
                yield self.ids[text[at:end]]
                done = end
            at = end or at + 1
        if done < len(text):
            yield text[done:]


class Tokenizer(Vocabulary, Protocol):
    """Text to ids and back. Thread-safe."""

    vocab_size: int
    bos_id: int | None
    special_tokens: SpecialTokens
    """the control tokens, by text"""
    warnings: tuple[str, ...]
    """doubts about the tokenizer, shown when the model is opened"""

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`, with BOS in front if the model wants one and the text has none.

        With `parse_special=False` the name of a special token in `text` is plain text.
        """

    def encode_parts(self, parts: Iterable[int | str]) -> list[int]:
        """Ids of a text whose special tokens are given as ids and the rest as plain text, without
        BOS. No two neighbours are plain text.
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
