"""A model over several boards that survives the failure of any but this one.

The tokens in the cache are known. When a board dies, hangs or is cut off, the remaining boards are
planned anew, the cache is recomputed from those tokens, and the interrupted pass is repeated: the
same sums give the same bits, so the text continues as it would have.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.cluster.worker_group import WorkerGroup
from picoedge.engine.fit import LoadedModel, load_of
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import BoardLostError, MeshError, UnlinkedError
from picoedge.jobs.boards import BoardDirectory, locate_shards, reserve_boards
from picoedge.jobs.stragglers import (
    SAMPLE_TOKENS,
    ComputeTimes,
    Sample,
    SpeedFactors,
    StragglerDetector,
)
from picoedge.kernels.arrays import F32
from picoedge.mesh.group.channel import SyncUsage
from picoedge.mesh.identity.identity import cluster_folder, load_identity
from picoedge.planner.cluster_plan import ClusterOptions, ClusterPlan, plan_cluster
from picoedge.sanitize import one_line
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack

BOARD_FAILURES = 2  # of one board, after which it is excluded: a second one is no accident
MAX_FAILURES = 16  # in all, after which the model gives up: the network itself must be at fault


class ClusterModel:
    """A `session.LanguageModel` over boards; `load_over_boards` makes one.

    `tell` receives lines for the user.
    """

    plan: ClusterPlan
    slice: LoadedModel
    _detector: StragglerDetector

    def __init__(
        self,
        directory: BoardDirectory,
        pack: Pack,
        options: OpenOptions,
        tell: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        assert options.cluster is not None
        assert options.n_ctx is not None
        self._directory, self._pack, self._options = directory, pack, options
        self._tell, self._progress = tell, progress
        self.n_ctx = options.n_ctx
        self._tokens: list[int] = []  # that the cache holds, or must hold
        self._valid = 0  # positions of them whose keys and values are in the cache
        self._failure_counts: Counter[str] = Counter()  # by key
        self.failures: list[dict[str, Any]] = []  # which board, why, and when
        self._speeds, self._compute_times = SpeedFactors(), ComputeTimes()
        self._waited_s, self._streamed = 0.0, 0  # of slices that are closed
        self._group: WorkerGroup | None = None  # None: this board alone
        self._has_started = False

    def assemble(self) -> None:
        """Plan over the boards that answer, and load the model there; blocks until it is loaded.

        That may take minutes, or hours in the queue for busy boards. Raises what planning and
        loading raise.
        """
        while True:
            counts = self._failure_counts.items()
            self._directory.refresh(frozenset(k for k, n in counts if n >= BOARD_FAILURES))
            self._keys = {handle.name: key for key, handle in self._directory.handles.items()}
            self.plan = plan = self._make_plan()
            self._tell(plan.why)
            try:
                self.slice = self._load(plan)
            except BoardLostError as error:
                self._count_failure(error)
                continue
            except UnlinkedError as error:
                self._directory.unlink(error.keys[0], error.keys[1:])
                self._tell(f"{error.message}; this board passes on their sums")
                continue
            self._has_started, self._valid, self._detector = True, 0, StragglerDetector()
            # Seconds of a token at each board's measured speed, whatever its present one.
            self._full_s = {
                share.board.key: share.compute_s * self._speeds.factor(share.board.key)
                for share in plan.chosen.shares
            }
            self._begin_answer()
            return

    def _make_plan(self) -> ClusterPlan:
        load = load_of(self._pack, self._pack.all_shards, self._options)
        held = locate_shards(self._directory, self._pack)
        cluster, factor = self._directory.cluster(), self._speeds.factor  # of stragglers
        present = [board.compute_bytes_per_s * factor(board.key) for board in cluster.boards]
        return plan_cluster(load, cluster.with_speeds(present), self._wanted(), held=held)

    def _wanted(self) -> ClusterOptions:
        """The user's options; after the start, only what the remaining boards can satisfy."""
        wanted, present = self._options.cluster, len(self._directory.handles)
        assert wanted is not None
        if not self._has_started:
            return wanted
        boards = min(wanted.boards, present) if wanted.boards else None
        split = () if self._failure_counts or len(wanted.split) > present else wanted.split
        return dataclasses.replace(wanted, boards=boards, split=split)

    def _load(self, plan: ClusterPlan) -> LoadedModel:
        """Load by the plan. This board is reserved too: its memory is for one job only."""
        self._group = None
        handles = [self._directory.handles[share.board.key] for share in plan.chosen.shares]
        with ExitStack() as failing:
            failing.callback(self._directory.close)  # frees the boards reserved so far
            memory = reserve_boards(handles, self._tell)
            memory = min(self._options.memory_bytes or memory, memory)
            options = dataclasses.replace(self._options, memory_bytes=memory)
            if len(handles) == 1:
                loaded = load_model(self._pack, options, self._progress)
            else:
                group = WorkerGroup(
                    self._directory, handles, plan.chosen, self._tell, self._progress
                )
                group.start(self._pack, options)
                self._group, loaded = group, group.slice
            failing.pop_all()
        return loaded

    # -- as a LanguageModel --------------------------------------------------------------------

    @property
    def boards(self) -> int:
        """How many boards run it."""
        return self._group.boards if self._group else 1

    @property
    def disk_wait_s(self) -> float:
        """Seconds that this board has waited for weights from storage so far."""
        return self._waited_s + self.slice.disk_wait_s

    @property
    def bytes_streamed(self) -> int:
        """Bytes of weights that this board has streamed from storage so far."""
        return self._streamed + self.slice.bytes_streamed

    def report(self) -> dict[str, Any]:
        """The assignment, the predicted time per token, and what sums have cost so far."""
        chosen, group = self.plan.chosen, self._group
        usage = self._sync_usage()
        return {
            "why": self.plan.why,
            "allreduce": chosen.allreduce,
            "transports": group.transports if group else {},
            "predicted_s_per_token": chosen.s_per_token,
            "shares": [
                {
                    "board": share.board.name,
                    **share.part.to_json(),
                    "weights_mb": share.weights_bytes / MB,
                }
                for share in chosen.shares
            ],
            "sums": usage.sums,
            "sync_wait_s": usage.wait_s,
            "bytes_sent": usage.bytes_sent,
            "bytes_received": usage.bytes_received,
            "losses": list(self.failures),
        }

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits f32 [vocab] after `tokens` put at `position`; see `Transformer.forward`.

        If a board fails during the pass, the pass is repeated without it. Raises MemoryBudgetError
        if the remaining boards cannot hold the model.
        """
        del self._tokens[position:]
        self._tokens += tokens
        self._valid = min(self._valid, position)
        if len(tokens) > 1:
            self._retry_excluded()
        while True:
            try:
                began = time.perf_counter()
                logits = self.slice.forward(self._tokens[self._valid :], self._valid)
                single = self._valid == len(self._tokens) - 1
                self._valid = len(self._tokens)
                self._watch_speed(time.perf_counter() - began if single else None)
                return logits
            except BoardLostError as error:
                self._recover(error)

    # -- stragglers ----------------------------------------------------------------------------

    def _begin_answer(self) -> None:
        """Start sampling anew: tokens of a prompt are faster than decoded ones."""
        self._compute_times.reset()
        self._answer_s = time.monotonic()
        self._begin_sample()

    def _begin_sample(self) -> None:
        self._sample_s, self._sampled, self._disk_s = 0.0, 0, self.slice.disk_wait_s
        self._usage = self._sync_usage()

    def _sync_usage(self) -> SyncUsage:
        return self._group.forward_pass.channel.usage() if self._group else SyncUsage()

    def _watch_speed(self, token_s: float | None) -> None:
        """Redistribute the shards if a board is far slower than planned, or has recovered.

        `token_s`: seconds of a decoded token; None after a prompt.
        """
        if self._group is None:
            return
        if token_s is None:
            return self._begin_answer()
        self._sample_s, self._sampled = self._sample_s + token_s, self._sampled + 1
        if self._sampled < SAMPLE_TOKENS:
            return
        usage, before = self._sync_usage(), self._usage.late_s
        waited = {rank: late_s - before.get(rank, 0.0) for rank, late_s in usage.late_s.items()}
        shares = self.plan.chosen.shares
        planned = [share.compute_s for share in shares]
        late = self._detector.add(Sample(self._sampled, self._sample_s, waited), planned)
        recovered, slow = self._speeds.add(self._rates(self._group, usage.wait_s))
        slow |= {shares[rank].board.key: factor for rank, factor in late.items()}
        self._begin_sample()
        for key, factor in slow.items():
            self._speeds.slow_down(key, factor, time.monotonic())
        if slow or recovered:
            self._rebalance("has become slow" if slow else "is quick again", slow or recovered)

    def _rates(self, group: WorkerGroup, wait_s: float) -> dict[str, float]:
        """Each board's seconds per token at its measured speed, by those it took; by key."""
        own_s = self._sample_s - (wait_s - self._usage.wait_s)
        own_s -= self.slice.disk_wait_s - self._disk_s
        took = {self._directory.own.key: own_s / self._sampled if own_s > 0 else None}
        for key, work in group.work_since(self._answer_s).items():
            took[key] = self._compute_times.s_per_token(key, work)
        return {
            key: full / took_s for key, full in self._full_s.items() if (took_s := took.get(key))
        }

    def _retry_excluded(self) -> None:
        """Before an answer, include boards again that were excluded as slow some time ago."""
        included = {share.board.key for share in self.plan.chosen.shares}
        rested = self._speeds.retry(included, time.monotonic())
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
        # Logits stay valid; the cache is recomputed with the next token.
        self._close_slice()
        self.assemble()

    # -- failures ------------------------------------------------------------------------------

    def _recover(self, error: BoardLostError) -> None:
        assert self._group is not None
        self._count_failure(self._group.explain(error))
        self._close_slice()
        self.assemble()

    def _count_failure(self, error: BoardLostError) -> None:
        key = self._keys.get(error.board, "")
        self._failure_counts[key] += 1
        self.failures.append({"board": error.board, "why": error.message, "time": time.time()})
        without = " without it" if self._failure_counts[key] >= BOARD_FAILURES else ""
        self._tell(f"{error.message}; going on{without}" if key else error.message)
        if self._failure_counts.total() > MAX_FAILURES:
            raise MeshError("boards are lost one after another", "check the network: picoedge ps")

    def _close_slice(self) -> None:
        self._waited_s, self._streamed = self.disk_wait_s, self.bytes_streamed
        if self._group is not None:
            self._group.close()
        else:
            self.slice.close()

    def close(self) -> None:
        """Free all boards. Idempotent."""
        self._close_slice()
        self._directory.close()
        self._directory.context.destroy(linger=0)  # goodbyes have a linger of their own


def load_over_boards(
    pack: Pack, options: OpenOptions, progress: Progress | None = None
) -> ClusterModel:
    """The model over the boards that are the quickest together.

    Raises AccessError where this board is in no cluster, MeshError where its daemon does not run,
    and what `ClusterModel` raises.
    """
    assert options.cluster is not None
    identity = load_identity(cluster_folder(os.environ))
    with ExitStack() as failing:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        failing.callback(context.destroy, linger=0)
        directory = BoardDirectory(context, identity, _to_stderr, options.cluster.transport)
        failing.callback(directory.close)
        model = ClusterModel(directory, pack, options, _to_stderr, progress)
        model.assemble()
        failing.pop_all()
    return model


def _to_stderr(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
