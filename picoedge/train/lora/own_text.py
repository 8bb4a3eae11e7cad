"""The text that a model writes itself before fine-tuning, and the file that a run keeps it in.

The text is the same on every processor: its model's logits are, and so is what is drawn by them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.errors import ModelError
from picoedge.files import parse_object, reading, replace_file, writing
from picoedge.kernels.arrays import F32, I32
from picoedge.kernels.elementary import exponential
from picoedge.kernels.loader import load_kernels
from picoedge.model.sampling import greedy
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.base import TextSettings

_TOKENS = 1024  # of the whole text, about
FEWEST = 4  # micro-batches, so that not one text alone is rehearsed
_MAX_BYTES = 16 << 20
_DAMAGED = "remove it: the model writes its text again"


def micro_batches(tokens: int) -> int:
    """Of the whole text, where each has so many tokens."""
    return max(FEWEST, _TOKENS // tokens)


def first_tokens(settings: TextSettings) -> list[int]:
    """Tokens that texts begin with: the model's BOS, or where it puts none the end of another."""
    begins = set() if settings.bos_id is None else {settings.bos_id}
    if not settings.add_bos:
        begins |= settings.eos_ids
    return sorted(begins) or [0]


def own_text(
    pack: Pack, kernels: str | None, threads: int, shape: tuple[int, int], seed: int,
    tell: Callable[[int, int], None],
) -> I32:  # fmt: skip
    """Texts that a model writes, i32 [micro-batches, sequences, length + 1]: as likely as it says.

    `shape`: sequences of a micro-batch, length. `tell` is called with tokens done and of how many.
    """
    sequences, length = shape
    count = micro_batches(sequences * length) * sequences
    begins = first_tokens(TextSettings.read(pack.path))
    drawn, texts = random.Random(seed), np.empty((count, length + 1), np.int32)
    with (
        closing(load_kernels(kernels, threads)) as loaded,
        closing(Transformer(pack, loaded, length, batch=1)) as model,
    ):
        for number, text in enumerate(texts):
            text[0] = begins[number % len(begins)]
            for at in range(length):
                logits = model.forward((int(text[at]),), at)
                text[at + 1] = token_at(logits, drawn.random())
            tell((number + 1) * length, count * length)
    return texts.reshape(-1, sequences, length + 1)


def token_at(logits: F32, uniform: float) -> int:
    """The token whose share of the probability begins at or below `uniform`, in [0, 1).

    Sums go from the first token to the last, in f64. Raises ModelError for logits that are not
    finite.
    """
    peak = logits[greedy(logits)]
    covered = np.cumsum(exponential(logits.astype(np.float64) - float(peak)))
    token = int(np.searchsorted(covered, uniform * covered[-1], side="right"))
    return min(token, len(covered) - 1)


def keep_text(path: Path, texts: I32) -> None:
    """Write texts where `kept_text` finds them. Raises StorageError."""
    values = {"texts": texts.tolist(), "blake2b": text_hash(texts)}
    with writing(path.parent):
        replace_file(path, json.dumps(values).encode())


def kept_text(path: Path, shape: tuple[int, int], vocab_size: int) -> I32 | None:
    """The texts that a run has kept, as `own_text` gives them; None: it has kept none.

    Raises ModelError where the file is damaged, StorageError.
    """
    if not path.exists():
        return None
    with reading(path), path.open("rb") as file:
        data = file.read(_MAX_BYTES)
    fields = parse_object(data, path, _DAMAGED, len(data))
    sequences, length = shape
    wanted = micro_batches(sequences * length), sequences, length + 1
    texts = _tokens(fields.get("texts", list), wanted, vocab_size)
    if texts is None or text_hash(texts) != fields.text("blake2b", 64):
        raise ModelError(f"{path} is not the text that the run has written", _DAMAGED)
    return texts


def _tokens(values: list[Any], shape: tuple[int, ...], vocab_size: int) -> I32 | None:
    """Lists of lists of tokens as an array of this shape; None where they are anything else."""
    rows = [row for part in values if isinstance(part, list) for row in part]
    if len(values) != shape[0] or len(rows) != shape[0] * shape[1]:
        return None
    for row in rows:
        if not isinstance(row, list) or len(row) != shape[2]:
            return None
        if not all(type(token) is int and 0 <= token < vocab_size for token in row):
            return None
    return np.array(rows, np.int32).reshape(shape)


def text_hash(texts: I32) -> str:
    """blake2b (32 bytes, in hex) of tokens."""
    return hashlib.blake2b(texts.astype("<i4").tobytes(), digest_size=32).hexdigest()
