"""Outgoing connections of a daemon: what they cost it while it searches for boards."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing

from mesh_nodes import fresh_context

from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.dialer import Dialer
from picoedge.mesh.transport.limits import DEFAULT_LIMITS
from picoedge.mesh.transport.loop import Loop
from picoedge.mesh.transport.messages import Dialect

MOST_DESCRIPTORS = 1024  # of a process, unless its system was told otherwise


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_search_for_many_boards_leaves_a_daemon_descriptors() -> None:
    limit = DEFAULT_LIMITS.outgoing_connections
    with ExitStack() as stack:
        context = stack.enter_context(fresh_context())
        loop = stack.enter_context(closing(Loop()))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=limit))
        silent.settimeout(30)
        at = Address("127.0.0.1", silent.getsockname()[1])
        dialer, before = Dialer(context, KeyPair.new(), loop, lambda key: Dialect()), descriptors()
        stack.callback(dialer.close_all)
        dialer.dial({(at, KeyPair.new().public) for _ in range(limit + 10)})
        for _ in range(limit):  # all have their connections then, and none a handshake
            stack.enter_context(silent.accept()[0])
        taken = descriptors() - before - limit
    assert taken <= 0.8 * MOST_DESCRIPTORS
