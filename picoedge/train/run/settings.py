"""Settings that every run of training has, whatever is trained, and their TOML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from picoedge.errors import UsageError
from picoedge.train.run.loop import RunPlan
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import StepSettings

LENGTH_STEP = 16  # tokens: a block of the products' order


@dataclass(frozen=True)
class RunOptions:
    """Means of a run: nothing that decides its result, but the minutes."""

    out: Path
    threads: int
    memory_bytes: int | None = None
    kernels: str | None = None
    minutes: float | None = None


class RunSettings:
    """Base of the frozen dataclasses of settings, which have all of these fields.

    A subclass declares them itself: their order there is that of the lines of its file.
    """

    header: ClassVar[str]  # the first line of the file
    undeciding: ClassVar[tuple[str, ...]]  # settings that decide no bit of the result
    flags: ClassVar[Mapping[str, str]] = {}  # of settings whose flag has another name
    separator: ClassVar[str] = " "  # between several values in a message
    betas: ClassVar[tuple[float, float]]  # AdamW's

    steps: int
    seed: int
    length: int
    batch: int
    micro_batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    clip: float
    evaluate_every: int
    save_every: int
    patience: int

    @property
    def micro_batches(self) -> int:
        """Of a step."""
        return self.batch // self.micro_batch

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    @classmethod
    def flag(cls, name: str) -> str:
        """The flag of a setting: `--learning-rate`."""
        return f"--{cls.flags.get(name, name.replace('_', '-'))}"

    def step_settings(self) -> StepSettings:
        """Settings of the trainer."""
        schedule = Schedule(self.learning_rate, self.warmup, max(1, self.steps))
        return StepSettings(
            self.micro_batches, self.micro_batch, self.length, schedule,
            clip=self.clip, betas=self.betas, weight_decay=self.weight_decay,
        )  # fmt: skip

    def plan(self) -> RunPlan:
        """Settings of the loop."""
        return RunPlan(self.steps, self.evaluate_every, self.save_every, self.patience)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the bits of the result, as in JSON; a run's never change."""
        return {name: value for name, value in vars(self).items() if name not in self.undeciding}

    def to_toml(self) -> str:
        """The text of the file that gives these settings again."""
        lines = [self.header, *(f"{name} = {_toml(value)}" for name, value in vars(self).items())]
        return "\n".join(lines) + "\n"

    def check_typed(self, given: RunSettings, typed: Sequence[str]) -> None:
        """Raises UsageError where a setting that was typed, by name, is not that of this run."""
        for name in typed:
            asked, has = getattr(given, name), getattr(self, name)
            if asked == has:
                continue
            flag = self.flag(name)
            if isinstance(asked, bool):
                what = f"the run was begun without {flag}"
            else:
                what = f"{flag} {self._shown(asked)} is not the run's, which has {self._shown(has)}"
            raise UsageError(what, f"leave out {flag}, or begin anew with another --out")

    def _shown(self, value: Any) -> str:
        return self.separator.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)  # 0.001, 1e-05: TOML reads both
    return json.dumps(value)  # its texts are TOML's basic strings


def check_length(length: int) -> None:
    """Raises UsageError for tokens of a sequence that are no multiple of `LENGTH_STEP`."""
    if length % LENGTH_STEP:
        raise UsageError(
            f"sequences of {length} tokens are not possible", f"a multiple of {LENGTH_STEP} is"
        )
