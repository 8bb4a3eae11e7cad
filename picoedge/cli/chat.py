"""`picoedge chat`: a conversation on a terminal, or one answer to what is piped in."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, output, prompts

if TYPE_CHECKING:
    from picoedge.engine.prompt import Prompt, Prompter
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
@options.cluster_options
@options.verbose_option
def command(**values: Any) -> int:
    """Talk with MODEL, or with the catalogue's default model.

    With -p, or with text piped in, one answer is printed and nothing else.
    """
    sampling = options.chosen_sampling(values)
    if values["prompt"] is None and prompts.stdin_is_terminal():
        session, prompter = models.open_chat(values, sampling)
        with closing(session):
            return _converse(session, prompter, values)
    text = prompts.chosen_prompt(values["prompt"]).strip()
    session, prompt = models.open_answer(values, sampling, partial(_ask, text, values))
    with closing(session):
        return _answer_once(session, prompt, values)


def _converse(session: Session, prompter: Prompter, values: dict[str, Any]) -> int:
    from picoedge.cli.chat_console import TerminalConsole
    from picoedge.cli.chat_loop import Chat
    from picoedge.cli.conversation import ChatSettings

    prompter.require_template()  # rather now than after the first question
    settings = ChatSettings(
        system=values["system"] or "",
        n_tokens=values["n_tokens"],
        stop=list(values["stop"]),
        verbose=values["verbose"],
    )
    return Chat(session, prompter, TerminalConsole(), settings).run()


def _ask(text: str, values: dict[str, Any], prompter: Prompter) -> Prompt:
    from picoedge.engine.prompt import Prompt

    return Prompt(prompter.chat_ids(models.opening_messages(values["system"], text)))


def _answer_once(session: Session, prompt: Prompt, values: dict[str, Any]) -> int:
    limit = models.token_limit(values["n_tokens"])
    pieces = session.generate(prompt.ids, max_tokens=limit, stop=values["stop"])
    output.write_whole_answer(pieces)
    output.tell_end(session, values["verbose"])
    return 0
