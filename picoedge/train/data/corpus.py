"""The tokens of a run's text: written once into the run's folder, read at every step.

    corpus, notes = prepare_corpus([Path("notes")], folder, 4096, CorpusSettings(256, seed=1))
    tokenizer = load_tokenizer(corpus.folder)
    source = CorpusSource(corpus, micro_batches, sequences, 256, seed)      # windows.py

    folder/corpus.json            counts, and the hash of each file
    folder/train-00000.u16 …      tokens of all passages but those that are held out
    folder/held-out-00000.u16
    folder/tokenizer.model, tokenizer_config.json, chat_template.jinja: the text files of a pack

A document is <s> text </s>, a conversation as the chat template renders it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.errors import DataError, TextError
from picoedge.files import read_object, storing
from picoedge.progress import Progress, no_progress
from picoedge.store.pack.atomic_folder import new_folder
from picoedge.text.template.template import TEMPLATE_FILE, ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import JSON_FILE, SENTENCEPIECE_FILE, SETTINGS_FILE
from picoedge.text.tokenizer.load import load_sentencepiece, load_tokenizer
from picoedge.train.data.order import mix
from picoedge.train.data.survey import TextSurvey, passage_characters, survey_texts
from picoedge.train.data.texts import Passage, Texts, find_texts
from picoedge.train.data.token_files import (
    TokenFile,
    TokenReader,
    TokenWriter,
    read_files,
    token_bits,
)
from picoedge.train.data.tokenizer import TokenizerModel, train_tokenizer, write_tokenizer

CORPUS_FILE = "corpus.json"
HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 1 << 14  # tokens: a held-out loss is computed often
_FORMAT, _VERSION = "picoedge-corpus", 1
_MOST_BYTES = 4 << 20
_DAMAGED = "begin the run anew from its text"
_CHARACTERS_A_TOKEN = 3  # about
_AT_ONCE = 1 << 20  # characters that are encoded at once
_MORE = "give more text, or train on shorter sequences"


@dataclass(frozen=True)
class CorpusSettings:
    """Settings by which a text becomes a corpus: all of them belong to the run.

    `length`: tokens of a sequence; there must be text for one, and for half a one to hold out.
    `held_out`: the share of the text that no step trains on, 0: none; of a long text less,
    `MOST_HELD_OUT` tokens.
    """

    length: int
    seed: int
    held_out: float = HELD_OUT_SHARE


@dataclass(frozen=True)
class Corpus:
    """The facts of a corpus in `folder`."""

    folder: Path
    vocab_size: int
    train: tuple[TokenFile, ...]
    held_out: tuple[TokenFile, ...]
    tokenizer: str  # hash of its files
    documents: int
    characters: int

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        return sum(file.tokens for file in self.train)

    @property
    def held_out_tokens(self) -> int:
        """Tokens that are held out."""
        return sum(file.tokens for file in self.held_out)

    def facts(self) -> dict[str, Any]:
        """As in JSON."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer,
            "documents": self.documents,
            "characters": self.characters,
            "train": [file.facts() for file in self.train],
            "held_out": [file.facts() for file in self.held_out],
        }

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Of a corpus on the disk. Raises ModelError, StorageError."""
        fields = read_object(folder / CORPUS_FILE, _MOST_BYTES, _DAMAGED)
        fields.one_of("format", (_FORMAT,))
        fields.one_of("version", (_VERSION,))
        train = read_files(fields, "train")
        if not train:
            raise fields.fault("train", "a list of files")
        return cls(
            folder,
            fields.integer("vocab_size", 1, 1 << 31),
            tuple(train),
            tuple(read_files(fields, "held_out")),
            fields.text("tokenizer", 64),
            fields.integer("documents"),
            fields.integer("characters"),
        )

    def reader(self, *, held_out: bool = False, verify: bool = True) -> TokenReader:
        """Tokens of a part; with `verify` its hashes are computed. Raises ModelError."""
        files = self.held_out if held_out else self.train
        return TokenReader(self.folder, files, self.vocab_size, verify=verify)


def prepare_corpus(
    paths: Sequence[Path],
    folder: Path,
    vocabulary: int,
    settings: CorpusSettings,
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> tuple[Corpus, list[str]]:
    """Read the text at `paths`, train a tokenizer of `vocabulary` pieces and write the corpus.

    With it come notes for the user, a sentence each: files that were passed over, a vocabulary that
    is smaller than asked for (`Corpus.vocab_size`). Raises DataError with all that is wrong with
    the text, StorageError; then nothing is left behind.
    """
    texts = find_texts(paths)
    survey = survey_texts(texts, settings.seed, progress)
    progress("training a tokenizer", 0, 0)
    model = train_tokenizer(survey.sample, vocabulary)
    progress("", 0, 0)
    corpus = write_corpus(
        texts, survey, model, folder, settings, threads=threads, progress=progress
    )
    return corpus, [*texts.notes, *[model.note] * bool(model.note)]


def write_corpus(
    texts: Texts,
    survey: TextSurvey,
    model: TokenizerModel,
    folder: Path,
    settings: CorpusSettings,
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> Corpus:
    """Encode `texts` with a tokenizer, and write both into the new folder `folder`.

    The result depends on neither threads nor memory: about 30 MB are in use. Raises DataError where
    the text is too little for the settings or changed since the survey, TextError, StorageError;
    then nothing is left behind.
    """
    held_out = _HeldOut(survey, settings)
    size = token_bits(model.vocab_size)
    with new_folder(folder, texts.size) as partial:
        write_tokenizer(model, partial, conversations=survey.conversations > 0)
        encoder = _Encoder(partial, threads)
        writers = [TokenWriter(partial, part, size) for part in ("train", "held-out")]

        def told(done: int, total: int) -> None:
            progress("encoding the text", done, total)

        passages = texts.passages(passage_characters(texts.size), told)
        count = 0
        for ids in encoder.encode(passages):
            writers[held_out.has(count)].add(ids)
            count += 1
        progress("", 0, 0)
        if count != survey.passages:
            raise DataError("the text changed while it was read", "leave its files alone")
        _require_enough(writers[0].tokens, writers[1].tokens, settings)
        train, held = (tuple(writer.close()) for writer in writers)
        digest = tokenizer_hash(partial)
        corpus = Corpus(
            folder, encoder.vocab_size, train, held, digest, survey.documents, survey.characters
        )
        (partial / CORPUS_FILE).write_text(json.dumps(corpus.facts(), indent=1), encoding="ascii")
    return corpus


def copy_tokenizer(corpus: Corpus, pack: Path) -> None:
    """Copy the text files of a pack from a corpus. Raises StorageError."""
    with storing(pack):
        for name in (SENTENCEPIECE_FILE, SETTINGS_FILE, TEMPLATE_FILE):
            shutil.copyfile(corpus.folder / name, pack / name)


def tokenizer_hash(folder: Path) -> str:
    """blake2b (32 bytes, in hex) of the tokenizer's, settings' and template's files of a pack.

    Raises TextError.
    """
    hasher = hashlib.blake2b(digest_size=32)
    for name in (JSON_FILE, SENTENCEPIECE_FILE, SETTINGS_FILE, TEMPLATE_FILE):
        path = folder / name
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise TextError(f"cannot read {path}: {error.strerror or error}") from error
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()


def _require_enough(train: int, held_out: int, settings: CorpusSettings) -> None:
    if train <= settings.length:
        raise DataError(
            f"too little text: {train} tokens to train on, sequences are {settings.length} long",
            _MORE,
        )
    least = settings.length // 2
    if settings.held_out and held_out <= least:
        raise DataError(
            f"too little text for a part that is held out: {held_out} of {train + held_out} "
            f"tokens, half a sequence takes {least}",
            _MORE,
        )


class _HeldOut:
    """Passages that are held out: one of each group of `every`, drawn by the seed."""

    def __init__(self, survey: TextSurvey, settings: CorpusSettings) -> None:
        self._seed, self._every = settings.seed, 0
        if not settings.held_out:
            return
        tokens = survey.characters / _CHARACTERS_A_TOKEN
        # Passages differ in length, so somewhat more than the least is drawn.
        least = 2 * settings.length / tokens
        share = max(least, min(settings.held_out, MOST_HELD_OUT / tokens))
        self._every = max(2, min(int(1 / min(share, 0.5)), survey.passages))

    def has(self, number: int) -> bool:
        """Whether the passage of this number is."""
        if not self._every:
            return False
        group, at = divmod(number, self._every)
        return at == mix(mix(self._seed) ^ group) % self._every


class _Encoder:
    """Passages to tokens, by the files of a SentencePiece tokenizer in a pack's folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._template = ChatTemplate.load(folder, chosen=False)
        self._model = load_sentencepiece(folder / SENTENCEPIECE_FILE, _DAMAGED)
        self._threads, self.vocab_size = threads, self._tokenizer.vocab_size
        bos, eos = self._tokenizer.bos_id, int(self._model.eos_id())
        assert bos is not None
        self._bos, self._eos = bos, eos

    def encode(self, passages: Iterator[Passage]) -> Iterator[list[int]]:
        """Tokens of each passage, in order."""
        waiting, size = list[Passage](), 0
        for passage in passages:
            waiting.append(passage)
            size += 1000 + len(passage.text)
            if size >= _AT_ONCE:
                yield from self._encode(waiting)
                waiting, size = [], 0
        yield from self._encode(waiting)

    def _encode(self, passages: Sequence[Passage]) -> Iterator[list[int]]:
        texts = [passage.text for passage in passages]
        encoded: list[list[int]] = self._model.encode(texts, num_threads=self._threads)
        for passage, ids in zip(passages, encoded, strict=True):
            if passage.messages:
                yield [*self._conversation(passage), self._eos]
            else:
                yield [*[self._bos] * passage.begins, *ids, *[self._eos] * passage.ends]

    def _conversation(self, passage: Passage) -> list[int]:
        if self._template is None:
            raise TextError("the tokenizer has no chat template", _DAMAGED)
        return encode_chat(
            self._template, self._tokenizer, passage.messages, add_generation_prompt=False
        )
