"""Listening TCP sockets, IPv4 and IPv6 alike, and how a ZeroMQ socket is given one.

libzmq's own `bind` knows no link-local address (`fe80::…%eth0`) and no range of ports.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

ANY_PORT: Sequence[int] = (0,)  # the system chooses a free one


def listen(host: str, ports: Sequence[int] = ANY_PORT, backlog: int = 64) -> socket.socket:
    """A listener at the first of these ports that is free; `::` is IPv4 as well.

    Does not block. Raises OSError.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    family, to = found[0], found[4]
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            listener.bind((to[0], port, *to[2:]))
            listener.listen(backlog)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or port == ports[-1]:
                raise
        else:
            return listener
    raise OSError(errno.EADDRINUSE, "no port")


def bind_to(bound: Socket, listener: socket.socket) -> int:
    """Have a ZeroMQ socket accept connections of a listener, which it owns from now on; its port.

    Raises ZMQError.
    """
    port: int = listener.getsockname()[1]
    bound.setsockopt(zmq.USE_FD, listener.fileno())
    try:
        bound.bind(f"tcp://*:{port}")
    except zmq.ZMQError:
        listener.close()
        raise
    finally:
        bound.setsockopt(zmq.USE_FD, -1)
    listener.detach()
    return port
