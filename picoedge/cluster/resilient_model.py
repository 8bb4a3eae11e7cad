"""A model over several boards that survives failures of boards, daemons and networks.

The tokens in the cache are known. When a board dies, hangs or is cut off, the boards that are there
are planned anew, the cache is recomputed from those tokens, and the interrupted pass is repeated:
the same sums give the same bits, so the text continues as it would have. What to do when is decided
in recovery.py. Where a question cannot be answered, the next one starts anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from picoedge.cluster.arrangement import Arrangement, Arranger, report_of
from picoedge.cluster.recovery import (
    GO,
    Asked,
    Assembled,
    BoardLost,
    BoardRefused,
    Decision,
    Event,
    Found,
    HubPaused,
    OwnDaemonGone,
    OwnDaemonSilent,
    Passed,
    Recovery,
    TooSmall,
)
from picoedge.engine.fit import LoadedModel
from picoedge.engine.options import OpenOptions
from picoedge.errors import (
    BoardLostError,
    BoardRefusedError,
    BoardSilentError,
    MemoryBudgetError,
    MeshError,
    PicoedgeError,
    ProtocolError,
    UnlinkedError,
    UsageError,
    without_frames,
)
from picoedge.host.resources import PauseWatch, clock_s
from picoedge.jobs.boards import BoardDirectory
from picoedge.jobs.stragglers import SpeedWatch
from picoedge.kernels.arrays import F32
from picoedge.planner.cluster_plan import ClusterPlan

if TYPE_CHECKING:
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack

# Between attempts that fail while no question is asked, the first time and at most.
_REST_S, _LONGEST_REST_S = 5.0, 300.0
LOOK_EVERY_S = 1.0  # between two looks for boards that are back: a prompt may come in many pieces
MOST_FAILURES = 100  # that a report tells of, the last ones: a chat may last for months

T = TypeVar("T")


class Tell(Protocol):
    """Writes lines for the user."""

    def __call__(self, line: str) -> None:
        """Write a line."""

    def clearing(self, clear: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, `clear` is called before each line."""


class ClusterModel:
    """A `session.LanguageModel` over boards; `load.load_over_boards` makes one.

    Until `assemble`, and after an error, no model is loaded: then `forward` assembles it anew.
    """

    plan: ClusterPlan
    slice: LoadedModel  # the last one; closed while no model is loaded

    def __init__(
        self,
        directory: BoardDirectory,
        pack: Pack,
        options: OpenOptions,
        tell: Tell,
        progress: Progress | None,
    ) -> None:
        assert options.cluster is not None
        assert options.n_ctx is not None
        self._directory, self._tell = directory, tell
        self.n_ctx = options.n_ctx
        self._own = own = directory.identity.keys.public
        self._names = {own: directory.identity.name}  # of all boards that ever answered, by key
        self._speeds, self._recovery, self._pauses = SpeedWatch(own), Recovery(own), PauseWatch()
        factor = self._speeds.factor
        self._arranger = Arranger(directory, pack, options, factor, tell, progress)
        self._arrangement: Arrangement | None = None
        self._tokens: list[int] = []  # that the cache holds, or must hold
        self._valid = 0  # positions of them whose keys and values are in the cache
        self.failures = deque[dict[str, Any]](maxlen=MOST_FAILURES)  # which board, why, and when
        self._waited_s, self._streamed = 0.0, 0  # of slices that are closed
        self._awaited: frozenset[str] = frozenset()  # boards that the user was told are awaited
        self._looked_s = clock_s()
        self._served: set[str] = set()  # boards that ever ran a part of it, by key
        self._rest_s, self._rests_until_s = _REST_S, 0.0  # see `attend`
        self._queues = True  # for boards that are taken: a recovery does without, if it can

    # -- assembling ----------------------------------------------------------------------------

    def assemble(self) -> None:
        """Plan over the boards that answer, and load the model there; blocks until it is loaded.

        That may take minutes, or hours in the queue for busy boards. Boards that fail meanwhile are
        done without. Raises what planning and loading raise.
        """
        refusal: PicoedgeError | None = None
        while self._arrangement is None:
            try:
                decision, error = self._attempt(queues=self._queues), None
            except PicoedgeError as failure:
                error = without_frames(failure)
                decision = self._failed(error)
            if isinstance(error, BoardRefusedError):
                refusal = error
            if error is not None and decision.gives_up:
                raise (isinstance(error, UsageError) and refusal) or error
            self._wait(decision)
        self._awaited = frozenset()

    def _attempt(self, *, queues: bool) -> Decision:
        left_out = self._recovery.left_out(clock_s())
        self._directory.refresh(left_out, also_taken=queues)
        handles = self._directory.handles
        self._names.update((key, handle.name) for key, handle in handles.items())
        decision = self._decide(Found(frozenset(handles)))
        if decision.wait_s:
            return decision
        plan = self._arranger.plan()
        self._tell(plan.why)
        self._open(self._arranger.load(plan))
        return decision

    def _open(self, arrangement: Arrangement) -> None:
        self._arrangement, self._valid, self._queues = arrangement, 0, False
        self.plan, self.slice = arrangement.plan, arrangement.slice
        self.n_ctx = self.plan.load.n_ctx
        self._served |= arrangement.members
        self._decide(Assembled(arrangement.members))
        self._speeds.begin(arrangement)

    def _decide(self, event: Event) -> Decision:
        self._has_paused()
        return self._recovery.on(event, clock_s())

    def _has_paused(self) -> bool:
        """Whether this board has stood still since it was last asked."""
        paused_s = self._pauses.take()
        if paused_s is not None:
            self._recovery.on(HubPaused(), paused_s)
        return paused_s is not None

    def _failed(self, error: PicoedgeError) -> Decision:
        """The decision after an error of a pass, or of an attempt to load the model."""
        if isinstance(error, MemoryBudgetError):
            if self._directory.has_taken and not self._queues:
                self._queues = True
                return GO
            return self._decide(TooSmall())
        if isinstance(error, UnlinkedError):  # no board has failed
            self._directory.unlink(error.keys[0], error.keys[1:])
            self._tell(f"{error.message}; this board passes on their sums")
            return GO
        key = error.key if isinstance(error, BoardLostError) else ""
        if key not in self._names:
            return Decision(gives_up=True)
        if key == self._own and isinstance(error, BoardRefusedError):
            return Decision(gives_up=True)
        if key == self._own and not self._directory.has_daemon(same=True):
            return self._decide(OwnDaemonGone())
        if key == self._own and not self._directory.own_answers():
            return self._decide(OwnDaemonSilent())
        unfit = isinstance(error, BoardRefusedError | BoardSilentError | ProtocolError)
        why = error.message
        if self._has_paused() and not unfit:
            why = f"this board stood still for a while ({why})"
        decision = self._decide(BoardRefused(key) if unfit else BoardLost(key))
        self.failures.append({"board": self._names[key], "why": error.message, "time": time.time()})
        without = " without it" if key in self._recovery.left_out(clock_s()) else ""
        self._tell(f"{why}; going on{without}")
        if decision.gives_up:
            raise MeshError("boards are lost one after another", "check the network: picoedge ps")
        return decision

    def _wait(self, decision: Decision) -> None:
        awaited = decision.awaited
        if awaited and awaited != self._awaited:
            names = ", ".join(sorted(self._names[key] for key in awaited))
            what = f"{names}: the boards that are there cannot hold the model"
            if self._own in awaited:
                what = "this board's daemon (picoedge run)"
            self._tell(f"waiting up to {decision.limit_s:.0f} s for {what}")
        self._awaited = awaited or self._awaited
        time.sleep(decision.wait_s)

    # -- as a LanguageModel --------------------------------------------------------------------

    @property
    def boards(self) -> int:
        """The number of boards that run it."""
        at = self._arrangement
        return at.group.boards if at and at.group else 1

    @property
    def disk_wait_s(self) -> float:
        """Seconds that this board has waited for weights from storage so far."""
        return self._waited_s + (self._arrangement.slice.disk_wait_s if self._arrangement else 0.0)

    @property
    def bytes_streamed(self) -> int:
        """Bytes of weights that this board has streamed from storage so far."""
        return self._streamed + (self._arrangement.slice.bytes_streamed if self._arrangement else 0)

    def report(self) -> dict[str, Any]:
        """The assignment, the predicted time per token, and what sums have cost so far."""
        return {**report_of(self.plan, self._arrangement), "losses": list(self.failures)}

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits f32 [vocab] after `tokens` put at `position`; see `Transformer.forward`.

        If a board fails during the pass, the pass is repeated without it. Raises what `assemble`
        raises.
        """
        del self._tokens[position:]
        self._tokens += tokens
        self._valid = min(self._valid, position)
        if len(tokens) > 1:
            self._rest_s, self._rests_until_s = _REST_S, 0.0
            self._before_answer()
        while True:
            self.assemble()
            logits = self._try_pass(is_prompt=len(tokens) > 1)
            if not isinstance(logits, MeshError):
                self._decide(Passed())
                return logits
            if (decision := self._failed(logits)).gives_up:
                raise logits
            self._wait(decision)

    def _try_pass(self, *, is_prompt: bool) -> F32 | MeshError:
        """The logits, or the failure that ended the group."""
        return self._unless_lost(partial(self._pass, is_prompt))

    def _unless_lost(self, call: Callable[[], T]) -> T | MeshError:
        """The call's result, or the loss that ended the group. Any other error ends it, too."""
        with ExitStack() as failing:
            failing.callback(self._end_group)
            try:
                result = call()
            except (BoardLostError, UnlinkedError) as error:
                return without_frames(self._explained(error))
            failing.pop_all()
            return result

    def _pass(self, is_prompt: bool) -> F32:
        at = self._arrangement
        if is_prompt and at is not None and at.group is not None:
            at.group.daemons.check()  # a pass may not need all that was lost: the own daemon
        began = time.perf_counter()
        logits = self.slice.forward(self._tokens[self._valid :], self._valid)
        single = self._valid == len(self._tokens) - 1
        self._valid = len(self._tokens)
        changed = self._speeds.add(time.perf_counter() - began if single else None)
        if changed and self._redistribute(*changed):
            self.assemble()
        return logits

    def _explained(self, error: MeshError) -> MeshError:
        at = self._arrangement
        return at.group.daemons.explain(error) if at and at.group else error

    def _end_group(self) -> None:
        """A pass was interrupted, by an error or Ctrl-C: the boards of a group are out of step."""
        if self._arrangement is not None and self._arrangement.group is not None:
            self._close_arrangement()

    # -- between answers -----------------------------------------------------------------------

    def _before_answer(self) -> None:
        self._decide(Asked())
        self._include_rested()
        now_s = clock_s()
        if self._arrangement is not None and now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self._take_in_others()

    def _include_rested(self) -> None:
        if self._arrangement is not None and (rested := self._speeds.rested()):
            self._redistribute(*rested)

    def attend(self, clear: Callable[[], None]) -> None:
        """Find boards that are lost or back while nothing is asked, and be ready for a question.

        `clear` is called before lines for the user. Errors are left to the next question. Of other
        boards only those are taken that this model had before: the rest may be wanted by sessions
        that are in use.
        """
        if clock_s() < self._rests_until_s:
            return
        with self._tell.clearing(clear):
            try:
                self._be_ready()
            except PicoedgeError as error:
                self._rests_until_s = clock_s() + self._rest_s
                self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
                with suppress(PicoedgeError):  # the next question meets it again
                    self._failed(without_frames(error))

    def _be_ready(self) -> None:
        at = self._arrangement
        if at is not None and at.group is not None:
            lost = self._unless_lost(at.group.daemons.check)
            if lost is not None:
                self._failed(lost)
        self._include_rested()
        if self._arrangement is not None:
            self._take_in_others(self._served)
        if self._arrangement is None:
            self._attempt(queues=False)  # for no board that others use
        if self._arrangement is not None and self._valid < len(self._tokens):
            logits = self._try_pass(is_prompt=True)  # whose cache the next question needs
            if isinstance(logits, MeshError):
                raise logits

    def _take_in_others(self, wanted: Collection[str] | None = None) -> None:
        """Assemble anew over boards that have come back, if the plan is better with them.

        Of others only those `wanted`, if it is given.
        """
        out = self._recovery.left_out(clock_s())
        members = self._arrangement.members if self._arrangement else frozenset()
        try:
            added, unreachable = self._directory.look(out | members, wanted)
            for key in unreachable:
                self._decide(BoardLost(key))
            chosen = self._arranger.plan().chosen.shares if added else ()
        except PicoedgeError as error:  # of a group: its check will find out what it is
            alone = self._arrangement is not None and self._arrangement.group is None
            own = isinstance(error, BoardLostError) and error.key == self._own
            if alone and own and self._directory.has_daemon():
                self._close_arrangement()  # which has started again
            return
        names = [share.board.name for share in chosen if share.board.key in added]
        if names:
            self._tell(f"{', '.join(names)} can take part: the shards are redistributed")
            self._close_arrangement()

    def _redistribute(self, how: str, keys: Collection[str]) -> bool:
        """End the present plan, as some boards' speeds have changed; whether there is a better one.

        Logits stay valid; the cache is recomputed with the next token.
        """
        plan = self._arranger.plan()
        before, after = (
            [(share.board.key, share.part) for share in each.chosen.shares]
            for each in (self.plan, plan)
        )
        if before == after:
            self._speeds.accept()
            return False
        names = ", ".join(name for key, name in self._names.items() if key in keys)
        self._tell(f"{names} {how}: the shards are redistributed")
        self._close_arrangement()
        return True

    # -- the end -------------------------------------------------------------------------------

    def _close_arrangement(self) -> None:
        """Free its memory, and all boards. Idempotent."""
        waited_s, streamed = self.disk_wait_s, self.bytes_streamed
        at, self._arrangement = self._arrangement, None
        self._waited_s, self._streamed = waited_s, streamed
        if at is not None:
            at.close()
        self._directory.close()

    def close(self) -> None:
        """Free all boards. Idempotent."""
        self._pauses.close()
        self._close_arrangement()
        self._directory.context.destroy(linger=0)  # goodbyes have a linger of their own
