"""One arrangement of a model over boards: planned over those that answer, reserved, loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picoedge.cluster.worker_group import WorkerGroup
from picoedge.engine.fit import LEFT_FREE, LoadedModel, load_of
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import MemoryBudgetError
from picoedge.host.resources import available_bytes
from picoedge.jobs.boards import BoardDirectory, loaded_shards, locate_shards, reserve_boards
from picoedge.jobs.kept_memory import take_slice, tell_memory
from picoedge.jobs.spec import INFERENCE, SliceKey
from picoedge.mesh.group.channel import SyncUsage
from picoedge.planner.cluster_plan import ClusterOptions, ClusterPlan, plan_cluster
from picoedge.planner.memory import SMALLEST_DEFAULT_CONTEXT
from picoedge.store.window.set_aside import SetAside
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.jobs.progress_page import Work
    from picoedge.planner.cost_model import Share
    from picoedge.planner.topology import Topology
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack
    from picoedge.store.shards import HeldShards, Slice


@dataclass(frozen=True)
class Arrangement:
    """A model that is loaded: this board's `slice`, and the group it belongs to; None: alone."""

    plan: ClusterPlan
    slice: LoadedModel
    group: WorkerGroup | None

    @property
    def shares(self) -> Sequence[Share]:
        """Each board's share of the model, the hub first."""
        return self.plan.chosen.shares

    @property
    def members(self) -> frozenset[str]:
        """The boards' keys."""
        return frozenset(share.board.key for share in self.shares)

    @property
    def disk_wait_s(self) -> float:
        """Seconds that this board has waited for its storage."""
        return self.slice.disk_wait_s

    def work_since(self, time_s: float) -> dict[str, Work]:
        """Work done by each worker, by key, if it has reported since `time_s` (monotonic)."""
        return self.group.daemons.work_since(time_s) if self.group else {}

    def sync_usage(self) -> SyncUsage:
        """The cost of sums so far."""
        return self.group.forward_pass.channel.usage() if self.group else SyncUsage()

    def close(self) -> None:
        """Free the memory, and all boards. Idempotent."""
        if self.group is not None:
            with closing(self.group):  # also where Ctrl-C interrupts the hand-over
                self.group.leave_slice()
        else:
            self.slice.close()


def plan_over(
    cluster: Topology,
    pack: Pack,
    options: OpenOptions,
    held: Mapping[int, HeldShards] | None,
    loaded: Mapping[int, Slice] | None,
) -> ClusterPlan:
    """The best plan for the pack over these boards; `held` and `loaded` as in `plan_cluster`.

    A default context that the boards have no room for is halved until they have. Raises what
    planning raises.
    """
    while True:
        load = load_of(pack, pack.all_shards, options)
        if options.adapter is not None:
            load = dataclasses.replace(load, adapter_bytes=options.adapter.nbytes)
        try:
            return plan_cluster(load, cluster, options.cluster, held=held, loaded=loaded)
        except MemoryBudgetError:
            if not options.is_default_context or load.n_ctx <= SMALLEST_DEFAULT_CONTEXT:
                raise
        options = dataclasses.replace(options, n_ctx=load.n_ctx // 2)


def report_of(plan: ClusterPlan, at: Arrangement | None) -> dict[str, Any]:
    """The assignment, the predicted time per token, and what sums have cost, as in JSON.

    `at`: the plan's arrangement, while it is loaded.
    """
    chosen, usage = plan.chosen, at.sync_usage() if at else SyncUsage()
    return {
        "why": plan.why,
        "allreduce": chosen.allreduce,
        "transports": at.group.transports if at and at.group else {},
        "predicted_s_per_token": chosen.s_per_token,
        "shares": [
            {
                "board": share.board.name,
                **share.part.to_report(),
                "weights_mb": share.weights_bytes / MB,
            }
            for share in chosen.shares
        ],
        "sums": usage.sums,
        "sync_wait_s": usage.wait_s,
        "bytes_sent": usage.bytes_sent,
        "bytes_received": usage.bytes_received,
    }


class Arranger:
    """Plans and loads a model over the boards of a directory.

    `speed` is the fraction of its measured speed that a board is planned with, by its key; `tell`
    receives lines for the user.
    """

    def __init__(
        self,
        directory: BoardDirectory,
        pack: Pack,
        options: OpenOptions,
        speed: Callable[[str], float],
        tell: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        assert options.n_ctx is not None
        self._directory, self._pack, self._options = directory, pack, options
        self._speed, self._tell, self._progress = speed, tell, progress
        self._first: list[str] | None = None  # keys of the boards that answered at the start

    def plan(self) -> ClusterPlan:
        """The best plan over the boards of the directory. Raises what planning raises."""
        held = locate_shards(self._directory, self._pack)
        cluster = self._directory.cluster()
        present = [board.compute_bytes_per_s * self._speed(board.key) for board in cluster.boards]
        cluster = cluster.with_speeds(present)
        loaded = loaded_shards(self._directory, self._pack, self._options)
        options = dataclasses.replace(self._options, cluster=self._wanted())
        plan = plan_over(cluster, self._pack, options, held, loaded)
        self._options = dataclasses.replace(self._options, n_ctx=plan.load.n_ctx)
        return plan

    def _wanted(self) -> ClusterOptions:
        """The user's options; after the start, only what the boards that are there can satisfy."""
        wanted, present = self._options.cluster, list(self._directory.handles)
        assert wanted is not None
        if self._first in (None, present):
            return wanted
        boards = min(wanted.boards, len(present)) if wanted.boards else None
        return dataclasses.replace(wanted, boards=boards, split=())  # it was for other boards

    @contextmanager
    def _clean_line_after(self) -> Iterator[None]:
        try:
            yield
        finally:  # the last report of a board that loads need not be that of the end
            if self._progress is not None:
                self._progress("", 0, 0)

    def load(self, plan: ClusterPlan) -> Arrangement:
        """Load by the plan. This board is reserved too: its memory is for one job only.

        Blocks until it is loaded: minutes, or hours in the queue for busy boards.
        """
        directory, group = self._directory, None
        present = list(directory.handles)
        handles = [directory.handles[share.board.key] for share in plan.chosen.shares]
        with ExitStack() as failing, ExitStack() as fetched, self._clean_line_after():
            failing.callback(directory.close)  # frees the boards reserved so far
            wanted = self._slice_of(plan)
            memory = reserve_boards(handles, INFERENCE, directory.session, self._tell, wanted)
            aside = fetched.enter_context(self._fetch(wanted)) if wanted else None
            memory = min(self._options.memory_bytes or memory, memory)
            options = dataclasses.replace(self._options, memory_bytes=memory)
            if len(handles) == 1:
                loaded = load_model(self._pack, options, self._progress, on_plan=self._tell_plan)
            else:
                group = WorkerGroup(directory, handles, plan.chosen, self._tell, self._progress)
                group.start(self._pack, options, aside, self._tell_plan)
                loaded = group.slice
            failing.pop_all()
        self._first = self._first or present
        self._options = dataclasses.replace(self._options, is_default_context=False)  # kept
        return Arrangement(plan, loaded, group)

    def _tell_plan(self, nbytes: int) -> None:
        """Tell this board's daemon what this process will take, where others may want it."""
        if nbytes > LEFT_FREE * available_bytes():
            tell_memory(self._directory.identity.folder, nbytes, session=self._directory.session)

    def _slice_of(self, plan: ClusterPlan) -> SliceKey | None:
        """This board's slice, which its daemon may have kept. None: it keeps none, or all is loaded
        here, which is read in another way.
        """
        options, shares = self._options, plan.chosen.shares
        if len(shares) == 1 or self._directory.own.kept is None:
            return None
        assert options.n_ctx is not None
        io, kernels = options.window_io, options.kernels or ""
        adapter = options.adapter.shape.identity if options.adapter else ""
        parts = self._pack.identity, shares[0].part, options.n_ctx, options.kv_bits
        return SliceKey(*parts, io, kernels, adapter)

    def _fetch(self, wanted: SliceKey) -> closing[SetAside]:
        """The weights that this board's daemon has kept of the slice; perhaps none."""
        fd = take_slice(self._directory.identity.folder, wanted.to_json())
        return closing(SetAside(-1 if fd is None else fd))
