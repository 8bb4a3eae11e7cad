"""Which addresses accept TCP connections, and in words why the others do not."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack

from picoedge.mesh.addresses import Address

PROBE_S = 1.0  # hundreds of round trips of a LAN; what drops packets says nothing at all
SILENT = "no answer: is it off, or does a firewall drop packets to it?"
_WHY = {
    errno.ECONNREFUSED: "nothing listens there",
    errno.EHOSTUNREACH: "no way there",
    errno.ENETUNREACH: "no way there",
    errno.ETIMEDOUT: SILENT,
}


def probe(addresses: Iterable[Address], timeout_s: float = PROBE_S) -> dict[Address, str]:
    """Why no connection can be made, for each address that accepts none. All are tried at once."""
    poller, waiting = select.poll(), {}
    failures: dict[Address, str] = {}
    with ExitStack() as stack:
        for address in dict.fromkeys(addresses):
            try:
                attempt, code = _connecting(address)
            except (OSError, UnicodeError) as error:
                failures[address] = getattr(error, "strerror", None) or "no such name"
                continue
            stack.callback(attempt.close)
            if code not in (0, errno.EINPROGRESS):
                failures[address] = why(code)
                continue
            waiting[attempt.fileno()] = address, attempt
            poller.register(attempt.fileno(), select.POLLOUT)
        deadline = time.monotonic() + timeout_s
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for file, _ in poller.poll(left_s * 1000):
                poller.unregister(file)
                address, attempt = waiting.pop(file)
                if code := attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    failures[address] = why(code)
    return {**failures, **{address: SILENT for address, _ in waiting.values()}}


def _connecting(address: Address) -> tuple[socket.socket, int]:
    """A socket that connects, and an error number, or 0. Raises OSError, UnicodeError."""
    family, kind, _, _, to = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    )[0]
    attempt = socket.socket(family, kind)
    attempt.setblocking(False)
    return attempt, attempt.connect_ex(to)


def why(code: int) -> str:
    """An error number of a connection in words."""
    return _WHY.get(code) or errno.errorcode.get(code, str(code))
