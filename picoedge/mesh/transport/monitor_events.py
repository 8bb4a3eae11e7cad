"""One event of a socket monitor. pyzmq's own reader imports asyncio: 8 MB of a daemon's 20."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

_EVENT = struct.Struct("=Hi")


def read_event(monitor: Socket) -> tuple[int, int] | None:
    """The next event and its value, a file descriptor or an error; None where there is none."""
    try:
        frames = monitor.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
    event, value = _EVENT.unpack(frames[0])
    return event, value
