"""A run of `picoedge finetune`: prepared from settings or from its folder, trained, written."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.errors import ModelError, PicoedgeError, UsageError
from picoedge.fields import Fields
from picoedge.files import replace_file, writing
from picoedge.host.resources import available_bytes, give_back, rss_bytes
from picoedge.kernels.arrays import F32
from picoedge.progress import Progress, no_progress
from picoedge.store.adapters import write_adapter
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.adapter_matrices import as_stored
from picoedge.train.data.examples import Examples, ExampleSource, read_examples
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import AdapterLayout
from picoedge.train.lora.memory import LoraFit, LoraNeeds
from picoedge.train.lora.settings import CONTEXT, EPOCHS, LoraSettings, read_lora_settings
from picoedge.train.run.assembly import Arithmetic, check_facts, hash_of_run, run_facts
from picoedge.train.run.folder import RunFolder
from picoedge.train.run.loop import Outcome, RunWatcher, restored, run_loop
from picoedge.train.run.settings import RunOptions
from picoedge.train.state.checkpoints import Saved
from picoedge.train.step.batch import Batch
from picoedge.train.step.trainer import StepSettings, Trainer, TrainingState

_FORWARD = 0.4  # of a step's work
_SPARE = 0.9  # of the free memory


@dataclass(frozen=True)
class LoraOptions(RunOptions):
    """Options of a run of `picoedge finetune`; `epochs`: times through the examples."""

    epochs: float | None = None


@dataclass(eq=False)
class LoraRun:
    """A run that is ready to train."""

    options: LoraOptions
    folder: RunFolder
    settings: LoraSettings
    pack: Pack
    layout: AdapterLayout
    examples: Examples
    source: ExampleSource
    arithmetic: Arithmetic
    fit: LoraFit
    step_s: float = 0.0  # 0: not measured
    saved: Saved | None = None  # the checkpoint to go on from
    faults: Sequence[PicoedgeError] = ()  # of newer checkpoints, which are passed over
    weights: F32 | None = None  # after training

    @property
    def epochs(self) -> float:
        """Times that each example is learned from."""
        return self.settings.steps * self.settings.batch / self.source.sequences_per_epoch

    @property
    def total_s(self) -> float:
        """About as long as the whole run takes."""
        held_out = sum(batch.tokens.size for batch in self.source.held_out)
        evaluations = self.settings.steps / self.settings.evaluate_every * bool(held_out)
        share = held_out / self.settings.tokens * _FORWARD
        return (self.settings.steps + evaluations * share) * self.step_s

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides its bits."""
        return run_facts(
            self.arithmetic, self.pack.config.to_json(), self.settings.deciding(),
            self.source.describe(),
        )  # fmt: skip

    @property
    def done(self) -> int:
        """Steps, before this session."""
        return 0 if self.saved is None else int(self.saved.facts["step"])

    def train(
        self, watchers: Callable[[Trainer], Sequence[RunWatcher]], stop: Callable[[], bool]
    ) -> Outcome:
        """Train until the end, or until `stop` says so. Raises as `run_loop`."""
        facts, record = self.facts, None
        if self.saved is None:
            state = TrainingState.initial(self.layout, self.settings.seed)
        else:
            where = self.folder.checkpoints.folder
            check_facts(Fields(dict(self.saved.facts), where, ModelError), facts)
            state, record = restored(self.saved, self.layout.length, where)
            self.saved = None  # its arrays are the state's
        self.weights, settings = state.weights, self.settings.step_settings()
        with closing(make_trainer(self, state, settings)) as trainer:
            return run_loop(
                trainer, self.source, self.settings.plan(), self.folder, watchers(trainer),
                stop, record=record, facts={"run": facts, "hash": hash_of_run(facts)},
            )  # fmt: skip

    def write(self, outcome: Outcome) -> int:
        """Write the adapter of the lowest held-out loss, or the last; returns its step.

        Raises StorageError.
        """
        record, weights, step = outcome.record, self.weights, outcome.step
        if record.best is not None and record.best_step < outcome.step:
            best = self.folder.read_best()
            found = None if best is None else best.arrays.get("weights")
            if best is not None and found is not None and len(found) == self.layout.length:
                weights, step = found, record.best_step
        assert weights is not None
        adapter = as_stored(self.layout.adapter(weights, base_name(self.pack)), self.pack.config)
        write_adapter(self.options.out, adapter)
        return step


def base_name(pack: Pack) -> str:
    """What an adapter says it is for: the source that the pack was made from."""
    return str(pack.source.get("name") or pack.name)


def make_trainer(run: LoraRun, state: TrainingState, settings: StepSettings) -> Trainer:
    """Close it after use."""
    arithmetic, fit = run.arithmetic, run.fit
    sums = arithmetic.sums(run.layout.length, settings.micro_batches)
    return Trainer(
        run.layout, state, settings, sums, arithmetic.make_kernels, fit.threads,
        recompute=True, kept_layers=fit.kept_layers, head_rows=fit.head_rows,
    )  # fmt: skip


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
    run = _assembled(options, settings, pack, layout, examples, folder)
    run.step_s = _measured(run, progress)
    run.settings = settings.with_steps(_steps(run), run.step_s)
    with writing(folder.path):
        replace_file(folder.config, run.settings.to_toml().encode())
    return run


def resume_lora(
    options: LoraOptions, given: LoraSettings, typed: Sequence[str], pack: Pack, folder: RunFolder,
    progress: Progress | None,
) -> LoraRun:  # fmt: skip
    """Go on with the run of a folder. `typed` names those of the `given` settings that were typed.

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
    found = folder.checkpoints.newest()
    layout = AdapterLayout.of(FrozenModel.of(pack), settings.shape)
    examples = _read(settings, pack, progress).fitted(settings.length)
    run = _assembled(options, settings, pack, layout, examples, folder)
    run.saved = None if found is None else found[1]
    run.faults = [] if found is None else found[2]
    run.step_s = _measured(run, progress)
    return run


def _read(settings: LoraSettings, pack: Pack, progress: Progress | None) -> Examples:
    paths = [Path(path) for path in settings.data]
    found = read_examples(paths, pack.path, progress or no_progress)
    gc.collect()
    give_back()  # of the tokenizer
    return found


def _assembled(
    options: LoraOptions, settings: LoraSettings, pack: Pack, layout: AdapterLayout,
    examples: Examples, folder: RunFolder,
) -> LoraRun:  # fmt: skip
    train, held_out = examples.split(settings.held_out, settings.seed)
    source = ExampleSource(
        train, held_out, settings.micro_batches, settings.micro_batch, settings.length,
        settings.seed,
    )  # fmt: skip
    arithmetic = Arithmetic.choose(options.kernels, fast=False)
    fit = _fit(options, settings, pack, layout)
    return LoraRun(options, folder, settings, pack, layout, examples, source, arithmetic, fit)


def _fit(
    options: LoraOptions, settings: LoraSettings, pack: Pack, layout: AdapterLayout
) -> LoraFit:
    base = rss_bytes() + pack.nbytes  # its pages are mapped as they are used
    budget = options.memory_bytes or rss_bytes() + int(_SPARE * available_bytes())
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
    rounds = -(-settings.micro_batches // run.fit.threads)
    batch = run.source.batch(1)
    count = min(run.fit.threads, settings.micro_batches)
    some = Batch(
        batch.tokens[:count], batch.targets[:count],
        None if batch.documents is None else batch.documents[:count],
    )  # fmt: skip
    small = replace(settings.step_settings(), micro_batches=count)
    with closing(make_trainer(run, TrainingState.initial(run.layout, 0), small)) as trainer:
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
    sequences: float = np.ceil(epochs * run.source.sequences_per_epoch / settings.batch)
    return max(1, int(sequences))
