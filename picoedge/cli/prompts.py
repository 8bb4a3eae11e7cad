"""Where a prompt comes from: a flag, a pipe or a file, and always as sound UTF-8."""

from __future__ import annotations

import sys
from pathlib import Path

from picoedge.errors import UsageError
from picoedge.units import format_size

MAX_STDIN_BYTES = 16 << 20


def stdin_is_terminal() -> bool:
    """Whether a person types at the other end."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> str:
    """All of stdin as text. Raises UsageError where it is not UTF-8, or endless."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise UsageError(
            f"standard input is larger than {format_size(MAX_STDIN_BYTES)}", "no context is"
        )
    return decode_text(data, "standard input")


def read_text(path: Path, limit: int | None = None) -> str:
    """The first `limit` bytes of a file as text. Raises UsageError where it is not UTF-8."""
    with path.open("rb") as file:
        data = file.read() if limit is None else file.read(limit)
    return decode_text(data, str(path), cut=limit is not None and len(data) == limit)


def decode_text(data: bytes, where: str, cut: bool = False) -> str:
    """UTF-8 to text; `cut`: the last character may be incomplete, and is then dropped."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - 3:
            return data[: error.start].decode("utf-8")
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})", "convert it") from None


def chosen_prompt(prompt: str | None) -> str:
    """`-p`, else what is piped in, less its last newline. Raises UsageError for neither."""
    if prompt is None and stdin_is_terminal():
        raise UsageError("no prompt", "give one with -p TEXT, or pipe it in")
    text = read_stdin().removesuffix("\n") if prompt is None else prompt
    if not text.strip():
        raise UsageError("the prompt is empty", "give one with -p TEXT, or pipe it in")
    return text
