"""What daemons and those who ask them say to each other: requests, replies, and the checks.

A request is a control message with an `id`; its answer is a `reply` or an `error` with the same
`id`. A message without one is told, not asked: nothing answers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from picoedge.errors import AccessError, MeshError, PicoedgeError
from picoedge.fields import MAX_TEXT, Fields
from picoedge.mesh.transport.frames import control

Body = dict[str, Any]

REPLY, ERROR = "reply", "error"
PING_BYTES = 512 << 10  # of the largest ping: enough to measure the rate of a 1 Gbit/s link
MAX_ID = (1 << 53) - 1  # JSON numbers up to here are exact in every language


def number_of(body: Body) -> int | None:
    """The id by which an answer finds its request; None where none is wanted."""
    return Fields(body).integer("id", 0, MAX_ID) if "id" in body else None


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
    fields = Fields(body)
    kind = AccessError if fields.text("type") == AccessError.__name__ else MeshError
    return kind(f"board {board}: {fields.text('message')}", fields.text("hint"))
