"""`picoedge bench`: tokens a second, in llama-bench's rows."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, reports
from picoedge.cli.output import note, one_line
from picoedge.errors import UsageError
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.engine.benchmark import BenchRow
    from picoedge.engine.session import LanguageModel


def _count(short: str, name: str, default: int, text: str, least: int = 0) -> options.Decorator:
    counts = click.IntRange(least)
    return click.option(short, name, type=counts, default=default, show_default=True, help=text)


@click.command()
@options.model_argument()
@_count("-p", "--n-prompt", 256, "Tokens of the prompt; 0: no such row.")
@_count("-n", "--n-tokens", 64, "Tokens to generate; 0: no such row.")
@_count("-r", "--repeats", 3, "Repetitions, after one to warm up.", least=1)
@click.option(
    "-o", "--output", "form", type=click.Choice(["md", "json"]), default="md", show_default=True,
    help="A Markdown table or JSON.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@options.model_options
@options.cluster_options
@options.verbose_option
def command(**values: Any) -> None:
    """Measure how fast MODEL reads a prompt (pp) and generates (tg).

    Mean and standard deviation over the repetitions, in tokens a second.
    """
    from picoedge.host.resources import storage_bytes_read

    n_prompt, n_tokens = values["n_prompt"], values["n_tokens"]
    if not n_prompt and not n_tokens:
        raise UsageError("nothing to measure", "give -p or -n")
    opened = models.open_pack(values, text=False)
    opened.suggest_context(max(n_prompt, n_tokens))
    pack = opened.pack
    models.check_length(opened, max(n_prompt, n_tokens), "fewer tokens")
    with closing(models.load(values, opened, models.loader(opened))) as model:
        began = time.perf_counter()
        measure = partial(_measure, model, pack.config.vocab_size, values)
        rows = measure(n_prompt, 0) + measure(0, n_tokens)
        about = {
            "model": pack.name,
            "size_mb": round(pack.nbytes / MB, 1),
            "kernels": model.kernels.name,
            "threads": model.kernels.threads,
            "n_ctx": model.n_ctx,
            "boards": model.boards,
            **reports.cluster(model),
            "bytes_read": storage_bytes_read(),
            **reports.window(model, model.disk_wait_s, time.perf_counter() - began),
        }
    _print(about, rows, values["as_json"] or values["form"] == "json")


def _measure(
    model: LanguageModel, vocabulary: int, values: dict[str, Any], n_prompt: int, n_tokens: int
) -> list[BenchRow]:
    """The row of a prompt or of generation; with --verbose also the wait for weights in it."""
    from picoedge.engine.benchmark import bench

    waited, streamed, began = model.disk_wait_s, model.bytes_streamed, time.perf_counter()
    rows = bench(
        model, vocabulary, n_prompt=n_prompt, n_generate=n_tokens, repeats=values["repeats"]
    )
    if rows and values["verbose"] and model.memory_plan is not None:
        line = reports.waiting_line(
            model.disk_wait_s - waited,
            time.perf_counter() - began,
            model.bytes_streamed - streamed,
            (values["repeats"] + 1) * (n_prompt + n_tokens),
        )
        note(f"{rows[0].name}: {line}", verbose=True)
    return rows


def _print(about: dict[str, Any], rows: list[BenchRow], as_json: bool) -> None:
    import json

    if as_json:
        from picoedge.host.resources import peak_rss_bytes

        about["peak_rss_mb"] = round(peak_rss_bytes() / MB, 1)
        about["rows"] = [
            {"name": r.name, "mean": round(r.mean, 3), "sd": round(r.sd, 3),
             "runs": [round(run, 3) for run in r.runs]}
            for r in rows
        ]  # fmt: skip
        click.echo(json.dumps(about))
        return
    click.echo("| model | size | kernels | threads | test | t/s |")
    click.echo("| --- | ---: | --- | ---: | --- | ---: |")
    for row in rows:
        click.echo(
            f"| {one_line(about['model'])} | {about['size_mb']} MB | {about['kernels']} "
            f"| {about['threads']} | {row.name} | {row.mean:.2f} ± {row.sd:.2f} |"
        )
