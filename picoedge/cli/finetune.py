"""`picoedge finetune`: teach a packed model from examples, as a LoRA adapter."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli.options import (
    json_option,
    kernels_option,
    memory_option,
    model_argument,
    threads_option,
)
from picoedge.cli.output import print_result, showing_progress, warn
from picoedge.cli.signals import StopRequest
from picoedge.errors import UsageError
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.store.pack.reader import Pack
    from picoedge.train.lora.run import LoraOptions, LoraRun
    from picoedge.train.lora.settings import LoraSettings
    from picoedge.train.run.folder import RunFolder
    from picoedge.train.run.loop import Outcome

_EXIT_SIGNAL = 128
# parameter of the command -> setting of the run
_SETTINGS = {
    "rank": "rank", "alpha": "alpha", "steps": "steps", "train_seed": "seed",
    "context": "length", "rate": "learning_rate", "batch_size": "batch", "held_out": "held_out",
}  # fmt: skip


@click.command("finetune")
@model_argument()
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE.jsonl",
    help='Examples, one JSON object a line: {"messages": […]}, {"prompt", "completion"} or '
    '{"text"}. May be given several times.',
)
@click.option("--out", metavar="ADAPTER", required=True, help="The folder of the adapter.")
@click.option("--rank", type=int, help="Of the adapter's matrices [default: 8].")
@click.option("--alpha", type=float, help="Its weight is alpha / rank [default: twice the rank].")
@click.option(
    "--targets",
    metavar="NAMES",
    help="Matrices that get one: all, attention, ffn, or q,k,v,o,gate,up,down [default: all].",
)
@click.option(
    "--epochs", type=click.FloatRange(0.01, 1e6), help="Times through the examples [default: 40]."
)
@click.option("--steps", type=click.IntRange(1, 10_000_000), help="In place of --epochs: steps.")
@click.option(
    "--minutes",
    type=click.FloatRange(0.01, 1e6),
    help="In place of --epochs: as many steps as this board does in this time.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="Learning rate at its peak [default: 0.001].",
)
@click.option(
    "--context",
    type=click.IntRange(16, 1 << 16),
    help="Tokens of a sequence, at most: longer examples are cut [default: 512].",
)
@click.option(
    "--batch-size",
    type=click.IntRange(2, 4096),
    help="Sequences of a step [default: by the data, 2 to 16].",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.9),
    help="Share of the examples that is only measured; the adapter with the lowest loss on it is "
    "written [default: none of fewer than 200 examples, else 0.05].",
)
@click.option(
    "--seed",
    "train_seed",
    type=click.IntRange(0, (1 << 63) - 1),
    help="Of the adapter's start and the order [default: 0].",
)
@click.option("--resume", is_flag=True, help="Go on with the run of ADAPTER, to the same bits.")
@memory_option
@threads_option
@kernels_option
@json_option
def finetune(**values: Any) -> int:
    """Teach MODEL from your own examples: questions and answers, conversations, texts.

    The model itself stays as it is, in its quantized form; what is learned is a small adapter in
    PEFT's format. Ctrl-C saves: --resume goes on, and ends with the very adapter of a run that was
    never stopped.

    \b
    picoedge finetune smollm2 --data questions.jsonl --out mine
    picoedge chat smollm2 --adapter mine
    """  # fmt: skip
    from picoedge.train.run.folder import RunFolder, folder_of, has_run, refuse_unwritable

    out = Path(values["out"])
    given, typed = _given(values)
    path = folder_of(out)
    if not values["resume"]:
        refuse_unwritable(out)
        if has_run(path):
            raise UsageError(
                f"{path} holds a run already",
                f"--resume goes on with it; another --out, or rm -r {path}, begins anew",
            )
    elif not (path / "config.toml").is_file():
        raise UsageError(f"there is no run to resume: no {path}", "leave out --resume")
    pack = _open_pack(values)  # a model that is not there leaves no folder behind
    folder = RunFolder(path)
    try:
        return _run(folder, pack, given, typed, values)
    finally:
        folder.close()


def _given(values: Mapping[str, Any]) -> tuple[LoraSettings, list[str]]:
    """Settings by the flags, and which of them were typed."""
    from picoedge.train.lora.settings import LoraSettings, read_targets
    from picoedge.train.run.settings import check_length

    lengths = [name for name in ("steps", "epochs", "minutes") if values[name] is not None]
    if len(lengths) > 1:
        raise UsageError(
            f"--{lengths[0]} and --{lengths[1]} are both given", "one of them says how long"
        )
    chosen = {
        setting: values[parameter]
        for parameter, setting in _SETTINGS.items()
        if values[parameter] is not None
    }
    if values["targets"] is not None:
        chosen["targets"] = read_targets(values["targets"])
    if "rank" in chosen and "alpha" not in chosen:
        chosen["alpha"] = 2.0 * chosen["rank"]
    data = tuple(os.path.abspath(path) for path in values["data"])
    settings = replace(LoraSettings(), data=data, **chosen)
    assert settings.shape  # refuses what is not possible
    check_length(settings.length)
    return settings, list(chosen)


def _open_pack(values: Mapping[str, Any]) -> Pack:
    from picoedge.engine.open import open_pack
    from picoedge.engine.options import OpenOptions

    with showing_progress() as progress:
        options = OpenOptions(kernels=values["kernels"])
        return open_pack(values["model"], options, progress, text=False).pack


def _run(
    folder: RunFolder, pack: Pack, given: LoraSettings, typed: Sequence[str],
    values: Mapping[str, Any],
) -> int:  # fmt: skip
    from picoedge.train.lora.run import begin_lora, resume_lora

    options = _options(values)
    with showing_progress() as progress:
        if values["resume"]:
            if options.minutes or options.epochs:
                raise UsageError(
                    "--minutes and --epochs are not possible with --resume",
                    "a run keeps the steps it began with",
                )
            run = resume_lora(options, given, typed, pack, folder, progress)
        else:
            try:
                run = begin_lora(options, given, pack, folder, progress)
            except BaseException:  # also Ctrl-C
                discard(folder)
                raise
    _tell_plan(run)
    _hold_memory(run)
    outcome, number = _train(run)
    _show_curve(run)
    if outcome.reason == "stopped":
        return _tell_stopped(run, outcome, number)
    step = run.write(outcome)
    _tell_result(run, outcome, step, values["as_json"])
    return 0


def discard(folder: RunFolder) -> None:
    """Remove the folder of a run that did not begin."""
    folder.close()
    for name in ("config.toml", "lock"):
        with suppress(OSError):
            (folder.path / name).unlink()
    with suppress(OSError):
        folder.path.rmdir()


def _options(values: Mapping[str, Any]) -> LoraOptions:
    from picoedge.host.resources import usable_cores
    from picoedge.train.lora.run import LoraOptions

    return LoraOptions(
        Path(values["out"]), values["threads"] or usable_cores(), values["memory"],
        values["kernels"], values["minutes"], values["epochs"],
    )  # fmt: skip


def _say(line: str) -> None:
    warn(line, "picoedge")


def _tell_plan(run: LoraRun) -> None:
    from picoedge.train.run.progress import format_time

    settings, fit, source = run.settings, run.fit, run.source
    for fault in run.faults:
        warn(f"{fault}: an older checkpoint is taken")
    for line in run.examples.notes:
        warn(line)
    facts = source.describe()
    held_out = f", {facts['held_out_examples']} held out" if facts["held_out_examples"] else ""
    _say(
        f"{facts['examples']} examples{held_out}, {source.tokens_per_epoch:,} tokens of answers; "
        f"an adapter of {run.layout.parameters / 1e6:.2g} M parameters (rank {settings.rank}: "
        f"{', '.join(name.removesuffix('_proj') for name in settings.targets)})"
    )
    step = 0 if run.saved is None else run.saved.facts["step"]
    if step:
        _say(f"going on after step {step} of {settings.steps}")
    else:
        _say(
            f"{settings.steps:,} steps of {settings.batch} sequences of {settings.length} tokens: "
            f"{run.epochs:.3g} times through the examples"
        )
    left = 1 - step / settings.steps
    repeated = run.layout.config.num_hidden_layers - fit.kept_layers
    again = f", {repeated} layers computed twice" if repeated else ""
    _say(
        f"about {format_time(run.total_s * left)} on this board with {fit.threads} "
        f"thread{'s' if fit.threads > 1 else ''}, {format_size(fit.nbytes)} of memory{again}; "
        "Ctrl-C saves and ends"
    )
    if run.arithmetic.name == "numpy" and run.arithmetic.kind is None:
        from picoedge.kernels.loader import describe_kernels

        warn(f"training with {describe_kernels()}: many times slower, and its bits depend on the "
             "board")  # fmt: skip


def _hold_memory(run: LoraRun) -> None:
    """Tell the board's daemon, if there is one, what this program takes."""
    from picoedge.host.resources import available_bytes
    from picoedge.jobs.kept_memory import free_kept, hold_memory
    from picoedge.mesh.cluster_folder import cluster_folder

    folder = cluster_folder(os.environ)
    if run.fit.nbytes > available_bytes():
        free_kept(folder)
    hold_memory(folder, run.fit.nbytes)


def _train(run: LoraRun) -> tuple[Outcome, int]:
    """Train; how that ended, and the number of the signal that stopped it."""
    from picoedge.train.run.log import LogFile
    from picoedge.train.run.progress import ProgressReport

    step = 0 if run.saved is None else run.saved.facts["step"]
    report = ProgressReport(sys.stderr, run.settings.steps)
    log = LogFile(run.folder.log, on_fault=lambda error: report.say(f"note: the log: {error}"))
    log.begin(step)
    try:
        with StopRequest("saving after this step; Ctrl-C again ends at once") as stop:
            return run.train([report, log], stop), stop.number or 0
    finally:
        report.erase()
        log.close()


def _show_curve(run: LoraRun) -> None:
    from picoedge.train.run.curve import curves_of, draw_curve
    from picoedge.train.run.log import read_log

    for line in draw_curve(*curves_of(read_log(run.folder.log))):
        click.echo(line, err=True)


def _tell_stopped(run: LoraRun, outcome: Outcome, number: int) -> int:
    steps = f"step {outcome.step} of {run.settings.steps}"
    state = f"stopped and saved after {steps}"
    if not outcome.is_saved:
        last = run.folder.checkpoints.steps()
        state = f"stopped after {steps}, which could not be saved; "
        state += f"step {last[-1]} is" if last else "nothing could be"
    data = " ".join(f"--data {path}" for path in run.settings.data)
    _say(
        f"{state}. Go on with: picoedge finetune {run.pack.path} {data} --out {run.options.out} "
        "--resume"
    )
    return _EXIT_SIGNAL + number


def _tell_result(run: LoraRun, outcome: Outcome, step: int, as_json: bool) -> None:
    out, record = run.options.out, outcome.record
    nbytes = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    held_out = record.best if step == record.best_step else record.held_out
    loss = "" if held_out is None else f", held-out loss {held_out:.3f}"
    facts = {
        "path": str(out), "bytes": nbytes, "parameters": run.layout.parameters,
        "steps": outcome.step, "ended": outcome.reason, "written_step": step,
        "held_out_loss": held_out, "run": str(run.folder.path),
    }  # fmt: skip
    print_result(as_json, facts, f"{out}: {format_size(nbytes)}, of step {step}{loss}")
    _say(f"talk with it: picoedge chat {run.pack.path} --adapter {out}; {run.folder.path} is "
         "needed no more")  # fmt: skip
