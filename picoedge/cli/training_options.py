"""Options that commands which train have in common, and what their values say of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from picoedge.cli.options import Decorator, together
from picoedge.errors import UsageError

MOST_STEPS = 10_000_000


def integer(flag: str, least: int, most: int, help_text: str, *name: str) -> Decorator:
    """An option of a whole number in [least, most], None where it is not given."""
    return click.option(flag, *name, type=click.IntRange(least, most), help=help_text)


def number(flag: str, least: float, most: float, help_text: str) -> Decorator:
    """An option of a number in [least, most], None where it is not given."""
    return click.option(flag, type=click.FloatRange(least, most), help=help_text)


def out_option(metavar: str, help_text: str) -> Decorator:
    """--out, which must be given."""
    return click.option("--out", metavar=metavar, required=True, help=help_text)


def run_length_options(steps_help: str, minutes_help: str) -> Decorator:
    """--steps and --minutes."""
    return together(
        integer("--steps", 1, MOST_STEPS, steps_help),
        number("--minutes", 0.01, 1e6, minutes_help),
    )


def resume_option(result: str) -> Decorator:
    """--resume; `result` names what --out names."""
    return click.option(
        "--resume", is_flag=True, help=f"Go on with the run of {result}, to the same bits."
    )


def seed_option(what: str) -> Decorator:
    """--seed, apart from the seed of sampling that a config file may have."""
    return integer("--seed", 0, (1 << 63) - 1, f"Of {what} [default: 0].", "train_seed")


def learning_rate_option(flag: str, help_text: str) -> Decorator:
    """The learning rate at its peak, above 0."""
    return click.option(flag, type=click.FloatRange(0, 1, min_open=True), help=help_text)


def config_option(folder: str) -> Decorator:
    """--config, a file as the runs in `folder` have."""
    return click.option(
        "--config",
        metavar="FILE",
        help=f"Settings of a file, as each run writes one: {folder}/config.toml. "
        "Flags go before it.",
    )


def patience_option(usual: str) -> Decorator:
    """--patience, `usual` by default."""
    return integer(
        "--patience", 0, 1_000_000,
        "End after so many evaluations without a lower held-out loss; 0: never "
        f"[default: {usual}].",
    )  # fmt: skip


def prompt_option(help_text: str) -> Decorator:
    """--prompt, of samples."""
    return click.option("--prompt", default="", metavar="TEXT", help=help_text)


plot_option = click.option(
    "--plot", metavar="FILE", help="Draw the curve as .png or .svg (needs matplotlib)."
)


def check_plot(values: Mapping[str, Any]) -> None:
    """Find out that the picture of --plot can be made. Raises UsageError."""
    if values["plot"] is not None:
        from picoedge.train.run.plot import check_plot

        check_plot(Path(values["plot"]))


def refuse_other_settings(values: Mapping[str, Any]) -> None:
    """Raises UsageError where --resume, which has its run's settings, is given others."""
    if values["config"] is not None and values["resume"]:
        raise UsageError("--config and --resume are both given", "--resume has its run's settings")


def chosen_settings(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Settings that were given; `names`: parameter of the command to setting of the run."""
    return {
        setting: values[parameter]
        for parameter, setting in names.items()
        if values[parameter] is not None
    }


def refuse_several(values: Mapping[str, Any], *names: str) -> None:
    """Raises UsageError where more than one of these options says how long a run is."""
    given = [name for name in names if values[name] is not None]
    if len(given) > 1:
        raise UsageError(
            f"--{given[0]} and --{given[1]} are both given", "one of them says how long"
        )


def refuse_second_run(out: Path) -> None:
    """Find out that `out` can be written, and that no run for it has been saved.

    Raises StorageError, UsageError.
    """
    from picoedge.train.run.folder import folder_of, has_run, refuse_unwritable

    refuse_unwritable(out)
    path = folder_of(out)
    if has_run(path):
        raise UsageError(
            f"{path} holds a run already",
            f"--resume goes on with it; another --out, or rm -r {path}, begins anew",
        )


def no_run(path: Path) -> UsageError:
    """The error for --resume where the run's folder is missing."""
    return UsageError(f"there is no run to resume: no {path}", "leave out --resume")
