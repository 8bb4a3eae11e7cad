"""How the other boards find this one: the address it tells them, and multicast DNS on the LAN."""

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
    """While the block runs this board says where it is, and looks for others of its cluster.

    Without multicast (not installed, not wanted, or refused by the system) addresses alone are
    used: those of --peers, and those that boards tell each other.
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


def _reachable(listens: Address, tell: Tell) -> Address | None:
    """What to tell the others; None where that would be of no use to them."""
    if not listens.is_everywhere:
        return listens if listens.is_numeric else None
    try:
        host, why = choose_interface(interfaces())
    except MeshError as error:
        tell(f"{error.message}: other boards cannot find this one ({error.hint})")
        return None
    address = Address(host, listens.port)
    tell(f"other boards are told {address} ({why})")
    return None if _is_loopback(address) else address


def _is_loopback(address: Address) -> bool:
    return address.host.startswith("127.") or address.host == "::1"


def _discovery(node: Node, address: Address, tell: Tell) -> Discovery | None:
    if _is_loopback(address) or ":" in address.host:
        return None  # a loop-back has no neighbours; multicast is over IPv4 here
    if not is_available():
        tell("no multicast DNS: other boards need --peers (pip install picoedge[mdns])")
        return None
    import zeroconf

    def found(key: str, addresses: tuple[Address, ...]) -> None:
        node.soon(lambda: node.peers.hint(key, *addresses))  # from a thread of zeroconf's

    cluster, key, name = node.roster.cluster, node.identity.keys.public, node.identity.name
    try:
        discovery = Discovery(cluster.tag, key, name, address, found)
    except (OSError, zeroconf.Error) as error:
        tell(f"no multicast DNS: {error or type(error).__name__}; other boards need --peers")
        return None
    tell(f"announced on the LAN by multicast DNS, as {address}")
    return discovery
