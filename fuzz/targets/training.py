"""Text and examples to train on, and a run's corpus."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz.inputs import of_values
from fuzz.mutate import mutate_bytes, mutate_value, to_json
from fuzz.target import Run, Target
from picoedge.train.data.corpus import Corpus
from picoedge.train.data.texts import find_texts
from picoedge.train.lora.own_text import kept_text, text_hash

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
MARKS = (
    b"",
    codecs.BOM_UTF8,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
)
LONGEST = 40  # characters of a passage
RECORDS: list[dict[str, Any]] = [
    {"text": "A text of some words.\n\nAnd more of them, so that it is cut."},
    {"prompt": "What?", "completion": "That."},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What?"}, "and"]},
            {"role": "assistant", "content": "That."},
        ]
    },
]
CORPUS = {
    "format": "picoedge-corpus",
    "version": 1,
    "vocab_size": 512,
    "tokenizer": "ab" * 32,
    "documents": 2,
    "characters": 100,
    "train": [{"name": "train-00000.u16", "tokens": 4, "blake2b": "ab" * 32}],
    "held_out": [],
}


def _text(name: str) -> Any:
    def open_target(folder: Path) -> Run:
        def run(data: bytes) -> None:
            (folder / name).write_bytes(data)
            for passage in find_texts([folder / name]).passages(LONGEST):
                assert len(passage.text) <= LONGEST

        return run

    return open_target


def _corpus(folder: Path) -> Run:
    (folder / "train-00000.u16").write_bytes(bytes(8))

    def run(data: bytes) -> None:
        (folder / "corpus.json").write_bytes(data)
        with Corpus.open(folder).reader(verify=False) as reader:
            reader.read(0, 3)

    return run


def _lines(records: Sequence[Any]) -> bytes:
    return b"".join(to_json(record) + b"\n" for record in records)


def _mutated_lines(rng: Random, given: Sequence[bytes]) -> bytes:
    if rng.randrange(3) == 0:
        return mutate_bytes(rng, given[0])
    return _lines([mutate_value(rng, record) for record in rng.sample(RECORDS, 2)])


def _mutated_text(rng: Random, given: Sequence[bytes]) -> bytes:
    """Also in encodings that are not read, with the mark of another, and with zeros."""
    what = rng.randrange(6)
    if what > 2:
        return mutate_bytes(rng, rng.choice(given), given)
    text = given[0].decode()
    if what == 0:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + "\0" + text[at:]
        return text.encode(rng.choice(ENCODINGS), "replace")
    data = text.encode(rng.choice(("latin-1", "utf-16-be", "utf-32-le")), "replace")
    return mutate_bytes(rng, rng.choice(MARKS) + data, given)


def _texts() -> list[bytes]:
    text = "Zwölf Boxkämpfer jagen\r\nViktor quer\n\nüber den großen Sylter Deich 🙂 " * 3
    return [text.encode(encoding) for encoding in ENCODINGS]


def _own_text(folder: Path) -> Run:
    def run(data: bytes) -> None:
        (folder / "rehearsal.json").write_bytes(data)
        kept_text(folder / "rehearsal.json", (1, 512), 7)

    return run


def _own_texts() -> dict[str, Any]:
    texts = np.arange(4 * 513, dtype=np.int32).reshape(4, 1, 513) % 7
    return {"texts": texts.tolist(), "blake2b": text_hash(texts)}


TRAINING = (
    Target(
        "training-text",
        _text("a.txt"),
        _texts,
        _mutated_text,
        (
            "train/data/decoding.py:open_regular,text_chunks,_decoded,_read,_no_text,_binary",
            "train/data/texts.py:cut_passages,_cut",
        ),
    ),
    Target(
        "training-lines",
        _text("a.jsonl"),
        lambda: [_lines(RECORDS)],
        _mutated_lines,
        ("train/data/records.py", "train/data/decoding.py:text_lines"),
        weight=2,
    ),
    Target(
        "corpus.json",
        _corpus,
        **of_values([CORPUS], ("train", "held_out", "version")),
        modules=(
            "train/data/corpus.py:Corpus.open",
            "train/data/token_files.py:TokenFile.read,read_files",
        ),
    ),
    Target(
        "rehearsal.json",
        _own_text,
        **of_values([_own_texts()], ("texts", "blake2b")),
        modules=("train/lora/own_text.py:kept_text,_tokens",),
    ),
)
