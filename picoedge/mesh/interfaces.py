"""The address other boards of the LAN reach this one at, and why that one."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915  # linux/sockios.h
_UP, _LOOPBACK, _POINT_TO_POINT, _RUNNING = 0x1, 0x8, 0x10, 0x40  # linux/if.h
_REQUEST_BYTES = 40  # struct ifreq
_BESIDE_THE_LAN = ("docker", "br-", "virbr", "lxc", "cni", "flannel", "tailscale", "zt")


@dataclass(frozen=True)
class Interface:
    """One network interface and its IPv4 address ("" without one)."""

    name: str
    address: str
    flags: int = _UP | _RUNNING
    is_device: bool = True
    has_default_route: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether boards of a LAN can be at its other end: no loopback, tunnel or dead cable."""
        if self.flags & (_UP | _RUNNING) != _UP | _RUNNING or not self.address:
            return False
        if self.flags & (_LOOPBACK | _POINT_TO_POINT):
            return False
        return not ipaddress.ip_address(self.address).is_link_local


def choose_interface(interfaces: Sequence[Interface]) -> tuple[Interface, str] | None:
    """The likeliest interface of the LAN, and the reason in words; None where none is usable."""
    usable = [interface for interface in interfaces if interface.is_usable]
    if not usable:
        return None
    chosen = min(usable, key=_rank)
    if len(usable) == 1:
        return chosen, "the only one on a network"
    if chosen.has_default_route:
        return chosen, "it has the default route"
    return chosen, "the first device on a network" if chosen.is_device else "the first on a network"


def _rank(interface: Interface) -> tuple[bool, bool, bool]:
    beside = interface.name.startswith(_BESIDE_THE_LAN)
    return beside, not interface.has_default_route, not interface.is_device


def read_interfaces() -> list[Interface]:
    """This machine's interfaces, in the kernel's order."""
    routed = _default_routes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return [
            Interface(
                name,
                _address(asking, name),
                _flags(asking, name),
                Path("/sys/class/net", name, "device").exists(),
                name in routed,
            )
            for _, name in socket.if_nameindex()
        ]


def _ask(asking: socket.socket, what: int, name: str) -> bytes | None:
    try:
        return fcntl.ioctl(asking, what, name.encode().ljust(_REQUEST_BYTES, b"\0"))
    except OSError:  # without an IPv4 address, or gone meanwhile
        return None


def _address(asking: socket.socket, name: str) -> str:
    answer = _ask(asking, _SIOCGIFADDR, name)
    return socket.inet_ntoa(answer[20:24]) if answer else ""


def _flags(asking: socket.socket, name: str) -> int:
    answer = _ask(asking, _SIOCGIFFLAGS, name)
    return int(struct.unpack_from("<H", answer, 16)[0]) if answer else 0


def _default_routes() -> set[str]:
    try:
        lines = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return set()
    fields = [line.split() for line in lines]
    return {field[0] for field in fields if len(field) > 7 and field[1] == field[7] == "00000000"}
