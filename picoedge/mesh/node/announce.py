"""Announce this board: the address that other boards are told, and multicast DNS on the LAN.

With the `mdns` extra each daemon announces `_picoedge._tcp.local.` with the tag of its cluster, and
browses for the same tag. An announcement is a hint only: the board at its address still has to
prove its key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from picoedge.errors import MeshError, UsageError
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.identity import is_key
from picoedge.mesh.interfaces import interfaces, own_addresses
from picoedge.mesh.node.finder import MAX_KEPT

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node

SERVICE = "_picoedge._tcp.local."
LOOK_UP_MS = 3000  # zeroconf's own: it asks several times, as Wi-Fi loses multicast packets
REFRESH_S = 10.0  # a lease of DHCP changes at most every few minutes


@contextmanager
def announced(node: Node, mdns: bool, tell: Callable[[str], object]) -> Iterator[None]:
    """Announce this board, and look for others of its cluster, while the block runs.

    Without multicast DNS (not installed, not wanted, or refused by the system) only the addresses
    of --peers and those exchanged between boards are used. `tell` receives lines for the user.
    """
    announcer = Announcer(node, mdns, tell)
    announcer.refresh()
    try:
        yield
    finally:
        announcer.close()


class Announcer:
    """Keeps what others are told in step with this board's addresses, which may change."""

    def __init__(self, node: Node, mdns: bool, tell: Callable[[str], object]) -> None:
        self._node, self._mdns, self._tell = node, mdns, tell
        self._told: tuple[Address, ...] | None = None
        self._discovery: Discovery | None = None
        self._closed = False

    def refresh(self) -> None:
        """Announce the addresses of now, and look again in a while."""
        if self._closed:
            return
        if self._node.address.is_everywhere:
            self._node.rpc.loop.after(REFRESH_S, self.refresh)
        addresses, why = self._addresses()
        if addresses != self._told:
            before, self._told = self._told, addresses
            self._node.peers.addresses = addresses
            if why:
                self._tell(why)
            self._discover(in_thread=before is not None)

    def _addresses(self) -> tuple[tuple[Address, ...], str]:
        """Addresses to tell other boards, none if they could not use them; a line about them."""
        listening = self._node.address
        if not listening.is_everywhere:
            usable = listening.is_numeric and not listening.is_loopback
            return ((listening,) if usable else ()), ""
        try:
            found, why = own_addresses(listening)
        except MeshError as error:
            return (), f"{error.message}: other boards cannot find this one ({error.hint})"
        usable_ones = tuple(each for each in found if not each.is_loopback)
        told = ", ".join(map(str, found))
        return usable_ones, f"other boards are told {told} ({why})"

    def _discover(self, *, in_thread: bool) -> None:
        """Announce anew: zeroconf takes a second, which the daemon's loop has only at its start."""
        if not self._mdns:
            return
        if in_thread:
            tell = self._tell_from_thread
            threading.Thread(target=self._announce, args=(tell,), daemon=True).start()
        else:
            self._announce(self._tell)

    def _tell_from_thread(self, line: str) -> None:
        def told() -> None:
            self._tell(line)

        self._node.rpc.loop.soon(told)  # a log has one thread

    def _announce(self, tell: Callable[[str], object]) -> None:
        before, self._discovery = self._discovery, None
        if before is not None:
            before.close()
        if self._told:
            self._discovery = _discovery(self._node, self._told, tell)

    def close(self) -> None:
        """Withdraw the announcement. Idempotent."""
        self._closed = True
        if self._discovery is not None:
            self._discovery.close()


def _discovery(
    node: Node, addresses: tuple[Address, ...], tell: Callable[[str], object]
) -> Discovery | None:
    if importlib.util.find_spec("zeroconf") is None:
        tell("no multicast DNS: other boards need --peers (pip install zeroconf)")
        return None
    import zeroconf

    def on_found(key: str, addresses: tuple[Address, ...]) -> None:
        node.rpc.loop.soon(lambda: node.peers.hint(key, *addresses))  # called in zeroconf's thread

    cluster, key, name = node.roster.cluster, node.identity.keys.public, node.identity.name
    try:
        discovery = Discovery(cluster.tag, key, name, addresses, on_found)
    except (OSError, zeroconf.Error) as error:
        tell(f"no multicast DNS: {error or type(error).__name__}; other boards need --peers")
        return None
    tell(f"announced on the LAN by multicast DNS, as {', '.join(map(str, addresses))}")
    return discovery


def _zeroconf_on(addresses: tuple[Address, ...]) -> Any:
    """Zeroconf on the interfaces of these addresses, in the families that they are of."""
    import zeroconf

    ipv4 = [each.host for each in addresses if ":" not in each.host]
    ipv6 = {each.host for each in addresses if ":" in each.host}
    names = [each.name for each in interfaces() if ipv6.intersection(each.addresses)]
    versions = zeroconf.IPVersion
    version = versions.V4Only if not names else versions.All if ipv4 else versions.V6Only
    on: list[str | int | Any] = [*ipv4, *map(socket.if_nametoindex, names)]
    return zeroconf.Zeroconf(interfaces=on, ip_version=version)


def _packed(address: Address) -> bytes:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.inet_pton(family, address.host.partition("%")[0])


class Discovery:
    """Announces this board on its interfaces, and calls `found(key, addresses)` for each other.

    `found` is called in a thread of zeroconf. `tag` is `Cluster.tag`; `addresses`, with their real
    port, are announced. Needs the extra.
    """

    def __init__(
        self,
        tag: str,
        key: str,
        name: str,
        addresses: tuple[Address, ...],
        found: Callable[[str, tuple[Address, ...]], None],
    ) -> None:
        import zeroconf

        self._tag, self._key, self._found = tag, key, found
        # The key's hash makes the name unique; a key has characters that DNS would escape.
        digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        self._info = zeroconf.ServiceInfo(
            SERVICE,
            f"{name}-{digest}.{SERVICE}",
            port=addresses[0].port,
            addresses=list(map(_packed, addresses)),
            properties={"cluster": tag, "key": key, "name": name},
        )
        self._zeroconf = _zeroconf_on(addresses)
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
        board = read_announcement(
            info.properties, info.parsed_scoped_addresses(), info.port, self._tag
        )
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
        addresses = [parse_address(f"[{host}]:{port}") for host in hosts[:MAX_KEPT]]
    except UsageError:
        return None
    usable = tuple(each for each in addresses if each.is_numeric and not each.is_everywhere)
    return (key, usable) if is_key(key) and usable else None
