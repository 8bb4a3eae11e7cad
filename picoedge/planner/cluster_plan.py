"""Choose the boards that run a model, the slice of each, and say why. Pure.

With more boards each computes less, and sums take longer: where that stops paying depends on the
model, the boards and the links, so every number of boards is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picoedge.errors import MemoryBudgetError, UsageError
from picoedge.planner.assignment import round_equal_speeds, split_by_weight
from picoedge.planner.cost_model import WORTH, Allreduce, Candidate, CostModel, Share
from picoedge.planner.locality import OnBoards, Pair
from picoedge.planner.memory import Counts, Load, MemoryNeeds, cache_bytes
from picoedge.planner.topology import Topology
from picoedge.store.shards import HeldShards, Slice
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.mesh.group.peer_link import TransportChoice

_NEAR = 1.25  # times the least: estimates of bytes read are no better than that
_LISTED = 8  # boards that an error names
_REMEDY = (
    "allow more with --memory, take a smaller --ctx-size, --kv-bits 8 or a model of fewer bits, "
    "or add boards"
)


@dataclass(frozen=True)
class ClusterOptions:
    """Options for splitting a model over boards; by default as the plan finds quickest."""

    boards: int | None = None  # exactly so many
    split: tuple[float, ...] = ()  # weights, the hub's first, then the others' as they are listed
    allreduce: Allreduce | None = None
    split_head: bool = False  # split the head too; others then see the likely next tokens
    transport: TransportChoice = "auto"  # what carries sums between boards
    wire: str = "f64"  # format of sums: "f64" is exact; "f32", "f16", "q8" are smaller


@dataclass(frozen=True)
class ClusterPlan:
    """The chosen plan for the `load` of a model, and an estimate for each number of boards.

    `candidates`: the best of each number of boards, from one on; None where so many cannot hold the
    model. `idle`: boards that are left out.
    """

    load: Load
    chosen: Candidate
    candidates: tuple[Candidate | None, ...]
    idle: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, sizes in bytes."""
        return {
            "n_ctx": self.load.n_ctx,
            "kv_bits": self.load.kv_bits,
            "hub": self.chosen.shares[0].board.name,
            "chosen": self.chosen.to_json(),
            "predictions": [one and one.to_json() for one in self.candidates],
            "idle": list(self.idle),
            "why": self.why,
        }


def plan_cluster(
    load: Load,
    cluster: Topology,
    options: ClusterOptions | None = None,
    *,
    held: Mapping[int, HeldShards] | None = None,
    loaded: Mapping[int, Slice] | None = None,
) -> ClusterPlan:
    """The fewest boards that are as fast as any, within the options.

    `load` is the whole model's. `held` are the shards on the disks of boards, by index; a board
    that is not listed has all: an assignment that is hardly slower is taken if less is to be
    pulled for it, or if it is of slices that are `loaded` still. A board takes no more shards than
    its disk has room for. The memory of each chosen board is planned as the board itself will,
    which takes a while where much is streamed. Raises UsageError for options the cluster cannot
    meet, and MemoryBudgetError or StorageError with the figures where the boards cannot hold the
    model.
    """
    options = options or ClusterOptions()
    _check(cluster, options)
    cluster = cluster.with_speeds(
        round_equal_speeds([board.compute_bytes_per_s for board in cluster.boards])
    )
    costs = CostModel(MemoryNeeds(load), cluster, options.allreduce, split_head=options.split_head)
    order, candidates = _by_number(costs, cluster)
    near = _allowed(costs, cluster, options, candidates)
    pairs = [(one, costs.exact(one)) for one in near]
    if not pairs:
        raise _too_small(cluster, costs.needs, split_head=options.split_head)
    least_s = min(planned.s_per_token for _, planned in pairs)
    quickest = next(pair for pair in pairs if pair[1].s_per_token <= WORTH * least_s)
    there = OnBoards(costs, order, options.boards, held or {}, loaded or {})
    quickest, full = there.with_room(quickest, is_fixed=bool(options.split))
    chosen, exact_plan = quickest if options.split else there.prefer(quickest)
    names = [board.name for board in cluster.boards]
    idle = tuple(name for i, name in enumerate(names) if i not in chosen.members)
    asked = "as asked, " if options.split or options.boards else ""
    kept = "" if chosen is quickest[0] else _why_preferred(there, (chosen, exact_plan), quickest)
    why = asked + _why(exact_plan, chosen, candidates) + kept + full
    return ClusterPlan(load, exact_plan, candidates, idle, why)


def _allowed(
    costs: CostModel,
    cluster: Topology,
    options: ClusterOptions,
    candidates: Sequence[Candidate | None],
) -> list[Candidate]:
    """Candidates that the options allow; none where the boards cannot hold the model."""
    if not options.split and not options.boards:
        return _near(candidates)
    asked = _split(costs, cluster, options) if options.split else None
    if options.boards and not options.split:
        asked = candidates[options.boards - 1]
    return [] if asked is None else [asked]


def _check(cluster: Topology, options: ClusterOptions) -> None:
    most, fault = len(cluster.boards), ""
    if options.boards is not None and not 1 <= options.boards <= most:
        fault = f"{options.boards} boards are asked for"
    elif len(options.split) > most:
        fault = f"the split is over {len(options.split)} boards"
    if fault:
        raise UsageError(fault, f"there are {_boards(most)}")


def _by_number(
    costs: CostModel, cluster: Topology
) -> tuple[list[int], tuple[Candidate | None, ...]]:
    """Greedily add to the hub, one by one, the board that makes a token fastest.

    Returns the order in which boards are added, and the candidate of each number of them.
    """
    members, others = [cluster.hub], [i for i in range(len(cluster.boards)) if i != cluster.hub]
    candidates = [costs.best(members)]
    while others:
        tried = {i: costs.best([*members, i]) for i in others}

        def merit(i: int, tried: dict[int, Candidate | None] = tried) -> tuple[float, float, int]:
            board, one = cluster.boards[i], tried[i]
            if one is None:  # until they can hold it, room is what counts
                return float("inf"), board.fixed_bytes - board.budget_bytes, i
            return one.s_per_token, -board.compute_bytes_per_s, i

        best = min(others, key=merit)
        members.append(best)
        others.remove(best)
        candidates.append(tried[best])
    return members, tuple(candidates)


def _near(candidates: Sequence[Candidate | None]) -> list[Candidate]:
    """The candidates that may be the fastest once planned exactly."""
    able = [one for one in candidates if one is not None]
    least = min((one.s_per_token for one in able), default=0.0)
    return [one for one in able if one.s_per_token <= _NEAR * least]


def _split(costs: CostModel, cluster: Topology, options: ClusterOptions) -> Candidate | None:
    others = [i for i in range(len(cluster.boards)) if i != cluster.hub]
    members = [cluster.hub, *others][: len(options.split)]
    counts, split_head = costs.needs.counts, options.split_head
    return costs.estimate(members, split_by_weight(counts, options.split, split_head=split_head))


def _too_small(cluster: Topology, needs: MemoryNeeds, *, split_head: bool) -> MemoryBudgetError:
    """The error that compares the memory of the boards with the least that is needed."""
    load, hub = needs.load, cluster.boards[cluster.hub]
    weights = sum(run.nbytes for run in load.runs)
    own = Counts(0, 0, 0 if split_head else needs.counts.head)
    need = needs.of(own, hub=True, numpy=hub.numpy)
    least = need.beside + min(need.weights, need.window + hub.read_ahead_bytes)
    head = f", the hub's {'buffers' if split_head else 'head'} at least {format_size(least)}"
    rooms = [
        f"{board.name} {format_size(max(0, board.budget_bytes - board.fixed_bytes))} of "
        f"{format_size(board.budget_bytes)}"
        for board in cluster.boards
    ]
    more = f" and {len(rooms) - _LISTED} more boards" if len(rooms) > _LISTED else ""
    return MemoryBudgetError(
        f"the boards cannot hold the model, not even through the smallest windows: weights "
        f"{format_size(weights)} + context of {load.n_ctx} tokens {format_size(cache_bytes(load))}"
        f"{head}; there is, beside the interpreter, "
        f"{', '.join(rooms[:_LISTED])}{more}",
        _REMEDY,
    )


# -- for people ---------------------------------------------------------------------------------

TABLE_HEADER = (
    "board", "attention", "ffn", "head", "weights", "resident", "read/token", "memory", "computing",
)  # fmt: skip


def plan_table(candidate: Candidate) -> list[tuple[str, ...]]:
    """One row a board under `TABLE_HEADER`: its shards, bytes, memory and computing time."""
    total_s = sum(share.compute_s for share in candidate.shares)
    return [_row(share, total_s) for share in candidate.shares]


def _row(share: Share, total_s: float) -> tuple[str, ...]:
    part = share.compute_s / total_s if total_s else 0.0
    taken, budget = format_size(share.memory_bytes), format_size(share.board.budget_bytes)
    return (
        share.board.name,
        _run("heads", share.part.attention),
        _run("shards", share.part.ffn),
        _run("shards", share.part.head_shards),
        format_size(share.weights_bytes),
        format_size(share.resident_bytes),
        format_size(share.streamed_bytes) if share.streamed_bytes else "-",
        f"{taken} of {budget}",
        f"{_time(share.compute_s)} ({part:.0%})",
    )


def _run(kind: str, shards: range) -> str:
    return f"{kind} {shards.start}-{shards.stop - 1}" if shards else "-"


def _why(exact_plan: Candidate, chosen: Candidate, candidates: Sequence[Candidate | None]) -> str:
    """One sentence: seconds per token as chosen, on one board, and with one board more."""
    text = f"{_boards(chosen.boards)}: {_pace(exact_plan)}"
    alone = candidates[0]
    if chosen.boards > 1:
        text += f", 1: {_pace(alone)}" if alone else ", 1 cannot hold the model"
    if chosen.boards < len(candidates):
        text += "; " + _one_more(chosen, candidates[chosen.boards])
    return text


def _why_preferred(there: OnBoards, pair: Pair, quickest: Pair) -> str:
    """The gain in speed of the fastest assignment, and the bytes to pull for it."""
    saved = _time(max(0.0, pair[1].s_per_token - quickest[1].s_per_token))
    if there.is_loaded(pair[0]):
        return f"; that is loaded still: the quickest shares would save {saved}"
    if there.missing_bytes(pair[0]):
        return ""
    return (
        f"; that is on the boards' disks: the quickest shares, of {_boards(quickest[1].boards)}, "
        f"would save {saved} and have {format_size(there.missing_bytes(quickest[0]))} pulled"
    )


def _pace(one: Candidate) -> str:
    if one.clock != "disk":
        return f"{_time(one.s_per_token)} a token"
    read = max(share.streamed_bytes for share in one.shares)
    return f"{_time(one.s_per_token)} a token ({format_size(read)} read for it on one board)"


def _one_more(chosen: Candidate, more: Candidate | None) -> str:
    name = _ordinal(chosen.boards + 1)
    if more is None:
        return f"with a {name} it would not fit"
    if more.boards <= chosen.boards:
        return f"a {name} would take nothing"
    gains = [
        ("reading", chosen.disk_s - more.disk_s),
        ("sums", chosen.comm_s - more.comm_s),
        ("computing", chosen.compute_s - more.compute_s),
    ]
    adds = [f"{_time(-s)} of {what}" for what, s in gains if s < -5e-5]
    saves = [f"{_time(s)} of {what}" for what, s in gains if s > 5e-5]
    does = [f"{verb} {' and '.join(of)}" for verb, of in (("add", adds), ("save", saves)) if of]
    return f"a {name} would {' and '.join(does) or 'change nothing'}"


def _boards(count: int) -> str:
    return "1 board" if count == 1 else f"{count} boards"


def _ordinal(n: int) -> str:
    names = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh"}
    return names.get(n, f"{n}th")


def _time(seconds: float) -> str:
    """`38 ms`, `2.1 s`."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
