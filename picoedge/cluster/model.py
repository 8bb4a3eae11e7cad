"""A model over many boards that stays a model when one of them is lost.

What the cache holds is known by its tokens. Where a board dies, hangs or is cut off, the boards
that are left are planned anew, the cache is computed again from those tokens, and the pass that
broke off is run once more: the same sums give the same bits, so the text goes on as it would have.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from picoedge.cluster.worker_group import Team
from picoedge.engine.fit import load_of
from picoedge.engine.open import LoadedModel, load_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import BoardLostError, MeshError
from picoedge.jobs.boards import locate_shards, reserve_boards
from picoedge.jobs.stragglers import (
    SAMPLE_TOKENS,
    ComputeTimes,
    Sample,
    SpeedFactors,
    StragglerDetector,
)
from picoedge.kernels.arrays import F32
from picoedge.mesh.group.channel import SyncUsage
from picoedge.planner.cluster_plan import ClusterPlan, Wishes, plan_cluster
from picoedge.planner.topology import BoardFacts, Cluster
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.engine.adapt import Adapter
    from picoedge.engine.session import KernelsInfo
    from picoedge.jobs.boards import BoardDirectory
    from picoedge.planner.memory import MemoryPlan
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack

LOSSES = 2  # of one board, after which a session goes on without it
_MOST_LOSSES = 16


class ClusterModel:
    """See `session.LanguageModel`. Raises what planning and opening raise."""

    def __init__(
        self,
        directory: BoardDirectory,
        pack: Pack,
        options: OpenOptions,
        *,
        tell: Callable[[str], None],
        progress: Progress | None = None,
    ) -> None:
        assert options.cluster is not None
        assert options.n_ctx is not None
        self._directory, self._pack, self._options = directory, pack, options
        self._tell, self._progress = tell, progress
        self.n_ctx = options.n_ctx
        self._tokens: list[int] = []  # whose keys and values the cache holds, or should
        self._valid = 0  # positions that it does hold
        self._losses: Counter[str] = Counter()
        self._speeds, self._own = SpeedFactors(), ComputeTimes()
        self.losses: list[dict[str, Any]] = []  # boards that were lost, and when
        self._waited_s, self._streamed = 0.0, 0  # by models that are closed
        self._team: Team | None = None
        self._begun = False
        self._assemble()

    def _assemble(self) -> None:
        """Plan over the boards there are, and have them ready."""
        while True:
            without = {key for key, count in self._losses.items() if count >= LOSSES}
            self._directory.refresh(frozenset(without))
            self._keys = {handle.name: key for key, handle in self._directory.handles.items()}
            self.plan = plan = self._make_plan()
            self._tell(plan.why)
            try:
                self._slice = self._open(plan)
            except BoardLostError as error:
                self._count(error)
                continue
            self._begun, self._valid, self._detector = True, 0, StragglerDetector()
            # What each would take for a token if it were as quick as measured.
            self._full_s = {
                share.board.key: share.compute_s * self._speeds.factor(share.board.key)
                for share in plan.chosen.shares
            }
            self._begin_answer()
            return

    def _make_plan(self) -> ClusterPlan:
        load = load_of(self._pack, self._pack.all_shards, self._options)
        held = locate_shards(self._directory, self._pack)
        return plan_cluster(load, self._facts(), self._wishes(), held=held)

    def _wishes(self) -> Wishes:
        """What was asked for; of that, once the session runs, what the boards left can do."""
        cluster, here = self._options.cluster, len(self._directory.handles)
        assert cluster is not None
        if not self._begun:
            return Wishes(cluster.boards, cluster.split, cluster.allreduce, cluster.split_head)
        boards = min(cluster.boards, here) if cluster.boards else None
        split = () if self._losses or len(cluster.split) > here else cluster.split
        return Wishes(boards, split, cluster.allreduce, cluster.split_head)

    def _facts(self) -> Cluster:
        """The boards, with the speed that the slow ones have left."""
        cluster = self._directory.cluster()
        return dataclasses.replace(cluster, boards=tuple(map(self._as_now, cluster.boards)))

    def _as_now(self, board: BoardFacts) -> BoardFacts:
        speed = board.compute_bytes_per_s * self._speeds.factor(board.key)
        return dataclasses.replace(board, compute_bytes_per_s=speed)

    def _open(self, plan: ClusterPlan) -> LoadedModel:
        self._team = None
        if plan.chosen.boards == 1:
            return self._open_alone()
        self._team = Team(
            self._directory,
            self._pack,
            self._options,
            plan.chosen,
            tell=self._tell,
            progress=self._progress,
        )
        return self._team.slice

    def _open_alone(self) -> LoadedModel:
        """On this board, which is held all the same: its memory is not for two sessions."""
        memory = reserve_boards(self._directory, [self._directory.own], self._tell)
        least = min(self._options.memory_bytes or memory, memory)
        alone = dataclasses.replace(self._options, cluster=None, memory_bytes=least)
        return load_model(self._pack, alone, self._progress)

    # -- what a session needs ------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Tokens it runs at once."""
        return self._slice.batch

    @property
    def kernels(self) -> KernelsInfo:
        """What computes here."""
        return self._slice.kernels

    @property
    def boards(self) -> int:
        """How many boards run it."""
        return self._team.boards if self._team else 1

    @property
    def disk_wait_s(self) -> float:
        """Seconds this board has waited for its weights so far."""
        return self._waited_s + self._slice.disk_wait_s

    @property
    def bytes_streamed(self) -> int:
        """Bytes of weights this board has read so far, to be used once."""
        return self._streamed + self._slice.bytes_streamed

    def report(self) -> dict[str, Any]:
        """How the boards share it, what was predicted, and what sums have taken so far."""
        chosen, team = self.plan.chosen, self._team
        usage = team.forward_pass.usage() if team else None
        return {
            "why": self.plan.why,
            "allreduce": chosen.allreduce,
            "transports": team.transports if team else {},
            "predicted_s_per_token": chosen.s_per_token,
            "shares": [
                {
                    "board": share.board.name,
                    "attention": [share.part.attention.start, share.part.attention.stop],
                    "ffn": [share.part.ffn.start, share.part.ffn.stop],
                    "vocabulary": [share.part.head_shards.start, share.part.head_shards.stop],
                    "weights_mb": share.weights_bytes / MB,
                }
                for share in chosen.shares
            ],
            "sums": usage.sums if usage else 0,
            "sync_wait_s": usage.wait_s if usage else 0.0,
            "bytes_sent": usage.bytes_sent if usage else 0,
            "bytes_received": usage.bytes_received if usage else 0,
            "losses": list(self.losses),
        }

    @property
    def memory_plan(self) -> MemoryPlan | None:
        """The plan of this board's memory, for the slice it has now."""
        return self._slice.memory_plan

    @property
    def adapter(self) -> Adapter | None:
        """Adapts that plan while decoding."""
        return self._slice.adapter

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits f32 [vocab] after `tokens` put at `position`; see `Transformer.forward`.

        A board that is lost on the way is gone without. Raises MemoryBudgetError where the others
        cannot hold the model.
        """
        del self._tokens[position:]
        self._tokens += tokens
        self._valid = min(self._valid, position)
        if len(tokens) > 1:
            self._try_again()
        while True:
            try:
                began = time.perf_counter()
                logits = self._slice.forward(self._tokens[self._valid :], self._valid)
                single = self._valid == len(self._tokens) - 1
                self._valid = len(self._tokens)
                self._keep_pace(time.perf_counter() - began if single else None)
                return logits
            except BoardLostError as error:
                self._recover(error)

    # -- keeping the pace ----------------------------------------------------------------------

    def _begin_answer(self) -> None:
        """Tokens of a prompt are quicker than others: what was seen of them says nothing."""
        self._own.reset()
        self._answer_s = time.monotonic()
        self._begin_look()

    def _begin_look(self) -> None:
        self._seen_s, self._seen, self._disk_s = 0.0, 0, self._slice.disk_wait_s
        self._usage = self._team.forward_pass.usage() if self._team else SyncUsage()

    def _keep_pace(self, token_s: float | None) -> None:
        """Deal the shards anew where a board is far slower than its share, or quick again."""
        if self._team is None:
            return
        if token_s is None:
            return self._begin_answer()
        self._seen_s, self._seen = self._seen_s + token_s, self._seen + 1
        if self._seen < SAMPLE_TOKENS:
            return
        usage, before = self._team.forward_pass.usage(), self._usage.late_s
        waited = {rank: late_s - before.get(rank, 0.0) for rank, late_s in usage.late_s.items()}
        shares = self.plan.chosen.shares
        planned = [share.compute_s for share in shares]
        late = self._detector.add(Sample(self._seen, self._seen_s, waited), planned)
        quick, slow = self._speeds.add(self._rates(self._team, usage.wait_s))
        slow |= {shares[rank].board.key: left for rank, left in late.items()}
        self._begin_look()
        for key, left in slow.items():
            self._speeds.slow_down(key, left, time.monotonic())
        if slow or quick:
            self._rebalance("has become slow" if slow else "is quick again", slow or quick)

    def _rates(self, team: Team, wait_s: float) -> dict[str, float]:
        """By key, what a board would take as it was measured, by what it took itself."""
        own_s = self._seen_s - (wait_s - self._usage.wait_s)
        own_s -= self._slice.disk_wait_s - self._disk_s
        took = {self._directory.own.key: own_s / self._seen if own_s > 0 else None}
        for key, work in team.work_since(self._answer_s).items():
            took[key] = self._own.s_per_token(key, work)
        return {
            key: full / took_s for key, full in self._full_s.items() if (took_s := took.get(key))
        }

    def _try_again(self) -> None:
        """Ask boards again, before an answer, that were left out as slow some time ago."""
        taking = {share.board.key for share in self.plan.chosen.shares}
        rested = self._speeds.retry(taking, time.monotonic())
        if rested:
            self._rebalance("was slow and is tried again", rested)

    def _rebalance(self, how: str, keys: Collection[str]) -> None:
        plan = self._make_plan()
        before, after = (
            [(share.board.key, share.part) for share in each.chosen.shares]
            for each in (self.plan, plan)
        )
        if before == after:
            self._detector = StragglerDetector()  # no better plan exists: this is normal
            return
        names = ", ".join(name for name, key in self._keys.items() if key in keys)
        self._tell(f"{names} {how}: the shards are redistributed")
        # What was computed stands; the cache is computed again with the next token.
        self._let_go()
        self._assemble()

    def _recover(self, error: BoardLostError) -> None:
        assert self._team is not None
        self._count(self._team.reason(error))
        self._let_go()
        self._assemble()

    def _count(self, error: BoardLostError) -> None:
        key = self._keys.get(error.board, "")
        self._losses[key] += 1
        self.losses.append({"board": error.board, "why": error.message, "time": time.time()})
        without = " without it" if self._losses[key] >= LOSSES else ""
        self._tell(f"{error.message}; going on{without}" if key else error.message)
        if self._losses.total() > _MOST_LOSSES:
            raise MeshError("boards are lost one after another", "check the network: picoedge ps")

    def _let_go(self) -> None:
        self._waited_s, self._streamed = self.disk_wait_s, self.bytes_streamed
        if self._team is not None:
            self._team.close()
        else:
            self._slice.close()

    def close(self) -> None:
        """Free all boards. Idempotent."""
        self._let_go()
        self._directory.close()
        self._directory.context.destroy(linger=0)  # goodbyes keep the time that they were given
