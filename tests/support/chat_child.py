"""`picoedge chat` with a scripted model on this process's terminal: `chat_child.py ANSWER...`.

$CHAT_WORDS are more words of its command line.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from fake_model import prompter_for, scripted_session

from picoedge.__main__ import main as picoedge
from picoedge.cli import models

ENDLESS = 100_000


def main(answers: Sequence[str]) -> int:
    session = scripted_session(*(a * ENDLESS if a == "x" else a for a in answers), n_ctx=10**6)
    opened = SimpleNamespace(prompter=prompter_for(session), pack=SimpleNamespace(name="parrot"))
    made: dict[str, Any] = {
        "open_named_pack": lambda values, **changes: opened,
        "start_session": lambda values, opened, prompt=None: session,
    }
    for name, function in made.items():
        setattr(models, name, function)
    words = shlex.split(os.environ.get("CHAT_WORDS", ""))
    sys.argv = ["picoedge", "chat", "-n", "-1", *words]
    return picoedge()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
