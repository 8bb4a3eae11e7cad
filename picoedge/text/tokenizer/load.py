"""Tokenizers of a pack: `tokenizer.json` through the library `tokenizers` (byte-level BPE and
similar), or a SentencePiece model through the library `sentencepiece`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import TextError
from picoedge.text.tokenizer.base import (
    JSON_FILE,
    SENTENCEPIECE_FILE,
    SPACE,
    SpecialTokens,
    TextSettings,
    Tokenizer,
    clean,
)

if TYPE_CHECKING:
    import tokenizers
    from sentencepiece import SentencePieceProcessor

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# All kinds of characters and long repetitions: catastrophic regex backtracking shows on these.
# Noncharacters: no text has them.
_ANCHOR = "\ufdd0\ufdd1anchor\ufdd1\ufdd0"
_PROBE = "The 1st\ttest,\r\n\n  café – 日本 🙂 " + " ".join(c * 64 + "!" for c in "aA0 .\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a pack. Raises TextError where its files are missing or damaged."""
    if (folder / JSON_FILE).exists():
        return JsonTokenizer(folder / JSON_FILE, TextSettings.read(folder))
    if (folder / SENTENCEPIECE_FILE).exists():
        return SentencePieceTokenizer(folder / SENTENCEPIECE_FILE, TextSettings.read(folder))
    raise TextError(
        f"{folder} has no tokenizer ({JSON_FILE} or {SENTENCEPIECE_FILE})", "pack the model again"
    )


class _PackTokenizer(Tokenizer):
    """Parts common to both kinds. `special`: control tokens by text."""

    def __init__(
        self, settings: TextSettings, special: dict[str, int], size: int, drops_first_space: bool
    ) -> None:
        self._settings = settings
        self._special = frozenset(special.values())
        self.special_tokens = SpecialTokens(special)
        self.vocab_size, self.drops_first_space = size, drops_first_space
        self.bos_id, self.eos_ids = settings.bos_id, settings.eos_ids
        self.warnings = settings.warnings

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer.encode`. Raises TextError where the file's rules fail on `text`."""
        ids, bos = self._encode(clean(text), parse_special), self.bos_id
        if not add_bos or not self._settings.add_bos or bos is None or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def encode_parts(self, parts: Iterable[int | str]) -> list[int]:
        """See `Tokenizer.encode_parts`. Raises TextError where the file's rules fail."""
        return self._encode_parts([p if isinstance(p, int) else clean(p) for p in parts])

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        raise NotImplementedError

    def _encode_parts(self, parts: list[int | str]) -> list[int]:
        raise NotImplementedError

    def is_special(self, token: int) -> bool:
        """See `Vocabulary.is_special`."""
        return self._settings.aliases.get(token, token) in self._special


class JsonTokenizer(_PackTokenizer):
    """A `Tokenizer` of the library. Raises TextError where the file is damaged or unsupported."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        self._path, self._lock = path, threading.Lock()
        self._tokenizer = load_tokenizer_json(path)
        with _library(f"{path} is not a tokenizer"):
            self._make_special(settings.eos_ids | settings.special_ids)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content.encode() for i, token in added.items()}
        special = {token.content: i for i, token in added.items() if token.special}
        self._strip_before = {i for i, token in added.items() if token.lstrip}
        self._strip_after = {i for i, token in added.items() if token.rstrip}
        steps = decoder_steps(self._tokenizer, path)
        self._bytes = byte_alphabet() if "ByteLevel" in steps else None
        size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        super().__init__(settings, special, size, _drops_first_space(steps))
        self._anchor = self._add_anchor() if self.drops_first_space else None

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        # Locked: `encode_special_tokens` is state of the library's object, not an argument.
        with self._lock, _library(f"{self._path} fails on a text"):
            self._tokenizer.encode_special_tokens = not parse_special
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_parts(self, parts: list[int | str]) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
                continue
            if i and parts[i - 1] in self._strip_after:
                part = part.lstrip()
            if parts[i + 1 : i + 2] and parts[i + 1] in self._strip_before:
                part = part.rstrip()
            ids += self._encode_after(part) if i else self._encode(part, False)
        return ids

    def _encode_after(self, text: str) -> list[int]:
        """Ids of a text that begins none: some files put a space before the first word alone."""
        if self._anchor is None:
            return self._encode(text, False)
        return self._encode(_ANCHOR + text, False)[1:]

    def _add_anchor(self) -> int:
        """Add a token that is matched in plain text, and stands for the text before."""
        from tokenizers import AddedToken

        self._tokenizer.add_tokens([AddedToken(_ANCHOR, normalized=False)])
        anchor: int | None = self._tokenizer.token_to_id(_ANCHOR)
        assert anchor is not None
        return anchor

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary.token_bytes`."""
        token = self._settings.aliases.get(token, token)
        if token in self._added:
            return self._added[token]
        text = self._tokenizer.id_to_token(token) if 0 <= token < 2**32 else None
        if text is None or token == self._anchor:
            return b""
        if self._bytes is not None:
            try:
                return bytes([self._bytes[char] for char in text])
            except KeyError:  # a token added as plain text
                return text.encode()
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace(SPACE, " ").encode()

    def _make_special(self, ids: Iterable[int]) -> None:
        """Mark control tokens as special: some files mark them as plain text."""
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            if i in ids and not token.special:
                token.special = True
                self._tokenizer.add_special_tokens([token])


def load_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer, without truncation and padding. Raises TextError."""
    import tokenizers

    with _library(f"{path} is not a tokenizer"):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def begins_with(tokenizer: tokenizers.Tokenizer, path: Path) -> list[int]:
    """Ids that the file's rules put before a text. Raises TextError where the rules fail."""
    with _library(f"{path} fails on a text"):
        tokenizer.encode(_PROBE)
        return list(tokenizer.encode("").ids[:1])


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Turn any error of the library into TextError: its cause is the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic derives from BaseException and cannot be imported
        raise TextError(f"{what}: {error}", "get the file again, then pack the model") from error


def decoder_steps(tokenizer: tokenizers.Tokenizer, path: Path) -> dict[str, dict[str, Any]]:
    """Settings of the decoder's steps by type. Raises TextError where no step is known."""
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
    """Byte of each character of a byte-level vocabulary (GPT-2's mapping)."""
    # Printable Latin-1 is itself; the other bytes, in order, are U+0100 and up.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def load_sentencepiece(path: Path, remedy: str) -> SentencePieceProcessor:
    """The library's model. Raises TextError where the file is not one."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.load(str(path))
    except (OSError, RuntimeError, ValueError) as error:  # its messages may be no text
        raise TextError(f"{path} is not a SentencePiece model", remedy) from error
    return model


class SentencePieceTokenizer(_PackTokenizer):
    """A `Tokenizer` of the library. Raises TextError where the model file is damaged."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        self._settings = settings
        self._model = load_sentencepiece(path, "the file is damaged: get it again")
        self._pieces = int(self._model.vocab_size())
        special = {token.text: i for i, token in settings.added.items() if self._is_control(i)}
        size = max(self._pieces, max(settings.added, default=-1) + 1)
        super().__init__(settings, special, size, settings.space_prefix != "never")
        plain = self._matched_here()
        self._trusted, self._untrusted = SpecialTokens(special | plain), SpecialTokens(plain)

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        return self._encode_parts(list(self._trusted.split(text)) if parse_special else [text])

    def _encode_parts(self, parts: list[int | str]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            for piece in [part] if isinstance(part, int) else self._untrusted.split(part):
                if isinstance(piece, int):
                    ids.append(piece)
                else:
                    first = self._settings.space_prefix == "first" and not ids
                    lead = " " if first and not piece.startswith((" ", SPACE)) else ""
                    ids += self._model.encode(lead + piece)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary.token_bytes`."""
        token = self._settings.aliases.get(token, token)
        if token in self._settings.added:
            return self._settings.added[token].text.encode()
        if not 0 <= token < self._pieces:
            return b""
        piece = str(self._model.id_to_piece(token))
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def _matched_here(self) -> dict[str, int]:
        """Plain added tokens that SentencePiece itself would not match as a whole."""
        beside_spaces = self._settings.space_prefix != "never"
        return {
            token.text: i
            for i, token in self._settings.added.items()
            if not self._is_control(i) and (beside_spaces or i >= self._pieces)
        }

    def _is_control(self, token: int) -> bool:
        settings = self._settings
        return settings.added[token].special or token in settings.special_ids
