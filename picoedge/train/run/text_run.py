"""A run of `picoedge train`: prepared from its settings or from its folder, trained, packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from picoedge.config import ModelConfig
from picoedge.errors import PicoedgeError, UsageError
from picoedge.fields import Fields
from picoedge.files import replace_file, writing
from picoedge.host.resources import available_bytes, rss_bytes
from picoedge.progress import Progress, one_stage
from picoedge.store.pack.packer import pack_source
from picoedge.train.data.windows import CorpusSource
from picoedge.train.presets import preset
from picoedge.train.run.assembly import Arithmetic, Run, measure_step
from picoedge.train.run.folder import RunFolder
from picoedge.train.run.loop import Outcome, RunRecord
from picoedge.train.run.memory import TrainingFit, TrainingNeeds, fit_memory
from picoedge.train.run.samples import LONGEST_SAMPLE, TextSampler
from picoedge.train.run.settings import RunOptions
from picoedge.train.run.source import TrainedSource
from picoedge.train.run.text_data import TextData
from picoedge.train.run.text_settings import (
    DEFAULTS,
    EVALUATIONS,
    MINUTES,
    TrainSettings,
    check_settings,
    default_steps,
    micro_batch_sizes,
    read_settings,
)
from picoedge.train.state.checkpoints import KEPT_CHECKPOINTS, Saved, data_start, write_saved
from picoedge.train.state.layout import Layout
from picoedge.train.step.trainer import StepSettings, Trainer, TrainingState

_SPARE = 0.9  # of the free memory
_LAST = "last.safetensors"


@dataclass(frozen=True)
class TextOptions(RunOptions):
    """Options of a run of `picoedge train`."""

    prompt: str = ""


@dataclass(eq=False)
class TextRun(Run):
    """A run of `picoedge train`."""

    forward_share = 1 / 3

    options: TextOptions
    folder: RunFolder
    settings: TrainSettings
    data: TextData
    source: CorpusSource
    layout: Layout
    arithmetic: Arithmetic
    fit: TrainingFit
    step_s: float = 0.0  # 0: not measured
    why: str = ""  # it has so many steps
    saved: Saved | None = None  # the checkpoint to go on from
    state: TrainingState | None = None  # after training
    done: int = 0  # steps, before this session
    faults: Sequence[PicoedgeError] = ()  # of newer checkpoints, which are passed over

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.layout.config

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        record = {} if self.saved is None else self.saved.facts.get("record", {})
        return bool(record.get("ended")) or self.done >= self.settings.steps

    @property
    def total_s(self) -> float:
        """About as long as the whole run takes."""
        return self.settings.steps * self.step_s + EVALUATIONS * self.evaluation_s

    @property
    def disk_bytes(self) -> int:
        """Bytes of the disk that checkpoints and the pack take, at the most."""
        weights = 4 * self.layout.length
        return (KEPT_CHECKPOINTS + 1) * 3 * weights + 2 * weights + weights

    def make_trainer(self, state: TrainingState, settings: StepSettings) -> Trainer:
        """See `Run`."""
        return self.arithmetic.trainer(self.layout, state, settings, self.fit)

    def sampler(self, trainer: Trainer) -> Callable[[int], str]:
        """Writes a text with the weights as they are, its seed the step."""
        weights = trainer.state.weights  # as gradients too, which a forward pass leaves alone
        sampler = TextSampler(
            self.config, self.arithmetic.make_kernels(), self.layout.bind(weights, weights),
            self.data.encode(self.options.prompt)[: LONGEST_SAMPLE // 2], self.data.ends,
        )  # fmt: skip
        return lambda step: self.data.decode(sampler.sample(self.settings.seed + step))


def begin_run(
    options: TextOptions, settings: TrainSettings, folder: RunFolder, progress: Progress | None
) -> TextRun:
    """Read the text, choose what was not chosen, measure a step; writes the run's config file.

    Raises UsageError, MemoryBudgetError, TextError, StorageError, and leaves no run behind.
    """
    settings = settings.with_sizes()
    check_settings(settings)
    arithmetic = Arithmetic.choose(options.kernels, fast=settings.fast)
    _fit(options, settings, preset(settings.preset, settings.length))  # before the text is read
    data = TextData.prepare(settings, folder.path, options.threads, progress)
    data.check(settings)
    config = model_config(settings, data)
    fit = _fit(options, settings, config)
    settings = replace(settings, micro_batch=fit.micro_batch, data=data.hash)
    layout = Layout.of(config)
    step_s = _measured(settings, layout, arithmetic, fit, progress)
    run = TextRun(
        options, folder, settings, data, data.source(settings), layout, arithmetic, fit, step_s
    )
    with ExitStack() as failing:
        failing.callback(run.source.close)
        steps, run.why = _steps(run)
        run.settings = settings.with_steps(steps, step_s)
        check_settings(run.settings)
        with writing(folder.path):
            replace_file(folder.config, run.settings.to_toml().encode())
        failing.pop_all()
    return run


def resume_run(
    options: TextOptions, given: TrainSettings, typed: Sequence[str], folder: RunFolder,
    progress: Progress | None,
) -> TextRun:  # fmt: skip
    """Go on with the run of a folder. `typed`: names of the `given` settings that were typed.

    Raises UsageError where one of them is not the run's, ModelError for checkpoints of another run
    or none that is sound, and as `begin_run`.
    """
    if not folder.config.exists():
        raise UsageError(f"there is no run to resume in {folder.path}", "leave out --resume")
    settings = read_settings(folder.config)
    if not settings.steps or not settings.micro_batch or settings.warmup < 0:
        raise UsageError(f"{folder.config} is not of a run that has begun", "begin it anew")
    settings.check_typed(given, typed)
    check_settings(settings)
    arithmetic = Arithmetic.choose(options.kernels, fast=settings.fast)
    data = TextData.open(folder.path)
    data.check(settings)
    config = model_config(settings, data)
    fit = _fit(options, settings, config)
    source, layout = data.source(settings), Layout.of(config)
    run = TextRun(options, folder, settings, data, source, layout, arithmetic, fit)
    with ExitStack() as failing:
        failing.callback(run.source.close)
        run.check_saved()
        if max(folder.checkpoints.steps(), default=0) < settings.steps:
            run.step_s = _measured(settings, layout, arithmetic, fit, progress)
        # Only now: what it holds is counted as a part of the run, and what was measured is gone.
        run.load_saved()
        failing.pop_all()
    return run


def _measured(
    settings: TrainSettings, layout: Layout, arithmetic: Arithmetic, fit: TrainingFit,
    progress: Progress | None,
) -> float:  # fmt: skip
    """Seconds of a step on this board."""
    if progress is not None:
        progress("measuring a step on this board", 0, 0)
    probe = replace(settings, steps=1, warmup=0).step_settings()
    step_s = measure_step(arithmetic, layout, probe, fit)
    if progress is not None:
        progress("", 0, 0)
    return step_s


def model_config(settings: TrainSettings, data: TextData) -> ModelConfig:
    """The preset with the vocabulary that the text gave."""
    return replace(preset(settings.preset, settings.length), vocab_size=data.corpus.vocab_size)


def _fit(options: RunOptions, settings: TrainSettings, config: ModelConfig) -> TrainingFit:
    """The run's fit to memory; where the micro-batch is chosen already, with that."""
    usual = min(DEFAULTS[settings.preset].micro_batch, settings.batch)
    sizes = [settings.micro_batch] if settings.micro_batch else []
    sizes = sizes or micro_batch_sizes(settings.batch, usual)
    if not sizes:
        raise UsageError(
            f"a batch of {settings.batch} sequences cannot be cut into equal micro-batches",
            "choose a --batch-size that is a power of two",
        )
    base = rss_bytes()
    budget = options.memory_bytes or base + int(_SPARE * available_bytes())
    trained = Layout.of(config).length
    needs = TrainingNeeds(config, trained, settings.length, base, settings.fast)
    return fit_memory(needs, sizes, settings.batch, options.threads, budget)


def _steps(run: TextRun) -> tuple[int, str]:
    """The number of steps, and the reason of it."""
    settings, minutes = run.settings, run.options.minutes
    if settings.steps:
        return settings.steps, "as asked for"
    work_s = 60 * (minutes or MINUTES) - EVALUATIONS * run.evaluation_s
    in_time = max(1, int(work_s / run.step_s))
    if minutes:
        return in_time, f"{minutes:g} minutes"
    epoch = run.source.tokens_per_epoch
    usual, why = default_steps(run.layout.parameters, settings.tokens, epoch)
    return (usual, why) if usual <= in_time else (in_time, f"{MINUTES:g} minutes")


# -- the pack --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """The pack that was made: of which step's weights, and a note for people."""

    path: Path
    step: int
    held_out: float | None
    note: str


def make_pack(run: TextRun, outcome: Outcome, progress: Progress | None = None) -> Packed:
    """Pack the weights of the lowest held-out loss, or the last. Raises StorageError."""
    record, folder = outcome.record, run.folder
    path, step, note = _chosen(run, outcome, record)
    source = TrainedSource(path, data_start(path), run.layout, run.options.out.name)
    told = one_stage(progress, f"packing {run.options.out.name}")
    pack_source(source, run.options.out, bits=32, write_text=run.data.write_text, progress=told)
    (folder.path / _LAST).unlink(missing_ok=True)
    held_out = record.best if step == record.best_step else record.held_out
    return Packed(run.options.out, step, held_out, note)


def _chosen(run: TextRun, outcome: Outcome, record: RunRecord) -> tuple[Path, int, str]:
    """The file of the weights to pack, their step, and why these."""
    folder, missing = run.folder, ""
    if record.best is not None and record.best_step < outcome.step:
        best = folder.read_best()
        step = -1 if best is None else Fields(dict(best.facts), folder.best).integer("step")
        if step == record.best_step:
            return folder.best, step, f"the best by held-out loss, of step {step}"
        missing = f" (those of step {record.best_step} were better, but could not be kept)"
    note = f"the last, of step {outcome.step}{missing}"
    if record.best_step == outcome.step and record.best is not None:
        note = f"the last, of step {outcome.step}, which are the best by held-out loss too"
    path = folder.checkpoints.path(outcome.step)
    if not outcome.is_saved:
        assert run.state is not None
        path = folder.path / _LAST
        write_saved(path, Saved({"weights": run.state.weights}, {"step": outcome.step}))
    return path, outcome.step, note
