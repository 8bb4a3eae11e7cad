"""`picoedge train`: a small model from one's own text."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import training
from picoedge.cli import training_options as flags
from picoedge.cli.options import (
    json_option,
    kernels_option,
    memory_option,
    threads_option,
    together,
)
from picoedge.cli.output import showing_progress, warn
from picoedge.cli.training import say
from picoedge.errors import StorageError, UsageError
from picoedge.files import free_bytes
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.train.run.folder import RunFolder
    from picoedge.train.run.loop import Outcome
    from picoedge.train.run.text_run import Packed, TextOptions, TextRun
    from picoedge.train.run.text_settings import TrainSettings

_PRESETS = ("1m", "5m", "15m", "40m")
# parameter of the command -> setting of the run
_SETTINGS = {
    "preset": "preset", "steps": "steps", "train_seed": "seed", "batch_size": "batch",
    "micro_batch": "micro_batch", "length": "length", "learning_rate": "learning_rate",
    "warmup": "warmup", "weight_decay": "weight_decay", "clip": "clip",
    "evaluate_every": "evaluate_every", "patience": "patience", "save_every": "save_every",
    "held_out": "held_out",
}  # fmt: skip


_step_options = together(
    flags.integer("--batch-size", 1, 4096, "Sequences of a step [default: 16 to 64, by preset]."),
    flags.integer("--micro-batch", 1, 4096,
        "Sequences that a thread works on at once [default: 2 or 4; fewer if memory is short]."),
    flags.integer("--length", 16, 1 << 16,
        "Tokens of a sequence, and of the model's context [default: 256 or 512, by preset]."),
    flags.learning_rate_option("--learning-rate",
        "At its peak [default: 0.003 to 0.0006, by preset]."),
    flags.integer("--warmup", 0, flags.MOST_STEPS,
        "Steps until the peak [default: a twentieth, at most 200]."),
    flags.number("--weight-decay", 0, 10, "Of matrices [default: 0.1]."),
    flags.number("--clip", 0, 1e6, "The largest norm of a gradient; 0: any [default: 1]."),
    flags.integer("--evaluate-every", 1, flags.MOST_STEPS,
        "Steps from one held-out loss to the next [default: a twentieth of all]."),
    flags.patience_option("5"),
    flags.number("--held-out", 0, 0.5,
        "The share of the text to measure with, and not to train on [default: 0.05]."),
    flags.integer("--save-every", 1, flags.MOST_STEPS,
        "Steps from one checkpoint to the next [default: about 5 minutes]."),
)  # fmt: skip


@click.command("train")
@click.argument("more", nargs=-1, metavar="[FILE]...")
@click.option(
    "--text",
    multiple=True,
    metavar="FILE",
    help="Text to learn from: .txt, .md, .jsonl files, or folders of them; several may follow.",
)
@flags.out_option("NAME.pico", "The pack that is made.")
@click.option("--preset", type=click.Choice(_PRESETS), help="Size in parameters [default: 5m].")
@flags.run_length_options(
    "Steps [default: 20 tokens a parameter, at most 40 passes over the text or an hour].",
    "In place of --steps: as many as this board does in this time.",
)
@flags.resume_option("NAME.pico")
@flags.config_option("NAME.run")
@memory_option
@threads_option
@flags.seed_option("the first weights and the order of the text")
@click.option(
    "--fast",
    is_flag=True,
    default=None,
    help="Use BLAS: quicker, and the bits depend on the board.",
)
@_step_options
@flags.prompt_option("How samples of text begin.")
@flags.plot_option
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
    from picoedge.train.run.folder import RunFolder, folder_of

    values["text"] = (*values["text"], *more)
    out = _out(values["out"])
    flags.check_plot(values)
    given, typed = _given(values)
    path = folder_of(out)
    if not values["resume"]:
        _check_new(given, values)
        flags.refuse_second_run(out)
    elif not path.is_dir():
        raise flags.no_run(path)
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
    """Settings of the flags over the file of --config, and names of the typed ones."""
    from picoedge.train.run.text_settings import TrainSettings, read_settings

    config = values["config"]
    flags.refuse_other_settings(values)
    settings = TrainSettings() if config is None else read_settings(Path(config))
    if config is not None and (values["minutes"] or values["steps"] not in (None, settings.steps)):
        settings = settings.without_steps()
    chosen = flags.chosen_settings(values, _SETTINGS)
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
    flags.refuse_several(values, "steps", "minutes")


def _options(out: Path, values: Mapping[str, Any]) -> TextOptions:
    from picoedge.host.resources import usable_cores
    from picoedge.train.run.text_run import TextOptions

    return TextOptions(
        out, values["threads"] or usable_cores(), values["memory"], values["kernels"],
        values["minutes"], values["prompt"],
    )  # fmt: skip


def _run(
    folder: RunFolder, options: TextOptions, given: TrainSettings, typed: Sequence[str],
    values: Mapping[str, Any],
) -> int:  # fmt: skip
    from picoedge.train.run.text_run import begin_run, resume_run

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
            with training.beginning(folder):
                run = begin_run(options, given, folder, progress)
    try:
        return _train(run, values)
    finally:
        run.source.close()


def _train(run: TextRun, values: Mapping[str, Any]) -> int:
    from picoedge.train.run.loop import STOPPED

    if run.is_over:
        say(f"this run is finished, after step {run.done:,}")
    else:
        _tell_plan(run)
        training.claim_memory(run.fit.nbytes)
    outcome, stopped_by = training.watch_run(
        run.folder, run.settings.steps, run.done, run.sampler, run.train
    )
    if stopped_by == signal.SIGHUP:  # the terminal is gone
        return training.EXIT_SIGNAL + stopped_by
    training.draw_curves(run.folder, run.options.out.name, values["plot"])
    if outcome.reason == STOPPED:
        again = training.resume_command(values, "train", "--resume", "--out", str(run.options.out))
        training.tell_stopped(run.folder, outcome, run.settings.steps, again)
        return training.EXIT_SIGNAL + stopped_by
    return _finish(run, outcome, values["as_json"])


def _tell_plan(run: TextRun) -> None:
    from picoedge.train.run.progress import format_time

    settings, config, fit = run.settings, run.config, run.fit
    source = run.source
    training.tell_faults(run)
    say(
        f"{run.layout.parameters / 1e6:.3g} M parameters ({config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.vocab_size} tokens of vocabulary), "
        f"{source.tokens_per_epoch:,} tokens of text"
    )
    for line in run.data.notes:
        warn(line)
    if run.done:
        say(f"going on after step {run.done:,} of {settings.steps:,}")
    else:
        passes = settings.steps * settings.tokens / max(1, source.tokens_per_epoch)
        say(
            f"{settings.steps:,} steps of {settings.tokens:,} tokens ({run.why}; {passes:.3g} "
            f"times through the text)"
        )
    kernels = {"exact": "exact", "blas": "BLAS", "numpy": "NumPy"}[run.arithmetic.name]
    again = ", activations computed twice" if fit.recompute else ""
    left_s = run.total_s * (1 - run.done / settings.steps)
    say(
        f"about {format_time(left_s)} on this board with {fit.threads} "
        f"thread{'s' if fit.threads > 1 else ''} ({kernels}), micro-batches of {fit.micro_batch}, "
        f"{format_size(fit.nbytes)} of memory{again}; Ctrl-C saves and ends"
    )
    need, free = run.disk_bytes, free_bytes(run.folder.path)
    if free < need:
        warn(f"checkpoints and the pack take {format_size(need)} of the disk, {format_size(free)} "
             "are free: some checkpoints may not be kept")  # fmt: skip
    training.tell_slow_kernels(run, "several times")


def _finish(run: TextRun, outcome: Outcome, as_json: bool) -> int:
    from picoedge.train.run.text_run import make_pack

    if outcome.reason == "early":
        say(f"ended early, after step {outcome.step}: the held-out loss had not fallen for "
             f"{run.settings.patience} evaluations")  # fmt: skip
    try:
        with showing_progress() as progress:
            packed = make_pack(run, outcome, progress)
    except StorageError as error:
        again = f"then: picoedge train --resume --out {shlex.quote(str(run.options.out))}"
        raise StorageError(f"the weights are kept, but {error.message}", again) from error
    _tell_result(run, outcome, packed, as_json)
    return 0


def _tell_result(run: TextRun, outcome: Outcome, packed: Packed, as_json: bool) -> None:
    out, folder = run.options.out, run.folder.path
    written = training.Written("packed_step", packed.step, packed.note, packed.held_out)
    training.print_run(run, outcome, written, as_json=as_json)
    say(f"talk with it: picoedge chat {out}; make it smaller: picoedge pack {out} --bits 4; "
         f"{folder} is needed no more")  # fmt: skip
