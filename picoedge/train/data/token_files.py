"""Tokens on the disk: files of at most 16 million, each with its hash.

They are read with `pread` and not mapped: what a training run has read counts in no process's
memory, and a card that fails gives an error, not a signal that ends the process.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from picoedge.errors import ModelError
from picoedge.fields import Fields
from picoedge.files import digest, reading
from picoedge.kernels.arrays import I32

FILE_TOKENS = 1 << 24
_BUFFERED = 1 << 18  # tokens
_MOST_FILES = 4096
_NAME = re.compile(r"(train|held-out)-\d{5}\.u(16|32)")
_HASH = re.compile(r"[0-9a-f]{64}")
_HINT = "the run's data is damaged: begin the run anew from its text"
TokenArray = NDArray[np.uint16] | NDArray[np.uint32]


def token_bits(vocab_size: int) -> int:
    """16 or 32: how many bits a token of this vocabulary takes on the disk."""
    return 16 if vocab_size <= 1 << 16 else 32


@dataclass(frozen=True)
class TokenFile:
    """A file's name, its tokens, and the blake2b (32 bytes, in hex) of its content."""

    name: str
    tokens: int
    blake2b: str

    def facts(self) -> dict[str, Any]:
        """As in JSON."""
        return {"name": self.name, "tokens": self.tokens, "blake2b": self.blake2b}

    @classmethod
    def read(cls, fields: Fields) -> TokenFile:
        """Inverse of `facts`. Raises the error of `fields`."""
        return cls(
            fields.text("name", 32, _NAME, "a file of tokens"),
            fields.integer("tokens", 1, FILE_TOKENS),
            fields.text("blake2b", 64, _HASH, "a hash"),
        )


class TokenWriter:
    """Appends tokens to files `<part>-00000.u16` in a folder. Raises OSError."""

    def __init__(self, folder: Path, part: str, bits: int) -> None:
        self.files: list[TokenFile] = []
        self.tokens = 0
        self._folder, self._part, self._bits = folder, part, bits
        self._waiting: list[TokenArray] = []
        self._held = 0

    def add(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        self._waiting.append(np.asarray(ids, f"<u{self._bits // 8}"))
        self._held += len(ids)
        self.tokens += len(ids)
        if self._held >= _BUFFERED:
            self._write()

    def close(self) -> list[TokenFile]:
        """Write what waits; the files."""
        self._write()
        return self.files

    def _write(self) -> None:
        if not self._held:
            return
        waiting = np.concatenate(self._waiting)
        self._waiting, self._held = [], 0
        while len(waiting):
            if not self.files or self.files[-1].tokens == FILE_TOKENS:
                self.files.append(
                    TokenFile(f"{self._part}-{len(self.files):05}.u{self._bits}", 0, "")
                )
                self._hasher = hashlib.blake2b(digest_size=32)
            last = self.files[-1]
            now, waiting = np.split(waiting, [FILE_TOKENS - last.tokens])
            data = now.tobytes()
            with (self._folder / last.name).open("ab") as file:
                file.write(data)
            self._hasher.update(data)
            self.files[-1] = TokenFile(last.name, last.tokens + len(now), self._hasher.hexdigest())


class TokenReader:
    """Tokens of one part, read from its files. Close it after use. Thread-safe.

    Raises ModelError where a file is missing, has another size or, with `verify`, other content;
    StorageError where the disk fails.
    """

    def __init__(
        self, folder: Path, files: Sequence[TokenFile], vocab_size: int, *, verify: bool = True
    ) -> None:
        self._bits, self._vocab_size = token_bits(vocab_size), vocab_size
        self._files = [(folder / file.name, file) for file in files]
        self._ends = np.cumsum([file.tokens for file in files], dtype=np.int64)
        self._fds: list[int] = []
        try:
            for path, file in self._files:
                self._open(path, file, verify)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TokenReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _open(self, path: Path, file: TokenFile, verify: bool) -> None:
        size = file.tokens * self._bits // 8
        with reading(path):
            self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            found = os.fstat(self._fds[-1]).st_size
        if found != size:
            raise ModelError(f"{path} has {found} bytes, not {size}", _HINT)
        if verify and digest(path, 0, size) != file.blake2b:
            raise ModelError(f"{path} has other content than was written", _HINT)

    def read(self, start: int, count: int) -> I32:
        """Tokens [start, start + count), i32; behind the last comes the first again."""
        out, done = np.empty(count, np.int32), 0
        while done < count:
            at = (start + done) % len(self)
            number = int(np.searchsorted(self._ends, at, "right"))
            take = min(count - done, int(self._ends[number]) - at)
            out[done : done + take] = self._read(number, at, take)
            done += take
        return out

    def _read(self, number: int, at: int, count: int) -> TokenArray:
        path, file = self._files[number]
        width = self._bits // 8
        offset = (at - int(self._ends[number]) + file.tokens) * width
        with reading(path):
            data = os.pread(self._fds[number], count * width, offset)
        tokens = np.frombuffer(data, f"<u{width}")
        if len(tokens) < count or int(tokens.max()) >= self._vocab_size:
            raise ModelError(f"{path} is damaged at byte {offset}", _HINT)
        return tokens

    def close(self) -> None:
        """Close the files. Idempotent."""
        while self._fds:
            with suppress(OSError):
                os.close(self._fds.pop())


def read_files(fields: Fields, part: str) -> list[TokenFile]:
    """The files of a part in a corpus's facts. Raises the error of `fields`."""
    return [TokenFile.read(each) for each in fields.objects(part, _MOST_FILES)]
