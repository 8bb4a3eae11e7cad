"""What a sum of boards' parts takes: hops, messages and shared ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.planner.cost_model import Contributors, Network, comm_s, gather_s, sum_s
from picoedge.planner.topology import LinkFacts

TOKEN, PROMPT = 2048, 256 * 2048  # values of a sum


def network(
    boards: int, latency_s: float = 0.0, bytes_per_s: float = 1e12, message_s: float = 0.0
) -> Network:
    link = LinkFacts(latency_s, bytes_per_s)
    return Network((message_s,) * boards, lambda a, b: link)


def everyone(boards: int) -> tuple[int, ...]:
    return tuple(range(boards))


@pytest.mark.parametrize("boards", [2, 4, 8])
def test_a_star_takes_two_hops_and_an_exchange_one(boards: int) -> None:
    net = network(boards, latency_s=1e-3)
    assert sum_s(net, "star", everyone(boards), TOKEN, last=False) == pytest.approx(2e-3, rel=1e-3)
    assert sum_s(net, "exchange", everyone(boards), TOKEN, last=False) == pytest.approx(
        1e-3, rel=1e-3
    )


def test_the_last_sum_goes_to_the_hub_alone() -> None:
    net = network(4, latency_s=1e-3)
    for way in ("star", "exchange"):
        assert sum_s(net, way, everyone(4), TOKEN, last=True) == pytest.approx(1e-3, rel=1e-3)


def test_boards_with_some_of_the_head_get_the_last_sum_as_well() -> None:
    net = network(4, latency_s=1e-3)
    seconds = {
        way: sum_s(net, way, everyone(4), TOKEN, last=True, head=(0, 2))  # type: ignore[arg-type]
        for way in ("star", "exchange")
    }
    assert seconds == {
        "star": pytest.approx(2e-3, rel=1e-3), "exchange": pytest.approx(1e-3, rel=1e-3)
    }  # fmt: skip


def test_logits_come_in_one_hop_through_the_hubs_port() -> None:
    assert gather_s(network(3, latency_s=1.0), [32000, 0, 0]) == 0
    assert gather_s(network(3, latency_s=1.0), [0, 32000, 0]) == pytest.approx(1.0, rel=1e-3)
    net = network(3, bytes_per_s=1e6)
    assert gather_s(net, [0, 1000, 1000]) == pytest.approx(1.05 * 8000 / 1e6, rel=5e-2)
    assert gather_s(net, [0, 1800, 200]) == pytest.approx(1.05 * 8000 / 1e6, rel=5e-2)
    slow = {2: LinkFacts(0.0, 1e5)}
    net = Network((0.0,) * 3, lambda a, b: slow.get(max(a, b), LinkFacts(0.0, 1e9)))
    assert gather_s(net, [0, 1800, 200]) == pytest.approx(1.05 * 800 / 1e5, rel=0.3)


def test_a_sum_of_one_contributor_is_sent_and_not_added() -> None:
    net = network(4, latency_s=1e-3)
    for way in ("star", "exchange"):
        assert sum_s(net, way, (0,), TOKEN, last=False) == pytest.approx(1e-3, rel=1e-3)
        assert sum_s(net, way, (0,), TOKEN, last=True) == 0
    assert sum_s(net, "star", (2,), TOKEN, last=False) == pytest.approx(2e-3, rel=1e-3)
    assert sum_s(net, "exchange", (2,), TOKEN, last=False) == pytest.approx(1e-3, rel=1e-3)


def test_parts_share_the_hubs_port() -> None:
    seconds = [
        sum_s(network(n, bytes_per_s=1e6), "star", everyone(n), 1e5, last=True) for n in (2, 5)
    ]
    assert seconds[1] == pytest.approx(4 * seconds[0], rel=1e-3)


def test_a_long_sum_is_cut_where_all_are_linked() -> None:
    seconds = {
        way: sum_s(network(4, bytes_per_s=1e6), way, everyone(4), PROMPT, last=False)  # type: ignore[arg-type]
        for way in ("star", "exchange")
    }
    # A quarter of the parts, 6 bytes a value, to each of three, and of the sums, 4 bytes.
    assert seconds["exchange"] == pytest.approx(1.05 * PROMPT * 10 * 3 / 4 / 1e6, rel=1e-2)
    assert seconds["star"] == pytest.approx(1.05 * PROMPT * 10 * 3 / 1e6, rel=1e-2)


def test_one_slow_link_holds_all_up() -> None:
    links = {2: LinkFacts(5e-3, 1e5)}
    net = Network((0.0,) * 3, lambda a, b: links.get(max(a, b), LinkFacts(1e-3, 1e9)))
    assert sum_s(net, "star", everyone(3), 1e4, last=True) > 5e-3 + 0.1


def test_messages_cost_the_busiest_board_its_time() -> None:
    net = network(5, message_s=1e-4)
    assert sum_s(net, "star", everyone(5), TOKEN, last=False) == pytest.approx(10e-4, rel=1e-2)
    assert sum_s(net, "exchange", everyone(5), TOKEN, last=False) == pytest.approx(8e-4, rel=1e-2)


def test_a_board_alone_sends_nothing() -> None:
    for way in ("star", "exchange"):
        assert comm_s(network(1, 1.0), way, Contributors((0,), (0,)), 22, 2048) == 0


@given(st.integers(2, 12), st.floats(0, 1e-2), st.floats(1e6, 1e9), st.floats(0, 1e-3))
def test_another_board_never_makes_sums_cheaper(
    boards: int, latency_s: float, bytes_per_s: float, message_s: float
) -> None:
    def seconds(n: int, way: str) -> float:
        net = network(n, latency_s, bytes_per_s, message_s)
        return comm_s(net, way, Contributors(everyone(n), everyone(n)), 22, 2048)  # type: ignore[arg-type]

    for way in ("star", "exchange"):
        assert seconds(boards, way) <= seconds(boards + 1, way)


def test_a_token_of_a_star_is_an_input_and_two_sums_a_layer() -> None:
    net = network(3, latency_s=1.0)
    stages = Contributors(everyone(3), everyone(3))
    assert comm_s(net, "star", stages, 22, 2048) == pytest.approx(1 + 22 * 2 + 21 * 2 + 1, rel=1e-3)
    assert comm_s(net, "exchange", stages, 22, 2048) == pytest.approx(1 + 44, rel=1e-3)
