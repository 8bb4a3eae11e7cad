"""Discovery of boards on the LAN by multicast DNS (needs the `mdns` extra).

Each daemon announces `_picoedge._tcp.local.` with the tag of its cluster, and browses for the same
tag. An announcement is a hint only: the board at its address still has to prove its key.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from picoedge.errors import UsageError
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.identity import is_key

SERVICE = "_picoedge._tcp.local."
LOOK_UP_MS = 3000
MOST_ADDRESSES = 4

Found = Callable[[str, tuple[Address, ...]], None]


def is_available() -> bool:
    """Whether the `mdns` extra is installed."""
    import importlib.util

    return importlib.util.find_spec("zeroconf") is not None


def properties(tag: str, key: str, name: str) -> dict[str, str]:
    """The TXT record that a board announces."""
    return {"cluster": tag, "key": key, "name": name}


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


class Discovery:
    """Announces this board on one interface, and calls `found(key, addresses)` for each other.

    `found` is called in a thread of zeroconf. `tag` is `Cluster.tag`; `address`, with its real
    port, is announced. Raises UsageError without the extra.
    """

    def __init__(self, tag: str, key: str, name: str, address: Address, found: Found) -> None:
        if not is_available():
            raise UsageError("multicast DNS needs zeroconf", "pip install picoedge[mdns]")
        import zeroconf

        self._tag, self._key, self._found = tag, key, found
        # The key's hash makes the name unique; a key has characters that DNS would escape.
        digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        self._info = zeroconf.ServiceInfo(
            SERVICE,
            f"{name}-{digest}.{SERVICE}",
            port=address.port,
            addresses=[socket.inet_aton(address.host)],
            properties=properties(tag, key, name),
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
