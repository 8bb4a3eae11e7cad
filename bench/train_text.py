"""Text that every machine with Python has: its standard library's sources, without their tests.

As a process (`python -m bench.train_text`, JSON on stdin) it writes ids into a file.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__")
SENTENCE_BYTES = 4192  # of a line that the tokenizer learns from


def sources(root: Path) -> Iterator[Path]:
    """Python files below a folder, in the order of their names."""
    for path in sorted(root.rglob("*.py")):
        if not set(path.relative_to(root).parts[:-1]) & set(LEFT_OUT) and path.is_file():
            yield path


def library_text(root: Path | None = None) -> bytes:
    """All of it, UTF-8; files that are none are left out."""
    found = []
    for path in sources(root or Path(sysconfig.get_path("stdlib"))):
        text = path.read_bytes()
        try:
            text.decode()
        except UnicodeDecodeError:
            continue
        found.append(text)
    return b"\n".join(found)


def byte_ids(text: bytes, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """The text's first bytes as ids."""
    return np.frombuffer(text[:count], np.uint8).astype(np.int32)


def piece_ids(text: bytes, vocabulary: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Ids by a SentencePiece model (BPE) that is trained on this very text."""
    import sentencepiece

    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        lines = Path(scratch, "text")
        lines.write_bytes(text)
        prefix = str(Path(scratch, "model"))
        sentencepiece.SentencePieceTrainer.train(
            input=str(lines), model_prefix=prefix, vocab_size=vocabulary, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=False, max_sentence_length=SENTENCE_BYTES, num_threads=1,
            input_sentence_size=100_000, shuffle_input_sentence=False, minloglevel=2,
        )  # fmt: skip
        processor = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
        ids: list[int] = []
        for part in text.decode().splitlines(keepends=True):
            ids += processor.encode(part)
    return np.array(ids, np.int32)


def main() -> None:
    """Write ids: `vocabulary` 256 takes bytes as they are. Answers with how many there are."""
    request = json.load(sys.stdin)
    text = library_text()
    if request["vocabulary"] == 256:
        ids = byte_ids(text, request["most"])
    else:
        ids = piece_ids(text, request["vocabulary"])[: request["most"]]
    np.save(request["into"], ids)
    print(json.dumps({"bytes": len(text), "ids": len(ids)}))


if __name__ == "__main__":
    main()
