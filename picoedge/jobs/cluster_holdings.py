"""What the boards of the mesh have of a pack on their disks, asked of their daemons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from picoedge.errors import MeshError
from picoedge.mesh.transfer.donor import OFFER
from picoedge.mesh.transfer.donor_client import read_offer
from picoedge.store.pack.inventory import held_shards
from picoedge.store.shards import Held

if TYPE_CHECKING:
    from picoedge.jobs.boards import MeshView
    from picoedge.mesh.transport.client import Caller
    from picoedge.store.pack.reader import Pack

ASK_S = 10.0  # a daemon may have to read the pack's manifest first


def holdings_of(mesh: MeshView, pack: Pack) -> dict[int, Held]:
    """The shards that are on each board, by its place in `mesh.cluster()`.

    The hub is not among them: it has the whole pack. A board that does not answer has nothing.
    """
    names = [item.name for item in pack.items()]
    own = mesh.own.key
    return {
        place: held_shards(names, _held_names(caller, pack.identity, names))
        for place, (key, caller) in enumerate(mesh.callers.items())
        if key != own
    }


def _held_names(caller: Caller, identity: str, names: Sequence[str]) -> frozenset[str]:
    try:
        offered = read_offer(caller.ask(OFFER, {"pack": identity}, ASK_S))
        return frozenset(offered.names(names))
    except MeshError:  # it has not got the pack; or is lost, which will be found out
        return frozenset()
