"""Examples to fine-tune on: read, cut to the context, split, and served in batches.

    examples = read_examples([Path("questions.jsonl")], pack_folder)
    length = examples.sequence_length(context)
    fitted = examples.fitted(length)            # fitted.notes: what is too long
    train, held_out = fitted.split(0.05, seed)
    source = ExampleSource(train, held_out, micro_batches, sequences, length, seed)

Which tokens are learned is found in `answers`.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from picoedge.errors import DataError
from picoedge.kernels.arrays import I32
from picoedge.progress import Progress, no_progress
from picoedge.text.template.chosen import end_answers
from picoedge.text.template.template import ChatTemplate
from picoedge.text.tokenizer.base import TextSettings, Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.data.answers import ExampleEncoder, TokenizedText
from picoedge.train.data.corpus import tokenizer_hash
from picoedge.train.data.decoding import open_regular
from picoedge.train.data.order import SampleOrder
from picoedge.train.data.packing import pack_lengths
from picoedge.train.data.records import FileFaults, read_jsonl
from picoedge.train.step.batch import NO_TARGET, Batch

EXAMPLES_SUFFIX = ".jsonl"
_DAY = datetime.datetime(2025, 1, 1)  # that templates write: a run goes on tomorrow as it began
_SHORTEST, _STEP = 256, 64  # tokens of a sequence, and of what it is a multiple
FEWEST_TO_SPLIT = 40  # of fewer, none is spared to be held out
_FORM = 'a file of examples has one JSON object a line: {"messages": [...]}, '
_FORM += '{"prompt": "...", "completion": "..."} or {"text": "..."}'


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokenized examples, one behind another.

    tokens i32 [n]; counted bool [n]: whether a token is learned; starts i64 [examples + 1]; lines
    i64 [examples]: the number of the line, over all files, that an example comes from.
    """

    tokens: I32
    counted: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lines: NDArray[np.int64]
    tokenizer: str  # hash of the files of the tokenizer and template
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each example, as the length of a sequence: its tokens but the last."""
        return np.diff(self.starts) - 1

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return int(np.count_nonzero(self.counted))

    def example(self, number: int) -> tuple[I32, NDArray[np.bool_]]:
        """Tokens of an example, and which are learned."""
        rows = slice(*self.starts[number : number + 2].tolist())
        return self.tokens[rows], self.counted[rows]

    def sequence_length(self, most: int) -> int:
        """Tokens of a sequence that holds the longest example, at most `most`.

        It is 256 at least, where `most` allows, so that short examples fill it.
        """
        longest = int(self.lengths.max(initial=1))
        return min(most, max(_SHORTEST, -(-longest // _STEP) * _STEP))

    def digest(self) -> str:
        """blake2b (32 bytes, in hex) of tokens, and of which are learned."""
        hasher = hashlib.blake2b(digest_size=32)
        for values in (self.starts.astype("<i8"), self.tokens.astype("<i4"), self.counted):
            hasher.update(np.ascontiguousarray(values).data)
        return hasher.hexdigest()

    def fitted(self, length: int) -> Examples:
        """The examples that fit sequences of `length`, with `notes` on the others.

        A longer text goes on in further examples; a longer conversation ends there, and is left out
        where none of its answers has begun. Raises DataError where none is left.
        """
        texts, long, dropped = _Builder(self.tokenizer), 0, 0
        for number in range(len(self)):
            tokens, counted = self.example(number)
            is_text = bool(counted[1:].all())
            long += len(tokens) > length + 1
            pieces = range(0, len(tokens) - 1, length) if is_text else (0,)
            kept = 0
            for at in pieces:
                piece = slice(at, at + length + 1)
                if counted[piece][1:].any():
                    texts.add_arrays(tokens[piece], counted[piece], int(self.lines[number]))
                    kept += 1
            dropped += not kept
        notes = []
        if long:
            notes.append(
                f"{long} of {len(self)} examples are longer than the {length} tokens of a "
                "sequence: texts go on in the next one, conversations end there"
            )
        if dropped:
            notes.append(f"{dropped} of them left out: no answer begins before that")
        if dropped == len(self):
            raise DataError(
                f"none of {len(self)} examples has an answer within {length} tokens",
                "train on longer sequences, or shorten the questions",
            )
        return texts.build(notes)

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Examples to train on, and about `share` of the lines held out, drawn by the seed.

        None is held out of fewer than `FEWEST_TO_SPLIT` lines: then a held-out loss says little.
        """
        lines = np.unique(self.lines)
        count = max(1, round(share * len(lines))) if share else 0
        if len(lines) < FEWEST_TO_SPLIT:
            count = 0
        order = SampleOrder(len(lines), seed)
        drawn = lines[[order.sample(i) for i in range(count)]]
        held = np.isin(self.lines, drawn)
        return self._of(np.flatnonzero(~held)), self._of(np.flatnonzero(held))

    def _of(self, numbers: NDArray[np.intp]) -> Examples:
        chosen = _Builder(self.tokenizer)
        for number in numbers:
            chosen.add_arrays(*self.example(number), int(self.lines[number]))
        return chosen.build(self.notes)


class _Builder:
    """Examples, as they come."""

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer
        self._tokens, self._counted = array("i"), bytearray()
        self._starts, self._lines = array("q", [0]), array("q")

    def add(self, text: TokenizedText, line: int) -> None:
        self._tokens.extend(text.ids)
        self._counted.extend(text.counted)
        self._end(line)

    def add_arrays(self, tokens: I32, counted: NDArray[np.bool_], line: int) -> None:
        self._tokens.frombytes(np.ascontiguousarray(tokens, np.int32).tobytes())
        self._counted.extend(counted.tobytes())
        self._end(line)

    def _end(self, line: int) -> None:
        self._starts.append(len(self._tokens))
        self._lines.append(line)

    def build(self, notes: Iterable[str] = ()) -> Examples:
        return Examples(
            np.array(self._tokens, np.int32), np.frombuffer(bytes(self._counted), np.bool_),
            np.array(self._starts, np.int64), np.array(self._lines, np.int64),
            self._tokenizer, tuple(notes),
        )  # fmt: skip


def read_examples(paths: Sequence[Path], model: Path, progress: Progress = no_progress) -> Examples:
    """The examples in JSONL files, with the tokenizer and chat template of the pack `model`.

    Of conversations the answers are learned, of texts all. Raises DataError with every broken line,
    and where there is no example; TextError, StorageError.
    """
    encoder = encoder_of(model)
    texts, line, done, total = _Builder(tokenizer_hash(model)), 0, 0, _size_of(paths)

    def on_read(characters: int) -> None:
        nonlocal done
        done += characters
        progress("reading examples", min(done, total), total)

    faults = FileFaults()
    for path in paths:
        with faults.collected():
            for found in read_jsonl(path, encoder.encode, on_read):
                for text in found:
                    texts.add(text, line)
                line += 1
    faults.raise_if_any()
    progress("", 0, 0)
    if not line:
        where = ", ".join(map(str, paths))
        raise DataError(f"no example in {where}", _FORM)
    return texts.build()


def _size_of(paths: Sequence[Path]) -> int:
    """Bytes of the files. Raises DataError where one cannot be a file of examples."""
    for path in paths:
        if path.suffix.lower() != EXAMPLES_SUFFIX:
            raise DataError(f"{path} is not a file {EXAMPLES_SUFFIX}", _FORM)
    total = 0
    for path in paths:
        with open_regular(path) as file:
            total += os.fstat(file.fileno()).st_size
    return total


def encoder_of(model: Path) -> ExampleEncoder:
    """For the pack in a folder, with the template that the user chose for it, if any.

    Raises TextError.
    """
    tokenizer, template = load_tokenizer(model), ChatTemplate.load(model, now=lambda: _DAY)
    if template is not None and template.chosen:
        end_answers(template, tokenizer)
    return ExampleEncoder(tokenizer, template, _end_of_text(tokenizer, TextSettings.read(model)))


def _end_of_text(tokenizer: Tokenizer, settings: TextSettings) -> int | None:
    ids = tokenizer.encode(settings.eos_token, add_bos=False) if settings.eos_token else []
    if len(ids) == 1:
        return ids[0]
    return min(tokenizer.eos_ids, default=None)


class ExampleSource:
    """A `TokenSource` over examples that fit sequences of `length` tokens.

    Short examples share a sequence and do not see each other (`Batch.documents`). Every sequence
    has a target that counts, so every step has. Where `sequences_per_epoch` is below `micro_batches
    * sequences`, a step goes over examples more than once: choose fewer.
    """

    def __init__(
        self,
        train: Examples,
        held_out: Examples,
        micro_batches: int,
        sequences: int,
        length: int,
        seed: int,
    ) -> None:
        self._train, self._other = train, held_out
        self._shape, self._length = (micro_batches, sequences), length
        self._packed = pack_lengths(train.lengths.tolist(), length, seed)
        self._order = SampleOrder(len(self._packed), seed)
        self._held_out = self._held_out_batches(seed)

    @property
    def sequences_per_epoch(self) -> int:
        """Sequences that all examples together fill."""
        return len(self._packed)

    @property
    def held_out(self) -> Sequence[Batch]:
        """See `TokenSource`."""
        return self._held_out

    @property
    def tokens_per_epoch(self) -> int:
        """See `TokenSource`."""
        return self._train.targets

    def batch(self, step: int) -> Batch:
        """See `TokenSource`."""
        size = self._shape[0] * self._shape[1]
        first = (step - 1) * size
        drawn = [self._order.sample(position) for position in range(first, first + size)]
        return self._batch(self._train, [self._packed[number] for number in drawn])

    def _held_out_batches(self, seed: int) -> list[Batch]:
        if not len(self._other):
            return []
        packed = pack_lengths(self._other.lengths.tolist(), self._length, seed)
        size = self._shape[0] * self._shape[1]
        return [
            self._batch(self._other, packed[at : at + size]) for at in range(0, len(packed), size)
        ]

    def _batch(self, examples: Examples, rows: Sequence[Sequence[int]]) -> Batch:
        """Sequences of these examples; further ones are empty, up to whole micro-batches."""
        sequences = self._shape[1]
        count = -(-len(rows) // sequences) * sequences
        tokens, documents = (np.zeros((count, self._length), np.int32) for _ in range(2))
        targets = np.full((count, self._length), NO_TARGET, np.int32)
        for row, numbers in enumerate(rows):
            at = 0
            for document, number in enumerate(numbers):
                ids, counted = examples.example(number)
                place = slice(at, at + len(ids) - 1)
                tokens[row, place] = ids[:-1]
                targets[row, place] = np.where(counted[1:], ids[1:], NO_TARGET)
                documents[row, place] = document
                at = place.stop
            documents[row, at:] = len(numbers)
        shape = (-1, sequences, self._length)
        return Batch(tokens.reshape(shape), targets.reshape(shape), documents.reshape(shape))

    def describe(self) -> dict[str, Any]:
        """See `TokenSource`."""
        return {
            "kind": "examples",
            "data": self._train.digest(),
            "held_out_data": self._other.digest(),
            "tokenizer": self._train.tokenizer,
            "examples": len(self._train),
            "held_out_examples": len(self._other),
            "targets": self._train.targets,
        }
