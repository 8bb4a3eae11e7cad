"""`picoedge generate`: one completion, streamed, or reported as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, output, reports
from picoedge.errors import PicoedgeError
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.engine.session import Prompt, Prompter, Session


@click.command()
@options.model_argument()
@options.prompt_options(256, "The text to complete [default: what is piped in].")
@click.option("--raw", is_flag=True, help="Complete the plain text, without the chat template.")
@click.option("--ignore-eos", is_flag=True, help="Continue past the end-of-text token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.sampling_options
@options.model_options
@options.cluster_options
@options.system_option
@options.verbose_option
def command(**values: Any) -> None:
    """Complete one prompt with MODEL.

    The text goes to stdout as it comes. MODEL is a catalogue name, a .gguf file, a Hugging Face
    folder or a .pico folder.
    """
    text = models.chosen_prompt(values["prompt"])
    opened = models.open_pack(values, template=not values["raw"])
    prompt = _prompt(text, values, opened.prompter)
    with closing(models.open_session(values, opened, prompt)) as session:
        pieces = session.generate(
            prompt,
            max_tokens=models.token_limit(values["n_tokens"]),
            stop=values["stop"],
            ignore_eos=values["ignore_eos"],
        )
        if values["as_json"]:
            _print_report(session, pieces)
        else:
            output.write_whole_answer(pieces)
        output.tell_end(session, values["verbose"])


def _prompt(text: str, values: dict[str, Any], prompter: Prompter) -> Prompt:
    if values["raw"] or prompter.template is None:
        return prompter.complete(text)
    return prompter.chat(models.opening_messages(values["system"], text))


def _print_report(session: Session, pieces: Iterator[str]) -> None:
    """Print the JSON object, also of an answer that an error interrupts, and raise the error."""
    text = ""
    try:
        for piece in pieces:
            text += piece
    except PicoedgeError as error:
        click.echo(json.dumps({**report(session, text), **reports.failure(error)}))
        raise
    click.echo(json.dumps(report(session, text)))


def report(session: Session, text: str) -> dict[str, Any]:
    """The JSON object: text, speed, memory and bytes read."""
    from picoedge.host.resources import peak_rss_bytes, storage_bytes_read

    stats, model = session.stats, session.model
    return {
        "model": session.name,
        "text": text,
        "tokens": stats.tokens,
        "finish_reason": stats.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "ttft_s": stats.ttft_s,
        "prefill_tok_s": stats.prefill_tok_s,
        "decode_tok_s": stats.decode_tok_s,
        "s_per_token": stats.s_per_token,
        "peak_rss_mb": peak_rss_bytes() / MB,
        "bytes_read": storage_bytes_read(),
        "kernels": model.kernels.name,
        "boards": model.boards,
        **reports.cluster(model),
        **reports.window(model, stats.disk_wait_s, stats.decode_s),
    }
