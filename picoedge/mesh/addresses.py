"""Addresses `HOST:PORT`, parsed and checked; which ones accept connections, and why not."""

from __future__ import annotations

import errno
import re
import select
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from picoedge.errors import UsageError

DEFAULT_PORT = 7433  # of daemons, where --listen names no other
PROBE_S = 1.0  # hundreds of round trips of a LAN; what drops packets says nothing at all
SILENT = "no answer: is it off, or does a firewall drop packets to it?"
_WHY = {
    errno.ECONNREFUSED: "nothing listens there",
    errno.EHOSTUNREACH: "no way there",
    errno.ENETUNREACH: "no way there",
    errno.ETIMEDOUT: SILENT,
}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")
_SCOPED = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9_.-]{1,15})?")

_LINK_LOCAL = re.compile(r"fe[89ab][0-9a-f]:", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Address:
    """A host (name, IPv4 or IPv6) and a port; as text `host:port` or `[::1]:port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """As ZeroMQ writes it: `tcp://host:port`."""
        return f"tcp://{self}"

    @property
    def is_numeric(self) -> bool:
        """Whether the host is an IP address, which needs no look-up."""
        return _is_numeric(self.host)

    @property
    def is_everywhere(self) -> bool:
        """Whether it means all interfaces: one can listen on it, but not connect to it."""
        return self.host in ("0.0.0.0", "::")

    @property
    def is_loopback(self) -> bool:
        """Whether it is this board's own, which no other can reach."""
        return self.host.startswith("127.") or self.host in ("::1", "localhost")

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 address of one link alone (`fe80::1%eth0`), of fe80::/10."""
        return bool(_LINK_LOCAL.match(self.host))


def near_host(far: Address) -> str:
    """This board's end of the route to `far`, an IP address; "" without a route."""
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(far.host, far.port or 1, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, to = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(to)  # which sends nothing
            return str(probe.getsockname()[0])
    return ""


def parse_address(text: str) -> Address:
    """Parse `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address. Raises UsageError."""
    host, port = _split(text.strip())
    if not _is_host(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"not an address: {text!r}", "write it like 192.168.1.20:7433")
    return Address(host, int(port))


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Parse addresses separated by commas. Raises UsageError."""
    return tuple(parse_address(part) for part in text.split(",") if part.strip())


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not port and bracket:
            return host, str(DEFAULT_PORT)
        return host, port[1:] if port.startswith(":") else "none"
    if text.count(":") > 1:
        return text, str(DEFAULT_PORT)
    host, colon, port = text.partition(":")
    return host, port if colon else str(DEFAULT_PORT)


def _is_host(host: str) -> bool:
    if ":" in host:
        return bool(_SCOPED.fullmatch(host)) and _is_numeric(host)
    return bool(_HOST.fullmatch(host))


def _is_numeric(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def probe(addresses: Iterable[Address], timeout_s: float = PROBE_S) -> dict[Address, str]:
    """Reasons, by address, why some accept no connection. All are tried at once."""
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
