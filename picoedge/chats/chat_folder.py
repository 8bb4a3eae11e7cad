"""The folder of chats, `$XDG_STATE_HOME/picoedge/chats`: a file a chat, numbered as they began.

The order is that of use, whatever the clock says: many boards begin in 1970.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.chats.chat_file import ChatFile, ChatInUseError, in_use, read_records
from picoedge.chats.conversation import ChatAdapter, Conversation, Record, apply, fold
from picoedge.errors import UsageError
from picoedge.files import make_folder, storage_errors, sync, xdg_folder

_NAME = re.compile(r"([1-9][0-9]{0,8})\.jsonl", re.ASCII)
_HEAD_BYTES = 64 << 10  # of a file, for the list
_FIRST_WORDS = 80
_LIST = "picoedge chats lists them"
_HINT = "check its owner and permissions; XDG_STATE_HOME names another folder"


@dataclass(frozen=True)
class ChatSummary:
    """One line of the list of chats."""

    number: int
    began_at: float
    used_at: float  # by the file; in the order of use, also where the clock has gone back
    model: str
    first_words: str
    adapter: ChatAdapter | None = None  # with which it began

    def to_json(self) -> dict[str, Any]:
        """Its fields by name, the number as `id`."""
        return {
            "id": self.number,
            "model": self.model,
            "began_at": self.began_at,
            "used_at": self.used_at,
            "first_words": self.first_words,
            "adapter": self.adapter and self.adapter.to_json(),
        }


class ChatFolder:
    """The chats of one user. Raises StorageError where the disk fails it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ChatFolder:
        """The folder that `environ` names, which need not exist."""
        return cls(xdg_folder("STATE", environ) / "chats")

    def file(self, number: int) -> Path:
        """The path of a chat."""
        return self.path / f"{number}.jsonl"

    def numbers(self) -> list[int]:
        """All chats, the one used last at the end."""
        with storage_errors(self.path, _HINT):
            try:
                entries = list(os.scandir(self.path))
            except FileNotFoundError:
                return []
        found: list[tuple[int, int]] = []
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            with suppress(OSError):  # removed a moment ago
                if match and entry.is_file(follow_symlinks=False):
                    found.append((entry.stat().st_mtime_ns, int(match[1])))
        return [number for _, number in sorted(found)]

    def create(self) -> ChatFile:
        """A new chat's file, by the next number. Raises OSError."""
        make_folder(self.path, 0o700)
        names = map(_NAME.fullmatch, os.listdir(self.path))
        number = max((int(match[1]) for match in names if match), default=0) + 1
        while True:
            try:
                return ChatFile.create(self.file(number))
            except FileExistsError:  # another chat began at this moment
                number += 1

    def open(self, number: int) -> tuple[ChatFile, list[Record]]:
        """A chat to go on with. Raises UsageError."""
        with storage_errors(self.path, _HINT):
            try:
                return ChatFile.open(self.file(number))
            except FileNotFoundError:
                raise _no_chat(number) from None
            except ChatInUseError:
                raise _in_use(number, "end that one, or name another") from None

    def read(self, number: int) -> Conversation:
        """A chat as it is. Raises UsageError."""
        with storage_errors(self.path, _HINT):
            try:
                return fold(read_records(self.file(number)))
            except FileNotFoundError:
                raise _no_chat(number) from None

    def summary(self, number: int) -> ChatSummary | None:
        """A chat's line of the list; None where it cannot be read."""
        try:
            used_at = self.file(number).stat().st_mtime
            records = read_records(self.file(number), _HEAD_BYTES)
        except OSError:
            return None
        conversation = Conversation()
        for record in records:
            conversation = apply(conversation, record)
            if conversation.prompt:
                break
        words = conversation.prompt[0]["content"] if conversation.prompt else ""
        words = " ".join(words[: 10 * _FIRST_WORDS].split())[:_FIRST_WORDS]
        return ChatSummary(
            number, conversation.began_at, used_at, conversation.model, words, conversation.adapter
        )

    def summaries(self) -> list[ChatSummary]:
        """The list of chats, in the order of their use."""
        return [found for number in self.numbers() if (found := self.summary(number))]

    def last(self, model: str | None) -> int | None:
        """The chat used last, of `model` where one is given."""
        for number in reversed(self.numbers()):
            summary = self.summary(number)
            if summary is not None and model in (None, summary.model):
                return number
        return None

    def remove(self, number: int) -> None:
        """Remove a chat for good. Raises UsageError where it is not there, or in use."""
        with storage_errors(self.path, _HINT):
            try:
                if in_use(self.file(number)):
                    raise _in_use(number, "end that one first")
                self.file(number).unlink()
            except FileNotFoundError:
                raise _no_chat(number) from None
            sync(self.path)


def _no_chat(number: int) -> UsageError:
    return UsageError(f"there is no chat {number}", _LIST)


def _in_use(number: int, remedy: str) -> UsageError:
    return UsageError(f"chat {number} goes on in another terminal", remedy)
