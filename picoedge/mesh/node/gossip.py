"""What daemons tell each other of themselves, checked field by field before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from picoedge.errors import ProtocolError, UsageError
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.keys import is_key
from picoedge.mesh.identity.roster import MAX_NAME
from picoedge.mesh.transport.messages import Body, integer_of, object_of, text_of, texts_of

MAX_ADDRESSES = 8  # of one board
MAX_BOARDS = 1024
MAX_ADDRESS = 80
MAX_DIGEST = 64
Hints = Mapping[str, tuple[Address, ...]]


@dataclass(frozen=True)
class Hello:
    """The first thing daemons tell each other: which process this is, and where it listens."""

    name: str
    incarnation: int
    port: int
    addresses: tuple[Address, ...]
    digest: str
    epoch: int

    def to_body(self) -> Body:
        """As `read_hello` takes it."""
        return {**vars(self), "addresses": [str(address) for address in self.addresses]}


@dataclass(frozen=True)
class Beat:
    """A heartbeat; `state` is what the board says of itself, `sequence` orders them."""

    incarnation: int
    sequence: int
    digest: str
    state: Mapping[str, Any]

    def to_body(self) -> Body:
        """As `read_beat` takes it."""
        return dict(vars(self))


def read_hello(body: Body) -> Hello:
    """Raises ProtocolError."""
    return Hello(
        text_of(body, "name", MAX_NAME),
        integer_of(body, "incarnation"),
        integer_of(body, "port", 1 << 16),
        _addresses(body),
        text_of(body, "digest", MAX_DIGEST),
        integer_of(body, "epoch"),
    )


def read_beat(body: Body) -> Beat:
    """Raises ProtocolError."""
    return Beat(
        integer_of(body, "incarnation"),
        integer_of(body, "sequence"),
        text_of(body, "digest", MAX_DIGEST),
        object_of(body, "state"),
    )


def hints_body(hints: Hints) -> Body:
    """As `read_hints` takes it."""
    return {"boards": {key: [str(each) for each in found] for key, found in hints.items()}}


def read_hints(body: Body) -> Hints:
    """Raises ProtocolError."""
    boards = object_of(body, "boards")
    if len(boards) > MAX_BOARDS or not all(is_key(key) for key in boards):
        raise ProtocolError("addresses of what are no keys, or of too many")
    return {key: _addresses({"addresses": found}) for key, found in boards.items()}


def _addresses(body: Body) -> tuple[Address, ...]:
    texts = texts_of(body, "addresses", MAX_ADDRESSES, MAX_ADDRESS)
    try:
        addresses = tuple(parse_address(text) for text in texts)
    except UsageError as error:
        raise ProtocolError(error.message) from None
    # A name would have to be looked up, which can take seconds of a thread that has none.
    if not all(address.is_numeric and address.port for address in addresses):
        raise ProtocolError("addresses of boards are told in digits")
    return addresses
