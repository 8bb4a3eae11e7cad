"""Choose which of this board's addresses the other boards should use."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import MeshError

_VIRTUAL = re.compile(
    "docker|br-|virbr|veth|lxc|lxd|cni|flannel|podman|vmnet|vboxnet"
    "|tun|tap|wg|tailscale|zt|ppp|utun|ipsec"
)


@dataclass(frozen=True)
class Interface:
    """A network interface; `addresses` are numeric IPv4 addresses."""

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


def choose_interface(interfaces: Iterable[Interface]) -> tuple[str, str]:
    """The address to announce, and the reason in words.

    The interface with the default route is preferred, then wired ones over wireless ones; those
    of containers and tunnels are the last resort. Raises MeshError if there is no address.
    """
    usable = [each for each in interfaces if each.addresses and each.is_up]
    if not usable:
        raise MeshError(
            "no network interface of this board has an address", "name one: --listen HOST:PORT"
        )
    best = min(usable, key=_rank)
    return best.addresses[0], f"{best.name}: {_reason(best, usable)}"


def _rank(each: Interface) -> tuple[object, ...]:
    return (
        each.is_loopback,
        each.is_virtual,
        not each.has_default_route,
        each.is_wireless,
        each.name,
    )


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
            addresses=tuple(each.address for each in found if each.family == socket.AF_INET),
            is_up=name in up and up[name].isup,
            is_loopback=any(each.address.startswith("127.") for each in found),
            is_bridge=Path("/sys/class/net", name, "bridge").exists(),
            is_wireless=Path("/sys/class/net", name, "wireless").exists(),
            has_default_route=name in routed,
        )
        for name, found in psutil.net_if_addrs().items()
    ]


def _with_default_route() -> set[str]:
    """Names of interfaces with a default route, from /proc/net/route."""
    try:
        lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    except (OSError, ValueError):
        return set()
    rows = [line.split() for line in lines]
    return {row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"}
