"""What must hold in every history: written without any code of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from consensus_step import MICRO_BATCHES

from picoedge.mesh.consensus import messages as m


class Violation(AssertionError):
    """A history that must not be."""


def majority(voters: Iterable[Any], keys: set[str]) -> bool:
    """Rule 1, once more."""
    voters = list(voters)
    count = len([v for v in voters if v.key in keys])
    return count * 2 > len(voters) or (count * 2 == len(voters) and voters[0].key in keys)


class Checks:
    """Sees what boards say, adopt and apply; raises Violation."""

    def __init__(self, sim: Any) -> None:
        self.sim = sim
        self.configurations: dict[Any, Any] = {}  # epoch: what is known to be chosen
        self.votes: dict[Any, dict[Any, set[str]]] = {}  # instance: (ballot, identity): keys
        self.finals: dict[Any, Any] = {}  # (generation, step): digests
        self.replicas: dict[Any, Any] = {}  # (maker, step): digests
        self.top: dict[Any, int] = {}  # generation: the last step that any board has applied
        self.moved: set[Any] = set()  # processes that have applied a sum

    def begin(self, configuration: Any) -> None:
        """The first configuration is given, not chosen."""
        self.configurations[configuration.epoch] = configuration

    def sent(self, shell: Any, message: Any) -> None:
        """Accepted is said when it is stored, and one configuration an epoch is accepted."""
        if not isinstance(message, m.Accepted):
            return
        vote = (message.ballot, message.configuration)
        kept = [r.vote for r in shell.disk.records.values() if r.vote is not None]
        if self.needs_record(shell, message) and vote not in kept:
            raise Violation(f"{shell.me} said accepted before it was stored: {vote}")
        self.count(shell.key, message)

    def needs_record(self, shell: Any, message: Any) -> bool:
        """Whether the record has to be there: an epoch that is past needs none any more."""
        newest = shell.disk.newest()
        known = newest[1].known.epoch if newest else None
        return known is None or known.next <= message.instance

    def count(self, key: str, message: Any) -> None:
        """Votes of an instance: at most one configuration has a quorum in a ballot."""
        base = self.base_of(message.instance)
        if base is None:
            return
        identity = message.configuration.identity
        ballots = self.votes.setdefault(message.instance, {})
        keys = ballots.setdefault((message.ballot, identity), set())
        keys.add(key)
        if majority(base.voters, keys):
            chosen = ballots.setdefault("chosen", identity)  # type: ignore[arg-type]
            if chosen != identity:
                raise Violation(f"two are chosen: {chosen} and {message.configuration}")

    def base_of(self, instance: Any) -> Any:
        """The configuration whose voters decide."""
        epoch = instance._replace(number=instance.number - 1)
        return self.configurations.get(epoch)

    def adopted(self, shell: Any, configuration: Any) -> None:
        """An epoch has one configuration on all boards that adopt it."""
        is_new = configuration.epoch not in self.configurations
        first = self.configurations.setdefault(configuration.epoch, configuration)
        if first != configuration:
            raise Violation(f"{shell.me}: two configurations: {first} and {configuration}")
        if {member.key for member in configuration.members} & self.sim.witnesses:
            raise Violation(f"a witness is a member: {configuration}")
        fault = configuration.fault()
        if fault:
            raise Violation(f"{fault}: {configuration}")
        if is_new and configuration.restores is not None:
            self.began(configuration)

    def began(self, configuration: Any) -> None:
        """A generation that the boards make themselves loses no state that a board still has."""
        self.sim.counts["generations"] += 1
        generation = configuration.epoch.generation
        if generation.maker.key or not generation.number:
            return
        self.sim.counts["generations_by_boards"] += 1
        base = next(
            (c for c in self.configurations.values()
             if c.epoch.number == configuration.epoch.number - 1
             and c.epoch.generation.number == generation.number - 1),
            None,
        )  # fmt: skip
        for voter in base.voters if base else ():
            shell = self.sim.shells[voter.key]
            here = voter.key not in self.sim.dead and shell.me == voter
            alive = here and shell.worker.live and voter in self.moved
            if alive and shell.worker.step > configuration.start + 1:
                raise Violation(f"rolled back the living state of {voter}: {configuration}")

    def applied(
        self, shell: Any, step: int, digests: Any, before: Any, made_by: Any, sums: Any
    ) -> None:
        """Replicas are equal, one history is final, each micro-batch is in a sum once."""
        for values in sums.values():
            if [b for b, _ in values] != list(range(MICRO_BATCHES)):
                raise Violation(f"{shell.me}: step {step} has the micro-batches {values}")
        self.moved.add(shell.me)
        if self.replicas.setdefault((made_by, step), digests) != digests:
            raise Violation(f"{shell.me}: replicas differ at step {step}")
        generation = made_by.epoch.generation
        if self.finals.setdefault((generation, step - 1), before) != before:
            raise Violation(f"{shell.me}: two final histories at step {step - 1}")
        self.top[generation] = max(self.top.get(generation, 0), step)
