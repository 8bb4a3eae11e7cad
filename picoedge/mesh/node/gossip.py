"""Bodies of the messages between daemons: hello, heartbeat, addresses; checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from picoedge.errors import ProtocolError, UsageError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.identity import MAX_NAME, is_key
from picoedge.mesh.transport.messages import Body

MAX_ADDRESSES = 8  # of one board: a few interfaces, IPv4 and IPv6
MAX_BOARDS = 1024  # as many as a roster has entries
MAX_ADDRESS = 80  # characters: an IPv6 address with its scope and port has 70
MAX_DIGEST = 64
STALLS = ("", "disk")
KnownAddresses = Mapping[str, tuple[Address, ...]]


@dataclass(frozen=True)
class Hello:
    """The first message between daemons: the process (`incarnation`), and where it listens."""

    name: str
    incarnation: int
    port: int
    addresses: tuple[Address, ...]
    digest: str

    def to_body(self) -> Body:
        """As `read_hello` takes it. Version 1 demands `epoch`, and ignores its value."""
        addresses = [str(address) for address in self.addresses]
        return {**vars(self), "addresses": addresses, "epoch": 0}


@dataclass(frozen=True)
class Beat:
    """A heartbeat: `sequence` orders them, `state` is the board's report, `digest` its roster's."""

    incarnation: int
    sequence: int
    digest: str
    state: Mapping[str, Any]

    @property
    def stalled_on(self) -> str:
        """What the board's worker waits for: "disk" or "" (nothing, or a word unknown here)."""
        value = self.state.get("stalled_on")
        return value if value in STALLS else ""

    def to_body(self) -> Body:
        """As `read_beat` takes it."""
        return dict(vars(self))


def read_hello(body: Body) -> Hello:
    """Raises ProtocolError."""
    fields = Fields(body)
    return Hello(
        fields.text("name", MAX_NAME),
        fields.integer("incarnation"),
        fields.integer("port", 0, 65535),
        _addresses(body),
        fields.text("digest", MAX_DIGEST),
    )


def read_beat(body: Body) -> Beat:
    """Raises ProtocolError."""
    fields = Fields(body)
    return Beat(
        fields.integer("incarnation"),
        fields.integer("sequence"),
        fields.text("digest", MAX_DIGEST),
        fields.object("state").values,
    )


def addresses_body(known: KnownAddresses) -> Body:
    """As `read_addresses` takes it."""
    return {"boards": {key: [str(each) for each in addresses] for key, addresses in known.items()}}


def read_addresses(body: Body) -> KnownAddresses:
    """Public key to addresses. Raises ProtocolError."""
    boards = Fields(body).object("boards").values
    if len(boards) > MAX_BOARDS or not all(is_key(key) for key in boards):
        raise ProtocolError("addresses of what are no keys, or of too many")
    return {key: _addresses({"addresses": listed}) for key, listed in boards.items()}


def _addresses(body: Body) -> tuple[Address, ...]:
    texts = Fields(body).texts("addresses", MAX_ADDRESSES, MAX_ADDRESS)
    try:
        addresses = tuple(parse_address(text) for text in texts)
    except UsageError as error:
        raise ProtocolError(error.message) from None
    # A host name would need a look-up, which can block the daemon's only thread for seconds.
    if not all(address.is_numeric and address.port for address in addresses):
        raise ProtocolError("addresses of boards are told in digits")
    return addresses
