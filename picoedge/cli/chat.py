"""`picoedge chat`: a conversation on a terminal, or one answer to what is piped in."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, output, prompts

if TYPE_CHECKING:
    from picoedge.engine.session import Session

DEFAULT_TOKENS = 1024  # an answer that has gone on so long seldom ends by itself


@click.command()
@options.model_argument(required=False)
@click.option("-p", "--prompt", help="Ask this, print the answer, and leave.")
@click.option(
    "-n",
    "--n-tokens",
    type=click.IntRange(-1),
    default=DEFAULT_TOKENS,
    show_default=True,
    help="Tokens of an answer at most; -1: until the context is full.",
)
@options.system_option
@options.sampling_options
@options.model_options
@options.verbose_option
def command(**values: Any) -> int:
    """Talk with MODEL, or with the catalogue's default model.

    With -p, or with text piped in, one answer is printed and nothing else.
    """
    sampling = options.chosen_sampling(values)
    if values["prompt"] is None and prompts.stdin_is_terminal():
        with closing(models.open_session(values, sampling)) as session:
            return _converse(session, values)
    prompt = prompts.chosen_prompt(values["prompt"]).strip()
    with closing(models.open_session(values, sampling)) as session:
        return _answer_once(session, prompt, values)


def _converse(session: Session, values: dict[str, Any]) -> int:
    from picoedge.cli.chat_console import TerminalConsole
    from picoedge.cli.chat_loop import Chat
    from picoedge.cli.conversation import ChatSettings

    session.require_template()  # rather now than after the first question
    settings = ChatSettings(
        system=values["system"] or "",
        n_tokens=values["n_tokens"],
        stop=list(values["stop"]),
        verbose=values["verbose"],
    )
    return Chat(session, TerminalConsole(), settings).run()


def _answer_once(session: Session, prompt: str, values: dict[str, Any]) -> int:
    ids = session.chat_ids(models.opening_messages(values["system"], prompt))
    limit = models.token_limit(values["n_tokens"])
    pieces = session.generate(ids, max_tokens=limit, stop=values["stop"])
    output.write_whole_answer(pieces)
    output.tell_end(session, values["verbose"])
    return 0
