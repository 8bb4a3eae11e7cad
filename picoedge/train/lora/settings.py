"""The settings of `picoedge finetune`: defaults, and the file from which a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from picoedge.errors import ModelError, StorageError, UsageError
from picoedge.fields import Fields
from picoedge.files import parse_toml
from picoedge.kernels.sums import MICRO_BATCHES
from picoedge.store.adapter_shape import MAX_RANK
from picoedge.store.adapters import MAX_ALPHA
from picoedge.train.lora.layout import TARGETS, LoraShape
from picoedge.train.run.settings import LENGTH_STEP, RunSettings

CONTEXT = 512  # tokens of a sequence, at most
EPOCHS = 6.0
LEAST_STEPS = 60  # of a run that was given no length: a small file is gone through more often
_STEPS_AN_EPOCH = 8  # at least, so that a small file is not learned in too few steps
_MOST_SEQUENCES, _MICRO_BATCH_TOKENS = 12, 512
_UNITS = 3  # micro-batches of a step, at least: with one of rehearsal, one for each of four cores
MAX_REHEARSAL = 1000.0
_EVALUATIONS = 20
_HELD_OUT, _MANY = 0.05, 200  # a share, and of how many examples
_WARMUP = 0.05  # a part of the steps
_SAVED_S = 120.0  # of work that a power cut may cost, about
_MAX_BYTES = 1 << 20
_HINT = "begin anew with another --out"


@dataclass(frozen=True)
class LoraSettings(RunSettings):
    """All that decides what a run ends with, besides model and data. 0: not chosen yet.

    `model` is the pack's identity; `batch` and `micro_batch` are in sequences of `length` tokens.
    """

    header = "# picoedge finetune MODEL --config THIS --out OTHER repeats the run."
    undeciding = ("data", "save_every")
    flags: ClassVar[Mapping[str, str]] = {"learning_rate": "rate", "length": "context"}
    separator = ","
    betas = (0.9, 0.999)

    model: str = ""
    data: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    steps: int = 0
    seed: int = 0
    length: int = 0
    batch: int = 0
    micro_batch: int = 0
    learning_rate: float = 4e-3
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    rehearsal: float = 5.0  # weight of staying as it was on text of its own; 0: none
    held_out: float = -1.0  # share of the examples; -1: not chosen yet
    evaluate_every: int = 1
    save_every: int = 1
    patience: int = 0

    @property
    def shape(self) -> LoraShape:
        """Raises UsageError for a rank, alpha or targets that are not possible."""
        return LoraShape(self.rank, self.alpha, self.targets)

    def with_held_out(self, examples: int) -> LoraSettings:
        """With the share that is held out: of few examples none, each is wanted."""
        if self.held_out >= 0:
            return self
        return replace(self, held_out=_HELD_OUT if examples >= _MANY else 0.0)

    def with_sequences(self, longest: int, tokens: int) -> LoraSettings:
        """With the sizes for examples of `tokens` tokens together, the longest of `longest`.

        Sequences are as short as the longest example allows, so that a small file has several
        steps an epoch. A step has three micro-batches or more, and one of rehearsal: so each of
        four cores has one, and they are the same on a board with fewer.
        """
        most = self.length or CONTEXT
        length = min(most, -(-max(longest, 128) // LENGTH_STEP) * LENGTH_STEP)
        sequences = max(1, tokens // length)
        most_sums = MICRO_BATCHES - bool(self.rehearsal)
        usual = max(_UNITS, min(_MOST_SEQUENCES, sequences // _STEPS_AN_EPOCH))
        batch = self.batch or usual // _UNITS * _UNITS
        size = max(1, min(_MICRO_BATCH_TOKENS // length, batch // min(batch, _UNITS)))
        size = next(
            each
            for each in range(size, batch + 1)
            if batch % each == 0 and batch // each <= most_sums
        )
        return replace(self, length=length, batch=batch, micro_batch=size)

    def with_steps(self, steps: int, step_s: float) -> LoraSettings:
        """With what follows from the number of steps, and from a step's seconds."""
        often = max(1, round(_SAVED_S / step_s)) if step_s > 0 else steps
        return replace(
            self,
            steps=steps,
            warmup=min(steps // 2, max(1, round(_WARMUP * steps))),
            evaluate_every=max(1, steps // _EVALUATIONS),
            save_every=max(1, min(often, steps)),
        )


_INTEGERS = {
    "rank": (1, MAX_RANK), "steps": (1, 10_000_000), "seed": (0, (1 << 63) - 1),
    "length": (16, 1 << 16), "batch": (1, 4096), "micro_batch": (1, 4096),
    "warmup": (0, 10_000_000), "evaluate_every": (1, 10_000_000), "save_every": (1, 10_000_000),
    "patience": (0, 1_000_000),
}  # fmt: skip
_NUMBERS = {
    "alpha": (0.0, MAX_ALPHA), "learning_rate": (0.0, 1.0), "weight_decay": (0.0, 10.0),
    "clip": (0.0, 1e6), "rehearsal": (0.0, MAX_REHEARSAL), "held_out": (0.0, 0.9),
}  # fmt: skip


def read_lora_settings(path: Path, hint: str = _HINT) -> LoraSettings:
    """Settings of a run that was begun. Raises ModelError, StorageError, with this hint."""
    try:
        with path.open("rb") as file:
            values = parse_toml(file.read(_MAX_BYTES).decode("utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{path}: {reason}", hint) from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}", hint) from error
    given = Fields(values, path, ModelError, hint)
    chosen: dict[str, Any] = {name: given.integer(name, *span) for name, span in _INTEGERS.items()}
    chosen |= {name: given.number(name, *span) for name, span in _NUMBERS.items()}
    chosen |= {"model": given.text("model", 128), "data": given.texts("data", 4096)}
    chosen["targets"] = given.texts("targets", len(TARGETS))
    settings = LoraSettings(**chosen)
    if settings.length % LENGTH_STEP or settings.batch % settings.micro_batch:
        raise ModelError(f"{path} is damaged: its sizes do not go together", hint)
    return settings


def read_targets(text: str) -> tuple[str, ...]:
    """Targets by name, with commas between: `q,v`, `q_proj,v_proj`, `attention`, `all`.

    Raises UsageError for none, or one that is not known.
    """
    groups = {"all": TARGETS, "attention": TARGETS[:4], "ffn": TARGETS[4:]}
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        short = {name.removesuffix("_proj"): (name,) for name in TARGETS}
        names = groups.get(word) or short.get(word) or (word,)
        chosen |= set(names)
    unknown = [name for name in sorted(chosen) if name not in TARGETS]
    if unknown or not chosen:
        what = f"no target named {unknown[0][:64]!r}" if unknown else "no targets are named"
        raise UsageError(what, f"known: all, attention, ffn, {', '.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in chosen)
