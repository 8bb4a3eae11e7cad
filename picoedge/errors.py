"""The one error tree of picoedge.

    PicoedgeError(message, hint)      exit 1
    |- UsageError                     exit 2: the command line or the configuration is wrong
    |- ModelError                     a model's files are missing, damaged or of an unknown kind
    |  |- UnsupportedError            sound, but an architecture or tensor type we do not run
    |- TextError                      tokenizer or chat template missing, damaged or misbehaving
    |- DataError                      text or examples to train on are missing, broken or too few
    |- ContextError                   the prompt does not fit the context
    |- MemoryBudgetError              what was asked for does not fit the memory there is
    |- StorageError                   a disk or a cache folder fails us (full, unwritable, broken)
    |- DownloadError                  a source cannot be reached or sent the wrong bytes
    |- MeshError                      the boards of a cluster do not come together
    |  |- AccessError                 a key is missing, not allowed, or revoked
    |  |- BoardLostError              a board that was needed died, hangs or is cut off
    |  |  |- BoardRefusedError        it is there, and says that it cannot take part
    |  |  |- BoardSilentError         nothing is heard of it, not even why
    |  |- UnlinkedError               two boards that the hub reaches cannot reach each other
    |  |- ProtocolError               a peer sent what makes no sense; it is dropped

Raised for what users, files and peers do; `assert` is for our own invariants.
"""

from __future__ import annotations

from typing import TypeVar


class PicoedgeError(Exception):
    """A fault and its place (`message`), and the remedy (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(PicoedgeError):
    """The command line, an environment variable or the configuration is wrong."""

    exit_code = 2


class ModelError(PicoedgeError):
    """A model's files are missing, damaged or of an unknown kind."""


class UnsupportedError(ModelError):
    """The files are sound, but hold an architecture or tensor type picoedge does not run."""


class TextError(PicoedgeError):
    """A tokenizer or chat template is missing, damaged or misbehaving."""


class DataError(PicoedgeError):
    """Text or examples to train on are missing, broken or too few."""


class ContextError(PicoedgeError):
    """The prompt does not fit the context."""


class MemoryBudgetError(PicoedgeError):
    """The model or context does not fit the memory."""


class StorageError(PicoedgeError):
    """A disk or a folder fails us: full, unwritable, unreadable."""


class DownloadError(PicoedgeError):
    """A source cannot be reached, or sent bytes that do not match their hash."""


class MeshError(PicoedgeError):
    """The boards of a cluster do not come together: none found, one silent, one misbehaving."""


class AccessError(MeshError):
    """A key is missing, not allowed, or revoked."""


class BoardLostError(MeshError):
    """A board that was needed died, hangs or is cut off: its name, for people, and its key."""

    def __init__(self, message: str, hint: str = "", *, board: str = "", key: str = "") -> None:
        super().__init__(message, hint)
        self.board, self.key = board, key


class BoardRefusedError(BoardLostError):
    """A board that was needed is there, and says that it cannot take part."""


class BoardSilentError(BoardLostError):
    """Nothing is heard of a board, or its worker stands still, and no daemon says why."""


class UnlinkedError(MeshError):
    """A board cannot reach others of its group, whose public keys are `keys`. None has failed."""

    def __init__(self, message: str, hint: str = "", *, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.keys = keys


class ProtocolError(MeshError):
    """A peer sent what makes no sense. What it asked for is not done, and it is dropped."""


Failure = TypeVar("Failure", bound=PicoedgeError)


def without_frames(error: Failure) -> Failure:
    """The error without the frames it came through, whose variables refer to a model's memory."""
    link: BaseException | None = error
    while link is not None:
        before, link.__traceback__ = link.__context__, None
        link.__cause__ = link.__context__ = None
        link = before
    return error
