"""A plan over boards as tables: seconds per token by number of boards, and each board's shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from picoedge.cli.output import print_table

if TYPE_CHECKING:
    from picoedge.planner.cluster_plan import ClusterPlan
    from picoedge.planner.cost_model import Candidate

NUMBERS = (
    "boards", "a token", "computing", "sums", "disk", "tok/s", "sums go", "prompt tok/s",
)  # fmt: skip


def print_plan(plan: ClusterPlan) -> None:
    """Print the reason, a row for each number of boards, and one for each chosen board."""
    from picoedge.planner.cluster_plan import TABLE_HEADER, plan_table

    click.echo(f"{plan.why}\n")
    print_table(NUMBERS, numbers(plan))
    click.echo()
    print_table(TABLE_HEADER, plan_table(plan.chosen))
    if plan.idle:
        click.echo(f"\nleft out: {', '.join(plan.idle)}")


def numbers(plan: ClusterPlan) -> list[tuple[str, ...]]:
    """Rows under `NUMBERS`; the chosen one has a star."""
    rows = [_row(count, one, plan) for count, one in enumerate(plan.predictions, 1)]
    if not any(row[0].endswith("*") for row in rows):  # a split that the user asked for
        rows.append((f"{plan.chosen.boards} *", *_figures(plan.chosen)))
    return rows


def _row(count: int, one: Candidate | None, plan: ClusterPlan) -> tuple[str, ...]:
    if one is None:
        return (str(count), "cannot hold the model", *[""] * 6)
    if one.boards < count:
        return (str(count), f"as with {one.boards}", *[""] * 6)
    if one.members == plan.chosen.members and one.allreduce == plan.chosen.allreduce:
        parts = [share.part for share in one.shares]
        if parts == [share.part for share in plan.chosen.shares]:
            return (f"{count} *", *_figures(plan.chosen))
    return (str(count), *_figures(one))


def _figures(one: Candidate) -> tuple[str, ...]:
    times = (one.s_per_token, one.compute_s, one.comm_s, one.disk_s)
    return (
        *(seconds(each) for each in times),
        f"{1 / one.s_per_token:.3g}",
        one.allreduce if one.boards > 1 else "-",
        f"{one.prefill_tok_s:.3g}",
    )


def seconds(value: float) -> str:
    """`38 ms`, `2.1 s`; `-` for none."""
    if value == 0.0:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
