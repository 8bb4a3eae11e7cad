"""The settings of `picoedge train`: defaults by preset, and the file that repeats a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from picoedge.errors import UsageError
from picoedge.fields import Fields
from picoedge.files import parse_toml
from picoedge.kernels.sums import MICRO_BATCHES
from picoedge.suggest import did_you_mean
from picoedge.train.data.corpus import HELD_OUT_SHARE
from picoedge.train.presets import PRESETS
from picoedge.train.run.settings import RunSettings, check_length

TOKENS_A_PARAMETER = 20  # as many are enough for a model's size (Hoffmann et al. 2022)
_EPOCHS = 40  # passes over a small text, at most
MINUTES = 60.0  # of a run whose length nothing else says
_LEAST_STEPS = 100
EVALUATIONS, PATIENCE = 20, 5
_WARMUP, _SHORTEST_WARMUP, _LONGEST_WARMUP = 0.05, 10, 200  # a part of the steps, and steps
_SAVED_S = 300.0  # of work that a power cut may cost, about
_MAX_BYTES, _MAX_PATHS = 1 << 20, 4096


@dataclass(frozen=True)
class PresetDefaults:
    """Sequences of a step and of a micro-batch, tokens of a sequence, and the peak rate."""

    batch: int
    micro_batch: int
    length: int
    learning_rate: float


DEFAULTS = {
    "1m": PresetDefaults(16, 4, 256, 3e-3),
    "5m": PresetDefaults(32, 4, 256, 2e-3),
    "15m": PresetDefaults(32, 2, 512, 1e-3),
    "40m": PresetDefaults(64, 2, 512, 6e-4),
}
assert tuple(DEFAULTS) == PRESETS


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """All that decides what a run ends with, besides the text. 0: not chosen yet.

    `data` is the hash of the text's tokens and tokenizer, once there are some.
    """

    header = "# picoedge train --config THIS --out OTHER.pico repeats the run."
    undeciding = ("text", "save_every")
    flags: ClassVar[Mapping[str, str]] = {"batch": "batch-size"}
    betas = (0.9, 0.95)

    text: tuple[str, ...] = ()
    preset: str = "5m"
    steps: int = 0
    seed: int = 0
    batch: int = 0
    micro_batch: int = 0
    length: int = 0
    learning_rate: float = 0.0
    warmup: int = -1  # steps; -1: not chosen yet
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 0
    patience: int = PATIENCE
    held_out: float = HELD_OUT_SHARE  # of the text
    save_every: int = 0
    fast: bool = False
    data: str = ""

    def with_sizes(self) -> TrainSettings:
        """Sizes of the preset where none were chosen; the micro-batch is left."""
        usual = DEFAULTS[self.preset]
        return replace(
            self,
            batch=self.batch or usual.batch,
            length=self.length or usual.length,
            learning_rate=self.learning_rate or usual.learning_rate,
        )

    def with_steps(self, steps: int, step_s: float) -> TrainSettings:
        """With what follows from the number of steps, and from a step's seconds."""
        every = self.evaluate_every or max(1, steps // EVALUATIONS)
        often = max(1, round(_SAVED_S / step_s)) if step_s > 0 else every
        return replace(
            self,
            steps=steps,
            warmup=_warmup(steps) if self.warmup < 0 else self.warmup,
            evaluate_every=every,
            save_every=self.save_every or min(often, steps),
        )

    def without_steps(self) -> TrainSettings:
        """With all that followed from the number of steps to be chosen anew."""
        usual = replace(self, warmup=-1, evaluate_every=0).with_steps(self.steps, 0.0)
        return replace(
            self,
            steps=0,
            warmup=-1 if self.warmup == usual.warmup else self.warmup,
            evaluate_every=(
                0 if self.evaluate_every == usual.evaluate_every else self.evaluate_every
            ),
            save_every=0,
        )


def _warmup(steps: int) -> int:
    usual = min(_LONGEST_WARMUP, max(_SHORTEST_WARMUP, round(steps * _WARMUP)))
    return min(usual, steps // 4)


def read_settings(path: Path) -> TrainSettings:
    """Settings of a file; what it does not name is as `TrainSettings` has it.

    Raises UsageError that names the file and the setting.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{path} is too large for a config file", "choose another file")
        values = parse_toml(data.decode("utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{path}: {reason}", "check the path of --config") from error
    except ValueError as error:
        reason = "not utf-8 text" if isinstance(error, UnicodeError) else str(error)
        raise UsageError(f"{path}: {reason}", "correct or remove it") from error
    known = [field.name for field in fields(TrainSettings)]
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
            raise UsageError(f"{path}: no setting named {name[:64]!r}", hint)
    return _checked(Fields(values, path, UsageError, "correct it, or leave it out"))


_LIMITS: dict[str, tuple[float, float]] = {
    "steps": (0, 10_000_000), "seed": (0, (1 << 63) - 1), "batch": (0, 4096),
    "micro_batch": (0, 4096), "length": (0, 1 << 16), "warmup": (-1, 10_000_000),
    "evaluate_every": (0, 10_000_000), "patience": (0, 1_000_000), "save_every": (0, 10_000_000),
    "learning_rate": (0, 1), "weight_decay": (0, 10), "clip": (0, 1e6),
    "held_out": (0, 0.5),
}  # fmt: skip


def _checked(given: Fields) -> TrainSettings:
    chosen: dict[str, Any] = {}
    for name in given.values:
        usual = getattr(TrainSettings, name)
        if isinstance(usual, bool):
            chosen[name] = given.get(name, bool)
        elif isinstance(usual, int):
            least, most = _LIMITS[name]
            chosen[name] = given.integer(name, int(least), int(most))
        elif isinstance(usual, float):
            chosen[name] = given.number(name, *_LIMITS[name])
        elif name == "text":
            chosen[name] = given.texts(name, _MAX_PATHS)
        elif name == "preset":
            chosen[name] = given.one_of(name, PRESETS)
        else:
            chosen[name] = given.text(name, 128)
    return TrainSettings(**chosen)


def check_settings(settings: TrainSettings) -> None:
    """Raises UsageError where settings do not go together. They have their sizes."""
    check_length(settings.length)
    size, batch = settings.micro_batch, settings.batch
    if size and (batch % size or batch // size > MICRO_BATCHES):
        raise UsageError(
            f"a batch of {batch} sequences cannot be cut into micro-batches of {size}",
            f"at most {MICRO_BATCHES} equal ones are possible",
        )
    if settings.steps and settings.warmup > settings.steps:
        raise UsageError(
            f"a warm-up of {settings.warmup} steps is longer than the run of {settings.steps}",
            "choose a shorter one",
        )


def default_steps(parameters: int, tokens: int, epoch: int) -> tuple[int, str]:
    """Steps of a run whose length was not chosen, and why so many, for people.

    `tokens`: of a step; `epoch`: of one pass over the text.
    """
    enough = math.ceil(TOKENS_A_PARAMETER * parameters / tokens)
    passes = math.ceil(_EPOCHS * epoch / tokens)
    if passes < enough:
        return max(_LEAST_STEPS, passes), f"{_EPOCHS} passes over the text"
    return max(_LEAST_STEPS, enough), f"{TOKENS_A_PARAMETER} tokens a parameter"


def micro_batch_sizes(batch: int, most: int) -> list[int]:
    """Sequences that a micro-batch may have, the largest first."""
    return [
        size
        for size in range(min(most, batch), 0, -1)
        if batch % size == 0 and batch // size <= MICRO_BATCHES
    ]
