"""A worker as the simulator of agreement has it: it does what a configuration asks.

It computes nothing. Everything that a real worker must obey is asked of
`picoedge.mesh.consensus.duty`.
"""

from __future__ import annotations

from consensus_learner import Learner
from consensus_step import Sums, owners_of

from picoedge.mesh.consensus import duty as rules
from picoedge.mesh.consensus.configuration import BoardId, Configuration, ConfigurationId, Epoch
from picoedge.mesh.consensus.duty import Duty
from picoedge.mesh.consensus.events import Report


class Worker(Learner):
    """The training process of one board; `shell` carries out what it asks for.

    `shell.send(key, frame)`, `shell.compute(configuration, step, micro-batch)`,
    `shell.checkpoint(checkpoint)`, `shell.proven(board)`, `shell.note(name, *values)`.
    """

    def report(self) -> Report:
        """The page that the daemon reads."""
        if not self.live:
            return Report(None, self.run_id, False, 0, self.progress, self.checkpoint[0])
        holds = self.step - 1 in self.last
        return Report(
            self.snapshot(), self.run_id, holds, self.done, self.progress, self.checkpoint[0]
        )

    def adopt(self, configuration: Configuration) -> None:
        """The machine knows of another configuration."""
        self.known, self.known_id = configuration, configuration.identity
        self.fence = None
        self.settle()

    def freeze(self, epoch: Epoch) -> None:
        """Apply no sum of a configuration before `epoch`."""
        self.frozen = epoch
        self.settle()

    def set_fence(self, start: int | None) -> int | None:
        """Send no part of step `start` or later; None where that has happened."""
        if not self.live or self.running is None:
            return None
        if start is None:
            start = self.step + 1
        elif self.step > start or (self.step == start and self.closed):
            return None
        self.fence = start
        return start

    def settle(self) -> None:
        """Do as the known configuration asks."""
        known, place = self.known, self.place() if self.known else None
        if known is None or place is None:
            return
        duty = rules.duty(known, self.me, place)
        if duty is Duty.RESTORE:
            self.restore()
            duty = rules.duty(known, self.me, self.place())
        if duty is Duty.RUN and self.run_id != self.known_id:
            self.enter(known)
        elif duty is Duty.FETCH:
            self.shell.send(known.source.key, ("want", self.step, self.known_id))
        elif duty is Duty.FINISH and self.step == known.start - 1 and self.closed:
            self.cast(known.members, ("want", self.step, self.known_id))
        elif duty is Duty.LEARN:
            self.stop(known)

    def stop(self, known: Configuration) -> None:
        """No state that counts; a learner that is counted in asks the source for what it lacks."""
        if self.live or self.running:
            if self.live and self.step > known.start:
                self.shell.note("ahead")
            self.live, self.running, self.run_id = False, None, None
            self.pulled, self.proof = {}, False
        low = min((at[0] for at in self.pulled.values()), default=known.start)
        if self.me in known.members and self.proof and low < known.start:
            self.shell.send(known.source.key, ("want", low, self.known_id))

    def restore(self) -> None:
        """Load the checkpoint."""
        snapshot, digests = self.checkpoint
        self.step, self.live = snapshot.step, True
        self.digests, self.makers = {snapshot.step: digests}, {snapshot.step: snapshot.made_by}
        self.last, self.running, self.run_id = {}, None, None
        self.done, self.pulled = 0, {}

    def enter(self, configuration: Configuration) -> None:
        """Run a configuration from its start on, with what is finished of it."""
        self.running, self.run_id = configuration, configuration.identity
        self.owners = owners_of(configuration)
        self.begin(self.done)

    def on_want(self, sender: BoardId, step: int, identity: ConfigurationId) -> None:
        """A member lacks a sum before the start of the configuration."""
        known = self.known
        if known is None or identity != self.known_id or not self.live or step not in self.last:
            return
        if step < known.start <= self.step:
            made_by, sums = self.last[step]
            frame = ("have", step, identity, made_by, sums, self.makers.get(step))
            self.send(sender, frame)

    def on_have(
        self, sender: BoardId, step: int, identity: ConfigurationId, made_by: ConfigurationId,
        sums: Sums, before: ConfigurationId | None,
    ) -> None:  # fmt: skip
        """The sum that was asked for."""
        del sender
        known = self.known
        if known is None:
            return
        if self.live and step == self.step:
            if rules.may_catch_up(known, self.me, self.place(), identity):
                self.move(sums, made_by)
                self.running = self.run_id = None
                self.settle()
        elif not self.live and identity == self.known_id and self.proof:
            self.hear(made_by, step, dict(sums), before)
            for r, (at, digest, maker) in list(self.pulled.items()):
                if at == step and maker == before:
                    self.pulled[r] = at + 1, hash((digest, r, made_by, sums[r])), made_by
            self.land_if_due()

    def tick(self) -> None:
        """What a lost frame would leave undone is done again."""
        if self.known is None:
            return
        self.settle()
        if self.running is not None and self.may_move():
            self.take_back()
            self.work()
            idle = not self.todo and not self.offered and self.busy is None
            if self.closed and idle and not self.is_fenced():
                self.send_parts()
            for (_, _, r), values in self.mine.items():
                self.send_sum(r, values)
            self.reduce()
            self.complete()
        self.repeat_last()
        if not self.live and self.me in (*self.known.learners, *self.known.members):
            self.learn(self.known)
