"""Listening TCP sockets, IPv4 and IPv6 alike, and how a ZeroMQ socket is given one.

libzmq's own `bind` knows no link-local address (`fe80::…%eth0`) and no range of ports.

Two listeners can share a port: connections whose packets bear MARK come to the second. A daemon's
port so serves the streams of its worker, too, where a firewall leaves no other one open: libzmq
could neither tell them apart nor pass one on.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

ANY_PORT: Sequence[int] = (0,)  # the system chooses a free one
MARK = 0b101011 << 2  # the traffic class of a packet: a code point left to local use (RFC 2474)
SO_ATTACH_REUSEPORT_CBPF = 51  # of Linux; Python has no name for it
# A program of the classic packet filter: the index of the listener for a packet. The class is in
# the second byte of IPv4's header, and in four bits each of the first two of IPv6's; the lowest two
# bits of it are not ours. SKF_NET_OFF: offsets are from the network header.
_NET = 0xFFF00000
_CHOOSE = (
    (0x30, 0, 0, _NET),  # load the first byte
    (0x54, 0, 0, 0xF0),  # its upper half: the version
    (0x15, 0, 2, 0x40),  # not 4: go to IPv6
    (0x30, 0, 0, _NET + 1),  # load the second byte
    (0x05, 0, 0, 2),  # go to the mask
    (0x28, 0, 0, _NET),  # IPv6: load the first two bytes
    (0x74, 0, 0, 4),  # shift right by four bits
    (0x54, 0, 0, 0xFC),  # mask
    (0x15, 0, 1, MARK),
    (0x06, 0, 0, 1),  # marked: the second listener
    (0x06, 0, 0, 0),
)


def mark(connection: socket.socket) -> None:
    """Have a TCP socket that is not connected yet come to the marked listener of a port."""
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, MARK)
    else:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, MARK)


def listen_twice(
    host: str, port: int, backlog: int = 64
) -> tuple[socket.socket, socket.socket | None]:
    """A listener, and one of the same port for marked connections; None where that cannot be had.

    Raises OSError.
    """
    with ExitStack() as failing:
        if port:  # in use by another program of this user's? Sharers of a port are not refused
            listen(host, (port,), backlog).close()
        plain = failing.enter_context(listen(host, (port,), backlog, shared=True))
        try:
            marked = listen(host, (plain.getsockname()[1],), backlog, shared=True)
        except OSError:
            marked = None
        if marked is not None and not _attach(plain):
            marked.close()
            marked = None
        failing.pop_all()
    return plain, marked


def _attach(listener: socket.socket) -> bool:
    program = b"".join(struct.pack("=HBBI", *each) for each in _CHOOSE)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(_CHOOSE), ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, header)
    except OSError:
        return False
    return True


def listen(
    host: str, ports: Sequence[int] = ANY_PORT, backlog: int = 64, *, shared: bool = False
) -> socket.socket:
    """A listener at the first of these ports that is free; `::` is IPv4 as well.

    `shared`: others of this user may share the port. Does not block. Raises OSError.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    family, to = found[0], found[4]
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
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
