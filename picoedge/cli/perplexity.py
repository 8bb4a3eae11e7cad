"""`picoedge perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options
from picoedge.cli.output import showing_progress
from picoedge.errors import UsageError
from picoedge.progress import no_progress

if TYPE_CHECKING:
    from picoedge.text.tokenizer.base import Tokenizer

BYTES_PER_TOKEN = 16  # more than texts have; read again where it was not enough


@click.command()
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
def command(**values: Any) -> None:
    """Measure how well MODEL predicts the beginning of a text: lower is better.

    The exponential of the mean negative log-likelihood of each token given all before it.
    """
    from picoedge.engine.benchmark import perplexity
    from picoedge.engine.open import load_model
    from picoedge.model.transformer import LOGIT_ROWS

    models.read_text(values["file"], BYTES_PER_TOKEN)  # a file that is no text fails at once
    opened = models.open_pack(values, template=False, logit_rows=LOGIT_ROWS)
    tokens = first_tokens(opened.take_tokenizer(), values["file"], values["n_tokens"])
    opened.suggest_context(len(tokens))
    models.check_length(opened, len(tokens), "fewer --tokens")
    model = models.load(values, opened, load_model)
    with closing(model), showing_progress() as progress:
        tell = progress or no_progress
        value = perplexity(model, tokens, lambda n, of: tell(f"token {n} of {of}", 0, 0))
    if values["as_json"]:
        click.echo(json.dumps({"perplexity": value, "tokens": len(tokens)}))
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
