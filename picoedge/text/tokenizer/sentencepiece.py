"""SentencePiece tokenizers, through the library `sentencepiece`."""

from __future__ import annotations

from pathlib import Path

from picoedge.errors import TextError
from picoedge.text.tokenizer.base import (
    SPACE,
    SpecialTokens,
    TextSettings,
    Tokenizer,
    clean,
    with_bos,
)


class SentencePieceTokenizer(Tokenizer):
    """A `Tokenizer` of the library. Raises TextError where the model file is damaged."""

    def __init__(self, path: Path, settings: TextSettings) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor()
        try:
            self._model.load(str(path))
        except (OSError, RuntimeError) as error:
            raise TextError(
                f"{path} is not a SentencePiece model", "the file is damaged: get it again"
            ) from error
        self._settings = settings
        self._pieces = int(self._model.vocab_size())
        special = {token.text: i for i, token in settings.added.items() if token.special}
        plain = self._matched_here()
        self._special = frozenset(special.values())
        self._trusted = SpecialTokens(special | plain)
        self._untrusted = SpecialTokens(plain)
        self.special_tokens = SpecialTokens(special)
        self.vocab_size = max(self._pieces, max(settings.added, default=-1) + 1)
        self.bos_id = settings.bos_id
        self.eos_ids = settings.eos_ids
        self.drops_first_space = settings.space_prefix != "never"

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer.encode`."""
        ids: list[int] = []
        tokens = self._trusted if parse_special else self._untrusted
        for part in tokens.split(clean(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                lead = " " if self._settings.space_prefix == "first" and not ids else ""
                ids += self._model.encode(lead + part)
        return with_bos(ids, self._settings, add_bos)

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary.token_bytes`."""
        if token in self._settings.added:
            return self._settings.added[token].text.encode()
        if not 0 <= token < self._pieces:
            return b""
        piece = str(self._model.id_to_piece(token))
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def is_special(self, token: int) -> bool:
        """See `Vocabulary.is_special`."""
        return token in self._special

    def _matched_here(self) -> dict[str, int]:
        """Plain added tokens that SentencePiece itself would not match as a whole."""
        beside_spaces = self._settings.space_prefix != "never"
        return {
            token.text: i
            for i, token in self._settings.added.items()
            if not token.special and (beside_spaces or i >= self._pieces)
        }
