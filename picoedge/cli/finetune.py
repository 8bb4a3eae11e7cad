"""`picoedge finetune`: teach a packed model from examples, as a LoRA adapter."""

from __future__ import annotations

import os
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
    model_argument,
    threads_option,
)
from picoedge.cli.output import showing_progress, warn
from picoedge.cli.training import say
from picoedge.errors import UsageError
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.store.pack.reader import Pack
    from picoedge.train.lora.run import LoraOptions, LoraRun
    from picoedge.train.lora.settings import LoraSettings
    from picoedge.train.run.folder import RunFolder
    from picoedge.train.run.loop import Outcome

# parameter of the command -> setting of the run
_SETTINGS = {
    "rank": "rank", "alpha": "alpha", "steps": "steps", "train_seed": "seed",
    "context": "length", "rate": "learning_rate", "batch_size": "batch", "held_out": "held_out",
    "rehearsal": "rehearsal", "patience": "patience",
}  # fmt: skip


@click.command("finetune")
@model_argument()
@click.option(
    "--data",
    multiple=True,
    metavar="FILE.jsonl",
    help='Examples, one JSON object a line: {"messages": […]}, {"prompt", "completion"} or '
    '{"text"}. May be given several times.',
)
@flags.out_option("ADAPTER", "The folder of the adapter.")
@click.option("--rank", type=int, help="Of the adapter's matrices [default: 8].")
@click.option("--alpha", type=float, help="Its weight is alpha / rank [default: twice the rank].")
@click.option(
    "--targets",
    metavar="NAMES",
    help="Matrices that get one: all, attention, ffn, or q,k,v,o,gate,up,down [default: all].",
)
@flags.number(
    "--epochs", 0.01, 1e6,
    "Times through the examples [default: 6, of a small file as many as are 60 steps].",
)  # fmt: skip
@flags.run_length_options(
    "In place of --epochs: steps.",
    "In place of --epochs: as many steps as this board does in this time.",
)
@flags.learning_rate_option("--rate", "Learning rate at its peak [default: 0.004].")
@flags.integer(
    "--context", 16, 1 << 16,
    "Tokens of a sequence, at most: longer examples are cut [default: 512].",
)  # fmt: skip
@flags.integer("--batch-size", 2, 4096, "Sequences of a step [default: by the data, 3 to 12].")
@flags.number(
    "--rehearsal", 0, 1000,
    "Weight of staying as it was on text that the model writes itself beforehand; 0: may forget "
    "[default: 5].",
)  # fmt: skip
@flags.number(
    "--held-out", 0, 0.9,
    "Share of the examples that is only measured; the adapter with the lowest loss on it is "
    "written [default: none of fewer than 200 examples, else 0.05].",
)  # fmt: skip
@flags.patience_option("0")
@flags.seed_option("the adapter's start and the order")
@flags.resume_option("ADAPTER")
@flags.config_option("ADAPTER.run")
@flags.prompt_option("A question that is answered now and then, so that one sees what is learned.")
@flags.plot_option
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
    from picoedge.train.run.folder import RunFolder, folder_of

    out = Path(values["out"])
    flags.check_plot(values)
    given, typed = _given(values)
    path = folder_of(out)
    if not values["resume"]:
        flags.refuse_second_run(out)
    elif not (path / "config.toml").is_file():
        raise flags.no_run(path)
    pack = _open_pack(values)  # a model that is not there leaves no folder behind
    folder = RunFolder(path)
    try:
        return _run(folder, pack, given, typed, values)
    finally:
        folder.close()


def _given(values: Mapping[str, Any]) -> tuple[LoraSettings, list[str]]:
    """Settings by the flags, and which of them were typed."""
    from picoedge.train.lora.settings import LoraSettings, read_lora_settings, read_targets
    from picoedge.train.run.settings import check_length

    flags.refuse_several(values, "steps", "epochs", "minutes")
    flags.refuse_other_settings(values)
    known = LoraSettings()
    if values["config"] is not None:
        known = read_lora_settings(Path(values["config"]), "check the path of --config")
    if values["epochs"] is not None or values["minutes"] is not None:
        known = replace(known, steps=0)
    chosen = flags.chosen_settings(values, _SETTINGS)
    if values["targets"] is not None:
        chosen["targets"] = read_targets(values["targets"])
    if "rank" in chosen and "alpha" not in chosen:
        chosen["alpha"] = 2.0 * chosen["rank"]
    data = tuple(os.path.abspath(path) for path in values["data"]) or known.data
    if not data and not values["resume"]:
        raise UsageError("there are no examples to learn from", "name them with --data FILE.jsonl")
    settings = replace(known, data=data, **chosen)
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
    from picoedge.train.run.loop import STOPPED

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
            with training.beginning(folder):
                run = begin_lora(options, given, pack, folder, progress)
    _tell_plan(run)
    training.claim_memory(run.fit.nbytes)
    sampler = run.sampler if options.prompt else None
    outcome, stopped_by = training.watch_run(
        folder, run.settings.steps, run.done, sampler, run.train
    )
    training.draw_curves(folder, run.options.out.name, values["plot"])
    if outcome.reason == STOPPED:
        data = [word for path in run.settings.data for word in ("--data", path)]
        words = ["finetune", str(values["model"]), *data, "--out", str(run.options.out), "--resume"]
        again = training.resume_command(values, *words)
        training.tell_stopped(folder, outcome, run.settings.steps, again)
        return training.EXIT_SIGNAL + stopped_by
    step = run.write(outcome)
    _tell_result(run, outcome, step, values["model"], values["as_json"])
    return 0


def _options(values: Mapping[str, Any]) -> LoraOptions:
    from picoedge.host.resources import usable_cores
    from picoedge.train.lora.run import LoraOptions

    return LoraOptions(
        Path(values["out"]), values["threads"] or usable_cores(), values["memory"],
        values["kernels"], values["minutes"], values["epochs"], values["prompt"],
    )  # fmt: skip


def _tell_plan(run: LoraRun) -> None:
    from picoedge.train.run.progress import format_time

    settings, fit, source = run.settings, run.fit, run.source
    training.tell_faults(run)
    for line in run.examples.notes:
        warn(line)
    facts = source.describe()
    held_out = f", {facts['held_out_examples']} held out" if facts["held_out_examples"] else ""
    say(
        f"{facts['examples']} examples{held_out}, {source.tokens_per_epoch:,} tokens of answers; "
        f"an adapter of {run.layout.parameters / 1e6:.2g} M parameters (rank {settings.rank}: "
        f"{', '.join(name.removesuffix('_proj') for name in settings.targets)})"
    )
    if run.done:
        say(f"going on after step {run.done} of {settings.steps}")
    else:
        say(
            f"{settings.steps:,} steps of {settings.batch} sequences of {settings.length} tokens: "
            f"{run.epochs:.3g} times through the examples"
        )
    left = 1 - run.done / settings.steps
    repeated = run.layout.config.num_hidden_layers - fit.kept_layers
    again = f", {repeated} layers computed twice" if repeated else ""
    say(
        f"about {format_time(run.total_s * left)} on this board with {fit.threads} "
        f"thread{'s' if fit.threads > 1 else ''}, micro-batches of {settings.micro_batch}, "
        f"{format_size(fit.nbytes)} of memory{again}; "
        "Ctrl-C saves and ends"
    )
    training.tell_slow_kernels(run, "many times")


def _tell_result(run: LoraRun, outcome: Outcome, step: int, model: str, as_json: bool) -> None:
    out, record = run.options.out, outcome.record
    held_out = record.best if step == record.best_step else record.held_out
    written = training.Written("written_step", step, f"of step {step}", held_out)
    training.print_run(run, outcome, written, as_json=as_json)
    say(f"talk with it: picoedge chat {model} --adapter {out}; {run.folder.path} is "
         "needed no more")  # fmt: skip
