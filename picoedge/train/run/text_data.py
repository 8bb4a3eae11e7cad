"""The text of a run, as its loop, its samples and its pack need it."""

from __future__ import annotations

import shutil
from pathlib import Path

from picoedge.errors import DataError
from picoedge.progress import Progress, no_progress
from picoedge.store.sources.tensors import ModelSource
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.data.corpus import (
    CORPUS_FILE,
    Corpus,
    CorpusSettings,
    copy_tokenizer,
    prepare_corpus,
)
from picoedge.train.data.windows import CorpusSource
from picoedge.train.presets import preset
from picoedge.train.run.text_settings import TrainSettings

_FOLDER = "corpus"


class TextData:
    """The corpus of a run, and its tokenizer."""

    def __init__(self, corpus: Corpus, notes: list[str]) -> None:
        self.corpus, self.notes = corpus, notes
        self._tokenizer: Tokenizer = load_tokenizer(corpus.folder)

    @classmethod
    def prepare(
        cls, settings: TrainSettings, folder: Path, threads: int, progress: Progress | None
    ) -> TextData:
        """Read the settings' text into the folder of a run that begins.

        Raises DataError, StorageError.
        """
        place = folder / _FOLDER
        if (place / CORPUS_FILE).exists():  # of a run that was killed before its first step
            shutil.rmtree(place)
        size = preset(settings.preset).vocab_size
        wanted = CorpusSettings(settings.length, settings.seed, settings.held_out)
        paths = [Path(path) for path in settings.text]
        return cls(
            *prepare_corpus(
                paths, place, size, wanted, threads=threads, progress=progress or no_progress
            )
        )

    @classmethod
    def open(cls, folder: Path) -> TextData:
        """Of a run that has begun. Raises ModelError, TextError, StorageError."""
        return cls(Corpus.open(folder / _FOLDER), [])

    @property
    def hash(self) -> str:
        """Of the tokens and the tokenizer: 32 hexadecimal digits."""
        import hashlib

        corpus = self.corpus
        files = (*corpus.train, *corpus.held_out)
        text = " ".join([corpus.tokenizer, *(file.blake2b for file in files)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def check(self, settings: TrainSettings) -> None:
        """Raises DataError where settings name another text than this."""
        if settings.data and settings.data != self.hash:
            raise DataError(
                f"the text is not the one of this config: its hash is {self.hash}, "
                f"the config has {settings.data}",
                "restore the text, or take `data` out of the config to train on it as it is",
            )

    def source(self, settings: TrainSettings) -> CorpusSource:
        """Batches; close it after use. Raises ModelError, StorageError."""
        return CorpusSource(
            self.corpus, settings.micro_batches, settings.micro_batch, settings.length,
            settings.seed,
        )  # fmt: skip

    def write_text(self, source: ModelSource, pack: Path) -> None:
        """Copy tokenizer and chat template into a pack. Raises StorageError."""
        copy_tokenizer(self.corpus, pack)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that begins a document."""
        return self._tokenizer.encode(text, parse_special=False)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return self._tokenizer.decode(tokens)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a document or an answer."""
        return self._tokenizer.eos_ids
