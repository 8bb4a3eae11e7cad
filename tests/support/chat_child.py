"""`picoedge chat` with a scripted model on this process's terminal: `chat_child.py ANSWER...`.

$CHAT_WORDS are more words of its command line. With $CHAT_ATTENDS the model is attended to while
the prompt waits; where that is a text, it is said then, and work goes on until a key is pressed.
"""

from __future__ import annotations

import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from fake_model import prompter_for, scripted_session

from picoedge.__main__ import main as picoedge
from picoedge.cli import await_typing, models

ENDLESS = 100_000


def main(answers: Sequence[str]) -> int:
    session = scripted_session(*(a * ENDLESS if a == "x" else a for a in answers), n_ctx=10**6)
    if told := os.environ.get("CHAT_ATTENDS"):
        await_typing.ATTEND_S = 0.02
        session.model.attend = attending(told)
    pack = SimpleNamespace(name="parrot")
    opened = SimpleNamespace(prompter=prompter_for(session), pack=pack, adapter=None)
    made: dict[str, Any] = {
        "open_named_pack": lambda values, **changes: opened,
        "start_session": lambda values, opened, prompt=None: session,
    }
    for name, function in made.items():
        setattr(models, name, function)
    words = shlex.split(os.environ.get("CHAT_WORDS", ""))
    sys.argv = ["picoedge", "chat", "-n", "-1", *words]
    return picoedge()


def attending(told: str) -> await_typing.Attend:
    lines = iter([told] if told != "1" else [])

    def attend(clear: Callable[[], None]) -> None:
        for line in lines:
            clear()
            print(line, file=sys.stderr, flush=True)
            select.select([sys.stdin], [], [])

    return attend


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
