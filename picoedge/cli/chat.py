"""`picoedge chat`: a conversation on a terminal, or one answer to what is piped in."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import models, options, output

if TYPE_CHECKING:
    from picoedge.engine.session import Prompter, Session

DEFAULT_TOKENS = 1024  # longer answers seldom end by themselves


@click.command()
@options.model_argument(required=False)
@options.prompt_options(DEFAULT_TOKENS, "Ask this, print the answer, and leave.")
@options.system_option
@options.sampling_options
@options.model_options
@options.cluster_options
@options.verbose_option
def command(**values: Any) -> int:
    """Talk with MODEL, or with the catalogue's default model.

    With -p, or with text piped in, one answer is printed and nothing else.
    """
    if values["prompt"] is None and models.stdin_is_terminal():
        opened = models.open_pack(values)
        prompter = opened.prompter
        prompter.require_template()  # rather now than after the first question
        with closing(models.open_session(values, opened)) as session:
            return _converse(session, prompter, values)
    text = models.chosen_prompt(values["prompt"]).strip()
    opened = models.open_pack(values)
    prompt = opened.prompter.chat(models.opening_messages(values["system"], text))
    with closing(models.open_session(values, opened, prompt)) as session:
        limit = models.token_limit(values["n_tokens"])
        output.write_whole_answer(session.generate(prompt, max_tokens=limit, stop=values["stop"]))
        output.tell_end(session, values["verbose"])
    return 0


def _converse(session: Session, prompter: Prompter, values: dict[str, Any]) -> int:
    from picoedge.cli.chat_console import TerminalConsole
    from picoedge.cli.chat_loop import Chat, ChatSettings

    settings = ChatSettings(
        system=values["system"] or "",
        n_tokens=values["n_tokens"],
        stop=list(values["stop"]),
        verbose=values["verbose"],
    )
    return Chat(session, prompter, TerminalConsole(), settings).run()
