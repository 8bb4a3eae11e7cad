"""Tokenizer protocols, and the text handling that both kinds of tokenizer share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from picoedge.text.tokenizer.settings import TextSettings
from picoedge.text.tokenizer.special import SpecialTokens
from picoedge.text.tokenizer.stream_decoder import TokenBytes

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
SPACE = "▁"  # what SentencePiece writes for a space


class Vocabulary(TokenBytes, Protocol):
    """What an answer's tokens say, and which of them end it."""

    eos_ids: frozenset[int]
    """every token that ends an answer: end of sequence, of text, of turn"""
    drops_first_space: bool
    """whether the first space of a decoded text is the tokenizer's own"""


class Tokenizer(Vocabulary, Protocol):
    """Text to ids and back. Safe to use from several threads."""

    vocab_size: int
    bos_id: int | None
    special_tokens: SpecialTokens
    """the tokens that steer the model, by name"""

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`. BOS comes first iff the model wants one (and the text has none itself).

        With `parse_special=False` the name of a special token in `text` is plain text.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; what is not UTF-8 becomes U+FFFD."""


def clean(text: str) -> str:
    """`text` as valid Unicode: pairs of surrogates joined, lone ones as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_bos(ids: list[int], settings: TextSettings, wanted: bool) -> list[int]:
    """`ids` with BOS in front where the model wants it; never twice."""
    bos = settings.bos_id
    if not wanted or not settings.add_bos or bos is None or ids[:1] == [bos]:
        return ids
    return [bos, *ids]
