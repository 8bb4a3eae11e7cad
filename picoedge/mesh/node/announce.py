"""Announce this board: the address that other boards are told, and multicast DNS on the LAN.

With the `mdns` extra each daemon announces `_picoedge._tcp.local.` with the tag of its cluster, and
browses for the same tag. An announcement is a hint only: the board at its address still has to
prove its key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from picoedge.errors import MeshError, UsageError
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.identity import is_key
from picoedge.mesh.interfaces import choose_interface, interfaces

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node

SERVICE = "_picoedge._tcp.local."
LOOK_UP_MS = 3000
MOST_ADDRESSES = 4


@contextmanager
def announced(node: Node, mdns: bool, tell: Callable[[str], None]) -> Iterator[None]:
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


def _reachable(listening: Address, tell: Callable[[str], None]) -> Address | None:
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


def _discovery(node: Node, address: Address, tell: Callable[[str], None]) -> Discovery | None:
    if _is_loopback(address) or ":" in address.host:
        return None  # no neighbours on loopback; our multicast DNS uses IPv4 only
    if importlib.util.find_spec("zeroconf") is None:
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


class Discovery:
    """Announces this board on one interface, and calls `found(key, addresses)` for each other.

    `found` is called in a thread of zeroconf. `tag` is `Cluster.tag`; `address`, with its real
    port, is announced. Needs the extra.
    """

    def __init__(
        self,
        tag: str,
        key: str,
        name: str,
        address: Address,
        found: Callable[[str, tuple[Address, ...]], None],
    ) -> None:
        import zeroconf

        self._tag, self._key, self._found = tag, key, found
        # The key's hash makes the name unique; a key has characters that DNS would escape.
        digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        self._info = zeroconf.ServiceInfo(
            SERVICE,
            f"{name}-{digest}.{SERVICE}",
            port=address.port,
            addresses=[socket.inet_aton(address.host)],
            properties={"cluster": tag, "key": key, "name": name},
        )
        self._zeroconf = zeroconf.Zeroconf(interfaces=[address.host])
        try:
            self._zeroconf.register_service(self._info, cooperating_responders=True)
            self._browser = zeroconf.ServiceBrowser(self._zeroconf, SERVICE, [self._changed])
        except BaseException:
            self._zeroconf.close()
            raise

    def close(self) -> None:
        """Withdraw the announcement and stop browsing. Idempotent."""
        self._zeroconf.close()

    def _changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change.name == "Removed" or name == self._info.name:
            return
        info = zeroconf.get_service_info(service_type, name, LOOK_UP_MS)
        if info is None:
            return
        board = read_announcement(info.properties, info.parsed_addresses(), info.port, self._tag)
        if board is not None and board[0] != self._key:
            self._found(*board)


def read_announcement(
    announced: Mapping[bytes, bytes | None], hosts: list[str], port: int | None, tag: str
) -> tuple[str, tuple[Address, ...]] | None:
    """Key and addresses in an announcement; None if it is another cluster's or malformed."""
    if announced.get(b"cluster") != tag.encode() or not port:
        return None
    key = (announced.get(b"key") or b"").decode("ascii", "replace")
    try:
        addresses = [parse_address(f"[{host}]:{port}") for host in hosts[:MOST_ADDRESSES]]
    except UsageError:
        return None
    usable = tuple(each for each in addresses if each.is_numeric and not each.is_everywhere)
    return (key, usable) if is_key(key) and usable else None
