"""Handlers of requests, and the four kinds of reply: at once, later, raw bytes, an error."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from picoedge.errors import MeshError, PicoedgeError, ProtocolError
from picoedge.mesh.transport.frames import Header, pack
from picoedge.mesh.transport.messages import ERROR, REPLY, Body, Dialect, failure_body, number_of


@dataclass(frozen=True)
class RawReply:
    """A reply that is no control message: a header, and the buffer that it describes."""

    header: Header
    buffer: Any


Reply = Mapping[str, Any] | RawReply | PicoedgeError


class Pending:
    """A reply that is given later, by `answer`. Handlers return it in place of a body."""

    def __init__(self) -> None:
        self._reply: Reply | None = None
        self._deliver: Callable[[Reply], None] | None = None

    @property
    def is_answered(self) -> bool:
        """Whether `answer` was called."""
        return self._reply is not None

    def answer(self, reply: Reply) -> None:
        """Reply with a body, raw bytes or an error. Calls after the first have no effect."""
        if self._reply is None:
            self._reply = reply
            if self._deliver is not None:
                self._deliver(reply)

    def deliver(self, deliver: Callable[[Reply], None]) -> None:
        """Have `deliver` called with the reply, at once if it is there."""
        self._deliver = deliver
        if self._reply is not None:
            deliver(self._reply)


HandlerResult = Mapping[str, Any] | RawReply | Pending | None
Handler = Callable[[Any, Body], HandlerResult]


def reply_of(handler: Handler | None, kind: str, peer: str, body: Body) -> Reply | Pending:
    """Call a handler. Its errors become the reply, but for ProtocolError, which is raised."""
    if handler is None:
        return MeshError(f"this board knows nothing of {kind!r}", "is its picoedge as new?")
    try:
        result = handler(peer, body)
    except ProtocolError:
        raise
    except PicoedgeError as error:
        return error
    except Exception:  # a fault of ours must not end the sessions of all other boards
        traceback.print_exc()
        return MeshError(f"a fault in answering {kind!r}", "its log there tells more")
    return {} if result is None else result


def frames_of(reply: Reply, kind: str, body: Body, dialect: Dialect) -> list[Any] | None:
    """The frames of the reply to a request; None for a notification (`body` without `id`)."""
    if isinstance(reply, RawReply):
        return [pack(reply.header, dialect.version), reply.buffer]
    number = number_of(body)
    if number is None:
        return None
    if isinstance(reply, PicoedgeError):
        return dialect.write(ERROR, {**failure_body(reply), "id": number})
    return dialect.write(REPLY, {**reply, "id": number}, asked=kind)
