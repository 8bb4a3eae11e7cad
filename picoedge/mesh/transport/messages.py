"""Control messages: JSON in two frames; requests, replies and errors; wire versions.

A request is a control message with an `id`; its answer is a `reply` or an `error` with the same
`id`. A message without `id` is a notification, which has no answer.

**Versions.** A board speaks its own wire version and the one before, so that a cluster can be
upgraded board by board. Both sides of a connection open it in the older one, and say in the body
which one they know (`speaks`); after the first message each writes the newest that both know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from picoedge.errors import AccessError, MeshError, PicoedgeError, ProtocolError
from picoedge.fields import MAX_TEXT, Fields
from picoedge.mesh.transport.frames import HEADER, MAGIC, SPOKEN, VERSION, Header, Kind, pack
from picoedge.mesh.transport.limits import CONTROL_BYTES
from picoedge.sanitize import one_line

Body = dict[str, Any]

REPLY, ERROR = "reply", "error"
ACKNOWLEDGE = "acknowledge"  # {"of": kind}: the last notification of that kind was read
WANTS = "wants_acknowledge"  # a field of a notification: see `credit.py`
PING_BYTES = 512 << 10  # of the largest ping: enough to measure the rate of a 1 Gbit/s link
MAX_ID = (1 << 53) - 1  # JSON numbers up to here are exact in every language
CONTROL_DEPTH = 16  # objects and arrays inside each other; our own have at most 7
MOST_MESSAGE_VALUES = 1 << 16  # a page of a thousand boards has 40,000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
NUMBER_DIGITS = 24  # of an integer: 64 bits have 20, and longer ones take Python quadratic time
KIND_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_HEADERS = {version: pack(Header(Kind.CONTROL), version) for version in SPOKEN}


class VersionError(ProtocolError):
    """A message of a wire version that this board does not speak."""

    def __init__(self, board: str, version: int) -> None:
        there = "there" if version < SPOKEN[0] else "here"
        spoken = " and ".join(map(str, SPOKEN))
        super().__init__(
            f"{board} speaks version {version}, this one {spoken}: update picoedge {there}"
        )


class TooLongError(MeshError):
    """A message of this board's own that is larger than any may be: no fault of the other side."""


@dataclass(frozen=True)
class Translation:
    """The names that version `VERSION - 1` had for what has another name now.

    `kinds` maps kinds of messages, new to old. `fields` maps a kind (for a reply: the kind of its
    request) to paths of objects in its body, in new names, and those to the names in them, new to
    old: `{"beat": {"report": {"holder": "for"}, "": {"report": "state"}}}`. The path "" is the body
    itself, "*" stands for each item of a list; an object comes before those that it lies in.
    `told` is in place of `fields` for what the older board sends, where it reads a name in another
    sense than it writes it.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    told: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)

    def to_old(self, kind: str, body: Body, asked: str = "") -> tuple[str, Body]:
        """A message as the previous version names it; `asked`: the request that a reply answers."""
        for path, names in self.fields.get(asked or kind, {}).items():
            body = _renamed(body, _steps(path), names)
        return self.kinds.get(kind, kind), body

    def to_new(self, kind: str, body: Body) -> tuple[str, Body]:
        """A message of the previous version, with this version's names."""
        kind = next((new for new, old in self.kinds.items() if old == kind), kind)
        for path, names in reversed([*{**self.fields, **self.told}.get(kind, {}).items()]):
            body = _renamed(body, _steps(path), {old: new for new, old in names.items()})
        return kind, body


def _steps(path: str) -> list[str]:
    return path.split(".") if path else []


def _renamed(value: Any, path: list[str], names: Mapping[str, str]) -> Any:
    if not path and isinstance(value, dict):
        return {names.get(name, name): item for name, item in value.items()}
    if path and path[0] == "*" and isinstance(value, list):
        return [_renamed(item, path[1:], names) for item in value]
    if path and isinstance(value, dict) and path[0] in value:
        return {**value, path[0]: _renamed(value[path[0]], path[1:], names)}
    return value


NO_TRANSLATION = Translation()


class Dialect:
    """Writes and reads the control messages of one connection, in the version both sides know.

    `board` names the other side in errors. `acknowledges`: this side sends ACKNOWLEDGE for each
    notification that asks for it, which it says when it opens the connection.
    """

    def __init__(
        self,
        translation: Translation = NO_TRANSLATION,
        board: str = "a board",
        acknowledges: bool = False,
        most_values: int = MOST_MESSAGE_VALUES,
    ) -> None:
        self.version = SPOKEN[0]  # until the other side has said that it knows a newer one
        self._translation = translation
        self._board = board
        self._is_opening = True
        self._acknowledges = acknowledges
        self._most_values = most_values
        self.is_acknowledged = False  # whether the other side acknowledges

    def write(self, kind: str, body: Body, asked: str = "") -> list[bytes]:
        """The frames of a message; `asked` is the kind of the request that a reply answers.

        Raises TooLongError where they would be too large.
        """
        if self.version < VERSION:
            kind, body = self._translation.to_old(kind, body, asked)
        if self._is_opening:
            body = {**body, "speaks": VERSION}
            if self._acknowledges:
                body["acknowledges"] = True
        return control(kind, body, self.version)

    def write_newest(self, kind: str, body: Body) -> list[bytes]:
        """A notification that is to be acknowledged, if the other side acknowledges any."""
        return self.write(kind, {**body, WANTS: True} if self.is_acknowledged else body)

    def read(self, frames: Sequence[bytes | memoryview]) -> tuple[str, Body]:
        """Kind and body of a message; fields of a reply are `reply_body`'s to translate.

        Raises ProtocolError for anything malformed, VersionError for a version not spoken here.
        """
        version, kind, body = read_control(frames, self._board, self._most_values)
        known = body.pop("speaks", version)
        if type(known) is not int or known < version:
            raise ProtocolError("speaks is not a version")
        self.is_acknowledged |= body.pop("acknowledges", False) is True
        self._is_opening, self.version = False, min(known, VERSION)
        if version < VERSION:
            return self._translation.to_new(kind, body)
        return kind, body

    def reply_body(self, asked: str, body: Body) -> Body:
        """The body of a reply to a request of the kind `asked`, with this version's names."""
        return self._translation.to_new(asked, body)[1] if self.version < VERSION else body


def control(kind: str, body: Body, version: int = VERSION) -> list[bytes]:
    """The two frames of a control message. Raises TooLongError where they would be too large."""
    assert KIND_NAME.fullmatch(kind), kind
    message = {"kind": kind, "body": body}
    raw = json.dumps(message, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    if len(raw) > CONTROL_BYTES:
        raise TooLongError(f"a {kind!r} message of {len(raw)} bytes: the limit is {CONTROL_BYTES}")
    return [_HEADERS[version], raw]


def is_raw(frames: Sequence[bytes | memoryview]) -> bool:
    """Whether a message is a `RawReply`: a buffer behind a header of a kind that is not control."""
    if len(frames) != 2 or len(frames[0]) != HEADER.size:
        return False
    magic, version, kind = frames[0][:2], frames[0][2], frames[0][3]
    return magic == MAGIC and version in SPOKEN and kind != Kind.CONTROL


def read_control(
    frames: Sequence[bytes | memoryview],
    board: str = "a board",
    most_values: int = MOST_MESSAGE_VALUES,
) -> tuple[int, str, Body]:
    """Version, kind and body of a control message of `board`. Raises ProtocolError."""
    if len(frames) != 2:
        raise ProtocolError(f"a control message of {len(frames)} frames instead of 2")
    version = _version_of(bytes(frames[0]), board)
    if len(frames[1]) > CONTROL_BYTES:
        raise ProtocolError(f"a control message of {len(frames[1])} bytes")
    message = _parse(bytes(frames[1]), most_values)
    if not isinstance(message, dict) or set(message) != {"kind", "body"}:
        raise ProtocolError("a control message that is not a kind and a body")
    kind, body = message["kind"], message["body"]
    if not isinstance(kind, str) or not KIND_NAME.fullmatch(kind) or not isinstance(body, dict):
        raise ProtocolError("a control message that is not a kind and a body")
    return version, kind, body


def _version_of(header: bytes, board: str) -> int:
    if len(header) != HEADER.size or not header.startswith(MAGIC):
        raise ProtocolError("a control message without picoedge's header")
    version = header[len(MAGIC)]
    if version not in SPOKEN:
        raise VersionError(board, version)
    if header != _HEADERS[version]:
        raise ProtocolError("a control message with another header")
    return version


def _parse(raw: bytes, most_values: int) -> Any:
    # Each value of a list is 60 bytes and more where it took two: counted before it is made.
    if sum(map(raw.count, (b",", b"[", b"{"))) > most_values:
        raise ProtocolError(f"a control message of more than {most_values} values")
    try:
        value = _DECODER.decode(raw.decode())
        if _depth(value) > CONTROL_DEPTH:
            raise ProtocolError(f"a control message nested deeper than {CONTROL_DEPTH}")
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON can encode but no terminal or file can
        raise ProtocolError("a control message with half a character in it") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, JSONDecodeError too
        raise ProtocolError(f"a control message that is not JSON: {str(error)[:80]}") from None
    return value


def _depth(value: Any) -> int:
    """The number of values inside each other, this one included. Raises RecursionError."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _unique(pairs: list[tuple[str, Any]]) -> Body:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > NUMBER_DIGITS:
        raise ValueError("a number too long")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_integer,
    parse_float=_finite,
    parse_constant=_refuse_constant,
)

# -- replies and errors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RawReply:
    """A reply that is no control message: a header, and the buffer that it describes."""

    header: Header
    buffer: Any


Reply = Mapping[str, Any] | RawReply | PicoedgeError


class Pending:
    """A reply that is given later, by `answer`. Handlers return it in place of a body."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self._deliver: Callable[[Reply], None] | None = None

    def answer(self, reply: Reply) -> None:
        """Reply with a body, raw bytes or an error. Calls after the first have no effect."""
        if self.reply is None:
            self.reply = reply
            if self._deliver is not None:
                self._deliver(reply)

    def deliver(self, deliver: Callable[[Reply], None]) -> None:
        """Have `deliver` called with the reply, at once if it is there."""
        self._deliver = deliver
        if self.reply is not None:
            deliver(self.reply)


Handler = Callable[[Any, Body], Mapping[str, Any] | RawReply | Pending | None]


def number_of(body: Body) -> int | None:
    """The `id` of a request; None for a notification."""
    return Fields(body).integer("id", 0, MAX_ID) if "id" in body else None


def failure_body(error: PicoedgeError) -> Body:
    """The body of an `error`, as `error_of` takes it."""
    return {
        "type": type(error).__name__,
        "message": error.message[:MAX_TEXT],
        "hint": error.hint[:MAX_TEXT],
    }


def error_of(body: Body, board: str) -> MeshError:
    """The error that `board` replied with, its name in front. Raises ProtocolError."""
    fields = Fields(body)
    kind = AccessError if fields.text("type") == AccessError.__name__ else MeshError
    message, hint = one_line(fields.text("message")), one_line(fields.text("hint"))
    return kind(f"board {board}: {message}", hint)
