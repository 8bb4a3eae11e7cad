"""Choose which of this board's addresses the other boards should use."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address

MOST_HOSTS = 4  # that others are told: they keep so many addresses of a board
MOST_OF_ONE = 2  # IPv6 addresses of one interface: temporary ones come and go
_VIRTUAL = re.compile(
    "docker|br-|virbr|veth|lxc|lxd|cni|flannel|podman|vmnet|vboxnet"
    "|tun|tap|wg|tailscale|zt|ppp|utun|ipsec"
)


@dataclass(frozen=True)
class Interface:
    """A network interface; `addresses` are numeric: IPv4, IPv6, link-local (`fe80::1%eth0`)."""

    name: str
    addresses: tuple[str, ...]
    is_up: bool = True
    is_loopback: bool = False
    is_bridge: bool = False
    is_wireless: bool = False
    has_default_route: bool = False

    @property
    def is_virtual(self) -> bool:
        """Whether it is one of containers or of a tunnel."""
        return self.is_bridge or bool(_VIRTUAL.match(self.name))


def choose_hosts(interfaces: Iterable[Interface]) -> tuple[tuple[str, ...], str]:
    """The addresses to announce, the best first, and in words why that one.

    The interface with the default route is preferred, then wired ones over wireless ones;
    containers' and tunnels' interfaces are the last resort, and link-local addresses where there
    are no others. Raises MeshError if there is no address.
    """
    usable = [each for each in interfaces if each.addresses and each.is_up]
    if not usable:
        raise MeshError(
            "no network interface of this board has an address", "name one: --listen HOST:PORT"
        )
    best, *others = sorted(usable, key=_rank)
    near = [each for each in others if _kind(each) == _kind(best)]
    hosts = [host for each in (best, *near) for host in _hosts(each)]
    wide = [host for host in hosts if not Address(host, 0).is_link_local]
    return tuple(wide or hosts)[:MOST_HOSTS], f"{best.name}: {_reason(best, usable)}"


def _hosts(each: Interface) -> Sequence[str]:
    ipv4 = [host for host in each.addresses if ":" not in host]
    return [*ipv4, *[host for host in each.addresses if ":" in host][:MOST_OF_ONE]]


def own_addresses(listening: Address) -> tuple[tuple[Address, ...], str]:
    """Addresses at which others reach `listening`, the best first, and in words why.

    Raises MeshError if this board has no address.
    """
    if not listening.is_everywhere:
        return (listening,), "it listens nowhere else"
    found = interfaces()
    if ":" not in listening.host:
        found = [_without_ipv6(each) for each in found]
    hosts, why = choose_hosts(found)
    return tuple(Address(host, listening.port) for host in hosts), why


def _without_ipv6(each: Interface) -> Interface:
    ipv4 = tuple(host for host in each.addresses if ":" not in host)
    return Interface(**{**vars(each), "addresses": ipv4})


def scoped(address: Address) -> Sequence[Address]:
    """The address as this board may connect to it: a link-local one over each of its interfaces.

    The scope in it (`%eth0`) is another board's name for its own interface.
    """
    if not address.is_link_local:
        return (address,)
    host = address.host.partition("%")[0]
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return [Address(f"{host}%{name}", address.port) for name in names]


def everywhere() -> str:
    """The host to listen at for every interface: `::`, which is IPv4 as well, where it can be."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as attempt:
        attempt.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        attempt.bind(("::", 0))
        return "::"
    return "0.0.0.0"


def _kind(each: Interface) -> tuple[bool, bool]:
    return each.is_loopback, each.is_virtual


def _rank(each: Interface) -> tuple[object, ...]:
    return (*_kind(each), not each.has_default_route, each.is_wireless, each.name)


def _reason(best: Interface, usable: list[Interface]) -> str:
    if best.is_loopback:
        return "this board has no other, and no other board can reach it"
    if len([each for each in usable if not each.is_loopback]) == 1:
        return "the only one with an address"
    if best.is_virtual:
        return "nothing but containers' and tunnels' interfaces are there"
    kind = "wireless" if best.is_wireless else "wired"
    return f"{kind}, with the default route" if best.has_default_route else kind


def interfaces() -> list[Interface]:
    """The interfaces of this board."""
    import psutil  # type: ignore[import-untyped]

    routed, up = _with_default_route(), psutil.net_if_stats()
    return [
        Interface(
            name=name,
            addresses=tuple(sorted(_addresses(name, found), key=_family)),
            is_up=name in up and up[name].isup,
            is_loopback=any(each.address.startswith("127.") or name == "lo" for each in found),
            is_bridge=Path("/sys/class/net", name, "bridge").exists(),
            is_wireless=Path("/sys/class/net", name, "wireless").exists(),
            has_default_route=name in routed,
        )
        for name, found in psutil.net_if_addrs().items()
    ]


def _addresses(name: str, found: Iterable[object]) -> list[str]:
    ip = [each for each in found if getattr(each, "family", 0) in (socket.AF_INET, socket.AF_INET6)]
    hosts = [str(getattr(each, "address", "")) for each in ip]
    return [f"{h}%{name}" if Address(h, 0).is_link_local and "%" not in h else h for h in hosts]


def _family(host: str) -> int:
    return 0 if ":" not in host else 2 if Address(host, 0).is_link_local else 1


def _with_default_route() -> set[str]:
    """Names of interfaces with a default route, from /proc/net/route and its like for IPv6."""
    rows = _rows("/proc/net/route")[1:]
    routed = {row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"}
    rows6 = [row for row in _rows("/proc/net/ipv6_route") if len(row) > 9 and row[9] != "lo"]
    return routed | {row[9] for row in rows6 if row[0] == "0" * 32 and row[1] == "00"}


def _rows(path: str) -> list[list[str]]:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    return [line.split() for line in lines]
