"""`tokenizer.json`: byte-level BPE and its relatives, through the library `tokenizers`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import TextError
from picoedge.text.tokenizer.base import SPACE, clean, with_bos
from picoedge.text.tokenizer.settings import TextSettings
from picoedge.text.tokenizer.special import SpecialTokens
from picoedge.text.tokenizer.stream_decoder import decode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Every kind of character, and long runs: on these a regex that backtracks without end gives up.
_PROBE = "The 1st\ttest,\r\n\n  café – 日本 🙂 " + " ".join(c * 64 + "!" for c in "aA0 .\n")


class JsonTokenizer:
    """See `tokenizer.Tokenizer`. Raises TextError where the file is damaged or of another kind."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        self._path = path
        self._tokenizer = load_tokenizer_json(path)
        self._settings = settings
        self._lock = threading.Lock()
        with _library(f"{path} is not a tokenizer"):
            self._make_special(settings.eos_ids)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content.encode() for i, token in added.items()}
        self.special_tokens = SpecialTokens(
            {token.content: i for i, token in added.items() if token.special}
        )
        self._special = frozenset(self.special_tokens.ids.values())
        steps = decoder_steps(self._tokenizer, path)
        self._bytes = byte_alphabet() if "ByteLevel" in steps else None
        self.vocab_size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        self.bos_id = settings.bos_id
        self.eos_ids = settings.eos_ids
        self.drops_first_space = _drops_first_space(steps)

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """See `tokenizer.Tokenizer.encode`. Raises TextError where the file's rules fail on it."""
        # Locked, as the choice below is the library's state, not an argument.
        with self._lock, _library(f"{self._path} fails on a text"):
            self._tokenizer.encode_special_tokens = not parse_special
            ids = self._tokenizer.encode(clean(text), add_special_tokens=False).ids
        return with_bos(ids, self._settings, add_bos)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """See `tokenizer.Tokenizer.decode`."""
        return decode(self, ids, skip_special)

    def token_bytes(self, token: int) -> bytes:
        """See `stream.TokenBytes.token_bytes`."""
        if token in self._added:
            return self._added[token]
        text = self._tokenizer.id_to_token(token) if 0 <= token < 2**32 else None
        if text is None:
            return b""
        if self._bytes is not None:
            return _from_alphabet(text, self._bytes)
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace(SPACE, " ").encode()

    def is_special(self, token: int) -> bool:
        """See `stream.TokenBytes.is_special`."""
        return token in self._special

    def _make_special(self, ends: Iterable[int]) -> None:
        """Some files mark what ends an answer as mere text."""
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            if i in ends and not token.special:
                token.special = True
                self._tokenizer.add_special_tokens([token])


def load_tokenizer_json(path: Path) -> Tokenizer:
    """The library's object, cutting and padding nothing. Raises TextError."""
    from tokenizers import Tokenizer

    with _library(f"{path} is not a tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def begins_with(tokenizer: Tokenizer, path: Path) -> list[int]:
    """What the file puts before a text by itself. Raises TextError where its rules fail on one."""
    with _library(f"{path} fails on a text"):
        tokenizer.encode(_PROBE)
        return list(tokenizer.encode("").ids[:1])


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Turn a failure of the library, which is a failure of the file, into TextError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic is no Exception, and has no type to import
        raise TextError(f"{what}: {error}", "get the file again, then pack the model") from error


def decoder_steps(tokenizer: Tokenizer, path: Path) -> dict[str, dict[str, Any]]:
    """Settings of the decoder's steps by type. Raises TextError where no step is one we know."""
    state = b"null" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
    decoder = json.loads(state) or {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if step}
    if not steps.keys() & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise TextError(
            f"{path} is a tokenizer of a kind picoedge does not know",
            "supported: byte-level BPE and SentencePiece",
        )
    return steps


def _drops_first_space(steps: dict[str, dict[str, Any]]) -> bool:
    strip, metaspace = steps.get("Strip"), steps.get("Metaspace")
    if strip is not None:
        return bool(strip["content"] == " " and strip["start"] > 0)
    return metaspace is not None and metaspace.get("prepend_scheme") != "never"


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    # Printable Latin-1 stands for itself; the other bytes, in order, for U+0100 and on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _from_alphabet(text: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[char] for char in text])
    except KeyError:  # not of the alphabet: a token added as plain text
        return text.encode()
