"""Links measured by one session after the other, on a busy machine, and the plans made of them."""

from __future__ import annotations

import dataclasses
import random

import pytest
from cluster_figures import LAN, board, cluster, load_of

from picoedge.planner.cluster_plan import ClusterOptions, ClusterPlan, plan_cluster
from picoedge.planner.topology import (
    TRIPS_KEPT_S,
    TRIPS_LAST,
    TRIPS_MOST,
    LinkFacts,
    RoundTrips,
    Topology,
    link_of,
    remembered,
    shortest,
)
from picoedge.store.shards import Slice

SMALL = load_of(layers=6, hidden=576, groups=3, shards=6, vocab=8000, n_ctx=512)
THREE = ClusterOptions(boards=3)
OWN_S, NBYTES, BETWEEN_S = 0.0005, 512 << 10, 20.0


def trips(at_s: float, latency_s: float, noise: float = 1.0) -> RoundTrips:
    small_s = (OWN_S + 2 * latency_s) * noise
    return RoundTrips(at_s, small_s, small_s + NBYTES / LAN.bytes_per_s * noise)


class Sessions:
    """One after the other: each measures its two links, and finds the slices of the last one."""

    def __init__(self) -> None:
        self.at_s, self.kept = 0.0, [list[RoundTrips](), list[RoundTrips]()]
        self.loaded: dict[int, Slice] = {}

    def next(self, latency_s: float, noise: tuple[float, float]) -> ClusterPlan:
        self.at_s += BETWEEN_S
        links = {}
        for i, factor in enumerate(noise):
            self.kept[i] = remembered(self.kept[i], trips(self.at_s, latency_s, factor))
            links[0, i + 1] = link_of(*shortest(self.kept[i]), OWN_S, NBYTES)
        plan = plan_cluster(SMALL, over(links), THREE, loaded=self.loaded)
        pairs = zip(plan.chosen.members, plan.chosen.shares, strict=True)
        self.loaded = {i: share.part for i, share in pairs}
        return plan


def over(links: dict[tuple[int, int], LinkFacts]) -> Topology:
    each = [board(str(i), speed, 70.0) for i, speed in enumerate((1e9, 8e8, 9e8))]
    return dataclasses.replace(cluster(*each, link=LAN), links=links)


def parts_of(plan: ClusterPlan) -> list[tuple[str, Slice]]:
    return [(share.board.name, share.part) for share in plan.chosen.shares]


@pytest.mark.parametrize("seed", range(5))
def test_slices_stay_loaded_however_noisily_links_are_measured(seed: int) -> None:
    chance, sessions = random.Random(seed), Sessions()
    first = sessions.next(LAN.latency_s, (1.0, 1.0))
    for i in range(8):
        noisy = tuple(chance.uniform(1, 60) if (i + j) % TRIPS_LAST else 1.5 for j in range(2))
        plan = sessions.next(LAN.latency_s, noisy)
        assert parts_of(plan) == parts_of(first)
        assert plan.chosen.s_per_token < 1.5 * first.chosen.s_per_token


def test_a_network_that_became_slower_is_planned_as_such_after_a_few_sessions() -> None:
    sessions = Sessions()
    first = sessions.next(LAN.latency_s, (1.0, 1.0))
    slow_s = 100 * LAN.latency_s
    plans = [sessions.next(slow_s, (1.0, 1.0)) for _ in range(TRIPS_LAST)]
    assert parts_of(plans[0]) == parts_of(first)
    assert plans[0].chosen.s_per_token == pytest.approx(first.chosen.s_per_token)
    assert plans[-1].chosen.s_per_token > 2 * first.chosen.s_per_token


def test_round_trips_are_forgotten_after_an_hour_and_where_there_are_many() -> None:
    kept = remembered([trips(0.0, 1e-4)], trips(TRIPS_KEPT_S + 1, 2e-4))
    assert kept == [trips(TRIPS_KEPT_S + 1, 2e-4)]
    for i in range(3 * TRIPS_MOST):
        kept = remembered(kept, trips(TRIPS_KEPT_S + 2 + i, 2e-4))
    assert len(kept) == TRIPS_MOST
    assert kept[-1].at_s == TRIPS_KEPT_S + 1 + 3 * TRIPS_MOST


def test_a_quicker_network_is_known_at_once() -> None:
    kept = remembered([trips(0.0, 1e-2), trips(1.0, 1e-2)], trips(2.0, 1e-4))
    link = link_of(*shortest(kept), OWN_S, NBYTES)
    assert link.latency_s == pytest.approx(1e-4)
