"""`picoedge plan`: what would be resident and what streamed, and over boards where and how fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, reports
from picoedge.cli.output import print_facts, print_json, print_table, warn
from picoedge.errors import UsageError
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.engine.open import SessionPlan
    from picoedge.planner.cluster_plan import ClusterPlan
    from picoedge.planner.cost_model import Candidate


_READING = {"direct": "past the page cache", "mmap": "through a map"}
NUMBERS = (
    "boards", "a token", "computing", "sums", "disk", "tok/s", "sums go", "prompt tok/s",
)  # fmt: skip


@click.command()
@options.model_argument()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.model_options
@click.option(
    "--cluster", is_flag=True, help="Plan over the boards of the mesh now, with this one as hub."
)
@click.option(
    "--boards", "boards_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Plan over the boards described in a JSON file.",
)  # fmt: skip
@click.option("--hub", metavar="NAME", help="The board of the file where the command would run.")
@options.split_options
def plan(**values: Any) -> None:
    """Show how MODEL would run: weights in memory, weights streamed, speed.

    generate and chat make the same plan with the same options; with --cluster or
    --boards it shows seconds per token for each number of boards, and the shards of each board.
    No weights are loaded; a model that is not packed yet is fetched and packed.
    """
    over_boards = values["cluster"] or values["boards_file"]
    _check(values, over_boards)
    if over_boards:
        return _plan_cluster(values)
    from picoedge.engine.open import plan_session

    opened = models.open_named_pack(values, loads=False)
    planned = plan_session(opened)
    models.tell_of_numpy(planned.kernels, values["kernels"])
    if values["as_json"]:
        print_json({**planned.to_json(), **reports.adapter(opened)})
        return
    print_facts(facts(planned))
    if not planned.whole:
        from picoedge.cli.plan_picture import ASCII, UNICODE, picture

        encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
        signs = UNICODE if encoding == "utf8" else ASCII  # what stdout can show
        click.echo("\n" + "\n".join(picture(planned.plan.window, signs)))


def _check(values: dict[str, Any], over_boards: bool) -> None:
    if values["cluster"] and values["boards_file"]:
        raise UsageError("--cluster and --boards are both given", "one of them says which boards")
    if values["hub"] and not values["boards_file"]:
        raise UsageError("--hub names a board of a file", "give --boards FILE with it")
    if over_boards:
        return
    if values["tensor_split"]:
        raise UsageError("-ts shares a model among boards", "give --cluster or --boards FILE")
    source = click.get_current_context().get_parameter_source("split_head")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--split-head is over boards", "give --cluster or --boards FILE")


def _plan_cluster(values: dict[str, Any]) -> None:
    from picoedge.cluster.dry_run import MeshFacts, plan_group, topology_of_file, topology_of_mesh

    file = values["boards_file"]
    of_file = topology_of_file(file, values["hub"]) if file else None  # before a model is fetched
    opened = models.open_named_pack({**values, "cluster": True}, text=not file)
    there = MeshFacts(of_file) if of_file else topology_of_mesh(opened, warn)
    plan = plan_group(opened, there)
    if values["as_json"]:
        print_json({"model": opened.pack.name, **reports.adapter(opened), **plan.to_json()})
    else:
        _print_cluster_plan(plan)


def facts(planned: SessionPlan) -> list[tuple[str, str]]:
    """(name, value) of each figure."""
    plan = planned.plan
    threads = f"{planned.threads} thread{'s' if planned.threads > 1 else ''}"
    return [
        ("model", planned.model),
        ("budget", format_size(plan.budget.total)),
        ("interpreter", f"{format_size(plan.budget.fixed - planned.adapter)} with the tokenizer"),
        *([("adapter", format_size(planned.adapter))] if planned.adapter else []),
        ("context", f"{format_size(plan.kv_cache)} for {plan.n_ctx} tokens, {plan.kv_bits} bits"),
        ("buffers", f"{format_size(plan.activations)} for {plan.batch} tokens of a prompt at once"),
        *(_whole_facts(planned) if planned.whole else _streamed_facts(planned)),
        ("storage", str(planned.speeds.storage)),
        ("kernels", f"{format_size(planned.speeds.compute)}/s ({planned.kernels}, {threads})"),
    ]


def _whole_facts(planned: SessionPlan) -> list[tuple[str, str]]:
    window = planned.plan.window
    held = window.resident_bytes + planned.apart
    return [
        ("resident", f"{format_size(held)}: all of it fits, nothing is streamed"),
        ("total", format_size(planned.total)),
        ("a token", f"{window.forecast.s_per_token:.2g} s of computing"),
    ]


def _streamed_facts(planned: SessionPlan) -> list[tuple[str, str]]:
    plan, window = planned.plan, planned.plan.window
    clock = "disk" if window.forecast.clock == "disk" else "processor"
    forecast, largest = window.forecast, max(unit.nbytes for unit in window.streamed)
    reserve = plan.reading.reserve
    beside = f" + {format_size(reserve)} read ahead" if reserve else ""
    depth = window.ring.depth
    units = f"{depth} unit{'s' if depth > 1 else ''}"
    read, used = format_size(window.streamed_bytes), format_size(window.touched_bytes)
    return [
        ("resident", f"{format_size(window.resident_bytes)} of {used}"),
        (
            "window",
            f"{format_size(window.window_bytes)}{beside}: {units} of up to "
            f"{format_size(largest)}, {_READING[plan.reading.io]}",
        ),
        ("total", format_size(planned.total)),
        ("read", f"{read} for each token, or for each {plan.batch} tokens of a prompt"),
        (
            "a token",
            f"{forecast.s_per_token:.2g} s, the clock is the {clock} "
            f"({_seconds(forecast.disk_s)} reading, {_seconds(forecast.compute_s)} computing)",
        ),
    ]


def _seconds(value: float) -> str:
    """`0.12 s`, `45 ms`: a few characters, however small."""
    return f"{value:.2g} s" if value >= 0.1 else f"{1e3 * value:.2g} ms"


def _print_cluster_plan(plan: ClusterPlan) -> None:
    """Print the reason, a row for each number of boards, and one for each chosen board."""
    from picoedge.planner.cluster_plan import TABLE_HEADER, plan_table

    click.echo(f"{plan.why}\n")
    print_table(NUMBERS, rows_by_count(plan))
    click.echo()
    print_table(TABLE_HEADER, plan_table(plan.chosen))
    if plan.idle:
        click.echo(f"\nleft out: {', '.join(plan.idle)}")


def rows_by_count(plan: ClusterPlan) -> list[tuple[str, ...]]:
    """Rows under `NUMBERS`; the chosen one has a star."""
    rows = [_row(count, one, plan) for count, one in enumerate(plan.candidates, 1)]
    if not any(row[0].endswith("*") for row in rows):  # a split that the user asked for
        rows.append((f"{plan.chosen.boards} *", *_figures(plan.chosen)))
    return rows


def _row(count: int, one: Candidate | None, plan: ClusterPlan) -> tuple[str, ...]:
    if one is None:
        return (str(count), "cannot hold the model", *[""] * 6)
    if one.boards < count:
        return (str(count), f"as with {one.boards}", *[""] * 6)
    is_chosen = (
        one.members == plan.chosen.members
        and one.allreduce == plan.chosen.allreduce
        and [share.part for share in one.shares] == [share.part for share in plan.chosen.shares]
    )
    return (f"{count} *", *_figures(plan.chosen)) if is_chosen else (str(count), *_figures(one))


def _figures(one: Candidate) -> tuple[str, ...]:
    times = (one.s_per_token, one.compute_s, one.comm_s, one.disk_s)
    return (
        *(_cell_seconds(each) for each in times),
        f"{1 / one.s_per_token:.3g}",
        one.allreduce if one.boards > 1 else "-",
        f"{one.prefill_tok_s:.3g}",
    )


def _cell_seconds(value: float) -> str:
    """`38 ms`, `2.1 s`; `-` for none."""
    if value == 0.0:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
