"""Lines of JSONL files: each is a text, or a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from picoedge.errors import DataError, TextError
from picoedge.fields import Fields, TooManyValuesError, parse_json
from picoedge.sanitize import one_line
from picoedge.train.data.decoding import text_lines

_T = TypeVar("_T")

ROLES = ("system", "user", "assistant")
MAX_LINE = 16 << 20  # characters: a book is one of 1 million
_FORMS = '"messages", "prompt" and "completion", or "text"'
_MOST_FILES = 5  # in a message, as all that follow
_MOST_REASONS = 10
_MOST_RUNS = 400  # of line numbers in a message
_SHOWN = 40  # characters of a word of the file's

ChatMessage = Mapping[str, str]
"""With `role` and `content`."""


@dataclass(frozen=True)
class JsonlRecord:
    """A text (then `messages` is empty), or a conversation in messages."""

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()


def parse_record(line: str | None) -> JsonlRecord:
    """The record in a line; other fields are ignored. Raises DataError with the reason alone."""
    if line is None:
        raise DataError(f"longer than {MAX_LINE} characters")
    try:
        fields = Fields(parse_json(line), "", DataError)
    except TooManyValuesError as error:
        raise DataError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError("not valid JSON") from error
    if "messages" in fields.values:
        return JsonlRecord(messages=_messages(fields))
    if "prompt" in fields.values or "completion" in fields.values:
        question, answer = fields.get("prompt", str), fields.get("completion", str)
        return JsonlRecord(messages=(_message("user", question), _message("assistant", answer)))
    if "text" in fields.values:
        return JsonlRecord(text=fields.get("text", str))
    raise DataError(f"none of {_FORMS} is in it")


def _message(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


def _messages(fields: Fields) -> tuple[ChatMessage, ...]:
    found = tuple(_read_message(each) for each in fields.objects("messages"))
    if not found:
        raise DataError("no message in it")
    return found


def _read_message(fields: Fields) -> ChatMessage:
    role = fields.get("role", str)
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise DataError(f"unknown role {one_line(role[:_SHOWN])!r} (known: {known})")
    content = fields.values.get("content")
    return _message(role, content if isinstance(content, str) else _joined(fields))


def _joined(fields: Fields) -> str:
    """The text of a content that is a list of parts."""
    parts: Sequence[Any] = fields.array("content")
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise DataError("a message's content is no text")
    return "\n".join(texts)


def read_jsonl(
    path: Path, take: Callable[[JsonlRecord], _T], on_read: Callable[[int], None] | None = None
) -> Iterator[_T]:
    """`take` of each record of a JSONL file, in their order; blank lines count as lines.

    `on_read` is called with the characters of each line. Raises DataError at the end with every
    line that is broken, or of which `take` raises DataError or TextError; StorageError at once.
    """
    faults = LineFaults()
    for number, line in text_lines(path, MAX_LINE):
        if on_read is not None:
            on_read(len(line or "") + 1)
        if line is not None and not line.strip():
            continue
        try:
            taken = take(parse_record(line))
        except (DataError, TextError) as error:
            faults.add(number, one_line(error.message))
        else:
            yield taken
    if faults:
        hint = "correct them or take them out; the file was not changed"
        raise DataError(f"{path}: {faults}", hint)


class FileFaults:
    """Files that cannot be used: all of them are named at once."""

    def __init__(self) -> None:
        self._errors: list[DataError] = []
        self._more = 0  # files that are counted alone

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the DataError of one file for later."""
        try:
            yield
        except DataError as error:
            if len(self._errors) < _MOST_FILES:
                self._errors.append(error)
            else:
                self._more += 1

    def raise_if_any(self) -> None:
        """Raise them as one."""
        if not self._errors:
            return
        told = [error.message for error in self._errors]
        told += [f"and {self._more} more files"] * bool(self._more)
        raise DataError("; ".join(told), self._errors[0].hint)


class LineFaults:
    """Broken lines of one file, by reason: all of them are named at once."""

    def __init__(self) -> None:
        self._runs: dict[str, list[list[int]]] = {}
        self._more = 0  # lines that are counted alone

    def add(self, number: int, reason: str) -> None:
        """Note one, in the order of lines."""
        runs = self._runs.get(reason, [])
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        elif len(runs) < _MOST_RUNS and (runs or len(self._runs) < _MOST_REASONS):
            self._runs.setdefault(reason, []).append([number, number])
        else:
            self._more += 1

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __str__(self) -> str:
        """`line 3: not valid JSON; lines 7, 9-12: unknown role 'tool'`."""
        told = [f"{_numbers(runs)}: {reason}" for reason, runs in self._runs.items()]
        return "; ".join([*told, *[f"and {self._more} more lines"] * bool(self._more)])


def _numbers(runs: Sequence[Sequence[int]]) -> str:
    shown = ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)
    one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"{'line' if one else 'lines'} {shown}"
