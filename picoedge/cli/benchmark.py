"""`picoedge bench`, tokens a second in llama-bench's rows, and `picoedge perplexity`."""

from __future__ import annotations

import json
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, reports
from picoedge.cli.output import note, showing_progress
from picoedge.errors import UsageError
from picoedge.progress import no_progress
from picoedge.sanitize import one_line
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.engine.benchmark import BenchRow
    from picoedge.engine.session import LanguageModel
    from picoedge.text.tokenizer.base import Tokenizer

BYTES_PER_TOKEN = 16  # more than texts have; read again where it was not enough


def _count(short: str, name: str, default: int, text: str, least: int = 0) -> options.Decorator:
    counts = click.IntRange(least)
    return click.option(short, name, type=counts, default=default, show_default=True, help=text)


@click.command("bench")
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
def bench(**values: Any) -> None:
    """Measure how fast MODEL reads a prompt (pp) and generates (tg).

    Mean and standard deviation over the repetitions, in tokens a second.
    """
    from picoedge.host.resources import storage_bytes_read

    n_prompt, n_tokens = values["n_prompt"], values["n_tokens"]
    if not n_prompt and not n_tokens:
        raise UsageError("nothing to measure", "give -p or -n")
    opened = models.open_named_pack(values, text=False)
    opened.suggest_context(max(n_prompt, n_tokens))
    pack = opened.pack
    models.check_length(opened, max(n_prompt, n_tokens), "fewer tokens")
    with closing(models.load_alone(values, opened, models.loader(opened))) as model:
        began = time.perf_counter()
        measure = partial(_measure, model, pack.config.vocab_size, values)
        rows = measure(n_prompt, 0) + measure(0, n_tokens)
        about = {
            "model": pack.name,
            **reports.adapter(opened),
            "size_mb": round(pack.nbytes / MB, 1),
            "kernels": model.slice.kernels.name,
            "threads": model.slice.kernels.threads,
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
    from picoedge.engine import benchmark

    waited, streamed, began = model.disk_wait_s, model.bytes_streamed, time.perf_counter()
    repeats = values["repeats"]
    rows = benchmark.run_bench(
        model, vocabulary, n_prompt=n_prompt, n_generate=n_tokens, repeats=repeats
    )
    if rows and values["verbose"] and model.slice.memory_plan is not None:
        line = reports.waiting_line(
            model.disk_wait_s - waited,
            time.perf_counter() - began,
            model.bytes_streamed - streamed,
            (repeats + 1) * (n_prompt + n_tokens),
        )
        note(f"{rows[0].name}: {line}", verbose=True)
    return rows


def _print(about: dict[str, Any], rows: list[BenchRow], as_json: bool) -> None:
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
    name = one_line(about["model"])
    if "adapter" in about:
        name += f" + {one_line(about['adapter']['name'])}"
    click.echo("| model | size | kernels | threads | test | t/s |")
    click.echo("| --- | ---: | --- | ---: | --- | ---: |")
    for row in rows:
        click.echo(
            f"| {name} | {about['size_mb']} MB | {about['kernels']} "
            f"| {about['threads']} | {row.name} | {row.mean:.2f} ± {row.sd:.2f} |"
        )


@click.command("perplexity")
@options.model_argument()
@click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path), required=True, help="A UTF-8 text."
)
@click.option(
    "--tokens", "n_tokens", type=click.IntRange(2), default=2048, show_default=True,
    help="Take the first N tokens, as one context.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.model_options
def perplexity(**values: Any) -> None:
    """Measure how well MODEL predicts the beginning of a text: lower is better.

    The exponential of the mean negative log-likelihood of each token given all before it.
    """
    from picoedge.engine import benchmark
    from picoedge.engine.open import load_model
    from picoedge.model.transformer import LOGIT_ROWS

    models.read_text(values["file"], BYTES_PER_TOKEN)  # a file that is no text fails at once
    opened = models.open_named_pack(values, template=False, logit_rows=LOGIT_ROWS)
    tokens = first_tokens(opened.take_tokenizer(), values["file"], values["n_tokens"])
    opened.suggest_context(len(tokens))
    models.check_length(opened, len(tokens), "fewer --tokens")
    model = models.load_alone(values, opened, load_model)
    with closing(model), showing_progress() as progress:
        tell = progress or no_progress
        value = benchmark.measure_perplexity(
            model, tokens, lambda n, of: tell(f"token {n} of {of}", 0, 0)
        )
    if values["as_json"]:
        facts = {"perplexity": value, "tokens": len(tokens), **reports.adapter(opened)}
        click.echo(json.dumps(facts))
    else:
        click.echo(f"perplexity {value:.4f} over {len(tokens)} tokens")


def first_tokens(tokenizer: Tokenizer, file: Path, count: int) -> list[int]:
    """The first `count` tokens of a file (all, of a shorter one), BOS where the model has one.

    Reads no more than that takes. Raises UsageError where it is not text or has no two tokens.
    """
    limit = count * BYTES_PER_TOKEN
    ids = tokenizer.encode(models.read_text(file, limit))
    # The last word may be cut in two where the reading ended: stay well before it.
    while len(ids) <= count + 64 and file.stat().st_size > limit:
        limit *= 4
        ids = tokenizer.encode(models.read_text(file, limit))
    if len(ids) < 2:
        raise UsageError(f"{file} has {len(ids)} tokens", "take a longer text")
    return ids[:count]
