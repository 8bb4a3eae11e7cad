"""A learner: pulls segments, catches each up by sums heard, proves the state, lands."""

from __future__ import annotations

from typing import Any

from consensus_step import KEPT, SEGMENTS, Digests, Step, Sums

from picoedge.mesh.consensus.configuration import BoardId, Configuration, ConfigurationId


class Learner(Step):
    """Each segment has its own step until all are at one."""

    def hear(
        self, identity: ConfigurationId, step: int, sums: Sums, made_by: ConfigurationId | None
    ) -> None:
        """A sum that this board may catch up with."""
        steps = self.heard.setdefault(step, {})
        steps.setdefault(identity, (made_by, {}))[1].update(sums)
        if len(self.heard) > 3 * KEPT:
            for old in sorted(self.heard)[: -2 * KEPT]:
                del self.heard[old]
        self.catch_up()

    def catch_up(self) -> None:
        """Move each segment by final sums: those that a whole later one was built upon."""
        if self.live or not self.pulled:
            return
        for r in list(self.pulled):
            while self.catch_up_segment(r):
                pass
        self.land_if_due()

    def catch_up_segment(self, r: int) -> bool:
        """One step of one segment; a segment of a branch that was given up is dropped."""
        step, digest, maker = self.pulled[r]
        later = self.heard.get(step + 1, {})
        for identity, (before, sums) in self.heard.get(step, {}).items():
            if before == maker and r in sums and self.is_final(identity, later):
                self.pulled[r] = step + 1, hash((digest, r, identity, sums[r])), identity
                return True
            if before != maker and identity == self.known_id and len(sums) == SEGMENTS:
                del self.pulled[r]
                return False
        return False

    def is_final(self, identity: ConfigurationId, later: dict[ConfigurationId, Any]) -> bool:
        """Whether a whole sum follows that of `identity`."""
        return any(before == identity and len(sums) == SEGMENTS for before, sums in later.values())

    def level(self) -> int | None:
        """The step that all segments are at, None if they are not at one."""
        found = {(step, maker) for step, _, maker in self.pulled.values()}
        return next(iter(found))[0] if len(self.pulled) == SEGMENTS and len(found) == 1 else None

    def land_if_due(self) -> None:
        """A learner that was counted in has caught up to the start."""
        known, level = self.known, self.level()
        if known is None or level != known.start or self.me not in known.members:
            return
        if not self.proof or self.live:
            return
        maker = self.pulled[0][2]
        self.step, self.live = level, True
        self.digests = {level: tuple(self.pulled[r][1] for r in range(SEGMENTS))}
        self.makers = {level: maker}
        found = self.heard.get(level - 1, {}).get(maker) if maker else None
        whole = found is not None and len(found[1]) == SEGMENTS
        self.last = {level - 1: (maker, found[1])} if whole and found and maker else {}
        self.pulled, self.running, self.run_id, self.done = {}, None, None, 0
        self.shell.note("landed")
        self.settle()

    def on_pull(self, sender: BoardId, r: int) -> None:
        """A learner wants a segment as it is."""
        if self.live and self.running is not None:
            frame = ("shard", r, self.step, self.digests[self.step][r], self.makers.get(self.step))
            self.send(sender, frame)

    def on_shard(
        self, sender: BoardId, r: int, step: int, digest: int, maker: ConfigurationId | None
    ) -> None:
        """A segment, at its own step."""
        del sender
        if not self.live and (r not in self.pulled or self.pulled[r][0] < step - 2):
            self.pulled[r] = step, digest, maker
            self.progress += 1
            self.catch_up()

    def on_digest(self, sender: BoardId, step: int) -> None:
        """A learner at a step wants to compare; only final steps are."""
        if self.live and self.running is not None and step in self.digests and step < self.step:
            self.send(sender, ("digested", self.run_id, step, self.digests[step]))

    def on_digested(
        self, sender: BoardId, identity: ConfigurationId, step: int, digests: Digests
    ) -> None:
        """The proof, or what has to be pulled again."""
        del sender
        if self.live or self.level() != step or identity != self.known_id:
            return
        bad = [r for r in range(SEGMENTS) if self.pulled[r][1] != digests[r]]
        for r in bad:
            del self.pulled[r]
            self.shell.note("repull")
        if not bad and self.known is not None:
            self.proof = True
            if not self.is_witness:
                self.cast(self.known.members, ("prove", step, digests))

    def on_prove(self, sender: BoardId, step: int, digests: Digests) -> None:
        """A learner's state is that of this member."""
        if self.live and self.running is not None and self.digests.get(step) == digests:
            self.shell.proven(sender)

    def learn(self, known: Configuration) -> None:
        """Pull what is missing or far behind, and ask for the proof."""
        self.catch_up()
        self.pulls += 1
        members = [m for m in known.members if m != self.me]
        if self.live or not members:
            return
        for r in range(SEGMENTS):
            if r not in self.pulled or self.pulled[r][0] < self.seen_step - 2:
                self.pulled.pop(r, None)
                self.shell.send(members[(r + self.pulls) % len(members)].key, ("pull", r))
        level = self.level()
        if level is not None:
            self.cast(members, ("digest", level))
