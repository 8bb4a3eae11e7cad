"""Shares of the sums and relays between members: from uplinks and from which boards hear which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from picoedge.mesh.consensus.configuration import MAX_ROUTES, Route


def shares(uplinks: Sequence[int], segments: int) -> tuple[int, ...]:
    """Segments of the gradient that each member sums up, in proportion to its uplink.

    By largest remainders; ties go to the lower rank. Without any uplink known, all are equal.
    """
    rates = [max(0, rate) for rate in uplinks]
    rates = rates if any(rates) else [1] * len(rates)
    total = sum(rates)
    whole = [segments * rate // total for rate in rates]
    by_remainder = sorted(range(len(rates)), key=lambda i: (-(segments * rates[i] % total), i))
    for i in by_remainder[: segments - sum(whole)]:
        whole[i] += 1
    return tuple(whole)


def routes(
    keys: Sequence[str], hears: Mapping[str, AbstractSet[str]], uplinks: Sequence[int]
) -> tuple[Route, ...]:
    """A relay for each pair of members of whom one does not hear the other, in rank order.

    The relay hears the sender and is heard by the receiver; of several, the one with the largest
    uplink, which the relayed frames leave by. A member whose `hears` is missing hears everybody.
    """

    def heard(receiver: str, sender: str) -> bool:
        return receiver == sender or receiver not in hears or sender in hears[receiver]

    ranks = range(len(keys))
    found = []
    for sender, receiver in ((a, b) for a in ranks for b in ranks):
        if heard(keys[receiver], keys[sender]):
            continue
        relays = [
            rank for rank in ranks
            if rank not in (sender, receiver)
            and heard(keys[rank], keys[sender]) and heard(keys[receiver], keys[rank])
        ]  # fmt: skip
        if relays:
            relay = max(relays, key=lambda rank: (uplinks[rank], -rank))
            found.append(Route(sender, receiver, relay))
    return tuple(found[:MAX_ROUTES])
