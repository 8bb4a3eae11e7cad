"""A tokenizer of the user's own text: byte pair encoding by the library SentencePiece.

Each byte is a piece too, so there is no text that it cannot write. The same sample gives the same
file: the library runs in one thread.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.errors import DataError
from picoedge.files import start_thread, storing
from picoedge.store.pack.atomic_folder import scratch_folder
from picoedge.text.export.export import write_from_huggingface
from picoedge.text.template.named import TEMPLATES, TurnFormat
from picoedge.text.tokenizer.base import SENTENCEPIECE_FILE, SETTINGS_FILE

BOS, EOS, TURN, END_OF_TURN_TOKEN = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
_RESERVED = 5 + 256  # <unk>, those above, and the bytes
SMALLEST_VOCABULARY = 320
_STEP = 16  # kernels take widths of so many
_LONGEST_LINE = 4096  # characters; the library leaves out longer ones, and counts bytes
_LOOK_S = 0.1  # between looks for Ctrl-C
_COVERAGE = 0.9995  # of all characters, whose kinds get a piece of their own

# A model that saw text alone knows where a document begins and ends, and no marks of turns.
PLAIN_TEMPLATE = TurnFormat(user="BOSCONTENT\n", assistant="CONTENTEOS", opening="").source()


@dataclass(frozen=True)
class TokenizerModel:
    """A SentencePiece model, and the size of its vocabulary: a multiple of 16.

    `note` says that it is smaller than was asked for, and why; "" where it is not.
    """

    data: bytes
    vocab_size: int
    note: str = ""


def train_tokenizer(sample: Iterable[str], vocabulary: int) -> TokenizerModel:
    """Train a tokenizer of `vocabulary` pieces on a sample, smaller where the sample has fewer.

    A 5 MB sample and 4096 pieces take half a minute on one core of a Pi 5 (estimated). Raises
    DataError where the sample is too small for any.
    """
    if vocabulary < SMALLEST_VOCABULARY or vocabulary % _STEP:
        what = f"a multiple of {_STEP}, {SMALLEST_VOCABULARY} at least"
        raise DataError(f"a vocabulary of {vocabulary} is not possible", f"choose {what}")
    lines = list(_lines(sample))
    lines = _common_characters(lines, (vocabulary - _RESERVED) // 2)
    data = _interruptible(lambda: _train(lines, vocabulary))
    size = _size(data)
    if size == vocabulary:
        return TokenizerModel(data, size)
    fits = size // _STEP * _STEP
    if fits < SMALLEST_VOCABULARY:
        raise DataError(
            f"the text is too small for a tokenizer: {max(0, size - _RESERVED)} pieces are in it, "
            f"{SMALLEST_VOCABULARY - _RESERVED} are the least",
            "give more text: a few pages",
        )
    note = f"the text has pieces for a vocabulary of {fits}, not {vocabulary}: {fits} is taken"
    return TokenizerModel(_train(lines, fits), fits, note)


def _lines(sample: Iterable[str]) -> Iterator[str]:
    for text in sample:
        for line in text.split("\n"):
            for at in range(0, len(line), _LONGEST_LINE):
                yield line[at : at + _LONGEST_LINE]


def _common_characters(lines: Sequence[str], most: int) -> list[str]:
    """Lines, cut at characters too rare for a piece of their own: bytes write those.

    At most `most` kinds are kept, so that any alphabet leaves room for longer pieces.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    kept, seen, enough = list[str](), 0, _COVERAGE * counts.total()
    for character, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        if seen >= enough or len(kept) == most:
            break
        kept.append(character)
        seen += count
    if len(kept) == len(counts):
        return [line for line in lines if line]
    rare = re.compile(f"[^{''.join(map(re.escape, kept))}]+")
    return [part for line in lines for part in rare.split(line) if part]


def _train(lines: Sequence[str], vocabulary: int) -> bytes:
    """The model's file; it has fewer pieces where the lines have. Raises DataError."""
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            model_type="bpe",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            character_coverage=1.0,
            byte_fallback=True,
            max_sentence_length=4 * _LONGEST_LINE,
            # Text is kept as it is, to the last space.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            bos_piece=BOS,
            eos_piece=EOS,
            control_symbols=[TURN, END_OF_TURN_TOKEN],
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:  # no line that it takes
        raise DataError("the text is too small for a tokenizer", "give more text") from error
    return file.getvalue()


def _interruptible(work: Callable[[], bytes]) -> bytes:
    """The result of `work`, done in a thread: the library, busy for a minute, hears no Ctrl-C."""
    results: list[bytes | DataError] = []

    def run() -> None:
        try:
            results.append(work())
        except DataError as error:
            results.append(error)

    thread = start_thread(run, "tokenizer")
    while thread.is_alive():
        thread.join(_LOOK_S)
    if not results:  # the thread has told why
        raise DataError("training a tokenizer was broken off", "try again")
    if isinstance(results[0], DataError):
        raise results[0]
    return results[0]


def _size(model: bytes) -> int:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.load_from_serialized_proto(model)
    return int(processor.vocab_size())


def write_tokenizer(model: TokenizerModel, folder: Path, *, conversations: bool) -> None:
    """Write a pack's tokenizer, settings and chat template into `folder`, which exists.

    `conversations`: the text has some, and so the model learns the marks of turns (ChatML). Raises
    StorageError.
    """
    template = TEMPLATES["chatml"] if conversations else PLAIN_TEMPLATE
    settings: dict[str, Any] = {
        "bos_token": BOS, "eos_token": EOS, "add_bos_token": True, "chat_template": template,
    }  # fmt: skip
    with storing(folder), scratch_folder(folder) as source:
        (source / SENTENCEPIECE_FILE).write_bytes(model.data)
        (source / SETTINGS_FILE).write_text(json.dumps(settings), encoding="ascii")
        write_from_huggingface(source, folder)
