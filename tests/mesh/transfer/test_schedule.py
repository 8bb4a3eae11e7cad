"""Schedules of transfers in a clock of their own: all arrives once, soon, whatever donors do."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.transfer.schedule import (
    QUEUE_DEPTH,
    Ask,
    Cancel,
    DonorAction,
    PauseDonor,
    TransferSchedule,
)

STEP_S = 0.25


@dataclass
class Donor:
    """A board in the simulation: `rate` bytes a second until `dies_s`; if it `lies`, rubbish."""

    has: frozenset[str]
    rate: float
    dies_s: float = float("inf")
    joins_s: float = 0.0
    lies: bool = False
    queue: list[tuple[str, float]] = field(default_factory=list)  # item, bytes still to send


@dataclass
class World:
    """Donors that send in small parts, and the schedule that asks them."""

    items: dict[str, int]
    donors: dict[str, Donor]
    now_s: float = 0.0
    used: Counter[str] = field(default_factory=Counter)
    asks: Counter[str] = field(default_factory=Counter)

    def run(self, most_s: float = 100.0) -> TransferSchedule:
        plan = self.plan = TransferSchedule(self.items)
        events = [(d.joins_s, 0, name) for name, d in self.donors.items()]
        events += [(STEP_S * (i + 1), 1, "") for i in range(int(most_s / STEP_S))]
        heapq.heapify(events)
        while events and not plan.is_done:
            at_s, kind, name = heapq.heappop(events)
            self._send_until(at_s)
            if plan.is_done:
                break
            self.now_s = at_s
            if kind == 0:
                self._do(plan.joined(name, self.donors[name].has, at_s))
            else:
                self._do(plan.tick(at_s))
                if at_s > 60 and not any(d.queue for d in self.donors.values()):
                    break
        return plan

    def _send_until(self, end_s: float) -> None:
        """Donors send at their rates, in order; a finished part is reported at its moment."""
        while not self.plan.is_done:
            soonest = min(((self._finish(d), name) for name, d in self.donors.items() if d.queue),
                          default=(float("inf"), ""))  # fmt: skip
            until = min(soonest[0], end_s)
            self._progress(until)
            if soonest[0] > end_s:
                return
            self._deliver(soonest[1])

    def _finish(self, donor: Donor) -> float:
        at_s = self.now_s + donor.queue[0][1] / donor.rate
        return at_s if at_s < donor.dies_s else float("inf")

    def _progress(self, until_s: float) -> None:
        for name, donor in self.donors.items():
            if donor.queue:
                item, left = donor.queue[0]
                sent = min(max(min(until_s, donor.dies_s) - self.now_s, 0) * donor.rate, left)
                donor.queue[0] = (item, left - sent)
                if sent:
                    self.plan.received(name, item, int(sent), until_s)
        self.now_s = max(self.now_s, until_s)

    def _deliver(self, name: str) -> None:
        donor = self.donors[name]
        item, _ = donor.queue.pop(0)
        if not self.plan.is_wanted(item):
            return
        if donor.lies:
            donor.queue.clear()
            self._do(self.plan.failed(name, self.now_s))
        else:
            self.used[item] += 1
            self._do(self.plan.arrived(name, item, self.now_s))

    def _do(self, actions: list[DonorAction]) -> None:
        for action in actions:
            donor = self.donors[action.donor]
            if isinstance(action, Ask):
                assert action.item in donor.has
                assert not is_banned(self.plan, action.donor)
                self.asks[action.item] += 1
                donor.queue.append((action.item, self.items[action.item]))
                assert len(donor.queue) <= QUEUE_DEPTH
                assert len({item for item, _ in donor.queue}) == len(donor.queue)
            elif isinstance(action, Cancel):
                donor.queue = [e for e in donor.queue if e[0] != action.item]
            else:
                assert isinstance(action, PauseDonor)
                assert self.now_s >= donor.dies_s or donor.rate < 1
                donor.queue.clear()


def impossible(plan: TransferSchedule) -> list[str]:
    """Items that no present donor has."""
    held = frozenset[str]().union(*(donor.has for donor in plan._donors.values()))
    return [item for item in plan.missing if item not in held]


def is_banned(plan: TransferSchedule, donor: str) -> bool:
    return donor in plan._banned


def names(count: int) -> dict[str, int]:
    return {f"item-{i}": 1_000_000 for i in range(count)}


def took_s(items: dict[str, int], *donors: Donor) -> float:
    world = World(items, {f"d{i}": donor for i, donor in enumerate(donors)})
    assert world.run().is_done
    assert world.used == Counter(dict.fromkeys(items, 1))
    return world.now_s


@pytest.mark.parametrize("count", [30, 100, 301])
def test_three_equal_donors_are_nearly_three_times_one(count: int) -> None:
    items = names(count)
    one = took_s(items, Donor(frozenset(items), 1e7))
    three = took_s(items, *(Donor(frozenset(items), 1e7) for _ in range(3)))
    assert one == pytest.approx(count / 10, rel=0.01)
    assert one / three >= (2.7 if count == 30 else 2.9)


def test_a_slow_donor_does_not_hold_up_the_end() -> None:
    items = names(40)
    fast, slow = Donor(frozenset(items), 1e7), Donor(frozenset(items), 1e5)
    assert took_s(items, fast, slow) <= 4.0 * 1.1


def test_items_that_one_donor_alone_has_are_fetched_first() -> None:
    items = names(40)
    rare = frozenset(f"item-{i}" for i in range(20, 40))
    both = took_s(items, Donor(frozenset(items), 1e7), Donor(frozenset(items) - rare, 1e7))
    assert both <= 2.0 + 2 * 0.1 + 0.01  # two were asked for before the second donor came


def test_a_dead_donor_is_set_aside_and_its_items_fetched_elsewhere() -> None:
    items = names(60)
    dead = Donor(frozenset(items), 1e7, dies_s=0.55)
    assert took_s(items, Donor(frozenset(items), 1e7), dead) <= 6.0


def test_a_liar_is_asked_for_two_items_and_no_more() -> None:
    items = names(20)
    liar = Donor(frozenset(items), 1e7, lies=True)
    world = World(items, {"good": Donor(frozenset(items), 1e7), "liar": liar})
    assert world.run().is_done
    assert is_banned(world.plan, "liar")
    assert world.plan.joined("liar", items, world.now_s) == []
    assert sum(world.asks.values()) <= len(items) + QUEUE_DEPTH


def test_missing_shards_are_told() -> None:
    plan = TransferSchedule(names(3))
    plan.joined("a", ["item-0", "item-2", "item-9"], 0.0)
    assert impossible(plan) == ["item-1"]
    plan.failed("a", 1.0)
    assert impossible(plan) == ["item-0", "item-1", "item-2"]
    assert plan.joined("b", ["item-1"], 2.0) == [Ask("b", "item-1")]


def test_a_donor_that_lacks_what_it_offered_is_not_asked_for_it_again() -> None:
    plan = TransferSchedule(names(1))
    assert plan.joined("a", ["item-0"], 0.0) == [Ask("a", "item-0")]
    assert plan.refused("a", "item-0", 0.1) == []
    assert impossible(plan) == ["item-0"]


def test_a_donor_that_is_not_asked_is_not_silent() -> None:
    plan = TransferSchedule(names(1))
    plan.joined("a", [], 0.0)
    assert plan.tick(100.0) == []
    assert plan.joined("b", ["item-0"], 100.0) == [Ask("b", "item-0")]
    assert plan.tick(102.0) == []
    assert plan.tick(104.0) == [PauseDonor("b")]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 25))
    sizes = st.integers(1, 5_000_000)
    items = {f"item-{i}": draw(sizes) for i in range(count)}
    donors = {}
    for i in range(draw(st.integers(1, 5))):
        has = draw(st.frozensets(st.sampled_from(sorted(items))) | st.just(frozenset(items)))
        donors[f"d{i}"] = Donor(
            has,
            rate=draw(st.floats(1e5, 1e8)),
            dies_s=draw(st.just(float("inf")) | st.floats(0, 3)),
            joins_s=draw(st.just(0.0) | st.floats(0, 3)),
            lies=draw(st.sampled_from([False, False, False, True])),
        )
    return World(items, donors)


@given(worlds())
def test_each_item_is_used_once_or_cannot_come(world: World) -> None:
    plan = world.run(most_s=200.0)
    assert all(count == 1 for count in world.used.values())
    assert set(world.used) == set(world.items) - set(plan.missing)
    steady = [d.has for d in world.donors.values() if d.dies_s == float("inf") and not d.lies]
    lasting = frozenset[str]().union(*steady)
    assert set(plan.missing) <= set(world.items) - lasting
    assert plan.is_done or impossible(plan) == plan.missing


@given(st.lists(st.floats(1e6, 5e7), min_size=1, max_size=5), st.integers(10, 60))
def test_the_end_is_near_the_best_possible(rates: list[float], count: int) -> None:
    items = names(count)
    ideal_s = count * 1e6 / sum(rates)
    longest_s = 1e6 / max(rates)  # an item cannot be cut
    took = took_s(items, *(Donor(frozenset(items), rate) for rate in rates))
    assert took <= 1.1 * ideal_s + 3 * longest_s + STEP_S


@given(st.data())
def test_any_order_of_events_keeps_the_window(data: st.DataObject) -> None:
    items = names(6)
    plan, asked, now_s = TransferSchedule(items), {name: set() for name in "abc"}, 0.0
    for _ in range(data.draw(st.integers(0, 60))):
        now_s += data.draw(st.floats(0, 2))
        donor, what = data.draw(st.sampled_from("abc")), data.draw(st.sampled_from(sorted(items)))
        event = data.draw(st.sampled_from(["joined", "failed", "refused", "arrived", "passed"]))
        if event in ("joined", "failed"):
            asked[donor].clear()
        if event == "joined":
            actions = plan.joined(
                donor, data.draw(st.frozensets(st.sampled_from(sorted(items)))), now_s
            )
        elif event == "passed":
            actions = plan.tick(now_s)
        elif event in ("refused", "arrived"):
            if event == "arrived":
                plan.received(donor, what, 1_000_000, now_s)
            asked[donor].discard(what)
            actions = getattr(plan, event)(donor, what, now_s)
        else:
            actions = getattr(plan, event)(donor, now_s)
        for action in actions:
            if isinstance(action, Ask):
                assert plan.is_wanted(action.item)
                assert action.item not in asked[action.donor]
                asked[action.donor].add(action.item)
            elif isinstance(action, Cancel):
                asked[action.donor].discard(action.item)
            else:
                asked[action.donor].clear()
        assert all(len(each) <= QUEUE_DEPTH for each in asked.values())
        assert (
            max(Counter(item for each in asked.values() for item in each).values(), default=0) <= 2
        )
