"""`picoedge merge`: a pack with an adapter's matrices added, and what that cost."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, reports
from picoedge.cli.benchmark import first_tokens
from picoedge.cli.output import print_facts, print_json, print_table, showing_progress
from picoedge.errors import UsageError
from picoedge.progress import no_progress, one_stage
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.engine.open import OpenPack
    from picoedge.engine.options import OpenOptions
    from picoedge.store.pack.merged import MergeCost
    from picoedge.store.pack.reader import Pack

# From the first chapter of "Walden" (1854), for a perplexity where no text is given.
SAMPLE = """\
When I wrote the following pages, or rather the bulk of them, I lived alone, in the woods, a mile
from any neighbor, in a house which I had built myself, on the shore of Walden Pond, in Concord,
Massachusetts, and earned my living by the labor of my hands only. I lived there two years and two
months. At present I am a sojourner in civilized life again. I should not obtrude my affairs so much
on the notice of my readers if very particular inquiries had not been made by my townsmen concerning
my mode of life, which some would call impertinent, though they do not appear to me at all
impertinent, but, considering the circumstances, very natural and pertinent. Some have asked what I
got to eat; if I did not feel lonesome; if I was not afraid; and the like. Others have been curious
to learn what portion of my income I devoted to charitable purposes; and some, who have large
families, how many poor children I maintained.
"""


@click.command("merge")
@options.model_argument()
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The new pack, NAME.pico."
)
@click.option(
    "--bits",
    type=click.Choice(["4", "5", "6", "8", "32"]),
    help="Bits per weight of the new pack [default: each matrix keeps its own].",
)
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path),
    help="A UTF-8 text to compare perplexities on [default: a page of a book].",
)
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Take the first N tokens of the text.",
)
@options.json_option
@options.model_options
def merge(**values: Any) -> None:
    """Add --adapter FOLDER to the weights of MODEL, and write the result as a pack.

    The merged model needs no adapter and runs as fast as MODEL. It is not quite the model with the
    adapter beside it: its weights are rounded once more. What that costs is shown: errors of the
    weights, and the perplexity of a text before and after. An existing pack is replaced once the
    new one is complete.
    """
    out: Path = values["out"]
    if not values["adapter"]:
        raise UsageError("no adapter to merge", "give --adapter FOLDER")
    if values["file"]:
        models.read_text(values["file"], 16)  # a file that is no text fails before anything else
    opened = models.open_named_pack(values, template=False, logit_rows=_logit_rows())
    pack = opened.pack
    if out.exists() and out.resolve() == pack.path.resolve():
        raise UsageError("the merged pack would replace the model", "give --out another name")
    tokens = _tokens(values, opened)
    before = _perplexity(opened.pack, opened.options, tokens)  # what fails has written nothing
    cost = _merge(values, opened, out)
    plain = dataclasses.replace(opened.options, adapter=None)
    after = _perplexity(_reopened(out), plain, tokens)
    facts = {
        "path": str(out),
        **reports.adapter(opened),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "added": {name: powers.relative_added for name, powers in cost.items()},
        "error": {name: powers.relative_error for name, powers in cost.items()},
        "perplexity_before": before,
        "perplexity_after": after,
        "tokens": len(tokens),
    }
    if values["as_json"]:
        print_json(facts)
    else:
        _print(facts, cost)


def _logit_rows() -> int:
    from picoedge.model.transformer import LOGIT_ROWS

    return LOGIT_ROWS


def _merge(values: dict[str, Any], opened: OpenPack, out: Path) -> MergeCost:
    from picoedge.store.adapters import read_adapter
    from picoedge.store.pack.merged import merge_adapter
    from picoedge.store.sources.adapter_matrices import canonical_matrices

    pack, bits = opened.pack, values["bits"]
    matrices = canonical_matrices(read_adapter(Path(values["adapter"])), pack.config)
    with showing_progress() as progress:
        told = one_stage(progress, f"merging {pack.name}")
        return merge_adapter(pack, matrices, out, bits=int(bits) if bits else None, progress=told)


def _tokens(values: dict[str, Any], opened: OpenPack) -> list[int]:
    """The tokens to compare perplexities on; by default no more than the model's context has."""
    tokenizer, count = opened.take_tokenizer(), values["n_tokens"]
    if not options.is_typed("n_tokens"):
        most = opened.pack.config.max_position_embeddings
        count = min(count, values["ctx_size"] or most, most)
    if values["file"]:
        tokens = first_tokens(tokenizer, values["file"], count)
    else:
        tokens = tokenizer.encode(SAMPLE)[:count]
    opened.suggest_context(len(tokens))
    models.check_length(opened, len(tokens), "fewer --tokens")
    return tokens


def _perplexity(pack: Pack, how: OpenOptions, tokens: list[int]) -> float:
    from picoedge.engine.benchmark import measure_perplexity
    from picoedge.engine.open import load_model

    with showing_progress() as progress:
        tell = progress or no_progress
        with closing(load_model(pack, how, progress)) as model:
            return measure_perplexity(model, tokens, lambda n, of: tell(f"token {n} of {of}", 0, 0))


def _reopened(out: Path) -> Pack:
    from picoedge.store.pack.reader import Pack

    return Pack.open(out)


def _print(facts: dict[str, Any], cost: MergeCost) -> None:
    print_table(
        ("matrices", "the adapter adds", "rounding changes"),
        [
            (name, f"{100 * powers.relative_added:.3g} %", f"{100 * powers.relative_error:.3g} %")
            for name, powers in cost.items()
        ],
    )
    click.echo()
    before, after = facts["perplexity_before"], facts["perplexity_after"]
    change = 100 * (after / before - 1)
    print_facts(
        [
            ("perplexity", f"{before:.4g} with the adapter beside the model"),
            ("", f"{after:.4g} merged ({change:+.2g} %), over {facts['tokens']} tokens"),
            ("merged", f"{facts['path']}: {format_size(facts['bytes'])}"),
        ]
    )
