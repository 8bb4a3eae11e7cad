"""What daemons and those who ask them say to each other: requests, replies, and the checks.

A request is a control message with an `id`; its answer is a `reply` or an `error` with the same
`id`. A message without one is told, not asked: nothing answers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from picoedge.errors import AccessError, MeshError, PicoedgeError, ProtocolError
from picoedge.mesh.transport.frames import control

Body = dict[str, Any]

REPLY, ERROR = "reply", "error"
MAX_TEXT = 2000
PING_BYTES = 512 << 10  # of the largest ping: enough to measure the rate of a 1 Gbit/s link
MAX_ID = 1 << 53


def text_of(body: Body, name: str, longest: int = MAX_TEXT) -> str:
    """A field that must be text of at most `longest` characters. Raises ProtocolError."""
    value = body.get(name)
    if not isinstance(value, str) or len(value) > longest:
        raise ProtocolError(f"{name} is not a text of at most {longest} characters")
    return value


def integer_of(body: Body, name: str, below: int = 1 << 64) -> int:
    """A field that must be an integer from 0 and `below`. Raises ProtocolError."""
    value = body.get(name)
    if type(value) is not int or not 0 <= value < below:
        raise ProtocolError(f"{name} is not an integer from 0 and below {below}")
    return value


def texts_of(body: Body, name: str, most: int, longest: int) -> tuple[str, ...]:
    """A field that must be a list of at most `most` texts. Raises ProtocolError."""
    value = body.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise ProtocolError(f"{name} is not a list of at most {most}")
    return tuple(text_of({name: item}, name, longest) for item in value)


def object_of(body: Body, name: str) -> Body:
    """A field that must be an object. Raises ProtocolError."""
    value = body.get(name)
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} is not an object")
    return value


def number_of(body: Body) -> int | None:
    """The id by which an answer finds its request; None where none is wanted."""
    return integer_of(body, "id", MAX_ID) if "id" in body else None


def reply(number: int, body: Mapping[str, Any]) -> list[bytes]:
    """The frames that answer request `number`."""
    return control(REPLY, {**body, "id": number})


def failure(number: int, error: PicoedgeError) -> list[bytes]:
    """The frames that tell what went wrong with request `number`."""
    return control(
        ERROR,
        {
            "id": number,
            "type": type(error).__name__,
            "message": error.message[:MAX_TEXT],
            "hint": error.hint[:MAX_TEXT],
        },
    )


def error_of(body: Body, board: str) -> MeshError:
    """The error a board told of, with its name in front. Raises ProtocolError."""
    kind = AccessError if text_of(body, "type") == AccessError.__name__ else MeshError
    return kind(f"board {board}: {text_of(body, 'message')}", text_of(body, "hint"))
