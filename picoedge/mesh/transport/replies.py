"""Handlers of requests, and the four ways to answer: now, later, with raw bytes, with an error."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from picoedge.errors import MeshError, PicoedgeError, ProtocolError
from picoedge.mesh.transport.messages import Body, failure, number_of, reply

Send = Callable[[list[Any]], bool]


@dataclass(frozen=True)
class Raw:
    """An answer that is no control message: a header of `wire.pack`, and what it speaks of."""

    header: bytes
    buffer: Any


Outcome = Mapping[str, Any] | Raw | PicoedgeError


class Deferred:
    """An answer that is given later, by `answer`. Returned by a handler instead of a body."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._deliver: Callable[[Outcome], None] | None = None

    @property
    def is_answered(self) -> bool:
        return self._outcome is not None

    def answer(self, outcome: Outcome) -> None:
        """A body, raw bytes, or what went wrong. Only the first counts."""
        if self._outcome is None:
            self._outcome = outcome
            if self._deliver is not None:
                self._deliver(outcome)

    def deliver(self, deliver: Callable[[Outcome], None]) -> None:
        """Where the answer goes, once it is there."""
        self._deliver = deliver
        if self._outcome is not None:
            deliver(self._outcome)


Answer = Mapping[str, Any] | Raw | Deferred | None
Handler = Callable[[Any, Body], Answer]


def outcome_of(handler: Handler | None, kind: str, peer: str, body: Body) -> Outcome | Deferred:
    """What a handler makes of a message. Raises ProtocolError where the message is to blame."""
    if handler is None:
        return MeshError(f"this board knows nothing of {kind!r}", "is its picoedge as new?")
    try:
        answer = handler(peer, body)
    except ProtocolError:
        raise
    except PicoedgeError as error:
        return error
    except Exception:  # a fault of ours must not end every other board's session
        traceback.print_exc()
        return MeshError(f"a fault in answering {kind!r}", "its log there tells more")
    return {} if answer is None else answer


def frames_of(outcome: Outcome, body: Body) -> list[Any] | None:
    """What is sent as the answer to `body`; nothing where it only told something."""
    if isinstance(outcome, Raw):
        return [outcome.header, outcome.buffer]
    number = number_of(body)
    if number is None:
        return None
    if isinstance(outcome, PicoedgeError):
        return failure(number, outcome)
    return reply(number, outcome)
