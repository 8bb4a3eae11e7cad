"""A chat with a scripted model on this process's terminal: what test_chat_terminal.py runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fake_model import ScriptedModel, prompter_for, scripted_session

from picoedge.cli.chat_console import TerminalConsole
from picoedge.cli.chat_loop import converse
from picoedge.cli.chat_turns import Chat, ChatSettings

ENDLESS = 100_000


def main(answers: Sequence[str]) -> int:
    session = scripted_session(*(a * ENDLESS if a == "x" else a for a in answers), n_ctx=10**6)
    assert isinstance(session.model, ScriptedModel)
    return converse(Chat(session, prompter_for(session), TerminalConsole(), ChatSettings()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
