"""Announce this board: the address that other boards are told, and multicast DNS on the LAN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.interfaces import choose_interface, interfaces
from picoedge.mesh.node.mdns import Discovery, is_available

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node

Tell = Callable[[str], None]


@contextmanager
def announced(node: Node, mdns: bool, tell: Tell) -> Iterator[None]:
    """Announce this board, and look for others of its cluster, while the block runs.

    Without multicast DNS (not installed, not wanted, or refused by the system) only the addresses
    of --peers and those exchanged between boards are used. `tell` receives lines for the user.
    """
    address = _reachable(node.address, tell)
    if address is None:
        yield
        return
    node.peers.addresses = (address,)
    discovery = _discovery(node, address, tell) if mdns else None
    try:
        yield
    finally:
        if discovery is not None:
            discovery.close()


def _reachable(listening: Address, tell: Tell) -> Address | None:
    """The address to tell other boards; None if they could not use it."""
    if not listening.is_everywhere:
        return listening if listening.is_numeric else None
    try:
        host, why = choose_interface(interfaces())
    except MeshError as error:
        tell(f"{error.message}: other boards cannot find this one ({error.hint})")
        return None
    address = Address(host, listening.port)
    tell(f"other boards are told {address} ({why})")
    return None if _is_loopback(address) else address


def _is_loopback(address: Address) -> bool:
    return address.host.startswith("127.") or address.host == "::1"


def _discovery(node: Node, address: Address, tell: Tell) -> Discovery | None:
    if _is_loopback(address) or ":" in address.host:
        return None  # no neighbours on loopback; our multicast DNS uses IPv4 only
    if not is_available():
        tell("no multicast DNS: other boards need --peers (pip install picoedge[mdns])")
        return None
    import zeroconf

    def on_found(key: str, addresses: tuple[Address, ...]) -> None:
        node.rpc.loop.soon(lambda: node.peers.hint(key, *addresses))  # called in zeroconf's thread

    cluster, key, name = node.roster.cluster, node.identity.keys.public, node.identity.name
    try:
        discovery = Discovery(cluster.tag, key, name, address, on_found)
    except (OSError, zeroconf.Error) as error:
        tell(f"no multicast DNS: {error or type(error).__name__}; other boards need --peers")
        return None
    tell(f"announced on the LAN by multicast DNS, as {address}")
    return discovery
