"""Boards on a bridge, by veth pairs: as fast and as near as the kernel makes it."""

from __future__ import annotations

from collections.abc import Sequence

from hw.lab.errors import LabError
from hw.lab.links import LinkShape
from hw.lab.namespaces import Namespace

# A cut pair sends to this address, which no board has. The bridge passes it to all, and none
# takes it: frames are lost in silence, as a switch loses them.
NOBODY = "02:00:00:00:00:00"


def device_lines(address: str) -> list[str]:
    """What `ip` makes of a board's namespace, once its device is in it."""
    return [
        "link set lo up",
        f"addr add {address}/24 brd + dev eth0",
        "link set eth0 up",
        "route add default dev eth0",
    ]


# Without IPv6 nothing is said on a link that was not asked for; cubic is what boards come with.
# Each may be denied in a container, and then stays as it is.
QUIET = (
    "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; "
    "echo cubic >/proc/sys/net/ipv4/tcp_congestion_control; true"
)


def _plain() -> LabError:
    return LabError("plain links have no shape", "give the lab one: Lab(n, LinkShape())")


class PlainNetwork:
    """The bridge is in a namespace of its own: nothing of it is seen from outside."""

    def __init__(self, boards: Sequence[tuple[Namespace, str]]) -> None:
        self._boards = boards
        self._cut: set[tuple[int, int]] = set()
        self._hub = Namespace()
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        hub = ["link add bridge type bridge", "link set bridge up"]
        for index, (namespace, _) in enumerate(self._boards):
            hub += [
                f"link add port{index} type veth peer name eth0 netns {namespace.path}",
                f"link set port{index} master bridge up",
            ]
        self._hub.shell(QUIET)
        self._hub.ip(hub)
        for namespace, address in self._boards:
            namespace.shell(QUIET)
            namespace.ip(device_lines(address))

    def shape(self, ways: Sequence[tuple[int, int]], shape: LinkShape) -> None:
        """Refused: there is nothing here to delay a frame with."""
        raise _plain()

    def limit_port(self, board: int, bytes_per_s: float | None) -> None:
        """Refused likewise."""
        raise _plain()

    def counts(self) -> dict[str, int]:
        """Refused likewise."""
        raise _plain()

    def cut(self, ways: Sequence[tuple[int, int]], cut: bool) -> None:
        """Cut or heal ways from one board to another. Packets to all (mDNS) still pass."""
        verb, target_mac = ("replace", f"lladdr {NOBODY} nud permanent") if cut else ("del", "")
        for way in set(ways) - self._cut if cut else set(ways) & self._cut:
            source, target = way
            namespace, address = self._boards[source][0], self._boards[target][1]
            namespace.ip([f"neigh {verb} {address} dev eth0 {target_mac}".strip()])
            self._cut ^= {way}

    def close(self) -> None:
        """Remove the bridge and all that hangs on it."""
        self._hub.close()
