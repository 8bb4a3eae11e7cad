"""Common parts of commands that train: reports while a run goes on, its end, its curve."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli.output import print_result, warn
from picoedge.cli.signals import StopRequest
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.train.run.assembly import Run
    from picoedge.train.run.folder import RunFolder
    from picoedge.train.run.loop import Outcome, RunWatcher
    from picoedge.train.step.trainer import Trainer

    MakeSampler = Callable[[Trainer], Callable[[int], str]]
    Train = Callable[[Callable[[Trainer], Sequence[RunWatcher]], Callable[[], bool]], Outcome]

EXIT_SIGNAL = 128  # and the signal's number


def say(line: str) -> None:
    """A line on stderr about the run."""
    warn(line, "picoedge")


@contextmanager
def beginning(folder: RunFolder) -> Iterator[None]:
    """Remove the folder of a run that does not begin, also by Ctrl-C."""
    try:
        yield
    except BaseException:
        folder.discard()
        raise


def tell_faults(run: Run) -> None:
    """Tell which checkpoints are passed over."""
    for fault in run.faults:
        warn(f"{fault}: an older checkpoint is taken")


def tell_slow_kernels(run: Run, much: str) -> None:
    """Tell that NumPy trains, `much` slower, where it was not asked for; and of BLAS's threads."""
    if not run.arithmetic.is_blas_held:
        warn("NumPy's BLAS could not be held to one thread: its threads and those of training may "
             "take the cores from each other (OPENBLAS_NUM_THREADS=1 holds OpenBLAS)")  # fmt: skip
    if run.arithmetic.name != "numpy" or run.arithmetic.kind is not None:
        return
    from picoedge.kernels.loader import describe_kernels

    warn(f"training with {describe_kernels()}: {much} slower, and its bits depend on the board")


def claim_memory(nbytes: int) -> None:
    """Tell the board's daemon, if there is one, what this program is about to take."""
    from picoedge.jobs import kept_memory
    from picoedge.mesh.cluster_folder import cluster_folder

    kept_memory.claim_memory(cluster_folder(os.environ), nbytes)


def watch_run(
    folder: RunFolder, steps: int, done: int, make_sampler: MakeSampler | None, train: Train
) -> tuple[Outcome, int]:
    """Train from step `done` on with progress, log and samples; a signal ends it, saved.

    `train(watchers, stop)` runs the loop. Returns its outcome, and the signal's number or 0.
    """
    from picoedge.train.run.log import LogFile
    from picoedge.train.run.progress import ProgressReport
    from picoedge.train.run.samples import Samples

    report = ProgressReport(sys.stderr, steps)
    log = LogFile(folder.log, on_fault=lambda error: report.say(f"note: the log: {error}"))

    def tell_sample(step: int, text: str) -> None:
        log.write({"step": step, "sample": text})
        report.say(f"step {step}: {text}")

    def watchers(trainer: Trainer) -> list[Any]:
        samples = (
            []
            if make_sampler is None
            else [Samples(steps, done, make_sampler(trainer), tell_sample)]
        )
        return [report, log, *samples]

    log.begin(done)
    try:
        with StopRequest("saving after this step; Ctrl-C again ends at once") as stop:
            return train(watchers, stop), stop.number or 0
    finally:
        report.erase()
        log.close()


def draw_curves(folder: RunFolder, title: str, plot: str | None) -> None:
    """The losses of the log in the terminal, and as a picture if one was asked for."""
    from picoedge.train.run.curve import curves_of, draw_curve
    from picoedge.train.run.log import read_log

    training, held_out = curves_of(read_log(folder.log))
    for line in draw_curve(training, held_out):
        click.echo(line, err=True)
    if plot is not None and training:
        from picoedge.train.run.plot import save_plot

        save_plot(Path(plot), training, held_out, title)


def resume_command(values: Mapping[str, Any], *words: str) -> str:
    """The command to go on as it was begun: `words`, and options that are of this board."""
    kept = [
        word
        for name in ("memory", "threads", "kernels")
        if values[name] is not None
        for word in (f"--{name}", _typed(values[name]))
    ]
    return shlex.join(["picoedge", *words, *kept])


def _typed(value: Any) -> str:
    """A value as one types it; sizes in whole megabytes are written so."""
    if isinstance(value, int) and value and value % (1 << 20) == 0:
        return f"{value >> 20}M"
    return str(value)


def tell_stopped(folder: RunFolder, outcome: Outcome, steps: int, again: str) -> None:
    """Say what was saved of a run that was stopped; the command `again` goes on with it."""
    where, last = f"step {outcome.step} of {steps}", folder.checkpoints.steps()
    if outcome.is_saved:
        state = f"stopped and saved after {where}"
    elif last:
        state = f"stopped after {where}, which could not be saved; step {last[-1]} is"
    else:
        state = f"stopped after {where}; nothing could be saved"
    say(f"{state}. Go on with: {again}")


@dataclass(frozen=True)
class Written:
    """The result of a run: the weights of a step, named `key` in JSON, and a note on them."""

    key: str
    step: int
    note: str
    held_out: float | None  # the loss of that step, if it was measured


def print_run(run: Run, outcome: Outcome, written: Written, *, as_json: bool) -> None:
    """Print the facts of a result that lies at the run's --out."""
    out = run.options.out
    nbytes = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    loss = "" if written.held_out is None else f", held-out loss {written.held_out:.3f}"
    facts = {
        "path": str(out), "bytes": nbytes, "parameters": run.layout.parameters,
        "steps": outcome.step, "ended": outcome.reason, written.key: written.step,
        "held_out_loss": written.held_out, "run": str(run.folder.path),
    }  # fmt: skip
    print_result(as_json, facts, f"{out}: {format_size(nbytes)}, {written.note}{loss}")
