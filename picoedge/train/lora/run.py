"""A run of `picoedge finetune`: prepared from settings or from its folder, trained, written."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from picoedge.errors import PicoedgeError, UsageError
from picoedge.files import replace_file, writing
from picoedge.host.resources import available_bytes, give_back, rss_bytes
from picoedge.kernels.arrays import F32, I32
from picoedge.model.vjps import MicroBatch
from picoedge.progress import Progress, no_progress
from picoedge.store.adapters import write_adapter
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.adapter_matrices import as_stored
from picoedge.train.data.examples import Examples, ExampleSource, read_examples
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import AdapterLayout
from picoedge.train.lora.memory import LoraFit, LoraNeeds
from picoedge.train.lora.own_text import keep_text, kept_text, own_text
from picoedge.train.lora.rehearsal import RehearsedSource, rehearsal_bytes
from picoedge.train.lora.samples import answer_bytes, answers
from picoedge.train.lora.settings import (
    CONTEXT,
    EPOCHS,
    LEAST_STEPS,
    LoraSettings,
    read_lora_settings,
)
from picoedge.train.run.assembly import Arithmetic, Run
from picoedge.train.run.folder import RunFolder
from picoedge.train.run.loop import Outcome
from picoedge.train.run.settings import RunOptions
from picoedge.train.state.checkpoints import Saved
from picoedge.train.step.batch import Batch
from picoedge.train.step.trainer import StepSettings, Trainer, TrainingState

_SPARE = 0.9  # of the free memory


@dataclass(frozen=True)
class LoraOptions(RunOptions):
    """Options of a run of `picoedge finetune`.

    epochs: times through the examples; prompt: a question that is answered now and then.
    """

    epochs: float | None = None
    prompt: str = ""


@dataclass(eq=False)
class LoraRun(Run):
    """A run of `picoedge finetune`."""

    forward_share = 0.4

    options: LoraOptions
    folder: RunFolder
    settings: LoraSettings
    pack: Pack
    layout: AdapterLayout
    examples: Examples
    source: ExampleSource | RehearsedSource
    arithmetic: Arithmetic
    fit: LoraFit
    step_s: float = 0.0  # 0: not measured
    saved: Saved | None = None  # the checkpoint to go on from
    faults: Sequence[PicoedgeError] = ()  # of newer checkpoints, which are passed over
    state: TrainingState | None = None  # after training
    done: int = 0  # steps, before this session

    @property
    def epochs(self) -> float:
        """Times that each example is learned from."""
        return self.settings.steps * self.settings.batch / self.source.sequences_per_epoch

    @property
    def total_s(self) -> float:
        """About as long as the whole run takes."""
        evaluations = self.settings.steps / self.settings.evaluate_every
        return self.settings.steps * self.step_s + evaluations * self.evaluation_s

    def make_trainer(self, state: TrainingState, settings: StepSettings) -> Trainer:
        """See `Run`."""
        count = settings.micro_batches + bool(self.settings.rehearsal)
        sums = self.arithmetic.sums(self.layout.length, count)
        return Trainer(
            self.layout, state, settings, sums, self.arithmetic.make_kernels, self.fit.threads,
            recompute=True, kept_layers=self.fit.kept_layers, head_rows=self.fit.head_rows,
        )  # fmt: skip

    def sampler(self, trainer: Trainer) -> Callable[[int], str]:
        """Answers the question of the options; called with the step. Raises TextError."""
        return answers(
            self.options.prompt, self.pack, self.layout, self.arithmetic.make_kernels(),
            trainer.state.weights,
        )  # fmt: skip

    def write(self, outcome: Outcome) -> int:
        """Write the adapter of the lowest held-out loss, or the last; returns its step.

        Raises StorageError.
        """
        assert self.state is not None
        record, weights, step = outcome.record, self.state.weights, outcome.step
        if record.best is not None and record.best_step < outcome.step:
            best = self._best_weights(record.best_step)
            if best is not None:
                weights, step = best, record.best_step
        adapter = as_stored(self.layout.adapter(weights, base_name(self.pack)), self.pack.config)
        write_adapter(self.options.out, adapter)
        return step

    def _best_weights(self, step: int) -> F32 | None:
        """Weights that were kept of a step; None: it could not be kept, there are older ones."""
        best = self.folder.read_best()
        if best is None or best.facts.get("step") != step:
            return None
        found = best.arrays.get("weights")
        return None if found is None or len(found) != self.layout.length else found


def base_name(pack: Pack) -> str:
    """Name of an adapter's base model: the source that the pack was made from."""
    return str(pack.source.get("name") or pack.name)


def begin_lora(
    options: LoraOptions, settings: LoraSettings, pack: Pack, folder: RunFolder,
    progress: Progress | None,
) -> LoraRun:  # fmt: skip
    """Read the examples, choose what was not chosen, measure a step; write the run's config file.

    Raises UsageError, DataError, ModelError, MemoryBudgetError, StorageError.
    """
    layout = AdapterLayout.of(FrozenModel.of(pack), settings.shape)
    length = min(settings.length or CONTEXT, pack.config.max_position_embeddings)
    examples = _read(settings, pack, progress).fitted(length)
    settings = replace(settings, model=pack.identity, length=length)
    settings = settings.with_held_out(len(np.unique(examples.lines)))
    settings = settings.with_sequences(int(examples.lengths.max()), int(examples.lengths.sum()))
    run = _assembled(options, settings, pack, layout, examples, folder, progress)
    run.step_s = _measured(run, progress)
    run.settings = settings.with_steps(_steps(run), run.step_s)
    with writing(folder.path):
        replace_file(folder.config, run.settings.to_toml().encode())
    return run


def resume_lora(
    options: LoraOptions, given: LoraSettings, typed: Sequence[str], pack: Pack, folder: RunFolder,
    progress: Progress | None,
) -> LoraRun:  # fmt: skip
    """Go on with the run of a folder. `typed`: names of the `given` settings that were typed.

    Raises UsageError where one of them, or the model, is not the run's; ModelError for checkpoints
    of another run or none that is sound; and as `begin_lora`.
    """
    settings = read_lora_settings(folder.config)
    if settings.model != pack.identity:
        raise UsageError(
            f"the run of {folder.path} is of another model than {pack.path}",
            "resume with the model it was begun with, or begin anew with another --out",
        )
    settings.check_typed(given, typed)
    settings = replace(settings, data=given.data or settings.data)
    layout = AdapterLayout.of(FrozenModel.of(pack), settings.shape)
    examples = _read(settings, pack, progress).fitted(settings.length)
    run = _assembled(options, settings, pack, layout, examples, folder, progress, resumed=True)
    run.check_saved()
    run.step_s = _measured(run, progress)
    # Only now: what it holds is counted as a part of the run, and what was measured is given back.
    run.load_saved()
    return run


def _read(settings: LoraSettings, pack: Pack, progress: Progress | None) -> Examples:
    paths = [Path(path) for path in settings.data]
    found = read_examples(paths, pack.path, progress or no_progress)
    gc.collect()
    give_back()  # of the tokenizer
    return found


def _assembled(
    options: LoraOptions, settings: LoraSettings, pack: Pack, layout: AdapterLayout,
    examples: Examples, folder: RunFolder, progress: Progress | None, *, resumed: bool = False,
) -> LoraRun:  # fmt: skip
    train, held_out = examples.split(settings.held_out, settings.seed)
    plain = ExampleSource(
        train, held_out, settings.micro_batches, settings.micro_batch, settings.length,
        settings.seed,
    )  # fmt: skip
    arithmetic = Arithmetic.choose(options.kernels, fast=False)
    fit = _fit(options, settings, pack, layout)
    source: ExampleSource | RehearsedSource = plain
    if settings.rehearsal:
        texts = _own_text(options, settings, pack, folder, progress, resumed=resumed)
        source = _rehearsed(plain, texts, settings, pack, layout, arithmetic)
    return LoraRun(options, folder, settings, pack, layout, examples, source, arithmetic, fit)


def _own_text(
    options: LoraOptions, settings: LoraSettings, pack: Pack, folder: RunFolder,
    progress: Progress | None, *, resumed: bool,
) -> I32:  # fmt: skip
    """The text that the model is to keep; a run that is resumed goes on with its own."""
    shape = settings.micro_batch, settings.length
    if resumed:
        kept = kept_text(folder.own_text, shape, pack.config.vocab_size)
        if kept is not None:
            return kept
    tell = progress or no_progress
    texts = own_text(
        pack, options.kernels, options.threads, shape, settings.seed,
        lambda done, of: tell("the model writes what it is to keep", done, of),
    )  # fmt: skip
    keep_text(folder.own_text, texts)
    tell("", 0, 0)
    return texts


def _rehearsed(
    source: ExampleSource, texts: I32, settings: LoraSettings, pack: Pack, layout: AdapterLayout,
    arithmetic: Arithmetic,
) -> RehearsedSource:  # fmt: skip
    """The source, rehearsing these texts: what the model's head reads of them is kept."""
    nothing = np.zeros(layout.length, np.float32)  # adapters that add nothing
    work = MicroBatch(
        pack.config, arithmetic.make_kernels(), layout.bind(nothing, nothing),
        settings.micro_batch, settings.length, recompute=True, head_rows=1,
    )  # fmt: skip
    made = RehearsedSource.of(source, texts, work.hidden, settings.rehearsal)
    del work
    gc.collect()
    give_back()
    return made


def _fit(
    options: LoraOptions, settings: LoraSettings, pack: Pack, layout: AdapterLayout
) -> LoraFit:
    base = rss_bytes() + pack.nbytes  # its pages are mapped as they are used
    budget = options.memory_bytes or rss_bytes() + int(_SPARE * available_bytes())
    if settings.rehearsal:
        base += rehearsal_bytes(pack.config, settings.micro_batch * settings.length)
    if options.prompt:
        base += answer_bytes(pack.config)
    needs = LoraNeeds(
        pack.config, layout.length, settings.micro_batch * settings.length, settings.length, base,
        keeps_heads="o_proj" in settings.targets,
        keeps_product="down_proj" in settings.targets,
    )  # fmt: skip
    return needs.fit(min(options.threads, settings.micro_batches), budget)


def _measured(run: LoraRun, progress: Progress | None) -> float:
    """Seconds of a step, by one whose result is of no use."""
    if progress is not None:
        progress("measuring a step on this board", 0, 0)
    settings = run.settings
    rounds = -(-(settings.micro_batches + bool(settings.rehearsal)) // run.fit.threads)
    batch = run.source.batch(1)
    count = min(run.fit.threads, settings.micro_batches)
    some = Batch(
        batch.tokens[:count], batch.targets[:count],
        None if batch.documents is None else batch.documents[:count],
    )  # fmt: skip
    small = replace(settings.step_settings(), micro_batches=count)
    with closing(run.make_trainer(TrainingState.initial(run.layout, 0), small)) as trainer:
        trainer.step(some)  # touches all memory
        began = time.perf_counter()
        trainer.step(some)
        seconds = time.perf_counter() - began
    del trainer
    gc.collect()
    give_back()
    if progress is not None:
        progress("", 0, 0)
    return seconds * rounds


def _steps(run: LoraRun) -> int:
    """As many as was asked for in steps, epochs or minutes."""
    settings, options = run.settings, run.options
    if settings.steps:
        return settings.steps
    if options.minutes is not None:
        return max(1, int(60 * options.minutes / run.step_s))
    epochs = EPOCHS if options.epochs is None else options.epochs
    steps = int(np.ceil(epochs * run.source.sequences_per_epoch / settings.batch))
    return max(LEAST_STEPS if options.epochs is None else 1, steps)
