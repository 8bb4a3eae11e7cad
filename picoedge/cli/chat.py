"""`picoedge chat`, on a terminal or in a pipe, and `picoedge generate`: one answer, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import chat_history, models, options, output, reports
from picoedge.errors import PicoedgeError
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.cli.chat_log import ChatLog
    from picoedge.engine.open import OpenPack
    from picoedge.engine.session import Prompter, Session

DEFAULT_TOKENS = 1024  # longer answers seldom end by themselves
_STATS = (
    "tokens", "finish_reason", "prompt_tokens", "ttft_s", "prefill_tok_s", "decode_tok_s",
    "s_per_token",
)  # fmt: skip


@click.command("chat")
@options.model_argument(required=False)
@options.prompt_options(DEFAULT_TOKENS, "Ask this, print the answer, and leave.")
@options.continue_options
@options.system_option
@options.template_options
@options.sampling_options
@options.model_options
@options.cluster_options
@options.verbose_option
def chat(**values: Any) -> int:
    """Talk with MODEL, or with the catalogue's default model.

    With -p, or with text piped in, one answer is printed and nothing else. Conversations are kept
    on this board, for --continue and `picoedge chats`.
    """
    one_answer = values["prompt"] is not None or not models.stdin_is_terminal()
    text = models.chosen_prompt(values["prompt"]).strip() if one_answer else ""
    values = chat_history.choose_model(values)
    opened = models.open_named_pack(values)
    if one_answer and values["continued"] is None:
        return _answer_once(opened, values, text)
    with closing(chat_history.open_log(values, opened)) as log:
        prompter = models.chosen_prompter(opened, values)
        prompter.require_template()  # rather now than after the first question
        chat_history.record_model(log, values, opened)
        with closing(models.start_session(values, opened)) as session:
            return _converse(session, prompter, log, values, text)


def _answer_once(opened: OpenPack, values: dict[str, Any], text: str) -> int:
    """One answer, of which nothing is kept."""
    prompt = models.chat_prompt(opened, values, text)
    with closing(models.start_session(values, opened, prompt)) as session:
        limit = models.token_limit(values["n_tokens"])
        output.write_whole_answer(session.generate(prompt, max_tokens=limit, stop=values["stop"]))
        output.tell_end(session, values["verbose"])
    return 0


def _converse(
    session: Session, prompter: Prompter, log: ChatLog, values: dict[str, Any], text: str
) -> int:
    """A conversation; with `text` one turn of it."""
    from picoedge.cli.chat_console import PipeConsole, TerminalConsole
    from picoedge.cli.chat_loop import converse
    from picoedge.cli.chat_turns import Chat, ChatSettings

    settings = ChatSettings(values["n_tokens"], list(values["stop"]), values["verbose"])
    console = PipeConsole() if text else TerminalConsole(values["history"])
    chat = Chat(session, prompter, console, settings, log)
    chat_history.restore_settings(chat, values)
    if not text:
        return converse(chat)
    chat.ask(text)
    return 0


@click.command("generate")
@options.model_argument()
@options.prompt_options(256, "The text to complete [default: standard input].")
@click.option("--raw", is_flag=True, help="Complete the plain text, without the chat template.")
@click.option("--ignore-eos", is_flag=True, help="Continue past the end-of-text token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.sampling_options
@options.model_options
@options.cluster_options
@options.system_option
@options.template_options
@options.verbose_option
def generate(**values: Any) -> None:
    """Complete one prompt with MODEL.

    The text goes to stdout as it comes. MODEL is a catalogue name, a .gguf file, a Hugging Face
    folder or a .pico folder.
    """
    text = models.chosen_prompt(values["prompt"])
    opened = models.open_named_pack(values, template=not values["raw"])
    if values["raw"] or (opened.prompter.template is None and not values["chat_template"]):
        prompt = opened.prompter.complete(text)
    else:
        prompt = models.chat_prompt(opened, values, text)
    with closing(models.start_session(values, opened, prompt)) as session:
        pieces = session.generate(
            prompt,
            max_tokens=models.token_limit(values["n_tokens"]),
            stop=values["stop"],
            ignore_eos=values["ignore_eos"],
        )
        if values["as_json"]:
            _print_report(session, pieces, reports.adapter(opened))
        else:
            output.write_whole_answer(pieces)
        output.tell_end(session, values["verbose"])


def _print_report(session: Session, pieces: Iterator[str], adapter: dict[str, Any]) -> None:
    """Print the JSON object, also of an answer that an error interrupts, and raise the error."""
    text = ""
    try:
        for piece in pieces:
            text += piece
    except PicoedgeError as error:
        failed = {**_report(session, text), **adapter, **reports.failure(error)}
        click.echo(json.dumps(failed))
        raise
    click.echo(json.dumps({**_report(session, text), **adapter}))


def _report(session: Session, text: str) -> dict[str, Any]:
    """The JSON object: text, speed, memory and bytes read."""
    from picoedge.host.resources import peak_rss_bytes, storage_bytes_read

    stats, model = session.stats, session.model
    return {
        "model": session.name,
        "text": text,
        **{name: getattr(stats, name) for name in _STATS},
        "peak_rss_mb": peak_rss_bytes() / MB,
        "bytes_read": storage_bytes_read(),
        "kernels": model.slice.kernels.name,
        "boards": model.boards,
        **reports.cluster(model),
        **reports.window(model, stats.disk_wait_s, stats.decode_s),
    }
