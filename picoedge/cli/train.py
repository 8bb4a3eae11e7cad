"""`picoedge train`: a small model from one's own text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli.options import (
    json_option,
    kernels_option,
    memory_option,
    threads_option,
)
from picoedge.cli.output import print_result, showing_progress, warn
from picoedge.cli.signals import StopRequest
from picoedge.errors import UsageError
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.progress import Progress
    from picoedge.train.run.folder import RunFolder
    from picoedge.train.run.loop import Outcome
    from picoedge.train.run.settings import TrainSettings
    from picoedge.train.run.text_run import Packed, RunOptions, TextRun

_PRESETS = ("1m", "5m", "15m", "40m")
_EXIT_SIGNAL = 128
# parameter of the command -> setting of the run
_SETTINGS = {
    "preset": "preset", "steps": "steps", "train_seed": "seed", "batch_size": "batch",
    "micro_batch": "micro_batch", "length": "length", "learning_rate": "learning_rate",
    "warmup": "warmup", "weight_decay": "weight_decay", "clip": "clip",
    "evaluate_every": "evaluate_every", "patience": "patience", "save_every": "save_every",
    "held_out": "held_out",
}  # fmt: skip


@click.command("train")
@click.argument("more", nargs=-1, metavar="[FILE]...")
@click.option(
    "--text",
    multiple=True,
    metavar="FILE",
    help="Text to learn from: .txt, .md, .jsonl files, or folders of them; several may follow.",
)
@click.option("--out", metavar="NAME.pico", required=True, help="The pack that is made.")
@click.option("--preset", type=click.Choice(_PRESETS), help="Size in parameters [default: 5m].")
@click.option(
    "--steps",
    type=click.IntRange(1, 10_000_000),
    help="Steps [default: 20 tokens a parameter, at most 40 passes over the text or an hour].",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0.01, 1e6),
    help="In place of --steps: as many as this board does in this time.",
)
@click.option("--resume", is_flag=True, help="Go on with the run of NAME.pico, to the same bits.")
@click.option(
    "--config",
    metavar="FILE",
    help="Settings of a file, as each run writes one: NAME.run/config.toml. Flags go before it.",
)
@memory_option
@threads_option
@click.option(
    "--seed",
    "train_seed",
    type=click.IntRange(0, (1 << 63) - 1),
    help="Of the first weights and the order of the text [default: 0].",
)
@click.option(
    "--fast",
    is_flag=True,
    default=None,
    help="Use BLAS: quicker, and the bits depend on the board.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Sequences of a step [default: 16 to 64, by preset].",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(1, 4096),
    help="Sequences that a thread works on at once [default: 2 or 4; fewer if memory is short].",
)
@click.option(
    "--length",
    type=click.IntRange(16, 1 << 16),
    help="Tokens of a sequence, and of the model's context [default: 256 or 512, by preset].",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="At its peak [default: 0.003 to 0.0006, by preset].",
)
@click.option(
    "--warmup",
    type=click.IntRange(0, 10_000_000),
    help="Steps until the peak [default: a twentieth, at most 200].",
)
@click.option("--weight-decay", type=click.FloatRange(0, 10), help="Of matrices [default: 0.1].")
@click.option(
    "--clip",
    type=click.FloatRange(0, 1e6),
    help="The largest norm of a gradient; 0: any [default: 1].",
)
@click.option(
    "--evaluate-every",
    type=click.IntRange(1, 10_000_000),
    help="Steps from one held-out loss to the next [default: a twentieth of all].",
)
@click.option(
    "--patience",
    type=click.IntRange(0, 1_000_000),
    help="End after so many evaluations without a lower held-out loss; 0: never [default: 5].",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.5),
    help="The share of the text to measure with, and not to train on [default: 0.05].",
)
@click.option(
    "--save-every",
    type=click.IntRange(1, 10_000_000),
    help="Steps from one checkpoint to the next [default: about 5 minutes].",
)
@click.option("--prompt", default="", help="How samples of text begin.")
@click.option("--plot", metavar="FILE", help="Draw the curve as .png or .svg (needs matplotlib).")
@kernels_option
@json_option
def train(more: tuple[str, ...], **values: Any) -> int:
    """Train a small language model on your own text, from nothing.

    The result is a pack for `chat`, `generate` and `pack --bits 4`. Models this small write in the
    manner of their text; they know next to nothing. Ctrl-C saves: --resume goes on, and ends with
    the very weights of a run that was never stopped.

    \b
    picoedge train --text tales/ --out tales.pico --preset 1m --minutes 20
    picoedge chat tales.pico -p "Once upon a time"
    """  # fmt: skip
    from picoedge.train.run.folder import RunFolder, folder_of, has_run, refuse_unwritable

    values["text"] = (*values["text"], *more)
    out, plot = _out(values["out"]), values["plot"]
    if plot is not None:
        from picoedge.train.run.plot import check_plot

        check_plot(Path(plot))
    given, typed = _given(values)
    path = folder_of(out)
    if not values["resume"]:
        _check_new(given, values)
        refuse_unwritable(out)
        if has_run(path):
            raise UsageError(
                f"{path} holds a run already",
                f"--resume goes on with it; another --out, or rm -r {path}, begins anew",
            )
    elif not path.is_dir():
        raise UsageError(f"there is no run to resume: no {path}", "leave out --resume")
    folder = RunFolder(path)
    try:
        return _run(folder, _options(out, values), given, typed, values)
    finally:
        folder.close()


def _out(name: str) -> Path:
    if not name.endswith(".pico") or name.endswith("/.pico") or name == ".pico":
        raise UsageError(f"--out {name}: the name of a pack ends in .pico", f"like {name}.pico")
    return Path(name)


def _given(values: Mapping[str, Any]) -> tuple[TrainSettings, list[str]]:
    """Settings of the flags over those of --config, and which of them were typed."""
    from picoedge.train.run.settings import TrainSettings, read_settings

    config = values["config"]
    if config is not None and values["resume"]:
        raise UsageError("--config and --resume are both given", "--resume has its run's settings")
    settings = TrainSettings() if config is None else read_settings(Path(config))
    chosen = {
        setting: values[parameter]
        for parameter, setting in _SETTINGS.items()
        if values[parameter] is not None
    }
    if values["fast"]:
        chosen["fast"] = True
    if values["text"]:
        chosen["text"] = tuple(os.path.abspath(path) for path in values["text"])
    if config is not None and (values["text"] or values["preset"] or values["length"]):
        chosen["data"] = ""  # it is another text, or cut otherwise
    return replace(settings, **chosen), list(chosen)


def _check_new(given: TrainSettings, values: Mapping[str, Any]) -> None:
    if not given.text:
        raise UsageError("there is no text to learn from", "name it with --text FILE")
    if values["steps"] is not None and values["minutes"] is not None:
        raise UsageError("--steps and --minutes are both given", "one of them says how long")


def _options(out: Path, values: Mapping[str, Any]) -> RunOptions:
    from picoedge.host.resources import usable_cores
    from picoedge.train.run.text_run import RunOptions

    return RunOptions(
        out, values["threads"] or usable_cores(), values["memory"], values["kernels"],
        values["minutes"], values["prompt"],
    )  # fmt: skip


def _run(
    folder: RunFolder, options: RunOptions, given: TrainSettings, typed: Sequence[str],
    values: Mapping[str, Any],
) -> int:  # fmt: skip
    from picoedge.train.run.text_run import resume_run

    with showing_progress() as progress:
        if values["resume"]:
            if values["minutes"] is not None:
                raise UsageError(
                    "--minutes is not possible with --resume", "a run keeps the steps it began with"
                )
            run = resume_run(options, given, typed, folder, progress)
        else:
            if values["minutes"] is not None:
                given = replace(given, steps=0)
            run = _begun(options, given, folder, progress)
    if run.is_over:
        _say(f"this run is finished, after step {run.done:,}")
    else:
        _tell_plan(run)
        _hold_memory(run)
    outcome, number = _train(run)
    _plot(run, values["plot"])
    if outcome.reason == "stopped":
        return _tell_stopped(run, outcome, number)
    return _finish(run, outcome, values["as_json"])


def _begun(
    options: RunOptions, given: TrainSettings, folder: RunFolder, progress: Progress | None
) -> TextRun:
    from picoedge.train.run.text_run import begin_run

    try:
        return begin_run(options, given, folder, progress)
    except BaseException:  # also Ctrl-C
        folder.discard()
        raise


def _say(line: str) -> None:
    warn(line, "picoedge")


def _tell_plan(run: TextRun) -> None:
    from picoedge.train.run.progress import format_time

    settings, config, fit = run.settings, run.config, run.fit
    source = run.source
    for fault in run.faults:
        warn(f"{fault}: an older checkpoint is taken")
    _say(
        f"{run.layout.parameters / 1e6:.3g} M parameters ({config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.vocab_size} tokens of vocabulary), "
        f"{source.tokens_per_epoch:,} tokens of text"
    )
    for line in run.data.notes:
        warn(line)
    if run.done:
        _say(f"going on after step {run.done:,} of {settings.steps:,}")
    else:
        passes = settings.steps * settings.tokens / max(1, source.tokens_per_epoch)
        _say(
            f"{settings.steps:,} steps of {settings.tokens:,} tokens ({run.why}; {passes:.3g} "
            f"times through the text)"
        )
    kernels = {"exact": "exact", "blas": "BLAS", "numpy": "NumPy"}[run.arithmetic.name]
    again = ", activations computed twice" if fit.recompute else ""
    time = f"about {format_time(run.total_s)}" if run.step_s else "the rest"
    _say(
        f"{time} on this board with {fit.threads} thread{'s' if fit.threads > 1 else ''} "
        f"({kernels}), "
        f"{format_size(fit.nbytes)} of memory{again}; Ctrl-C saves and ends"
    )
    if run.arithmetic.name == "numpy" and run.arithmetic.kind is None:
        from picoedge.kernels.loader import describe_kernels

        warn(f"training with {describe_kernels()}: several times slower, and its bits depend "
             "on the board")  # fmt: skip


def _hold_memory(run: TextRun) -> None:
    """Tell the board's daemon, if there is one, what this program takes."""
    from picoedge.host.resources import available_bytes
    from picoedge.jobs.kept_memory import free_kept, hold_memory
    from picoedge.mesh.cluster_folder import cluster_folder

    folder = cluster_folder(os.environ)
    if run.fit.nbytes > available_bytes():
        free_kept(folder)
    hold_memory(folder, run.fit.nbytes)


def _train(run: TextRun) -> tuple[Outcome, int]:
    """Train; how that ended, and the number of the signal that stopped it."""
    from picoedge.train.run.log import LogFile
    from picoedge.train.run.progress import ProgressReport
    from picoedge.train.run.samples import Samples
    from picoedge.train.step.trainer import Trainer

    report = ProgressReport(sys.stderr, run.settings.steps)
    log = LogFile(run.folder.log, on_fault=lambda error: report.say(f"note: the log: {error}"))

    def tell_sample(step: int, text: str) -> None:
        log.write({"step": step, "sample": text})
        report.say(f"step {step}: {text}")

    def watchers(trainer: Trainer) -> list[Any]:
        return [report, log, Samples(run.settings.steps, run.sampler(trainer), tell_sample)]

    log.begin(run.done)
    try:
        with StopRequest("saving after this step; Ctrl-C again ends at once") as stop:
            return run.train(watchers, stop), stop.number or 0
    finally:
        report.erase()
        log.close()


def _plot(run: TextRun, plot: str | None) -> None:
    """The curve in the terminal, and as a picture if one was asked for."""
    from picoedge.train.run.curve import curves_of, draw_curve
    from picoedge.train.run.log import read_log

    curves = curves_of(read_log(run.folder.log))
    for line in draw_curve(*curves):
        click.echo(line, err=True)
    if plot is not None and curves[0]:
        from picoedge.train.run.plot import save_plot

        save_plot(Path(plot), *curves, title=run.options.out.name)


def _tell_stopped(run: TextRun, outcome: Outcome, number: int) -> int:
    steps = f"step {outcome.step} of {run.settings.steps}"
    last = run.folder.checkpoints.steps()
    if outcome.is_saved:
        state = f"stopped and saved after {steps}"
    elif last:
        state = f"stopped after {steps}, which could not be saved; step {last[-1]} is"
    else:
        state = f"stopped after {steps}; nothing could be saved"
    _say(f"{state}. Go on with: picoedge train --resume --out {run.options.out}")
    return _EXIT_SIGNAL + number


def _finish(run: TextRun, outcome: Outcome, as_json: bool) -> int:
    from picoedge.train.run.text_run import make_pack

    if outcome.reason == "early":
        _say(f"ended early, after step {outcome.step}: the held-out loss had not fallen for "
             f"{run.settings.patience} evaluations")  # fmt: skip
    with showing_progress() as progress:
        packed = make_pack(run, outcome, progress)
    _tell_result(run, outcome, packed, as_json)
    return 0


def _tell_result(run: TextRun, outcome: Outcome, packed: Packed, as_json: bool) -> None:
    out, folder = run.options.out, run.folder.path
    nbytes = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    loss = "" if packed.held_out is None else f", held-out loss {packed.held_out:.3f}"
    facts = {
        "path": str(out), "bytes": nbytes, "parameters": run.layout.parameters,
        "steps": outcome.step, "ended": outcome.reason, "packed_step": packed.step,
        "held_out_loss": packed.held_out, "run": str(folder),
    }  # fmt: skip
    print_result(as_json, facts, f"{out}: {format_size(nbytes)}, {packed.note}{loss}")
    _say(f"talk with it: picoedge chat {out}; make it smaller: picoedge pack {out} --bits 4; "
         f"{folder} is needed no more")  # fmt: skip
