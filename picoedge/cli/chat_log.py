"""A chat's record on the disk while it goes on: a disk that fails is said once, no more."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from picoedge.chats.chat_file import ChatFile
from picoedge.chats.chat_folder import ChatFolder
from picoedge.chats.conversation import ChatAdapter, Conversation, Record, apply, fold, snapshot

_KEPT = ("question", "answer", "load")  # what makes a file of a chat


class ChatLog:
    """The conversation, each change of which is appended to its file.

    A chat without a question has no file. What could not be written is written with the next
    record, so that a disk that was full for a while has all of it in the end.
    """

    def __init__(
        self,
        folder: ChatFolder | None = None,  # None: nothing is kept
        warn: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.conversation = Conversation()
        self._folder, self._warn, self._clock = folder, warn, clock
        self._file: ChatFile | None = None
        self._waiting: list[Record] = []
        self._told = False

    def begin(self, model: str, source: str, adapter: ChatAdapter | None = None) -> None:
        """Begin a new chat."""
        self._restart(Conversation(model, source, self._clock(), adapter=adapter))

    def clear(self) -> None:
        """Begin a new chat with the settings of this one, whose file stays as it is."""
        here = self.conversation
        self._restart(
            Conversation(
                here.model, here.source, self._clock(), here.settings, adapter=here.adapter
            )
        )

    def _restart(self, conversation: Conversation) -> None:
        self.close()
        self.conversation, self._waiting = conversation, snapshot(conversation)

    def resume(self, number: int) -> None:
        """Go on with a chat. Raises UsageError, StorageError."""
        assert self._folder is not None
        self._file, records = self._folder.open(number)
        self.conversation, self._waiting = fold(records), []

    def add(self, kind: str, **fields: Any) -> None:
        """Append a record, which changes the conversation. Never raises."""
        record = {"kind": kind, "at": self._clock(), **fields}
        self.conversation = apply(self.conversation, record)
        if self._folder is None:
            return
        self._waiting.append(record)
        if self._file is not None or kind in _KEPT:
            self._flush()

    def _flush(self) -> None:
        assert self._folder is not None
        try:
            try:
                self._write()
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                self._restart(self.conversation)  # in a new file; the full one stays
                self._write()
        except OSError as error:
            self._tell(error)

    def _write(self) -> None:
        assert self._folder is not None
        if self._file is None:
            self._file = self._folder.create()
        self._file.append(self._waiting)
        self._waiting = []

    def _tell(self, error: OSError) -> None:
        if not self._told:
            reason = (error.strerror or str(error)).lower()
            where = error.filename or (self._folder.path if self._folder else "")
            self._warn(f"{where}: {reason}: this chat is not kept while that is so")
        self._told = True

    @property
    def number(self) -> int | None:
        """The number of the chat, once it has a file."""
        return None if self._file is None else int(self._file.path.stem)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
